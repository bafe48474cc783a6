//! The order in which a run sees its examples: a pure function of seed and epoch, so that a resumed run goes on exactly
//! where it was stopped.

use serde::{Deserialize, Serialize};

use crate::pack::pack;
use crate::rng::permutation;

/// Separates the streams of randomness that share a seed.
const EXAMPLES: u64 = 0;
const ROWS: u64 = 1;

/// Order of the examples in each epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochOrder {
    /// Seed of the run.
    pub seed: u64,
    /// `false` (`disable_shuffling`) keeps the order of the files in every epoch.
    pub shuffle: bool,
}

impl EpochOrder {
    /// A permutation of `0..n` for the epoch (counted from 0).
    pub fn permutation(&self, n: usize, epoch: u64) -> Vec<usize> {
        if self.shuffle { permutation(n, &[self.seed, epoch, EXAMPLES]) } else { (0..n).collect() }
    }
}

/// What an epoch consists of: the examples' lengths, whether they are packed, and their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Tokens of each example.
    pub lengths: Vec<usize>,
    /// Tokens of a packed row; `None` = every example is a row.
    pub capacity: Option<usize>,
    /// Order of the examples.
    pub order: EpochOrder,
}

impl Plan {
    /// The rows of an epoch; each lists the examples in it, which stay separate documents.
    ///
    /// The examples are shuffled first and packed then, so that an epoch mixes its rows anew; packing opens rows by
    /// descending length, so the rows are shuffled too. Each step is a pure function of (seed, epoch, lengths): nothing
    /// depends on threads, on what was drawn before, or on hash order. Every epoch has the same number of rows, because
    /// the shape of the packing depends on the lengths only.
    pub fn rows(&self, epoch: u64) -> Vec<Vec<usize>> {
        let order = self.order.permutation(self.lengths.len(), epoch);
        let Some(capacity) = self.capacity else {
            return order.into_iter().map(|i| vec![i]).collect();
        };
        let lengths: Vec<usize> = order.iter().map(|&i| self.lengths[i]).collect();
        let packed = pack(&lengths, capacity);
        let mut rows: Vec<Vec<usize>> =
            packed.into_iter().map(|row| row.into_iter().map(|k| order[k]).collect()).collect();
        if self.order.shuffle {
            let shuffled = permutation(rows.len(), &[self.order.seed, epoch, ROWS]);
            rows = shuffled.into_iter().map(|i| std::mem::take(&mut rows[i])).collect();
        } else {
            // Without shuffling, rows follow the file as well as packing allows.
            rows.iter_mut().for_each(|row| row.sort_unstable());
            rows.sort_unstable_by_key(|row| row.first().copied());
        }
        rows
    }

    /// Rows in every epoch.
    pub fn rows_per_epoch(&self) -> usize {
        match self.capacity {
            Some(capacity) => pack(&self.lengths, capacity).len(),
            None => self.lengths.len(),
        }
    }

    /// Batches of `batch_size` rows in every epoch; the last may be smaller.
    pub fn batches_per_epoch(&self, batch_size: usize) -> usize {
        self.rows_per_epoch().div_ceil(batch_size.max(1))
    }

    /// The rows of one batch of an epoch: a pure function of (epoch, index). Empty past the end. Use [`Self::rows`] once
    /// an epoch and cut it into chunks when many batches are wanted.
    pub fn batch(&self, epoch: u64, index: usize, batch_size: usize) -> Vec<Vec<usize>> {
        let size = batch_size.max(1);
        self.rows(epoch).into_iter().skip(index.saturating_mul(size)).take(size).collect()
    }
}
