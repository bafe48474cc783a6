//! What the model answers to the prompts of evaluation rows.

use std::io::Write;
use std::path::Path;

use loratune_data::Example;
use loratune_engine::Params;
use loratune_model::Decoder;
use loratune_model::files::ModelFiles;
use loratune_model::files::atomic::write_atomically;
use loratune_model::generate::{Generated, Sampling, generate};
use loratune_tokenizer::TokenizerBundle;

use crate::error::{Error, Result};
use crate::metrics::Scores;

/// A prompt with the model's answer and the row's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// The prompt's text, special tokens included.
    pub prompt: String,
    pub predict: String,
    pub label: String,
}

/// Scores of all answers.
pub fn scores(predictions: &[Prediction]) -> Scores {
    Scores::of(predictions.iter().map(|p| (p.predict.as_str(), p.label.as_str())))
}

/// The ids that end an answer: every EOS that config.json, generation_config.json and the tokenizer name.
pub fn stop_ids(files: &ModelFiles, tokenizer: &TokenizerBundle) -> Vec<u32> {
    let mut ids = files.config.eos_token_ids.clone();
    let generation = files.generation_config.as_ref().and_then(|g| g.get("eos_token_id"));
    let one_or_many = generation.map(|v| v.as_array().cloned().unwrap_or_else(|| vec![v.clone()]));
    let named = one_or_many.into_iter().flatten().filter_map(|v| v.as_u64());
    ids.extend(named.filter_map(|id| u32::try_from(id).ok()));
    ids.extend(tokenizer.eos.as_ref().map(|t| t.id));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// A row's tokens up to its last trained stretch, and that stretch.
pub fn last_response(example: &Example) -> Option<(&[u32], &[u32])> {
    let trained = |i: &usize| example.labels[*i] >= 0;
    let end = (0..example.labels.len()).rev().find(trained)? + 1;
    let start = (0..end).rev().find(|i| !trained(i))? + 1;
    // A lone BOS is no prompt.
    (start > 1).then(|| (&example.input_ids[..start], &example.input_ids[start..end]))
}

/// Lets the model answer the last prompt of every row, `batch_size` at a time. Rows that are trained from their first token have
/// no prompt and are left out. A special token that ends a row's own response ends the model's, too. `skip_special` leaves special
/// tokens out of the answers. `done` is told how many rows of a batch are.
///
/// # Errors
/// If no row has a prompt, or generation fails.
pub fn predict(
    (decoder, params, tokenizer): (&Decoder, &Params, &TokenizerBundle),
    examples: &[Example],
    sampling: &Sampling,
    batch_size: usize,
    skip_special: bool,
    mut done: impl FnMut(u64),
) -> Result<Vec<Prediction>> {
    let failed = |e: loratune_tokenizer::TokenizerError| Error::Invalid(e.to_string());
    let rows: Vec<(&[u32], &[u32])> = examples.iter().filter_map(last_response).collect();
    if rows.is_empty() {
        return Err(Error::Invalid(
            "answers can't be compared: they need rows with a prompt, but every row is trained whole".into(),
        ));
    }
    let mut sampling = sampling.clone();
    let ends = rows.iter().filter_map(|(_, response)| response.last().copied());
    sampling.stop.extend(ends.filter(|&id| tokenizer.is_special(id)));
    sampling.stop.sort_unstable();
    sampling.stop.dedup();
    let mut out = Vec::with_capacity(rows.len());
    for (i, rows) in rows.chunks(batch_size.max(1)).enumerate() {
        sampling.first = i * batch_size.max(1);
        let prompts: Vec<Vec<u32>> = rows.iter().map(|(prompt, _)| prompt.to_vec()).collect();
        let answers = generate(decoder, params, &prompts, &sampling, |_, _| true)?;
        for ((prompt, response), answer) in rows.iter().zip(&answers) {
            out.push(Prediction {
                prompt: tokenizer.decode(prompt, false).map_err(failed)?,
                predict: tokenizer.decode(said(answer, skip_special), skip_special).map_err(failed)?,
                label: tokenizer.decode(response, skip_special).map_err(failed)?,
            });
        }
        done(rows.len() as u64);
    }
    Ok(out)
}

/// The tokens of an answer; the one that ended it counts where special tokens do.
fn said(answer: &Generated, skip_special: bool) -> &[u32] {
    let end = usize::from(answer.stopped && skip_special && !answer.tokens.is_empty());
    &answer.tokens[..answer.tokens.len() - end]
}

/// Writes LLaMA-Factory's `generated_predictions.jsonl`, as Python prints its lines.
///
/// # Errors
/// The file system's.
pub fn write(path: &Path, predictions: &[Prediction]) -> Result<()> {
    let text = |t: &str| serde_json::Value::from(t).to_string();
    Ok(write_atomically(path, |out| {
        predictions.iter().try_for_each(|p| {
            let (prompt, predict, label) = (text(&p.prompt), text(&p.predict), text(&p.label));
            writeln!(out, "{{\"prompt\": {prompt}, \"predict\": {predict}, \"label\": {label}}}")
        })
    })?)
}
