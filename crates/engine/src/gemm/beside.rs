//! Products of a large bf16 matrix with a thin f32 one (activations or their gradients with an adapter's factors; also a
//! few rows of f32 with bf16 weights): the thin one becomes two bf16 numbers per element, high and low, which keeps 16 of
//! its 24 bits. They lie beside each other as twice as many columns (or rows) of one product. The large one is read once, and
//! the two sums of each element are added at the end.

use half::bf16;

use super::kernels::Kernel;
use super::pack::{Half, Matrix, split_rows};
use super::{Finish, Mat, MatMut, Operand, Term, Threads, few, tiled};
use crate::isa::{Isa, isa};
use crate::{Element, Real, pool};

/// Columns, or rows, of the thin matrix at most: above, both halves along k cost no more.
const SIDE: usize = 32;
/// Columns of a vector of the kernels that have bf16.
const LANES: usize = 16;

/// Which operand is the thin one.
#[derive(Clone, Copy, Debug)]
enum Thin<'a> {
    First(Mat<'a, f32>, Mat<'a, bf16>),
    Second(Mat<'a, bf16>, Mat<'a, f32>),
}

fn thin<'a, E: Element>(c: &MatMut<'_, E>, terms: &[Term<'a>]) -> Option<Thin<'a>> {
    let [term] = terms else { return None };
    match (term.a, term.b) {
        (Operand::Bf16(a), Operand::F32(b)) if a.is_row_major() && c.cols <= SIDE => Some(Thin::Second(a, b)),
        (Operand::F32(a), Operand::Bf16(b)) if b.is_row_major() && c.rows <= SIDE => Some(Thin::First(a, b)),
        _ => None,
    }
}

/// Whether the processor multiplies bf16, and one operand is thin and f32, the other bf16. Without tiles a thin first operand
/// is `thin`'s while its rows are few enough: packing the other would not pay.
pub(super) fn takes<E: Element>(c: &MatMut<'_, E>, terms: &[Term<'_>]) -> bool {
    isa() >= Isa::Avx512Bf16
        && terms.iter().all(|t| t.b.shape().0 > LANES)
        && match thin(c, terms) {
            Some(Thin::First(..)) => isa() == Isa::Amx || !super::thin::takes(c, terms),
            Some(Thin::Second(..)) => !few::takes(c, terms),
            None => false,
        }
}

/// [`super::sum_of_products`] where [`takes`] says so.
pub(super) fn sum_of_products<K: Kernel, E: Element>(
    mut c: MatMut<'_, E>,
    add: bool,
    terms: &[Term<'_>],
    finish: Finish<'_, E::Acc>,
    threads: Threads,
) {
    let Some(thin) = thin(&c, terms) else { unreachable!("`takes` says no") };
    let (m, n, scale) = (c.rows, c.cols, terms[0].scale);
    let both = [Half::High, Half::Low];
    // Twice the sums: those of the low half lie `low` after those of the high one.
    let (rows, cols, low) = match thin {
        Thin::First(..) => (2 * m, n, m * n),
        Thin::Second(..) => (m, (2 * n).next_multiple_of(LANES), n),
    };
    let mut sums = pool::any::<f32>(rows * cols);
    let to = MatMut::new(&mut sums, rows, cols);
    let product = |term: Term<'_>, to| {
        tiled::sum_of_products::<K, f32>(to, false, &[term], Finish::default(), threads);
    };
    match thin {
        Thin::First(a, b) => {
            let split: Vec<bf16> = split_rows(&a, &both);
            product(Term::new(Mat::new(&split, rows, a.cols), b), to);
            pool::keep(split);
        }
        Thin::Second(a, b) => {
            let split = Matrix::<bf16>::beside(b, &both, cols);
            product(Term::new(a, split.mat()), to);
            split.give_back();
        }
    }
    let scale = scale as f32;
    for i in 0..m {
        let high = &sums[i * cols..];
        let sum = |j: usize| E::Acc::of(((high[j] + high[low + j]) * scale) as f64);
        finish.row((0..n).map(sum), c.row(i), 0, add);
    }
    pool::keep(sums);
}
