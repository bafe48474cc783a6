use super::{AdamW, Constants};
use crate::cuda::{CudaDevice, Pod, Source};
use crate::error::{Error, Result};
use crate::ops::elementwise::{PIECE, args};
use crate::{DType, Tensor};
use std::sync::Arc;

pub(crate) static SOURCE: Source =
    Source { name: "adamw", text: include_str!("kernel.cu"), variants: &[0], hopper: false };

/// The kernel's `Piece`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct Piece {
    p: u64,
    m: u64,
    v: u64,
    g: u64,
    n: u64,
    constants: [f32; 8],
}

impl Pod for Piece {}

/// Adds one tensor's pieces.
pub(super) fn collect(
    pieces: &mut Vec<Piece>,
    [p, m, v]: [&mut Tensor; 3],
    g: &Tensor,
    grad_scale: f64,
    step: u64,
    o: &AdamW,
) -> Result<Arc<CudaDevice>> {
    let c = Constants::<f32>::new(grad_scale, step, o);
    let constants = [c.scale, c.decay, c.step_size, c.b2, c.c1, c.c2, c.bias2, c.eps];
    let elsewhere =
        || Error::Invalid("adamw: parameter, moments and gradient are on different devices".into());
    let mut device = None;
    let mut place = |t: &mut Tensor| -> Result<u64> {
        let b = t.cuda_mut()?.ok_or_else(elsewhere)?;
        if b.dtype() != DType::F32 {
            return Err(Error::DType { op: "adamw", what: "tensor", expected: DType::F32, got: b.dtype() });
        }
        device = Some(b.device().clone());
        Ok(b.pointer_mut())
    };
    let (p, m, v, n) = (place(p)?, place(m)?, place(v)?, g.numel());
    let device = device.ok_or_else(elsewhere)?;
    let g = crate::ops::elementwise::on("adamw", "gradient", g, &device, DType::F32)?.pointer();
    for first in (0..n).step_by(PIECE) {
        let at = 4 * first as u64;
        let n = PIECE.min(n - first) as u64;
        pieces.push(Piece { p: p + at, m: m + at, v: v + at, g: g + at, n, constants });
    }
    Ok(device)
}

pub(super) fn run(device: &Arc<CudaDevice>, pieces: &[Piece]) -> Result<()> {
    let there = device.uploaded(pieces)?;
    device.launch((&SOURCE, 0), "adamw", [pieces.len(), 1, 1], 512, 0, args![there.pointer])
}
