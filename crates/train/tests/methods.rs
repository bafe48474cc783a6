//! Every fine-tuning method against PEFT, transformers and torch: loss and gradient norm of ten steps, the weights at
//! the end, and the logits of what was written, read back and merged. `goldens/methods.py` makes the files.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Recorder, close, close_all, compare_logits, json};
use loratune_engine::rng::Key;
use loratune_engine::{DType, Params};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::files::{FileDType, ModelFiles, SafetensorsSource, TensorSource};
use loratune_model::{adapter, load};
use loratune_train::config::{Finetuning, RunConfig};
use loratune_train::model::Method;
use loratune_train::run::prepare;
use loratune_train::trainer::Ending;
use serde_json::Value;

/// Largest relative error of a step's loss and of its gradient norm (f32 against f32: the noise floor is about 4e-7).
const LOSS: f64 = 1e-5;
const GRAD_NORM: f64 = 1e-4;
/// Largest absolute error of a weight after ten steps, and of a logit.
const WEIGHT: f64 = 1e-4;
const LOGIT: f64 = 1e-4;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/methods").join(name)
}

fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (folder, output) = (folder(name), dir.path().join("run"));
    let config = common::config(&folder, &output);
    let mut seen = Recorder::default();
    let prepared = prepare(config.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let outcome = prepared.run(&mut seen).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(outcome.ending, Ending::Finished, "{name}");
    let [loss, norm] = compare_steps(name, &seen, &json(&folder.join("expected.json")));

    let merged = dir.path().join("merged");
    let expected = folder.join("logits.safetensors");
    let (weight, logit) = match config.finetuning_type {
        Finetuning::Full | Finetuning::Freeze => {
            let weight = compare_full(name, &config, &output);
            std::fs::rename(&output, &merged).unwrap();
            (weight, 0.0)
        }
        Finetuning::Lora => {
            let weight = compare_adapter(name, &output, &folder.join("final_adapter"));
            let theirs = with_adapter(&config, &folder.join("final_adapter"));
            let (decoder, params) = (&theirs.decoder, &theirs.params);
            compare_logits(decoder, params, &expected, LOGIT, &format!("{name}: PEFT's adapter"));
            let ours = with_adapter(&config, &output);
            std::fs::create_dir_all(&merged).unwrap();
            let Method::Lora(attached) = &ours.method else { panic!("{name}: no adapter") };
            adapter::merge(
                &merged,
                &ours.files,
                &ours.decoder,
                &ours.params,
                Some(&**attached),
                FileDType::F32,
            )
            .unwrap_or_else(|e| panic!("{name}: merging: {e}"));
            let what = format!("{name}: the adapter written");
            (weight, compare_logits(&ours.decoder, &ours.params, &expected, LOGIT, &what))
        }
    };
    let logit = logit.max(compare_merged(name, &merged, &expected));
    println!(
        "{name}: loss {loss:.1e}, gradient norm {norm:.1e} relative; weights {weight:.1e}, logits {logit:.1e} absolute"
    );
}

/// The worst relative errors of losses and gradient norms.
fn compare_steps(name: &str, seen: &Recorder, expected: &Value) -> [f64; 2] {
    let steps = expected["steps"].as_array().unwrap();
    assert_eq!(seen.steps.len(), steps.len(), "{name}: steps");
    let [mut loss, mut norm] = [0.0f64; 2];
    for (ours, theirs) in seen.steps.iter().zip(steps) {
        let label = |what: &str| format!("{name} step {}: {what}", ours.step);
        let tokens = theirs["trained_tokens"].as_u64().unwrap();
        assert_eq!(ours.trained_tokens as u64, tokens, "{}", label("tokens"));
        close(ours.learning_rate, &theirs["learning_rate"], 1e-12, &label("learning rate"));
        loss = loss.max(close(ours.loss, &theirs["loss"], LOSS, &label("loss")));
        norm = norm.max(close(ours.grad_norm, &theirs["grad_norm"], GRAD_NORM, &label("gradient norm")));
    }
    [loss, norm]
}

/// The base of a run with an adapter read from its files.
fn with_adapter(config: &RunConfig, adapter: &Path) -> loratune_train::model::TrainedModel {
    let mut config = config.clone();
    config.adapter_name_or_path = Some(adapter.display().to_string());
    let output = tempfile::tempdir().unwrap();
    config.output_dir = output.path().display().to_string();
    prepare(config).unwrap_or_else(|e| panic!("{}: {e}", adapter.display())).model
}

/// Reads a merged folder back as any model is read.
fn compare_merged(name: &str, merged: &Path, expected: &Path) -> f64 {
    let files = ModelFiles::open(merged).unwrap_or_else(|e| panic!("{name}: the merged model: {e}"));
    let mut params = Params::new();
    let dtypes = Dtypes { activations: DType::F32, weights: DType::F32 };
    let decoder = load::decoder(&files, dtypes, &mut params, &Trained::Nothing)
        .unwrap_or_else(|e| panic!("{name}: the merged model: {e}"));
    compare_logits(&decoder, &params, expected, LOGIT, &format!("{name}: the merged model"))
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(path: &Path) -> Tensors {
    let source = SafetensorsSource::open_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let read = |name: &str| {
        let raw = source.read(name).unwrap();
        (raw.shape.to_vec(), raw.to_f32())
    };
    source.names().iter().map(|name| (name.to_string(), read(name))).collect()
}

/// Compares an adapter's tensors, and what its configuration says about their meaning.
fn compare_adapter(name: &str, ours: &Path, theirs: &Path) -> f64 {
    compare_adapter_configs(name, ours, theirs);
    let theirs = tensors(&theirs.join("adapter_model.safetensors"));
    let mut ours = tensors(&ours.join("adapter_model.safetensors"));
    let names = |t: &Tensors| t.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&theirs), "{name}: tensors of the adapter");
    align(name, &mut ours, &theirs);
    let mut worst = 0.0f64;
    for (tensor, (shape, values)) in &theirs {
        assert_eq!(&ours[tensor].0, shape, "{name}: shape of {tensor}");
        worst = worst.max(close_all(&ours[tensor].1, values, WEIGHT, &format!("{name}: {tensor}")));
    }
    worst
}

/// A singular vector's sign is arbitrary, so row k of A and column k of B may be negative together.
///
/// Elsewhere this changes nothing: a row that points the other way is no match with any sign.
fn align(name: &str, ours: &mut Tensors, theirs: &Tensors) {
    let pairs: Vec<String> =
        theirs.keys().filter_map(|k| k.strip_suffix("lora_A.weight").map(String::from)).collect();
    for module in pairs {
        let (key_a, key_b) = (format!("{module}lora_A.weight"), format!("{module}lora_B.weight"));
        let (shape, expected) = &theirs[&key_a];
        assert_eq!(&ours[&key_a].0, shape, "{name}: shape of {key_a}");
        let (r, cols) = (shape[0], shape[1]);
        for k in 0..r {
            let row = &mut ours.get_mut(&key_a).unwrap().1[k * cols..][..cols];
            let dot: f64 = row.iter().zip(&expected[k * cols..]).map(|(a, b)| f64::from(a * b)).sum();
            if dot < 0.0 {
                row.iter_mut().for_each(|a| *a = -*a);
                let b = &mut ours.get_mut(&key_b).unwrap().1;
                b.iter_mut().skip(k).step_by(r).for_each(|b| *b = -*b);
            }
        }
    }
}

/// The keys that a reader needs to make the same deltas of the same tensors.
fn compare_adapter_configs(name: &str, ours: &Path, theirs: &Path) {
    let read = |folder: &Path| json(&folder.join("adapter_config.json"));
    let (ours, theirs) = (read(ours), read(theirs));
    let sorted = |v: &Value| {
        let mut names: Vec<String> = v.as_array().into_iter().flatten().map(|n| n.to_string()).collect();
        names.sort();
        names
    };
    for key in
        ["use_dora", "use_rslora", "bias", "r", "init_lora_weights", "layers_to_transform", "layers_pattern"]
    {
        assert_eq!(ours[key], theirs[key], "{name}: adapter_config.json: {key}");
    }
    let excluded = sorted(&theirs["exclude_modules"]);
    for key in ["modules_to_save", "target_modules", "exclude_modules"] {
        // Lists in any order; a regular expression as it is.
        assert_eq!(ours[key].as_str(), theirs[key].as_str(), "{name}: adapter_config.json: {key}");
        let mut names = sorted(&theirs[key]);
        if key == "target_modules" {
            // PEFT spells `all-linear` out with the excluded names in it, which means the same.
            names.retain(|n| !excluded.contains(n));
        }
        assert_eq!(sorted(&ours[key]), names, "{name}: adapter_config.json: {key}");
    }
    assert_eq!(
        ours["trainable_token_indices"], theirs["trainable_token_indices"],
        "{name}: adapter_config.json: trainable_token_indices"
    );
    let ties = |v: &Value| v["ensure_weight_tying"].as_bool().unwrap_or_default();
    assert_eq!(ties(&ours), ties(&theirs), "{name}: adapter_config.json: ensure_weight_tying");
    let alpha = ours["lora_alpha"].as_f64().unwrap();
    close(alpha, &theirs["lora_alpha"], 1e-12, &format!("{name}: adapter_config.json: lora_alpha"));
    for key in ["rank_pattern", "alpha_pattern"] {
        let entries = |v: &Value| v[key].as_object().cloned().unwrap_or_default();
        let (ours, theirs) = (entries(&ours), entries(&theirs));
        let names = |v: &serde_json::Map<String, Value>| v.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&ours), names(&theirs), "{name}: adapter_config.json: {key}");
        for (pattern, value) in &ours {
            let what = format!("{name}: adapter_config.json: {key} {pattern}");
            close(value.as_f64().unwrap(), &theirs[pattern], 1e-12, &what);
        }
    }
}

/// Compares a whole model: what was trained with the golden, everything else bit for bit with the base.
fn compare_full(name: &str, config: &RunConfig, output: &Path) -> f64 {
    let base = ModelFiles::open(Path::new(&config.model_name_or_path)).unwrap();
    let theirs = tensors(&folder(name).join("final_model/model.safetensors"));
    let ours = tensors(&output.join("model.safetensors"));
    assert!(theirs.keys().all(|t| ours.contains_key(t)), "{name}: tensors of the model");
    let mut worst = 0.0f64;
    for (tensor, (shape, values)) in &ours {
        match theirs.get(tensor) {
            Some((expected, there)) => {
                assert_eq!(shape, expected, "{name}: shape of {tensor}");
                worst = worst.max(close_all(values, there, WEIGHT, &format!("{name}: {tensor}")));
            }
            None => {
                let before = load::read_f32(&base, tensor).unwrap();
                close_all(values, before.slice::<f32>().unwrap(), 0.0, &format!("{name}: frozen {tensor}"));
            }
        }
    }
    worst
}

#[test]
fn keys_draw_the_numbers_of_the_goldens_generator() {
    // `python goldens/philox.py` prints the same.
    let key = Key::new(0x1234_5678_9abc_def0).named("train").with(3).with(1).with(2);
    let words: Vec<u32> = (5..11).map(|i| key.word(i)).collect();
    assert_eq!(words, [3180539169, 1405749774, 3820549285, 1218996808, 987212607, 2449682629]);
    let uniform = [key.uniform(1 << 34), key.uniform((1 << 34) + 1)];
    assert_eq!(uniform, [0.34795743227005005, 0.6169357299804688]);
}

macro_rules! cases {
    ($($test:ident: $case:literal,)+) => {
        $(#[test]
        fn $test() {
            check($case);
        })+

        #[test]
        fn every_golden_has_its_test() {
            let mut cases = vec![$($case.to_string()),+];
            cases.sort();
            let entries = std::fs::read_dir(folder("")).unwrap();
            let mut folders: Vec<String> =
                entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            folders.sort();
            assert_eq!(cases, folders);
        }
    };
}

cases! {
    training_from_pefts_own_gaussian_start_equals_peft: "gaussian",
    training_from_pefts_own_orthogonal_start_equals_peft: "orthogonal",
    training_all_biases_equals_peft: "bias-all",
    training_the_biases_of_adapted_layers_equals_peft: "bias-lora-only",
    saving_the_head_and_all_norms_equals_peft: "save-head-norms",
    saving_the_embedding_of_a_tied_model_equals_peft: "save-embedding-tied",
    saving_the_head_of_a_tied_model_equals_peft: "save-head-tied",
    saving_embedding_and_head_of_a_tied_model_equals_peft: "save-both-tied",
    adapters_on_embedding_and_head_equal_peft: "embedding-head",
    an_adapter_on_a_tied_embedding_equals_peft: "embedding-tied",
    an_adapter_on_a_tied_head_equals_peft: "head-tied",
    dora_on_all_linears_equals_peft: "dora",
    dora_with_dropout_equals_peft: "dora-dropout",
    dora_on_embedding_and_head_equals_peft: "dora-embedding-head",
    dora_on_a_tied_embedding_equals_peft: "dora-embedding-tied",
    dora_with_rslora_and_patterns_equals_peft: "dora-patterns",
    dora_with_trained_biases_equals_peft: "dora-bias-all",
    pissa_equals_peft: "pissa",
    pissa_with_rslora_and_patterns_equals_peft: "pissa-patterns",
    pissa_with_biases_and_saved_modules_equals_peft: "pissa-save",
    olora_equals_peft: "olora",
    dora_from_pissa_equals_peft: "dora-pissa",
    dora_from_olora_equals_peft: "dora-olora",
    dropout_equals_peft_with_the_same_masks: "dropout",
    loraplus_equals_peft: "loraplus",
    loraplus_with_dora_biases_norm_and_embedding_equals_peft: "loraplus-dora",
    neftune_scaled_per_batch_equals_transformers: "neftune-batch",
    neftune_scaled_per_sequence_equals_the_authors_formula: "neftune-sequence",
    everything_at_once_equals_peft_and_transformers: "everything",
    rows_of_the_embedding_equal_peft: "tokens",
    rows_of_the_head_beside_an_adapter_on_the_embedding_equal_peft: "tokens-head",
    other_rows_of_embedding_and_head_with_dora_equal_peft: "tokens-both",
    rows_of_a_tied_embedding_are_the_heads_too_as_in_peft: "tokens-tied",
    the_same_rows_of_both_sides_of_a_tie_are_one_as_in_peft: "tokens-same-tied",
    rows_in_another_order_end_the_tie_as_in_peft: "tokens-apart-tied",
    rows_of_a_tied_head_alone_equal_peft: "tokens-head-tied",
    lora_on_a_tied_head_with_the_embeddings_rows_equals_peft: "tokens-lora-head-tied",
    rows_of_a_tied_head_beside_the_whole_embedding_equal_peft: "tokens-save-embedding-tied",
    everything_at_once_with_rows_equals_peft_and_transformers: "tokens-everything",
    full_fine_tuning_of_some_parameters_equals_torch: "full-some",
}
