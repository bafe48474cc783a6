//! The linear layer, with or without an adapter, as one op.

pub(super) mod cuda;
mod dora;
mod lora;

pub use dora::{Dora, RowNorm, column_norms, row_norms};
pub use lora::{Dropout, Lora};

pub(crate) use dora::{Scale, difference, scale_gradient};
pub(crate) use lora::{Factors, Mask};

use dora::DoraSaved;
use lora::LoraSaved;

use crate::cuda::CudaBuffer;
use crate::error::{Error, Result};
use crate::gemm::{Finish, Mat, MatMut, Term, Threads, sum_of_products};
use crate::isa::vectorised;
use crate::kept::Kept;
use crate::pool;
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{DType, Element, FrozenWeight, ParamId, Real, Tensor, Weight, dispatch};

/// What a forward variant and its backward compute from: x `[n, in]` and W `shape` = `[out, in]`.
struct Input<'a, E> {
    x: &'a [E],
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
    x: Option<Kept>,
    dtype: DType,
    weight: Weight,
    bias: Option<ParamId>,
    variant: Variant,
}

impl Backward for LinearBackward {
    fn name(&self) -> &'static str {
        "linear"
    }
    fn is_profiled(&self) -> bool {
        false
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        if dy.cuda().is_some() {
            return cuda::backward(*self, &dy, grads);
        }
        let _span = profile::span("linear", Pass::Backward);
        dispatch!(self.dtype, E => self.run::<E>(dy, grads))
    }
}

impl LinearBackward {
    fn run<E: Element>(self, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let n = dy.rows();
        let weight = self.weight.resolve(grads.params);
        let (out, cols) = weight.matrix("linear backward")?;
        let x = self.x.as_ref().map(Kept::get).transpose()?;
        let x = x.as_ref().map_or(Ok(&[][..]), |x| x.slice::<E>())?;
        if let Some(id) = self.weight.param() {
            let mut dw = pool::any::<E::Acc>(out * cols);
            let term = Term::new(Mat::new(dy.slice::<E>()?, n, out).t(), Mat::new(x, n, cols));
            let c = MatMut::new(&mut dw, out, cols);
            sum_of_products(c, false, &[term], Finish::default(), Threads::All);
            grads.add_param(id, Tensor::new(dw, &[out, cols]))?;
        }
        if let Some(id) = self.bias {
            grads.add_param(id, Tensor::new(column_sums(dy.slice::<E>()?, out), &[out]))?;
        }
        let source = self.x_source;
        let input = Input { x, n, weight: &weight, shape: [out, cols] };
        match self.variant {
            Variant::Plain if source.needs_grad() => {
                grads.add_products::<E>(source, [n, cols], &[weight.gradient(dy.slice::<E>()?, n)?])
            }
            Variant::Plain => Ok(()),
            Variant::Lora(saved) => saved.backward::<E>(&input, dy.slice()?, source, grads),
            Variant::Dora(saved) => saved.backward::<E>(&input, dy, source, grads),
        }
    }
}

/// Sums over rows in a fixed order: blocks of rows first, then the blocks.
pub(crate) fn column_sums<E: Element>(x: &[E], cols: usize) -> Vec<E::Acc> {
    use rayon::prelude::*;
    let partial: Vec<Vec<E::Acc>> = x
        .par_chunks(64 * cols.max(1))
        .map(|block| {
            let mut sums = vec![E::Acc::of(0.0); cols];
            let sum = &mut sums[..];
            vectorised!([E: Element] (block: &[E], sum: &mut [E::Acc]) {
                for row in block.chunks_exact(sum.len()) {
                    sum.iter_mut().zip(row).for_each(|(s, v)| *s += v.to_acc());
                }
            });
            sums
        })
        .collect();
    let mut total = vec![E::Acc::of(0.0); cols];
    for p in &partial {
        total.iter_mut().zip(p).for_each(|(t, &v)| *t += v);
    }
    total
}

/// A weight `[out, in]`, a bias `[out]` and an adapter.
#[derive(Clone, Copy)]
pub struct Layer<'a> {
    pub weight: &'a Weight,
    pub bias: Option<&'a Weight>,
    pub lora: Option<&'a Lora>,
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
    let layer = Layer { weight, bias, lora };
    let h = branches(tape, x, &[layer])?.pop().flatten();
    one(tape, x, layer, h, true)
}

/// [`linear`] of several layers with one input: a card reads it once for all their adapters.
///
/// # Errors
/// As of [`linear`].
pub fn linears(tape: &mut Tape<'_>, x: &Var, layers: &[Layer<'_>]) -> Result<Vec<Var>> {
    let hs = branches(tape, x, layers)?;
    layers.iter().zip(hs).map(|(&layer, h)| one(tape, x, layer, h, true)).collect()
}

/// [`linear`] whose output nobody reads, but whose backward will run: where that does not need the output, it is of no
/// particular value.
///
/// # Errors
/// As of [`linear`].
pub fn linear_unread(tape: &mut Tape<'_>, x: &Var, layer: Layer<'_>) -> Result<Var> {
    let h = branches(tape, x, &[layer])?.pop().flatten();
    one(tape, x, layer, h, false)
}

/// x·Aᵀ of each layer, where that is computed for several at once.
fn branches(tape: &Tape<'_>, x: &Var, layers: &[Layer<'_>]) -> Result<Vec<Option<CudaBuffer>>> {
    match x.value().cuda() {
        Some(there) => {
            let _span = profile::span("adapter", Pass::Forward);
            cuda::branches(tape, x.value(), there, layers)
        }
        None => Ok(layers.iter().map(|_| None).collect()),
    }
}

fn one(tape: &mut Tape<'_>, x: &Var, layer: Layer<'_>, h: Option<CudaBuffer>, is_read: bool) -> Result<Var> {
    let _span = profile::span("linear", Pass::Forward);
    let Layer { weight, bias, lora } = layer;
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
    let (y, variant) = if let Some(there) = x.value().cuda() {
        cuda::forward(tape, x.value(), there, layer, h, is_read)?
    } else {
        dispatch!(dtype, E => {
            let input = Input { x: x.value().slice::<E>()?, n, weight: &w, shape: [out, cols] };
            let bias = match bias {
                Some(b) => Some(b.vector::<<E as Element>::Acc>(tape.params(), "linear", out)?),
                None => None,
            };
            let bias = bias.as_deref();
            match lora.map(|l| (l, &l.dora)) {
                None if !is_read => (Tensor::new(pool::any::<E>(n * out), &[n, out]), Variant::Plain),
                None => {
                    let y = w.sum_with::<E>(input.x, n, None, Finish { scale: None, bias })?;
                    (Tensor::new(y, &[n, out]), Variant::Plain)
                }
                Some((lora, None)) => {
                    let (y, saved) = lora::forward(lora, tape, &input, bias, is_read)?;
                    (y, Variant::Lora(saved))
                }
                Some((lora, Some(dora))) => {
                    dora.check_frozen("linear", weight)?;
                    let (y, saved) = dora::forward((lora, dora), tape, &input, bias)?;
                    (y, Variant::Dora(saved))
                }
            }
        })
    };
    let trained = weight.param().is_some() || lora.is_some();
    let bias = bias.and_then(Weight::param);
    let needs = x.needs_grad() || trained || bias.is_some();
    Ok(tape.record(y, needs, || LinearBackward {
        x_source: x.source(),
        x: trained.then(|| x.keep()),
        dtype,
        weight: weight.clone(),
        bias,
        variant,
    }))
}
