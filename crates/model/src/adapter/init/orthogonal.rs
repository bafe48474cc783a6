//! PEFT's `orthogonal`: both factors random in complementary subspaces (datta0.github.io, "rethink LoRA init").

use loratune_engine::Tensor;
use loratune_engine::rng::Key;

use super::{StartingPoint, normal};
use crate::error::Result;
use crate::linalg::qr_leading;

/// With Q orthogonal `[r, r]`, its even rows E and odd rows O `[r/2, r]`, and normal G and H:
/// Aᵀ = G·E/10 and B = H·O/10, so that B·A = H·O·Eᵀ·Gᵀ/100 = 0.
pub(super) fn start([out, input]: [usize; 2], r: usize, key: Key) -> Result<StartingPoint> {
    let (q, _) = qr_leading(&normal(key.named("Q"), &[r, r], 1.0)?, r)?;
    let half = |first: usize| q.select_rows(&(first..r).step_by(2).collect::<Vec<_>>());
    let at = normal(key.named("A"), &[input, r / 2], 1.0)?.matmul(&half(0)?, 0.1)?;
    let b = normal(key.named("B"), &[out, r / 2], 1.0)?.matmul(&half(1)?, 0.1)?;
    let from = at.slice::<f32>()?;
    let a = (0..r * input).map(|i| from[(i % input) * r + i / input]).collect();
    Ok(StartingPoint { a: Tensor::from_vec::<f32>(a, &[r, input])?, b, residual: None })
}
