mod adapter;
mod chunks;
pub(super) mod cuda;
mod logits;

pub use logits::Logits;

use adapter::HeadAdapter;
use chunks::Run;

use super::TableAdapter;
use super::rows::HeadWeight;
use crate::error::{Error, Result, check_shape};
use crate::profile::{self, Pass};
use crate::tape::{Backward, Mode, Sink, Source, Tape, Var};
use crate::{DType, ParamId, Params, Real, Tensor, Weight, dispatch_real};

/// The target of a token that is not trained on (Hugging Face's label value).
pub const IGNORE: i32 = -100;

/// What each token is to become.
#[derive(Clone, Copy, Debug)]
pub struct Targets<'a> {
    /// One for each token, or [`IGNORE`].
    pub ids: &'a [i32],
    /// ε of label smoothing (Szegedy et al., arXiv 1512.00567): this share of the target's probability is spread evenly over the
    /// whole vocabulary.
    pub smoothing: f64,
}

impl Targets<'_> {
    /// # Errors
    /// If the smoothing is no share.
    fn check(&self) -> Result<()> {
        if (0.0..1.0).contains(&self.smoothing) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "linear_cross_entropy: label smoothing is {}; expected a number from 0 up to, but not, 1",
            self.smoothing
        )))
    }
}

/// Without smoothing.
impl<'a, T: AsRef<[i32]> + ?Sized> From<&'a T> for Targets<'a> {
    fn from(ids: &'a T) -> Targets<'a> {
        Targets { ids: ids.as_ref(), smoothing: 0.0 }
    }
}

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
    /// Gradients of the head or its adapter.
    params: Vec<(ParamId, Tensor)>,
}

impl Backward for LossBackward {
    fn name(&self) -> &'static str {
        "linear_cross_entropy"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let upstream = dy.item();
        for (id, mut grad) in self.params {
            grad.scale_assign(upstream);
            grads.add_param(id, grad)?;
        }
        if let Some(dx) = self.dx.as_ref().and_then(Tensor::cuda).cloned() {
            return cuda::backward(self.x, (&self.rows, &self.shape, self.dtype), &dx, upstream, grads);
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

/// Sum over tokens of −log softmax(logits)[target], with x `[tokens, hidden]`, W the head `[vocabulary, hidden]` and one
/// target per token ([`IGNORE`] = none). The logits z are [`Logits`] of y = x·Wᵀ; an adapter changes y as it changes
/// [`linear`](super::linear)'s output. With label smoothing ε a token's loss is log Σ exp z − (1 − ε)·z\[target\] − ε·mean(z).
///
/// The logits never exist as a whole: a chunk of rows is projected, its loss taken, and turned in place into
/// dlogits = softmax − (1 − ε)·onehot − ε/vocabulary and dy = dlogits∘scale·(1 − (logits/cap)²), from which dx = dy·W and dW = dyᵀ·x (or the
/// adapter's gradients) follow while the chunk is in cache. Rows without a target are skipped altogether; random dropout is
/// counted over the others, and a given mask has a row for every token. Saved: dx and the gradients of parameters, to be
/// scaled by the upstream gradient.
///
/// [`TrainedRows`](super::TrainedRows) stand in the place of the head's: row k of their gradient is dyᵀ·x of column `ids[k]`,
/// dx goes through them, and nothing is as large as the head. An adapter is added to what they make.
///
/// # Errors
/// If a target lies outside the vocabulary, the smoothing is no share, shapes do not fit, the head is trained and has a DoRA, trained rows meet a trained
/// head or a DoRA, or the scale or the cap can't be one.
pub fn linear_cross_entropy<'t>(
    tape: &mut Tape<'_>,
    x: &Var,
    head: &Weight,
    adapter: TableAdapter<'_>,
    targets: impl Into<Targets<'t>>,
    logits: Logits,
) -> Result<LossOutput> {
    let _span = profile::span("linear_cross_entropy", Pass::Forward);
    let targets = targets.into();
    logits.check("linear_cross_entropy")?;
    targets.check()?;
    let Targets { ids: targets, smoothing } = targets;
    let value = x.value();
    check(value, head.resolve(tape.params()).shape(), targets)?;
    let record = tape.mode() != Mode::Infer;
    let (want_dx, dhead) = (record && x.needs_grad(), head.param().filter(|_| record));
    let trains = adapter.lora.is_some() || adapter.rows.is_some();
    let needs_grad = want_dx || dhead.is_some() || (record && trains);
    let rows: Vec<usize> = (0..targets.len()).filter(|&i| targets[i] != IGNORE).collect();
    let targets: Vec<usize> = rows.iter().map(|&i| targets[i] as usize).collect();
    if let Some(there) = value.cuda() {
        cuda::check(adapter)?;
        let w = head.resolve(tape.params());
        let wanted = [want_dx, dhead.is_some()];
        let done = cuda::run(there, &w, &rows, (&targets, smoothing), logits, wanted)?;
        let loss = tape.record(Tensor::new(vec![done.loss], &[1]), needs_grad, || LossBackward {
            x: x.source(),
            dx: done.dx,
            rows: rows.clone(),
            shape: value.shape().to_vec(),
            dtype: value.dtype(),
            params: dhead.zip(done.dw).into_iter().collect(),
        });
        return Ok(LossOutput { loss, tokens: rows.len(), correct: done.correct });
    }
    let picked = value.select_rows(&rows)?;
    let (sums, dx, params) = dispatch_real!(value.dtype(), R => {
        let xs = picked.reals::<R>();
        let w = head.resolve(tape.params());
        let (params, of_rows) = (tape.params(), adapter.rows);
        let w = HeadWeight::new("linear_cross_entropy", params, head, &w, of_rows, value.dtype())?;
        let adapter = HeadAdapter::<R>::of(tape, adapter, head, &xs, &rows, value.rows())?;
        let mut run = Run::new(w, &xs, adapter, logits.map(), needs_grad, want_dx, dhead.is_some());
        run.all(&targets, smoothing)?;
        let (sums, dx, dw, mut params) = run.finish();
        params.extend(dhead.zip(dw));
        (sums, dx.map(|dx| Tensor::new(dx, picked.shape())), params)
    });
    let tokens = rows.len();
    let loss = Tensor::new(vec![sums.loss], &[1]);
    let loss = tape.record(loss, needs_grad, || LossBackward {
        x: x.source(),
        dx,
        rows,
        shape: value.shape().to_vec(),
        dtype: value.dtype(),
        params,
    });
    Ok(LossOutput { loss, tokens, correct: sums.correct })
}

/// y = x·Wᵀ `[n, vocabulary]` of the head W `[vocabulary, hidden]` and what is trained on it, without a gradient and without
/// dropout; x `[n, hidden]` is f32 or f64, and so is y.
///
/// # Errors
/// As [`linear_cross_entropy`].
pub fn head_outputs(params: &Params, x: &Tensor, head: &Weight, adapter: TableAdapter<'_>) -> Result<Tensor> {
    const OP: &str = "head_outputs";
    let w = head.resolve(params);
    let (vocabulary, hidden) = w.matrix(OP)?;
    check_shape(OP, "input", x.shape(), &[x.rows(), hidden])?;
    let mut tape = Tape::new(params, Mode::Infer);
    let rows: Vec<usize> = (0..x.rows()).collect();
    dispatch_real!(x.dtype(), R => {
        let (n, xs) = (rows.len(), x.reals::<R>());
        let w = HeadWeight::new(OP, params, head, &w, adapter.rows, x.dtype())?;
        let adapter = HeadAdapter::<R>::of(&mut tape, adapter, head, &xs, &rows, n)?;
        let y = match &adapter {
            None => w.times_transposed(&xs, n)?,
            Some(adapter) => adapter.outputs(&w, &xs, &(0..n))?.y,
        };
        Ok(Tensor::new(y, &[n, vocabulary]))
    })
}

fn check(x: &Tensor, head: &[usize], targets: &[i32]) -> Result<()> {
    if head.len() != 2 || head[1] != x.cols() || targets.len() != x.rows() {
        return Err(Error::Shape {
            op: "linear_cross_entropy",
            what: "input and targets for the head".into(),
            expected: format!("[{}, {:?}]", targets.len(), head.get(1)),
            got: format!("{:?}", x.shape()),
        });
    }
    let size = head[0];
    match targets.iter().find(|&&t| t != IGNORE && (t < 0 || t as usize >= size)) {
        Some(&t) => {
            let index = t as u32 as usize;
            Err(Error::Index { op: "linear_cross_entropy", what: "the vocabulary", index, size })
        }
        None => Ok(()),
    }
}
