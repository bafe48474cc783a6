//! Where the time goes, by op: spans around ops, and the arithmetic that products and attention count into them.
//!
//! Off unless started; then a span costs two clock readings. Where a card works, its time is taken on its own stream: the host
//! is ahead of it and reads the marks when the profile is stopped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::cuda::{CudaDevice, Mark};

static ON: AtomicBool = AtomicBool::new(false);
static STATE: Mutex<State> = Mutex::new(State { entries: BTreeMap::new(), marks: Vec::new(), current: None });

type Op = (&'static str, Pass);

struct State {
    entries: BTreeMap<Op, Entry>,
    /// Spans of cards, still to be read.
    marks: Vec<(Op, [Mark; 2])>,
    current: Option<Op>,
}

/// Direction of a pass through an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    Forward,
    Backward,
}

/// What one op took in one direction, since the profile was started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Entry {
    pub calls: u64,
    pub seconds: f64,
    /// Floating-point operations of its products.
    pub flops: f64,
    /// Bytes of its products' factors and results, each counted once a product.
    pub bytes: f64,
}

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets what was counted, and starts counting.
pub fn start() {
    let mut state = state();
    state.entries.clear();
    state.marks.clear();
    ON.store(true, Ordering::Relaxed);
}

/// Stops counting; what was counted, by op and direction.
pub fn stop() -> Vec<(&'static str, Pass, Entry)> {
    ON.store(false, Ordering::Relaxed);
    let mut state = state();
    for (op, [start, end]) in std::mem::take(&mut state.marks) {
        if let (Some(seconds), Some(entry)) = (start.seconds_to(&end), state.entries.get_mut(&op)) {
            entry.seconds += seconds;
        }
    }
    std::mem::take(&mut state.entries).into_iter().map(|((op, pass), e)| (op, pass, e)).collect()
}

/// Counts the time until it is dropped.
pub(crate) struct Span(Option<(Op, Start)>);

enum Start {
    Host(Instant),
    Card(Mark),
}

/// A mark on the card that works, if one does.
fn mark() -> Option<Mark> {
    CudaDevice::opened().last().and_then(CudaDevice::mark)
}

/// Ops do not nest; the outer one of two spans gets the time of both.
pub(crate) fn span(op: &'static str, pass: Pass) -> Span {
    if !ON.load(Ordering::Relaxed) {
        return Span(None);
    }
    let mut state = state();
    if state.current.is_some() {
        return Span(None);
    }
    state.current = Some((op, pass));
    Span(Some(((op, pass), mark().map_or_else(|| Start::Host(Instant::now()), Start::Card))))
}

impl Drop for Span {
    fn drop(&mut self) {
        let Some((op, start)) = self.0.take() else { return };
        let mut state = state();
        state.current = None;
        let entry = state.entries.entry(op).or_default();
        entry.calls += 1;
        match start {
            Start::Host(start) => entry.seconds += start.elapsed().as_secs_f64(),
            Start::Card(start) => {
                if let Some(end) = mark() {
                    state.marks.push((op, [start, end]));
                }
            }
        }
    }
}

/// Adds arithmetic to the op under way.
pub(crate) fn count(flops: f64, bytes: f64) {
    if !ON.load(Ordering::Relaxed) {
        return;
    }
    let mut state = state();
    if let Some(current) = state.current {
        let entry = state.entries.entry(current).or_default();
        entry.flops += flops;
        entry.bytes += bytes;
    }
}
