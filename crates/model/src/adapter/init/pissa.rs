//! PiSSA: A and B hold W's principal part, the base keeps the rest (Meng et al., arXiv 2404.02948; scaling as PEFT's).

use loratune_engine::Tensor;
use loratune_engine::rng::Key;

use super::{StartingPoint, residual};
use crate::error::Result;
use crate::linalg::{Svd, svd, svd_lowrank};

/// By the exact decomposition.
pub(super) fn exact(w: &Tensor, r: usize, scaling: f64) -> Result<StartingPoint> {
    from_svd(w, svd(w, r)?, scaling)
}

/// By a randomised decomposition with `iterations` power iterations.
pub(super) fn fast(w: &Tensor, r: usize, scaling: f64, iterations: usize, key: Key) -> Result<StartingPoint> {
    from_svd(w, svd_lowrank(w, r, iterations, key)?, scaling)
}

/// A = √(Σ/s)·Vᵀ and B = U·√(Σ/s), so that s·B·A is the principal part U·Σ·Vᵀ whatever α is.
fn from_svd(w: &Tensor, svd: Svd, scaling: f64) -> Result<StartingPoint> {
    let roots: Vec<f32> = svd.s.iter().map(|&s| (f64::from(s) / scaling).sqrt() as f32).collect();
    let (mut a, mut b) = (svd.vt, svd.u);
    let (r, cols) = (roots.len(), a.cols());
    for (row, root) in a.slice_mut::<f32>()?.chunks_exact_mut(cols).zip(&roots) {
        row.iter_mut().for_each(|x| *x *= root);
    }
    for row in b.slice_mut::<f32>()?.chunks_exact_mut(r) {
        row.iter_mut().zip(&roots).for_each(|(x, root)| *x *= root);
    }
    let residual = Some(residual(w, &a, &b, scaling)?);
    Ok(StartingPoint { a, b, residual })
}
