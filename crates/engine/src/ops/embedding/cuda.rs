use std::sync::Arc;

use crate::DType;
use crate::cuda::{CudaBuffer, Source};
use crate::error::{Error, Result};
use crate::ops::TableAdapter;
use crate::ops::elementwise::{args, suffix};

pub(crate) static SOURCE: Source =
    Source { name: "embedding", text: include_str!("kernel.cu"), variants: &[0], hopper: false };

/// # Errors
/// If something is trained on the table that only the CPU trains.
pub(super) fn check(adapter: TableAdapter<'_>) -> Result<()> {
    let what = match (adapter.lora, adapter.rows) {
        (None, None) => return Ok(()),
        (Some(_), _) => "an adapter on the embedding",
        (None, Some(_)) => "trained rows of the embedding",
    };
    Err(Error::Unsupported { op: "embedding", what: what.into(), on: "CUDA" })
}

pub(super) fn forward(
    table: &CudaBuffer,
    ids: &Arc<[u32]>,
    [vocabulary, d]: [usize; 2],
    scale: f64,
    dtype: DType,
) -> Result<CudaBuffer> {
    if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
        return Err(Error::Index {
            op: "embedding",
            what: "the vocabulary",
            index: id as usize,
            size: vocabulary,
        });
    }
    let device = table.device();
    let there = device.constant("ids", ids, |ids| ids.to_vec())?;
    let y = CudaBuffer::any(device, dtype, ids.len() * d)?;
    let name = format!("forward_{}_{}", suffix("embedding", dtype)?, suffix("embedding", table.dtype())?);
    let args = args![y.pointer(), table.pointer(), there.pointer, scale as f32, ids.len(), d];
    device.launch((&SOURCE, 0), &name, [ids.len(), 1, 1], 256, 0, args)?;
    Ok(y)
}

/// The gradient of the table.
pub(super) fn backward(
    dy: &CudaBuffer,
    ids: &Arc<[u32]>,
    [vocabulary, d]: [usize; 2],
    scale: f64,
    padding: Option<u32>,
) -> Result<CudaBuffer> {
    let device = dy.device();
    let there = device.constant("ids", ids, |ids| ids.to_vec())?;
    let table = CudaBuffer::zeros(device, DType::F32, vocabulary * d)?;
    let name = format!("backward_{}", suffix("embedding", dy.dtype())?);
    let padding = padding.map_or(u64::MAX, u64::from);
    let args = args![table.pointer(), dy.pointer(), there.pointer, scale as f32, padding, ids.len(), d];
    device.launch((&SOURCE, 0), &name, [ids.len(), 1, 1], 256, 0, args)?;
    Ok(table)
}
