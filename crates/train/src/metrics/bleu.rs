//! BLEU-4 of one pair, as nltk's `sentence_bleu` with smoothing method 3 gives it (Papineni et al., 2002; Chen and Cherry, 2014),
//! over characters, as LLaMA-Factory asks for it.

use std::collections::HashMap;

/// From 0 to 1.
pub fn bleu_4(predicted: &str, label: &str) -> f64 {
    let (hypothesis, reference): (Vec<char>, Vec<char>) =
        (predicted.chars().collect(), label.chars().collect());
    if hypothesis.is_empty() {
        return 0.0;
    }
    let mut logs = 0.0;
    // Method 3: the k-th precision of 0 becomes 1/(2^k · n-grams).
    let mut zeros = 0;
    for n in 1..=4 {
        let (matches, all) = precision(&hypothesis, &reference, n);
        if n == 1 && matches == 0 {
            return 0.0;
        }
        let p = match matches {
            0 => {
                zeros += 1;
                1.0 / (f64::from(1 << zeros) * all as f64)
            }
            _ => matches as f64 / all as f64,
        };
        logs += 0.25 * p.ln();
    }
    let (h, r) = (hypothesis.len() as f64, reference.len() as f64);
    let brevity = if h > r { 1.0 } else { (1.0 - r / h).exp() };
    brevity * logs.exp()
}

/// N-grams of the hypothesis that the reference has, each at most as often as there, and all of its n-grams (at least 1).
fn precision(hypothesis: &[char], reference: &[char], n: usize) -> (usize, usize) {
    let count = |text: &[char]| {
        let mut counts: HashMap<Vec<char>, usize> = HashMap::new();
        text.windows(n).for_each(|gram| *counts.entry(gram.to_vec()).or_default() += 1);
        counts
    };
    let (ours, theirs) = (count(hypothesis), count(reference));
    let matches = ours.iter().map(|(gram, &k)| k.min(theirs.get(gram).copied().unwrap_or(0))).sum();
    (matches, ours.values().sum::<usize>().max(1))
}
