//! The loss over the trained rows, a chunk of logits at a time.

use std::ops::Range;

use rayon::prelude::*;

use super::adapter::{HeadAdapter, Outputs};
use super::logits::LogitMap;
use crate::error::Result;
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::isa::vectorised;
use crate::ops::rows::HeadWeight;
use crate::ops::softmax::{exponentials, largest};
use crate::pool;
use crate::{ParamId, Real, Tensor};

/// Logits that are in memory at a time, rows × vocabulary elements: 100 MiB of f32, 530 rows of 49,152, so that packing the
/// head is a small part of multiplying by it.
const CHUNK_LOGITS: usize = 25 << 20;

/// Of n rows, those of a chunk, when so many copies of the logits are held: as even as may be, so that each chunk finds the
/// memory of the one before.
pub(super) fn rows(n: usize, vocabulary: usize, copies: usize) -> usize {
    let most = (CHUNK_LOGITS / copies / vocabulary.max(1)).clamp(16, 1024);
    n.div_ceil(n.div_ceil(most).max(1)).max(1)
}

#[derive(Default)]
pub(super) struct Sums {
    /// In nats.
    pub loss: f64,
    pub correct: usize,
}

/// One pass over the trained rows x `[n, hidden]` under the head W `[vocabulary, hidden]`.
pub(super) struct Run<'a, R> {
    w: HeadWeight<'a, R>,
    x: &'a [R],
    adapter: Option<HeadAdapter<'a, R>>,
    logits: LogitMap<R>,
    want_grad: bool,
    vocabulary: usize,
    hidden: usize,
    sums: Sums,
    /// dy·W of the rows so far, y the head's outputs.
    dx: Option<Vec<R>>,
    dw: Option<Vec<R>>,
    /// Of the head's trained rows.
    drows: Option<(ParamId, Vec<R>)>,
}

impl<'a, R: Real> Run<'a, R> {
    pub fn new(
        w: HeadWeight<'a, R>,
        x: &'a [R],
        adapter: Option<HeadAdapter<'a, R>>,
        logits: LogitMap<R>,
        want_grad: bool,
        want_dx: bool,
        want_dw: bool,
    ) -> Run<'a, R> {
        let [vocabulary, hidden] = w.shape();
        Run {
            drows: w.row_gradients().filter(|_| want_grad),
            w,
            x,
            adapter,
            logits,
            want_grad,
            vocabulary,
            hidden,
            sums: Sums::default(),
            dx: want_dx.then(|| Vec::with_capacity(x.len())),
            dw: want_dw.then(|| vec![R::zero(); vocabulary * hidden]),
        }
    }

    /// Of all rows, with that label smoothing.
    pub fn all(&mut self, targets: &[usize], smoothing: f64) -> Result<()> {
        let copies = self.adapter.as_ref().map_or(1, HeadAdapter::copies_of_outputs);
        let chunk = rows(targets.len(), self.vocabulary, copies);
        for (c, targets) in targets.chunks(chunk).enumerate() {
            self.chunk(c * chunk..c * chunk + targets.len(), targets, smoothing)?;
        }
        Ok(())
    }

    fn chunk(&mut self, rows: Range<usize>, targets: &[usize], smoothing: f64) -> Result<()> {
        let n = rows.len();
        let x = &self.x[rows.start * self.hidden..rows.end * self.hidden];
        let mut outputs = match &self.adapter {
            None => Outputs::plain(self.w.times_transposed(x, n)?),
            Some(adapter) => adapter.outputs(&self.w, self.x, &rows)?,
        };
        let (logits, want_grad) = (self.logits, self.want_grad);
        let per_row: Vec<(f64, bool)> = outputs
            .y
            .par_chunks_mut(self.vocabulary)
            .zip(targets)
            .map_init(Vec::new, |slopes, (row, &target)| {
                logits.forward(row);
                if want_grad {
                    logits.slopes(row, slopes);
                }
                let result = cross_entropy_row(row, target, smoothing, want_grad);
                if want_grad {
                    logits.backward(row, slopes);
                }
                result
            })
            .collect();
        self.sums.loss += per_row.iter().map(|r| r.0).sum::<f64>();
        self.sums.correct += per_row.iter().filter(|r| r.1).count();
        if !self.want_grad {
            return Ok(());
        }
        if let Some(dw) = &mut self.dw {
            let dy = Mat::new(&outputs.y, n, self.vocabulary);
            let (c, x) = (MatMut::new(dw, self.vocabulary, self.hidden), Mat::new(x, n, self.hidden));
            matmul(c, dy.t(), x, R::one(), R::one(), Threads::All);
        }
        if let Some((_, drows)) = &mut self.drows {
            self.w.add_row_gradients(&outputs.y, x, drows);
        }
        match (&mut self.adapter, &mut self.dx) {
            (Some(adapter), dx) => adapter.backward(&self.w, outputs, &rows, dx.as_mut())?,
            (None, Some(dx)) => {
                dx.extend_from_slice(&self.w.times(&mut outputs.y, n)?);
                pool::keep(outputs.y);
            }
            (None, None) => {}
        }
        Ok(())
    }

    /// The sums, dx, dW, and the gradients of the adapter's parameters and of the trained rows.
    #[allow(clippy::type_complexity)]
    pub fn finish(mut self) -> (Sums, Option<Vec<R>>, Option<Tensor>, Vec<(ParamId, Tensor)>) {
        let mut params = match self.adapter {
            Some(adapter) if self.want_grad => adapter.finish(self.x, self.dx.as_mut()),
            _ => Vec::new(),
        };
        let dw = self.dw.map(|dw| Tensor::new(dw, &[self.vocabulary, self.hidden]));
        if let Some((id, drows)) = self.drows {
            params.push((id, self.w.row_gradient_tensor(drows)));
        }
        (self.sums, self.dx, dw, params)
    }
}

/// The loss of one row of logits and whether its maximum is the target; the row becomes the logits' gradient if asked, which is
/// softmax − onehot without smoothing.
fn cross_entropy_row<R: Real>(row: &mut [R], target: usize, smoothing: f64, want_grad: bool) -> (f64, bool) {
    let max = vectorised!([R: Real] (row: &[R]) -> R { largest(row) });
    let at_target = row[target];
    // A first maximum before the target makes the prediction wrong, as argmax does.
    let correct = at_target == max && row[..target].iter().all(|&l| l < max);
    // What the loss takes the target's and the others' logits for.
    let wanted = match smoothing {
        0.0 => at_target.f64(),
        share => (1.0 - share) * at_target.f64() + share * mean(row),
    };
    let mut sum = 0.0;
    for part in row.chunks_mut(1024) {
        let part_sum = vectorised!([R: Real] (part: &mut [R], max: R) -> R { exponentials(part, max) });
        sum += part_sum.f64();
    }
    if want_grad {
        let scale = R::of(1.0 / sum);
        let even = R::of(smoothing / row.len() as f64);
        let probabilities = &mut *row;
        vectorised!([R: Real] (probabilities: &mut [R], scale: R, even: R) {
            probabilities.iter_mut().for_each(|p| *p = *p * scale - even);
        });
        row[target] += R::of(smoothing - 1.0);
    }
    let loss = sum.ln() + max.f64() - wanted;
    // NaN anywhere in the row must reach the loss: comparisons above skip it, the sum doesn't.
    (if sum.is_nan() { f64::NAN } else { loss }, correct)
}

fn mean<R: Real>(row: &[R]) -> f64 {
    let sum: f64 = row.chunks(1024).map(|part| part.iter().copied().sum::<R>().f64()).sum();
    sum / row.len() as f64
}
