//! `train_results.json`, `eval_results.json` and their union `all_results.json`, as transformers' `save_metrics` writes
//! them. Here, and nowhere else, are the run's wall-clock times.

use std::path::Path;

use super::{ReportError, json, write_whole};
use crate::config::Value;

/// Names and values of one split, such as `train_loss` or `eval_runtime` (seconds).
pub type Metrics = Vec<(String, f64)>;

/// Adds `{split}_runtime` (seconds), `{split}_samples_per_second`, `{split}_steps_per_second` and
/// `{split}_tokens_per_second`, rounded as transformers' `speed_metrics`.
pub fn speed(split: &str, seconds: f64, samples: u64, steps: u64, tokens: u64) -> Metrics {
    let round = |x: f64, digits: i32| (x * 10f64.powi(digits)).round() / 10f64.powi(digits);
    let mut metrics = vec![(format!("{split}_runtime"), round(seconds, 4))];
    if seconds > 0.0 {
        for (what, count) in [("samples", samples), ("steps", steps), ("tokens", tokens)] {
            metrics.push((format!("{split}_{what}_per_second"), round(count as f64 / seconds, 3)));
        }
    }
    metrics
}

/// Writes `{split}_results.json` and updates `all_results.json` in `folder`.
///
/// # Errors
/// The file system's. An `all_results.json` that cannot be understood is replaced.
pub fn save(folder: &Path, split: &str, metrics: &Metrics) -> Result<(), ReportError> {
    let own: Vec<(String, Value)> =
        metrics.iter().map(|(name, x)| (name.clone(), Value::Float(*x))).collect();
    let all_path = folder.join("all_results.json");
    let mut all = match std::fs::read_to_string(&all_path).ok().map(|text| json::from_python(&text)) {
        Some(Ok(Value::Map(entries))) => entries,
        _ => Vec::new(),
    };
    all.retain(|(name, _)| !own.iter().any(|(n, _)| n == name));
    all.extend(own.iter().cloned());
    let write = |path: &Path, entries| write_whole(path, json::to_python(&Value::Map(entries), 4).as_bytes());
    write(&folder.join(format!("{split}_results.json")), own)?;
    write(&all_path, all)
}
