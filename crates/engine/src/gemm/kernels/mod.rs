//! Register tiles: the innermost loop of a product, one file for each instruction set.
//!
//! A tile multiplies `rows` rows of A, read where they lie (k contiguous), by a packed panel of B, and adds to f32 sums.
//! A panel is `[words][vectors][LANES]`: a word holds the `PAIR` elements of B that one lane of one instruction takes from
//! its column.

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;

use crate::Element;

/// One instruction set's tiles.
pub(super) trait Kernel: Copy + Send + Sync + 'static {
    /// Elements of A and of the panels.
    type Of: Element;
    /// Elements of k in a word.
    const PAIR: usize;
    /// Numbers that stand for an element, unit by unit one after the other ([`super::thirds`]).
    const PARTS: usize = 1;
    /// Columns in a vector.
    const LANES: usize;
    /// Words that a tile takes at least: what k lacks to a multiple is filled up with zeros.
    const UNIT: usize = 1;
    /// Vectors of a panel, at most.
    const VECTORS: usize = 3;
    /// Words of k that a panel holds, at most: it stays in cache while the rows of a pass by.
    const PASS_WORDS: usize = 2048;
    /// Words of k that a tile visits at a time: its rows of a stay in the first-level cache.
    const TILE_WORDS: usize = 1024;
    /// Panels of a task, at most.
    const GROUP: usize = 1;
    /// Tasks per thread that are enough to keep all busy to the end.
    const TASKS_PER_THREAD: usize = 4;

    /// Before the first tile of a task.
    ///
    /// # Safety
    /// The processor has the kernel's instructions.
    unsafe fn begin() {}

    /// After the last tile of a task.
    ///
    /// # Safety
    /// As for [`Kernel::begin`], which came before.
    unsafe fn end() {}

    /// Rows of a tile over a panel of so many vectors (1 to [`Kernel::VECTORS`]): as many as the registers hold.
    fn rows(vectors: usize) -> usize;

    /// sums += A·B for `rows` (1 to [`Kernel::rows`]) rows of A; sums start from 0 if `fresh`.
    ///
    /// # Safety
    /// The processor has the kernel's instructions, and [`Kernel::begin`] came before. `words` is a multiple of
    /// [`Kernel::UNIT`]. `a` points to `rows` rows of `words · PAIR · PARTS` elements, `stride` apart;
    /// `panel` to `words · PARTS · vectors · LANES` words, at a multiple of 64 bytes, of which only the first `parts` parts
    /// (1 or [`Kernel::PARTS`]) are not all zeros; `sums` to `rows` rows of `vectors · LANES`.
    unsafe fn tile(
        rows: usize,
        vectors: usize,
        words: usize,
        a: *const Self::Of,
        stride: usize,
        panel: *const Self::Of,
        sums: *mut f32,
        fresh: bool,
        parts: usize,
    );

    /// Transposes words: word i of row j of b becomes `panel[i · step + j]`, for i < words, j < `LANES`.
    ///
    /// # Safety
    /// The processor has the kernel's instructions. `b` points to `LANES` rows of `words` words, `stride` bytes apart (words
    /// may be unaligned); `panel` to `(words - 1) · step + LANES` words.
    unsafe fn transpose(words: usize, b: *const u32, stride: usize, panel: *mut u32, step: usize);

    /// Puts the elements of `low`, and of `high` in the upper halves of words of two, into words.
    ///
    /// # Safety
    /// The processor has the kernel's instructions, and all have one length (`high` may be empty).
    unsafe fn interleave(low: &[Self::Of], high: &[Self::Of], words: &mut [u32]);

    /// Rounds sums `[rows, cols]`, whose rows lie `width` apart, to bf16 whose rows lie `stride` apart.
    ///
    /// # Safety
    /// The processor has the kernel's instructions, both pointers have so many rows of `cols` elements at least, and nobody else
    /// uses those of `to`.
    unsafe fn round(
        [rows, cols]: [usize; 2],
        sums: *const f32,
        width: usize,
        to: *mut half::bf16,
        stride: usize,
    ) {
        for i in 0..rows {
            for j in 0..cols {
                // SAFETY: the caller's promise.
                unsafe { *to.add(i * stride + j) = half::bf16::from_acc(*sums.add(i * width + j)) }
            }
        }
    }

    /// Calls so many bytes from there on into the cache; nothing is read, wherever that is.
    #[inline(always)]
    fn expect(data: *const u8, bytes: usize) {
        #[cfg(target_arch = "x86_64")]
        for at in (0..bytes).step_by(64) {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: a prefetch never faults.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(data.wrapping_add(at).cast()) }
        }
    }

    /// Runs the loops around the tiles compiled for the same instructions.
    ///
    /// # Safety
    /// The processor has the kernel's instructions.
    unsafe fn within<T>(f: impl FnOnce() -> T) -> T;
}
