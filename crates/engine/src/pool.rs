//! Memory that tensors leave behind, for the tensors that come after.
//!
//! A training step asks for the same sizes again and again; fresh memory from the system costs a page fault every 4 KiB, more
//! than most ops take to fill it. What is kept makes a process larger than its tensors were at their peak by [`SLACK_BYTES`] at
//! most: before new memory is asked for, as much of what is kept beyond these is given up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::tensor::Buffer;
use crate::{DType, Element};

/// A huge page.
pub(crate) const PAGE: usize = 2 << 20;

/// Smaller vectors are left to the allocator.
const LEAST_BYTES: usize = 64 << 10;

/// Kept beyond the peak whatever is asked for: sizes that one half of a step leaves behind are not those that the other asks
/// for, and ops have memory of their own.
const SLACK_BYTES: usize = 512 << 20;

/// Bytes of all tensors, and the most of them so far.
static USED: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// How much of what is kept has to go before so many bytes more.
pub(crate) fn beyond(kept: usize, asked: usize, used: usize, peak: usize) -> usize {
    (used + kept + asked).saturating_sub(peak.max(used) + SLACK_BYTES)
}

#[derive(Default)]
struct Pool {
    /// By type and class, each with the number it was kept under.
    kept: BTreeMap<(u8, usize), Vec<(u64, Buffer)>>,
    bytes: usize,
    number: u64,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

fn pool() -> MutexGuard<'static, Option<Pool>> {
    POOL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The step between sizes that share a class: a sixteenth of the power of two below.
fn step(n: usize) -> usize {
    1 << n.max(16).ilog2().saturating_sub(4)
}

/// The least class that holds n elements.
fn class_above(n: usize) -> usize {
    n.next_multiple_of(step(n))
}

/// The largest class that n elements hold.
fn class_below(n: usize) -> usize {
    n - n % step(n)
}

/// Whether memory of this size is kept.
pub(crate) fn keeps(bytes: usize) -> bool {
    bytes >= LEAST_BYTES
}

/// The memory that so many bytes take, for planning: of a class, as near as bytes of an unknown type tell it.
pub(crate) fn block(bytes: usize) -> usize {
    if keeps(bytes) { class_above(bytes) } else { bytes }
}

fn key(dtype: DType, class: usize) -> (u8, usize) {
    (dtype as u8, class)
}

impl Pool {
    fn take(&mut self, dtype: DType, class: usize) -> Option<Buffer> {
        let kept = self.kept.get_mut(&key(dtype, class))?;
        let (_, buffer) = kept.pop()?;
        self.bytes -= class * dtype.size();
        Some(buffer)
    }

    fn keep(&mut self, class: usize, buffer: Buffer) {
        self.number += 1;
        self.bytes += class * buffer.dtype().size();
        self.kept.entry(key(buffer.dtype(), class)).or_default().push((self.number, buffer));
    }

    /// Gives up at least so many bytes, what was kept longest first.
    fn give_up(&mut self, bytes: usize) -> Vec<Buffer> {
        let mut given_up = Vec::new();
        let target = self.bytes.saturating_sub(bytes);
        while self.bytes > target {
            let oldest = self.kept.iter_mut().filter(|(_, kept)| !kept.is_empty());
            let Some((&(_, class), kept)) = oldest.min_by_key(|(_, kept)| kept[0].0) else { break };
            let (_, buffer) = kept.remove(0);
            self.bytes -= class * buffer.dtype().size();
            given_up.push(buffer);
        }
        self.kept.retain(|_, kept| !kept.is_empty());
        given_up
    }
}

/// n elements of no particular value, for results of which every element is written.
pub(crate) fn any<E: Element>(n: usize) -> Vec<E> {
    if n * size_of::<E>() < LEAST_BYTES {
        return vec![E::default(); n];
    }
    let class = class_above(n);
    let (found, given_up) = {
        let mut pool = pool();
        let pool = pool.get_or_insert_default();
        match pool.take(E::DTYPE, class) {
            Some(buffer) => (E::vec(buffer), Vec::new()),
            None => {
                let asked = class * size_of::<E>();
                let (used, peak) = (USED.load(Ordering::Relaxed), PEAK.load(Ordering::Relaxed));
                (None, pool.give_up(beyond(pool.bytes, asked, used, peak)))
            }
        }
    };
    drop(given_up);
    let mut vec = found.unwrap_or_else(|| untouched(class));
    vec.truncate(n);
    vec
}

/// n zeros as the system gives them: memory that nothing was written to, in huge pages where it has them.
fn untouched<E: Element>(n: usize) -> Vec<E> {
    use std::alloc::{Layout, alloc_zeroed, handle_alloc_error};
    let Ok(layout) = Layout::array::<E>(n) else { return vec![E::default(); n] };
    if layout.size() == 0 {
        return vec![E::default(); n];
    }
    // SAFETY: the layout has a size; the memory is a vector's of n elements, whose zero is all bits zero.
    let vec = unsafe {
        let data = alloc_zeroed(layout).cast::<E>();
        if data.is_null() {
            handle_alloc_error(layout);
        }
        Vec::from_raw_parts(data, n, n)
    };
    in_huge_pages(&vec);
    vec
}

/// Asks the system for pages of 2 MiB behind a large vector that nothing was written to yet: 512 page faults become one. Where
/// the system has none, all stays as it is.
#[cfg(target_os = "linux")]
pub(crate) fn in_huge_pages<E>(vec: &[E]) {
    let range = vec.as_ptr_range();
    let (start, end) = ((range.start as usize).next_multiple_of(PAGE), range.end as usize / PAGE * PAGE);
    if start < end {
        // SAFETY: the pages lie inside the vector, and advice changes no contents.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn in_huge_pages<E>(_: &[E]) {}

/// n zeros.
pub(crate) fn zeros<E: Element>(n: usize) -> Vec<E> {
    use rayon::prelude::*;
    if n * size_of::<E>() < LEAST_BYTES {
        return vec![E::default(); n];
    }
    let mut vec = any::<E>(n);
    vec.par_chunks_mut(crate::tensor::CHUNK).for_each(|c| c.fill(E::default()));
    vec
}

/// Keeps a vector's memory.
pub(crate) fn keep<E: Element>(mut vec: Vec<E>) {
    if vec.capacity() * size_of::<E>() < LEAST_BYTES {
        return;
    }
    let class = class_below(vec.capacity());
    // What lies beyond the elements, at most a sixteenth, may never have been written.
    vec.resize(class, E::default());
    pool().get_or_insert_default().keep(class, E::buffer(vec));
}

/// A tensor's memory, kept when the tensor goes.
#[derive(Debug, PartialEq)]
pub(crate) struct Pooled(Buffer);

impl Clone for Pooled {
    fn clone(&self) -> Pooled {
        Pooled::new(self.0.clone())
    }
}

fn bytes(buffer: &Buffer) -> usize {
    buffer.len() * buffer.dtype().size()
}

impl Pooled {
    pub fn new(buffer: Buffer) -> Pooled {
        let used = USED.fetch_add(bytes(&buffer), Ordering::Relaxed) + bytes(&buffer);
        PEAK.fetch_max(used, Ordering::Relaxed);
        Pooled(buffer)
    }

    pub fn buffer(&self) -> &Buffer {
        &self.0
    }

    pub fn buffer_mut(&mut self) -> &mut Buffer {
        &mut self.0
    }

    pub fn into_buffer(mut self) -> Buffer {
        self.take()
    }

    fn take(&mut self) -> Buffer {
        USED.fetch_sub(bytes(&self.0), Ordering::Relaxed);
        std::mem::replace(&mut self.0, Buffer::F32(Vec::new()))
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        match self.take() {
            Buffer::F64(v) => keep(v),
            Buffer::F32(v) => keep(v),
            Buffer::BF16(v) => keep(v),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_hold_what_they_are_asked_for_and_are_at_most_a_sixteenth_too_large() {
        for n in (1..5000).chain([1 << 20, (1 << 20) + 1, 3_333_333]) {
            let (above, below) = (class_above(n), class_below(n));
            assert!(below <= n && n <= above && above <= n + n.div_ceil(16).max(1), "{n}: {below} {above}");
            assert_eq!(class_above(above), above, "{n}: a class is its own");
            assert_eq!(class_below(above), above, "{n}: a class is its own");
        }
    }

    #[test]
    fn what_is_kept_is_used_again_and_given_up_before_more_is_asked_for() {
        let mut pool = Pool::default();
        let buffer = |n: usize| Buffer::F32(vec![1.0; n]);
        pool.keep(1 << 15, buffer(1 << 15));
        pool.keep(1 << 16, buffer(1 << 16));
        assert_eq!(pool.bytes, (4 * 3) << 15);
        assert!(pool.take(DType::F64, 1 << 15).is_none());
        assert!(pool.take(DType::F32, 1 << 14).is_none());
        assert_eq!(pool.take(DType::F32, 1 << 16).unwrap().len(), 1 << 16);
        pool.keep(1 << 16, buffer(1 << 16));
        assert_eq!(pool.give_up(1).len(), 1, "the oldest is enough");
        assert_eq!(pool.bytes, 4 << 16);
        assert_eq!(pool.give_up(usize::MAX).len(), 1);
        assert_eq!(pool.bytes, 0);
    }

    #[test]
    fn what_was_in_use_at_the_peak_is_kept() {
        let (peak, slack) = (3 * SLACK_BYTES, SLACK_BYTES);
        assert_eq!(beyond(peak, slack, 0, peak), 0, "slack");
        assert_eq!(beyond(peak, slack, slack, peak), slack, "beyond");
        assert_eq!(beyond(slack, 0, 2 * peak, peak), 0, "a new peak");
    }

    #[test]
    fn zeros_are_zeros_whatever_was_kept() {
        keep(vec![7f32; 100_000]);
        assert!(zeros::<f32>(100_000).iter().all(|&x| x == 0.0));
        assert_eq!(any::<f32>(99_000).len(), 99_000);
    }
}
