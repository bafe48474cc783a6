//! Weights: frozen storage that no op looks inside, and trainable parameters.

use std::borrow::Cow;
use std::sync::Arc;

use half::bf16;
use rayon::prelude::*;

use crate::cuda::{CudaBuffer, CudaDevice};
use crate::error::{Error, Result, check_shape};
use crate::gemm::{Finish, Mat, MatMut, Operand, Term, Threads, sum_of_products};
use crate::ops::column_sums;
use crate::param::{ParamId, Params};
use crate::pool;
use crate::tensor::map_to_vec;
use crate::{DType, Device, Element, Real, Tensor, dispatch};

/// Rows that a product decodes at a time when the storage is not the type of the arithmetic: small enough that the
/// decoded block stays in cache, large enough that the product runs at full speed.
const BLOCK_ROWS: usize = 512;

/// A frozen weight `[out, in]` in whatever form it is stored.
///
/// Ops reach it only through products with it and through rows of it, so a quantised form (NF4, int8, fp8) or a
/// packed one is a new variant here, and not one op changes.
#[derive(Clone, Debug)]
pub enum FrozenWeight {
    Dense(Tensor),
}

impl FrozenWeight {
    pub fn shape(&self) -> &[usize] {
        match self {
            FrozenWeight::Dense(t) => t.shape(),
        }
    }

    pub fn bytes(&self) -> usize {
        match self {
            FrozenWeight::Dense(t) => t.bytes(),
        }
    }

    pub fn device(&self) -> Device {
        match self {
            FrozenWeight::Dense(t) => t.device(),
        }
    }

    /// The same weight on a device.
    ///
    /// # Errors
    /// If the device can't be used or has no room for it.
    pub fn to_device(&self, device: Device) -> Result<FrozenWeight> {
        match self {
            FrozenWeight::Dense(t) => Ok(FrozenWeight::Dense(t.to_device(device)?)),
        }
    }

    /// The card's storage, if it is on one.
    pub(crate) fn card(&self) -> Option<&Arc<CudaBuffer>> {
        match self {
            FrozenWeight::Dense(t) => t.cuda(),
        }
    }

    /// The storage on this card.
    ///
    /// # Errors
    /// If it is elsewhere.
    pub(crate) fn on_card(&self, op: &'static str, device: &Arc<CudaDevice>) -> Result<&Arc<CudaBuffer>> {
        match self.card() {
            Some(buffer) if Arc::ptr_eq(buffer.device(), device) => Ok(buffer),
            _ => {
                Err(Error::Invalid(format!("{op}: a weight is on {}, the input on {device}", self.device())))
            }
        }
    }

    /// ‖row‖² by row of W `[out, in]`, `[out]`: what DoRA's norms of an adapted linear layer start from.
    pub fn row_squares(&self) -> Vec<f64> {
        let mut squares = Vec::new();
        self.for_each_block(|block, cols| {
            squares.par_extend(block.par_chunks(cols).map(|row| row.iter().map(|x| x * x).sum::<f64>()));
        });
        squares
    }

    /// ‖column‖² by column of W `[out, in]`, `[in]`: the same for an adapted embedding.
    pub fn column_squares(&self) -> Vec<f64> {
        let mut squares = Vec::new();
        self.for_each_block(|block, cols| {
            let of_block = column_sums(&crate::tensor::map_to_vec(block, |x| x * x), cols);
            squares.resize(cols, 0.0);
            squares.iter_mut().zip(of_block).for_each(|(s, b)| *s += b);
        });
        squares
    }

    /// Calls `f` with blocks of rows from first to last, in f64, and the length of a row.
    fn for_each_block(&self, mut f: impl FnMut(&[f64], usize)) {
        let cols = self.shape().last().copied().unwrap_or(1).max(1);
        let rows = self.shape().iter().product::<usize>() / cols;
        for start in (0..rows).step_by(BLOCK_ROWS) {
            f(&self.rows_as::<f64>(start, rows.min(start + BLOCK_ROWS)), cols);
        }
    }

    /// Rows `[start, end)` as reals, decoded if they have to be.
    fn rows_as<R: Real>(&self, start: usize, end: usize) -> Cow<'_, [R]> {
        match self {
            FrozenWeight::Dense(t) => t.rows_as(start, end),
        }
    }
}

/// A weight as a layer holds it: frozen, or a trainable parameter.
#[derive(Clone, Debug)]
pub enum Weight {
    Frozen(Arc<FrozenWeight>),
    Param(ParamId),
}

impl Weight {
    pub fn dense(tensor: Tensor) -> Weight {
        Weight::Frozen(Arc::new(FrozenWeight::Dense(tensor)))
    }

    pub fn param(&self) -> Option<ParamId> {
        match self {
            Weight::Frozen(_) => None,
            Weight::Param(id) => Some(*id),
        }
    }

    /// The weight's present contents. Cheap: storage is shared.
    pub fn resolve(&self, params: &Params) -> Arc<FrozenWeight> {
        match self {
            Weight::Frozen(w) => w.clone(),
            Weight::Param(id) => Arc::new(FrozenWeight::Dense(params.value(*id).clone())),
        }
    }

    /// A vector weight (a norm's, a bias) as reals.
    pub(crate) fn vector<R: Real>(&self, params: &Params, op: &'static str, len: usize) -> Result<Vec<R>> {
        let w = self.resolve(params);
        check_shape(op, "vector weight", w.shape(), &[len])?;
        Ok(w.rows_as::<R>(0, 1).into_owned())
    }
}

/// Products with a weight in the type `R`; the only way ops use a matrix weight.
impl FrozenWeight {
    pub(crate) fn matrix(&self, op: &'static str) -> Result<(usize, usize)> {
        match self.shape() {
            &[rows, cols] => Ok((rows, cols)),
            other => Err(Error::Shape {
                op,
                what: "weight".into(),
                expected: "a matrix [out, in]".into(),
                got: format!("{other:?}"),
            }),
        }
    }

    /// Wᵀ as a factor `[in, out]`.
    fn operand(&self) -> Result<Operand<'_>> {
        let (rows, cols) = self.matrix("linear")?;
        match self {
            FrozenWeight::Dense(t) => {
                dispatch!(t.dtype(), E => Ok(Operand::of(Mat::new(t.slice::<E>()?, rows, cols))))
            }
        }
    }

    /// finish(x·Wᵀ + other) `[n, out]` for x `[n, in]`, in the type C.
    pub(crate) fn sum_of<E: Element, C: Element<Acc = E::Acc>>(
        &self,
        x: &[E],
        n: usize,
        other: Option<Term<'_>>,
        finish: Finish<'_, E::Acc>,
    ) -> Result<Vec<C>> {
        let (out, cols) = self.matrix("linear")?;
        let own = Term { a: Operand::of(Mat::new(x, n, cols)), b: self.operand()?.t(), scale: 1.0 };
        let mut y = pool::any::<C>(n * out);
        let terms: Vec<Term<'_>> = [own].into_iter().chain(other).collect();
        sum_of_products(MatMut::new(&mut y, n, out), false, &terms, finish, Threads::All);
        Ok(y)
    }

    /// The same in the type of x.
    pub(crate) fn sum_with<E: Element>(
        &self,
        x: &[E],
        n: usize,
        other: Option<Term<'_>>,
        finish: Finish<'_, E::Acc>,
    ) -> Result<Vec<E>> {
        self.sum_of(x, n, other, finish)
    }

    /// y `[n, out]` = x `[n, in]` · Wᵀ.
    pub(crate) fn times_transposed<R: Real>(&self, x: &[R], n: usize) -> Result<Vec<R>> {
        self.times_transposed_of(x, n)
    }

    pub(crate) fn times_transposed_of<E: Element, C: Element<Acc = E::Acc>>(
        &self,
        x: &[E],
        n: usize,
    ) -> Result<Vec<C>> {
        self.sum_of(x, n, None, Finish::default())
    }

    /// x·Wᵀ of reals that are activations of type `dtype`, rounded to it where W is of it too.
    pub(crate) fn times_transposed_in<R: Real>(&self, dtype: DType, x: &[R], n: usize) -> Result<Vec<R>> {
        self.product_in(dtype, x, n, |w| w.t())
    }

    /// dy·W of the same.
    pub(crate) fn times_in<R: Real>(&self, dtype: DType, dy: &[R], n: usize) -> Result<Vec<R>> {
        self.product_in(dtype, dy, n, |w| w)
    }

    fn product_in<R: Real>(
        &self,
        dtype: DType,
        a: &[R],
        n: usize,
        turn: impl for<'a> Fn(Operand<'a>) -> Operand<'a>,
    ) -> Result<Vec<R>> {
        let b = turn(self.operand()?);
        let (k, cols) = b.shape();
        let rounded = (dtype == DType::BF16 && b.dtype() == DType::BF16)
            .then(|| map_to_vec(a, |x| bf16::from_bits(x.to_bf16_bits())));
        let a = match &rounded {
            Some(a) => Operand::of(Mat::new(a, n, k)),
            None => Operand::of(Mat::new(a, n, k)),
        };
        let mut c = pool::any::<R>(n * cols);
        let term = Term { a, b, scale: 1.0 };
        sum_of_products(MatMut::new(&mut c, n, cols), false, &[term], Finish::default(), Threads::All);
        rounded.into_iter().for_each(pool::keep);
        Ok(c)
    }

    /// dy·W `[n, in]` for dy `[n, out]`, to be summed.
    pub(crate) fn gradient<'a, E: Element>(&'a self, dy: &'a [E], n: usize) -> Result<Term<'a>> {
        let (out, _) = self.matrix("linear backward")?;
        Ok(Term { a: Operand::of(Mat::new(dy, n, out)), b: self.operand()?, scale: 1.0 })
    }

    /// dx `[n, in]` = dy `[n, out]` · W.
    pub(crate) fn times<R: Real>(&self, dy: &[R], n: usize) -> Result<Vec<R>> {
        self.times_of(dy, n)
    }

    pub(crate) fn times_of<E: Element, C: Element<Acc = E::Acc>>(
        &self,
        dy: &[E],
        n: usize,
    ) -> Result<Vec<C>> {
        let (_, cols) = self.matrix("linear backward")?;
        let mut dx = pool::any::<C>(n * cols);
        let c = MatMut::new(&mut dx, n, cols);
        sum_of_products(c, false, &[self.gradient(dy, n)?], Finish::default(), Threads::All);
        Ok(dx)
    }

    /// Rows picked by index, `[ids.len(), in]`.
    pub(crate) fn gather<R: Real>(&self, ids: &[u32]) -> Result<Vec<R>> {
        let (rows, cols) = self.matrix("embedding")?;
        let mut out = Vec::with_capacity(ids.len() * cols);
        for &id in ids {
            let i = id as usize;
            if i >= rows {
                return Err(Error::Index { op: "embedding", what: "the vocabulary", index: i, size: rows });
            }
            out.extend_from_slice(&self.rows_as::<R>(i, i + 1));
        }
        Ok(out)
    }
}
