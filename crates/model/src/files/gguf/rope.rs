//! The rotary embedding that a GGUF file's keys and tensors of factors describe, and the fields of config.json that say it.

use serde_json::{Map, Value, json};

use super::super::{Error, Result};
use super::convert::Metadata;
use crate::rope::{RopeScaling, RopeSpec};

/// Far above any head's width.
const MOST_HEAD_DIM: u64 = 1 << 16;

/// A rotary embedding, in the words of config.json.
pub(crate) struct Rope {
    theta: f64,
    /// The part of a head that is turned, if not all.
    part: Option<f64>,
    scaling: Scaling,
}

/// What the file says of scaling; what it leaves out is left out in config.json.
enum Scaling {
    None,
    Linear {
        factor: f64,
    },
    Yarn {
        factor: f64,
        original: u64,
        attention_factor: Option<f64>,
        beta_fast: Option<f64>,
        beta_slow: Option<f64>,
    },
    Llama3 {
        factor: f64,
    },
    LongRope {
        long: Vec<f32>,
        short: Vec<f32>,
        original: u64,
        attention_factor: Option<f64>,
    },
}

/// Llama 3.1's other numbers, from which its divisors come.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;
const ORIGINAL: usize = 8192;

impl Metadata<'_> {
    /// The rotary embedding of heads of this width.
    ///
    /// # Errors
    /// When a key is missing, impossible, or asks for something that isn't implemented.
    pub fn rope(&self, head_dim: u64) -> Result<Rope> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let turned = self.whole("rope.dimension_count")?.unwrap_or(head_dim);
        if turned == 0 || turned > head_dim || head_dim > MOST_HEAD_DIM {
            let detail = format!("is {turned}, but a head is {head_dim} wide; it must be from 1 to that");
            return Err(self.wrong("rope.dimension_count", detail));
        }
        self.check_mix(self.text("rope.scaling.type"))?;
        let part = (turned != head_dim).then(|| turned as f64 / head_dim as f64);
        let scaling = match (self.long_and_short()?, self.tensor("rope_freqs.weight")?) {
            (Some(longrope), _) => longrope,
            (None, Some(divisors)) => self.llama3(theta, turned, divisors)?,
            (None, None) => self.scaling()?,
        };
        Ok(Rope { theta, part, scaling })
    }

    fn scaling(&self) -> Result<Scaling> {
        let factor = self.number("rope.scaling.factor")?;
        Ok(match self.text("rope.scaling.type") {
            Some("none" | "longrope") => Scaling::None,
            None if factor.is_none_or(|f| f == 1.0) => Scaling::None,
            // llama.cpp's default.
            None | Some("linear") => Scaling::Linear { factor: factor.unwrap_or(1.0) },
            Some("yarn") => self.yarn(factor.unwrap_or(1.0))?,
            Some(other) => {
                return Err(
                    self.wrong("rope.scaling.type", format!("is `{other}`, which is not implemented"))
                );
            }
        })
    }

    /// How much of YaRN llama.cpp mixes in; transformers has it whole or not at all.
    ///
    /// # Errors
    /// If the file asks for something between, or for none under YaRN's name.
    fn check_mix(&self, kind: Option<&str>) -> Result<()> {
        let (name, usual) = ("rope.scaling.yarn_ext_factor", if kind == Some("yarn") { 1.0 } else { 0.0 });
        match self.number(name)?.filter(|mix| *mix != usual) {
            None => Ok(()),
            Some(mix) => {
                let kind = kind.unwrap_or("none");
                let detail = format!("is {mix}; with rope.scaling.type `{kind}` only {usual} is implemented");
                Err(self.wrong(name, detail))
            }
        }
    }

    fn yarn(&self, factor: f64) -> Result<Scaling> {
        // llama.cpp multiplies by it what YaRN scales by anyway.
        let times = self.number("rope.scaling.attn_factor")?;
        let multiplied = times.map(|times| times * (0.1 * factor.max(1.0).ln() + 1.0));
        Ok(Scaling::Yarn {
            factor,
            original: self.required("rope.scaling.original_context_length")?,
            attention_factor: self.number("rope.scaling.yarn_attn_factor")?.or(multiplied),
            beta_fast: self.number("rope.scaling.yarn_beta_fast")?,
            beta_slow: self.number("rope.scaling.yarn_beta_slow")?,
        })
    }

    /// llama.cpp writes what Llama 3.1 divides its frequencies by, not the parameters it comes from. Those are found
    /// among the ones in use; others are said as longrope with the same divisors at any length, which computes the same.
    fn llama3(&self, theta: f64, turned: u64, divisors: Vec<f32>) -> Result<Scaling> {
        let dim = usize::try_from(turned).unwrap_or(0);
        if divisors.len() != dim / 2 {
            let detail = format!("has {} numbers for {} pairs", divisors.len(), dim / 2);
            return Err(Error::tensor(self.file.path(), "rope_freqs.weight", detail));
        }
        let (plain, _) = RopeSpec::plain(dim, theta).frequencies(1);
        for factor in [8.0, 32.0, 2.0, 4.0, 16.0, 64.0] {
            let scaling = RopeScaling::Llama3 {
                factor,
                low_freq_factor: LOW,
                high_freq_factor: HIGH,
                original: ORIGINAL,
            };
            let (scaled, _) = RopeSpec { dim, theta, scaling }.frequencies(1);
            let same = |((p, s), d): ((&f32, &f32), &f32)| (p / s / d - 1.0).abs() < 1e-3;
            if plain.len() == divisors.len() && plain.iter().zip(&scaled).zip(&divisors).all(same) {
                return Ok(Scaling::Llama3 { factor });
            }
        }
        Ok(Scaling::LongRope {
            long: divisors.clone(),
            short: divisors,
            original: self.required("context_length")?,
            attention_factor: Some(1.0),
        })
    }

    fn long_and_short(&self) -> Result<Option<Scaling>> {
        let (Some(long), Some(short)) =
            (self.tensor("rope_factors_long.weight")?, self.tensor("rope_factors_short.weight")?)
        else {
            return Ok(None);
        };
        let original = self.required("rope.scaling.original_context_length")?;
        let factor = self.required("context_length")? as f64 / original as f64;
        // What transformers takes of itself is left to it: its older Phi-3 knows no such field.
        let usual = if factor > 1.0 { (1.0 + factor.ln() / (original as f64).ln()).sqrt() } else { 1.0 };
        let given = self.number("rope.scaling.attn_factor")?;
        let attention_factor = given.filter(|given| (given - usual).abs() > 1e-6);
        Ok(Some(Scaling::LongRope { long, short, original, attention_factor }))
    }
}

impl Rope {
    /// The scaling's fields without its name.
    fn fields(&self) -> (&'static str, Map<String, Value>) {
        let (name, fields) = match &self.scaling {
            Scaling::None => ("default", json!({})),
            Scaling::Linear { factor } => ("linear", json!({"factor": factor})),
            Scaling::Yarn { factor, original, attention_factor, beta_fast, beta_slow } => (
                "yarn",
                json!({
                    "attention_factor": attention_factor,
                    "beta_fast": beta_fast,
                    "beta_slow": beta_slow,
                    "factor": factor,
                    "original_max_position_embeddings": original,
                }),
            ),
            Scaling::Llama3 { factor } => (
                "llama3",
                json!({
                    "factor": factor,
                    "high_freq_factor": HIGH,
                    "low_freq_factor": LOW,
                    "original_max_position_embeddings": ORIGINAL,
                }),
            ),
            Scaling::LongRope { long, short, original, attention_factor } => (
                "longrope",
                json!({
                    "attention_factor": attention_factor,
                    "long_factor": long,
                    "original_max_position_embeddings": original,
                    "short_factor": short,
                }),
            ),
        };
        let fields = fields.as_object().cloned().unwrap_or_default();
        (name, fields.into_iter().filter(|(_, value)| !value.is_null()).collect())
    }

    /// `rope_parameters` as transformers 5 has it, and beside it `rope_theta`, `rope_scaling` and `partial_rotary_factor` as
    /// transformers 4 and tools made for it read them.
    pub fn write(&self, config: &mut Map<String, Value>) {
        let (name, mut scaling) = self.fields();
        let mut parameters = scaling.clone();
        parameters.insert("rope_theta".into(), json!(self.theta));
        parameters.insert("rope_type".into(), json!(name));
        config.insert("rope_theta".into(), json!(self.theta));
        if let Some(part) = self.part {
            parameters.insert("partial_rotary_factor".into(), json!(part));
            config.insert("partial_rotary_factor".into(), json!(part));
        }
        config.insert("rope_parameters".into(), Value::Object(parameters));
        scaling.insert("rope_type".into(), json!(name));
        let scaled = !matches!(self.scaling, Scaling::None);
        config.insert("rope_scaling".into(), if scaled { Value::Object(scaling) } else { Value::Null });
    }
}
