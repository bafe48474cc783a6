//! Whole runs against PEFT, transformers and torch: the loss, gradient norm and learning rate of every step, the
//! evaluations, and the weights at the end. `goldens/runs.py` makes the files.

use std::path::{Path, PathBuf};

use loratune_engine::Tensor;
use loratune_model::Batch;
use loratune_model::files::{SafetensorsSource, TensorSource};
use loratune_train::config::RunConfig;
use loratune_train::progress::{Evaluation, StepReport};
use loratune_train::report::LogEntry;
use loratune_train::run::prepare;
use loratune_train::trainer::{Ending, Observer};
use serde_json::Value;

/// Largest relative error of a step's loss and of its gradient norm (f32 against f32: the noise floor is about 4e-7).
const LOSS: f64 = 1e-5;
const GRAD_NORM: f64 = 1e-4;
/// Largest absolute error of a weight after 20 steps.
const WEIGHT: f64 = 1e-4;

#[derive(Default)]
struct Recorder {
    steps: Vec<StepReport>,
    evaluations: Vec<(u64, Evaluation)>,
}

impl Observer for Recorder {
    fn step(&mut self, report: &StepReport) {
        self.steps.push(*report);
    }
    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        self.evaluations.push((step, *evaluation));
    }
    fn logged(&mut self, _: &LogEntry, _: u64) {}
    fn saved(&mut self, _: u64, _: &Path) {}
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/runs").join(name)
}

/// The run's configuration with its paths made absolute.
fn config(name: &str, output: &Path) -> RunConfig {
    let folder = folder(name);
    let output = format!("output_dir={}", output.display());
    let mut config = RunConfig::load(&folder.join("config.yaml"), &[output]).unwrap().config;
    let absolute = |p: &str| folder.join(p).canonicalize().unwrap().display().to_string();
    config.model_name_or_path = absolute(&config.model_name_or_path);
    config.adapter_name_or_path = config.adapter_name_or_path.map(|p| absolute(&p));
    config.dataset = config.dataset.iter().map(|p| absolute(p)).collect();
    config.eval_dataset = config.eval_dataset.iter().map(|p| absolute(p)).collect();
    config
}

/// Checks and returns the relative error.
fn close(ours: f64, theirs: &Value, tolerance: f64, what: &str) -> f64 {
    let theirs = theirs.as_f64().unwrap();
    let error = (ours - theirs).abs() / theirs.abs().max(1e-12);
    assert!(error <= tolerance || ours == theirs, "{what}: {ours} here, {theirs} there ({error:e})");
    if ours == theirs { 0.0 } else { error }
}

/// Checks and returns the largest absolute error.
fn compare_weights(ours: &Path, theirs: &Path, name: &str) -> f64 {
    let mut worst = 0.0f64;
    let (ours, theirs) =
        (SafetensorsSource::open_file(ours).unwrap(), SafetensorsSource::open_file(theirs).unwrap());
    assert_eq!(ours.names(), theirs.names(), "{name}: tensors");
    for tensor in ours.names() {
        let (a, b) = (ours.read(tensor).unwrap(), theirs.read(tensor).unwrap());
        assert_eq!(a.shape, b.shape, "{name}: {tensor}");
        for (a, b) in a.to_f32().iter().zip(b.to_f32()) {
            assert!(((a - b) as f64).abs() < WEIGHT, "{name}: {tensor}: {a} here, {b} there");
            worst = worst.max(((a - b) as f64).abs());
        }
    }
    worst
}

fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let expected: Value =
        serde_json::from_slice(&std::fs::read(folder(name).join("expected.json")).unwrap()).unwrap();
    let mut config = config(name, dir.path());
    config.save_strategy = loratune_train::config::SaveStrategy::Epoch; // the last step's f32 weights
    let full = config.adapter_name_or_path.is_none();
    let mut seen = Recorder::default();
    let outcome = prepare(config.clone()).unwrap().run(&mut seen).unwrap();
    assert_eq!(outcome.ending, Ending::Finished);

    let steps = expected["steps"].as_array().unwrap();
    assert_eq!(seen.steps.len(), steps.len());
    let [mut worst_loss, mut worst_norm] = [0.0f64; 2];
    for (ours, theirs) in seen.steps.iter().zip(steps) {
        let label = |what: &str| format!("{name} step {}: {what}", ours.step);
        assert_eq!(
            ours.trained_tokens as u64,
            theirs["trained_tokens"].as_u64().unwrap(),
            "{}",
            label("tokens")
        );
        worst_loss = worst_loss.max(close(ours.loss, &theirs["loss"], LOSS, &label("loss")));
        let norm = close(ours.grad_norm, &theirs["grad_norm"], GRAD_NORM, &label("gradient norm"));
        worst_norm = worst_norm.max(norm);
        close(ours.learning_rate, &theirs["learning_rate"], 1e-12, &label("learning rate"));
    }
    let evaluations = expected["evaluations"].as_array().unwrap();
    assert_eq!(seen.evaluations.len(), evaluations.len());
    for ((step, ours), theirs) in seen.evaluations.iter().zip(evaluations) {
        assert_eq!(*step, theirs["step"].as_u64().unwrap());
        close(ours.loss, &theirs["eval_loss"], LOSS, &format!("{name} step {step}: evaluation"));
    }

    let worst_weight = if full {
        let theirs = folder(name).join("final_model/model.safetensors");
        compare_weights(&dir.path().join("checkpoint-20/model.safetensors"), &theirs, name)
    } else {
        let theirs = folder(name).join("final_adapter/adapter_model.safetensors");
        compare_logits(name, &config, dir.path());
        compare_logits(name, &config, &folder(name).join("final_adapter"));
        compare_weights(&dir.path().join("adapter_model.safetensors"), &theirs, name)
    };
    println!(
        "{name}: loss {worst_loss:.1e}, gradient norm {worst_norm:.1e} relative; weights {worst_weight:.1e}"
    );
}

/// Logits of the base with an adapter, read back from its files.
fn compare_logits(name: &str, config: &RunConfig, adapter: &Path) {
    let mut config = config.clone();
    config.adapter_name_or_path = Some(adapter.display().to_string());
    let output = tempfile::tempdir().unwrap();
    config.output_dir = output.path().display().to_string();
    let model = prepare(config).unwrap().model;
    let expected = SafetensorsSource::open_file(&folder(name).join("logits.safetensors")).unwrap();
    for doc in 0..2 {
        let ids = ints(name, &format!("doc{doc}.input_ids"));
        let ours: Tensor = model.decoder.logits(&model.params, &Batch::from_ids([ids.as_slice()])).unwrap();
        let theirs = expected.read(&format!("doc{doc}.logits")).unwrap().to_f32();
        for (a, b) in ours.to_f64_vec().iter().zip(theirs) {
            assert!(
                (a - b as f64).abs() < 1e-4,
                "{name}: logits {a} here, {b} there ({})",
                adapter.display()
            );
        }
    }
}

/// A tensor of 64-bit integers, which weights never are.
fn ints(name: &str, tensor: &str) -> Vec<u32> {
    let bytes = std::fs::read(folder(name).join("logits.safetensors")).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    assert_eq!(header[tensor]["dtype"], "I64");
    let offset = |i: usize| 8 + header_len + header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    let data = &bytes[offset(0)..offset(1)];
    data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}

#[test]
fn lora_on_all_linears_with_evaluations_equals_peft() {
    check("lora-all-linear");
}

#[test]
fn lora_on_q_and_v_with_accumulation_decay_and_clipping_equals_peft() {
    check("lora-qv-cosine-accum");
}

#[test]
fn lora_with_a_regex_patterns_and_rslora_equals_peft() {
    check("lora-regex");
}

#[test]
fn full_fine_tuning_equals_torch() {
    check("full");
}

#[test]
fn full_fine_tuning_with_a_tied_head_equals_torch() {
    check("full-tied");
}
