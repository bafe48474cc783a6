//! Rows of the embedding or the head that are trained by themselves (PEFT's `trainable_token_indices`).

use std::collections::HashMap;
use std::sync::Arc;

use super::Lora;
use crate::error::{Error, Result};
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::{DType, FrozenWeight, ParamId, Params, Real, Tensor, Weight};

/// Trained rows that stand in the place of some rows of a frozen table W `[vocabulary, hidden]`: row `ids[k]` is row k of the
/// parameter `[ids, hidden]`. The table itself is neither copied nor changed.
#[derive(Clone, Debug)]
pub struct TrainedRows {
    param: ParamId,
    ids: Arc<[u32]>,
    /// The place of each id in `ids`.
    places: Arc<HashMap<u32, usize>>,
}

impl PartialEq for TrainedRows {
    fn eq(&self, other: &TrainedRows) -> bool {
        self.param == other.param && self.ids == other.ids
    }
}

impl TrainedRows {
    /// # Errors
    /// If there is no id, or one stands twice.
    pub fn new(ids: impl Into<Arc<[u32]>>, param: ParamId) -> Result<TrainedRows> {
        let ids = ids.into();
        let mut places = HashMap::with_capacity(ids.len());
        for (k, &id) in ids.iter().enumerate() {
            if places.insert(id, k).is_some() {
                return Err(Error::Invalid(format!("trained rows: row {id} stands twice")));
            }
        }
        if ids.is_empty() {
            return Err(Error::Invalid("trained rows: there are none".into()));
        }
        Ok(TrainedRows { param, ids, places: places.into() })
    }

    /// The rows' numbers, in the order of the parameter's rows.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    pub fn param(&self) -> ParamId {
        self.param
    }

    /// The place of a row among the trained ones.
    pub(crate) fn place(&self, id: u32) -> Option<usize> {
        self.places.get(&id).copied()
    }

    /// The rows as they are now `[ids, hidden]`, for a table `[vocabulary, hidden]`.
    pub(crate) fn values<'p, R: Real>(
        &self,
        op: &'static str,
        params: &'p Params,
        table: &Weight,
        [vocabulary, hidden]: [usize; 2],
    ) -> Result<&'p [R]> {
        if let Some(param) = table.param() {
            return Err(Error::Invalid(format!(
                "{op}: '{}' is trained whole, and rows of it by themselves too",
                params.name(param)
            )));
        }
        if let Some(&id) = self.ids.iter().find(|&&id| id as usize >= vocabulary) {
            return Err(Error::Index { op, what: "the vocabulary", index: id as usize, size: vocabulary });
        }
        let value = params.value(self.param);
        crate::error::check_shape(op, "trained rows", value.shape(), &[self.ids.len(), hidden])?;
        value.slice()
    }
}

/// What is trained on a table of tokens: the embedding or the head.
#[derive(Clone, Copy, Debug, Default)]
pub struct TableAdapter<'a> {
    pub lora: Option<&'a Lora>,
    pub rows: Option<&'a TrainedRows>,
}

impl<'a> From<&'a Lora> for TableAdapter<'a> {
    fn from(lora: &'a Lora) -> TableAdapter<'a> {
        TableAdapter { lora: Some(lora), rows: None }
    }
}

impl<'a> From<&'a TrainedRows> for TableAdapter<'a> {
    fn from(rows: &'a TrainedRows) -> TableAdapter<'a> {
        TableAdapter { lora: None, rows: Some(rows) }
    }
}

/// A head W `[vocabulary, hidden]`, some of whose rows may be trained ones: products with that W.
pub(crate) struct HeadWeight<'a, R> {
    w: &'a FrozenWeight,
    rows: Option<(&'a TrainedRows, &'a [R])>,
    /// Of the activations: beside bf16 ones, what is multiplied by a bf16 W is rounded to bf16 (x is bf16 already).
    dtype: DType,
    vocabulary: usize,
    hidden: usize,
}

impl<'a, R: Real> HeadWeight<'a, R> {
    /// `w` is what `head` holds.
    pub fn new(
        op: &'static str,
        params: &'a Params,
        head: &Weight,
        w: &'a FrozenWeight,
        rows: Option<&'a TrainedRows>,
        dtype: DType,
    ) -> Result<HeadWeight<'a, R>> {
        let (vocabulary, hidden) = w.matrix(op)?;
        let rows = match rows {
            Some(rows) => Some((rows, rows.values(op, params, head, [vocabulary, hidden])?)),
            None => None,
        };
        Ok(HeadWeight { w, rows, dtype, vocabulary, hidden })
    }

    pub fn shape(&self) -> [usize; 2] {
        [self.vocabulary, self.hidden]
    }

    /// x `[n, hidden]` · Wᵀ.
    pub fn times_transposed(&self, x: &[R], n: usize) -> Result<Vec<R>> {
        let mut y = self.w.times_transposed_in(self.dtype, x, n)?;
        if let Some((rows, values)) = self.rows {
            let k = rows.ids.len();
            let mut of_rows = vec![R::zero(); n * k];
            let (c, x) = (MatMut::new(&mut of_rows, n, k), Mat::new(x, n, self.hidden));
            matmul(c, x, Mat::new(values, k, self.hidden).t(), R::one(), R::zero(), Threads::All);
            self.set_columns(rows, &mut y, |at| of_rows[at]);
        }
        Ok(y)
    }

    /// dy `[n, vocabulary]` · W. `dy` is the same afterwards.
    pub fn times(&self, dy: &mut [R], n: usize) -> Result<Vec<R>> {
        let Some((rows, values)) = self.rows else { return self.w.times_in(self.dtype, dy, n) };
        // The frozen rows behind the trained ones take no part, whatever is in them.
        let own = self.columns(rows, dy);
        self.set_columns(rows, dy, |_| R::zero());
        let mut dx = self.w.times_in(self.dtype, dy, n)?;
        self.set_columns(rows, dy, |at| own[at]);
        let k = rows.ids.len();
        let (c, own) = (MatMut::new(&mut dx, n, self.hidden), Mat::new(&own, n, k));
        matmul(c, own, Mat::new(values, k, self.hidden), R::one(), R::one(), Threads::All);
        Ok(dx)
    }

    /// Adds dyᵀ·x to the gradient of the trained rows `[ids, hidden]`.
    pub fn add_row_gradients(&self, dy: &[R], x: &[R], drows: &mut [R]) {
        let Some((rows, _)) = self.rows else { return };
        let (own, k) = (self.columns(rows, dy), rows.ids.len());
        let n = own.len() / k;
        let (c, x) = (MatMut::new(drows, k, self.hidden), Mat::new(x, n, self.hidden));
        matmul(c, Mat::new(&own, n, k).t(), x, R::one(), R::one(), Threads::All);
    }

    /// The columns of the trained rows, `[n, ids]`.
    fn columns(&self, rows: &TrainedRows, y: &[R]) -> Vec<R> {
        let y = y.chunks_exact(self.vocabulary);
        y.flat_map(|y| rows.ids.iter().map(|&id| y[id as usize])).collect()
    }

    /// The way back: `value` gives element `[row, k]` by its place.
    fn set_columns(&self, rows: &TrainedRows, y: &mut [R], value: impl Fn(usize) -> R) {
        for (i, y) in y.chunks_exact_mut(self.vocabulary).enumerate() {
            let ids = rows.ids.iter().enumerate();
            ids.for_each(|(k, &id)| y[id as usize] = value(i * rows.ids.len() + k));
        }
    }

    /// The parameter of the trained rows and room for its gradient.
    pub fn row_gradients(&self) -> Option<(ParamId, Vec<R>)> {
        let (rows, values) = self.rows?;
        Some((rows.param, vec![R::zero(); values.len()]))
    }

    /// A gradient as a tensor.
    pub fn row_gradient_tensor(&self, drows: Vec<R>) -> Tensor {
        let n = drows.len() / self.hidden.max(1);
        Tensor::new(drows, &[n, self.hidden])
    }
}
