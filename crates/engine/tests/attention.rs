//! What attention costs: memory by an allocator that counts, arithmetic by the profile. Both are the whole process's, so
//! there is one test, in a program of its own.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use loratune_engine::ops::{self, AttentionConfig, Documents};
use loratune_engine::profile::{self, Pass};
use loratune_engine::rng::Key;
use loratune_engine::{Gradients, Mode, Params, Tape, Tensor};

static LIVE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call is handed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        PEAK.fetch_max(LIVE.fetch_add(layout.size(), Relaxed) + layout.size(), Relaxed);
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Relaxed);
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const HEADS: usize = 2;
const KV_HEADS: usize = 1;
const DIM: usize = 8;
/// Queries and keys are taken in blocks of so many.
const BLOCK: usize = 64;

/// What one forward and backward pass over a document took.
struct Cost {
    /// Bytes above those that were there before.
    peak: usize,
    /// Scores computed, of one head: by the operations of two products forward, of five backward.
    scores: [f64; 2],
}

fn cost(tokens: usize, window: Option<usize>) -> Cost {
    let mut params = Params::new();
    let [q, k, v] = [("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)].map(|(name, heads)| {
        let key = Key::new(3).named(name);
        let data: Vec<f32> = (0..(tokens * heads * DIM) as u64).map(|i| key.normal(i) as f32).collect();
        params.add(name, Tensor::from_vec(data, &[tokens, heads * DIM]).unwrap()).unwrap()
    });
    let dy = params.value(q).clone();
    let mut grads = Gradients::new(&params);
    let config = AttentionConfig {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: DIM,
        scale: 0.3,
        window,
        softcap: None,
    };

    let before = LIVE.load(Relaxed);
    PEAK.store(before, Relaxed);
    profile::start();
    let mut tape = Tape::new(&params, Mode::Grad);
    let [q, k, v] = [q, k, v].map(|id| tape.param(id));
    let y = ops::attention(&mut tape, &q, &k, &v, &Documents::from_lengths(&[tokens]), &config).unwrap();
    tape.backward_with(&y, dy, &mut grads).unwrap();
    let counted = profile::stop();
    let scores = [(Pass::Forward, 2), (Pass::Backward, 5)].map(|(pass, products)| {
        let of = |entry: &&(&str, Pass, profile::Entry)| entry.0 == "attention" && entry.1 == pass;
        counted.iter().find(of).unwrap().2.flops / (2 * products * HEADS * DIM) as f64
    });
    Cost { peak: PEAK.load(Relaxed) - before, scores }
}

#[test]
fn memory_is_linear_in_the_tokens_and_a_window_costs_what_it_sees() {
    let n = 8192;
    // What is kept: the output, three gradients by head, their sums, a few numbers a query.
    let linear = (n * (2 + 3) * (HEADS + 2 * KV_HEADS) * DIM * size_of::<f32>()) as f64;
    for window in [None, Some(512), Some(1)] {
        let (half, whole) = (cost(n / 2, window), cost(n, window));
        // All scores of one head alone would be 268 MB.
        assert!((whole.peak as f64) < linear, "window {window:?}: {} bytes", whole.peak);
        let growth = whole.peak as f64 / half.peak as f64;
        assert!(growth < 2.2, "window {window:?}: twice the tokens take {growth} times the memory");
        // A block of queries sees at most the window before its first query, and its own tokens.
        let seen = window.unwrap_or(n).min(n);
        for (scores, pass) in whole.scores.into_iter().zip(["forward", "backward"]) {
            assert!(
                scores <= (n * (seen + BLOCK)) as f64,
                "{pass} with window {window:?}: {scores} scores computed"
            );
            let visible = (0..n).map(|i| (i + 1).min(seen)).sum::<usize>() as f64;
            assert!(scores >= visible, "{pass} with window {window:?}: {scores} of {visible} scores");
            // The causal half of everything, but for the blocks on the diagonal.
            assert!(scores <= visible + (n * BLOCK) as f64, "{pass} with window {window:?}: {scores}");
        }
    }
}
