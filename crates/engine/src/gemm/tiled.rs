//! Products by our own tiles: which columns and rows a task takes, and in what order it visits k.
//!
//! A task packs its columns of b for all of k that fits into [`Kernel::PASS_WORDS`] (a panel is at most half of a second-level cache, so that the
//! panel stays there while the rows of a pass by), then takes rows of a a tile at a time through all segments. Packing costs
//! some 3 % at 1,024 rows; in exchange frozen weights stay in memory once, as they came.

use std::cell::RefCell;

use rayon::prelude::*;

use super::kernels::Kernel;
use super::pack::Segment;
use super::{Finish, MatMut, Term, Threads, few};
use crate::Element;

/// Words of k that a tile visits at a time: its rows of a and the part of the panel that it reads stay in the first-level
/// cache.
const TILE_WORDS: usize = 1024;
/// Rows of a task, at most: their sums lie in memory where k takes several passes.
const MAX_ROWS: usize = 2048;
/// Tasks per thread that are enough to keep all busy to the end.
const TASKS_PER_THREAD: usize = 4;

/// A part of k that lies in one segment.
#[derive(Clone, Copy)]
struct Block {
    segment: usize,
    word: usize,
    words: usize,
}

/// All of k, in passes that fit into a panel of so many words.
fn passes<K: Kernel>(segments: &[Segment<'_, K>]) -> Vec<Vec<Block>> {
    let all: usize = segments.iter().map(|s| s.words).sum();
    // As even as may be.
    let panel_words = all.div_ceil(all.div_ceil(K::PASS_WORDS).max(1)).next_multiple_of(K::UNIT);
    let mut passes = vec![Vec::new()];
    let mut left = panel_words;
    for (segment, s) in segments.iter().enumerate() {
        let mut word = 0;
        while word < s.words {
            if left == 0 {
                passes.push(Vec::new());
                left = panel_words;
            }
            let words = (s.words - word).min(left).min(TILE_WORDS);
            if let Some(pass) = passes.last_mut() {
                pass.push(Block { segment, word, words });
            }
            (word, left) = (word + words, left - words);
        }
    }
    passes
}

/// Columns `[first, first + cols)` of c, in panels of so many vectors.
#[derive(Clone, Copy)]
struct Columns {
    first: usize,
    cols: usize,
    vectors: usize,
}

/// The columns of c in groups of 1 to [`Kernel::VECTORS`] vectors, as even as may be.
fn columns<K: Kernel>(n: usize) -> Vec<Columns> {
    let vectors = n.div_ceil(K::LANES);
    let panels = vectors.div_ceil(K::VECTORS);
    let mut first = 0;
    (0..panels)
        .map(|p| {
            let vectors = vectors * (p + 1) / panels - vectors * p / panels;
            let columns = Columns { first, cols: (vectors * K::LANES).min(n - first), vectors };
            first += columns.cols;
            columns
        })
        .collect()
}

#[repr(C, align(64))]
#[derive(Clone, Copy)]
struct Line([u32; 16]);

#[derive(Default)]
struct Scratch {
    panel: Vec<Line>,
    sums: Vec<Line>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Lines grown to hold so many words, as words.
fn words(lines: &mut Vec<Line>, n: usize) -> &mut [u32] {
    if lines.len() < n.div_ceil(16) {
        lines.resize(n.div_ceil(16), Line([0; 16]));
    }
    // SAFETY: a line is 16 words.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), n) }
}

/// A destination that tasks write disjoint parts of.
#[derive(Clone, Copy)]
struct Destination<E> {
    data: *mut E,
    stride: usize,
}

// SAFETY: tasks write disjoint rows and columns.
unsafe impl<E: Send> Send for Destination<E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for Destination<E> {}

impl<E> Destination<E> {
    /// # Safety
    /// The part lies in the destination, and no other task has it.
    unsafe fn part<'a>(self, row: usize, first: usize, cols: usize) -> &'a mut [E] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(row * self.stride + first), cols) }
    }
}

struct Task {
    columns: Columns,
    rows: std::ops::Range<usize>,
}

fn tasks<K: Kernel>(m: usize, n: usize, threads: Threads) -> Vec<Task> {
    let columns = columns::<K>(n);
    let wanted = match threads {
        Threads::One => 1,
        Threads::All if rayon::current_num_threads() == 1 => 1,
        Threads::All => rayon::current_num_threads() * TASKS_PER_THREAD,
    };
    let parts = wanted.div_ceil(columns.len()).max(m.div_ceil(MAX_ROWS));
    // Whole tiles, but for the last.
    let rows = m.div_ceil(parts).next_multiple_of(96);
    let starts = (0..m).step_by(rows);
    starts
        .flat_map(|r| columns.iter().map(move |&columns| Task { columns, rows: r..m.min(r + rows) }))
        .collect()
}

/// [`super::sum_of_products`] in the kernel's type.
pub(super) fn sum_of_products<K: Kernel, E: Element>(
    c: MatMut<'_, E>,
    add: bool,
    terms: &[Term<'_>],
    finish: Finish<'_, E::Acc>,
    threads: Threads,
) {
    if few::takes(&c, terms) {
        return few::sum_of_products(c, add, terms, finish, threads);
    }
    let segments = Segment::<K>::all(terms);
    let (m, n) = (c.rows, c.cols);
    let to = Destination { data: c.data.as_mut_ptr(), stride: c.stride };
    let work = |task: &Task| {
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: the kernel was chosen for this processor; tasks cover disjoint parts of c.
            unsafe {
                K::begin();
                run(task, &segments, to, add, finish, scratch);
                K::end();
            }
        });
    };
    let tasks = tasks::<K>(m, n, threads);
    match tasks.len() == 1 || threads == Threads::One {
        true => tasks.iter().for_each(work),
        false => tasks.par_iter().with_max_len(1).for_each(work),
    }
}

/// # Safety
/// The processor has the kernel's instructions, and no other task has the task's part of c.
unsafe fn run<K: Kernel, E: Element>(
    task: &Task,
    segments: &[Segment<'_, K>],
    to: Destination<E>,
    add: bool,
    finish: Finish<'_, E::Acc>,
    scratch: &mut Scratch,
) {
    let Columns { first, cols, vectors } = task.columns;
    let width = vectors * K::LANES;
    let passes = passes(segments);
    let at_a_time = K::rows(vectors);
    let plain = !add && finish.scale.is_none() && finish.bias.is_none();
    // Sums of a tile only, unless they wait for another pass.
    let kept = if passes.len() == 1 { at_a_time } else { task.rows.len() };
    let sums = words(&mut scratch.sums, kept * width).as_mut_ptr().cast::<f32>();
    for (number, pass) in passes.iter().enumerate() {
        let packed = pass.iter().map(|b| b.words * width).sum();
        let panel = words(&mut scratch.panel, packed);
        let mut rest = &mut panel[..];
        for block in pass {
            let (own, others) = rest.split_at_mut(block.words * width);
            // SAFETY: the caller's promise.
            unsafe { segments[block.segment].pack(block.word, block.words, first, cols, own) };
            rest = others;
        }
        for row in task.rows.clone().step_by(at_a_time) {
            let rows = at_a_time.min(task.rows.end - row);
            let at = if passes.len() == 1 { 0 } else { (row - task.rows.start) * width };
            // SAFETY: `sums` has room for the rows from there on.
            let sums = unsafe { sums.add(at) };
            let mut own = panel.as_ptr();
            for (i, block) in pass.iter().enumerate() {
                let segment = &segments[block.segment];
                let (a, fresh) = (segment.a(row, block.word), number == 0 && i == 0);
                // SAFETY: the segment holds these rows and words, the panel this block's words from `own` on.
                unsafe {
                    K::tile(rows, vectors, block.words, a, segment.a_stride, own.cast(), sums, fresh);
                    own = own.add(block.words * width);
                }
            }
            if number + 1 == passes.len() {
                for i in 0..rows {
                    // SAFETY: the task's own rows and columns; the sums of a row lie `width` after the one before.
                    let (to, sums) = unsafe {
                        (to.part(row + i, first, cols), std::slice::from_raw_parts(sums.add(i * width), cols))
                    };
                    if plain && let Some(to) = E::as_bf16(to) {
                        // SAFETY: the caller's promise.
                        unsafe { K::round(sums, to) };
                        continue;
                    }
                    // SAFETY: the caller's promise.
                    unsafe { K::within(|| finish.sums(sums, to, first, add)) };
                }
            }
        }
    }
}

/// A tile over and over, all of whose operands lie in the first-level cache.
pub(super) fn peak<K: Kernel>() -> f64 {
    const WORDS: usize = 128;
    const RUNS: usize = 20_000;
    let (vectors, rows) = (K::VECTORS, K::rows(K::VECTORS));
    let width = vectors * K::LANES;
    let a = vec![K::Of::default(); rows * WORDS * K::PAIR];
    let mut scratch = Scratch::default();
    let panel = words(&mut scratch.panel, WORDS * width).as_ptr();
    let sums = words(&mut scratch.sums, rows * width).as_mut_ptr();
    // SAFETY: `gemm::peak` chose the kernel for this processor; the operands have the sizes of this tile.
    unsafe {
        K::begin();
        for _ in 0..RUNS {
            K::tile(rows, vectors, WORDS, a.as_ptr(), WORDS * K::PAIR, panel.cast(), sums.cast(), true);
        }
        K::end();
    }
    (RUNS * 2 * rows * width * WORDS * K::PAIR) as f64
}
