//! `loratune quickstart`: the embedded model, fine-tuned on the embedded task, with the answers before and after.
//!
//! It writes the model, the data and a configuration as ordinary files and then does what `loratune train` does with
//! them, so that everything a newcomer sees can be done again by hand.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use loratune_data::{DatasetSource, DatasetSpec, EncodeOptions, Example, load_examples};
use loratune_engine::DType;
use loratune_model::Batch;
use loratune_model::files::atomic::replace_dir_atomically;
use loratune_model::generate::{Sampling, generate};
use loratune_train::config::RunConfig;
use loratune_train::evaluate::evaluate;
use loratune_train::progress::Evaluation;

use super::eval::{ExactMatch, exact_match};
use super::generate::answer_text;
use super::train::{self, Extent};
use crate::cli::{Global, QuickstartArgs};
use crate::load::LoadedModel;
use crate::output::{self, Usage, field, number, shell_word};
use crate::progress::Style;

/// Files of the embedded default, by their path in the folder that is written.
const FILES: &[(&str, &[u8])] = &[
    ("model/config.json", MODEL_CONFIG),
    ("model/model.safetensors", include_bytes!("../../assets/quickstart/model/model.safetensors")),
    ("model/tokenizer.json", include_bytes!("../../assets/quickstart/model/tokenizer.json")),
    ("model/tokenizer_config.json", include_bytes!("../../assets/quickstart/model/tokenizer_config.json")),
    (
        "model/special_tokens_map.json",
        include_bytes!("../../assets/quickstart/model/special_tokens_map.json"),
    ),
    ("model/chat_template.jinja", include_bytes!("../../assets/quickstart/model/chat_template.jinja")),
    ("data/train.jsonl", include_bytes!("../../assets/quickstart/train.jsonl")),
    ("data/test.jsonl", include_bytes!("../../assets/quickstart/test.jsonl")),
];
/// Of the embedded model.
pub const MODEL_CONFIG: &[u8] = include_bytes!("../../assets/quickstart/model/config.json");
const CONFIG: &str = include_str!("../../assets/quickstart/quickstart.yaml");

/// Test rows that are answered to count exact matches.
const ANSWERED: usize = 200;
const MAX_NEW_TOKENS: usize = 64;
const BATCH: usize = 50;

pub fn run(args: &QuickstartArgs, global: &Global) -> Result<ExitCode> {
    let dir = &args.output;
    write_files(dir, args.overwrite)?;
    let config_file = dir.join("quickstart.yaml");
    let model_dir = dir.join("model");
    let adapter_dir = dir.join("adapter");

    let base = LoadedModel::from_paths(&model_dir, None, DType::F32)?;
    let test = examples(&base, &dir.join("data/test.jsonl"))?;
    if !global.quiet {
        output::print(&intro(dir, &base, test.len()))?;
    }
    let before = Score::of(&base, &test)?;
    if !global.quiet {
        output::print(&field("before", before.words()))?;
        output::print("\n")?;
    }
    drop(base);

    let overrides = overrides(dir, args, global);
    let loaded = RunConfig::load(&config_file, &overrides)?;
    let style = if global.quiet { Style::Quiet } else { Style::Lines };
    let ended = train::execute(&loaded, style, Extent::Steps, &resume_command(&config_file, overrides))?;
    if ended != ExitCode::SUCCESS {
        return Ok(ended);
    }

    let tuned = LoadedModel::from_paths(&model_dir, Some(&adapter_dir), DType::F32)?;
    let after = Score::of(&tuned, &test)?;
    output::print(&conclusion(dir, &before, &after))?;
    Ok(ExitCode::SUCCESS)
}

/// The training that quickstart does, as a command that goes on with it.
fn resume_command(config_file: &Path, overrides: Vec<String>) -> String {
    let program = std::env::args_os().next().map_or("loratune".into(), |p| p.to_string_lossy().into_owned());
    let words = [program, "train".into(), config_file.display().to_string()];
    train::resume_command(words.into_iter().chain(overrides))
}

/// The configuration names files beside itself; from another folder they have other paths.
fn overrides(dir: &Path, args: &QuickstartArgs, global: &Global) -> Vec<String> {
    let path = |key: &str, file: &str| format!("{key}={}", dir.join(file).display());
    let mut all = vec![
        path("model_name_or_path", "model"),
        path("dataset", "data/train.jsonl"),
        path("eval_dataset", "data/test.jsonl"),
        path("output_dir", "adapter"),
    ];
    all.extend(global.threads.map(|n| format!("threads={n}")));
    all.extend(args.settings.iter().cloned());
    all
}

fn write_files(dir: &Path, overwrite: bool) -> Result<()> {
    let taken = std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
    let ours = dir.join("quickstart.yaml").is_file() && dir.join("model/config.json").is_file();
    if taken && !(overwrite && ours) {
        let what = match (ours, overwrite) {
            (true, _) => {
                "holds an earlier quickstart: add --overwrite to do it again, or name another --output"
            }
            (false, _) => "is not empty and not a quickstart's folder: name another --output",
        };
        return Err(Usage(format!("{}: {what}", dir.display())).into());
    }
    replace_dir_atomically(dir, |aside| -> Result<()> {
        for (name, bytes) in FILES {
            write(&aside.join(name), bytes)?;
        }
        write(&aside.join("quickstart.yaml"), CONFIG.as_bytes())
    })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let parent: PathBuf = path.parent().map(Path::to_path_buf).unwrap_or_default();
    std::fs::create_dir_all(&parent).with_context(|| format!("{} can't be made", parent.display()))?;
    std::fs::write(path, bytes).with_context(|| format!("{} can't be written", path.display()))
}

fn examples(model: &LoadedModel, path: &Path) -> Result<Vec<Example>> {
    let spec = DatasetSpec { train: vec![DatasetSource::new(path)], ..DatasetSpec::default() };
    Ok(load_examples(&spec, &*model.tokenizer, &EncodeOptions::default())?.train.to_vec())
}

/// How well a model does the task.
struct Score {
    evaluation: Evaluation,
    exact: ExactMatch,
    prompt: String,
    expected: String,
    answer: String,
}

impl Score {
    fn of(model: &LoadedModel, test: &[Example]) -> Result<Score> {
        let batches = test.chunks(BATCH).map(|rows| {
            Batch::from_labelled(rows.iter().map(|e| (e.input_ids.as_slice(), e.labels.as_slice())))
        });
        let evaluation = evaluate(&model.decoder, &model.params, batches)?;
        let answered = &test[..ANSWERED.min(test.len())];
        let exact = exact_match(model, answered, MAX_NEW_TOKENS, BATCH, |_| ())?;
        let shown = test.first().context("the quickstart's data holds no test row")?;
        let start = shown.labels.iter().position(|&l| l >= 0).unwrap_or(0);
        let prompt = shown.input_ids[..start].to_vec();
        let sampling = Sampling::greedy(MAX_NEW_TOKENS, model.stop_ids());
        let answers =
            generate(&model.decoder, &model.params, std::slice::from_ref(&prompt), &sampling, |_, _| true)?;
        let answer =
            answers.first().map(|a| answer_text(&model.tokenizer, a)).transpose()?.unwrap_or_default();
        Ok(Score {
            evaluation,
            exact,
            prompt: question(&model.tokenizer.decode(&prompt, false)?),
            expected: model.tokenizer.decode(&shown.input_ids[start..], true)?.trim().to_string(),
            answer: answer.trim().to_string(),
        })
    }

    fn words(&self) -> String {
        format!(
            "{:.1} % of {} test rows exactly right, loss {}",
            100.0 * self.exact.share(),
            self.exact.rows,
            number(self.evaluation.loss)
        )
    }
}

/// The user's words in a rendered ChatML prompt.
fn question(prompt: &str) -> String {
    let user = prompt.split("<|im_start|>user\n").last().unwrap_or(prompt);
    user.split("<|im_end|>").next().unwrap_or(user).to_string()
}

fn intro(dir: &Path, base: &LoadedModel, rows: usize) -> String {
    let parameters = base.decoder.spec().parameters() as f64 / 1e6;
    let mut out =
        field("model", format!("a Llama of {parameters:.1} million parameters that comes with loratune"));
    out += &field(
        "task",
        "sort letters to a shop into JSON records of topic, mood and urgency; the model only knows how to answer them",
    );
    out += &field(
        "test",
        format!("{rows} letters about things, and of sentences put together, that no training letter has"),
    );
    out += &field("folder", dir.display().to_string());
    out
}

fn conclusion(dir: &Path, before: &Score, after: &Score) -> String {
    let bold = output::colors(&io::stdout());
    let strong = |s: &str| if bold { format!("\x1b[1m{s}\x1b[0m") } else { s.to_string() };
    let mut out = String::from("\n");
    out += &field("question", &after.prompt);
    out += &field("expected", &after.expected);
    out += &field("before", &before.answer);
    out += &field("after", strong(&after.answer));
    out += "\n";
    out += &format!("{:<13}{:>12}{:>12}\n", "", "before", "after");
    let percent = |s: &Score| format!("{:.1} %", 100.0 * s.exact.share());
    out += &format!("{:<13}{:>12}{:>12}\n", "exact match", percent(before), strong(&percent(after)));
    let (a, b) = (number(before.evaluation.loss), number(after.evaluation.loss));
    out += &format!("{:<13}{a:>12}{b:>12}\n", "eval loss");
    let path = |file: &str| shell_word(&dir.join(file).display().to_string());
    out += &format!(
        "\nAsk it yourself:\n  loratune chat --model {} --adapter {}\nSee how it learned:\n  {}\nDo it again, or your own way:\n  \
         edit {} and run\n  cd {} && loratune train quickstart.yaml overwrite_output_dir=true\n",
        path("model"),
        path("adapter"),
        path("adapter/training_loss.png"),
        path("quickstart.yaml"),
        path("")
    );
    out
}
