//! `loratune eval`.

use std::io::{self, IsTerminal};
use std::sync::Arc;
use std::time::Instant;

use std::path::PathBuf;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use loratune_data::{DatasetSource, DatasetSpec, EncodeOptions, Example, load_examples};
use loratune_engine::DType;
use loratune_model::Batch;
use loratune_model::generate::{Sampling, generate};
use loratune_train::evaluate::evaluate;
use loratune_train::progress::Evaluation;
use serde::Serialize;
use serde_json::{Value, json};

use super::generate::answer_text;
use crate::cli::{EvalArgs, Global};
use crate::hub;
use crate::load::{BASE, Base, LoadedModel, Named, start_threads};
use crate::output::{self, field, number, thousands};

/// What was measured of the model with one adapter, or without.
struct Row {
    name: String,
    evaluation: Evaluation,
    exact: Option<ExactMatch>,
}

pub fn run(args: &EvalArgs, global: &Global) -> Result<()> {
    start_threads(global)?;
    let named = Named::read_all(&args.model.adapter)?;
    let base = Base::open(&args.model.model, if args.bf16 { DType::BF16 } else { DType::F32 })?;
    let mut models = Vec::new();
    if args.base || named.is_empty() {
        models.push((BASE.to_string(), base.alone()));
    }
    for Named { name, adapter } in named {
        models.push((name, base.with(&adapter)?));
    }
    let (sets, of, warnings) = all_examples(args, &models)?;
    if !global.quiet {
        warnings.iter().for_each(|w| output::note(&format!("warning: {w}")));
    }
    let examples = &sets[0];
    let clock = Instant::now();
    let bar = bar(global.quiet || args.json, examples.len());
    let rows = models
        .into_iter()
        .zip(of)
        .map(|((name, model), set)| {
            let examples = &sets[set];
            bar.reset();
            let batches = examples.chunks(args.batch_size).map(|rows| {
                bar.inc(rows.len() as u64);
                Batch::from_labelled(rows.iter().map(|e| (e.input_ids.as_slice(), e.labels.as_slice())))
            });
            let evaluation = evaluate(&model.decoder, &model.params, batches)?;
            let exact = if args.exact_match {
                bar.reset();
                Some(exact_match(&model, examples, args.max_new_tokens, args.batch_size, |n| bar.inc(n))?)
            } else {
                None
            };
            Ok(Row { name, evaluation, exact })
        })
        .collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();
    let seconds = clock.elapsed().as_secs_f64();
    match rows.as_slice() {
        [one] => report(args, &one.evaluation, one.exact.as_ref(), examples.len(), seconds),
        _ => report_all(args, &rows, examples.len(), seconds),
    }
}

/// Sets of examples, which of them each model reads, and what should be said about them.
type Sets = (Vec<Vec<Example>>, Vec<usize>, Vec<String>);

/// The rows as each model reads them: those with one tokenizer share one reading. There is at least one model.
fn all_examples(args: &EvalArgs, models: &[(String, LoadedModel)]) -> Result<Sets> {
    let (mut sets, mut of, mut warnings) = (Vec::new(), Vec::new(), Vec::new());
    for (i, (_, model)) in models.iter().enumerate() {
        let same = models[..i].iter().position(|(_, m)| Arc::ptr_eq(&m.tokenizer, &model.tokenizer));
        if let Some(first) = same {
            of.push(of[first]);
            continue;
        }
        let (examples, new) = examples(args, model)?;
        warnings.extend(new.into_iter().filter(|w| !warnings.contains(w)).collect::<Vec<_>>());
        of.push(sets.len());
        sets.push(examples);
    }
    if sets.len() > 1 {
        warnings.push(
            "the adapters have tokenizers of their own, so their losses are over different tokens"
                .to_string(),
        );
    }
    Ok((sets, of, warnings))
}

/// The rows as examples, and what should be said about them.
fn examples(args: &EvalArgs, model: &LoadedModel) -> Result<(Vec<Example>, Vec<String>)> {
    let source = |path: &PathBuf| -> Result<DatasetSource> {
        Ok(DatasetSource { max_samples: args.max_samples, ..hub::dataset(path)? })
    };
    let train = args.dataset.iter().map(source).collect::<Result<_>>()?;
    let spec = DatasetSpec { train, ..DatasetSpec::default() };
    let options = EncodeOptions {
        template: args.template.clone(),
        cutoff_len: Some(args.cutoff_len.unwrap_or(model.files.config.spec.max_positions)),
        ..EncodeOptions::default()
    };
    let data = load_examples(&spec, &*model.tokenizer, &options)?;
    loratune_train::data::check_fits(&data.train, &model.files, &model.tokenizer)?;
    let mut warnings = data.report.warnings;
    let cut = data.report.train.truncated_rows;
    if cut > 0 {
        let limit = options.cutoff_len.unwrap_or(0);
        warnings.push(format!("rows cut to {limit} tokens: {}", thousands(cut as u64)));
    }
    Ok((data.train.to_vec(), warnings))
}

fn bar(hidden: bool, rows: usize) -> ProgressBar {
    if hidden || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(rows as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{pos}/{len} rows {wide_bar} {eta}");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// How many answers equal the rows' own, white space at the ends aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExactMatch {
    pub right: usize,
    pub rows: usize,
}

impl ExactMatch {
    pub fn share(&self) -> f64 {
        self.right as f64 / self.rows.max(1) as f64
    }
}

/// Answers the last prompt of every row greedily and compares with the row's response. Rows that are trained from their
/// first token have no prompt and are left out.
///
/// # Errors
/// If no row has a prompt, or generation fails.
pub fn exact_match(
    model: &LoadedModel,
    examples: &[Example],
    max_new_tokens: usize,
    batch_size: usize,
    mut done: impl FnMut(u64),
) -> Result<ExactMatch> {
    let sampling = Sampling::greedy(max_new_tokens, model.stop_ids());
    let pairs: Vec<(Vec<u32>, String)> = examples
        .iter()
        .filter_map(|e| last_response(e))
        .map(|(prompt, response)| Ok((prompt.to_vec(), model.tokenizer.decode(response, true)?)))
        .collect::<Result<_>>()?;
    anyhow::ensure!(
        !pairs.is_empty(),
        "exact match needs rows with a prompt, but every row is trained whole"
    );
    let mut right = 0;
    for pairs in pairs.chunks(batch_size) {
        let prompts: Vec<Vec<u32>> = pairs.iter().map(|(p, _)| p.clone()).collect();
        let answers = generate(&model.decoder, &model.params, &prompts, &sampling, |_, _| true)?;
        for ((_, expected), answer) in pairs.iter().zip(&answers) {
            right += usize::from(answer_text(&model.tokenizer, answer)?.trim() == expected.trim());
        }
        done(pairs.len() as u64);
    }
    Ok(ExactMatch { right, rows: pairs.len() })
}

/// A row's tokens up to its last trained stretch, and that stretch.
fn last_response(example: &Example) -> Option<(&[u32], &[u32])> {
    let trained = |i: &usize| example.labels[*i] >= 0;
    let end = (0..example.labels.len()).rev().find(trained)? + 1;
    let start = (0..end).rev().find(|i| !trained(i))? + 1;
    // A lone BOS is no prompt.
    (start > 1).then(|| (&example.input_ids[..start], &example.input_ids[start..end]))
}

/// The exact matches in a row's JSON, if they were counted.
fn with_exact(mut row: Value, exact: Option<&ExactMatch>) -> Value {
    if let (Some(map), Some(e)) = (row.as_object_mut(), exact) {
        map.insert("exact_match".into(), json!({"right": e.right, "rows": e.rows, "share": e.share()}));
    }
    row
}

/// A table of several.
fn report_all(args: &EvalArgs, rows: &[Row], examples: usize, seconds: f64) -> Result<()> {
    let tokens = rows.first().map_or(0, |r| r.evaluation.tokens);
    if args.json {
        let measured: Vec<Value> = rows
            .iter()
            .map(|Row { name, evaluation: e, exact }| {
                let row = json!({
                    "adapter": name, "loss": e.loss, "perplexity": e.perplexity(), "accuracy": e.accuracy,
                });
                with_exact(row, exact.as_ref())
            })
            .collect();
        output::json(&json!({"rows": examples, "tokens": tokens, "adapters": measured, "seconds": seconds}))?;
        return Ok(());
    }
    let width = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).max(12);
    let mut out = field("rows", thousands(examples as u64));
    out += &field("tokens", format!("{} trained", thousands(tokens as u64)));
    out += &format!("\n{:<width$}{:>12}{:>12}{:>12}", "adapter", "loss", "perplexity", "accuracy");
    out += if args.exact_match { "  exact match\n" } else { "\n" };
    for Row { name, evaluation, exact } in rows {
        let (loss, perplexity) = (number(evaluation.loss), number(evaluation.perplexity()));
        let accuracy = format!("{:.2} %", 100.0 * evaluation.accuracy);
        out += &format!("{name:<width$}{loss:>12}{perplexity:>12}{accuracy:>12}");
        if let Some(e) = exact {
            out += &format!("{:>13}", format!("{:.2} %", 100.0 * e.share()));
        }
        out += "\n";
    }
    output::print(&out)?;
    Ok(())
}

fn report(
    args: &EvalArgs,
    evaluation: &Evaluation,
    exact: Option<&ExactMatch>,
    rows: usize,
    seconds: f64,
) -> Result<()> {
    if args.json {
        let row = json!({
            "rows": rows,
            "tokens": evaluation.tokens,
            "loss": evaluation.loss,
            "perplexity": evaluation.perplexity(),
            "accuracy": evaluation.accuracy,
            "seconds": seconds,
        });
        output::json(&with_exact(row, exact))?;
        return Ok(());
    }
    let mut out = field("rows", thousands(rows as u64));
    out += &field("tokens", format!("{} trained", thousands(evaluation.tokens as u64)));
    out += &field("loss", number(evaluation.loss));
    out += &field("perplexity", number(evaluation.perplexity()));
    out += &field("accuracy", format!("{:.2} %", 100.0 * evaluation.accuracy));
    if let Some(e) = exact {
        let share = 100.0 * e.share();
        out +=
            &field("exact match", format!("{share:.2} % ({} of {})", thousands(e.right), thousands(e.rows)));
    }
    output::print(&out)?;
    Ok(())
}
