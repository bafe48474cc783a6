//! Products by our own tiles: which columns and rows a task takes, and in what order it visits k.
//!
//! A task packs its columns of b, one or several panels, for all of k that fits into [`Kernel::PASS_WORDS`] (half of a
//! second-level cache, so that they stay there while the rows of a pass by), then takes rows of a a tile at a time through
//! all segments. Packing costs some 3 % at 1,024 rows (10 % with AMX); in exchange frozen weights stay in memory once, as they came. Where
//! tiles are so fast that reading a from memory for each panel would take longer than multiplying, a task has several panels
//! ([`Kernel::GROUP`]).

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::kernels::Kernel;
use super::pack::Segment;
use super::scratch::Words;
use super::{Finish, MatMut, Term, Threads, few};
use crate::{Element, Real};

/// Rows of a task, at most, up to whole tiles: their sums lie in memory where k takes several passes.
const MAX_ROWS: usize = 2048;
/// Bytes of the panels that a task packs before rows pass by, at most: more than half of a second-level cache.
const GROUP_BYTES: usize = 896 << 10;
/// Rows that count as few: hardly any pass by a panel again.
const FEW_ROWS: usize = 64;
/// Words of k that a pass takes where rows are few: what is packed is used once, so the parts of b's rows that are read at a
/// time should be long.
const FEW_ROWS_WORDS: usize = 64;

/// A part of k that lies in one segment.
#[derive(Clone, Copy)]
struct Block {
    segment: usize,
    word: usize,
    words: usize,
}

/// All of k, in passes of so many words at most.
fn passes<K: Kernel>(segments: &[Segment<'_, K>], most: usize) -> Vec<Vec<Block>> {
    let all: usize = segments.iter().map(|s| s.words).sum();
    // As even as may be.
    let panel_words = all.div_ceil(all.div_ceil(most).max(1)).next_multiple_of(K::UNIT);
    let mut passes = vec![Vec::new()];
    let mut left = panel_words;
    for (segment, s) in segments.iter().enumerate() {
        let mut word = 0;
        while word < s.words {
            if left == 0 {
                passes.push(Vec::new());
                left = panel_words;
            }
            let words = (s.words - word).min(left).min(K::TILE_WORDS);
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

#[derive(Default)]
struct Scratch {
    panel: Words,
    sums: Words,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
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

/// Sums of a task that lie in memory at a time, those of a panel side by side: of one tile, of a row of tiles, of all.
#[derive(Clone, Copy, PartialEq)]
enum Kept {
    Nothing,
    Row,
    All,
}

/// Panels that lie side by side, and rows.
struct Task {
    panels: Range<usize>,
    rows: Range<usize>,
}

fn tasks<K: Kernel>(m: usize, panels: &[Columns], words: usize, threads: Threads) -> Vec<Task> {
    let wanted = match threads {
        Threads::One => 1,
        Threads::All if rayon::current_num_threads() == 1 => 1,
        Threads::All => rayon::current_num_threads() * K::TASKS_PER_THREAD,
    };
    let panel_bytes = 4 * K::VECTORS * K::LANES * K::PARTS * words;
    let most = (GROUP_BYTES / panel_bytes.max(1)).clamp(1, K::GROUP);
    // As many for each thread.
    let groups = panels.len().div_ceil(most).next_multiple_of(wanted).min(panels.len());
    let group = |g: usize| panels.len() * g / groups..panels.len() * (g + 1) / groups;
    let parts = wanted.div_ceil(groups).max(m.div_ceil(MAX_ROWS));
    // Whole tiles, but for the last.
    let rows = m.div_ceil(parts).next_multiple_of(96);
    let starts = (0..m).step_by(rows);
    starts
        .flat_map(|r| (0..groups).map(move |g| Task { panels: group(g), rows: r..m.min(r + rows) }))
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
    let panels = columns::<K>(n);
    let pass_words = if m <= FEW_ROWS { FEW_ROWS_WORDS } else { K::PASS_WORDS };
    let words = segments.iter().map(|s| s.words).sum::<usize>().min(pass_words);
    let passes = passes(&segments, pass_words);
    let product = Product { segments: &segments, passes, panels: &panels, add, finish };
    let work = |task: &Task| {
        SCRATCH.with_borrow_mut(|scratch| {
            // SAFETY: the kernel was chosen for this processor; tasks cover disjoint parts of c.
            unsafe {
                K::begin();
                product.run(task, to, scratch);
                K::end();
            }
        });
    };
    let tasks = tasks::<K>(m, &panels, words, threads);
    match tasks.len() == 1 || threads == Threads::One {
        true => tasks.iter().for_each(work),
        false => tasks.par_iter().with_max_len(1).for_each(work),
    }
    segments.into_iter().for_each(Segment::give_back);
}

struct Product<'a, K: Kernel, R> {
    segments: &'a [Segment<'a, K>],
    passes: Vec<Vec<Block>>,
    panels: &'a [Columns],
    add: bool,
    finish: Finish<'a, R>,
}

impl<K: Kernel, R: Real> Product<'_, K, R> {
    /// # Safety
    /// The processor has the kernel's instructions, [`Kernel::begin`] came before, and no other task has the task's part of c.
    unsafe fn run<E: Element<Acc = R>>(&self, task: &Task, to: Destination<E>, scratch: &mut Scratch) {
        let panels = &self.panels[task.panels.clone()];
        let widths: usize = panels.iter().map(|p| p.vectors * K::LANES).sum();
        let at_a_time = panels.iter().map(|p| K::rows(p.vectors)).min().unwrap_or(1);
        // Sums that wait for another pass, or for the next block of this one.
        let kept = match &self.passes[..] {
            [pass] if pass.len() == 1 => Kept::Nothing,
            [_] => Kept::Row,
            _ => Kept::All,
        };
        let most = panels.iter().map(|p| p.vectors * K::LANES).max().unwrap_or(0);
        let room = match kept {
            Kept::Nothing => at_a_time * most,
            Kept::Row => at_a_time * widths,
            Kept::All => task.rows.len() * widths,
        };
        let sums = scratch.sums.room(room).as_mut_ptr().cast::<f32>();
        for (number, pass) in self.passes.iter().enumerate() {
            let depth: usize = pass.iter().map(|b| b.words).sum();
            let packed = scratch.panel.room(depth * widths * K::PARTS);
            // SAFETY: the caller's promise.
            let parts = unsafe { self.pack(pass, panels, packed) };
            for row in task.rows.clone().step_by(at_a_time) {
                let rows = row..task.rows.end.min(row + at_a_time);
                let before = if kept == Kept::All { (row - task.rows.start) * widths } else { 0 };
                // SAFETY: the caller's promise; `sums` has room for the rows from there on, and the panels hold the words of
                // this pass.
                unsafe {
                    self.row_of_tiles(number, rows, panels, (packed, &parts), (sums.add(before), kept), to)
                }
            }
        }
    }

    /// All panels of a pass, one after the other, block after block in each. Returns how many parts of each block are not all
    /// zeros in each panel.
    ///
    /// # Safety
    /// The processor has the kernel's instructions.
    unsafe fn pack(&self, pass: &[Block], panels: &[Columns], packed: &mut [u32]) -> Vec<Vec<usize>> {
        let depth: usize = pass.iter().map(|b| b.words).sum();
        let places: Vec<[usize; 2]> = panels.iter().map(|p| [p.first, p.cols]).collect();
        let mut rest = packed;
        let mut left: Vec<&mut [u32]> = Vec::with_capacity(panels.len());
        for columns in panels {
            let own;
            (own, rest) = rest.split_at_mut(depth * columns.vectors * K::LANES * K::PARTS);
            left.push(own);
        }
        let mut parts = Vec::with_capacity(pass.len());
        for block in pass {
            let mut own: Vec<&mut [u32]> = Vec::with_capacity(panels.len());
            for (columns, left) in panels.iter().zip(&mut left) {
                let (here, after) =
                    std::mem::take(left).split_at_mut(block.words * columns.vectors * K::LANES * K::PARTS);
                own.push(here);
                *left = after;
            }
            // SAFETY: the caller's promise; each panel has room for the block.
            parts.push(unsafe {
                self.segments[block.segment].pack(block.word, block.words, &places, &mut own)
            });
        }
        parts
    }

    /// Adds a pass to the sums of some rows in all panels, or starts them, and puts into c what is finished. Block after
    /// block, so that the rows' part of it stays in the first-level cache while the panels pass by.
    ///
    /// # Safety
    /// The processor has the kernel's instructions, `packed` holds the pass, `sums` has room for the rows, and no other task
    /// has this part of c.
    unsafe fn row_of_tiles<E: Element<Acc = R>>(
        &self,
        number: usize,
        rows: Range<usize>,
        panels: &[Columns],
        (packed, parts): (&[u32], &[Vec<usize>]),
        (sums, kept): (*mut f32, Kept),
        to: Destination<E>,
    ) {
        let pass = &self.passes[number];
        let depth: usize = pass.iter().map(|b| b.words).sum();
        // Words of a panel that lie before the block, and columns before the panel.
        let mut word = 0;
        for (i, block) in pass.iter().enumerate() {
            let segment = &self.segments[block.segment];
            let (a, fresh) = (segment.a(rows.start, block.word), number == 0 && i == 0);
            let finished = number + 1 == self.passes.len() && i + 1 == pass.len();
            let mut before = 0;
            for (columns, &parts) in panels.iter().zip(&parts[i]) {
                let width = columns.vectors * K::LANES;
                let panel =
                    &packed[(before * depth + word * width) * K::PARTS..][..block.words * width * K::PARTS];
                // SAFETY: the segment holds these rows and words, the panel this block's words; the sums have room.
                unsafe {
                    let sums = sums.add(if kept == Kept::Nothing { 0 } else { before * rows.len() });
                    K::tile(
                        rows.len(),
                        columns.vectors,
                        block.words,
                        a,
                        segment.a_stride,
                        panel.as_ptr().cast(),
                        sums,
                        fresh,
                        parts,
                    );
                    if finished {
                        self.put(rows.clone(), columns, sums, to);
                    }
                }
                before += width;
            }
            word += block.words;
        }
    }

    /// Finished sums of some rows into c.
    ///
    /// # Safety
    /// The processor has the kernel's instructions, `sums` holds the rows, and no other task has this part of c.
    unsafe fn put<E: Element<Acc = R>>(
        &self,
        rows: Range<usize>,
        &Columns { first, cols, vectors }: &Columns,
        sums: *const f32,
        to: Destination<E>,
    ) {
        let plain = !self.add && self.finish.scale.is_none() && self.finish.bias.is_none();
        let width = vectors * K::LANES;
        if plain && E::DTYPE == crate::DType::BF16 {
            // SAFETY: the task's own rows and columns, of bf16; the sums of a row lie `width` after the one before.
            return unsafe {
                let to = (to.data.add(rows.start * to.stride + first).cast::<half::bf16>(), to.stride);
                K::round([rows.len(), cols], sums, width, to.0, to.1)
            };
        }
        for (i, row) in rows.enumerate() {
            // SAFETY: the task's own rows and columns; the sums of a row lie `width` after the one before.
            let (to, sums) =
                unsafe { (to.part(row, first, cols), std::slice::from_raw_parts(sums.add(i * width), cols)) };
            // SAFETY: the caller's promise.
            unsafe { K::within(|| self.finish.sums(sums, to, first, self.add)) }
        }
    }
}

/// A tile over and over, all of whose operands lie in the first-level cache.
pub(super) fn peak<K: Kernel>() -> f64 {
    const WORDS: usize = 128;
    const RUNS: usize = 20_000;
    let (vectors, rows) = (K::VECTORS, K::rows(K::VECTORS));
    let width = vectors * K::LANES;
    let a = vec![K::Of::default(); rows * WORDS * K::PAIR * K::PARTS];
    let mut scratch = Scratch::default();
    let panel = scratch.panel.room(WORDS * width * K::PARTS).as_ptr();
    let sums = scratch.sums.room(rows * width).as_mut_ptr();
    // SAFETY: `gemm::peak` chose the kernel for this processor; the operands have the sizes of this tile.
    unsafe {
        K::begin();
        for _ in 0..RUNS {
            let stride = WORDS * K::PAIR * K::PARTS;
            K::tile(rows, vectors, WORDS, a.as_ptr(), stride, panel.cast(), sums.cast(), true, K::PARTS);
        }
        K::end();
    }
    (RUNS * 2 * rows * width * WORDS * K::PAIR) as f64
}
