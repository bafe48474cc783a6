pub(super) mod cuda;

use num_traits::Float;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::isa::vectorised;
use crate::pool;
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{DType, Element, Params, Real, Tensor, Weight, dispatch};

/// What [`rms_norm`] adds: to the mean square, and to the weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RmsNorm {
    pub eps: f64,
    /// Added to the weight: 1 for Gemma, whose weights are stored less one, else 0.
    pub offset: f64,
}

impl RmsNorm {
    /// offset + w, and the size of the groups that it is for.
    fn weight<R: Real>(&self, w: &Weight, params: &Params, cols: usize) -> Result<(Vec<R>, usize)> {
        let d = group(w.resolve(params).shape(), cols)?;
        let mut w = w.vector::<R>(params, "rms_norm", d)?;
        if self.offset != 0.0 {
            w.iter_mut().for_each(|w| *w += R::of(self.offset));
        }
        Ok((w, d))
    }
}

/// The size of the groups that a weight is for.
fn group(weight: &[usize], cols: usize) -> Result<usize> {
    match weight {
        &[d] if d > 0 && cols.is_multiple_of(d) => Ok(d),
        _ => Err(misfit(weight, cols)),
    }
}

fn misfit(shape: &[usize], cols: usize) -> Error {
    Error::Shape {
        op: "rms_norm",
        what: "weight".into(),
        expected: format!("[{cols}] or [a divisor of {cols}]"),
        got: format!("{shape:?}"),
    }
}

struct RmsNormBackward {
    x_source: Source,
    x: Tensor,
    /// 1/√(mean(x²) + eps) per group, in the compute type.
    rstd: Tensor,
    weight: Weight,
    config: RmsNorm,
}

impl Backward for RmsNormBackward {
    fn name(&self) -> &'static str {
        "rms_norm"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        if let Some(x) = self.x.cuda().cloned() {
            return cuda::backward(*self, &dy, &x, grads);
        }
        dispatch!(dy.dtype(), E => self.run::<E>(dy, grads))
    }
}

/// Groups per task: fixed, so that the order of the weight gradient's sums does not depend on the threads.
const ROWS: usize = 64;

impl RmsNormBackward {
    fn run<E: Element>(self, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let (w, d) = self.config.weight::<E::Acc>(&self.weight, grads.params, self.x.cols())?;
        let (x, rstd, dys) = (self.x.slice::<E>()?, self.rstd.slice::<E::Acc>()?, dy.slice::<E>()?);
        let trained = self.weight.param();
        let mut dx = pool::any::<E>(x.len());
        let partial: Vec<Vec<E::Acc>> = dx
            .par_chunks_mut(ROWS * d)
            .enumerate()
            .map(|(block, dx)| {
                let mut dw = vec![E::Acc::of(0.0); if trained.is_some() { d } else { 0 }];
                let rows = block * ROWS..block * ROWS + dx.len() / d;
                let (x, dy) = (&x[rows.start * d..rows.end * d], &dys[rows.start * d..rows.end * d]);
                backward_rows::<E>(dx, x, dy, &rstd[rows], &w, &mut dw);
                dw
            })
            .collect();
        if let Some(id) = trained {
            let mut dw = vec![E::Acc::of(0.0); d];
            for p in &partial {
                dw.iter_mut().zip(p).for_each(|(t, &v)| *t += v);
            }
            grads.add_param(id, Tensor::new(dw, &[d]))?;
        }
        grads.add(self.x_source, Tensor::new(dx, self.x.shape()))
    }
}

fn backward_rows<E: Element>(
    dx: &mut [E],
    x: &[E],
    dy: &[E],
    rstd: &[E::Acc],
    w: &[E::Acc],
    dw: &mut [E::Acc],
) {
    vectorised!([E: Element] (dx: &mut [E], x: &[E], dy: &[E], rstd: &[E::Acc], w: &[E::Acc], dw: &mut [E::Acc]) {
        let d = w.len();
        let rows = dx.chunks_exact_mut(d).zip(x.chunks_exact(d)).zip(dy.chunks_exact(d)).zip(rstd);
        for (((dx, x), dy), &r) in rows {
            let c = dot(x, dy, w) * r * r * r / E::Acc::of(d as f64);
            for (((dx, x), dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(w) {
                *dx = E::from_acc(dy.to_acc() * w * r - x.to_acc() * c);
            }
            for ((dw, x), dy) in dw.iter_mut().zip(x).zip(dy) {
                *dw += dy.to_acc() * x.to_acc() * r;
            }
        }
    });
}

/// y = x / √(mean(x²) + eps) · (offset + w) over the last dimension (Zhang & Sennrich, arXiv 1910.07467; `LlamaRMSNorm`,
/// and with offset 1 `GemmaRMSNorm`). If w is shorter than the rows and divides them, each group of `w.len()` columns is a
/// row of its own: the norms of queries and keys by head.
///
/// With r = 1/√(mean(x²) + eps), c = offset + w: dx = r·(dy∘c) − x·r³·mean(x∘dy∘c), dw = Σ rows of dy∘x·r. Of bf16, all is
/// computed in f32 and y rounded once, as Gemma does; `LlamaRMSNorm` rounds x·r before it multiplies by w, too.
/// Saved: x and r.
///
/// # Errors
/// If w is not a vector, or its length does not divide the rows.
pub fn rms_norm(tape: &mut Tape<'_>, x: &Var, weight: &Weight, config: RmsNorm) -> Result<Var> {
    let _span = profile::span("rms_norm", Pass::Forward);
    let (y, rstd) = match x.value().cuda() {
        Some(there) => {
            let w = weight.resolve(tape.params());
            group(w.shape(), x.value().cols())?;
            let (y, rstd) = cuda::forward(there, w.on_card("rms_norm", there.device())?, &config)?;
            let groups = rstd.len();
            (Tensor::on_cuda(y, x.value().shape()), Tensor::on_cuda(rstd, &[groups]))
        }
        None => dispatch!(x.value().dtype(), E => {
            let (w, _) = config.weight::<<E as Element>::Acc>(weight, tape.params(), x.value().cols())?;
            forward::<E>(x.value(), &w, config.eps)?
        }),
    };
    debug_assert_eq!(y.dtype().compute() == DType::F64, rstd.dtype() == DType::F64);
    let needs = x.needs_grad() || weight.param().is_some();
    let y = tape.record(y, needs, || RmsNormBackward {
        x_source: x.source(),
        x: x.value().clone(),
        rstd: rstd.clone(),
        weight: weight.clone(),
        config,
    });
    Ok(y.with_recipe(|| cuda::recipe(x.value(), &rstd, weight.resolve(tape.params()), config)))
}

/// Partial sums of a row, so that they vectorise; their order is fixed.
const LANES: usize = 16;

/// Σ x².
#[inline(always)]
fn square<E: Element>(x: &[E]) -> E::Acc {
    let mut lanes = [E::Acc::of(0.0); LANES];
    let parts = x.chunks_exact(LANES);
    let rest: E::Acc = parts.remainder().iter().map(|x| x.to_acc() * x.to_acc()).sum();
    for part in parts {
        for (lane, x) in lanes.iter_mut().zip(part) {
            *lane += x.to_acc() * x.to_acc();
        }
    }
    lanes.iter().copied().sum::<E::Acc>() + rest
}

/// Σ x∘dy∘w.
#[inline(always)]
fn dot<E: Element>(x: &[E], dy: &[E], w: &[E::Acc]) -> E::Acc {
    let mut lanes = [E::Acc::of(0.0); LANES];
    let (x, dy, w) = (x.chunks_exact(LANES), dy.chunks_exact(LANES), w.chunks_exact(LANES));
    let rest = x.remainder().iter().zip(dy.remainder()).zip(w.remainder());
    let rest: E::Acc = rest.map(|((x, dy), &w)| x.to_acc() * dy.to_acc() * w).sum();
    for ((x, dy), w) in x.zip(dy).zip(w) {
        for (((lane, x), dy), &w) in lanes.iter_mut().zip(x).zip(dy).zip(w) {
            *lane += x.to_acc() * dy.to_acc() * w;
        }
    }
    lanes.iter().copied().sum::<E::Acc>() + rest
}

fn forward<E: Element>(x: &Tensor, w: &[E::Acc], eps: f64) -> Result<(Tensor, Tensor)> {
    let d = w.len();
    let xs = x.slice::<E>()?;
    let mut y = pool::any::<E>(xs.len());
    let mut rstd = vec![E::Acc::of(0.0); xs.len() / d];
    y.par_chunks_mut(ROWS * d).zip(rstd.par_chunks_mut(ROWS)).zip(xs.par_chunks(ROWS * d)).for_each(
        |((y, rstd), x)| {
            let eps = E::Acc::of(eps);
            vectorised!([E: Element] (y: &mut [E], rstd: &mut [E::Acc], x: &[E], w: &[E::Acc], eps: E::Acc) {
                let d = w.len();
                for ((y, r), x) in y.chunks_exact_mut(d).zip(rstd).zip(x.chunks_exact(d)) {
                    *r = E::Acc::of(1.0) / (square(x) / E::Acc::of(d as f64) + eps).sqrt();
                    for ((y, x), &w) in y.iter_mut().zip(x).zip(w) {
                        *y = E::from_acc(x.to_acc() * *r * w);
                    }
                }
            });
        },
    );
    let groups = rstd.len();
    Ok((Tensor::new(y, x.shape()), Tensor::new(rstd, &[groups])))
}
