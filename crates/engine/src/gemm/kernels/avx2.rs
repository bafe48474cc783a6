//! AVX2 tiles of f32 (FMA): 12 of the 16 registers hold sums, 2 the panel's vectors, one the element of A.

use std::arch::x86_64::*;

use super::Kernel;

#[derive(Clone, Copy)]
pub(in crate::gemm) struct F32;

macro_rules! by_shape {
    ($rows:expr, $vectors:expr, $args:tt) => {
        by_shape!(@ $rows, $vectors, $args, 1: [1 2 3 4 5 6 7 8], 2: [1 2 3 4 5 6], 3: [1 2 3 4])
    };
    (@ $rows:expr, $vectors:expr, $args:tt, $($v:literal: [$($r:literal)*]),*) => {
        match ($vectors, $rows) {
            $($(($v, $r) => by_shape!(call $r, $v, $args),)*)*
            (vectors, rows) => unreachable!("a tile of {rows} rows and {vectors} vectors"),
        }
    };
    (call $r:literal, $v:literal, ($($arg:expr),*)) => { tile::<$r, $v>($($arg),*) };
}

impl Kernel for F32 {
    type Of = f32;
    const PAIR: usize = 1;
    const LANES: usize = 8;

    fn rows(vectors: usize) -> usize {
        match vectors {
            1 => 8,
            2 => 6,
            _ => 4,
        }
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
        unsafe { by_shape!(rows, vectors, (words, a, stride, panel, sums, fresh)) }
    }

    unsafe fn interleave(low: &[f32], _: &[f32], words: &mut [u32]) {
        words.copy_from_slice(bytemuck::cast_slice(low));
    }

    unsafe fn transpose(words: usize, b: *const u32, stride: usize, panel: *mut u32, step: usize) {
        // SAFETY: every address lies in the regions that `Kernel::transpose` asks for.
        unsafe {
            for p in 0..words {
                for j in 0..8 {
                    *panel.add(p * step + j) = b.byte_add(j * stride).add(p).read_unaligned();
                }
            }
        }
    }

    unsafe fn within<T>(f: impl FnOnce() -> T) -> T {
        // SAFETY: the caller's promise.
        unsafe { within(f) }
    }
}

#[target_feature(enable = "avx2,fma")]
fn within<T>(f: impl FnOnce() -> T) -> T {
    f()
}

#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const V: usize>(
    words: usize,
    a: *const f32,
    stride: usize,
    panel: *const f32,
    sums: *mut f32,
    fresh: bool,
) {
    // SAFETY: every address lies in the regions that `Kernel::tile` asks for.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); V]; R];
        if !fresh {
            for i in 0..R {
                for v in 0..V {
                    acc[i][v] = _mm256_loadu_ps(sums.add((i * V + v) * 8));
                }
            }
        }
        for p in 0..words {
            let mut b = [_mm256_setzero_ps(); V];
            for v in 0..V {
                b[v] = _mm256_loadu_ps(panel.add((p * V + v) * 8));
            }
            for i in 0..R {
                let a = _mm256_set1_ps(*a.add(i * stride + p));
                for v in 0..V {
                    acc[i][v] = _mm256_fmadd_ps(a, b[v], acc[i][v]);
                }
            }
        }
        for i in 0..R {
            for v in 0..V {
                _mm256_storeu_ps(sums.add((i * V + v) * 8), acc[i][v]);
            }
        }
    }
}
