//! DoRA's row-wise rescaling of an adapted weight (Liu et al., arXiv 2402.09353; the definition is PEFT's).

use std::sync::Arc;

use super::Lora;
use crate::error::Result;
use crate::{ParamId, Params, Weight};

/// The magnitudes that make a [`Lora`] a DoRA: row j of W + s·B·A is scaled by mⱼ / ‖(W + s·B·A)ⱼ‖.
#[derive(Clone, Debug)]
pub struct Dora {
    /// m `[out]`.
    pub magnitude: ParamId,
    pub norm: RowNorm,
}

/// Where ‖W + s·B·A‖ by row comes from; gradients never flow through it (§4.3 of the paper).
#[derive(Clone, Debug)]
pub enum RowNorm {
    /// From the present A and B in every pass; `squares` are W's own ‖Wⱼ‖² `[out]`, which never change.
    Recomputed { squares: Arc<[f64]> },
    /// Known values `[out]`, for passes over parameters that don't change.
    Fixed(Arc<[f64]>),
}

/// ‖W + s·B·A‖ by row, `[out]`, for a linear layer's W `[out, in]`.
pub fn row_norms(_params: &Params, _weight: &Weight, _lora: &Lora) -> Result<Vec<f64>> {
    Err(crate::Error::Invalid("row norms are not there yet".into()))
}

/// The same for an embedding: its weight is the table's transpose, so these are norms of the columns of
/// E + s·(B·A)ᵀ, `[hidden]`.
pub fn column_norms(_params: &Params, _table: &Weight, _lora: &Lora) -> Result<Vec<f64>> {
    Err(crate::Error::Invalid("column norms are not there yet".into()))
}
