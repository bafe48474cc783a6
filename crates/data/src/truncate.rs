//! Cutting examples to `cutoff_len`.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How a budget of tokens is divided between a prompt and its response. Both keep their beginning.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Truncation {
    /// A short response is kept whole at the prompt's cost, a short prompt at the response's; otherwise both shrink in
    /// proportion. LLaMA-Factory's `infer_seqlen`, from 0.8 on (0.9.5).
    #[default]
    Balanced,
    /// Both shrink in proportion, but this many tokens of the response are kept (`reserved_label_len`, 1 by default).
    /// LLaMA-Factory's `infer_max_len` up to 0.7.1.
    Proportional(usize),
}

impl Truncation {
    /// How many tokens of a prompt of `source` tokens and of its response of `target` tokens are kept within a budget.
    pub fn split(self, source: usize, target: usize, budget: usize) -> (usize, usize) {
        // Python's int(budget * (target / (source + target))), in the same f64 arithmetic.
        let share = || match source + target {
            0 => 0,
            all => (budget as f64 * (target as f64 / all as f64)) as usize,
        };
        match self {
            Self::Balanced => {
                let max_target = if target.saturating_mul(2) < budget {
                    budget
                } else if source.saturating_mul(2) < budget {
                    budget - source
                } else {
                    share()
                };
                let new_target = max_target.min(target);
                (budget.saturating_sub(new_target).min(source), new_target)
            }
            Self::Proportional(reserved) => {
                let new_target = share().max(reserved).min(target);
                (budget.saturating_sub(new_target).min(source), new_target)
            }
        }
    }

    /// The token ranges that are kept of prompts and responses, ascending; `pairs` are their ranges, ascending. Pairs are
    /// served in order, each with the budget that is left; with `last_first`, from the last one back. Those for which
    /// nothing is left are left out.
    pub(crate) fn keep_pairs(
        self,
        pairs: impl DoubleEndedIterator<Item = (Range<usize>, Range<usize>)>,
        budget: usize,
        last_first: bool,
    ) -> Vec<Range<usize>> {
        let mut left = budget;
        let mut kept = Vec::new();
        let mut serve = |(source, target): (Range<usize>, Range<usize>)| {
            if left > 0 {
                let (s, t) = self.split(source.len(), target.len(), left);
                kept.push(source.start..source.start + s);
                kept.push(target.start..target.start + t);
                left = left.saturating_sub(s + t);
            }
        };
        if last_first {
            pairs.rev().for_each(&mut serve);
        } else {
            pairs.for_each(&mut serve);
        }
        kept.retain(|r| !r.is_empty());
        kept.sort_by_key(|r| r.start);
        kept
    }
}

/// The token ranges of a conversation that fit into `cutoff`, ascending. `responses` are the token ranges of its trained
/// responses within `0..len`.
///
/// As LLaMA-Factory does: each response with the tokens before it is a turn; turns are served in order, each with the
/// budget that is left, and keep the head of prompt and response; with `mask_history`, the last turn is served first.
/// What follows the last response is dropped. A conversation that fits is left alone.
pub fn truncate_turns(
    rule: Truncation,
    len: usize,
    responses: &[Range<usize>],
    cutoff: usize,
    last_first: bool,
) -> Vec<Range<usize>> {
    if len <= cutoff {
        return std::iter::once(0..len).collect();
    }
    let mut from = 0;
    let mut turns = Vec::with_capacity(responses.len());
    for response in responses {
        turns.push((from..response.start, response.clone()));
        from = response.end;
    }
    rule.keep_pairs(turns.into_iter(), cutoff, last_first)
}

/// The items in the kept ranges.
pub(crate) fn keep<T: Copy>(items: &[T], kept: &[Range<usize>]) -> Vec<T> {
    kept.iter().flat_map(|r| items.get(r.clone()).unwrap_or_default()).copied().collect()
}
