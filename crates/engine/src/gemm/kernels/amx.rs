//! AMX tiles of bf16 (`tdpbf16ps`: 16 × 16 sums take 32 products each in one instruction).
//!
//! Four of the eight tile registers hold sums (2 × 2), two hold rows of A, two vectors of the panel: four instructions for
//! four loads, so that loads are hidden as long as the panel stays in the first-level cache. A panel is the one that
//! `vdpbf16ps` reads: 16 of its words by 16 columns are a tile.
//!
//! The intrinsics are not stable yet; the assembler knows the instructions. Tiles read whole lines of k, so rows of A
//! and panels are filled up with zeros ([`Kernel::UNIT`]).

use std::arch::asm;

use half::bf16;

use super::{Kernel, avx512};

#[derive(Clone, Copy)]
pub(in crate::gemm) struct Bf16;

/// f32 by three bf16 numbers each ([`super::super::thirds`]).
#[derive(Clone, Copy)]
pub(in crate::gemm) struct F32;

/// Rows and vectors of a tile register.
const SIDE: usize = 16;
/// Bytes of a tile's row.
const LINE: usize = 64;

/// What `ldtilecfg` reads: palette 1, and each register's rows and bytes of a row.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    /// For so many rows of A (1 to 32): sums in tiles 0 to 3, A in 4 and 5, the panel in 6 and 7.
    const fn of(rows: usize) -> Shapes {
        let first = if rows < SIDE { rows } else { SIDE } as u8;
        let second = if rows > SIDE { rows - SIDE } else { SIDE } as u8;
        let mut shapes = Shapes { palette: 1, start: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        let heights = [first, first, second, second, first, second, SIDE as u8, SIDE as u8];
        let mut i = 0;
        while i < heights.len() {
            shapes.bytes[i] = LINE as u16;
            shapes.rows[i] = heights[i];
            i += 1;
        }
        shapes
    }

    /// # Safety
    /// The processor has AMX, and the system lets this process use it.
    unsafe fn load(&self) {
        // SAFETY: the caller's promise; the tile registers are only used here.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

static WHOLE: Shapes = Shapes::of(2 * SIDE);

/// Tiles of one or two by one or two registers: sums from memory or from zero, all words, sums to memory, in one block of
/// assembly, so that nothing comes between.
macro_rules! tile {
    ($name:ident, zero: $($zero:literal)+, load: $($load:literal)+, step: $($step:expr),+; store: $($store:literal)+) => {
        /// # Safety
        /// As for [`Kernel::tile`], with shapes loaded that fit, `steps` times 16 words of so many parts, and strides in
        /// bytes.
        unsafe fn $name(
            steps: usize,
            a: *const bf16,
            stride: usize,
            panel: *const bf16,
            width: usize,
            sums: *mut f32,
            fresh: bool,
            parts: usize,
        ) {
            // SAFETY: every address lies in the regions that `Kernel::tile` asks for. The rows from the 17th on are only
            // touched where there are some.
            unsafe {
                asm!(
                    "test {fresh}, {fresh}",
                    "jnz 3f",
                    $($load,)+
                    "jmp 2f",
                    "3:",
                    $($zero,)+
                    "2:",
                    $($step,)+
                    "add {a}, {unit}",
                    "add {a2}, {unit}",
                    "add {panel}, {next}",
                    "dec {steps}",
                    "jnz 2b",
                    $($store,)+
                    "/* {sums2}, {a2}: where there are rows for them */",
                    fresh = in(reg) fresh as usize,
                    a = inout(reg) a => _,
                    a2 = inout(reg) a.wrapping_byte_add(SIDE * stride) => _,
                    stride = in(reg) stride,
                    panel = inout(reg) panel => _,
                    width = in(reg) width,
                    next = in(reg) parts * SIDE * width,
                    unit = in(reg) parts * LINE,
                    steps = inout(reg) steps => _,
                    sums = in(reg) sums,
                    sums2 = in(reg) sums.wrapping_byte_add(SIDE * width),
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                    out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                    options(nostack),
                );
            }
        }
    };
}

/// A part of a unit of the panel into tiles 6 and 7: so many vectors, `at` bytes behind its beginning. It passes through the
/// first-level cache, where the rows of A are to stay.
macro_rules! panel {
    (1, $at:literal) => {
        concat!("tileloaddt1 tmm6, [{panel} + {width} + ", $at, "]\n")
    };
    (2, $at:literal) => {
        concat!(panel!(1, $at), "tileloaddt1 tmm7, [{panel} + {width} + 64 + ", $at, "]\n")
    };
}

/// A part of a unit of A, `at` bytes behind its beginning, times what [`panel`] loaded: so many registers by so many.
macro_rules! times {
    (1, 1, $at:literal) => {
        concat!("tileloadd tmm4, [{a} + {stride} + ", $at, "]\n", "tdpbf16ps tmm0, tmm4, tmm6\n")
    };
    (1, 2, $at:literal) => {
        concat!(times!(1, 1, $at), "tdpbf16ps tmm1, tmm4, tmm7\n")
    };
    (2, 1, $at:literal) => {
        concat!(
            times!(1, 1, $at),
            "tileloadd tmm5, [{a2} + {stride} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n"
        )
    };
    (2, 2, $at:literal) => {
        concat!(
            times!(1, 2, $at),
            "tileloadd tmm5, [{a2} + {stride} + ",
            $at,
            "]\n",
            "tdpbf16ps tmm2, tmm5, tmm6\n",
            "tdpbf16ps tmm3, tmm5, tmm7\n"
        )
    };
}

/// All tiles of so many registers by so many: of bf16, of f32 by three parts (six products: those of low by middle and by low
/// are less than what f32 rounds away), and of f32 by numbers that are bf16.
macro_rules! tiles {
    ($rows:tt $cols:tt, $middle:literal $low:literal, $of_bf16:ident $of_thirds:ident $of_first:ident,
        zero: $($zero:literal)+, load: $($load:literal)+, store: $($store:literal)+) => {
        tile!($of_bf16, zero: $($zero)+, load: $($load)+,
            step: panel!($cols, 0), times!($rows, $cols, 0);
            store: $($store)+);
        tile!($of_thirds, zero: $($zero)+, load: $($load)+,
            step: panel!($cols, 0), times!($rows, $cols, 0), times!($rows, $cols, 64), times!($rows, $cols, 128),
                panel!($cols, $middle), times!($rows, $cols, 0), times!($rows, $cols, 64),
                panel!($cols, $low), times!($rows, $cols, 0);
            store: $($store)+);
        tile!($of_first, zero: $($zero)+, load: $($load)+,
            step: panel!($cols, 0), times!($rows, $cols, 0), times!($rows, $cols, 64), times!($rows, $cols, 128);
            store: $($store)+);
    };
}

tiles!(2 2, 2048 4096, two_by_two two_by_two_of_thirds two_by_two_of_first,
    zero: "tilezero tmm0" "tilezero tmm1" "tilezero tmm2" "tilezero tmm3",
    load: "tileloadd tmm0, [{sums} + {width}]" "tileloadd tmm1, [{sums} + {width} + 64]"
        "tileloadd tmm2, [{sums2} + {width}]" "tileloadd tmm3, [{sums2} + {width} + 64]",
    store: "tilestored [{sums} + {width}], tmm0" "tilestored [{sums} + {width} + 64], tmm1"
        "tilestored [{sums2} + {width}], tmm2" "tilestored [{sums2} + {width} + 64], tmm3");

tiles!(2 1, 1024 2048, two_by_one two_by_one_of_thirds two_by_one_of_first,
    zero: "tilezero tmm0" "tilezero tmm2",
    load: "tileloadd tmm0, [{sums} + {width}]" "tileloadd tmm2, [{sums2} + {width}]",
    store: "tilestored [{sums} + {width}], tmm0" "tilestored [{sums2} + {width}], tmm2");

tiles!(1 2, 2048 4096, one_by_two one_by_two_of_thirds one_by_two_of_first,
    zero: "tilezero tmm0" "tilezero tmm1",
    load: "tileloadd tmm0, [{sums} + {width}]" "tileloadd tmm1, [{sums} + {width} + 64]",
    store: "tilestored [{sums} + {width}], tmm0" "tilestored [{sums} + {width} + 64], tmm1");

tiles!(1 1, 1024 2048, one_by_one one_by_one_of_thirds one_by_one_of_first,
    zero: "tilezero tmm0",
    load: "tileloadd tmm0, [{sums} + {width}]",
    store: "tilestored [{sums} + {width}], tmm0");

/// Tiles by rows (more than 16 or not) and vectors (2 or 1).
type Tiles = [[Tile; 2]; 2];
type Tile = unsafe fn(usize, *const bf16, usize, *const bf16, usize, *mut f32, bool, usize);

const OF_BF16: Tiles = [[two_by_two, two_by_one], [one_by_two, one_by_one]];
const OF_THIRDS: Tiles =
    [[two_by_two_of_thirds, two_by_one_of_thirds], [one_by_two_of_thirds, one_by_one_of_thirds]];
const OF_FIRST: Tiles =
    [[two_by_two_of_first, two_by_one_of_first], [one_by_two_of_first, one_by_one_of_first]];

/// Before the first tile.
///
/// # Safety
/// As for [`Kernel::begin`].
unsafe fn begin() {
    // SAFETY: the caller's promise.
    unsafe { WHOLE.load() }
}

/// After the last.
///
/// # Safety
/// As for [`Kernel::end`].
unsafe fn end() {
    // SAFETY: the caller's promise; nothing of the registers is needed any more.
    unsafe {
        asm!("tilerelease", options(nostack, nomem),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
    }
}

/// A tile of a table.
///
/// # Safety
/// As for [`Kernel::tile`], with the table's number of parts.
unsafe fn tile(
    tiles: &Tiles,
    parts: usize,
    [rows, vectors, words]: [usize; 3],
    a: *const bf16,
    stride: usize,
    panel: *const bf16,
    sums: *mut f32,
    fresh: bool,
) {
    debug_assert!(words > 0 && words.is_multiple_of(SIDE));
    let (steps, stride, width) = (words / SIDE, stride * size_of::<bf16>(), vectors * LINE);
    let tile = tiles[usize::from(rows <= SIDE)][usize::from(vectors < 2)];
    // SAFETY: the caller's promise; shapes that have as many rows are loaded.
    unsafe {
        match rows == 2 * SIDE {
            true => tile(steps, a, stride, panel, width, sums, fresh, parts),
            false => {
                Shapes::of(rows).load();
                tile(steps, a, stride, panel, width, sums, fresh, parts);
                WHOLE.load();
            }
        }
    }
}

macro_rules! kernel {
    ($name:ident, [$($constant:item)*], $tiles:expr) => {
        impl Kernel for $name {
            type Of = bf16;
            const PAIR: usize = 2;
            const LANES: usize = SIDE;
            const UNIT: usize = SIDE;
            const VECTORS: usize = 2;
            const GROUP: usize = 24;
            const TASKS_PER_THREAD: usize = 1;
            $($constant)*

            fn rows(_: usize) -> usize {
                2 * SIDE
            }

            unsafe fn begin() {
                // SAFETY: the caller's promise.
                unsafe { begin() }
            }

            unsafe fn end() {
                // SAFETY: the caller's promise.
                unsafe { end() }
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
                parts: usize,
            ) {
                let tiles: fn(usize) -> &'static Tiles = $tiles;
                // SAFETY: the caller's promise.
                unsafe { tile(tiles(parts), Self::PARTS, [rows, vectors, words], a, stride, panel, sums, fresh) }
            }

            unsafe fn interleave(low: &[bf16], high: &[bf16], words: &mut [u32]) {
                // SAFETY: the caller's promise.
                unsafe { avx512::Bf16::interleave(low, high, words) }
            }

            unsafe fn transpose(words: usize, b: *const u32, stride: usize, panel: *mut u32, step: usize) {
                // SAFETY: the caller's promise.
                unsafe { avx512::Bf16::transpose(words, b, stride, panel, step) }
            }

            unsafe fn round(shape: [usize; 2], sums: *const f32, width: usize, to: *mut bf16, stride: usize) {
                // SAFETY: the caller's promise.
                unsafe { avx512::Bf16::round(shape, sums, width, to, stride) }
            }

            unsafe fn within<T>(f: impl FnOnce() -> T) -> T {
                // SAFETY: the caller's promise.
                unsafe { avx512::Bf16::within(f) }
            }
        }
    };
}

kernel!(Bf16, [const PASS_WORDS: usize = 768; const TILE_WORDS: usize = 288;], |_| &OF_BF16);
kernel!(F32, [const PARTS: usize = super::super::thirds::PARTS; const PASS_WORDS: usize = 384; const TILE_WORDS: usize = 96;],
    |parts| if parts == 1 { &OF_FIRST } else { &OF_THIRDS });
