//! Products with few rows of a and a row-major b (gradients of an adapter's factors: rank by tokens times tokens by
//! features). Packing b would take longer than multiplying: its rows are read once, where they lie, and added to the sums
//! of all rows of a in f32.

use rayon::prelude::*;

use super::kernels::avx512::{self, THIN_ROWS, THIN_VECTORS};
use super::{Finish, Mat, MatMut, Operand, Term, Threads, each_type};
use crate::isa::{Isa, isa};
use crate::{Element, Real};

/// Rows of a that count as few: above, packed panels are faster.
const THIN: usize = 2 * THIN_ROWS;
/// Columns that the sums of a tile have.
const TILE: usize = THIN_VECTORS * 16;
/// Columns of c per task.
const COLUMNS: usize = 2 * TILE;
/// Rows of b that pass before the next columns: with [`COLUMNS`] of them they lie in the first-level cache.
const DEPTH: usize = 64;

/// Whether the rows are few, and every second operand has its columns side by side.
pub(super) fn takes<E: Element>(c: &MatMut<'_, E>, terms: &[Term<'_>]) -> bool {
    isa() >= Isa::Avx512
        && c.rows <= THIN
        && terms.iter().all(|t| t.b.is_row_major() && t.b.dtype() != crate::DType::F64 && t.b.shape().0 > 16)
}

/// A term's first operand times its scale as f32 `[k, groups of rows · THIN_ROWS]`, filled up with zeros.
fn first(term: &Term<'_>, width: usize) -> Vec<f32> {
    let (m, k) = term.a.shape();
    let scale = term.scale as f32;
    let mut to = vec![0f32; k * width];
    each_type!(term.a, a => {
        for (p, to) in to.chunks_exact_mut(width).enumerate() {
            for (i, to) in to[..m].iter_mut().enumerate() {
                *to = a.data[i * a.row_stride + p * a.col_stride].to_acc().f64() as f32 * scale;
            }
        }
    });
    to
}

/// [`super::sum_of_products`] where [`takes`] says so.
pub(super) fn sum_of_products<E: Element>(
    mut c: MatMut<'_, E>,
    add: bool,
    terms: &[Term<'_>],
    finish: Finish<'_, E::Acc>,
    threads: Threads,
) {
    let (m, n) = (c.rows, c.cols);
    let width = m.next_multiple_of(THIN_ROWS);
    let firsts: Vec<Vec<f32>> = terms.iter().map(|term| first(term, width)).collect();
    // By task, then by row.
    let mut sums = vec![0f32; n.div_ceil(COLUMNS) * width * COLUMNS];
    let work = |(task, sums): (usize, &mut [f32])| {
        let columns = task * COLUMNS..n.min((task + 1) * COLUMNS);
        for (term, a) in terms.iter().zip(&firsts) {
            match term.b {
                Operand::F32(b) => add_columns(b, a, width, columns.clone(), sums, avx512::thin_f32),
                Operand::Bf16(b) => add_columns(b, a, width, columns.clone(), sums, avx512::thin_bf16),
                Operand::F64(_) => unreachable!("`takes` leaves these to others"),
            }
        }
    };
    match threads {
        Threads::One => sums.chunks_mut(width * COLUMNS).enumerate().for_each(work),
        Threads::All => sums.par_chunks_mut(width * COLUMNS).enumerate().for_each(work),
    }
    for i in 0..m {
        for (task, to) in c.row(i).chunks_mut(COLUMNS).enumerate() {
            let sums = &sums[(task * width + i) * COLUMNS..][..to.len()];
            finish.row(sums.iter().map(|&x| E::Acc::of(x as f64)), to, task * COLUMNS, add);
        }
    }
}

/// A tile of the kernel: rows of b, a `[rows, THIN_ROWS]` with its stride, b and its stride, columns, sums
/// `[THIN_ROWS, COLUMNS]` and their stride.
type Tile<B> = unsafe fn(usize, *const f32, usize, *const B, usize, usize, *mut f32, usize);

/// sums `[width, COLUMNS]` += a `[k, width]`ᵀ · these columns of b.
fn add_columns<B: Element>(
    b: Mat<'_, B>,
    a: &[f32],
    width: usize,
    columns: std::ops::Range<usize>,
    sums: &mut [f32],
    tile: Tile<B>,
) {
    assert!(b.is_row_major() && columns.end <= b.cols && a.len() >= b.rows * width);
    for p in (0..b.rows).step_by(DEPTH) {
        let depth = DEPTH.min(b.rows - p);
        for first in columns.clone().step_by(TILE) {
            let cols = TILE.min(columns.end - first);
            for i in (0..width).step_by(THIN_ROWS) {
                let rows = &b.data[p * b.row_stride + first..];
                assert!(rows.len() >= (depth - 1) * b.row_stride + cols);
                let (a, to) = (&a[p * width + i..], &mut sums[i * COLUMNS + first - columns.start..]);
                assert!(to.len() > (THIN_ROWS - 1) * COLUMNS);
                // SAFETY: `takes` found the instructions; the rows of a, b and the sums lie where the assertions say, and
                // no column beyond `cols` is touched.
                unsafe {
                    tile(
                        depth,
                        a.as_ptr(),
                        width,
                        rows.as_ptr(),
                        b.row_stride,
                        cols,
                        to.as_mut_ptr(),
                        COLUMNS,
                    );
                }
            }
        }
    }
}
