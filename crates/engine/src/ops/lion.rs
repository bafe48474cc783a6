use rayon::prelude::*;

use crate::error::{Result, check_shape};
use crate::profile::{self, Pass};
use crate::tensor::CHUNK;
use crate::{Real, Tensor, dispatch_real};

/// Hyper-parameters of one Lion step.
#[derive(Clone, Copy, Debug)]
pub struct Lion {
    pub lr: f64,
    /// Share of the momentum in the update.
    pub beta1: f64,
    /// Decay of the momentum.
    pub beta2: f64,
    /// Decoupled.
    pub weight_decay: f64,
}

/// One Lion step (Chen et al., arXiv 2302.06675), in the order of bitsandbytes: p shrinks, then moves by lr against the sign of
/// β₁·m + (1 − β₁)·g; m becomes β₂·m + (1 − β₂)·g.
pub fn lion_step(p: &mut Tensor, m: &mut Tensor, g: &Tensor, grad_scale: f64, o: &Lion) -> Result<()> {
    let _span = profile::span("lion", Pass::Forward);
    check_shape("lion", "gradient", g.shape(), p.shape())?;
    dispatch_real!(p.dtype(), R => {
        let (p, m, g) = (p.slice_mut::<R>()?, m.slice_mut::<R>()?, g.slice::<R>()?);
        p.par_chunks_mut(CHUNK)
            .zip(m.par_chunks_mut(CHUNK))
            .zip(g.par_chunks(CHUNK))
            .for_each(|((p, m), g)| run(p, m, g, R::of(grad_scale), o));
        Ok(())
    })
}

pub(super) fn run<R: Real>(p: &mut [R], m: &mut [R], g: &[R], scale: R, o: &Lion) {
    let (lr, decay) = (R::of(o.lr), R::of(1.0 - o.lr * o.weight_decay));
    let (b1, c1, b2, c2) = (R::of(o.beta1), R::of(1.0 - o.beta1), R::of(o.beta2), R::of(1.0 - o.beta2));
    for ((p, m), &g) in p.iter_mut().zip(m).zip(g) {
        let g = g * scale;
        let direction = *m * b1 + g * c1;
        let zero = R::of(0.0);
        let step = if direction > zero {
            lr
        } else if direction < zero {
            R::of(-o.lr)
        } else {
            zero
        };
        *p = *p * decay - step;
        *m = *m * b2 + g * c2;
    }
}
