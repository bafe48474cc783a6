//! Products by the `gemm` crate: in f64 everywhere, in f32 where no kernel of ours runs (it has NEON).

use std::borrow::Cow;

use super::{Finish, Mat, MatMut, Operand, Term, Threads, each_type};
use crate::{DType, Element, Real};

/// Rows of b that are widened at a time: few enough that the block stays in cache, enough that the product runs at full
/// speed.
const BLOCK: usize = 512;

pub(super) fn sum_of_products<E: Element>(
    mut c: MatMut<'_, E>,
    add: bool,
    terms: &[Term<'_>],
    finish: Finish<'_, E::Acc>,
    threads: Threads,
) {
    let mut sums = vec![E::Acc::default(); c.rows * c.cols];
    for term in terms {
        add_product(&mut sums, c.cols, term, threads);
    }
    let cols = c.cols;
    (0..c.rows).for_each(|i| finish.row(sums[i * cols..][..cols].iter().copied(), c.row(i), 0, add));
}

/// sums `[m, n]` += scale·a·b, b in blocks of the rows that it has in memory.
fn add_product<R: Real>(sums: &mut [R], n: usize, term: &Term<'_>, threads: Threads) {
    let a = widened::<R>(&term.a);
    let ((m, k), scale) = (term.a.shape(), R::of(term.scale));
    each_type!(term.b, b => {
        let by_k = b.is_row_major();
        let (rows, cols) = if by_k { (k, n) } else { (n, k) };
        let stride = if by_k { b.row_stride } else { b.col_stride };
        let block = if R::DTYPE == operand_dtype(&b) { rows.max(1) } else { BLOCK };
        for first in (0..rows).step_by(block) {
            let size = block.min(rows - first);
            let part = Mat::strided(&b.data[first * stride..], size, cols, stride);
            let part = widened::<R>(&Operand::of(part));
            let part = Mat::new(&part, size, cols);
            if by_k {
                let a = Mat::strided(a.get(first..).unwrap_or_default(), m, size, k);
                product(&mut sums[..], n, a, part, scale, threads);
            } else {
                product(&mut sums[first..], n, Mat::new(&a, m, k), part.t(), scale, threads);
            }
        }
    });
}

fn operand_dtype<E: Element>(_: &Mat<'_, E>) -> DType {
    E::DTYPE
}

/// A row-major copy in the type of the arithmetic, or the elements themselves if they are one.
fn widened<'a, R: Real>(operand: &Operand<'a>) -> Cow<'a, [R]> {
    match R::of_operand(*operand) {
        Some(m) if m.is_row_major() && m.row_stride == m.cols => Cow::Borrowed(&m.data[..m.rows * m.cols]),
        _ => Cow::Owned(each_type!(*operand, m => m.map(m.cols, |x| R::of(x.to_acc().f64())))),
    }
}

/// c `[a.rows, b.cols]` with rows `stride` apart += scale·a·b.
fn product<R: Real>(c: &mut [R], stride: usize, a: Mat<'_, R>, b: Mat<'_, R>, scale: R, threads: Threads) {
    let c = MatMut::strided(c, a.rows, b.cols, stride);
    let parallelism = match threads {
        Threads::All if rayon::current_num_threads() > 1 => {
            gemm::Parallelism::Rayon(rayon::current_num_threads())
        }
        _ => gemm::Parallelism::None,
    };
    // SAFETY: `Mat` and `MatMut` are only made with every element in bounds of their slices, a's columns are b's rows, the
    // destination is borrowed mutably and its rows do not overlap.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.data.as_mut_ptr(),
            1,
            c.stride as isize,
            true,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            R::one(),
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}
