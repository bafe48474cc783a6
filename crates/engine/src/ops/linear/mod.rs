//! The linear layer, with or without an adapter, as one op.

mod dora;
mod lora;

pub use dora::{Dora, RowNorm, column_norms, row_norms};
pub use lora::{Dropout, Lora};

pub(crate) use dora::{Scale, difference, scale_gradient};
pub(crate) use lora::{Factors, Mask};

use dora::DoraSaved;
use lora::LoraSaved;

use crate::error::{Error, Result};
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{DType, FrozenWeight, ParamId, Real, Tensor, Weight, dispatch_real};

/// What a forward variant and its backward compute from: x `[n, in]` and W `shape` = `[out, in]`.
struct Input<'a, R> {
    x: &'a [R],
    n: usize,
    weight: &'a FrozenWeight,
    shape: [usize; 2],
}

/// What a variant's backward needs besides x and W.
enum Variant {
    Plain,
    Lora(LoraSaved),
    Dora(DoraSaved),
}

struct LinearBackward {
    x_source: Source,
    /// Kept only if a weight gradient or an adapter needs it.
    x: Option<Tensor>,
    dtype: DType,
    weight: Weight,
    bias: Option<ParamId>,
    variant: Variant,
}

impl Backward for LinearBackward {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        dispatch_real!(self.dtype, R => self.run::<R>(dy, grads))
    }
}

impl LinearBackward {
    fn run<R: Real>(self, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let n = dy.rows();
        let weight = self.weight.resolve(grads.params);
        let (out, cols) = weight.matrix("linear backward")?;
        let x = self.x.as_ref().map(|x| x.reals::<R>()).unwrap_or_default();
        if let Some(id) = self.weight.param() {
            let mut dw = vec![R::zero(); out * cols];
            let (c, dy) = (MatMut::new(&mut dw, out, cols), dy.reals::<R>());
            matmul(c, Mat::new(&dy, n, out).t(), Mat::new(&x, n, cols), R::one(), R::zero(), Threads::All);
            grads.add_param(id, Tensor::new(dw, &[out, cols]))?;
        }
        if let Some(id) = self.bias {
            grads.add_param(id, Tensor::new(column_sums(&dy.reals::<R>(), out), &[out]))?;
        }
        let want_dx = self.x_source.needs_grad();
        let input = Input { x: &x, n, weight: &weight, shape: [out, cols] };
        let dx = match self.variant {
            Variant::Plain if want_dx => Some(weight.times(&dy.reals::<R>(), n)?),
            Variant::Plain => None,
            Variant::Lora(saved) => saved.backward(&input, &dy.reals::<R>(), want_dx, grads)?,
            Variant::Dora(saved) => saved.backward::<R>(&input, dy, want_dx, grads)?,
        };
        match dx {
            Some(dx) => grads.add(self.x_source, Tensor::from_reals(dx, &[n, cols], self.dtype)),
            None => Ok(()),
        }
    }
}

/// Sums over rows in a fixed order: blocks of rows first, then the blocks.
pub(crate) fn column_sums<R: Real>(x: &[R], cols: usize) -> Vec<R> {
    use rayon::prelude::*;
    let partial: Vec<Vec<R>> = x
        .par_chunks(64 * cols.max(1))
        .map(|block| {
            let mut sum = vec![R::zero(); cols];
            for row in block.chunks_exact(cols) {
                sum.iter_mut().zip(row).for_each(|(s, &v)| *s += v);
            }
            sum
        })
        .collect();
    let mut total = vec![R::zero(); cols];
    for p in &partial {
        total.iter_mut().zip(p).for_each(|(t, &v)| *t += v);
    }
    total
}

/// y `[n, out]` = x `[n, in]` · Wᵀ + b + the adapter's branch; with DoRA the rows are rescaled, see [`Dora`].
///
/// Backward: dx = dy·W (+ the adapter's part), dW = dyᵀ·x, db = Σ rows of dy; see [`Lora`] and [`Dora`] for the
/// adapter's. Saved: x, only if W or an adapter is trained; the adapter's x·Aᵀ; y with DoRA. The frozen W is never
/// copied or widened whole.
///
/// # Errors
/// If shapes do not fit, or W is trained and has a DoRA.
pub fn linear(
    tape: &mut Tape<'_>,
    x: &Var,
    weight: &Weight,
    bias: Option<&Weight>,
    lora: Option<&Lora>,
) -> Result<Var> {
    let w = weight.resolve(tape.params());
    let (n, dtype) = (x.value().rows(), x.value().dtype());
    if w.shape().len() != 2 || w.shape()[1] != x.value().cols() {
        return Err(Error::Shape {
            op: "linear",
            what: "weight [out, in] for the input".into(),
            expected: format!("[_, {}]", x.value().cols()),
            got: format!("{:?}", w.shape()),
        });
    }
    let (out, cols) = w.matrix("linear")?;
    let (y, variant) = dispatch_real!(dtype, R => {
        let xr = x.value().reals::<R>();
        let input = Input { x: &xr, n, weight: &w, shape: [out, cols] };
        let b = match bias {
            Some(b) => Some(b.vector::<R>(tape.params(), "linear", out)?),
            None => None,
        };
        let add_bias = |_, y: &mut [R]| y.iter_mut().zip(b.iter().flatten()).for_each(|(y, &b)| *y += b);
        match lora.map(|l| (l, &l.dora)) {
            None => {
                let y = w.times_transposed(&xr, n)?;
                (Tensor::from_rows(y, [n, out], dtype, add_bias), Variant::Plain)
            }
            Some((lora, None)) => {
                let (y, saved) = lora::forward(lora, tape, &input)?;
                (Tensor::from_rows(y, [n, out], dtype, add_bias), Variant::Lora(saved))
            }
            Some((lora, Some(dora))) => {
                dora.check_frozen("linear", weight)?;
                let (y, saved) = dora::forward((lora, dora), tape, &input, b.as_deref(), dtype)?;
                (y, Variant::Dora(saved))
            }
        }
    });
    let trained = weight.param().is_some() || lora.is_some();
    let bias = bias.and_then(Weight::param);
    let needs = x.needs_grad() || trained || bias.is_some();
    Ok(tape.record(y, needs, || LinearBackward {
        x_source: x.source(),
        x: trained.then(|| x.value().clone()),
        dtype,
        weight: weight.clone(),
        bias,
        variant,
    }))
}
