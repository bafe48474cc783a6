//! Continuing sequences token by token.

use loratune_engine::ops::{Documents, KvCache};
use loratune_engine::{Mode, Params, Tape, Tensor};

use super::Decoder;
use crate::batch::Batch;
use crate::error::Result;

/// Keys that a layer with a window keeps beyond it, so that the last tokens of a sequence can be taken back.
const RESERVE: usize = 64;
/// Keys that may gather before those behind are dropped: dropping moves all the others.
const BLOCK: usize = 64;

/// The tokens of several sequences with their cached keys and values.
///
/// Layers with a window hold keys and values of at most the window and 128 tokens more, the others of every token. A
/// sequence's tokens do not depend on the others': frequencies that are scaled by the length are of its own length.
#[derive(Debug)]
pub struct Sequences {
    /// By layer, then by sequence.
    layers: Vec<Vec<Held>>,
    /// By layer.
    windows: Vec<Option<usize>>,
    /// By sequence.
    tokens: Vec<Vec<u32>>,
    lengths: Vec<usize>,
    /// By sequence: by what frequencies its keys are turned, for each rotary embedding; `None` if the keys are of no use.
    turned: Vec<Option<Vec<usize>>>,
    /// The sequences that the pass under way continues, and by how many tokens.
    active: Vec<(usize, usize)>,
}

/// Keys and values of a sequence's last tokens in one layer.
#[derive(Clone, Debug, Default)]
struct Held {
    cache: KvCache,
    tokens: usize,
}

impl Sequences {
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Memory of the keys and values.
    pub fn bytes(&self) -> usize {
        self.layers.iter().flatten().map(|held| held.cache.bytes()).sum()
    }

    /// Forgets all but the first `length` tokens of a sequence. If keys that had left a window would be seen again, the next
    /// [`Decoder::extend`] computes the sequence anew.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        let Some(&now) = self.lengths.get(sequence).filter(|&&now| length < now) else { return };
        for (layer, window) in self.layers.iter_mut().zip(&self.windows) {
            let held = &mut layer[sequence];
            let left = held.tokens.saturating_sub(now - length);
            held.cache.shorten(held.tokens, left);
            held.tokens = left;
            if left < window.map_or(length, |w| length.min(w.saturating_sub(1))) {
                self.turned[sequence] = None;
            }
        }
        self.tokens[sequence].truncate(length);
        self.lengths[sequence] = length;
    }

    /// Empties a sequence.
    fn forget(&mut self, sequence: usize) -> Vec<u32> {
        self.layers.iter_mut().for_each(|layer| layer[sequence] = Held::default());
        self.lengths[sequence] = 0;
        self.turned[sequence] = None;
        std::mem::take(&mut self.tokens[sequence])
    }

    /// The lengths that the sequences under way will have.
    pub(super) fn active_lengths(&self) -> Vec<usize> {
        self.active.iter().map(|(s, _)| self.lengths[*s]).collect()
    }

    /// The caches of the sequences under way.
    pub(super) fn layer(&mut self, i: usize) -> Vec<&mut KvCache> {
        let active = &self.active;
        let continued = |s: usize| active.binary_search_by_key(&s, |(s, _)| *s).is_ok();
        let layer = self.layers[i].iter_mut().enumerate();
        layer.filter(|(s, _)| continued(*s)).map(|(_, held)| &mut held.cache).collect()
    }

    /// Counts what a layer has taken, and drops what its window has left behind.
    pub(super) fn taken(&mut self, i: usize) {
        for &(s, new) in &self.active {
            let held = &mut self.layers[i][s];
            held.tokens += new;
            let Some(window) = self.windows[i] else { continue };
            if held.tokens > window.saturating_add(RESERVE + BLOCK) {
                let kept = window + RESERVE;
                held.cache.forget_first(held.tokens, held.tokens - kept, BLOCK + 1);
                held.tokens = kept;
            }
        }
    }
}

impl Decoder {
    /// Room for `n` sequences, all empty.
    pub fn sequences(&self, n: usize) -> Sequences {
        Sequences {
            layers: vec![vec![Held::default(); n]; self.spec.num_layers()],
            windows: self.spec.layers.iter().map(|layer| layer.window).collect(),
            tokens: vec![Vec::new(); n],
            lengths: vec![0; n],
            turned: vec![None; n],
            active: Vec::new(),
        }
    }

    /// Appends tokens to some sequences (`(sequence, tokens)`, sequences ascending, tokens not empty) and returns the
    /// logits after the last token of each, `[appended.len(), vocabulary]`.
    ///
    /// A sequence whose keys are of no use for its new length ([`RopeSpec::key_regime`](crate::rope::RopeSpec::key_regime),
    /// [`Sequences::truncate`]) is computed from its first token on. After an error the sequences are empty.
    ///
    /// # Errors
    /// If a sequence becomes longer than the model's context.
    pub fn extend(
        &self,
        params: &Params,
        sequences: &mut Sequences,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor> {
        let logits = self.try_extend(params, sequences, appended);
        if logits.is_err() {
            appended.iter().for_each(|(s, _)| drop(sequences.forget(*s)));
        }
        logits
    }

    fn try_extend(
        &self,
        params: &Params,
        sequences: &mut Sequences,
        appended: &[(usize, &[u32])],
    ) -> Result<Tensor> {
        debug_assert!(appended.is_sorted_by_key(|(s, _)| s));
        let turned = |length: usize| self.spec.ropes.iter().map(|r| r.key_regime(length)).collect::<Vec<_>>();
        let (mut ids, mut positions, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        sequences.active.clear();
        for (s, tokens) in appended {
            let after = turned(sequences.lengths[*s] + tokens.len());
            let before = match sequences.turned[*s].as_ref() == Some(&after) {
                true => Vec::new(),
                false => sequences.forget(*s),
            };
            let (start, new) = (sequences.lengths[*s], before.len() + tokens.len());
            positions.extend((start..start + new).map(|p| p as u32));
            ids.extend(before.iter().chain(*tokens).copied());
            lengths.push(new);
            sequences.active.push((*s, new));
            sequences.tokens[*s].extend(before.iter().chain(*tokens));
            sequences.lengths[*s] += new;
            sequences.turned[*s] = Some(after);
        }
        let batch = Batch {
            ids: ids.into(),
            documents: Documents::from_lengths(&lengths),
            positions: positions.into(),
            targets: Vec::new(),
            longest_row: lengths.iter().copied().max().unwrap_or(0),
        };
        let mut tape = Tape::new(params, Mode::Infer);
        let x = self.hidden(&mut tape, &batch, Some(sequences), None)?;
        let last: Vec<usize> = batch.documents.ranges().map(|r| r.end - 1).collect();
        self.project_to_vocabulary(&mut tape, x.value().select_rows(&last)?)
    }
}
