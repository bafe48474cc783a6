//! AVX-512 tiles of f32 (`vfmadd`) and of bf16 (`vdpbf16ps`: each lane adds two products).
//!
//! 24 of the 32 registers hold sums, up to 3 the panel's vectors of this word, one the element of A that meets them. Both
//! instructions issue twice per cycle, and a tile loads 3 + 8 times for 24 of them, so that loads are hidden.

use std::arch::x86_64::*;

use half::bf16;

use super::Kernel;

#[derive(Clone, Copy)]
pub(in crate::gemm) struct F32;

#[derive(Clone, Copy)]
pub(in crate::gemm) struct Bf16;

/// Calls `tile::<ROWS, VECTORS>` for run-time rows and vectors.
macro_rules! by_shape {
    ($tile:ident, $rows:expr, $vectors:expr, $args:tt) => {
        by_shape!(@ $tile, $rows, $vectors, $args,
            1: [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16],
            2: [1 2 3 4 5 6 7 8 9 10 11 12],
            3: [1 2 3 4 5 6 7 8])
    };
    (@ $tile:ident, $rows:expr, $vectors:expr, $args:tt, $($v:literal: [$($r:literal)*]),*) => {
        match ($vectors, $rows) {
            $($(($v, $r) => by_shape!(call $tile, $r, $v, $args),)*)*
            (vectors, rows) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
        }
    };
    (call $tile:ident, $r:literal, $v:literal, ($($arg:expr),*)) => { $tile::<$r, $v>($($arg),*) };
}

fn rows(vectors: usize) -> usize {
    match vectors {
        1 => 16,
        2 => 12,
        _ => 8,
    }
}

impl Kernel for F32 {
    type Of = f32;
    const PAIR: usize = 1;
    const LANES: usize = 16;

    fn rows(vectors: usize) -> usize {
        rows(vectors)
    }

    unsafe fn tile(
        rows: usize,
        vectors: usize,
        words: usize,
        a: *const f32,
        stride: usize,
        panel: *const f32,
        sums: *mut f32,
        fresh: bool,
        _: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { by_shape!(tile_f32, rows, vectors, (words, a, stride, panel, sums, fresh)) }
    }

    unsafe fn interleave(low: &[f32], _: &[f32], words: &mut [u32]) {
        words.copy_from_slice(bytemuck::cast_slice(low));
    }

    unsafe fn transpose(words: usize, b: *const u32, stride: usize, panel: *mut u32, step: usize) {
        // SAFETY: the caller's promise.
        unsafe { transpose(words, b, stride, panel, step) }
    }

    unsafe fn within<T>(f: impl FnOnce() -> T) -> T {
        // SAFETY: the caller's promise.
        unsafe { within(f) }
    }
}

impl Kernel for Bf16 {
    type Of = bf16;
    const PAIR: usize = 2;
    const LANES: usize = 16;

    unsafe fn round(shape: [usize; 2], sums: *const f32, width: usize, to: *mut bf16, stride: usize) {
        // SAFETY: the caller's promise.
        unsafe { round(shape, sums, width, to, stride) }
    }

    fn rows(vectors: usize) -> usize {
        rows(vectors)
    }

    unsafe fn tile(
        rows: usize,
        vectors: usize,
        words: usize,
        a: *const bf16,
        stride: usize,
        panel: *const bf16,
        sums: *mut f32,
        fresh: bool,
        _: usize,
    ) {
        // SAFETY: the caller's promise.
        unsafe { by_shape!(tile_bf16, rows, vectors, (words, a, stride, panel.cast(), sums, fresh)) }
    }

    unsafe fn interleave(low: &[bf16], high: &[bf16], words: &mut [u32]) {
        // SAFETY: the caller's promise.
        unsafe { interleave(low, high, words) }
    }

    unsafe fn transpose(words: usize, b: *const u32, stride: usize, panel: *mut u32, step: usize) {
        // SAFETY: the caller's promise.
        unsafe { transpose(words, b, stride, panel, step) }
    }

    unsafe fn within<T>(f: impl FnOnce() -> T) -> T {
        // SAFETY: the caller's promise.
        unsafe { within(f) }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn within<T>(f: impl FnOnce() -> T) -> T {
    f()
}

/// The products of a row with four others of its length.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(in crate::gemm) fn dots(a: &[bf16], b: [&[bf16]; 4]) -> [f32; 4] {
    assert!(b.iter().all(|b| b.len() >= a.len()), "rows of different lengths");
    // The rows after the next ones: four short streams that end soon are not foreseen.
    let ahead = 8 * a.len();
    let mut acc = [_mm512_setzero_ps(); 4];
    for p in (0..a.len()).step_by(32) {
        let mask = u32::MAX >> (32 - 32.min(a.len() - p));
        // SAFETY: the mask leaves out what lies behind the rows' last elements.
        unsafe {
            let a = _mm512_maskz_loadu_epi16(mask, a.as_ptr().add(p).cast());
            for (acc, b) in acc.iter_mut().zip(b) {
                let b = b.as_ptr().add(p);
                _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add(ahead).cast());
                let b = _mm512_maskz_loadu_epi16(mask, b.cast());
                *acc = _mm512_dpbf16_ps(
                    *acc,
                    std::mem::transmute::<__m512i, __m512bh>(a),
                    std::mem::transmute::<__m512i, __m512bh>(b),
                );
            }
        }
    }
    acc.map(|sums| _mm512_reduce_add_ps(sums))
}

/// Rows of a thin product's tile, and vectors of a row, at most: 24 registers hold sums.
pub(in crate::gemm) const THIN_ROWS: usize = 8;
pub(in crate::gemm) const THIN_VECTORS: usize = 3;

/// The numbers of a vector that lie among `cols` columns from the first on.
fn lanes(cols: usize, v: usize) -> __mmask16 {
    (0xffff_u32 >> (16 - cols.saturating_sub(16 * v).min(16))) as __mmask16
}

macro_rules! thin {
    ($name:ident, $of:ty, |$at:ident, $mask:ident| $load:expr) => {
        /// sums `[THIN_ROWS, cols]` += aᵀ·b for `depth` rows of a `[depth, THIN_ROWS]` and b `[depth, cols]`.
        ///
        /// # Safety
        /// The processor has AVX-512 F, BW and VL; the rows lie so many elements apart, and `cols` is at most
        /// `16 · THIN_VECTORS`.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        pub(in crate::gemm) unsafe fn $name(
            depth: usize,
            a: *const f32,
            a_stride: usize,
            b: *const $of,
            b_stride: usize,
            cols: usize,
            sums: *mut f32,
            sums_stride: usize,
        ) {
            let masks: [__mmask16; THIN_VECTORS] = std::array::from_fn(|v| lanes(cols, v));
            let mut acc = [[_mm512_setzero_ps(); THIN_VECTORS]; THIN_ROWS];
            // SAFETY: masks leave out what lies beyond the columns; the rest is the caller's promise.
            unsafe {
                for p in 0..depth {
                    let mut row = [_mm512_setzero_ps(); THIN_VECTORS];
                    for v in 0..THIN_VECTORS {
                        let ($at, $mask) = (b.wrapping_add(p * b_stride + 16 * v), masks[v]);
                        row[v] = $load;
                    }
                    for i in 0..THIN_ROWS {
                        let a = _mm512_set1_ps(*a.add(p * a_stride + i));
                        for v in 0..THIN_VECTORS {
                            acc[i][v] = _mm512_fmadd_ps(a, row[v], acc[i][v]);
                        }
                    }
                }
                for i in 0..THIN_ROWS {
                    for v in 0..THIN_VECTORS {
                        let at = sums.wrapping_add(i * sums_stride + 16 * v);
                        let sum = _mm512_add_ps(_mm512_maskz_loadu_ps(masks[v], at), acc[i][v]);
                        _mm512_mask_storeu_ps(at, masks[v], sum);
                    }
                }
            }
        }
    };
}

thin!(thin_f32, f32, |at, mask| _mm512_maskz_loadu_ps(mask, at));
// The bits of bf16 are the upper half of f32's.
thin!(thin_bf16, bf16, |at, mask| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(
    _mm256_maskz_loadu_epi16(mask, at.cast())
))));

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn round([rows, cols]: [usize; 2], sums: *const f32, width: usize, to: *mut bf16, stride: usize) {
    for i in 0..rows {
        for j in (0..cols).step_by(32) {
            let mask = u32::MAX >> (32 - 32.min(cols - j));
            // SAFETY: the masks leave out what lies beyond the columns; the rest is the caller's promise.
            unsafe {
                let (low, high) = (sums.add(i * width + j), sums.wrapping_add(i * width + j + 16));
                let low = _mm512_maskz_loadu_ps(mask as __mmask16, low);
                let high = _mm512_maskz_loadu_ps((mask >> 16) as __mmask16, high);
                let rounded: __m512i = std::mem::transmute(_mm512_cvtne2ps_pbh(high, low));
                _mm512_mask_storeu_epi16(to.add(i * stride + j).cast(), mask, rounded);
            }
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn load<const R: usize, const V: usize>(sums: *const f32, fresh: bool) -> [[__m512; V]; R] {
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    if !fresh {
        for i in 0..R {
            for v in 0..V {
                // SAFETY: `sums` points to R rows of V vectors.
                acc[i][v] = unsafe { _mm512_loadu_ps(sums.add((i * V + v) * 16)) };
            }
        }
    }
    acc
}

#[target_feature(enable = "avx512f")]
unsafe fn store<const R: usize, const V: usize>(sums: *mut f32, acc: &[[__m512; V]; R]) {
    for i in 0..R {
        for v in 0..V {
            // SAFETY: `sums` points to R rows of V vectors.
            unsafe { _mm512_storeu_ps(sums.add((i * V + v) * 16), acc[i][v]) };
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn tile_f32<const R: usize, const V: usize>(
    words: usize,
    a: *const f32,
    stride: usize,
    panel: *const f32,
    sums: *mut f32,
    fresh: bool,
) {
    // SAFETY: every address lies in the regions that `Kernel::tile` asks for.
    unsafe {
        let mut acc = load::<R, V>(sums, fresh);
        for p in 0..words {
            let mut b = [_mm512_setzero_ps(); V];
            for v in 0..V {
                b[v] = _mm512_loadu_ps(panel.add((p * V + v) * 16));
            }
            for i in 0..R {
                let a = _mm512_set1_ps(*a.add(i * stride + p));
                for v in 0..V {
                    acc[i][v] = _mm512_fmadd_ps(a, b[v], acc[i][v]);
                }
            }
        }
        store(sums, &acc);
    }
}

#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn tile_bf16<const R: usize, const V: usize>(
    words: usize,
    a: *const bf16,
    stride: usize,
    panel: *const u32,
    sums: *mut f32,
    fresh: bool,
) {
    // SAFETY: every address lies in the regions that `Kernel::tile` asks for; a vector of integers has the same bits as one
    // of pairs.
    unsafe {
        let mut acc = load::<R, V>(sums, fresh);
        for p in 0..words {
            let mut b = [_mm512_setzero_si512(); V];
            for v in 0..V {
                b[v] = _mm512_loadu_si512(panel.add((p * V + v) * 16).cast());
            }
            for i in 0..R {
                let pair = a.add(i * stride + 2 * p).cast::<i32>().read_unaligned();
                let a: __m512bh = std::mem::transmute(_mm512_set1_epi32(pair));
                for v in 0..V {
                    acc[i][v] =
                        _mm512_dpbf16_ps(acc[i][v], a, std::mem::transmute::<__m512i, __m512bh>(b[v]));
                }
            }
        }
        store(sums, &acc);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn interleave(low: &[bf16], high: &[bf16], words: &mut [u32]) {
    let n = words.len().min(low.len());
    for j in (0..n).step_by(16) {
        // Neither reads nor writes behind the last element.
        let mask = (0xffff_u32 >> (16 - 16.min(n - j))) as __mmask16;
        // SAFETY: by the mask.
        unsafe {
            let mut word = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, low.as_ptr().add(j).cast()));
            if !high.is_empty() {
                let high = _mm256_maskz_loadu_epi16(mask, high.as_ptr().add(j).cast());
                word = _mm512_or_si512(word, _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(high)));
            }
            _mm512_mask_storeu_epi32(words.as_mut_ptr().add(j).cast(), mask, word);
        }
    }
}

#[target_feature(enable = "avx512f")]
unsafe fn transpose(words: usize, b: *const u32, stride: usize, panel: *mut u32, step: usize) {
    // SAFETY: every address lies in the regions that `Kernel::transpose` asks for.
    unsafe {
        for p in (0..words).step_by(16) {
            let here = 16.min(words - p);
            // Loads no word beyond the last.
            let mask = (0xffff_u32 >> (16 - here)) as __mmask16;
            let mut rows = [_mm512_setzero_si512(); 16];
            for (j, row) in rows.iter_mut().enumerate() {
                *row = _mm512_maskz_loadu_epi32(mask, b.byte_add(j * stride).add(p).cast());
            }
            for (i, column) in transposed(rows).into_iter().take(here).enumerate() {
                _mm512_storeu_si512(panel.add((p + i) * step).cast(), column);
            }
        }
    }
}

/// 16 × 16 words: pairs of words, then pairs of pairs, then quarters of the registers change places.
#[inline]
#[target_feature(enable = "avx512f")]
pub(in crate::gemm) fn transposed(r: [__m512i; 16]) -> [__m512i; 16] {
    let mut t = r;
    for i in 0..8 {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    let mut u = t;
    for i in 0..4 {
        let (a, b, c, d) = (t[4 * i], t[4 * i + 1], t[4 * i + 2], t[4 * i + 3]);
        u[4 * i] = _mm512_unpacklo_epi64(a, c);
        u[4 * i + 1] = _mm512_unpackhi_epi64(a, c);
        u[4 * i + 2] = _mm512_unpacklo_epi64(b, d);
        u[4 * i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    let mut w = u;
    for j in 0..4 {
        let (a, b) = (u[j], u[4 + j]);
        let (c, d) = (u[8 + j], u[12 + j]);
        let (even_low, odd_low) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xdd>(a, b));
        let (even_high, odd_high) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xdd>(c, d));
        w[j] = _mm512_shuffle_i32x4::<0x88>(even_low, even_high);
        w[8 + j] = _mm512_shuffle_i32x4::<0xdd>(even_low, even_high);
        w[4 + j] = _mm512_shuffle_i32x4::<0x88>(odd_low, odd_high);
        w[12 + j] = _mm512_shuffle_i32x4::<0xdd>(odd_low, odd_high);
    }
    w
}
