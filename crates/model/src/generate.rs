//! Generation: prompts in, tokens out, with cached keys and values.

use std::cmp::Ordering;

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
    if sampling.temperature <= 0.0 {
        return Ok((0..vocabulary as u32).min_by(|a, b| by_logit(row, a, b)).unwrap_or(0));
    }
    let mut ranked = Ranked::new(row, sampling.top_k);
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max) as f64;
    let weight = |id: u32| ((row[id as usize] as f64 - max) / sampling.temperature).exp();
    let total: f64 = ranked.order.iter().map(|&id| weight(id)).sum();
    // How many tokens top_p keeps, and their weight.
    let (mut kept, mut mass) = (ranked.order.len(), total);
    if sampling.top_p < 1.0 {
        (kept, mass) = (0, 0.0);
        while let Some(id) = ranked.get(kept) {
            kept += 1;
            mass += weight(id);
            if mass / total >= sampling.top_p {
                break;
            }
        }
    }
    let mut left = u * mass;
    let mut last = 0;
    for place in 0..kept {
        let Some(id) = ranked.get(place) else { break };
        left -= weight(id);
        last = id;
        if left < 0.0 {
            break;
        }
    }
    Ok(last)
}

/// Falling logits; equal ones by id.
fn by_logit(row: &[f32], a: &u32, b: &u32) -> Ordering {
    row[*b as usize].total_cmp(&row[*a as usize]).then(a.cmp(b))
}

/// Tokens by falling logits. They are sorted so far as they are asked for: mostly the first few of a large vocabulary
/// decide, and sorting all of it would take as long as a small model.
struct Ranked<'a> {
    row: &'a [f32],
    /// The first `sorted` are in their places, and no other comes before them.
    order: Vec<u32>,
    sorted: usize,
}

impl Ranked<'_> {
    /// The `most` first tokens, or all for 0.
    fn new(row: &[f32], most: usize) -> Ranked<'_> {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        if (1..order.len()).contains(&most) {
            order.select_nth_unstable_by(most - 1, |a, b| by_logit(row, a, b));
            order.truncate(most);
        }
        Ranked { row, order, sorted: 0 }
    }

    fn get(&mut self, place: usize) -> Option<u32> {
        while place >= self.sorted && self.sorted < self.order.len() {
            let rest = &mut self.order[self.sorted..];
            let next = (15 * self.sorted).max(64).min(rest.len());
            if next < rest.len() {
                rest.select_nth_unstable_by(next, |a, b| by_logit(self.row, a, b));
            }
            rest[..next].sort_unstable_by(|a, b| by_logit(self.row, a, b));
            self.sorted += next;
        }
        self.order.get(place).copied()
    }
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

    /// What the choice is defined by: everything sorted.
    fn chosen_of_all(row: &[f32], sampling: &Sampling, u: f64) -> u32 {
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        order.sort_by(|a, b| by_logit(row, a, b));
        order.truncate(if sampling.top_k > 0 { sampling.top_k } else { row.len() });
        let weights: Vec<f64> =
            order.iter().map(|&i| (row[i as usize] as f64 / sampling.temperature).exp()).collect();
        let total: f64 = weights.iter().sum();
        let (mut kept, mut mass) = (0, 0.0);
        while kept < order.len() && (sampling.top_p >= 1.0 || mass / total < sampling.top_p) {
            mass += weights[kept];
            kept += 1;
        }
        let mut sum = 0.0;
        let place = weights[..kept].iter().position(|w| {
            sum += w;
            u * mass < sum
        });
        order[place.unwrap_or(kept - 1)]
    }

    #[test]
    fn sampling_from_a_large_vocabulary_is_that_from_all_of_it_sorted() {
        let key = Key::new(7);
        // Many are equal, and flat and steep ones need many places and few.
        for (spread, temperature) in [(1.0, 1.0), (12.0, 0.7), (0.001, 1.3)] {
            let row: Vec<f32> =
                (0..3000).map(|i| ((key.normal(i) * 50.0).round() / 50.0 * spread) as f32).collect();
            let logits = Tensor::from_vec(row.clone(), &[1, 3000]).unwrap();
            for (top_p, top_k) in
                [(1.0, 0), (0.9, 0), (1.0, 200), (0.5, 65), (1e-9, 0), (1.0, 3000), (0.99, 9000)]
            {
                let s = Sampling { temperature, top_p, top_k, ..Sampling::greedy(1, vec![]) };
                for i in 0..50 {
                    let u = key.uniform(1_000_000 + i);
                    let found = choose(&logits, 0, &s, u).unwrap();
                    assert_eq!(found, chosen_of_all(&row, &s, u), "{s:?} {u}");
                }
            }
        }
    }
}
