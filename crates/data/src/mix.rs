//! Merging several datasets into one: one after the other, or interleaved.

use serde::{Deserialize, Serialize};

use crate::error::{DataError, Result};
use crate::rng::keyed;

/// How datasets are merged (LLaMA-Factory's `mix_strategy`; the rules are those of `datasets.interleave_datasets`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mix {
    /// One after the other.
    #[default]
    Concat,
    /// By turns, until the first one is used up.
    InterleaveUnder,
    /// By turns, until the last one is used up; those that end earlier begin again.
    InterleaveOver,
    /// By turns, until the last one is used up; those that end earlier are left out from there on.
    InterleaveOnce,
}

impl Mix {
    /// All with their names.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("concat", Self::Concat),
        ("interleave_under", Self::InterleaveUnder),
        ("interleave_over", Self::InterleaveOver),
        ("interleave_once", Self::InterleaveOnce),
    ];

    /// The name in configurations.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, m)| *m == self).map_or("concat", |(n, _)| n)
    }
}

/// Separates the draws from the other randomness of a seed.
const DRAW: u64 = 0x006d_6978;

/// Which dataset comes next: by turns, or drawn by their weights. A pure function of seed and number.
#[derive(Debug, Clone)]
pub struct Turns {
    /// Running sums of the weights, the last one 1; empty = by turns.
    sums: Vec<f64>,
    datasets: usize,
    seed: u64,
    next: u64,
}

impl Turns {
    /// Of so many datasets, with their weights if there are any.
    ///
    /// # Errors
    /// Not as many weights as datasets, weights that are no numbers from 0, or that are all 0.
    pub fn new(datasets: usize, weights: Option<&[f64]>, seed: u64) -> Result<Self> {
        let bad = |message: String| Err(DataError::Options(format!("interleave_probs: {message}")));
        let mut sums = Vec::new();
        if let Some(weights) = weights {
            if weights.len() != datasets {
                return bad(format!("{} weights for {datasets} datasets; give one for each", weights.len()));
            }
            let total: f64 = weights.iter().sum();
            if !weights.iter().all(|w| w.is_finite() && *w >= 0.0) || total <= 0.0 {
                return bad("the weights should be numbers from 0, and not all 0".into());
            }
            let mut sum = 0.0;
            sums = weights
                .iter()
                .map(|w| {
                    sum += w / total;
                    sum
                })
                .collect();
        }
        Ok(Self { sums, datasets, seed, next: 0 })
    }

    /// The dataset of the next row.
    pub fn draw(&mut self) -> usize {
        let number = self.next;
        self.next += 1;
        if self.sums.is_empty() {
            return (number % self.datasets.max(1) as u64) as usize;
        }
        let uniform = (keyed(&[self.seed, DRAW, number]) >> 11) as f64 / (1u64 << 53) as f64;
        // A dataset of weight 0 has the sum of the one before it, and is never the first that is above.
        self.sums.partition_point(|s| *s <= uniform).min(self.datasets.saturating_sub(1))
    }

    /// Whether weights decide.
    pub fn is_weighted(&self) -> bool {
        !self.sums.is_empty()
    }

    /// Whether every dataset has had its turn equally often.
    pub fn is_round(&self) -> bool {
        self.next.is_multiple_of(self.datasets.max(1) as u64)
    }

    /// Whether a dataset is ever drawn.
    pub fn draws(&self, dataset: usize) -> bool {
        let before = if dataset == 0 { 0.0 } else { self.sums.get(dataset - 1).copied().unwrap_or(0.0) };
        self.sums.get(dataset).is_none_or(|s| *s > before)
    }
}

/// The rows of the merged dataset as (dataset, row), from the number of rows of each.
///
/// # Errors
/// Weights that do not go with the datasets or with `concat`.
pub fn merge(mix: Mix, lengths: &[usize], weights: Option<&[f64]>, seed: u64) -> Result<Vec<(usize, usize)>> {
    if mix == Mix::Concat {
        if weights.is_some() {
            let message = "interleave_probs goes with mix_strategy interleave_under, interleave_over or interleave_once";
            return Err(DataError::Options(message.into()));
        }
        return Ok(lengths.iter().enumerate().flat_map(|(d, &n)| (0..n).map(move |r| (d, r))).collect());
    }
    let mut turns = Turns::new(lengths.len(), weights, seed)?;
    let waits: Vec<bool> = (0..lengths.len()).map(|d| lengths[d] > 0 && turns.draws(d)).collect();
    if mix == Mix::InterleaveUnder && lengths.iter().enumerate().any(|(d, n)| *n == 0 && turns.draws(d)) {
        return Ok(Vec::new());
    }
    let (mut out, mut next, mut left) = (Vec::new(), vec![0; lengths.len()], waits.clone());
    if !left.contains(&true) {
        return Ok(out);
    }
    // By turns, a round is finished: every dataset has had as many rows when the first one ends.
    let rounds = !turns.is_weighted();
    loop {
        if rounds && turns.is_round() && is_over(mix, &left, &waits) {
            return Ok(out);
        }
        let dataset = turns.draw();
        let n = lengths[dataset];
        if n == 0 || (mix == Mix::InterleaveOnce && !left[dataset]) {
            continue;
        }
        out.push((dataset, next[dataset] % n));
        next[dataset] += 1;
        if next[dataset] >= n {
            left[dataset] = false;
        }
        if !rounds && is_over(mix, &left, &waits) {
            return Ok(out);
        }
    }
}

/// `left` = not used up yet, `drawn` = ever drawn.
fn is_over(mix: Mix, left: &[bool], drawn: &[bool]) -> bool {
    match mix {
        Mix::InterleaveUnder => left.iter().zip(drawn).any(|(l, d)| *d && !l),
        _ => !left.contains(&true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_turns(mix: Mix, lengths: &[usize]) -> Vec<(usize, usize)> {
        merge(mix, lengths, None, 1).unwrap()
    }

    #[test]
    fn turns_are_those_of_interleave_datasets() {
        assert_eq!(by_turns(Mix::Concat, &[2, 1]), [(0, 0), (0, 1), (1, 0)]);
        // datasets 4.5: interleave_datasets([a b c], [d e]) with each stopping_strategy.
        assert_eq!(by_turns(Mix::InterleaveUnder, &[3, 2]), [(0, 0), (1, 0), (0, 1), (1, 1)]);
        assert_eq!(by_turns(Mix::InterleaveOver, &[3, 2]), [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 0)]);
        assert_eq!(by_turns(Mix::InterleaveOnce, &[3, 2]), [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2)]);
    }

    #[test]
    fn weights_are_kept_on_average_and_decide_when_it_ends() {
        let weights = [0.75, 0.25, 0.0];
        let rows = merge(Mix::InterleaveUnder, &[100_000, 1000, 5], Some(&weights), 3).unwrap();
        assert_eq!(rows.iter().filter(|r| r.0 == 1).count(), 1000);
        assert!((3.6..4.4).contains(&(rows.len() as f64 / 1000.0)), "{}", rows.len());
        assert!(rows.iter().all(|r| r.0 != 2), "never drawn");
        let over = merge(Mix::InterleaveOver, &[300, 10, 5], Some(&weights), 3).unwrap();
        let of = |d: usize| over.iter().filter(|r| r.0 == d).map(|r| r.1).collect::<Vec<_>>();
        assert_eq!(of(0), (0..300).collect::<Vec<_>>());
        assert!(of(1).len() > 50 && of(1)[10] == 0, "begins again");
        let once = merge(Mix::InterleaveOnce, &[300, 10, 5], Some(&weights), 3).unwrap();
        assert_eq!(once.len(), 310);
        for bad in [&[1.0][..], &[0.0, 0.0, 0.0], &[1.0, -1.0, 1.0]] {
            assert!(merge(Mix::InterleaveOver, &[1, 2, 3], Some(bad), 3).is_err());
        }
        assert!(
            merge(Mix::Concat, &[1, 2], Some(&[1.0, 1.0]), 3)
                .unwrap_err()
                .to_string()
                .contains("mix_strategy")
        );
    }
}
