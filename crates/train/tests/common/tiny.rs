//! Runs of a tiny model with settings of a test's own.

#![allow(dead_code)]

use std::path::{Path, PathBuf};

use loratune_train::Result;
use loratune_train::config::RunConfig;
use loratune_train::progress::{Evaluation, StepReport};
use loratune_train::report::LogEntry;
use loratune_train::run::{Outcome, prepare};
use loratune_train::trainer::Observer;

pub fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/runs")
}

pub fn config(output: &Path, settings: &[&str]) -> RunConfig {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens/llama/gqa-untied");
    let mut all = vec![
        format!("model_name_or_path={}", model.canonicalize().unwrap().display()),
        format!("dataset={}", goldens().join("train.jsonl").display()),
        format!("output_dir={}", output.display()),
    ];
    let defaults = [
        "cutoff_len=64",
        "learning_rate=0.01",
        "max_steps=8",
        "logging_steps=3",
        "device=cpu",
        "per_device_train_batch_size=4",
        "lora_rank=4",
    ];
    all.extend(defaults.iter().chain(settings).map(|s| s.to_string()));
    RunConfig::from_words(&all).unwrap().config
}

/// Records the steps, and asks to stop after one of them.
#[derive(Default)]
pub struct Watcher {
    pub steps: Vec<StepReport>,
    pub evaluations: Vec<f64>,
    stop_after: Option<u64>,
}

impl Observer for Watcher {
    fn step(&mut self, report: &StepReport) {
        self.steps.push(*report);
    }
    fn evaluated(&mut self, _: u64, evaluation: &Evaluation) {
        self.evaluations.push(evaluation.loss);
    }
    fn logged(&mut self, _: &LogEntry, _: u64) {}
    fn saved(&mut self, _: u64, _: &Path) {}
    fn stop_requested(&mut self) -> bool {
        self.stop_after.is_some_and(|n| self.steps.last().is_some_and(|s| s.step >= n))
    }
}

pub fn run(config: RunConfig) -> (Result<Outcome>, Watcher) {
    run_until(config, None)
}

pub fn run_until(config: RunConfig, stop_after: Option<u64>) -> (Result<Outcome>, Watcher) {
    let mut watcher = Watcher { stop_after, ..Watcher::default() };
    let outcome = prepare(config).and_then(|p| p.run(&mut watcher));
    (outcome, watcher)
}

pub fn bytes(dir: &Path, file: &str) -> Vec<u8> {
    std::fs::read(dir.join(file)).unwrap_or_else(|e| panic!("{}: {e}", dir.join(file).display()))
}
