//! Whole runs against PEFT, transformers and torch: the loss, gradient norm and learning rate of every step, the
//! evaluations, and the weights at the end. `goldens/runs.py` makes the files.

mod common;

use std::path::{Path, PathBuf};

use common::{Recorder, close, close_all, json};
use loratune_model::files::{SafetensorsSource, TensorSource};
use loratune_train::config::RunConfig;
use loratune_train::run::prepare;
use loratune_train::trainer::Ending;

/// Largest relative error of a step's loss and of its gradient norm (f32 against f32: the noise floor is about 4e-7).
const LOSS: f64 = 1e-5;
const GRAD_NORM: f64 = 1e-4;
/// Largest absolute error of a weight after 20 steps.
const WEIGHT: f64 = 1e-4;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/runs").join(name)
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
        worst = worst.max(close_all(&a.to_f32(), &b.to_f32(), WEIGHT, &format!("{name}: {tensor}")));
    }
    worst
}

fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let expected = json(&folder(name).join("expected.json"));
    let mut config = common::config(&folder(name), dir.path());
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
    let expected = folder(name).join("logits.safetensors");
    let what = format!("{name} ({})", adapter.display());
    common::compare_logits(&model.decoder, &model.params, &expected, 1e-4, &what);
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
fn label_smoothing_equals_transformers() {
    check("lora-smoothed");
}

#[test]
fn full_fine_tuning_equals_torch() {
    check("full");
}

#[test]
fn full_fine_tuning_with_a_tied_head_equals_torch() {
    check("full-tied");
}
