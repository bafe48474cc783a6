use std::sync::Arc;

use super::RopeTable;
use crate::cuda::{CudaBuffer, Source};
use crate::error::Result;
use crate::ops::elementwise::{args, run, suffix, wide};

pub(crate) static SOURCE: Source =
    Source { name: "rope", text: include_str!("kernel.cu"), variants: &[0], hopper: false };

pub(super) fn rotate(
    x: &CudaBuffer,
    table: &Arc<RopeTable>,
    positions: &Arc<[u32]>,
    head_dim: usize,
    direction: f32,
) -> Result<CudaBuffer> {
    let (device, tokens, half) = (x.device(), positions.len(), table.half);
    let cos = device.constant("cos", table, |t| t.cos.clone())?;
    let sin = device.constant("sin", table, |t| t.sin.clone())?;
    let rows = device.constant("positions", positions, |p| p.to_vec())?;
    let y = CudaBuffer::any(device, x.dtype(), x.len())?;
    let heads = x.len() / head_dim / tokens.max(1);
    let per_head = half.div_ceil(wide(x.dtype())) + (head_dim - 2 * half).div_ceil(wide(x.dtype()));
    let args = args![
        y.pointer(),
        x.pointer(),
        cos.pointer,
        sin.pointer,
        rows.pointer,
        direction,
        tokens,
        heads,
        head_dim,
        half
    ];
    run(device, &SOURCE, &format!("rotate_{}", suffix("rope", x.dtype())?), tokens * heads * per_head, args)?;
    Ok(y)
}
