//! Generation: prompts in, tokens out, with cached keys and values.

use loratune_engine::rng::Key;
use loratune_engine::{Params, Tensor};

use crate::decoder::{Decoder, Sequences};
use crate::error::{Error, Result};

/// How tokens are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// 0 takes the most probable token.
    pub temperature: f64,
    /// Only the most probable tokens whose probabilities sum up to this are kept; 1 keeps all.
    pub top_p: f64,
    /// Only this many most probable tokens are kept; 0 keeps all.
    pub top_k: usize,
    pub seed: u64,
    /// Number of the first prompt in a longer list that is worked off in parts: every prompt's randomness is its own,
    /// however the list is divided.
    pub first: usize,
    pub max_new_tokens: usize,
    /// Ids that end a sequence; they are part of the output.
    pub stop: Vec<u32>,
}

impl Sampling {
    /// Greedy decoding.
    pub fn greedy(max_new_tokens: usize, stop: Vec<u32>) -> Sampling {
        Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0, first: 0, max_new_tokens, stop }
    }
}

/// One finished sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens, with the stop token if one came.
    pub tokens: Vec<u32>,
    /// Whether it ended by a stop token rather than by length.
    pub stopped: bool,
}

/// Continues every prompt. `on_token(prompt, token)` is called as tokens come; returning false ends everything.
///
/// # Errors
/// If a prompt is empty, or longer than the model's context.
pub fn generate(
    decoder: &Decoder,
    params: &Params,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
    on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Generated>> {
    continue_sequences(decoder, params, &mut decoder.sequences(prompts.len()), prompts, sampling, on_token)
}

/// As [`generate`], for sequences that hold something already: `prompts[i]` is appended to sequence `i`. Afterwards a
/// sequence holds its prompt and its new tokens but, as a rule, the last one, which nothing has followed yet; see
/// [`Sequences::lengths`].
///
/// # Errors
/// If a prompt is empty, or a sequence becomes longer than the model's context.
pub fn continue_sequences(
    decoder: &Decoder,
    params: &Params,
    sequences: &mut Sequences,
    prompts: &[Vec<u32>],
    sampling: &Sampling,
    mut on_token: impl FnMut(usize, u32) -> bool,
) -> Result<Vec<Generated>> {
    if let Some(i) = prompts.iter().position(Vec::is_empty) {
        return Err(Error::Invalid(format!(
            "prompt {} is empty: there is nothing to continue",
            sampling.first + i + 1
        )));
    }
    let max = decoder.spec().max_positions;
    let lengths = prompts.iter().zip(sequences.lengths()).map(|(p, held)| p.len() + held);
    if let Some(length) = lengths.max().filter(|&l| l > max) {
        return Err(Error::ContextLength { length, max });
    }
    let mut out = vec![Generated { tokens: Vec::new(), stopped: false }; prompts.len()];
    let mut pending: Vec<(usize, Vec<u32>)> = prompts.iter().cloned().enumerate().collect();
    for step in 0..sampling.max_new_tokens {
        let appended: Vec<(usize, &[u32])> = pending.iter().map(|(s, t)| (*s, t.as_slice())).collect();
        if appended.is_empty() {
            break;
        }
        let logits = decoder.extend(params, sequences, &appended)?;
        let mut next = Vec::with_capacity(pending.len());
        for (row, (s, _)) in pending.iter().enumerate() {
            let key = Key::new(sampling.seed).named("sample").with((sampling.first + *s) as u64);
            let token = choose(&logits, row, sampling, key.uniform(step as u64))?;
            out[*s].tokens.push(token);
            if !on_token(*s, token) {
                return Ok(out);
            }
            out[*s].stopped = sampling.stop.contains(&token);
            if !out[*s].stopped && sequences.lengths()[*s] < max {
                next.push((*s, vec![token]));
            }
        }
        pending = next;
    }
    Ok(out)
}

/// Picks a token from one row of logits; `u` is uniform in [0, 1).
fn choose(logits: &Tensor, row: usize, sampling: &Sampling, u: f64) -> Result<u32> {
    let vocabulary = logits.cols();
    let row = &logits.slice::<f32>()?[row * vocabulary..][..vocabulary];
    if let Some(i) = row.iter().position(|l| !l.is_finite()) {
        return Err(Error::Invalid(format!(
            "the model's logit of token {i} is not finite: the weights are damaged, or bf16 overflowed"
        )));
    }
    let mut order: Vec<u32> = (0..vocabulary as u32).collect();
    let by_logit = |a: &u32, b: &u32| row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b));
    if sampling.temperature <= 0.0 {
        return Ok(order.into_iter().min_by(by_logit).unwrap_or(0));
    }
    order.sort_unstable_by(by_logit);
    if sampling.top_k > 0 {
        order.truncate(sampling.top_k);
    }
    let max = row[order[0] as usize] as f64;
    let mut weights: Vec<f64> =
        order.iter().map(|&i| ((row[i as usize] as f64 - max) / sampling.temperature).exp()).collect();
    let total: f64 = weights.iter().sum();
    if sampling.top_p < 1.0 {
        let mut sum = 0.0;
        let keep = weights.iter().position(|w| {
            sum += w / total;
            sum >= sampling.top_p
        });
        weights.truncate(keep.map_or(weights.len(), |k| k + 1));
    }
    let mut left = u * weights.iter().sum::<f64>();
    for (i, w) in weights.iter().enumerate() {
        left -= w;
        if left < 0.0 {
            return Ok(order[i]);
        }
    }
    Ok(order[weights.len() - 1])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sampling_keeps_to_top_k_and_top_p_and_greedy_takes_the_first_maximum() {
        let logits = Tensor::from_vec(vec![0.0f32, 3.0, 3.0, 1.0], &[1, 4]).unwrap();
        let s =
            |temperature, top_p, top_k| Sampling { temperature, top_p, top_k, ..Sampling::greedy(1, vec![]) };
        assert_eq!(choose(&logits, 0, &s(0.0, 1.0, 0), 0.9).unwrap(), 1);
        for i in 0..100 {
            let u = i as f64 / 100.0;
            assert!(choose(&logits, 0, &s(5.0, 1.0, 1), u).unwrap() == 1);
            assert!([1, 2].contains(&choose(&logits, 0, &s(1.0, 0.5, 0), u).unwrap()));
        }
        assert_eq!(choose(&logits, 0, &s(1.0, 1.0, 0), 0.9999).unwrap(), 0);
    }
}
