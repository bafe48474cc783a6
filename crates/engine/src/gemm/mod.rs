//! Matrix products: sums of products of matrices in f64, f32 and bf16, row-major or transposed.
//!
//! Everything that multiplies goes through [`sum_of_products`]: a layer's output with its adapter's rank update is one
//! sum, and so is the gradient that reaches an input from several projections, so that no second pass over the result is
//! needed. Where the processor has AVX2 or AVX-512 the [kernels] are our own, elsewhere (and in f64) the `gemm` crate's.

// Elsewhere the `gemm` crate multiplies, and the tiles rest.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports, unused_variables))]

#[cfg(target_arch = "x86_64")]
mod beside;
pub(crate) mod block;
mod few;
mod kernels;
mod pack;
mod portable;
mod scratch;
#[cfg(target_arch = "x86_64")]
mod thin;
#[cfg(target_arch = "x86_64")]
mod thirds;
mod tiled;

use half::bf16;

use crate::isa::{Isa, isa};
use crate::profile;
use crate::{DType, Element, Real};

/// A matrix in a slice: element (i, j) is `data[i·row_stride + j·col_stride]`, and one of the strides is 1.
#[derive(Clone, Copy, Debug)]
pub struct Mat<'a, E> {
    data: &'a [E],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

/// Whether a matrix of such rows lies in so many elements; sizes that can't be counted don't.
fn is_inside(rows: usize, cols: usize, stride: usize, len: usize) -> bool {
    let end = || (rows - 1).checked_mul(stride)?.checked_add(cols);
    rows == 0 || cols == 0 || end().is_some_and(|end| end <= len)
}

impl<'a, E: Element> Mat<'a, E> {
    /// A row-major matrix `[rows, cols]` whose rows are `stride` apart.
    pub fn strided(data: &'a [E], rows: usize, cols: usize, stride: usize) -> Mat<'a, E> {
        assert!(is_inside(rows, cols, stride, data.len()), "matrix outside its data");
        Mat { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    pub fn new(data: &'a [E], rows: usize, cols: usize) -> Mat<'a, E> {
        Mat::strided(data, rows, cols, cols)
    }

    pub fn t(self) -> Mat<'a, E> {
        Mat {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// Whether the elements of a row lie side by side.
    fn is_row_major(&self) -> bool {
        self.col_stride == 1
    }

    /// A row-major copy `[rows, cols]` through `f`, its rows `stride` apart and filled up with zeros.
    fn map<T: Element>(&self, stride: usize, f: impl Fn(E) -> T + Sync) -> Vec<T> {
        use rayon::prelude::*;
        let mut copy = vec![T::default(); self.rows * stride];
        copy.par_chunks_mut(stride.max(1)).with_min_len(64).enumerate().for_each(|(i, row)| {
            for (j, to) in row[..self.cols].iter_mut().enumerate() {
                *to = f(self.data[i * self.row_stride + j * self.col_stride]);
            }
        });
        copy
    }
}

/// A row-major destination `[rows, cols]` whose rows are `stride` apart.
#[derive(Debug)]
pub struct MatMut<'a, E> {
    data: &'a mut [E],
    rows: usize,
    cols: usize,
    stride: usize,
}

impl<'a, E: Element> MatMut<'a, E> {
    pub fn strided(data: &'a mut [E], rows: usize, cols: usize, stride: usize) -> MatMut<'a, E> {
        assert!(is_inside(rows, cols, stride, data.len()), "matrix outside its data");
        assert!(rows <= 1 || stride >= cols, "rows of a destination overlap");
        MatMut { data, rows, cols, stride }
    }

    pub fn new(data: &'a mut [E], rows: usize, cols: usize) -> MatMut<'a, E> {
        MatMut::strided(data, rows, cols, cols)
    }

    fn row(&mut self, i: usize) -> &mut [E] {
        &mut self.data[i * self.stride..][..self.cols]
    }
}

/// A factor of a product, of any type.
#[derive(Clone, Copy, Debug)]
pub enum Operand<'a> {
    F64(Mat<'a, f64>),
    F32(Mat<'a, f32>),
    Bf16(Mat<'a, bf16>),
}

/// Runs a block with `$m` bound to the matrix of an [`Operand`].
macro_rules! each_type {
    ($operand:expr, $m:ident => $body:expr) => {
        match $operand {
            Operand::F64($m) => $body,
            Operand::F32($m) => $body,
            Operand::Bf16($m) => $body,
        }
    };
}
use each_type;

impl<'a> Operand<'a> {
    pub fn of<E: Element>(mat: Mat<'a, E>) -> Operand<'a> {
        E::operand(mat)
    }

    pub fn t(self) -> Operand<'a> {
        each_type!(self, m => Operand::of(m.t()))
    }

    pub fn shape(&self) -> (usize, usize) {
        each_type!(self, m => (m.rows, m.cols))
    }

    pub fn dtype(&self) -> DType {
        match self {
            Operand::F64(_) => DType::F64,
            Operand::F32(_) => DType::F32,
            Operand::Bf16(_) => DType::BF16,
        }
    }

    fn is_row_major(&self) -> bool {
        each_type!(self, m => m.is_row_major())
    }
}

/// scale · a·b, with a `[m, k]` and b `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub struct Term<'a> {
    pub a: Operand<'a>,
    pub b: Operand<'a>,
    pub scale: f64,
}

impl<'a> Term<'a> {
    pub fn new<A: Element, B: Element>(a: Mat<'a, A>, b: Mat<'a, B>) -> Term<'a> {
        Term { a: Operand::of(a), b: Operand::of(b), scale: 1.0 }
    }

    pub fn scaled(self, scale: f64) -> Term<'a> {
        Term { scale, ..self }
    }
}

/// What becomes of the sums of a row before they are rounded: column j times `scale[j]`, plus `bias[j]`.
#[derive(Clone, Copy, Debug)]
pub struct Finish<'a, R> {
    pub scale: Option<&'a [R]>,
    pub bias: Option<&'a [R]>,
}

impl<R> Default for Finish<'_, R> {
    fn default() -> Self {
        Finish { scale: None, bias: None }
    }
}

impl<R: Real> Finish<'_, R> {
    /// One row, or its part from column `first` on, into the destination: added to what is there if `add`.
    #[inline(always)]
    fn row<E: Element<Acc = R>>(&self, sums: impl Iterator<Item = R>, to: &mut [E], first: usize, add: bool) {
        match (self.scale, self.bias) {
            (None, None) if !add => to.iter_mut().zip(sums).for_each(|(to, sum)| *to = E::from_acc(sum)),
            _ => {
                for (j, (to, mut sum)) in to.iter_mut().zip(sums).enumerate() {
                    if let Some(scale) = self.scale {
                        sum *= scale[first + j];
                    }
                    if let Some(bias) = self.bias {
                        sum += bias[first + j];
                    }
                    *to = E::from_acc(if add { to.to_acc() + sum } else { sum });
                }
            }
        }
    }
}

impl<R: Real> Finish<'_, R> {
    /// [`Finish::row`] of f32 sums, as loops that vectorise.
    #[inline(always)]
    fn sums<E: Element<Acc = R>>(&self, sums: &[f32], to: &mut [E], first: usize, add: bool) {
        let n = to.len();
        let (sums, widen) = (&sums[..n], |x: f32| R::of(x as f64));
        match (self.scale, self.bias, add) {
            (None, None, false) => (0..n).for_each(|j| to[j] = E::from_acc(widen(sums[j]))),
            (None, None, true) => (0..n).for_each(|j| to[j] = E::from_acc(to[j].to_acc() + widen(sums[j]))),
            (Some(scale), None, false) => {
                let scale = &scale[first..first + n];
                (0..n).for_each(|j| to[j] = E::from_acc(widen(sums[j]) * scale[j]));
            }
            (None, Some(bias), false) => {
                let bias = &bias[first..first + n];
                (0..n).for_each(|j| to[j] = E::from_acc(widen(sums[j]) + bias[j]));
            }
            _ => self.row(sums.iter().map(|&x| widen(x)), to, first, add),
        }
    }
}

/// Whether a product uses the thread pool. The sums' order does not depend on it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Threads {
    One,
    All,
}

/// c = beta·c + alpha·a·b; with `beta` = 0 the old contents of c are not read.
pub(crate) fn matmul<R: Real>(
    mut c: MatMut<'_, R>,
    a: Mat<'_, R>,
    b: Mat<'_, R>,
    alpha: R,
    beta: R,
    threads: Threads,
) {
    if beta != R::zero() && beta != R::one() {
        (0..c.rows).for_each(|i| c.row(i).iter_mut().for_each(|c| *c *= beta));
    }
    let term = Term::new(a, b).scaled(alpha.f64());
    sum_of_products(c, beta != R::zero(), &[term], Finish::default(), threads);
}

/// c = finish(Σ scale·a·b) over the terms, plus what c holds if `add`; sums are taken in f32 (f64 for f64) and rounded once.
///
/// bf16 operands are multiplied as they are (exactly, the processor permitting in one instruction). Beside them an f32 operand
/// counts as the sum of two bf16 numbers: its last 8 bits of 24 are lost, in adapters next to bf16 activations and in a few rows
/// of f32 next to bf16 weights.
pub(crate) fn sum_of_products<E: Element>(
    c: MatMut<'_, E>,
    add: bool,
    terms: &[Term<'_>],
    finish: Finish<'_, E::Acc>,
    threads: Threads,
) {
    for t in terms {
        let ((m, k), (k2, n)) = (t.a.shape(), t.b.shape());
        assert!(m == c.rows && n == c.cols && k == k2, "shapes of a matrix product do not fit");
        if threads == Threads::All {
            let bytes = m * k * t.a.dtype().size() + k * n * t.b.dtype().size() + m * n * E::DTYPE.size();
            profile::count(2.0 * m as f64 * n as f64 * k as f64, bytes as f64);
        }
    }
    assert!(finish.scale.is_none_or(|s| s.len() >= c.cols), "a scale for every column");
    assert!(finish.bias.is_none_or(|b| b.len() >= c.cols), "a bias for every column");
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let first = match terms.first() {
        Some(first) if terms.iter().all(|t| t.b.shape().0 > 0) => first,
        _ => return portable::sum_of_products(c, add, terms, finish, threads),
    };
    // A is read along k. Where it lies the other way round, the transposed product may be had with less copying.
    if !first.a.is_row_major() && c.cols < c.rows && finish.scale.is_none() && finish.bias.is_none() {
        return transposed(c, add, terms, threads);
    }
    let has = |dtype| terms.iter().any(|t| t.a.dtype() == dtype || t.b.dtype() == dtype);
    if E::DTYPE == DType::F64 || has(DType::F64) {
        return portable::sum_of_products(c, add, terms, finish, threads);
    }
    #[cfg(target_arch = "x86_64")]
    if beside::takes(&c, terms) {
        return match isa() {
            Isa::Amx => beside::sum_of_products::<kernels::amx::Bf16, E>(c, add, terms, finish, threads),
            _ => beside::sum_of_products::<kernels::avx512::Bf16, E>(c, add, terms, finish, threads),
        };
    }
    #[cfg(target_arch = "x86_64")]
    if thin::takes(&c, terms) {
        return thin::sum_of_products(c, add, terms, finish, threads);
    }
    let bf16 = first.a.dtype() == DType::BF16 && first.b.dtype() == DType::BF16;
    match isa() {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if bf16 => tiled::sum_of_products::<kernels::amx::Bf16, E>(c, add, terms, finish, threads),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if bf16 => {
            tiled::sum_of_products::<kernels::avx512::Bf16, E>(c, add, terms, finish, threads)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if threads == Threads::All && pays_in_thirds(&c, terms) => {
            tiled::sum_of_products::<kernels::amx::F32, E>(c, add, terms, finish, threads)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 | Isa::Avx512Bf16 | Isa::Amx => {
            tiled::sum_of_products::<kernels::avx512::F32, E>(c, add, terms, finish, threads)
        }
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => tiled::sum_of_products::<kernels::avx2::F32, E>(c, add, terms, finish, threads),
        _ => portable::sum_of_products(c, add, terms, finish, threads),
    }
}

/// Whether a product of f32 is large enough for its operands to be taken apart ([`thirds`]), six products instead of one: the
/// layers of the quickstart's model, 160 wide, are slower by it, those of a 135M model, 576 wide, are not.
#[cfg(target_arch = "x86_64")]
fn pays_in_thirds<E: Element>(c: &MatMut<'_, E>, terms: &[Term<'_>]) -> bool {
    const LEAST: usize = 128;
    c.rows >= LEAST && c.cols >= LEAST && terms[0].b.shape().0 >= 4 * LEAST
}

/// A loop of the multiply-add that products of this type use, on registers alone, that returns its number of
/// floating-point operations; none where products are the `gemm` crate's.
pub(crate) fn peak(dtype: DType) -> Option<fn() -> f64> {
    match (isa(), dtype) {
        (_, DType::F64) => None,
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx, DType::BF16) => Some(tiled::peak::<kernels::amx::Bf16>),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512Bf16, DType::BF16) => Some(tiled::peak::<kernels::avx512::Bf16>),
        #[cfg(target_arch = "x86_64")]
        (Isa::Amx, _) => Some(tiled::peak::<kernels::amx::F32>),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx512 | Isa::Avx512Bf16, _) => Some(tiled::peak::<kernels::avx512::F32>),
        #[cfg(target_arch = "x86_64")]
        (Isa::Avx2, _) => Some(tiled::peak::<kernels::avx2::F32>),
        _ => None,
    }
}

/// The same by way of cᵀ = Σ scale·bᵀ·aᵀ.
fn transposed<E: Element>(mut c: MatMut<'_, E>, add: bool, terms: &[Term<'_>], threads: Threads) {
    let (m, n) = (c.rows, c.cols);
    let mut ct = vec![E::Acc::default(); m * n];
    let turned: Vec<Term<'_>> = terms.iter().map(|t| Term { a: t.b.t(), b: t.a.t(), ..*t }).collect();
    sum_of_products(MatMut::new(&mut ct, n, m), false, &turned, Finish::default(), threads);
    let finish = Finish::default();
    (0..m).for_each(|i| finish.row(ct[i..].iter().step_by(m).copied(), c.row(i), 0, add));
}

#[cfg(test)]
mod tests;
