//! The tables of cosines and sines that a pass turns queries and keys by.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use loratune_engine::ops::RopeTable;

use crate::batch::Batch;
use crate::rope::RopeSpec;

/// What turns a pass's tokens in the layers of one rotary embedding.
#[derive(Clone)]
pub(super) struct Rotation {
    pub table: Arc<RopeTable>,
    /// The table's row for each token.
    pub rows: Arc<[u32]>,
}

/// Fewest positions of a table that is kept.
const LEAST: usize = 512;

/// The tables that passes share, one for each rotary embedding, as long as was needed so far.
#[derive(Debug, Default)]
pub(super) struct Tables(Mutex<BTreeMap<usize, Cached>>);

/// A table, and which frequencies it is of ([`RopeSpec::regime`]).
type Cached = (usize, Arc<RopeTable>);

impl Clone for Tables {
    fn clone(&self) -> Tables {
        Tables(Mutex::new(self.0.lock().unwrap_or_else(|e| e.into_inner()).clone()))
    }
}

impl Tables {
    /// The rotation by embedding number `index` of a batch. Without `lengths` the frequencies are of the longest document; with
    /// them, document i's are of a sequence of `lengths[i]` tokens whatever the others are.
    ///
    /// A kept table grows to powers of two up to `max` positions. Frequencies that hardly come again (dynamic scaling), and
    /// those of documents that differ, get a table of just the rows that the pass needs.
    pub fn rotation(
        &self,
        index: usize,
        rope: &RopeSpec,
        batch: &Batch,
        lengths: Option<&[usize]>,
        max: usize,
    ) -> Rotation {
        let longest = batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
        let regime = rope.regime(longest);
        match lengths {
            Some(lengths) if rope.is_own(longest) || lengths.iter().any(|&l| rope.regime(l) != regime) => {
                by_token(rope, batch, lengths)
            }
            _ if rope.is_own(longest) => {
                let (frequencies, scale) = rope.frequencies(longest);
                let table = Arc::new(RopeTable::new(&frequencies, longest, scale));
                Rotation { table, rows: batch.positions.clone() }
            }
            _ => Rotation {
                table: self.kept(index, rope, regime, longest, max),
                rows: batch.positions.clone(),
            },
        }
    }

    fn kept(
        &self,
        index: usize,
        rope: &RopeSpec,
        regime: usize,
        longest: usize,
        max: usize,
    ) -> Arc<RopeTable> {
        let mut kept = self.0.lock().unwrap_or_else(|e| e.into_inner());
        match kept.get(&index) {
            Some((known, table)) if *known == regime && table.positions() >= longest => table.clone(),
            _ => {
                let positions = longest.next_power_of_two().max(LEAST).min(max.max(longest));
                let (frequencies, scale) = rope.frequencies(longest);
                let table = Arc::new(RopeTable::new(&frequencies, positions, scale));
                kept.insert(index, (regime, table.clone()));
                table
            }
        }
    }
}

/// A row for each token, by the frequencies of its document.
fn by_token(rope: &RopeSpec, batch: &Batch, lengths: &[usize]) -> Rotation {
    let each: Vec<(Vec<f32>, f64)> = lengths.iter().map(|&l| rope.frequencies(l)).collect();
    let scale = each.first().map_or(1.0, |(_, scale)| *scale);
    let document: Vec<usize> =
        batch.documents.ranges().enumerate().flat_map(|(i, r)| std::iter::repeat_n(i, r.len())).collect();
    let angle = |token: usize, i: usize| batch.positions[token] as f32 * each[document[token]].0[i];
    let table = Arc::new(RopeTable::of_angles(batch.tokens(), rope.dim / 2, scale, angle));
    Rotation { table, rows: (0..batch.tokens() as u32).collect() }
}
