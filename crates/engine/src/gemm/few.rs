//! Products with few rows of a (a token or some, in generation), where reading b is what takes time: no panels, each row of
//! bᵀ is read once, where it lies, and multiplied by all rows of a.

use half::bf16;
use rayon::prelude::*;

use super::pack::{Half, half_of};
use super::{Finish, Mat, MatMut, Operand, Term, Threads, each_type};
use crate::isa::{Isa, isa, vectorised};
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

/// A term's first operand times its scale, `[m, k]`.
enum First {
    F32(Vec<f32>),
    /// As bf16: the numbers themselves, or the two that stand for each of them, by row one after the other.
    Bf16 {
        rows: Vec<bf16>,
        parts: usize,
    },
}

impl First {
    fn of(term: &Term<'_>) -> First {
        let scale = term.scale as f32;
        if isa() < Isa::Avx512Bf16 || !matches!(term.b, Operand::Bf16(_)) {
            return First::F32(each_type!(term.a, a => a.map(a.cols, |x| x.to_acc().f64() as f32 * scale)));
        }
        match term.a {
            Operand::Bf16(a) if scale == 1.0 => First::Bf16 { rows: a.map(a.cols, |x| x), parts: 1 },
            a => {
                let (m, k) = a.shape();
                let own = each_type!(a, a => a.map(k, |x| x.to_acc().f64() as f32 * scale));
                let mut rows = vec![bf16::ZERO; 2 * m * k];
                for (row, to) in own.chunks_exact(k.max(1)).zip(rows.chunks_exact_mut(2 * k.max(1))) {
                    let (high, low) = to.split_at_mut(k);
                    half_of(Half::High, row, 1.0, high);
                    half_of(Half::Low, row, 1.0, low);
                }
                First::Bf16 { rows, parts: 2 }
            }
        }
    }
}

pub(super) fn sum_of_products<E: Element>(
    c: MatMut<'_, E>,
    add: bool,
    terms: &[Term<'_>],
    finish: Finish<'_, E::Acc>,
    threads: Threads,
) {
    let (m, n) = (c.rows, c.cols);
    let firsts: Vec<First> = terms.iter().map(First::of).collect();
    // By column, then by row.
    let mut sums = vec![0f32; m * n];
    let work = |(task, sums): (usize, &mut [f32])| {
        for (term, a) in terms.iter().zip(&firsts) {
            each_type!(term.b, b => add_columns(&b, a, task * COLUMNS, m, sums));
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

/// sums `[columns, m]` += each of these columns of b times each row of a.
fn add_columns<B: Element>(b: &Mat<'_, B>, a: &First, first: usize, m: usize, sums: &mut [f32]) {
    let k = b.rows;
    let column = |j: usize| &b.data[(first + j) * b.col_stride..][..k];
    match a {
        First::F32(a) => {
            for (j, sums) in sums.chunks_exact_mut(m).enumerate() {
                let (column, a) = (column(j), &a[..]);
                vectorised!([B: Element] (column: &[B], a: &[f32], sums: &mut [f32]) {
                    for (sum, a) in sums.iter_mut().zip(a.chunks_exact(column.len().max(1))) {
                        *sum += dot(a, column);
                    }
                });
            }
        }
        First::Bf16 { rows, parts } => {
            #[cfg(target_arch = "x86_64")]
            for (group, sums) in sums.chunks_mut(4 * m).enumerate() {
                let columns = sums.len() / m;
                // A last group with fewer than four columns multiplies one again.
                let four = [0, 1, 2, 3].map(|j| column(4 * group + j.min(columns - 1)));
                let four = four.map(|column| B::bf16s(column).unwrap_or_default());
                for (i, row) in rows.chunks_exact(k.max(1)).enumerate() {
                    // SAFETY: `First::of` made bf16 rows because the processor has the instructions.
                    let dots = unsafe { super::kernels::avx512::dots(row, four) };
                    for (j, dot) in dots.into_iter().take(columns).enumerate() {
                        sums[j * m + i / parts] += dot;
                    }
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = (rows, parts);
        }
    }
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
