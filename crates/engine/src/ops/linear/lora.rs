//! The LoRA branch of a linear layer (Hu et al., arXiv 2106.09685; the definition is PEFT's).

use rayon::prelude::*;

use super::Dora;
use crate::error::{Result, check_shape};
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::rng::Key;
use crate::tape::{Sink, Tape};
use crate::tensor::CHUNK;
use crate::{ParamId, Real, Tensor};

/// Dropout on the input of the adapter's branch (the base branch sees the input as it is).
#[derive(Clone, Debug)]
pub enum Dropout {
    None,
    /// Each element is zeroed with this probability and the rest scaled by 1/(1-p), in training passes only. The mask
    /// is a function of the pass's key; it's drawn again in the backward and never stored.
    Random(f64),
    /// A given mask `[n, in]` of 0 and 1/(1-p), in every pass: for comparing with another implementation.
    Mask(Tensor),
}

/// A low-rank adapter of a linear layer: y += s · (drop(x) · Aᵀ) · Bᵀ, with A `[r, in]`, B `[out, r]`.
///
/// With h = drop(x)·Aᵀ `[n, r]` saved and g = s·dy·B `[n, r]`: dB = s·dyᵀ·h, dA = gᵀ·drop(x), dx += drop'(g·A).
#[derive(Clone, Debug)]
pub struct Lora {
    pub a: ParamId,
    pub b: ParamId,
    /// s: α/r, or α/√r with rsLoRA.
    pub scaling: f64,
    pub dropout: Dropout,
    /// Rescales the rows of W + s·B·A (DoRA).
    pub dora: Option<Dora>,
}

#[derive(Clone)]
enum Mask {
    None,
    Random(Key, f64),
    Given(Tensor),
}

pub(super) struct LoraSaved {
    lora: Lora,
    mask: Mask,
    h: Tensor,
}

impl Lora {
    /// Adds the branch to `y` `[n, out]`. `shape` is W's `[out, in]`.
    pub(super) fn forward<R: Real>(
        &self,
        tape: &mut Tape<'_>,
        x: &[R],
        n: usize,
        y: &mut [R],
        shape: [usize; 2],
    ) -> Result<LoraSaved> {
        let [out, cols] = shape;
        let (a, b) = (tape.params().value(self.a), tape.params().value(self.b));
        let r = a.rows();
        check_shape("lora", "A [r, in]", a.shape(), &[r, cols])?;
        check_shape("lora", "B [out, r]", b.shape(), &[out, r])?;
        let mask = match &self.dropout {
            Dropout::Random(p) if *p > 0.0 => tape.next_key().map_or(Mask::None, |key| Mask::Random(key, *p)),
            Dropout::Mask(m) => {
                check_shape("lora", "dropout mask", m.shape(), &[n, cols])?;
                Mask::Given(m.clone())
            }
            _ => Mask::None,
        };
        let dropped = mask.dropped(x);
        let mut h = vec![R::zero(); n * r];
        matmul(
            MatMut::new(&mut h, n, r),
            Mat::new(dropped.as_deref().unwrap_or(x), n, cols),
            Mat::new(a.slice::<R>()?, r, cols).t(),
            R::one(),
            R::zero(),
            Threads::All,
        );
        matmul(
            MatMut::new(y, n, out),
            Mat::new(&h, n, r),
            Mat::new(b.slice::<R>()?, out, r).t(),
            R::of(self.scaling),
            R::one(),
            Threads::All,
        );
        Ok(LoraSaved { lora: self.clone(), mask, h: Tensor::new(h, &[n, r]) })
    }
}

impl LoraSaved {
    pub(super) fn backward<R: Real>(
        self,
        x: &[R],
        dy: &[R],
        n: usize,
        dx: Option<&mut [R]>,
        grads: &mut Sink<'_>,
    ) -> Result<()> {
        let (a, b) = (grads.params.value(self.lora.a), grads.params.value(self.lora.b));
        let (r, cols, out) = (a.rows(), a.cols(), b.rows());
        let (s, one, zero) = (R::of(self.lora.scaling), R::one(), R::zero());
        let dy = || Mat::new(dy, n, out);

        let mut db = vec![zero; out * r];
        let h = self.h.slice::<R>()?;
        matmul(MatMut::new(&mut db, out, r), dy().t(), Mat::new(h, n, r), s, zero, Threads::All);

        let mut g = vec![zero; n * r];
        let b = Mat::new(b.slice::<R>()?, out, r);
        matmul(MatMut::new(&mut g, n, r), dy(), b, s, zero, Threads::All);

        let mut da = vec![zero; r * cols];
        let dropped = self.mask.dropped(x);
        let x = Mat::new(dropped.as_deref().unwrap_or(x), n, cols);
        matmul(MatMut::new(&mut da, r, cols), Mat::new(&g, n, r).t(), x, one, zero, Threads::All);

        if let Some(dx) = dx {
            let (g, a) = (Mat::new(&g, n, r), Mat::new(a.slice::<R>()?, r, cols));
            match &self.mask {
                Mask::None => matmul(MatMut::new(dx, n, cols), g, a, one, one, Threads::All),
                mask => {
                    let mut branch = vec![zero; n * cols];
                    matmul(MatMut::new(&mut branch, n, cols), g, a, one, zero, Threads::All);
                    let branch = mask.dropped(&branch).unwrap_or(branch);
                    crate::tensor::zip_mut(dx, &branch, |d, &b| *d += b);
                }
            }
        }
        grads.add_param(self.lora.a, Tensor::new(da, &[r, cols]))?;
        grads.add_param(self.lora.b, Tensor::new(db, &[out, r]))
    }
}

impl Mask {
    /// x times the mask, or `None` when there is no mask.
    fn dropped<R: Real>(&self, x: &[R]) -> Option<Vec<R>> {
        match self {
            Mask::None => None,
            Mask::Given(m) => Some(m.reals::<R>().iter().zip(x).map(|(&m, &x)| m * x).collect()),
            Mask::Random(key, p) => {
                let threshold = (p * 4_294_967_296.0) as u64;
                let scale = R::of(1.0 / (1.0 - p));
                let mut out = vec![R::zero(); x.len()];
                out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(c, (out, x))| {
                    let first = (c * CHUNK / 4) as u64;
                    for (i, (out, x)) in out.chunks_mut(4).zip(x.chunks(4)).enumerate() {
                        let words = key.words(first + i as u64);
                        for ((out, &x), &w) in out.iter_mut().zip(x).zip(&words) {
                            if (w as u64) >= threshold {
                                *out = x * scale;
                            }
                        }
                    }
                });
                Some(out)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropout_draws_every_element_by_its_own_counter() {
        let (key, p) = (Key::new(9).named("mask"), 0.3);
        let n = 2 * CHUNK + 7;
        let dropped = Mask::Random(key, p).dropped(&vec![1.0f64; n]).unwrap();
        let threshold = (p * 4_294_967_296.0) as u64;
        for (i, &x) in dropped.iter().enumerate() {
            let word = key.words((i / 4) as u64)[i % 4];
            let expected = if u64::from(word) < threshold { 0.0 } else { 1.0 / (1.0 - p) };
            assert_eq!(x, expected, "element {i}");
        }
    }
}
