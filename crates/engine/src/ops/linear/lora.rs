//! The LoRA branch of a linear layer (Hu et al., arXiv 2106.09685; the definition is PEFT's).

use rayon::prelude::*;

use super::{Dora, Input};
use crate::error::{Result, check_shape};
use crate::gemm::{Finish, Mat, MatMut, Term, Threads, sum_of_products};
use crate::pool;
use crate::rng::Key;
use crate::tape::{Mode, Sink, Source, Tape};
use crate::tensor::{CHUNK, zip_mut};
use crate::{Element, ParamId, Params, Real, Tensor};

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

    /// Whether this pass has a mask.
    pub(crate) fn is_dropped(&self, tape: &Tape<'_>) -> bool {
        match self.dropout {
            Dropout::None => false,
            Dropout::Random(p) => p > 0.0 && matches!(tape.mode(), Mode::Train(_)),
            Dropout::Mask(_) => true,
        }
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
    pub fn down<E: Element<Acc = R>>(&self, x: &[E], n: usize) -> Vec<R> {
        let mut h = pool::any::<R>(n * self.r);
        let term = Term::new(Mat::new(x, n, self.cols), self.a().t());
        sum_of_products(MatMut::new(&mut h, n, self.r), false, &[term], Finish::default(), Threads::All);
        h
    }

    /// s·h·Bᵀ `[n, out]`, to be added to x·Wᵀ.
    pub fn up<'a>(&self, h: &'a [R], n: usize) -> Term<'a>
    where
        'p: 'a,
    {
        Term::new(Mat::new(h, n, self.r), self.b().t()).scaled(self.s.f64())
    }

    /// y `[n, out]` += s·h·Bᵀ.
    pub fn add_up(&self, h: &[R], n: usize, y: &mut [R]) {
        let c = MatMut::new(y, n, self.out);
        sum_of_products(c, true, &[self.up(h, n)], Finish::default(), Threads::All);
    }

    /// dB `[out, r]` += s·dyᵀ·h; the result is dh `[n, r]` = s·dy·B.
    pub fn up_backward<E: Element<Acc = R>>(&self, dy: &[E], h: &[R], n: usize, db: &mut [R]) -> Vec<R> {
        let (dy, s) = (Mat::new(dy, n, self.out), self.s.f64());
        let term = Term::new(dy.t(), Mat::new(h, n, self.r)).scaled(s);
        let c = MatMut::new(db, self.out, self.r);
        sum_of_products(c, true, &[term], Finish::default(), Threads::All);
        let mut dh = pool::any::<R>(n * self.r);
        let c = MatMut::new(&mut dh, n, self.r);
        let term = Term::new(dy, self.b());
        sum_of_products(
            c,
            false,
            &[term],
            Finish { scale: Some(&vec![self.s; self.r]), bias: None },
            Threads::All,
        );
        dh
    }

    /// dA `[r, in]` = dhᵀ·x.
    pub fn da<E: Element<Acc = R>>(&self, dh: &[R], x: &[E], n: usize) -> Tensor {
        let mut da = pool::any::<R>(self.r * self.cols);
        let term = Term::new(Mat::new(dh, n, self.r).t(), Mat::new(x, n, self.cols));
        let c = MatMut::new(&mut da, self.r, self.cols);
        sum_of_products(c, false, &[term], Finish::default(), Threads::All);
        Tensor::new(da, &[self.r, self.cols])
    }

    /// dh·A `[n, in]`, to be added to dy·W.
    pub fn down_backward<'a>(&self, dh: &'a [R], n: usize) -> Term<'a>
    where
        'p: 'a,
    {
        Term::new(Mat::new(dh, n, self.r), self.a())
    }

    /// dx `[n, in]` += dh·A.
    pub fn add_dx(&self, dh: &[R], n: usize, dx: &mut [R]) {
        let c = MatMut::new(dx, n, self.cols);
        sum_of_products(c, true, &[self.down_backward(dh, n)], Finish::default(), Threads::All);
    }
}

pub(super) struct LoraSaved {
    pub lora: Lora,
    pub mask: Mask,
    pub h: Tensor,
}

/// y `[n, out]` = x·Wᵀ + s·(drop(x)·Aᵀ)·Bᵀ + bias, in one sum that is rounded once; of no particular value if nobody reads it.
pub(super) fn forward<E: Element>(
    lora: &Lora,
    tape: &mut Tape<'_>,
    input: &Input<'_, E>,
    bias: Option<&[E::Acc]>,
    is_read: bool,
) -> Result<(Tensor, LoraSaved)> {
    let &Input { x, n, weight, shape } = input;
    let f = lora.factors::<E::Acc>(tape.params(), shape)?;
    let mask = lora.mask(tape, n, f.cols)?;
    let h = f.down(mask.dropped(x).as_deref().unwrap_or(x), n);
    let y = match is_read {
        true => weight.sum_with::<E>(x, n, Some(f.up(&h, n)), Finish { scale: None, bias })?,
        false => pool::any::<E>(n * f.out),
    };
    let saved = LoraSaved { lora: lora.clone(), mask, h: Tensor::new(h, &[n, f.r]) };
    Ok((Tensor::new(y, &[n, f.out]), saved))
}

impl LoraSaved {
    /// Adds dA, dB, and dx if it's wanted.
    pub fn backward<E: Element>(
        self,
        input: &Input<'_, E>,
        dy: &[E],
        x: Source,
        grads: &mut Sink<'_>,
    ) -> Result<()> {
        let &Input { n, weight, shape, .. } = input;
        let f = self.lora.factors::<E::Acc>(grads.params, shape)?;
        let dh = self.factor_gradients(&f, input, dy, grads)?;
        if !x.needs_grad() {
            return Ok(());
        }
        match self.mask.is_none() {
            true => {
                grads.add_products::<E>(x, [n, f.cols], &[weight.gradient(dy, n)?, f.down_backward(&dh, n)])
            }
            false => {
                let mut dx = weight.times_of::<E, E::Acc>(dy, n)?;
                self.mask.add_dx(&f, &dh, n, &mut dx);
                grads.add(x, Tensor::from_reals(dx, &[n, f.cols], E::DTYPE))
            }
        }
    }

    /// Adds dA and dB for the gradient `dy` of the branch's output; the result is dh `[n, r]`.
    pub fn factor_gradients<E: Element>(
        &self,
        f: &Factors<'_, E::Acc>,
        &Input { x, n, .. }: &Input<'_, E>,
        dy: &[E],
        grads: &mut Sink<'_>,
    ) -> Result<Vec<E::Acc>> {
        let mut db = vec![E::Acc::of(0.0); f.out * f.r];
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
    pub fn dropped<E: Element>(&self, x: &[E]) -> Option<Vec<E>> {
        match self {
            Mask::None => None,
            Mask::Given(m) => {
                let m = m.reals::<E::Acc>();
                Some(m.iter().zip(x).map(|(&m, x)| E::from_acc(m * x.to_acc())).collect())
            }
            Mask::Random(key, p) => {
                let threshold = (p * 4_294_967_296.0) as u64;
                let scale = E::Acc::of(1.0 / (1.0 - p));
                let mut out = pool::zeros::<E>(x.len());
                out.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).enumerate().for_each(|(c, (out, x))| {
                    let first = (c * CHUNK / 4) as u64;
                    for (i, (out, x)) in out.chunks_mut(4).zip(x.chunks(4)).enumerate() {
                        let words = key.words(first + i as u64);
                        for ((out, x), &w) in out.iter_mut().zip(x).zip(&words) {
                            if (w as u64) >= threshold {
                                *out = E::from_acc(x.to_acc() * scale);
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
