//! What generated answers are worth: LLaMA-Factory's similarity (ROUGE by rouge_chinese over jieba's words, BLEU-4 over characters),
//! and the final number of a GSM8K answer as lm-evaluation-harness compares it.

mod bleu;
mod gsm8k;
mod rouge;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

pub use bleu::bleu_4;
pub use gsm8k::{gsm8k_flexible, gsm8k_strict};
pub use rouge::{Rouge, rouge};

/// Scores of generated answers against the expected ones, means over all rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Answers that were compared.
    pub rows: usize,
    /// F1 of words, of pairs of words, and of the longest common subsequence, in percent.
    pub rouge_1: f64,
    pub rouge_2: f64,
    pub rouge_l: f64,
    /// Of characters, in percent.
    pub bleu_4: f64,
    /// Share of answers that are equal but for white space at the ends.
    pub exact_match: f64,
    /// Share of answers whose number behind `####` is the expected one.
    pub gsm8k_strict: f64,
    /// Share of answers whose last number is the expected one.
    pub gsm8k_flexible: f64,
}

impl Scores {
    /// Scores of pairs of a generated and an expected answer.
    pub fn of<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Scores {
        let mut sums = Scores::default();
        for (predicted, label) in pairs {
            let r = rouge(predicted, label);
            sums.rows += 1;
            sums.rouge_1 += percent(r.one);
            sums.rouge_2 += percent(r.two);
            sums.rouge_l += percent(r.longest);
            sums.bleu_4 += percent(bleu_4(predicted, label));
            sums.exact_match += f64::from(predicted.trim() == label.trim());
            sums.gsm8k_strict += f64::from(gsm8k_strict(predicted, label));
            sums.gsm8k_flexible += f64::from(gsm8k_flexible(predicted, label));
        }
        let n = sums.rows.max(1) as f64;
        for field in [
            &mut sums.rouge_1,
            &mut sums.rouge_2,
            &mut sums.rouge_l,
            &mut sums.bleu_4,
            &mut sums.exact_match,
            &mut sums.gsm8k_strict,
            &mut sums.gsm8k_flexible,
        ] {
            *field /= n;
        }
        sums
    }

    /// Names and values, LLaMA-Factory's where it has them.
    pub fn values(&self) -> BTreeMap<String, f64> {
        [
            ("rouge-1", self.rouge_1),
            ("rouge-2", self.rouge_2),
            ("rouge-l", self.rouge_l),
            ("bleu-4", self.bleu_4),
            ("exact_match", self.exact_match),
            ("gsm8k_strict", self.gsm8k_strict),
            ("gsm8k_flexible", self.gsm8k_flexible),
        ]
        .map(|(name, x)| (name.to_string(), x))
        .into()
    }
}

/// As LLaMA-Factory: of every row in percent, to four decimals.
fn percent(x: f64) -> f64 {
    format!("{:.4}", x * 100.0).parse().unwrap_or(x * 100.0)
}
