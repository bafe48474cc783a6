//! The linear layer, with or without an adapter, as one op.

mod dora;
mod lora;

pub use dora::{Dora, RowNorm, column_norms, row_norms};
pub use lora::{Dropout, Lora};

use lora::LoraSaved;

use crate::error::{Error, Result};
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{DType, ParamId, Real, Tensor, Weight, dispatch_real};

struct LinearBackward {
    x_source: Source,
    /// Kept only if a weight gradient or an adapter needs it.
    x: Option<Tensor>,
    dtype: DType,
    weight: Weight,
    bias: Option<ParamId>,
    lora: Option<LoraSaved>,
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
        let dyr = dy.reals::<R>();
        let weight = self.weight.resolve(grads.params);
        let cols = weight.shape()[1];
        let mut dx = match self.x_source.needs_grad() {
            true => Some(weight.times::<R>(&dyr, n)?),
            false => None,
        };
        let x = self.x.as_ref().map(|x| x.reals::<R>());
        if let (Some(id), Some(x)) = (self.weight.param(), &x) {
            let rows = weight.shape()[0];
            let mut dw = vec![R::zero(); rows * cols];
            let c = MatMut::new(&mut dw, rows, cols);
            matmul(c, Mat::new(&dyr, n, rows).t(), Mat::new(x, n, cols), R::one(), R::zero(), Threads::All);
            grads.add_param(id, Tensor::new(dw, &[rows, cols]))?;
        }
        if let Some(id) = self.bias {
            grads.add_param(id, Tensor::new(column_sums(&dyr, weight.shape()[0]), &[weight.shape()[0]]))?;
        }
        if let (Some(lora), Some(x)) = (self.lora, &x) {
            lora.backward::<R>(x, &dyr, n, dx.as_deref_mut(), grads)?;
        }
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

/// y `[n, out]` = x `[n, in]` · Wᵀ + b + the adapter's branch.
///
/// Backward: dx = dy·W (+ the adapter's part), dW = dyᵀ·x, db = Σ rows of dy; see [`Lora`] for the adapter's.
/// Saved: x, only if W or an adapter is trained; the adapter's x·Aᵀ. The frozen W is never copied or widened whole.
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
    let out = w.shape()[0];
    let (y, saved) = dispatch_real!(dtype, R => {
        let xr = x.value().reals::<R>();
        let mut y = w.times_transposed::<R>(&xr, n)?;
        if let Some(b) = bias {
            let b = b.vector::<R>(tape.params(), "linear", out)?;
            use rayon::prelude::*;
            y.par_chunks_mut(out).for_each(|row| row.iter_mut().zip(&b).for_each(|(y, &b)| *y += b));
        }
        let saved = match lora {
            Some(l) => Some(l.forward::<R>(tape, &xr, n, &mut y, [out, w.shape()[1]])?),
            None => None,
        };
        (Tensor::from_reals(y, &[n, out], dtype), saved)
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
        lora: saved,
    }))
}
