use rayon::prelude::*;

use crate::error::{Result, check_shape};
use crate::profile::{self, Pass};
use crate::tensor::CHUNK;
use crate::{Real, Tensor, dispatch_real};

/// Hyper-parameters of one step of gradient descent.
#[derive(Clone, Copy, Debug)]
pub struct Sgd {
    pub lr: f64,
    pub momentum: f64,
    pub dampening: f64,
    pub nesterov: bool,
    /// Added to the gradient (L2), not decoupled.
    pub weight_decay: f64,
}

/// One step of stochastic gradient descent with momentum, as `torch.optim.SGD` defines it: the momentum starts as the first
/// gradient, undampened.
///
/// `step` counts from 1; `buffer` is needed when there is momentum.
pub fn sgd_step(
    p: &mut Tensor,
    buffer: Option<&mut Tensor>,
    g: &Tensor,
    grad_scale: f64,
    step: u64,
    o: &Sgd,
) -> Result<()> {
    let _span = profile::span("sgd", Pass::Forward);
    check_shape("sgd", "gradient", g.shape(), p.shape())?;
    dispatch_real!(p.dtype(), R => run::<R>(p, buffer, g, grad_scale, step, o))
}

fn run<R: Real>(
    p: &mut Tensor,
    buffer: Option<&mut Tensor>,
    g: &Tensor,
    grad_scale: f64,
    step: u64,
    o: &Sgd,
) -> Result<()> {
    let (lr, decay, scale) = (R::of(o.lr), R::of(o.weight_decay), R::of(grad_scale));
    let (momentum, keep) = (R::of(o.momentum), R::of(1.0 - o.dampening));
    let (p, g) = (p.slice_mut::<R>()?, g.slice::<R>()?);
    let Some(buffer) = buffer else {
        p.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).for_each(|(p, g)| {
            for (p, &g) in p.iter_mut().zip(g) {
                *p = *p - lr * (g * scale + decay * *p);
            }
        });
        return Ok(());
    };
    let buffer = buffer.slice_mut::<R>()?;
    p.par_chunks_mut(CHUNK).zip(buffer.par_chunks_mut(CHUNK)).zip(g.par_chunks(CHUNK)).for_each(
        |((p, buffer), g)| {
            for ((p, b), &g) in p.iter_mut().zip(buffer).zip(g) {
                let g = g * scale + decay * *p;
                *b = if step == 1 { g } else { *b * momentum + keep * g };
                let update = if o.nesterov { g + momentum * *b } else { *b };
                *p = *p - lr * update;
            }
        },
    );
    Ok(())
}
