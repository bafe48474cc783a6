//! What the tests of whole runs share: a recorder of steps, configurations with absolute paths, and comparisons that
//! say where two numbers differ.

use std::path::Path;

use loratune_engine::{Params, Tensor};
use loratune_model::files::{SafetensorsSource, TensorSource};
use loratune_model::{Batch, Decoder};
use loratune_train::config::RunConfig;
use loratune_train::progress::{Evaluation, StepReport};
use loratune_train::report::LogEntry;
use loratune_train::trainer::Observer;
use serde_json::Value;

/// Keeps what a run reports.
#[derive(Default)]
pub struct Recorder {
    pub steps: Vec<StepReport>,
    pub evaluations: Vec<(u64, Evaluation)>,
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

/// A golden run's configuration with its paths made absolute.
pub fn config(folder: &Path, output: &Path) -> RunConfig {
    let output = format!("output_dir={}", output.display());
    let loaded = RunConfig::load(&folder.join("config.yaml"), &[output]);
    let mut config = loaded.unwrap_or_else(|e| panic!("{e}")).config;
    let absolute = |p: &str| folder.join(p).canonicalize().unwrap().display().to_string();
    config.model_name_or_path = absolute(&config.model_name_or_path);
    config.adapter_name_or_path = config.adapter_name_or_path.map(|p| absolute(&p));
    config.dataset = config.dataset.iter().map(|p| absolute(p)).collect();
    config.eval_dataset = config.eval_dataset.iter().map(|p| absolute(p)).collect();
    config
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Checks and returns the relative error.
pub fn close(ours: f64, theirs: &Value, tolerance: f64, what: &str) -> f64 {
    let theirs = theirs.as_f64().unwrap();
    let error = (ours - theirs).abs() / theirs.abs().max(1e-12);
    assert!(error <= tolerance || ours == theirs, "{what}: {ours} here, {theirs} there ({error:e} relative)");
    if ours == theirs { 0.0 } else { error }
}

/// Checks and returns the largest absolute error of a tensor; a failure names the worst place.
pub fn close_all(ours: &[f32], theirs: &[f32], tolerance: f64, what: &str) -> f64 {
    assert_eq!(ours.len(), theirs.len(), "{what}: sizes");
    let error = |i: usize| (f64::from(ours[i]) - f64::from(theirs[i])).abs();
    // NaN counts as the worst.
    let worst = (0..ours.len()).max_by(|&i, &j| error(i).total_cmp(&error(j)));
    let Some(i) = worst else { return 0.0 };
    let e = error(i);
    let outside = (0..ours.len()).filter(|&i| error(i).is_nan() || error(i) > tolerance).count();
    assert!(
        e <= tolerance,
        "{what}: element {i} is {} here, {} there ({e:e} absolute; {outside} of {} are outside {tolerance:e})",
        ours[i],
        theirs[i],
        ours.len()
    );
    e
}

/// Compares the logits of the documents in `expected` (`doc{0,1}.input_ids`, `.logits`); returns the worst error.
pub fn compare_logits(
    decoder: &Decoder,
    params: &Params,
    expected: &Path,
    tolerance: f64,
    what: &str,
) -> f64 {
    let source = SafetensorsSource::open_file(expected).unwrap();
    let mut worst = 0.0f64;
    for doc in 0..2 {
        let ids = ints(expected, &format!("doc{doc}.input_ids"));
        let ours: Tensor = decoder.logits(params, &Batch::from_ids([ids.as_slice()])).unwrap();
        let theirs = source.read(&format!("doc{doc}.logits")).unwrap().to_f32();
        let ours: Vec<f32> = ours.to_f64_vec().iter().map(|&x| x as f32).collect();
        worst = worst.max(close_all(&ours, &theirs, tolerance, &format!("{what}: logits of doc{doc}")));
    }
    worst
}

/// A tensor of 64-bit integers, which weights never are.
fn ints(path: &Path, tensor: &str) -> Vec<u32> {
    let bytes = std::fs::read(path).unwrap();
    let header_len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_len]).unwrap();
    assert_eq!(header[tensor]["dtype"], "I64");
    let offset = |i: usize| 8 + header_len + header[tensor]["data_offsets"][i].as_u64().unwrap() as usize;
    let data = &bytes[offset(0)..offset(1)];
    data.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32).collect()
}
