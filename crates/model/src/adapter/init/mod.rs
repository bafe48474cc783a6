//! How A and B start. Each initialiser is a function from a matrix to a [`StartingPoint`]; those that look at W stand in
//! files of their own.

mod olora;
mod orthogonal;
mod pissa;

use loratune_engine::Tensor;
use loratune_engine::rng::Key;

use super::plan::Site;
use crate::error::{Error, Result};
use crate::spec::{MatrixKind, MatrixSpec};

/// PEFT's `init_lora_weights`. A of a linear layer is `[r, in]`, B `[out, r]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Init {
    /// `true`: A uniform in ±1/√in (`kaiming_uniform_(a=√5)`), B zero.
    #[default]
    Kaiming,
    /// `false`: A uniform in ±1/√in, B in ±1/√r. The model is another one before the first step.
    Random,
    /// `gaussian`: A normal with standard deviation 1/r, B zero.
    Gaussian,
    /// `orthogonal`: both random, in orthogonal subspaces, so that B·A = 0. The rank must be even.
    Orthogonal,
    /// `pissa`: the principal part of W by its singular value decomposition; the base keeps the rest (arXiv 2404.02948).
    Pissa,
    /// `pissa_niter_N`: the same by a randomised decomposition with N power iterations, seeded.
    PissaNiter(usize),
    /// `olora`: the leading part of W's QR decomposition; the base keeps the rest (arXiv 2406.01775).
    Olora,
}

impl Init {
    /// PEFT's name; `true` and `false` as words.
    pub fn name(self) -> String {
        match self {
            Init::Kaiming => "true".into(),
            Init::Random => "false".into(),
            Init::Gaussian => "gaussian".into(),
            Init::Orthogonal => "orthogonal".into(),
            Init::Pissa => "pissa".into(),
            Init::PissaNiter(n) => format!("pissa_niter_{n}"),
            Init::Olora => "olora".into(),
        }
    }

    /// The initialiser of that name.
    pub fn from_name(name: &str) -> Option<Init> {
        let plain = [Init::Kaiming, Init::Random, Init::Gaussian, Init::Orthogonal, Init::Pissa, Init::Olora];
        plain.into_iter().find(|i| i.name() == name).or_else(|| {
            let iterations: usize = name.strip_prefix("pissa_niter_")?.parse().ok()?;
            (iterations <= 1000).then_some(Init::PissaNiter(iterations))
        })
    }

    /// Whether adapted linear layers keep W − s·B·A in place of W.
    pub fn changes_base(self) -> bool {
        matches!(self, Init::Pissa | Init::PissaNiter(_) | Init::Olora)
    }

    /// # Errors
    /// If this initialiser can't start a matrix at rank `r`.
    pub(super) fn check(self, matrix: &MatrixSpec, r: usize, scaling: f64) -> Result<()> {
        if matrix.kind == MatrixKind::Embedding {
            return Ok(());
        }
        let refuse = |what: String| {
            Err(Error::Invalid(format!("init_lora_weights: {} {what} ({})", self.name(), matrix.path)))
        };
        if self.changes_base() && scaling <= 0.0 {
            return refuse(format!("needs a positive scaling (lora_alpha), not {scaling}"));
        }
        let most = matrix.shape[0].min(matrix.shape[1]);
        if self.changes_base() && r > most {
            let [out, input] = matrix.shape;
            return refuse(format!(
                "takes the rank from W itself, and a weight of {out} × {input} has at most rank {most}, not {r}"
            ));
        }
        if self == Init::Orthogonal && !r.is_multiple_of(2) {
            return refuse(format!("divides the rank into two halves, so it must be even, not {r}"));
        }
        Ok(())
    }
}

/// What training starts from.
#[derive(Clone, Debug)]
pub(super) struct StartingPoint {
    pub a: Tensor,
    pub b: Tensor,
    /// W − s·B·A `[out, in]`, if the base has to become that.
    pub residual: Option<Tensor>,
}

/// The start of one site, in f32. `weight` reads W, and is only asked if the initialiser looks at it.
pub(super) fn start(
    site: &Site,
    init: Init,
    seed: u64,
    weight: impl FnOnce() -> Result<Tensor>,
) -> Result<StartingPoint> {
    let Site { matrix, r, scaling } = site;
    let (r, [out, input]) = (*r, matrix.shape);
    let key = Key::new(seed).named("adapter").named(&matrix.path);
    let plain = |a: Result<Tensor>, b: Result<Tensor>| -> Result<StartingPoint> {
        Ok(StartingPoint { a: a?, b: b?, residual: None })
    };
    let zeros = |shape: &[usize]| Ok(Tensor::zeros(loratune_engine::DType::F32, shape));
    if matrix.kind == MatrixKind::Embedding {
        // PEFT knows one start for embeddings, whatever the linear layers' is: A zero, B normal.
        let b = normal(key, &[input, r], 1.0);
        return match init {
            Init::Random => plain(normal(key.named("A"), &[r, out], 1.0), b),
            _ => plain(zeros(&[r, out]), b),
        };
    }
    match init {
        Init::Kaiming => plain(uniform(key, &[r, input]), zeros(&[out, r])),
        Init::Random => plain(uniform(key, &[r, input]), uniform(key.named("B"), &[out, r])),
        Init::Gaussian => plain(normal(key, &[r, input], 1.0 / r as f64), zeros(&[out, r])),
        Init::Orthogonal => orthogonal::start(matrix.shape, r, key),
        Init::Pissa => pissa::exact(&weight()?, r, *scaling),
        Init::PissaNiter(n) => pissa::fast(&weight()?, r, *scaling, n, key),
        Init::Olora => olora::start(&weight()?, r, *scaling),
    }
}

/// Uniform in ±1/√(last dimension): torch's default for a linear layer.
fn uniform(key: Key, shape: &[usize; 2]) -> Result<Tensor> {
    let root = (shape[1] as f64).sqrt();
    let draw = |i: u64| ((2.0 * key.uniform(i) - 1.0) / root) as f32;
    Ok(Tensor::from_vec((0..(shape[0] * shape[1]) as u64).map(draw).collect(), shape)?)
}

/// Normal with this standard deviation.
fn normal(key: Key, shape: &[usize; 2], std: f64) -> Result<Tensor> {
    let draw = |i: u64| (key.normal(i) * std) as f32;
    Ok(Tensor::from_vec((0..(shape[0] * shape[1]) as u64).map(draw).collect(), shape)?)
}

/// W − s·B·A, where W is.
pub(super) fn residual(w: &Tensor, a: &Tensor, b: &Tensor, scaling: f64) -> Result<Tensor> {
    let (a, b) = (a.to_device(w.device())?, b.to_device(w.device())?);
    let mut rest = b.matmul(&a, -scaling)?;
    rest.add_assign(w)?;
    Ok(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn site(shape: [usize; 2], r: usize, scaling: f64) -> Site {
        let path = "model.layers.0.self_attn.q_proj".into();
        Site { matrix: MatrixSpec { path, kind: MatrixKind::Linear, shape, bias: false }, r, scaling }
    }

    fn largest(t: &Tensor) -> f64 {
        t.to_f64_vec().iter().fold(0.0, |m, x| x.abs().max(m))
    }

    /// Mean, standard deviation and excess kurtosis (normal: 0, uniform: -1.2) of a tensor.
    fn moments(t: &Tensor) -> [f64; 3] {
        let x = t.to_f64_vec();
        let mean_of = |f: &dyn Fn(f64) -> f64| x.iter().map(|&x| f(x)).sum::<f64>() / x.len() as f64;
        let mean = mean_of(&|x| x);
        let variance = mean_of(&|x| (x - mean).powi(2));
        [mean, variance.sqrt(), mean_of(&|x| (x - mean).powi(4)) / variance.powi(2) - 3.0]
    }

    /// 64 000 numbers each: a mean's standard error is σ/253, a deviation's about σ/358, a kurtosis' 0.02.
    fn assert_moments(t: &Tensor, std: f64, kurtosis: f64, what: &str) {
        let [mean, spread, k] = moments(t);
        assert!(mean.abs() < 0.02 * std, "{what}: mean {mean}, with σ {std}");
        assert!((spread / std - 1.0).abs() < 0.02, "{what}: σ is {spread}, not {std}");
        assert!((k - kurtosis).abs() < 0.15, "{what}: kurtosis {k}, not {kurtosis}");
    }

    fn started(init: Init, shape: [usize; 2], r: usize) -> StartingPoint {
        start(&site(shape, r, 2.0), init, 11, || unreachable!("{init:?} asked for W")).unwrap()
    }

    #[test]
    fn uniform_starts_fill_one_over_the_root_of_the_inputs() {
        // kaiming_uniform_(a=√5): ±√(6/((1+5)·in)) = ±1/√in, whose deviation is 1/√(3·in).
        let s = started(Init::Kaiming, [8, 4000], 16);
        assert_eq!((s.a.shape(), s.b.shape()), (&[16, 4000][..], &[8, 16][..]));
        let bound = 1.0 / 4000f64.sqrt();
        assert!(largest(&s.a) <= bound && largest(&s.a) > 0.999 * bound, "{} of {bound}", largest(&s.a));
        assert_moments(&s.a, bound / 3f64.sqrt(), -1.2, "A");
        assert_eq!(largest(&s.b), 0.0);
        // With `false` B is drawn as torch draws a linear layer of r inputs.
        let s = started(Init::Random, [4000, 8], 16);
        assert_moments(&s.b, 0.25 / 3f64.sqrt(), -1.2, "B");
        assert!(largest(&s.b) <= 0.25 && largest(&s.a) <= 1.0 / 8f64.sqrt());
    }

    #[test]
    fn the_gaussian_start_has_the_deviation_one_over_the_rank() {
        let s = started(Init::Gaussian, [8, 4000], 16);
        assert_moments(&s.a, 1.0 / 16.0, 0.0, "A");
        assert_eq!(largest(&s.b), 0.0);
    }

    #[test]
    fn adapters_on_embeddings_start_with_a_zero_and_b_standard_normal() {
        let path = "model.embed_tokens".into();
        let matrix = MatrixSpec { path, kind: MatrixKind::Embedding, shape: [20, 4000], bias: false };
        let site = Site { matrix, r: 16, scaling: 2.0 };
        for init in [Init::Kaiming, Init::Gaussian, Init::Orthogonal, Init::Pissa, Init::Olora] {
            let s = start(&site, init, 11, || unreachable!()).unwrap();
            assert_eq!((s.a.shape(), s.b.shape()), (&[16, 20][..], &[4000, 16][..]), "{init:?}");
            assert_eq!(largest(&s.a), 0.0, "{init:?}");
            assert_moments(&s.b, 1.0, 0.0, "B");
            assert!(s.residual.is_none(), "{init:?}");
        }
    }

    #[test]
    fn the_orthogonal_start_has_the_scale_of_half_an_orthogonal_basis() {
        // A column of A is g·E/10, g normal with r/2 numbers, E half of an orthogonal r × r matrix: E·Eᵀ = 1, so the
        // mean square of its r elements is (r/2)/(100·r) = 1/200, whatever r is. B's likewise.
        for r in [4, 16, 64] {
            let s = started(Init::Orthogonal, [4000, 4000], r);
            for (factor, what) in [(&s.a, "A"), (&s.b, "B")] {
                let x = factor.to_f64_vec();
                let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
                assert!((mean * 200.0 - 1.0).abs() < 0.05, "{what} at rank {r}: mean square {mean}");
            }
        }
    }

    #[test]
    fn names_are_pefts() {
        for name in ["true", "false", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora"] {
            assert_eq!(Init::from_name(name).unwrap().name(), name);
        }
        for name in ["pissa_niter_", "pissa_niter_-1", "pissa_niter_99999", "kaiming", ""] {
            assert_eq!(Init::from_name(name), None, "{name}");
        }
    }

    #[test]
    fn starts_that_change_the_base_keep_the_sum() {
        for (shape, r, scaling) in [([24, 40], 4, 2.0), ([40, 24], 24, 0.3), ([7, 7], 3, 8.0 / 3f64.sqrt())] {
            let w = normal(Key::new(7), &shape, 1.0).unwrap();
            for init in [Init::Pissa, Init::PissaNiter(4), Init::Olora] {
                let s = start(&site(shape, r, scaling), init, 1, || Ok(w.clone())).unwrap();
                let rest = s.residual.unwrap();
                let mut sum = s.b.matmul(&s.a, scaling).unwrap();
                sum.add_assign(&rest).unwrap();
                let mut difference = w.clone();
                difference.scale_assign(-1.0);
                difference.add_assign(&sum).unwrap();
                assert!(largest(&difference) < 2e-6, "{init:?}: {}", largest(&difference));
                assert!(largest(&s.b.matmul(&s.a, scaling).unwrap()) > 0.1, "{init:?} took nothing out of W");
            }
        }
    }

    #[test]
    fn pissa_leaves_no_more_than_the_smaller_singular_values() {
        // W = diag(5, 4, 3, 2, 1): after rank 2, the largest singular value left is 3.
        let mut data = vec![0f32; 25];
        (0..5).for_each(|i| data[i * 6] = 5.0 - i as f32);
        let w = Tensor::from_vec(data, &[5, 5]).unwrap();
        for init in [Init::Pissa, Init::PissaNiter(8)] {
            let s = start(&site([5, 5], 2, 0.5), init, 3, || Ok(w.clone())).unwrap();
            let rest = s.residual.unwrap().to_f64_vec();
            for i in 0..25 {
                let expected = if i % 6 == 0 && i >= 12 { 5.0 - (i / 6) as f64 } else { 0.0 };
                assert!((rest[i] - expected).abs() < 1e-5, "{init:?}: element {i} is {}", rest[i]);
            }
        }
    }

    #[test]
    fn an_orthogonal_start_changes_nothing_and_both_factors_can_learn() {
        let s = start(&site([30, 50], 6, 2.0), Init::Orthogonal, 5, || unreachable!()).unwrap();
        assert!(largest(&s.b.matmul(&s.a, 1.0).unwrap()) < 1e-6);
        assert!(largest(&s.a) > 0.01 && largest(&s.b) > 0.01);
    }

    #[test]
    fn impossible_ranks_are_refused_with_the_matrix() {
        let matrix = site([8, 4], 1, 1.0).matrix;
        let text = Init::Pissa.check(&matrix, 5, 1.0).unwrap_err().to_string();
        assert!(
            text.contains("8 × 4") && text.contains("rank 4, not 5") && text.contains("q_proj"),
            "{text}"
        );
        assert!(Init::Orthogonal.check(&matrix, 3, 1.0).is_err());
        assert!(Init::Pissa.check(&matrix, 2, -0.5).unwrap_err().to_string().contains("positive scaling"));
        assert!(Init::Kaiming.check(&matrix, 100, 1.0).is_ok());
    }
}
