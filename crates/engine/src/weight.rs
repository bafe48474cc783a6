//! Weights: frozen storage that no op looks inside, and trainable parameters.

use std::borrow::Cow;
use std::sync::Arc;

use crate::error::{Error, Result, check_shape};
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::param::{ParamId, Params};
use crate::{Real, Tensor};

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

    /// Rows `[start, end)` as reals, decoded if they have to be.
    fn rows_as<R: Real>(&self, start: usize, end: usize) -> Cow<'_, [R]> {
        match self {
            FrozenWeight::Dense(t) => t.rows_as(start, end),
        }
    }

    fn block_rows<R: Real>(&self) -> usize {
        match self {
            FrozenWeight::Dense(t) if t.dtype() == R::DTYPE => t.rows().max(1),
            FrozenWeight::Dense(_) => BLOCK_ROWS,
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
    fn matrix(&self, op: &'static str) -> Result<(usize, usize)> {
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

    /// y `[n, out]` = x `[n, in]` · Wᵀ.
    pub(crate) fn times_transposed<R: Real>(&self, x: &[R], n: usize) -> Result<Vec<R>> {
        let (rows, cols) = self.matrix("linear")?;
        let mut y = vec![R::zero(); n * rows];
        let mut start = 0;
        while start < rows {
            let end = rows.min(start + self.block_rows::<R>());
            let w = self.rows_as::<R>(start, end);
            matmul(
                MatMut::strided(&mut y[start..], n, end - start, rows),
                Mat::new(x, n, cols),
                Mat::new(&w, end - start, cols).t(),
                R::one(),
                R::zero(),
                Threads::All,
            );
            start = end;
        }
        Ok(y)
    }

    /// dx `[n, in]` = dy `[n, out]` · W.
    pub(crate) fn times<R: Real>(&self, dy: &[R], n: usize) -> Result<Vec<R>> {
        let (rows, cols) = self.matrix("linear backward")?;
        let mut dx = vec![R::zero(); n * cols];
        let mut start = 0;
        while start < rows {
            let end = rows.min(start + self.block_rows::<R>());
            let w = self.rows_as::<R>(start, end);
            let beta = if start == 0 { R::zero() } else { R::one() };
            matmul(
                MatMut::new(&mut dx, n, cols),
                Mat::strided(&dy[start..], n, end - start, rows),
                Mat::new(&w, end - start, cols),
                R::one(),
                beta,
                Threads::All,
            );
            start = end;
        }
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
