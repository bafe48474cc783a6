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
use loratune_model::generate::Sampling;
use loratune_train::evaluate::evaluate;
use loratune_train::metrics::Scores;
use loratune_train::predict::{self, Prediction};
use loratune_train::progress::Evaluation;
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::{EvalArgs, Global};
use crate::hub;
use crate::load::{BASE, Base, LoadedModel, Named};
use crate::output::{self, field, number, thousands};

/// What was measured of the model with one adapter, or without.
struct Row {
    name: String,
    evaluation: Evaluation,
    scores: Option<Scores>,
}

pub fn run(args: &EvalArgs, global: &Global) -> Result<()> {
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
            let mut evaluation = evaluation;
            let scores = if columns(args).is_empty() && args.predictions.is_none() {
                None
            } else {
                bar.reset();
                let predictions = answers(&model, examples, args, |n| bar.inc(n))?;
                if let Some(path) = &args.predictions {
                    predict::write(path, &predictions)?;
                }
                Some(predict::scores(&predictions))
            };
            evaluation.generated = scores;
            Ok(Row { name, evaluation, scores })
        })
        .collect::<Result<Vec<_>>>()?;
    bar.finish_and_clear();
    let seconds = clock.elapsed().as_secs_f64();
    match rows.as_slice() {
        [one] => report(args, &one.evaluation, one.scores.as_ref(), examples.len(), seconds),
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

/// Answers the last prompt of every row greedily and compares with the row's response.
///
/// # Errors
/// If no row has a prompt, or generation fails.
pub fn exact_match(
    model: &LoadedModel,
    examples: &[Example],
    max_new_tokens: usize,
    batch_size: usize,
    done: impl FnMut(u64),
) -> Result<ExactMatch> {
    let sampling = Sampling::greedy(max_new_tokens, model.stop_ids());
    let answered = (&model.decoder, &model.params, &*model.tokenizer);
    let predictions = predict::predict(answered, examples, &sampling, batch_size, true, done)?;
    let right = predictions.iter().filter(|p| p.predict.trim() == p.label.trim()).count();
    Ok(ExactMatch { right, rows: predictions.len() })
}

/// The model's answers, as the command line asks for them.
fn answers(
    model: &LoadedModel,
    examples: &[Example],
    args: &EvalArgs,
    done: impl FnMut(u64),
) -> Result<Vec<Prediction>> {
    let mut sampling = Sampling::greedy(args.max_new_tokens, model.stop_ids());
    (sampling.temperature, sampling.top_p) = (args.temperature, args.top_p);
    (sampling.top_k, sampling.seed) = (args.top_k, args.seed);
    let answered = (&model.decoder, &model.params, &*model.tokenizer);
    Ok(predict::predict(answered, examples, &sampling, args.batch_size, true, done)?)
}

/// A score's name, and how it is read, in percent.
type Column = (&'static str, fn(&Scores) -> f64);

/// The scores that are asked for.
fn columns(args: &EvalArgs) -> Vec<Column> {
    let mut columns: Vec<Column> = Vec::new();
    if args.exact_match {
        columns.push(("exact match", |s| 100.0 * s.exact_match));
    }
    if args.gsm8k {
        columns.push(("gsm8k strict", |s| 100.0 * s.gsm8k_strict));
        columns.push(("flexible", |s| 100.0 * s.gsm8k_flexible));
    }
    if args.rouge {
        columns.push(("rouge-1", |s| s.rouge_1));
        columns.push(("rouge-2", |s| s.rouge_2));
        columns.push(("rouge-l", |s| s.rouge_l));
        columns.push(("bleu-4", |s| s.bleu_4));
    }
    columns
}

/// The scores in a row's JSON that were asked for.
fn with_scores(mut row: Value, scores: Option<&Scores>, args: &EvalArgs) -> Value {
    if let (Some(map), Some(s)) = (row.as_object_mut(), scores) {
        if args.exact_match {
            let right = (s.exact_match * s.rows as f64).round() as usize;
            map.insert("exact_match".into(), json!({"right": right, "rows": s.rows, "share": s.exact_match}));
        }
        if args.gsm8k {
            let gsm8k = json!({"strict": s.gsm8k_strict, "flexible": s.gsm8k_flexible, "rows": s.rows});
            map.insert("gsm8k".into(), gsm8k);
        }
        if args.rouge {
            for (name, x) in s.values().into_iter().filter(|(n, _)| n.contains('-')) {
                map.insert(name, json!(x));
            }
        }
    }
    row
}

/// A table of several.
fn report_all(args: &EvalArgs, rows: &[Row], examples: usize, seconds: f64) -> Result<()> {
    let tokens = rows.first().map_or(0, |r| r.evaluation.tokens);
    if args.json {
        let measured: Vec<Value> = rows
            .iter()
            .map(|Row { name, evaluation: e, scores }| {
                let row = json!({
                    "adapter": name, "loss": e.loss, "perplexity": e.perplexity(), "accuracy": e.accuracy,
                });
                with_scores(row, scores.as_ref(), args)
            })
            .collect();
        output::json(&json!({"rows": examples, "tokens": tokens, "adapters": measured, "seconds": seconds}))?;
        return Ok(());
    }
    let width = rows.iter().map(|r| r.name.chars().count()).max().unwrap_or(0).max(12);
    let mut out = field("rows", thousands(examples as u64));
    out += &field("tokens", format!("{} trained", thousands(tokens as u64)));
    out += &format!("\n{:<width$}{:>12}{:>12}{:>12}", "adapter", "loss", "perplexity", "accuracy");
    let columns = columns(args);
    columns.iter().for_each(|(column, _)| out += &format!("{column:>14}"));
    out += "\n";
    for Row { name, evaluation, scores } in rows {
        let (loss, perplexity) = (number(evaluation.loss), number(evaluation.perplexity()));
        let accuracy = format!("{:.2} %", 100.0 * evaluation.accuracy);
        out += &format!("{name:<width$}{loss:>12}{perplexity:>12}{accuracy:>12}");
        if let Some(s) = scores {
            columns.iter().for_each(|(_, of)| out += &format!("{:>14}", format!("{:.2} %", of(s))));
        }
        out += "\n";
    }
    output::print(&out)?;
    Ok(())
}

fn report(
    args: &EvalArgs,
    evaluation: &Evaluation,
    scores: Option<&Scores>,
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
        output::json(&with_scores(row, scores, args))?;
        return Ok(());
    }
    let mut out = field("rows", thousands(rows as u64));
    out += &field("tokens", format!("{} trained", thousands(evaluation.tokens as u64)));
    out += &field("loss", number(evaluation.loss));
    out += &field("perplexity", number(evaluation.perplexity()));
    out += &field("accuracy", format!("{:.2} %", 100.0 * evaluation.accuracy));
    if let Some(s) = scores {
        for (name, of) in columns(args) {
            let mut text = format!("{:.2} %", of(s));
            if name == "exact match" {
                let right = (s.exact_match * s.rows as f64).round() as usize;
                text += &format!(" ({} of {})", thousands(right), thousands(s.rows));
            }
            out += &field(name, text);
        }
    }
    output::print(&out)?;
    Ok(())
}
