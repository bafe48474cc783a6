//! Rotary frequencies: the plain ones and the scaled ones of models with long contexts, as transformers computes them.

/// A rotary embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    /// Numbers of a head that are turned; the rest stay.
    pub dim: usize,
    /// θ: the base of the frequencies.
    pub theta: f64,
    pub scaling: RopeScaling,
}

/// How frequencies are changed for contexts longer than the model was first trained on.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    None,
    /// All frequencies divided.
    Linear {
        factor: f64,
    },
    /// The base grows with sequences longer than `original` ("NTK"): each length has frequencies of its own.
    Dynamic {
        factor: f64,
        original: usize,
    },
    /// Low frequencies divided, high ones kept, a ramp between (Llama 3.1).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original: usize,
    },
    /// A ramp by the number of turns within `original`, and cosines and sines scaled (Peng et al., arXiv 2309.00071).
    Yarn {
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        original: usize,
        attention_factor: f64,
        truncate: bool,
    },
    /// A divisor for each frequency: `short` up to `original` tokens, `long` beyond (Ding et al., arXiv 2402.13753).
    LongRope {
        short: Vec<f32>,
        long: Vec<f32>,
        original: usize,
        attention_factor: f64,
    },
}

impl RopeSpec {
    pub fn plain(dim: usize, theta: f64) -> RopeSpec {
        RopeSpec { dim, theta, scaling: RopeScaling::None }
    }

    /// Inverse frequencies of the dim/2 pairs for a pass whose longest sequence has `longest` tokens, and what cosines and
    /// sines are multiplied by. In f32 where transformers is.
    pub fn frequencies(&self, longest: usize) -> (Vec<f32>, f64) {
        let plain = |theta: f64| -> Vec<f32> { self.powers(theta).iter().map(|p| 1.0 / p).collect() };
        match &self.scaling {
            RopeScaling::None => (plain(self.theta), 1.0),
            RopeScaling::Linear { factor } => {
                (plain(self.theta).into_iter().map(|f| f / *factor as f32).collect(), 1.0)
            }
            RopeScaling::Dynamic { factor, original } => {
                let ratio = longest.max(*original) as f64 / *original as f64;
                let d = self.dim as f64;
                let theta = self.theta * (factor * ratio - (factor - 1.0)).powf(d / (d - 2.0));
                (plain(theta), 1.0)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                let scale =
                    |f: f32| llama3(f, *factor, *low_freq_factor, *high_freq_factor, *original as f64);
                (plain(self.theta).into_iter().map(scale).collect(), 1.0)
            }
            RopeScaling::Yarn { attention_factor, .. } => (self.yarn(), *attention_factor),
            RopeScaling::LongRope { short, long, original, attention_factor } => {
                let divisors = if longest > *original { long } else { short };
                let powers = self.powers(self.theta);
                (powers.iter().zip(divisors).map(|(p, d)| 1.0 / (d * p)).collect(), *attention_factor)
            }
        }
    }

    /// Which frequencies a pass of this length has: passes of the same regime share a table.
    pub fn regime(&self, longest: usize) -> usize {
        match &self.scaling {
            RopeScaling::Dynamic { original, .. } => longest.max(*original),
            RopeScaling::LongRope { .. } => self.key_regime(longest),
            _ => 0,
        }
    }

    /// Which frequencies the keys of a sequence of this length must have been turned by when it is continued.
    ///
    /// With LongRoPE all of them by those of the sequence's length: transformers' Phi-3 throws its cache away at the border and
    /// computes everything again. With dynamic scaling keys stay as they were when they came, as transformers' do; every new
    /// token is turned by frequencies of its own.
    pub fn key_regime(&self, length: usize) -> usize {
        match &self.scaling {
            RopeScaling::LongRope { original, .. } => usize::from(length > *original),
            _ => 0,
        }
    }

    /// Whether hardly any other pass has the frequencies of this length.
    pub fn is_own(&self, longest: usize) -> bool {
        matches!(&self.scaling, RopeScaling::Dynamic { original, .. } if longest > *original)
    }

    /// θ^(2i/dim).
    fn powers(&self, theta: f64) -> Vec<f32> {
        (0..self.dim / 2).map(|i| (theta as f32).powf((2 * i) as f32 / self.dim as f32)).collect()
    }

    fn yarn(&self) -> Vec<f32> {
        let RopeScaling::Yarn { factor, beta_fast, beta_slow, original, truncate, .. } = self.scaling else {
            return Vec::new();
        };
        let dim = self.dim as f64;
        // The pair that turns `rotations` times within the original context.
        let pair = |rotations: f64| {
            dim * (original as f64 / (rotations * std::f64::consts::TAU)).ln() / (2.0 * self.theta.ln())
        };
        let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let ramp = |i: usize| (((i as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
        let blend = |(i, &p): (usize, &f32)| {
            let (kept, divided) = (1.0 / p, 1.0 / (factor as f32 * p));
            let keep = 1.0 - ramp(i);
            divided * (1.0 - keep) + kept * keep
        };
        self.powers(self.theta).iter().enumerate().map(blend).collect()
    }
}

/// In f32 like the tensors that transformers does this on.
fn llama3(frequency: f32, factor: f64, low: f64, high: f64, original: f64) -> f32 {
    let wavelength = std::f64::consts::TAU as f32 / frequency;
    if wavelength < (original / high) as f32 {
        return frequency;
    }
    let factor = factor as f32;
    if wavelength > (original / low) as f32 {
        return frequency / factor;
    }
    let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
    (1.0 - smooth) * frequency / factor + smooth * frequency
}
