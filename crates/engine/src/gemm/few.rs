//! Products with few rows of a (a token or some, in generation), where reading b is what takes time: no panels, each row of
//! bᵀ is read once, where it lies, and multiplied by all rows of a.

use rayon::prelude::*;

use super::{Finish, MatMut, Operand, Term, Threads, each_type};
use crate::isa::vectorised;
use crate::{Element, Real};

/// Rows of a that count as few: above, packed panels are faster.
const FEW: usize = 12;
/// Columns of c per task: 64 rows of bᵀ of 4,096 elements are half a megabyte.
const COLUMNS: usize = 64;
/// Partial sums by lane, so that the compiler vectorises; their order is fixed.
const LANES: usize = 32;

/// Whether every second operand has its k side by side and the rows are few.
pub(super) fn takes<E: Element>(c: &MatMut<'_, E>, terms: &[Term<'_>]) -> bool {
    c.rows <= FEW && terms.iter().all(|t| !t.b.is_row_major() || t.b.shape().0 == 1)
}

pub(super) fn sum_of_products<E: Element>(
    c: MatMut<'_, E>,
    add: bool,
    terms: &[Term<'_>],
    finish: Finish<'_, E::Acc>,
    threads: Threads,
) {
    let (m, n) = (c.rows, c.cols);
    let firsts: Vec<Vec<f32>> = terms
        .iter()
        .map(|t| each_type!(t.a, a => a.map(a.cols, |x| (x.to_acc().f64() * t.scale) as f32)))
        .collect();
    // By column, then by row.
    let mut sums = vec![0f32; m * n];
    let work = |(task, sums): (usize, &mut [f32])| {
        for (term, a) in terms.iter().zip(&firsts) {
            for (j, sums) in sums.chunks_exact_mut(m).enumerate() {
                add_dots(term, a, task * COLUMNS + j, sums);
            }
        }
    };
    match threads {
        Threads::One => sums.chunks_mut(COLUMNS * m).enumerate().for_each(work),
        Threads::All => sums.par_chunks_mut(COLUMNS * m).enumerate().for_each(work),
    }
    let mut c = c;
    let widened = |i: usize| sums[i..].iter().step_by(m).map(|&x| E::Acc::of(x as f64));
    (0..m).for_each(|i| finish.row(widened(i), c.row(i), 0, add));
}

/// sums `[m]` += column j of b times each row of a.
fn add_dots(term: &Term<'_>, a: &[f32], j: usize, sums: &mut [f32]) {
    each_type!(term.b, b => {
        let k = b.rows;
        let column = &b.data[j * b.col_stride..][..k];
        vectorised(|| {
            for (sum, a) in sums.iter_mut().zip(a.chunks_exact(k.max(1))) {
                *sum += dot(a, column);
            }
        });
    });
}

#[inline(always)]
fn dot<E: Element>(a: &[f32], b: &[E]) -> f32 {
    let mut lanes = [0f32; LANES];
    let (a_parts, b_parts) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest = a_parts.remainder().iter().zip(b_parts.remainder());
    let rest: f32 = rest.map(|(a, b)| a * b.to_acc().f64() as f32).sum();
    for (a, b) in a_parts.zip(b_parts) {
        for l in 0..LANES {
            lanes[l] += a[l] * b[l].to_acc().f64() as f32;
        }
    }
    lanes.iter().sum::<f32>() + rest
}
