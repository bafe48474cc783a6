//! Continuing sequences token by token.

use loratune_engine::ops::{Documents, KvCache};
use loratune_engine::{Mode, Params, Tape, Tensor};

use super::Decoder;
use crate::batch::Batch;
use crate::error::Result;

/// The cached keys and values of several sequences.
#[derive(Debug)]
pub struct Sequences {
    /// By layer, then by sequence.
    layers: Vec<Vec<KvCache>>,
    lengths: Vec<usize>,
    /// The sequences that the pass under way continues.
    active: Vec<usize>,
}

impl Sequences {
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Forgets all but the first `length` tokens of a sequence.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        let Some(now) = self.lengths.get_mut(sequence) else { return };
        for layer in &mut self.layers {
            layer[sequence].shorten(*now, length);
        }
        *now = length.min(*now);
    }

    pub(super) fn layer(&mut self, i: usize) -> Vec<&mut KvCache> {
        let active = &self.active;
        self.layers[i].iter_mut().enumerate().filter(|(s, _)| active.contains(s)).map(|(_, c)| c).collect()
    }
}

impl Decoder {
    /// Room for `n` sequences, all empty.
    pub fn sequences(&self, n: usize) -> Sequences {
        let layers = (0..self.spec.num_layers()).map(|_| vec![KvCache::default(); n]).collect();
        Sequences { layers, lengths: vec![0; n], active: Vec::new() }
    }

    /// Appends tokens to some sequences (`(sequence, tokens)`, sequences ascending, tokens not empty) and returns the
    /// logits after the last token of each, `[appended.len(), vocabulary]`.
    pub fn extend(
        &self,
        params: &Params,
        sequences: &mut Sequences,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor> {
        sequences.active = appended.iter().map(|(s, _)| *s).collect();
        debug_assert!(sequences.active.is_sorted());
        let lengths: Vec<usize> = appended.iter().map(|(_, t)| t.len()).collect();
        let positions: Vec<u32> = appended
            .iter()
            .flat_map(|(s, t)| (sequences.lengths[*s]..sequences.lengths[*s] + t.len()).map(|p| p as u32))
            .collect();
        let batch = Batch {
            ids: appended.iter().flat_map(|(_, t)| t.iter().copied()).collect(),
            documents: Documents::from_lengths(&lengths),
            positions: positions.into(),
            targets: Vec::new(),
            longest_row: lengths.iter().copied().max().unwrap_or(0),
        };
        let mut tape = Tape::new(params, Mode::Infer);
        let x = self.hidden(&mut tape, &batch, Some(sequences), None)?;
        for (s, t) in appended {
            sequences.lengths[*s] += t.len();
        }
        let last: Vec<usize> = batch.documents.ranges().map(|r| r.end - 1).collect();
        self.project_to_vocabulary(&mut tape, x.value().select_rows(&last)?)
    }
}
