//! Comparing the logits of two models: what `--verify` does.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use loratune_engine::{DType, Params};
use loratune_model::files::ModelConfig;
use loratune_model::{Batch, Decoder};

use crate::load::LoadedModel;
use crate::output::field;

/// Sequences that are compared, and tokens in each.
const SEQUENCES: usize = 4;
const LENGTH: usize = 64;

/// Always the same token ids for a vocabulary: a fixed walk through it.
pub fn sequences(config: &ModelConfig) -> Vec<Vec<u32>> {
    let (length, vocabulary) = (LENGTH.min(config.spec.max_positions), config.spec.vocab_size);
    let mut state = 1u64;
    let mut next = || {
        // Knuth's MMIX generator; any would do, as long as it stays the same.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary.max(1) as u64) as u32
    };
    (0..SEQUENCES).map(|_| (0..length).map(|_| next()).collect()).collect()
}

/// Logits of all sequences, one after the other.
///
/// # Errors
/// If the passes fail.
pub fn logits(decoder: &Decoder, params: &Params, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    for ids in sequences {
        let logits = decoder.logits(params, &Batch::from_ids([ids.as_slice()]))?;
        out.extend_from_slice(logits.slice::<f32>()?);
    }
    Ok(out)
}

/// The largest absolute difference between `before` and the logits of the model in `dir`, with an adapter if one is given.
///
/// # Errors
/// If the model can't be read, or a difference is not finite.
pub fn verify(dir: &Path, adapter: Option<&Path>, before: &[f32], sequences: &[Vec<u32>]) -> Result<f64> {
    let result =
        LoadedModel::from_paths(dir, adapter, DType::F32).context("the result cannot be read back")?;
    let after = logits(&result.decoder, &result.params, sequences)?;
    ensure!(before.len() == after.len(), "the result has other sizes than the model");
    let differences = before.iter().zip(&after).map(|(a, b)| f64::from(*a) - f64::from(*b));
    // `max` would pass over NaN.
    let largest = differences.map(f64::abs).fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
    ensure!(
        largest.is_finite(),
        "the logits of the result differ by {largest}: a weight is too large for its type (try --dtype bf16 or \
         f32), or the adapter is damaged; nothing was written"
    );
    Ok(largest)
}

/// A line that tells it.
pub fn line(difference: f64, sequences: &[Vec<u32>]) -> String {
    let tokens = sequences.iter().map(Vec::len).sum::<usize>();
    field("verified", format!("largest difference in a logit {difference:.3e} over {tokens} tokens"))
}
