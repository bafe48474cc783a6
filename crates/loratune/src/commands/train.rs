//! `loratune train`.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use loratune_engine::{DType, Device};
use loratune_train::checkpoint::Start;
use loratune_train::config::{Finetuning, Key, Loaded, RunConfig, Value};
use loratune_train::model::dtypes;
use loratune_train::optimizer::{GroupSize, group_sizes};
use loratune_train::run::{Outcome, Prepared, peak_memory, prepare_with};
use loratune_train::trainer::Ending;
use loratune_train::vocabulary::Vocabulary;
use serde::Serialize;
use serde_json::json;

use crate::cli::{Global, RunArgs};
use crate::hub::{self, Datasets};
use crate::output::{self, bytes, duration, field, number, shell_word, thousands};
use crate::progress::{Progress, Style};
use crate::pushing::{Pushing, PushingObserver};

/// Exit code of a run that was interrupted: 128 + SIGINT, as shells say it.
const INTERRUPTED: u8 = 130;

/// Whose names the settings are in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontEnd {
    /// `train`: keys, LLaMA-Factory's and Hugging Face's, in a file or as flags.
    Keys,
    /// `llm`: AutoTrain's flags.
    AutoTrain,
}

pub fn run(front: FrontEnd, args: &RunArgs, global: &Global) -> Result<ExitCode> {
    let loaded = load_config(front, args, global)?;
    if !args.json && !global.quiet {
        loaded.notes.iter().for_each(|n| output::note(&format!("note: {n}")));
    }
    if args.print_config {
        output::print(&loaded.to_annotated_yaml())?;
        return Ok(ExitCode::SUCCESS);
    }
    let style = match (args.json, global.quiet) {
        (true, _) => Style::Json,
        (_, true) => Style::Quiet,
        _ => Style::Lines,
    };
    let words = std::env::args_os().map(|a| a.to_string_lossy().into_owned());
    let resume = resume_command(words);
    execute(&loaded, style, if args.dry_run { Extent::Plan } else { Extent::Everything }, &resume)
}

/// How much of a run is done and shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Read and check everything, show the plan, stop.
    Plan,
    Everything,
    /// Only the steps are shown; what comes before and after is the caller's.
    Steps,
}

/// Runs a configuration. `resume` is the command that is shown to go on with after an interruption.
///
/// # Errors
/// What is wrong with it, or what happened on the way.
pub fn execute(loaded: &Loaded, style: Style, extent: Extent, resume: &str) -> Result<ExitCode> {
    let template = loaded.config.template.clone();
    let mut config = loaded.config.clone();
    let mut pushing = Pushing::of(&mut config)?;
    let located = hub::locate(&config)?;
    let datasets = Datasets::of(&config)?;
    let prepared = prepare_with(config, &located, Some(&datasets))?;
    let plan = Plan::of(&prepared);
    if extent != Extent::Steps {
        introduce(style, loaded, &prepared, &plan, extent == Extent::Plan)?;
    }
    if prepared.config.print_param_status {
        show_parameters(style, &prepared)?;
    }
    if extent == Extent::Plan {
        return Ok(ExitCode::SUCCESS);
    }
    // What cannot be pushed is known before the training, not after.
    pushing.as_ref().map(Pushing::begin).transpose()?;
    let stop = listen(!matches!(style, Style::Json | Style::Quiet))?;
    let mut progress = Progress::new(style, plan.total_steps, stop);
    let mut observer = PushingObserver { observer: &mut progress, pushing: pushing.as_mut() };
    let outcome = prepared.run(&mut observer);
    let closed = progress.finish();
    let troubles = pushing.as_mut().map(Pushing::wait).unwrap_or_default();
    troubles.iter().for_each(|t| output::note(&format!("note: {t}")));
    let outcome = outcome?;
    let interrupted = matches!(outcome.ending, Ending::Interrupted { .. });
    if !closed && (interrupted || extent == Extent::Everything) {
        conclude(style, &loaded.config, template.as_deref(), &outcome, progress.last_loss, resume)?;
    }
    if let Some(pushing) = pushing.as_mut().filter(|_| !interrupted) {
        let pushed = pushing.result()?;
        match style {
            Style::Json => output::json(&json!({"event": "push", "push": super::push::as_json(&pushed)}))?,
            Style::Quiet => {}
            Style::Lines => output::print(&super::push::lines(&pushed))?,
        }
    }
    Ok(if interrupted { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

fn load_config(front: FrontEnd, args: &RunArgs, global: &Global) -> Result<Loaded> {
    let mut words = args.settings.clone();
    words.extend(global.threads.map(|n| format!("threads={n}")));
    Ok(match front {
        FrontEnd::Keys => RunConfig::from_words(&words)?,
        FrontEnd::AutoTrain => RunConfig::from_autotrain(&words)?,
    })
}

/// What a run is going to do.
#[derive(Debug, Serialize)]
struct Plan {
    /// `None` of a stream.
    examples: Option<usize>,
    eval_examples: usize,
    rows_per_epoch: usize,
    steps_per_epoch: u64,
    total_steps: u64,
    trainable_parameters: usize,
    /// The trained parameters by learning rate and decay.
    parameter_groups: Vec<GroupSize>,
    parameters: usize,
    vocabulary: Vocabulary,
    /// Bytes of all weights, frozen and trained.
    weight_bytes: u64,
    /// Bytes of the gradients and the optimiser's state.
    training_bytes: u64,
    resume_from: Option<String>,
    /// Where it computes, and why it is the processor where a card might have been meant.
    device: String,
    why_cpu: Option<String>,
    /// What the run does otherwise than the model's configuration asks.
    notes: Vec<String>,
}

impl Plan {
    fn of(prepared: &Prepared) -> Plan {
        let (trained, all) = prepared.parameters();
        let stored = if dtypes(&prepared.config).weights == DType::BF16 { 2 } else { 4 };
        Plan {
            examples: prepared.feed.examples(),
            eval_examples: prepared.feed.eval.len(),
            rows_per_epoch: prepared.feed.rows_per_epoch(),
            steps_per_epoch: prepared.feed.steps_per_epoch(),
            total_steps: prepared.total_steps(),
            trainable_parameters: trained,
            parameter_groups: group_sizes(&prepared.model.params, &prepared.config),
            parameters: all,
            vocabulary: prepared.vocabulary.clone(),
            weight_bytes: (all.saturating_sub(trained) * stored + trained * 4) as u64,
            // A gradient and AdamW's two moments, in f32.
            training_bytes: trained as u64 * 12,
            resume_from: match &prepared.start {
                Start::Resume(path) => Some(path.display().to_string()),
                Start::Fresh => None,
            },
            device: device_name(prepared.device.device),
            why_cpu: prepared.device.why_cpu.clone(),
            notes: prepared.notes.clone(),
        }
    }

    fn render(&self, config: &RunConfig) -> String {
        let rows = match (config.cuts_blocks(), config.packing) {
            (true, _) => "blocks",
            (false, true) => "packs",
            (false, false) => "rows",
        };
        let share = 100.0 * self.trainable_parameters as f64 / self.parameters.max(1) as f64;
        let steps = format!(
            "{} ({} an epoch of {} {rows}, {} × {} a step)",
            thousands(self.total_steps),
            thousands(self.steps_per_epoch),
            thousands(self.rows_per_epoch),
            config.per_device_train_batch_size,
            config.gradient_accumulation_steps
        );
        let trained = format!(
            "{} of {} ({share:.2} %)",
            thousands(self.trainable_parameters),
            thousands(self.parameters)
        );
        let memory = format!(
            "{} for the weights, {} for gradients and optimiser, activations besides",
            bytes(self.weight_bytes),
            bytes(self.training_bytes)
        );
        let mut out = format!("{:<10} {steps}\n{:<10} {trained}\n", "steps", "trained");
        out.push_str(&rates_line(&self.parameter_groups));
        out.push_str(&format!("{:<10} {memory}\n", "memory"));
        let why = self.why_cpu.as_ref().map_or(String::new(), |why| format!(": {why}"));
        out.push_str(&format!("{:<10} {}{why}\n", "device", self.device));
        if let Some(line) = vocabulary_line(&self.vocabulary) {
            out.push_str(&format!("{:<10} {line}\n", "vocabulary"));
        }
        for note in self.vocabulary.notes.iter().chain(&self.notes) {
            out.push_str(&format!("{:<10} {note}\n", "note"));
        }
        if let Some(path) = &self.resume_from {
            out.push_str(&format!("{:<10} from {path}\n", "goes on"));
        }
        out
    }
}

/// The learning rates of the parameters, where they are several.
fn rates_line(groups: &[GroupSize]) -> String {
    let mut by_rate: Vec<(f64, usize, &str)> = Vec::new();
    for group in groups {
        match by_rate.iter_mut().find(|(rate, ..)| *rate == group.learning_rate) {
            Some((_, parameters, _)) => *parameters += group.parameters,
            None => by_rate.push((group.learning_rate, group.parameters, &group.first)),
        }
    }
    if by_rate.len() < 2 {
        return String::new();
    }
    let parts = by_rate.iter().map(|(rate, n, first)| {
        format!("{} for {} (the first is {first})", number(*rate), thousands(*n as u64))
    });
    format!("{:<10} {}\n", "rates", parts.collect::<Vec<_>>().join(", "))
}

/// What a run does to its vocabulary, if it does something.
fn vocabulary_line(v: &Vocabulary) -> Option<String> {
    const SHOWN: usize = 8;
    let mut parts = Vec::new();
    if !v.added.is_empty() {
        let named: Vec<String> =
            v.added.iter().take(SHOWN).map(|t| format!("{} ({})", t.token, t.id)).collect();
        let more = if v.added.len() > SHOWN { ", …" } else { "" };
        parts.push(format!("{} added: {}{more}", thousands(v.added.len() as u64), named.join(", ")));
    }
    if let Some(old) = v.resized_from {
        let [old, new] = [old, v.rows].map(|n| thousands(n as u64));
        parts.push(format!("embedding and head resized from {old} to {new} rows"));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

/// What is shown before the first step.
fn introduce(style: Style, loaded: &Loaded, prepared: &Prepared, plan: &Plan, dry: bool) -> Result<()> {
    match style {
        Style::Quiet if !dry => {}
        Style::Json => {
            let config: serde_json::Map<String, serde_json::Value> =
                loaded.config.entries().into_iter().map(|(k, v)| (k.name.to_string(), plain(&v))).collect();
            output::json(&json!({"event": "start", "config": config, "notes": loaded.notes}))?;
            output::json(&json!({"event": "data", "report": prepared.report}))?;
            output::json(&json!({"event": "plan", "plan": plan}))?;
        }
        _ => {
            output::print(&prepared.report.render(output::colors(&io::stdout())))?;
            output::print(&format!("\n{}\n", plan.render(&loaded.config)))?;
        }
    }
    Ok(())
}

/// Every parameter, one a line in LLaMA-Factory's words.
fn show_parameters(style: Style, prepared: &Prepared) -> Result<()> {
    let device = prepared.device.device;
    let all = prepared.model.parameters();
    if style == Style::Json {
        let all: Vec<serde_json::Value> = all
            .iter()
            .map(|p| json!({"name": p.name, "dtype": p.dtype.to_string(), "shape": p.shape, "trainable": p.trained}))
            .collect();
        return Ok(output::json(
            &json!({"event": "parameters", "device": device_name(device), "parameters": all}),
        )?);
    }
    let lines = all.iter().map(|p| {
        let trained = p.trained;
        format!(
            "name: {}, dtype: {}, device: {}, trainable: {trained}\n",
            p.name,
            p.dtype,
            device_name(device)
        )
    });
    Ok(output::print(&(lines.collect::<String>() + "\n"))?)
}

fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(n) => format!("cuda:{n}"),
        Device::Cpu => "cpu".into(),
    }
}

fn plain(value: &Value) -> serde_json::Value {
    match value {
        Value::Null => serde_json::Value::Null,
        Value::Bool(b) => json!(b),
        Value::Int(i) => json!(i),
        Value::Float(x) => json!(x),
        Value::Str(s) => json!(s),
        Value::List(items) => items.iter().map(plain).collect(),
        Value::Map(entries) => entries.iter().map(|(k, v)| (k.clone(), plain(v))).collect(),
    }
}

/// A flag that the first SIGINT or SIGTERM sets; the second one ends the process at once.
fn listen(speak: bool) -> Result<Arc<AtomicBool>> {
    use signal_hook::consts::{SIGINT, SIGTERM};
    use signal_hook::flag;

    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the shutdown looks at what earlier signals left in the flag.
        flag::register_conditional_shutdown(signal, INTERRUPTED.into(), stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .context("signals cannot be handled")?;
    }
    if speak {
        let stop = stop.clone();
        std::thread::spawn(move || {
            while !stop.load(Ordering::SeqCst) {
                std::thread::sleep(std::time::Duration::from_millis(50));
            }
            output::note("\nfinishing the step and saving; press Ctrl-C again to stop at once");
        });
    }
    Ok(stop)
}

/// A command of these words once more, going on from the newest checkpoint; tokens are not repeated.
pub fn resume_command(words: impl IntoIterator<Item = String>) -> String {
    const REPLACED: [&str; 2] = ["overwrite_output_dir", "resume_from_checkpoint"];
    let mut kept = Vec::new();
    let mut words = words.into_iter().peekable();
    while let Some(word) = words.next() {
        let (name, attached) = match word.trim_start_matches('-').split_once('=') {
            Some((name, _)) => (name.replace('-', "_"), true),
            None => (word.trim_start_matches('-').replace('-', "_"), false),
        };
        let is_flag = word.starts_with("--") && !attached;
        let replaced = REPLACED.contains(&name.as_str()) && (is_flag || attached);
        let secret = name == "token" || Key::find(&name).is_some_and(|k| k.is_secret);
        if !replaced && !secret {
            kept.push(shell_word(&word));
        } else if is_flag {
            // Their values go with them; a switch has one only if it says true or false.
            let is_switch = name == "overwrite_output_dir";
            words.next_if(|w| !w.starts_with("--") && (!is_switch || matches!(w.as_str(), "true" | "false")));
        }
    }
    kept.push("resume_from_checkpoint=true".into());
    kept.join(" ")
}

/// What is shown when the run is over.
fn conclude(
    style: Style,
    config: &RunConfig,
    template: Option<&str>,
    outcome: &Outcome,
    last_loss: Option<f64>,
    resume: &str,
) -> Result<()> {
    let interrupted = matches!(outcome.ending, Ending::Interrupted { .. });
    if style == Style::Json {
        output::json(&end_event(outcome, resume))?;
        return Ok(());
    }
    if style == Style::Quiet && !interrupted {
        return Ok(());
    }
    if let Ending::Interrupted { step } = outcome.ending {
        output::note(&format!(
            "stopped after step {step}; everything is in {}\nto go on:\n  {}",
            outcome.output_dir.join(format!("checkpoint-{step}")).display(),
            resume
        ));
        return Ok(());
    }
    let speed = outcome.tokens as f64 / outcome.seconds.max(1e-9);
    let memory = peak_memory().map_or(String::new(), |b| format!(", {} at the peak", bytes(b)));
    let early = match outcome.ending {
        Ending::EarlyStopped { step } => format!(", stopped early at step {step}"),
        _ => String::new(),
    };
    let steps = format!(
        "{} steps in {}{early}, {} tokens/s{memory}",
        thousands(outcome.steps),
        duration(outcome.seconds),
        thousands(speed as u64)
    );
    let mut out = format!("\n{}", field("finished", steps));
    if let Some(mean) = outcome.train_loss {
        let last = last_loss.map_or(String::new(), |l| format!("{} at the end, ", number(l)));
        out.push_str(&field("loss", format!("{last}{} on average", number(mean))));
    }
    if let Some(e) = &outcome.evaluation {
        let accuracy = 100.0 * e.accuracy;
        let text = format!(
            "loss {}, perplexity {}, accuracy {accuracy:.2} %",
            number(e.loss),
            number(e.perplexity())
        );
        out.push_str(&field("evaluation", text));
    }
    if let Some(step) = outcome.best_step {
        out.push_str(&field("kept", format!("the weights of step {step}, which had the best evaluation")));
    }
    out.push_str(&field("result", outcome.output_dir.display().to_string()));
    if config.plot_loss {
        out.push_str(&field("plot", outcome.output_dir.join("training_loss.png").display().to_string()));
    }
    out.push_str(&field("next", next_command(config, template, outcome)));
    output::print(&out)?;
    Ok(())
}

/// The command that tries out the result.
fn next_command(config: &RunConfig, template: Option<&str>, outcome: &Outcome) -> String {
    let result = shell_word(&outcome.output_dir.display().to_string());
    let model = match config.finetuning_type {
        Finetuning::Lora if config.merge_adapter => result,
        Finetuning::Lora => format!("{} --adapter {result}", shell_word(&config.model_name_or_path)),
        Finetuning::Full | Finetuning::Freeze => result,
    };
    let template = template.map_or(String::new(), |t| format!(" --template {}", shell_word(t)));
    format!("loratune generate --model {model}{template} --prompt \"…\"")
}

fn end_event(outcome: &Outcome, resume: &str) -> serde_json::Value {
    let (ending, step) = match outcome.ending {
        Ending::Finished => ("finished", None),
        Ending::EarlyStopped { step } => ("early_stopped", Some(step)),
        Ending::Interrupted { step } => ("interrupted", Some(step)),
    };
    json!({
        "event": "end",
        "ending": ending,
        "step": step,
        "output_dir": outcome.output_dir.display().to_string(),
        "train_loss": outcome.train_loss,
        "evaluation": outcome.evaluation,
        "best_step": outcome.best_step,
        "steps": outcome.steps,
        "tokens": outcome.tokens,
        "seconds": outcome.seconds,
        "peak_memory_bytes": peak_memory(),
        "resume": matches!(outcome.ending, Ending::Interrupted { .. }).then_some(resume),
    })
}
