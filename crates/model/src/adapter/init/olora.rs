//! OLoRA: A and B are the leading rows and columns of W's QR decomposition (Büyükakyüz, arXiv 2406.01775; as PEFT's).

use loratune_engine::Tensor;

use super::{StartingPoint, residual};
use crate::error::Result;
use crate::linalg::qr_leading;

/// B = Q[:, :r], A = R[:r], and the base keeps W − s·B·A. The scaling is not taken out of A and B, as in PEFT.
pub(super) fn start(w: &Tensor, r: usize, scaling: f64) -> Result<StartingPoint> {
    let (b, a) = qr_leading(w, r)?;
    let residual = Some(residual(w, &a, &b, scaling)?);
    Ok(StartingPoint { a, b, residual })
}
