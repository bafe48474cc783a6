//! The LoRA branch of a linear layer (Hu et al., arXiv 2106.09685; the definition is PEFT's).

use rayon::prelude::*;

use super::{Dora, Input};
use crate::error::{Result, check_shape};
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::rng::Key;
use crate::tape::{Sink, Tape};
use crate::tensor::{CHUNK, zip_mut};
use crate::{ParamId, Params, Real, Tensor};

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
/// With h = drop(x)·Aᵀ `[n, r]` saved and dh = s·dy·B `[n, r]`: dB = s·dyᵀ·h, dA = dhᵀ·drop(x), dx += drop'(dh·A).
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

impl Lora {
    /// A and B as they are now, for a weight of shape `[out, in]`.
    pub(crate) fn factors<'p, R: Real>(
        &self,
        params: &'p Params,
        [out, cols]: [usize; 2],
    ) -> Result<Factors<'p, R>> {
        let (a, b) = (params.value(self.a), params.value(self.b));
        let r = a.rows();
        check_shape("lora", "A [r, in]", a.shape(), &[r, cols])?;
        check_shape("lora", "B [out, r]", b.shape(), &[out, r])?;
        Ok(Factors { a: a.slice()?, b: b.slice()?, r, cols, out, s: R::of(self.scaling) })
    }

    /// The mask of this pass for an input `[n, cols]`; a site of random dropout takes one key of the tape's.
    pub(crate) fn mask(&self, tape: &mut Tape<'_>, n: usize, cols: usize) -> Result<Mask> {
        Ok(match &self.dropout {
            Dropout::Random(p) if *p > 0.0 => tape.next_key().map_or(Mask::None, |key| Mask::Random(key, *p)),
            Dropout::Mask(m) => {
                check_shape("lora", "dropout mask", m.shape(), &[n, cols])?;
                Mask::Given(m.clone())
            }
            _ => Mask::None,
        })
    }
}

/// The factors of one adapter, and the four products that forward and backward are made of.
pub(crate) struct Factors<'p, R> {
    pub a: &'p [R],
    pub b: &'p [R],
    pub r: usize,
    pub cols: usize,
    pub out: usize,
    pub s: R,
}

impl<'p, R: Real> Factors<'p, R> {
    pub fn a(&self) -> Mat<'p, R> {
        Mat::new(self.a, self.r, self.cols)
    }

    pub fn b(&self) -> Mat<'p, R> {
        Mat::new(self.b, self.out, self.r)
    }

    /// h `[n, r]` = x `[n, in]` · Aᵀ.
    pub fn down(&self, x: &[R], n: usize) -> Vec<R> {
        let mut h = vec![R::zero(); n * self.r];
        let (c, x) = (MatMut::new(&mut h, n, self.r), Mat::new(x, n, self.cols));
        matmul(c, x, self.a().t(), R::one(), R::zero(), Threads::All);
        h
    }

    /// y `[n, out]` += s·h·Bᵀ.
    pub fn add_up(&self, h: &[R], n: usize, y: &mut [R]) {
        let (c, h) = (MatMut::new(y, n, self.out), Mat::new(h, n, self.r));
        matmul(c, h, self.b().t(), self.s, R::one(), Threads::All);
    }

    /// dB `[out, r]` += s·dyᵀ·h; the result is dh `[n, r]` = s·dy·B.
    pub fn up_backward(&self, dy: &[R], h: &[R], n: usize, db: &mut [R]) -> Vec<R> {
        let dy = Mat::new(dy, n, self.out);
        let c = MatMut::new(db, self.out, self.r);
        matmul(c, dy.t(), Mat::new(h, n, self.r), self.s, R::one(), Threads::All);
        let mut dh = vec![R::zero(); n * self.r];
        matmul(MatMut::new(&mut dh, n, self.r), dy, self.b(), self.s, R::zero(), Threads::All);
        dh
    }

    /// dA `[r, in]` = dhᵀ·x.
    pub fn da(&self, dh: &[R], x: &[R], n: usize) -> Tensor {
        let mut da = vec![R::zero(); self.r * self.cols];
        let (dh, x) = (Mat::new(dh, n, self.r), Mat::new(x, n, self.cols));
        matmul(MatMut::new(&mut da, self.r, self.cols), dh.t(), x, R::one(), R::zero(), Threads::All);
        Tensor::new(da, &[self.r, self.cols])
    }

    /// dx `[n, in]` += dh·A.
    pub fn add_dx(&self, dh: &[R], n: usize, dx: &mut [R]) {
        let (c, dh) = (MatMut::new(dx, n, self.cols), Mat::new(dh, n, self.r));
        matmul(c, dh, self.a(), R::one(), R::one(), Threads::All);
    }
}

pub(super) struct LoraSaved {
    pub lora: Lora,
    pub mask: Mask,
    pub h: Tensor,
}

/// y `[n, out]` = x·Wᵀ + s·(drop(x)·Aᵀ)·Bᵀ.
pub(super) fn forward<R: Real>(
    lora: &Lora,
    tape: &mut Tape<'_>,
    input: &Input<'_, R>,
) -> Result<(Vec<R>, LoraSaved)> {
    let &Input { x, n, weight, shape } = input;
    let f = lora.factors::<R>(tape.params(), shape)?;
    let mask = lora.mask(tape, n, f.cols)?;
    let mut y = weight.times_transposed(x, n)?;
    let h = f.down(mask.dropped(x).as_deref().unwrap_or(x), n);
    f.add_up(&h, n, &mut y);
    Ok((y, LoraSaved { lora: lora.clone(), mask, h: Tensor::new(h, &[n, f.r]) }))
}

impl LoraSaved {
    /// Adds dA and dB; the result is dx if it's wanted.
    pub fn backward<R: Real>(
        self,
        input: &Input<'_, R>,
        dy: &[R],
        want_dx: bool,
        grads: &mut Sink<'_>,
    ) -> Result<Option<Vec<R>>> {
        let &Input { n, weight, shape, .. } = input;
        let f = self.lora.factors::<R>(grads.params, shape)?;
        let dh = self.factor_gradients(&f, input, dy, grads)?;
        if !want_dx {
            return Ok(None);
        }
        let mut dx = weight.times(dy, n)?;
        self.mask.add_dx(&f, &dh, n, &mut dx);
        Ok(Some(dx))
    }

    /// Adds dA and dB for the gradient `dy` of the branch's output; the result is dh `[n, r]`.
    pub fn factor_gradients<R: Real>(
        &self,
        f: &Factors<'_, R>,
        &Input { x, n, .. }: &Input<'_, R>,
        dy: &[R],
        grads: &mut Sink<'_>,
    ) -> Result<Vec<R>> {
        let mut db = vec![R::zero(); f.out * f.r];
        let dh = f.up_backward(dy, self.h.slice()?, n, &mut db);
        let da = f.da(&dh, self.mask.dropped(x).as_deref().unwrap_or(x), n);
        grads.add_param(self.lora.a, da)?;
        grads.add_param(self.lora.b, Tensor::new(db, &[f.out, f.r]))?;
        Ok(dh)
    }
}

/// The dropout of one pass.
#[derive(Clone)]
pub(crate) enum Mask {
    None,
    Random(Key, f64),
    Given(Tensor),
}

impl Mask {
    pub fn is_none(&self) -> bool {
        matches!(self, Mask::None)
    }

    /// The mask of some of the rows: a given mask's own; random numbers are counted over the picked rows.
    pub fn of_rows(self, rows: &[usize]) -> Result<Mask> {
        Ok(match self {
            Mask::Given(m) => Mask::Given(m.select_rows(rows)?),
            other => other,
        })
    }

    /// dx += drop'(dh·A).
    pub fn add_dx<R: Real>(&self, f: &Factors<'_, R>, dh: &[R], n: usize, dx: &mut [R]) {
        if self.is_none() {
            return f.add_dx(dh, n, dx);
        }
        let mut branch = vec![R::zero(); dx.len()];
        f.add_dx(dh, n, &mut branch);
        let branch = self.dropped(&branch).unwrap_or(branch);
        zip_mut(dx, &branch, |d, &b| *d += b);
    }

    /// DoRA's dx = clean + drop'(scaled + dh·A − clean), with clean = dy·W and scaled = (g∘dy)·W.
    pub fn dx_of_scaled<R: Real>(
        &self,
        f: &Factors<'_, R>,
        dh: &[R],
        mut clean: Vec<R>,
        mut scaled: Vec<R>,
    ) -> Vec<R> {
        f.add_dx(dh, scaled.len() / f.cols.max(1), &mut scaled);
        zip_mut(&mut scaled, &clean, |s, &c| *s = *s - c);
        let scaled = self.dropped(&scaled).unwrap_or(scaled);
        zip_mut(&mut clean, &scaled, |c, &s| *c += s);
        clean
    }

    /// x times the mask, or `None` when there is no mask.
    pub fn dropped<R: Real>(&self, x: &[R]) -> Option<Vec<R>> {
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
