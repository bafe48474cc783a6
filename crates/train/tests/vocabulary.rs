//! Added tokens and resized vocabularies: training against PEFT, transformers and torch on a base with the same new rows,
//! what is written, and what is refused. `goldens/vocabulary.py` makes the files.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use common::{Recorder, close, close_all, compare_logits, json};
use loratune_engine::{DType, Params};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::files::{FileDType, ModelFiles, SafetensorsSource, TensorSource};
use loratune_model::vocabulary::{NewRows, resized};
use loratune_model::{adapter, load};
use loratune_tokenizer::TokenizerBundle;
use loratune_train::config::{Finetuning, RunConfig};
use loratune_train::model::Method;
use loratune_train::run::{Prepared, prepare};
use loratune_train::trainer::Ending;

/// As in `methods.rs`.
const LOSS: f64 = 1e-5;
const GRAD_NORM: f64 = 1e-4;
const WEIGHT: f64 = 1e-4;
/// Of what PEFT trained.
const LOGIT: f64 = 2e-5;
/// Of what was trained here: one of 20,000 elements of the tables has a gradient so near 0 (1e-8) that its steps are rounding.
const TRAINED_LOGIT: f64 = 3e-4;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/vocabulary")
}

fn model(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens/llama").join(name);
    path.canonicalize().unwrap()
}

type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

fn tensors(path: &Path) -> Tensors {
    let source = SafetensorsSource::open_file(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let read = |name: &str| {
        let raw = source.read(name).unwrap();
        (raw.shape.clone(), raw.to_f32())
    };
    source.names().iter().map(|name| (name.to_string(), read(name))).collect()
}

fn compare_tensors(what: &str, ours: &Tensors, theirs: &Tensors) {
    let names = |t: &Tensors| t.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(ours), names(theirs), "{what}: tensors");
    for (name, (shape, values)) in theirs {
        assert_eq!(&ours[name].0, shape, "{what}: shape of {name}");
        close_all(&ours[name].1, values, WEIGHT, &format!("{what}: {name}"));
    }
}

/// A golden run from its own configuration: the losses, what was written, and what it makes of added tokens.
fn check(name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let (folder, output) = (goldens().join(name), dir.path().join("run"));
    let config = common::config(&folder, &output);
    let mut seen = Recorder::default();
    let prepared = prepare(config.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    let outcome = prepared.run(&mut seen).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(outcome.ending, Ending::Finished, "{name}");
    let expected = json(&folder.join("expected.json"));
    let steps = expected["steps"].as_array().unwrap();
    assert_eq!(seen.steps.len(), steps.len(), "{name}: steps");
    for (ours, theirs) in seen.steps.iter().zip(steps) {
        let label = |what: &str| format!("{name} step {}: {what}", ours.step);
        close(ours.loss, &theirs["loss"], LOSS, &label("loss"));
        close(ours.grad_norm, &theirs["grad_norm"], GRAD_NORM, &label("gradient norm"));
    }
    let tokenizer = TokenizerBundle::from_folder(&output).unwrap();
    assert_eq!(tokenizer.encode("<plus>carry<|think|>", false).unwrap(), [301, 302, 303], "{name}");
    assert!(tokenizer.is_special(303) && !tokenizer.is_special(302), "{name}");
    let logits = folder.join("logits.safetensors");
    let merged = dir.path().join("merged");
    std::fs::create_dir(&merged).unwrap();
    match config.finetuning_type {
        Finetuning::Lora => {
            compare_adapter(name, &output, &folder.join("final_adapter"));
            for (adapter, tolerance) in [(folder.join("final_adapter"), LOGIT), (output, TRAINED_LOGIT)] {
                let model = with_adapter(&config, &adapter).model;
                compare_logits(&model.decoder, &model.params, &logits, tolerance, name);
                let Method::Lora(attached) = &model.method else { panic!("{name}: no adapter") };
                let (decoder, params, to) = (&model.decoder, &model.params, FileDType::F32);
                adapter::merge(&merged, &model.files, decoder, params, Some(attached), to)
                    .unwrap_or_else(|e| panic!("{name}: merging: {e}"));
            }
        }
        _ => {
            let theirs = tensors(&folder.join("final_model/model.safetensors"));
            // In the type of the base's files.
            let stored = load::file_dtype(&ModelFiles::open(&output).unwrap());
            if stored == FileDType::F32 {
                compare_tensors(name, &tensors(&output.join("model.safetensors")), &theirs);
            }
            std::fs::remove_dir(&merged).unwrap();
            std::fs::rename(&output, &merged).unwrap();
        }
    }
    let files = ModelFiles::open(&merged).unwrap();
    assert_eq!(json(&merged.join("config.json"))["vocab_size"], 320, "{name}");
    assert_eq!(files.tensors.info("model.embed_tokens.weight").unwrap().shape[0], 320, "{name}");
    let mut params = Params::new();
    let decoder = load::decoder(&files, Dtypes::both(DType::F32), &mut params, &Trained::Nothing).unwrap();
    if load::file_dtype(&files) == FileDType::F32 {
        compare_logits(&decoder, &params, &logits, TRAINED_LOGIT, &format!("{name}: as a model"));
    }
}

/// What PEFT writes twice (`modules_to_save`) and what the tables were before (`original_module`) is not needed by anyone.
fn compare_adapter(name: &str, ours: &Path, theirs: &Path) {
    let ours = tensors(&ours.join("adapter_model.safetensors"));
    let mut theirs = tensors(&theirs.join("adapter_model.safetensors"));
    theirs.retain(|k, _| !k.contains(".modules_to_save.") && !k.contains(".original_module."));
    compare_tensors(name, &ours, &theirs);
}

/// The base of a run with an adapter read from its files, as if to train on.
fn with_adapter(config: &RunConfig, adapter: &Path) -> Prepared {
    let output = tempfile::tempdir().unwrap();
    let config = RunConfig {
        adapter_name_or_path: Some(adapter.display().to_string()),
        output_dir: output.path().display().to_string(),
        resize_vocab: false,
        ..config.clone()
    };
    prepare(config).unwrap_or_else(|e| panic!("{}: {e}", adapter.display()))
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
            let entries = std::fs::read_dir(goldens()).unwrap().map(|e| e.unwrap());
            let folders = entries.filter(|e| e.file_type().unwrap().is_dir());
            let mut folders: Vec<String> = folders.map(|e| e.file_name().into_string().unwrap()).collect();
            folders.sort();
            assert_eq!(cases, folders);
        }
    };
}

cases! {
    training_all_weights_of_a_resized_model_equals_transformers: "full-untied",
    training_all_weights_of_a_resized_tied_model_equals_transformers: "full-tied",
    training_adapters_with_resized_tables_equals_peft: "olora-untied",
    training_adapters_with_resized_tables_of_a_tied_model_equals_peft: "olora-tied",
    going_on_with_tables_that_peft_resized_and_trained_equals_peft: "saved-tables",
    going_on_with_tables_that_peft_resized_and_saved_along_equals_peft: "frozen-tables-tied",
    going_on_with_adapted_tables_that_peft_resized_equals_peft: "adapted-tables",
}

#[test]
fn new_rows_start_as_llama_factory_starts_them() {
    let files = ModelFiles::open(&model("gqa-untied")).unwrap();
    let expected = tensors(&goldens().join("start.safetensors"));
    let described = BTreeMap::from([(301, vec![5, 6, 7, 7, 302]), (302, vec![302])]);
    for (method, described, noise) in [
        ("noise_init", BTreeMap::new(), true),
        ("desc_init", described.clone(), false),
        ("desc_init_w_noise", described, true),
    ] {
        let files = resized(&files, 320, &NewRows { seed: 42, described, noise }).unwrap();
        for table in ["model.embed_tokens.weight", "lm_head.weight"] {
            let raw = files.tensors.read(table).unwrap();
            assert_eq!(raw.shape, [320, 32]);
            let (shape, theirs) = &expected[&format!("{method}.{table}")];
            assert_eq!(shape, &[19, 32]);
            close_all(&raw.to_f32()[301 * 32..], theirs, 1e-7, &format!("{method}: {table}"));
        }
    }
}

/// A configuration of a short run on a tiny model.
fn config(output: &Path, settings: &[&str]) -> Result<RunConfig, String> {
    let mut all = vec![
        format!("model_name_or_path={}", model("gqa-untied").display()),
        format!("dataset={}", goldens().join("train.jsonl").display()),
        format!("output_dir={}", output.display()),
    ];
    let defaults = ["cutoff_len=64", "max_steps=4", "learning_rate=0.01", "lora_rank=2", "logging_steps=1"];
    all.extend(defaults.iter().chain(settings).map(|s| s.to_string()));
    RunConfig::from_words(&all).map(|l| l.config).map_err(|e| e.to_string())
}

/// The error that preparing such a run ends with.
fn refused(settings: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    match config(&dir.path().join("run"), settings) {
        Err(e) => e,
        Ok(config) => prepare(config).map(|_| ()).unwrap_err().to_string(),
    }
}

#[track_caller]
fn says(message: &str, parts: &[&str]) {
    for part in parts {
        assert!(message.contains(part), "`{part}` is not in: {message}");
    }
}

#[test]
fn a_token_without_a_row_is_refused_before_the_first_step() {
    let message = refused(&["add_tokens=<plus>,carry"]);
    says(&message, &["`<plus>`", "id 301", "301 rows", "resize_vocab: true"]);
    // Nobody added it, but the data hold it.
    let message = refused(&[]);
    says(&message, &["train.jsonl:1", "`input_ids`[1] is 301", "the vocabulary has 301 tokens"]);
}

#[test]
fn tokens_with_commas_between_them_are_no_list_and_the_message_says_so() {
    let message = |tokens: &str| {
        let tokens = format!("trainable_token_indices={tokens}");
        refused(&["add_tokens=<plus>,carry", "add_special_tokens=<|think|>", "resize_vocab=true", &tokens])
    };
    says(&message("<plus>,carry"), &["no token `<plus>,carry`", "written as a list"]);
    let one = message("<minus>");
    assert!(one.contains("no token `<minus>`") && !one.contains("list"), "{one}");
}

#[test]
fn a_tokenizer_larger_than_the_embedding_is_fine_until_its_tokens_occur() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    std::fs::create_dir(&base).unwrap();
    for entry in std::fs::read_dir(model("gqa-untied")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), base.join(entry.file_name())).unwrap();
    }
    let mut tokenizer = TokenizerBundle::from_folder(&base).unwrap();
    tokenizer.add_tokens(&["<new>".into()], true).unwrap();
    tokenizer.save(&base).unwrap();
    let data = dir.path().join("text.jsonl");
    let with = |text: &str, more: &[&str]| {
        std::fs::write(&data, format!("{{\"text\": \"1 plus 2\"}}\n{{\"text\": \"{text}\"}}\n")).unwrap();
        let settings =
            [format!("model_name_or_path={}", base.display()), format!("dataset={}", data.display())];
        let settings: Vec<&str> = settings.iter().map(String::as_str).chain(more.iter().copied()).collect();
        prepare(config(&dir.path().join("run"), &settings).unwrap()).map_err(|e| e.to_string())
    };
    assert_eq!(with("3 plus 4", &[]).unwrap().vocabulary.rows, 301);
    let message = with("a <new> b", &[]).unwrap_err();
    says(&message, &["text.jsonl", "`<new>`", "301 rows", "302 tokens", "resize_vocab: true"]);
    let prepared = with("a <new> b", &["resize_vocab=true"]).unwrap();
    assert_eq!((prepared.vocabulary.rows, prepared.vocabulary.resized_from), (320, Some(301)));
}

#[test]
fn tokens_take_free_rows_and_resizing_changes_nothing_then() {
    let dir = tempfile::tempdir().unwrap();
    // Twenty rows of which no token is known.
    let base = dir.path().join("base");
    let files =
        resized(&ModelFiles::open(&model("gqa-untied")).unwrap(), 320, &NewRows::noisy_mean(1)).unwrap();
    std::fs::create_dir(&base).unwrap();
    load::write_model(&base, &files, FileDType::F32, false, |name| load::read_f32(&files, name)).unwrap();
    files.tokenizer().unwrap().save(&base).unwrap();
    let path = format!("model_name_or_path={}", base.display());
    let tokens = ["add_tokens=<plus>,carry", "add_special_tokens=<|think|>"];
    let prepared = |more: &[&str]| {
        let settings: Vec<&str> = [path.as_str()].iter().chain(&tokens).chain(more).copied().collect();
        prepare(config(&dir.path().join("run"), &settings).unwrap()).unwrap()
    };
    let plain = prepared(&[]);
    assert_eq!((plain.vocabulary.rows, plain.vocabulary.resized_from), (320, None));
    let ids: Vec<(u32, &str)> = plain.vocabulary.added.iter().map(|t| (t.id, t.token.as_str())).collect();
    assert_eq!(ids, [(301, "<plus>"), (302, "carry"), (303, "<|think|>")]);
    says(&plain.vocabulary.notes.join("\n"), &["not trained", "modules_to_save"]);
    // What is advised is what the run would obey.
    let frozen =
        prepared(&["finetuning_type=freeze", "freeze_trainable_layers=1"]).vocabulary.notes.join("\n");
    says(&frozen, &["not trained", "freeze_extra_modules: [embed_tokens, lm_head]"]);
    let part =
        prepared(&["finetuning_type=full", "unfrozen_parameters=model.layers"]).vocabulary.notes.join("\n");
    says(&part, &["not trained", "unfrozen_parameters"]);
    let adapter = goldens().join("../methods/gaussian/final_adapter");
    let given =
        prepared(&[&format!("adapter_name_or_path={}", adapter.display())]).vocabulary.notes.join("\n");
    says(&given, &["not trained", "adapter_name_or_path", "start a new adapter"]);
    assert!(!given.contains("trainable_token_indices"), "{given}");
    let asked = prepared(&["resize_vocab=true"]);
    assert_eq!((asked.vocabulary.rows, asked.vocabulary.resized_from), (320, None));
    assert_eq!(asked.config.modules_to_save, ["embed_tokens", "lm_head"]);
    says(&asked.vocabulary.notes.join("\n"), &["free ones of the 320 rows"]);
}

#[test]
fn a_resumed_run_with_new_rows_ends_with_the_same_bytes() {
    for settings in [
        &["bf16=true", "modules_to_save=norm"][..],
        &["lora_dropout=0.1", "modules_to_save=lm_head"],
        &["lora_target=embed_tokens,q_proj", "modules_to_save=norm", "init_lora_weights=pissa"],
        &["finetuning_type=full"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let common =
            ["add_tokens=<plus>,carry,<|think|>", "resize_vocab=true", "save_steps=2", "logging_steps=1"];
        let run = |to: &str, more: &[&str]| {
            let settings: Vec<&str> = common.iter().chain(settings).chain(more).copied().collect();
            let config = config(&dir.path().join(to), &settings).unwrap();
            prepare(config).unwrap().run(&mut Recorder::default()).unwrap();
        };
        run("whole", &[]);
        run("part", &[]);
        let [whole, part] = ["whole", "part"].map(|d| dir.path().join(d));
        let checkpoint = part.join("checkpoint-2");
        assert!(checkpoint.join("tokenizer.json").is_file(), "{settings:?}");
        run("part", &[&format!("resume_from_checkpoint={}", checkpoint.display())]);
        let weights = if whole.join("model.safetensors").is_file() { "model" } else { "adapter_model" };
        for file in [
            format!("{weights}.safetensors"),
            format!("checkpoint-4/{weights}.safetensors"),
            "tokenizer.json".into(),
            "trainer_state.json".into(),
        ] {
            let [a, b] = [&whole, &part].map(|d| std::fs::read(d.join(&file)).unwrap());
            let equal = match file.as_str() {
                "trainer_state.json" => {
                    let own = |b: &[u8], d: &str| String::from_utf8(b.to_vec()).unwrap().replace(d, "");
                    own(&a, "whole") == own(&b, "part")
                }
                _ => a == b,
            };
            assert!(equal, "{settings:?}: {file}");
        }
    }
}

#[test]
fn descriptions_come_from_a_file_and_give_the_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new.yaml");
    std::fs::write(&file, "# what they mean\n\"<plus>\": a sum\ncarry: 1\n").unwrap();
    let given = format!("new_special_tokens_config={}", file.display());
    let resize = ["resize_vocab=true", "init_special_tokens=desc_init", given.as_str()];
    says(&refused(&resize), &["new.yaml", "`carry`", "a number", "a text is needed"]);
    std::fs::write(&file, "\"<plus>\": a sum\ncarry: \"1 plus 9\"\n'<|think|>': <plus>\n").unwrap();
    let prepared = prepare(config(&dir.path().join("run"), &resize).unwrap()).unwrap();
    let table = prepared.model.files.tensors.read("model.embed_tokens.weight").unwrap().to_f32();
    let ids = prepared.model.tokenizer.encode("1 plus 9", false).unwrap();
    for col in 0..32 {
        let mean =
            ids.iter().map(|&i| f64::from(table[i as usize * 32 + col])).sum::<f64>() / ids.len() as f64;
        assert!((f64::from(table[302 * 32 + col]) - mean).abs() < 1e-7, "column {col}");
    }
    assert!([301, 302, 303].iter().all(|&id| prepared.model.tokenizer.is_special(id)));
    says(&refused(&["resize_vocab=true", "init_special_tokens=desc_init"]), &["new_special_tokens_config"]);
    std::fs::remove_file(&file).unwrap();
    says(&refused(&resize), &["new.yaml", "cannot be read"]);
}

#[test]
fn what_resizing_trains_can_be_chosen() {
    let dir = tempfile::tempdir().unwrap();
    let modules = |more: &[&str]| {
        let settings: Vec<&str> = ["resize_vocab=true"].iter().chain(more).copied().collect();
        config(dir.path(), &settings).unwrap().modules_to_save
    };
    assert_eq!(modules(&[]), ["embed_tokens", "lm_head"]);
    assert_eq!(modules(&["modules_to_save=embed_tokens"]), ["embed_tokens"]);
    assert_eq!(modules(&["lora_target=q_proj,embed_tokens"]), ["lm_head"]);
    assert_eq!(modules(&["finetuning_type=full"]), [""; 0]);
}
