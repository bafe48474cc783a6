use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::tape::{Backward, Mode, Sink, Source, Tape, Var};
use crate::{DType, ParamId, Real, Tensor, Weight, dispatch_real};

/// The target of a token that is not trained on (Hugging Face's label value).
pub const IGNORE: i32 = -100;

/// Logits that are in memory at a time: rows × vocabulary elements.
const CHUNK_LOGITS: usize = 8 << 20;

/// What [`linear_cross_entropy`] returns.
#[derive(Clone, Debug)]
pub struct LossOutput {
    /// Sum of the trained tokens' losses in nats, a scalar in f64.
    pub loss: Var,
    /// Number of trained tokens.
    pub tokens: usize,
    /// Trained tokens whose most probable prediction was the target.
    pub correct: usize,
}

struct LossBackward {
    x: Source,
    /// dloss/dx of the trained rows, in the compute type.
    dx: Option<Tensor>,
    rows: Vec<usize>,
    shape: Vec<usize>,
    dtype: DType,
    dhead: Option<(ParamId, Tensor)>,
}

impl Backward for LossBackward {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let upstream = dy.item();
        if let Some((id, mut dhead)) = self.dhead {
            dhead.scale_assign(upstream);
            grads.add_param(id, dhead)?;
        }
        let Some(dx) = self.dx else { return Ok(()) };
        let dx = dispatch_real!(self.dtype, R => {
            let (d, up) = (dx.cols(), R::of(upstream));
            let src = dx.slice::<R>()?;
            let mut full = vec![R::of(0.0); self.shape.iter().product()];
            for (i, &row) in self.rows.iter().enumerate() {
                full[row * d..][..d].iter_mut().zip(&src[i * d..][..d]).for_each(|(o, &g)| *o = g * up);
            }
            Tensor::from_reals(full, &self.shape, self.dtype)
        });
        grads.add(self.x, dx)
    }
}

/// Sum over tokens of −log softmax(x·Wᵀ)[target], with x `[tokens, hidden]`, W the head `[vocabulary, hidden]` and one
/// target per token ([`IGNORE`] = none).
///
/// The logits never exist as a whole: a chunk of rows is projected, its loss taken, and turned in place into
/// dlogits = softmax − onehot, from which dx = dlogits·W and dW = dlogitsᵀ·x follow while the chunk is in cache.
/// Rows without a target are skipped altogether. Saved: dx (and dW if the head is trained), to be scaled by the
/// upstream gradient.
///
/// # Errors
/// If a target lies outside the vocabulary or shapes do not fit.
pub fn linear_cross_entropy(
    tape: &mut Tape<'_>,
    x: &Var,
    head: &Weight,
    lora: Option<&super::Lora>,
    targets: &[i32],
) -> Result<LossOutput> {
    if lora.is_some() {
        return Err(Error::Invalid("adapters on the head are not there yet".into()));
    }
    let w = head.resolve(tape.params());
    let value = x.value();
    if w.shape().len() != 2 || w.shape()[1] != value.cols() || targets.len() != value.rows() {
        return Err(Error::Shape {
            op: "linear_cross_entropy",
            what: "input and targets for the head".into(),
            expected: format!("[{}, {:?}]", targets.len(), w.shape().get(1)),
            got: format!("{:?}", value.shape()),
        });
    }
    let vocabulary = w.shape()[0];
    if let Some(&t) = targets.iter().find(|&&t| t != IGNORE && (t < 0 || t as usize >= vocabulary)) {
        let index = t as u32 as usize;
        return Err(Error::Index {
            op: "linear_cross_entropy",
            what: "the vocabulary",
            index,
            size: vocabulary,
        });
    }
    let record = tape.mode() != Mode::Infer;
    let need_dx = record && x.needs_grad();
    let dhead = head.param().filter(|_| record);
    let rows: Vec<usize> = (0..targets.len()).filter(|&i| targets[i] != IGNORE).collect();
    let (loss, correct, dx, dw) = dispatch_real!(value.dtype(), R => {
        let picked = value.select_rows(&rows)?;
        let xs = picked.reals::<R>();
        let mut run = Run::<R>::new(rows.len(), w.shape(), need_dx, dhead.is_some());
        let picked_targets: Vec<usize> = rows.iter().map(|&i| targets[i] as usize).collect();
        run.all(&w, &xs, &picked_targets)?;
        (
            run.loss,
            run.correct,
            run.dx.map(|dx| Tensor::new(dx, &[rows.len(), w.shape()[1]])),
            run.dw.map(|dw| Tensor::new(dw, w.shape())),
        )
    });
    let tokens = rows.len();
    let loss = Tensor::new(vec![loss], &[1]);
    let loss = tape.record(loss, need_dx || dhead.is_some(), || LossBackward {
        x: x.source(),
        dx,
        rows,
        shape: value.shape().to_vec(),
        dtype: value.dtype(),
        dhead: dhead.zip(dw),
    });
    Ok(LossOutput { loss, tokens, correct })
}

struct Run<R> {
    vocabulary: usize,
    hidden: usize,
    loss: f64,
    correct: usize,
    dx: Option<Vec<R>>,
    dw: Option<Vec<R>>,
}

impl<R: Real> Run<R> {
    fn new(rows: usize, head: &[usize], need_dx: bool, need_dw: bool) -> Run<R> {
        let (vocabulary, hidden) = (head[0], head[1]);
        Run {
            vocabulary,
            hidden,
            loss: 0.0,
            correct: 0,
            dx: need_dx.then(|| Vec::with_capacity(rows * hidden)),
            dw: need_dw.then(|| vec![R::zero(); vocabulary * hidden]),
        }
    }

    fn all(&mut self, w: &crate::FrozenWeight, x: &[R], targets: &[usize]) -> Result<()> {
        let chunk = (CHUNK_LOGITS / self.vocabulary.max(1)).clamp(16, 1024);
        for (x, targets) in x.chunks(chunk * self.hidden).zip(targets.chunks(chunk)) {
            let n = targets.len();
            let mut logits = w.times_transposed::<R>(x, n)?;
            let want_grad = self.dx.is_some() || self.dw.is_some();
            let per_row: Vec<(f64, bool)> = logits
                .par_chunks_mut(self.vocabulary)
                .zip(targets)
                .map(|(row, &target)| cross_entropy_row(row, target, want_grad))
                .collect();
            self.loss += per_row.iter().map(|r| r.0).sum::<f64>();
            self.correct += per_row.iter().filter(|r| r.1).count();
            if let Some(dx) = &mut self.dx {
                dx.extend_from_slice(&w.times::<R>(&logits, n)?);
            }
            if let Some(dw) = &mut self.dw {
                matmul(
                    MatMut::new(dw, self.vocabulary, self.hidden),
                    Mat::new(&logits, n, self.vocabulary).t(),
                    Mat::new(x, n, self.hidden),
                    R::one(),
                    R::one(),
                    Threads::All,
                );
            }
        }
        Ok(())
    }
}

/// The loss of one row of logits and whether its maximum is the target; the row becomes softmax − onehot if asked.
fn cross_entropy_row<R: Real>(row: &mut [R], target: usize, want_grad: bool) -> (f64, bool) {
    let max = row.iter().copied().fold(R::neg_infinity(), |a, b| if b > a { b } else { a });
    let at_target = row[target];
    // A first maximum before the target makes the prediction wrong, as argmax does.
    let correct = at_target == max && row[..target].iter().all(|&l| l < max);
    let mut sum = 0.0;
    for part in row.chunks_mut(1024) {
        let mut s = R::zero();
        for l in part.iter_mut() {
            *l = (*l - max).exp_fast();
            s += *l;
        }
        sum += s.f64();
    }
    if want_grad {
        let scale = R::of(1.0 / sum);
        row.iter_mut().for_each(|l| *l *= scale);
        row[target] += R::of(-1.0);
    }
    let loss = sum.ln() + max.f64() - at_target.f64();
    // NaN anywhere in the row must reach the loss: comparisons above skip it, the sum doesn't.
    (if sum.is_nan() { f64::NAN } else { loss }, correct)
}
