//! Cutting examples to `cutoff_len`.

use std::ops::Range;

/// How many tokens of a prompt and of its response are kept within a budget: LLaMA-Factory 0.9.5's `infer_seqlen`. A short
/// response is kept whole at the prompt's cost, a short prompt at the response's; otherwise both shrink in proportion.
pub fn infer_seqlen(source: usize, target: usize, cutoff: usize) -> (usize, usize) {
    let max_target = if target.saturating_mul(2) < cutoff {
        cutoff
    } else if source.saturating_mul(2) < cutoff {
        cutoff - source
    } else {
        // Python's int(cutoff * (target / (source + target))), in the same f64 arithmetic.
        (cutoff as f64 * (target as f64 / (source + target) as f64)) as usize
    };
    let new_target = max_target.min(target);
    let new_source = cutoff.saturating_sub(new_target).min(source);
    (new_source, new_target)
}

/// The token ranges of a conversation that fit into `cutoff`, ascending. `responses` are the token ranges of its trained
/// responses within `0..len`.
///
/// As LLaMA-Factory does: each response with the tokens before it is a turn; turns are served in order, each with the
/// budget that is left, and keep the head of prompt and response; with `mask_history`, the last turn is served first.
/// What follows the last response is dropped. A conversation that fits is left alone.
pub fn truncate_turns(
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
    if last_first {
        turns.reverse();
    }
    let mut left = cutoff;
    let mut kept = Vec::new();
    for (source, target) in turns {
        if left == 0 {
            break;
        }
        let (s, t) = infer_seqlen(source.len(), target.len(), left);
        kept.push(source.start..source.start + s);
        kept.push(target.start..target.start + t);
        left = left.saturating_sub(s + t);
    }
    kept.retain(|r| !r.is_empty());
    kept.sort_by_key(|r| r.start);
    kept
}

/// The items in the kept ranges.
pub(crate) fn keep<T: Copy>(items: &[T], kept: &[Range<usize>]) -> Vec<T> {
    kept.iter().flat_map(|r| items.get(r.clone()).unwrap_or_default()).copied().collect()
}
