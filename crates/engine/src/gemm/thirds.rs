//! f32 operands as three bf16 numbers each, for tiles of bf16: x = high + middle + low exactly, so that six products of the
//! parts are as good as one of f32 (Henry, Tang and Heinecke 2019, arXiv:1904.06376). A number that is bf16 by itself, as
//! most frozen weights are that come from a file, has only a high part.
//! The edges of f32's range are lost: what an infinity is multiplied by may make it NaN, numbers above 3.396e38 become one, and
//! the tiles take subnormal numbers, parts included, for zeros.
//!
//! In both operands the parts of a unit of k (32 elements) lie one after the other.

use std::arch::x86_64::*;

use half::bf16;
use rayon::prelude::*;

use super::{Mat, Operand, each_type};
use crate::{DType, Element, Real, pool};

pub(super) const PARTS: usize = 3;
/// Elements of k in a unit, and words of a panel.
const UNIT: usize = 32;
const WORDS: usize = 16;
const LANES: usize = 16;

/// The parts of scale · a `[m, k]` as rows of units, and their distance: k filled up with zeros.
pub(super) fn first(a: Operand<'_>, scale: f32) -> (Vec<bf16>, usize) {
    each_type!(a, a => first_of(a, scale))
}

fn first_of<A: Element>(a: Mat<'_, A>, scale: f32) -> (Vec<bf16>, usize) {
    let stride = PARTS * a.cols.next_multiple_of(UNIT);
    let mut copy = pool::any::<bf16>(a.rows * stride);
    copy.par_chunks_mut(LANES * stride.max(1)).enumerate().for_each(|(block, copy)| {
        // SAFETY: whoever multiplies by tiles found the instructions.
        unsafe { some_rows(&a, block * LANES, scale, copy, stride) }
    });
    (copy, stride)
}

/// Up to 16 rows of the parts, from row `first` of a on.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn some_rows<A: Element>(a: &Mat<'_, A>, first: usize, scale: f32, copy: &mut [bf16], stride: usize) {
    let rows = copy.len() / stride.max(1);
    let scale = _mm512_set1_ps(scale);
    for l in (0..a.cols).step_by(UNIT) {
        let low = square(a, first, rows, l);
        let high = square(a, first, rows, l + LANES);
        for (i, copy) in copy.chunks_exact_mut(stride.max(1)).enumerate() {
            let low = _mm512_mul_ps(_mm512_castsi512_ps(low[i]), scale);
            let high = _mm512_mul_ps(_mm512_castsi512_ps(high[i]), scale);
            let to = &mut copy[PARTS * l..][..PARTS * UNIT];
            for (to, part) in to.chunks_exact_mut(UNIT).zip(split(low, high)) {
                // SAFETY: 32 places.
                unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), part) };
            }
        }
    }
}

/// Columns `[l, l + 16)` of up to 16 rows of a, as f32, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn square<A: Element>(a: &Mat<'_, A>, first: usize, rows: usize, l: usize) -> [__m512i; LANES] {
    let here = LANES.min(a.cols.saturating_sub(l));
    let mut square = [_mm512_setzero_si512(); LANES];
    if here == 0 {
        return square;
    }
    if a.is_row_major() {
        for i in 0..rows {
            square[i] = _mm512_castps_si512(load(&a.data[(first + i) * a.row_stride + l..][..here]));
        }
        return square;
    }
    for j in 0..here {
        square[j] = _mm512_castps_si512(load(&a.data[(l + j) * a.col_stride + first..][..rows]));
    }
    super::kernels::avx512::transposed(square)
}

/// The three parts of 32 numbers. What a part leaves of an infinity, or of NaN, counts as nothing.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn split(mut low: __m512, mut high: __m512) -> [__m512i; PARTS] {
    let widened = |half| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)));
    let less = |x: __m512, part: __m512| {
        let rest = _mm512_sub_ps(x, part);
        let finite = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(rest), _mm512_set1_ps(f32::INFINITY));
        _mm512_maskz_mov_ps(finite, rest)
    };
    let mut parts = [_mm512_setzero_si512(); PARTS];
    for (p, part) in parts.iter_mut().enumerate() {
        // SAFETY: a vector of bf16 numbers has the same bits as one of integers.
        *part = unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) };
        if p + 1 < PARTS {
            low = less(low, widened(_mm512_castsi512_si256(*part)));
            high = less(high, widened(_mm512_extracti64x4_epi64::<1>(*part)));
        }
    }
    parts
}

/// Up to 16 elements as f32, and zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn load<E: Element>(from: &[E]) -> __m512 {
    let mask = (0xffff_u32 >> (LANES - from.len().min(LANES))) as __mmask16;
    if E::DTYPE == DType::F32 {
        // SAFETY: the elements are f32, and the mask leaves out what lies behind them.
        return unsafe { _mm512_maskz_loadu_ps(mask, from.as_ptr().cast()) };
    }
    let mut values = [0f32; LANES];
    values.iter_mut().zip(from).for_each(|(to, x)| *to = x.to_acc().f64() as f32);
    // SAFETY: 16 numbers.
    unsafe { _mm512_loadu_ps(values.as_ptr()) }
}

/// Packs words `[word, word + words)` of panels, columns `[first, first + cols)` for each `[first, cols]`: of each unit of 16
/// words its parts `[PARTS][16][vectors · LANES]`. Returns for each panel how many parts are not all zeros: 1 or all.
///
/// # Safety
/// The processor has AVX-512 with bf16; `word` and `words` are multiples of 16, and `to` has a part of `PARTS` times as many
/// words for each panel.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn pack<E: Element>(
    b: Mat<'_, E>,
    word: usize,
    words: usize,
    panels: &[[usize; 2]],
    to: &mut [&mut [u32]],
) -> Vec<usize> {
    let mut rests = vec![_mm512_setzero_si512(); panels.len()];
    let mut unit = |at: usize, panel: usize, to: &mut [u32]| {
        let [first, cols] = panels[panel];
        let width = to.len() / (PARTS * words);
        let to = &mut to[PARTS * at * width..][..PARTS * WORDS * width];
        for v in 0..width / LANES {
            let lanes = cols.saturating_sub(v * LANES).min(LANES);
            let from = Unit { l: (word + at) * 2, column: first + v * LANES, lanes };
            let to = Places { to: &mut to[v * LANES..], width };
            let rest = if b.is_row_major() { from.of_rows(&b, to) } else { from.of_columns(&b, to) };
            rests[panel] = _mm512_or_si512(rests[panel], rest);
        }
    };
    // Memory is read as it lies: all columns of some rows, or some columns from end to end.
    if b.is_row_major() {
        for at in (0..words).step_by(WORDS) {
            for (panel, to) in to.iter_mut().enumerate() {
                unit(at, panel, to);
            }
        }
    } else {
        for (panel, to) in to.iter_mut().enumerate() {
            for at in (0..words).step_by(WORDS) {
                unit(at, panel, to);
            }
        }
    }
    let mut parts = vec![PARTS; panels.len()];
    for (parts, &rest) in parts.iter_mut().zip(&rests) {
        if _mm512_test_epi32_mask(rest, rest) == 0 {
            *parts = 1;
        }
    }
    parts
}

/// Where the words of a unit of a vector of columns go: those of a part lie `width` apart.
struct Places<'a> {
    to: &'a mut [u32],
    width: usize,
}

impl Places<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn put(&mut self, part: usize, word: usize, vector: __m512i) {
        let to = &mut self.to[(part * WORDS + word) * self.width..][..LANES];
        // SAFETY: 16 words.
        unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), vector) }
    }
}

/// Rows `[l, l + 32)` of b of up to 16 columns.
struct Unit {
    l: usize,
    column: usize,
    lanes: usize,
}

impl Unit {
    /// Of b whose columns lie side by side: a word takes an element from each of two rows. Returns the bits that parts but the
    /// first have anywhere.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn of_rows<E: Element>(&self, b: &Mat<'_, E>, mut to: Places<'_>) -> __m512i {
        let pairs = _mm512_set_epi16(
            31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3,
            18, 2, 17, 1, 16, 0,
        );
        // Short parts of many rows: the processor doesn't see in time which ones come next.
        for p in 0..UNIT {
            let next = (self.l + UNIT + p) * b.row_stride + self.column;
            _mm_prefetch::<_MM_HINT_T0>(b.data.as_ptr().wrapping_add(next).cast::<i8>());
        }
        let mut rest = _mm512_setzero_si512();
        for w in 0..WORDS {
            let mut pair = [_mm512_setzero_ps(); 2];
            for i in 0..2 {
                let l = self.l + 2 * w + i;
                if l < b.rows && self.lanes > 0 {
                    pair[i] = load(&b.data[l * b.row_stride + self.column..][..self.lanes]);
                }
            }
            let parts = split(pair[0], pair[1]);
            rest = _mm512_or_si512(rest, _mm512_or_si512(parts[1], parts[2]));
            for p in 0..PARTS {
                to.put(p, w, _mm512_permutexvar_epi16(pairs, parts[p]));
            }
        }
        rest
    }

    /// The same of b whose rows lie side by side (the transpose of a row-major matrix): its words lie there as they are.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
    fn of_columns<E: Element>(&self, b: &Mat<'_, E>, mut to: Places<'_>) -> __m512i {
        let here = UNIT.min(b.rows.saturating_sub(self.l));
        let mut unit = [[_mm512_setzero_si512(); WORDS]; PARTS];
        let mut rest = _mm512_setzero_si512();
        for j in 0..self.lanes {
            let from = &b.data[(self.column + j) * b.col_stride + self.l..][..here];
            let (low, high) = from.split_at(here.min(LANES));
            let parts = split(load(low), load(high));
            for p in 0..PARTS {
                unit[p][j] = parts[p];
            }
            rest = _mm512_or_si512(rest, _mm512_or_si512(parts[1], parts[2]));
        }
        let exact = _mm512_test_epi32_mask(rest, rest) == 0;
        for p in 0..PARTS {
            if p == 0 || !exact {
                unit[p] = super::kernels::avx512::transposed(unit[p]);
            }
            for w in 0..WORDS {
                to.put(p, w, unit[p][w]);
            }
        }
        rest
    }
}
