use rayon::prelude::*;

use crate::error::{Result, check_shape};
use crate::profile::{self, Pass};
use crate::tensor::CHUNK;
use crate::{Real, Tensor, dispatch_real};

/// Hyper-parameters of one AdamW step.
#[derive(Clone, Copy, Debug)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
}

/// One AdamW step (Loshchilov & Hutter, arXiv 1711.05101), in the order and roundings of `torch.optim.AdamW`.
///
/// `step` counts from 1. `p`, `m` and `v` are updated in place; `g` is multiplied by `grad_scale` (clipping) on the way.
pub fn adamw_step(
    p: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    g: &Tensor,
    grad_scale: f64,
    step: u64,
    o: &AdamW,
) -> Result<()> {
    let _span = profile::span("adamw", Pass::Forward);
    check_shape("adamw", "gradient", g.shape(), p.shape())?;
    dispatch_real!(p.dtype(), R => run::<R>(p, m, v, g, grad_scale, step, o))
}

fn run<R: Real>(
    p: &mut Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    g: &Tensor,
    grad_scale: f64,
    step: u64,
    o: &AdamW,
) -> Result<()> {
    let bias1 = 1.0 - o.beta1.powf(step as f64);
    let bias2 = (1.0 - o.beta2.powf(step as f64)).sqrt();
    let (decay, step_size) = (R::of(1.0 - o.lr * o.weight_decay), R::of(o.lr / bias1));
    let (b2, c1, c2) = (R::of(o.beta2), R::of(1.0 - o.beta1), R::of(1.0 - o.beta2));
    let (bias2, eps, scale) = (R::of(bias2), R::of(o.eps), R::of(grad_scale));
    let (p, m, v, g) = (p.slice_mut::<R>()?, m.slice_mut::<R>()?, v.slice_mut::<R>()?, g.slice::<R>()?);
    p.par_chunks_mut(CHUNK)
        .zip(m.par_chunks_mut(CHUNK))
        .zip(v.par_chunks_mut(CHUNK))
        .zip(g.par_chunks(CHUNK))
        .for_each(|(((p, m), v), g)| {
            for i in 0..p.len() {
                let g = g[i] * scale;
                let decayed = p[i] * decay;
                // m + (g - m)·(1 - β₁): torch's lerp, which rounds otherwise than β₁·m + (1 - β₁)·g.
                m[i] = m[i] + (g - m[i]) * c1;
                v[i] = v[i] * b2 + g * g * c2;
                p[i] = decayed - step_size * (m[i] / (v[i].sqrt() / bias2 + eps));
            }
        });
    Ok(())
}
