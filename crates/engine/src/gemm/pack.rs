//! What the tiles read: a sum's terms as segments in the kernel's type, and panels of their second operand.

use std::borrow::Cow;

use half::bf16;

use super::kernels::Kernel;
#[cfg(target_arch = "x86_64")]
use super::thirds;
use super::{Mat, Operand, Term, each_type};
use crate::isa::vectorised;
use crate::{DType, Element, Real, pool};

/// a·b in the kernel's type of elements.
pub(super) struct Segment<'a, K: Kernel> {
    /// Row-major `[m, words · PAIR]`.
    a: Cow<'a, [K::Of]>,
    pub a_stride: usize,
    b: Second<'a>,
    pub words: usize,
}

/// The second operand: as it is, or a copy in parts.
enum Second<'a> {
    Given(Operand<'a>),
    Bf16(Matrix<bf16>),
}

/// A row-major matrix or its transpose, owned.
pub(super) struct Matrix<E> {
    data: Vec<E>,
    rows: usize,
    cols: usize,
    transposed: bool,
}

impl<E: Element> Matrix<E> {
    /// b `[k, n]` through each of `parts`, one after the other along k, in the orientation that b has in memory.
    fn parts(b: Mat<'_, impl Element>, parts: &[Half]) -> Matrix<E> {
        let transposed = !b.is_row_major();
        let (rows, cols, stride) = match transposed {
            false => (b.rows, b.cols, b.row_stride),
            true => (b.cols, b.rows, b.col_stride),
        };
        let mut data = pool::any::<E>(parts.len() * rows * cols);
        match transposed {
            false => {
                for (to, &part) in data.chunks_exact_mut((rows * cols).max(1)).zip(parts) {
                    halves(&[part], b.data, stride, cols, 1.0, to, cols);
                }
            }
            true => halves(parts, b.data, stride, cols, 1.0, &mut data, parts.len() * cols),
        }
        match transposed {
            false => Matrix { data, rows: parts.len() * rows, cols, transposed },
            true => Matrix { data, rows, cols: parts.len() * cols, transposed },
        }
    }

    /// b `[k, n]` through each of `parts`, side by side, and zeros up to `cols` columns, in the orientation that b has in
    /// memory.
    pub fn beside(b: Mat<'_, impl Element>, parts: &[Half], cols: usize) -> Matrix<E> {
        let (k, n, transposed) = (b.rows, b.cols, !b.is_row_major());
        let mut data = pool::any::<E>(k * cols);
        match transposed {
            false => halves(parts, b.data, b.row_stride, n, 1.0, &mut data, cols),
            true => {
                for (to, &part) in data.chunks_exact_mut((n * k).max(1)).zip(parts) {
                    halves(&[part], b.data, b.col_stride, k, 1.0, to, k);
                }
                data[parts.len() * n * k..].fill(E::default());
            }
        }
        match transposed {
            false => Matrix { data, rows: k, cols, transposed },
            true => Matrix { data, rows: cols, cols: k, transposed },
        }
    }

    pub fn give_back(self) {
        pool::keep(self.data);
    }

    pub fn mat(&self) -> Mat<'_, E> {
        let mat = Mat::new(&self.data, self.rows, self.cols);
        if self.transposed { mat.t() } else { mat }
    }
}

impl Second<'_> {
    fn operand(&self) -> Operand<'_> {
        match self {
            Second::Given(operand) => *operand,
            Second::Bf16(matrix) => Operand::of(matrix.mat()),
        }
    }
}

/// Which bf16 number stands for an f32 number.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Half {
    /// The number itself.
    Whole,
    /// The nearest bf16 number.
    High,
    /// The nearest bf16 number to what that leaves. An infinity leaves nothing, and NaN stays in the other.
    Low,
}

/// A half of each of scale · x.
pub(super) fn half_of<A: Element, E: Element>(half: Half, x: &[A], scale: f32, to: &mut [E]) {
    vectorised!([A: Element, E: Element] (half: Half, x: &[A], scale: f32, to: &mut [E]) {
        half_row(half, x, scale, to);
    });
}

#[inline(always)]
fn half_row<A: Element, E: Element>(half: Half, x: &[A], scale: f32, to: &mut [E]) {
    let of = |x: f32| E::from_acc(E::Acc::of(x as f64));
    let value = |x: &A| x.to_acc().f64() as f32 * scale;
    let high = |x: f32| bf16::from_acc(x).to_acc();
    match half {
        Half::Whole => to.iter_mut().zip(x).for_each(|(to, x)| *to = of(value(x))),
        Half::High => to.iter_mut().zip(x).for_each(|(to, x)| *to = of(high(value(x)))),
        Half::Low => to.iter_mut().zip(x).for_each(|(to, x)| {
            let x = value(x);
            let rest = x - high(x);
            *to = of(if rest.is_finite() { high(rest) } else { 0.0 });
        }),
    }
}

/// Rows of `to`, each `to_stride` long: the halves of a row of scale · x `[.., cols]`, side by side, then zeros. Many short
/// rows are one loop.
fn halves<A: Element, E: Element>(
    parts: &[Half],
    x: &[A],
    stride: usize,
    cols: usize,
    scale: f32,
    to: &mut [E],
    to_stride: usize,
) {
    use rayon::prelude::*;
    const ELEMENTS: usize = 16 << 10;
    let rows = ELEMENTS.div_ceil(to_stride.max(1));
    let block = rows * to_stride.max(1);
    let work = |(block, to): (usize, &mut [E])| {
        let x = &x[block * rows * stride..];
        vectorised!([A: Element, E: Element] (
            parts: &[Half], x: &[A], stride: usize, cols: usize, scale: f32, to: &mut [E], to_stride: usize,
        ) {
            for (i, to) in to.chunks_exact_mut(to_stride.max(1)).enumerate() {
                let x = &x[i * stride..][..cols];
                for (p, &part) in parts.iter().enumerate() {
                    half_row(part, x, scale, &mut to[p * cols..][..cols]);
                }
                to[parts.len() * cols..].fill(E::default());
            }
        });
    };
    // Waking another thread takes longer than a few blocks.
    match to.len() <= 8 * ELEMENTS {
        true => to.chunks_mut(block).enumerate().for_each(work),
        false => to.par_chunks_mut(block).enumerate().for_each(work),
    }
}

impl<'a, K: Kernel> Segment<'a, K> {
    /// The terms in the kernel's type, all along k.
    pub fn all(terms: &[Term<'a>]) -> Vec<Segment<'a, K>> {
        terms.iter().flat_map(Segment::of).collect()
    }

    fn of(&Term { a, b, scale }: &Term<'a>) -> Vec<Segment<'a, K>> {
        let scale = scale as f32;
        #[cfg(target_arch = "x86_64")]
        if K::PARTS == thirds::PARTS {
            let (a, a_stride) = thirds::first(a, scale);
            let a = K::Of::vec(bf16::buffer(a)).unwrap_or_default();
            return vec![Segment::made((Cow::Owned(a), a_stride), Second::Given(b), b.shape().0)];
        }
        if K::PAIR == 1 {
            let a = match K::Of::of_operand(a) {
                Some(m) if m.is_row_major() && scale == 1.0 => (Cow::Borrowed(m.data), m.row_stride),
                _ => rows::<K>(a, &[Half::Whole], scale),
            };
            return vec![Segment::made(a, Second::Given(b), b.shape().0)];
        }
        // Of bf16: what is not bf16 yet becomes two numbers, high and low, whose products with the other's are taken but
        // for low · low.
        let (high, low) = (Half::High, Half::Low);
        let k = b.shape().0;
        match (a, b, scale == 1.0) {
            (Operand::Bf16(a), Operand::Bf16(_), true) => {
                vec![Segment::made(whole::<K>(a), Second::Given(b), k)]
            }
            (Operand::Bf16(a), _, true) => {
                let second = |half| Second::Bf16(each_type!(b, b => Matrix::parts(b, &[half])));
                let part = |half| Segment::made(whole::<K>(a), second(half), k);
                vec![part(high), part(low)]
            }
            (_, Operand::Bf16(_), _) => {
                let part = |half| Segment::made(rows::<K>(a, &[half], scale), Second::Given(b), k);
                vec![part(high), part(low)]
            }
            _ => {
                let second = each_type!(b, b => Matrix::parts(b, &[high, low, high]));
                let a = rows::<K>(a, &[high, high, low], scale);
                vec![Segment::made(a, Second::Bf16(second), 3 * k)]
            }
        }
    }

    fn made((a, a_stride): (Cow<'a, [K::Of]>, usize), b: Second<'a>, k: usize) -> Segment<'a, K> {
        Segment { a, a_stride, b, words: k.div_ceil(K::PAIR).next_multiple_of(K::UNIT) }
    }

    /// Copies go back to where the next ones come from.
    pub fn give_back(self) {
        if let Cow::Owned(a) = self.a {
            pool::keep(a);
        }
        if let Second::Bf16(b) = self.b {
            b.give_back();
        }
    }

    /// Where the elements of row i lie, from word `word` on.
    pub fn a(&self, i: usize, word: usize) -> *const K::Of {
        self.a[i * self.a_stride + word * K::PAIR * K::PARTS..].as_ptr()
    }

    /// Packs words `[word, word + words)` of panels, columns `[first, first + cols)` for each `[first, cols]`, as
    /// `[words][vectors · LANES]` (or as [`thirds::pack`]); what lies outside b is 0. Returns for each panel how many parts are
    /// not all zeros.
    ///
    /// # Safety
    /// The processor has the kernel's instructions, `word` and `words` are multiples of [`Kernel::UNIT`], and `to` has a part of
    /// `PARTS` times as many words for each panel.
    pub unsafe fn pack(
        &self,
        word: usize,
        words: usize,
        panels: &[[usize; 2]],
        to: &mut [&mut [u32]],
    ) -> Vec<usize> {
        #[cfg(target_arch = "x86_64")]
        if K::PARTS == thirds::PARTS {
            // SAFETY: the caller's promise.
            return each_type!(self.b.operand(), b => unsafe { thirds::pack(b, word, words, panels, to) });
        }
        each_type!(self.b.operand(), b => {
            // SAFETY: the caller's promise.
            unsafe { K::within(|| if b.is_row_major() {
                // All columns of some rows before the next ones: memory is read as it lies.
                const WORDS: usize = 16;
                for at in (0..words).step_by(WORDS) {
                    let here = WORDS.min(words - at);
                    for (&[first, cols], to) in panels.iter().zip(&mut *to) {
                        let width = to.len() / words;
                        let to = &mut to[at * width..(at + here) * width];
                        pack_rows::<K, _>(&b, word + at, here, first, cols, to);
                    }
                }
            } else {
                for (&[first, cols], to) in panels.iter().zip(to) {
                    pack_columns::<K, _>(&b, word, words, first, cols, to);
                }
            }) }
        });
        vec![K::PARTS; panels.len()]
    }
}

/// A bf16 matrix that a tile can read: itself, or a copy with whole units in a row.
fn whole<'a, K: Kernel>(m: Mat<'a, bf16>) -> (Cow<'a, [K::Of]>, usize) {
    match K::Of::of_operand(Operand::Bf16(m)) {
        Some(own) if own.is_row_major() && own.cols.is_multiple_of(K::UNIT * K::PAIR) => {
            (Cow::Borrowed(own.data), own.row_stride)
        }
        _ => rows::<K>(Operand::Bf16(m), &[Half::Whole], 1.0),
    }
}

/// A row-major copy of scale · a through each of `parts`, side by side, filled up with zeros to whole units in a row.
fn rows<'a, K: Kernel>(a: Operand<'_>, parts: &[Half], scale: f32) -> (Cow<'a, [K::Of]>, usize) {
    let (m, k) = a.shape();
    let stride = (parts.len() * k).next_multiple_of(K::UNIT * K::PAIR);
    let mut copy = pool::any::<K::Of>(m * stride);
    each_type!(a, a => if a.is_row_major() {
        halves(parts, a.data, a.row_stride, k, scale, &mut copy, stride);
    } else {
        turned(&a, parts, scale, &mut copy, stride);
    });
    (Cow::Owned(copy), stride)
}

/// The rows of each of `parts` of a, one part after the other.
pub(super) fn split_rows<A: Element, E: Element>(a: &Mat<'_, A>, parts: &[Half]) -> Vec<E> {
    let (m, k) = (a.rows, a.cols);
    let mut copy = pool::any::<E>(parts.len() * m * k);
    for (&part, copy) in parts.iter().zip(copy.chunks_exact_mut((m * k).max(1))) {
        match a.is_row_major() {
            true => halves(&[part], a.data, a.row_stride, k, 1.0, copy, k),
            false => turned(a, &[part], 1.0, copy, k),
        }
    }
    copy
}

/// The same of a matrix whose columns have their elements side by side, some columns at a time.
fn turned<A: Element, Of: Element>(
    a: &Mat<'_, A>,
    parts: &[Half],
    scale: f32,
    copy: &mut [Of],
    stride: usize,
) {
    use rayon::prelude::*;
    const ROWS: usize = 16;
    const COLS: usize = 64;
    let k = a.cols;
    copy.par_chunks_mut(ROWS * stride.max(1)).enumerate().for_each(|(block, copy)| {
        let (first, rows) = (block * ROWS, copy.len() / stride.max(1));
        let mut square = [[0f32; COLS]; ROWS];
        for l in (0..k).step_by(COLS) {
            let cols = COLS.min(k - l);
            for j in 0..cols {
                let column = &a.data[(l + j) * a.col_stride + first..][..rows];
                square.iter_mut().zip(column).for_each(|(row, x)| row[j] = x.to_acc().f64() as f32);
            }
            for (row, copy) in square.iter().zip(copy.chunks_exact_mut(stride.max(1))) {
                for (p, &part) in parts.iter().enumerate() {
                    half_of(part, &row[..cols], scale, &mut copy[p * k + l..][..cols]);
                }
            }
        }
        copy.chunks_exact_mut(stride.max(1)).for_each(|row| row[parts.len() * k..].fill(Of::default()));
    });
}

/// Of b with its columns side by side: a word takes `PAIR` rows.
///
/// # Safety
/// The processor has the kernel's instructions.
#[inline(always)]
pub(super) unsafe fn pack_rows<K: Kernel, E: Element>(
    b: &Mat<'_, E>,
    word: usize,
    words: usize,
    first: usize,
    cols: usize,
    panel: &mut [u32],
) {
    let width = panel.len() / words.max(1);
    let empty: &[E] = &[];
    // Short parts of many rows: the processor doesn't see in time which ones come next.
    for p in 0..words * K::PAIR {
        let next = b.data.as_ptr().wrapping_add(((word + words) * K::PAIR + p) * b.row_stride + first);
        K::expect(next.cast(), cols * size_of::<E>());
    }
    for (p, to) in panel.chunks_exact_mut(width.max(1)).enumerate() {
        let row = |l: usize| if l < b.rows { &b.data[l * b.row_stride + first..][..cols] } else { empty };
        let l = (word + p) * K::PAIR;
        let (a, rest) = to.split_at_mut(cols.min(width));
        rest.fill(0);
        if l >= b.rows {
            a.fill(0);
            continue;
        }
        if let (Some(low), Some(high)) = (K::Of::same(row(l)), K::Of::same(row(l + 1)))
            && low.len() == a.len()
        {
            // SAFETY: the caller's promise; rows have one length, or there is no other.
            unsafe { K::interleave(low, if K::PAIR == 2 { high } else { &[] }, a) };
            continue;
        }
        if K::PAIR == 1 {
            a.iter_mut().zip(row(l)).for_each(|(to, x)| *to = bits::<E, K::Of>(*x));
        } else {
            let (low, high) = (row(l), row(l + 1));
            match high.is_empty() {
                true => a.iter_mut().zip(low).for_each(|(to, x)| *to = bits::<E, K::Of>(*x)),
                false => a.iter_mut().zip(low).zip(high).for_each(|((to, x), y)| {
                    *to = bits::<E, K::Of>(*x) | (bits::<E, K::Of>(*y) << 16);
                }),
            }
        }
    }
}

/// Of b with its rows side by side (the transpose of a row-major matrix): its words lie in memory, to be transposed.
#[inline(always)]
pub(super) fn pack_columns<K: Kernel, E: Element>(
    b: &Mat<'_, E>,
    word: usize,
    words: usize,
    first: usize,
    cols: usize,
    panel: &mut [u32],
) {
    let width = panel.len() / words.max(1);
    let k = (word * K::PAIR).min(b.rows)..((word + words) * K::PAIR).min(b.rows);
    let full = k.len() / K::PAIR;
    let mut widened = Vec::new();
    for v in 0..width / K::LANES {
        let panel = &mut panel[v * K::LANES..];
        let lanes = cols.saturating_sub(v * K::LANES).min(K::LANES);
        let column = |j: usize| &b.data[(first + v * K::LANES + j) * b.col_stride..][k.clone()];
        if lanes == K::LANES && E::DTYPE == K::Of::DTYPE {
            let source = column(0).as_ptr().cast::<u32>();
            column(lanes - 1);
            // SAFETY: the first and the last column lie inside b, so all do, and the panel has `words` rows of `width`.
            unsafe { K::transpose(full, source, b.col_stride * size_of::<E>(), panel.as_mut_ptr(), width) };
        } else if lanes == K::LANES && K::PAIR == 1 {
            widened.clear();
            (0..lanes).for_each(|j| widened.extend(column(j).iter().map(|&x| bits::<E, K::Of>(x))));
            // SAFETY: as above, for a copy with `full` words in a row.
            unsafe { K::transpose(full, widened.as_ptr(), full * 4, panel.as_mut_ptr(), width) };
        } else {
            for p in 0..full {
                for (j, to) in panel[p * width..][..K::LANES].iter_mut().enumerate() {
                    let at = |l: usize| bits::<E, K::Of>(column(j)[l]);
                    *to = match (j < lanes, K::PAIR) {
                        (false, _) => 0,
                        (true, 1) => at(p),
                        (true, _) => at(2 * p) | (at(2 * p + 1) << 16),
                    };
                }
            }
        }
        // A last word with one element of the pair, or with none.
        for p in full..words {
            for (j, to) in panel[p * width..][..K::LANES].iter_mut().enumerate() {
                let left = if j < lanes { column(j).get(p * K::PAIR) } else { None };
                *to = left.map_or(0, |&x| bits::<E, K::Of>(x));
            }
        }
    }
}

/// An element as the kernel's type, in the low bits.
#[inline(always)]
pub(super) fn bits<E: Element, Of: Element>(x: E) -> u32 {
    match Of::DTYPE {
        DType::BF16 => u32::from(x.to_bf16_bits()),
        _ => (x.to_acc().f64() as f32).to_bits(),
    }
}
