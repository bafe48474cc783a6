//! Five steps of LoRA and of DoRA on every family against PEFT and transformers. `goldens/families.py` makes the files.

#[allow(dead_code)]
mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use common::{Recorder, close, close_all, json};
use loratune_model::families::FAMILIES;
use loratune_model::files::{ModelFiles, SafetensorsSource, TensorSource};
use loratune_train::run::prepare;
use loratune_train::trainer::Ending;

/// Largest relative error of a loss and of a gradient norm, largest absolute error of a weight.
const LOSS: f64 = 1e-5;
const GRAD_NORM: f64 = 1e-4;
const WEIGHT: f64 = 1e-4;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/families")
}

fn cases(method: &str) -> Vec<String> {
    let entries = std::fs::read_dir(goldens()).unwrap().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|n| n.ends_with(method)).collect();
    names.sort();
    names
}

/// Runs a case; returns its family's class.
fn check(name: &str) -> &'static str {
    let dir = tempfile::tempdir().unwrap();
    let folder = goldens().join(name);
    let config = common::config(&folder, dir.path());
    let class = ModelFiles::open(Path::new(&config.model_name_or_path)).unwrap().config.family.class;
    let mut seen = Recorder::default();
    let prepared = prepare(config).unwrap_or_else(|e| panic!("{name}: {e}"));
    let outcome = prepared.run(&mut seen).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(outcome.ending, Ending::Finished, "{name}");
    let expected = json(&folder.join("expected.json"));
    let steps = expected["steps"].as_array().unwrap();
    assert_eq!(seen.steps.len(), steps.len(), "{name}");
    let [mut loss, mut norm, mut weight] = [0.0f64; 3];
    for (ours, theirs) in seen.steps.iter().zip(steps) {
        let label = |what: &str| format!("{name} step {}: {what}", ours.step);
        assert_eq!(
            ours.trained_tokens as u64,
            theirs["trained_tokens"].as_u64().unwrap(),
            "{}",
            label("tokens")
        );
        loss = loss.max(close(ours.loss, &theirs["loss"], LOSS, &label("loss")));
        norm = norm.max(close(ours.grad_norm, &theirs["grad_norm"], GRAD_NORM, &label("gradient norm")));
    }
    let open = |path: &Path| SafetensorsSource::open_file(&path.join("adapter_model.safetensors")).unwrap();
    let (ours, theirs) = (open(dir.path()), open(&folder.join("final_adapter")));
    assert_eq!(ours.names(), theirs.names(), "{name}");
    for tensor in theirs.names() {
        let (a, b) = (ours.read(tensor).unwrap(), theirs.read(tensor).unwrap());
        assert_eq!(a.shape, b.shape, "{name}: {tensor}");
        weight = weight.max(close_all(&a.to_f32(), &b.to_f32(), WEIGHT, &format!("{name}: {tensor}")));
    }
    println!("{name}: loss {loss:.1e}, gradient norm {norm:.1e} relative; weights {weight:.1e} absolute");
    class
}

fn check_all(method: &str) {
    let seen: BTreeSet<&str> = cases(method).iter().map(|name| check(name)).collect();
    let all: BTreeSet<&str> = FAMILIES.iter().map(|f| f.class).collect();
    assert_eq!(seen, all, "families with a golden run, and all families");
}

#[test]
fn lora_on_every_family_equals_peft() {
    check_all("-lora");
}

#[test]
fn dora_on_every_family_equals_peft() {
    check_all("-dora");
}
