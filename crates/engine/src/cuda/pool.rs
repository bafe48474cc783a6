//! Memory of a card that tensors leave behind, for the tensors that come after: a step of known shapes allocates nothing after
//! the first.

use std::collections::BTreeMap;

use super::driver::Pointer;

/// Larger blocks come in multiples of this, which is what the driver hands out.
const LARGE: usize = 2 << 20;
const SMALL: usize = 512;

/// In which sizes memory comes, and how much of it is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    #[default]
    Card,
    /// Those of the CPU's [`pool`](crate::pool), for planning.
    Processor,
}

#[derive(Default)]
pub struct Pool {
    policy: Policy,
    /// Free blocks by size.
    free: BTreeMap<usize, Vec<Pointer>>,
    /// Taken from the driver.
    pub reserved: usize,
    pub used: usize,
    /// The most that was ever taken from the driver.
    pub peak_reserved: usize,
    pub peak_used: usize,
    /// The same since the pool was made; that one is set back where a peak is looked for anew.
    most_used: usize,
}

/// The size of the block that holds so many bytes.
pub fn block(bytes: usize) -> usize {
    let unit = if bytes <= LARGE / 2 { SMALL } else { LARGE };
    bytes.max(1).next_multiple_of(unit)
}

impl Pool {
    pub fn new(policy: Policy) -> Pool {
        Pool { policy, ..Pool::default() }
    }

    /// The size of the block that holds so many bytes.
    pub fn block(&self, bytes: usize) -> usize {
        match self.policy {
            Policy::Card => block(bytes),
            Policy::Processor => crate::pool::block(bytes),
        }
    }

    /// Gives up what the CPU's pool would before it asks for so many bytes more.
    pub fn make_room(&mut self, size: usize) {
        if self.policy == Policy::Card {
            return;
        }
        let mut kept = self.reserved - self.used;
        while kept > 0 && crate::pool::beyond(kept, size, self.used, self.most_used) > 0 {
            let Some((size, mut blocks)) = self.free.pop_first() else { break };
            blocks.pop();
            if !blocks.is_empty() {
                self.free.insert(size, blocks);
            }
            self.reserved -= size;
            kept -= size;
        }
    }

    /// A free block that holds `size` bytes and is at most an eighth too large, with its size.
    pub fn take(&mut self, size: usize) -> Option<(Pointer, usize)> {
        let most = if self.policy == Policy::Card { size + size / 8 } else { size };
        let (&found, blocks) = self.free.range_mut(size..=most).next()?;
        let pointer = blocks.pop()?;
        if blocks.is_empty() {
            self.free.remove(&found);
        }
        self.used(found);
        Some((pointer, found))
    }

    /// A new block of the driver's.
    pub fn grown(&mut self, size: usize) {
        self.reserved += size;
        self.peak_reserved = self.peak_reserved.max(self.reserved);
        self.used(size);
    }

    fn used(&mut self, size: usize) {
        self.used += size;
        self.peak_used = self.peak_used.max(self.used);
        self.most_used = self.most_used.max(self.used);
    }

    pub fn give(&mut self, pointer: Pointer, size: usize) {
        self.used -= size;
        if self.policy == Policy::Processor && !crate::pool::keeps(size) {
            self.reserved -= size;
            return;
        }
        self.free.entry(size).or_default().push(pointer);
    }

    /// All free blocks, to be handed back to the driver.
    pub fn give_up(&mut self) -> Vec<Pointer> {
        let free = std::mem::take(&mut self.free);
        self.reserved -= free.iter().map(|(size, blocks)| size * blocks.len()).sum::<usize>();
        free.into_values().flatten().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_block_is_taken_again_unless_it_is_much_too_large() {
        let mut pool = Pool::default();
        pool.grown(block(100 << 20));
        pool.give(7, block(100 << 20));
        assert_eq!((pool.reserved, pool.used, pool.peak_used), (100 << 20, 0, 100 << 20));
        assert_eq!(pool.take(block(50 << 20)), None);
        assert_eq!(pool.take(block(95 << 20)), Some((7, 100 << 20)));
        assert_eq!(pool.take(block(95 << 20)), None);
        pool.give(7, 100 << 20);
        assert_eq!(pool.give_up(), [7]);
        assert_eq!((pool.reserved, pool.peak_reserved), (0, 100 << 20));
    }

    #[test]
    fn blocks_hold_what_was_asked_for() {
        for n in [0, 1, 511, 512, 513, 1 << 20, (1 << 20) + 1, 5 << 20] {
            assert!(block(n) >= n.max(1) && block(block(n)) == block(n), "{n}");
        }
    }
}
