pub(super) mod cuda;

use std::sync::Arc;

use rayon::prelude::*;

use crate::cuda::CudaDevice;
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

/// The numbers of a step, in the type of the arithmetic.
struct Constants<R> {
    scale: R,
    decay: R,
    step_size: R,
    b2: R,
    c1: R,
    c2: R,
    bias2: R,
    eps: R,
}

impl<R: Real> Constants<R> {
    fn new(grad_scale: f64, step: u64, o: &AdamW) -> Constants<R> {
        let bias1 = 1.0 - o.beta1.powf(step as f64);
        let bias2 = (1.0 - o.beta2.powf(step as f64)).sqrt();
        Constants {
            scale: R::of(grad_scale),
            decay: R::of(1.0 - o.lr * o.weight_decay),
            step_size: R::of(o.lr / bias1),
            b2: R::of(o.beta2),
            c1: R::of(1.0 - o.beta1),
            c2: R::of(1.0 - o.beta2),
            bias2: R::of(bias2),
            eps: R::of(o.eps),
        }
    }
}

/// The steps of many parameters: those on a card wait for [`AdamWSteps::finish`], which takes all of them in one pass.
#[derive(Default)]
pub struct AdamWSteps {
    pieces: Vec<(Arc<CudaDevice>, Vec<cuda::Piece>)>,
}

impl AdamWSteps {
    /// Like [`adamw_step`]; the tensors must not be touched before [`AdamWSteps::finish`].
    ///
    /// # Errors
    /// If shapes, types or devices do not fit.
    pub fn step(
        &mut self,
        p: &mut Tensor,
        m: &mut Tensor,
        v: &mut Tensor,
        g: &Tensor,
        grad_scale: f64,
        step: u64,
        o: &AdamW,
    ) -> Result<()> {
        if p.cuda().is_none() {
            return adamw_step(p, m, v, g, grad_scale, step, o);
        }
        check_shape("adamw", "gradient", g.shape(), p.shape())?;
        let mut own = Vec::new();
        let device = cuda::collect(&mut own, [p, m, v], g, grad_scale, step, o)?;
        match self.pieces.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &device)) {
            Some((_, pieces)) => pieces.append(&mut own),
            None => self.pieces.push((device, own)),
        }
        Ok(())
    }

    pub fn finish(self) -> Result<()> {
        let _span = profile::span("adamw", Pass::Forward);
        self.pieces.iter().try_for_each(|(device, pieces)| cuda::run(device, pieces))
    }
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
    if p.cuda().is_some() {
        let mut steps = AdamWSteps::default();
        steps.step(p, m, v, g, grad_scale, step, o)?;
        return steps.finish();
    }
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
    let Constants { scale, decay, step_size, b2, c1, c2, bias2, eps } =
        Constants::<R>::new(grad_scale, step, o);
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
