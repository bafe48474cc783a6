//! Rows of embedding and head that are trained by themselves (PEFT's `trainable_token_indices`): whose they are, what is
//! refused, and PEFT's own files. Training and merging against PEFT is in the `train` crate's `methods.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use loratune_engine::{DType, Gradients, Mode, Params, Tape};
use loratune_model::adapter::combine::SavedAdapter;
use loratune_model::adapter::convert;
use loratune_model::adapter::{self, AdapterSpec, Attached, Form, Init, Start, Targets, TokenIndices};
use loratune_model::decoder::Dtypes;
use loratune_model::files::{ModelFiles, SafetensorsSource, TensorSource, peft};
use loratune_model::generate::{Sampling, generate};
use loratune_model::{Batch, Decoder, load, vocabulary};

fn goldens(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(path)
}

fn files(model: &str) -> ModelFiles {
    ModelFiles::open(&goldens("llama").join(model)).unwrap()
}

fn list(ids: &[i64]) -> Option<TokenIndices> {
    Some(TokenIndices::OfEmbedding(ids.into()))
}

fn by_module(modules: &[(&str, &[i64])]) -> Option<TokenIndices> {
    let modules = modules.iter().map(|(name, ids)| (name.to_string(), ids.to_vec()));
    Some(TokenIndices::ByModule(modules.collect::<BTreeMap<_, _>>()))
}

fn on(names: &[&str], token_indices: Option<TokenIndices>) -> AdapterSpec {
    let targets = Targets::Names(names.iter().map(|n| n.to_string()).collect());
    AdapterSpec { r: 2, alpha: 3.0, targets, token_indices, ..AdapterSpec::default() }
}

struct Model {
    decoder: Decoder,
    params: Params,
    attached: Attached,
}

fn attach(files: &ModelFiles, spec: &AdapterSpec, dtype: DType, start: Start<'_>) -> Model {
    let mut params = Params::new();
    let trained = spec.trained(&files.config.spec).unwrap();
    let mut decoder = load::decoder(files, Dtypes::both(dtype), &mut params, &trained).unwrap();
    let attached = adapter::attach(&mut decoder, &mut params, spec, start, files).unwrap();
    Model { decoder, params, attached }
}

/// The rows' parameters with their ids, embedding first.
fn rows(model: &Model) -> Vec<(String, Vec<u32>)> {
    let of = |m: &loratune_model::decoder::Matrix| {
        m.rows.as_ref().map(|r| (model.params.name(r.param()).to_string(), r.ids().to_vec()))
    };
    model.decoder.matrices().filter_map(of).collect()
}

const EMBEDDING: &str = "model.embed_tokens.token_adapter.trainable_tokens_delta";
const HEAD: &str = "lm_head.token_adapter.trainable_tokens_delta";

#[test]
fn rows_belong_to_the_modules_that_peft_gives_them_to() {
    type Expected = &'static [(&'static str, &'static [u32])];
    let cases: [(Option<TokenIndices>, Expected, Expected); 6] = [
        (list(&[7, 3]), &[(EMBEDDING, &[7, 3])], &[(EMBEDDING, &[7, 3]), (EMBEDDING, &[7, 3])]),
        (
            by_module(&[("model.embed_tokens", &[7, 3])]),
            &[(EMBEDDING, &[7, 3])],
            &[(EMBEDDING, &[7, 3]), (EMBEDDING, &[7, 3])],
        ),
        (by_module(&[("lm_head", &[7, 3])]), &[(HEAD, &[7, 3])], &[(HEAD, &[7, 3])]),
        (
            by_module(&[("embed_tokens", &[7, 3]), ("lm_head", &[7, 3])]),
            &[(EMBEDDING, &[7, 3]), (HEAD, &[7, 3])],
            &[(EMBEDDING, &[7, 3]), (EMBEDDING, &[7, 3])],
        ),
        (
            by_module(&[("embed_tokens", &[7, 3]), ("lm_head", &[3, 7])]),
            &[(EMBEDDING, &[7, 3]), (HEAD, &[3, 7])],
            &[(EMBEDDING, &[7, 3]), (HEAD, &[3, 7])],
        ),
        (None, &[], &[]),
    ];
    for (indices, untied, tied) in cases {
        for (name, expected) in [("gqa-untied", untied), ("tied-bf16", tied)] {
            let model =
                attach(&files(name), &on(&["q_proj"], indices.clone()), DType::F32, Start::Fresh { seed: 1 });
            let expected: Vec<(String, Vec<u32>)> =
                expected.iter().map(|(n, ids)| (n.to_string(), ids.to_vec())).collect();
            assert_eq!(rows(&model), expected, "{name} {indices:?}");
            let ends = name == "tied-bf16" && expected.iter().any(|(n, _)| n == HEAD);
            assert_eq!(model.decoder.is_untied(), ends, "{name} {indices:?}");
        }
    }
}

#[test]
fn only_the_rows_are_parameters_and_they_start_as_the_tables() {
    for (name, dtype) in [("gqa-untied", DType::F32), ("tied-bf16", DType::F32), ("tied-bf16", DType::BF16)] {
        let files = files(name);
        let spec = on(&["q_proj"], by_module(&[("embed_tokens", &[7, 300, 0]), ("lm_head", &[7])]));
        let model = attach(&files, &spec, dtype, Start::Fresh { seed: 1 });
        let hidden = files.config.spec.hidden_size;
        for (path, ids) in [("model.embed_tokens", &[7usize, 300, 0][..]), ("lm_head", &[7])] {
            let stored = if files.config.spec.tied_head { "model.embed_tokens" } else { path };
            let table = load::read_f32(&files, &format!("{stored}.weight")).unwrap();
            let id = model.params.find(&format!("{path}.token_adapter.trainable_tokens_delta")).unwrap();
            let value = model.params.value(id);
            assert_eq!((value.dtype(), value.shape()), (DType::F32, &[ids.len(), hidden][..]));
            // tied-bf16 holds bf16, so nothing is lost in either type.
            assert_eq!(value.to_f64_vec(), table.select_rows(ids).unwrap().to_f64_vec());
        }
        let batch = Batch::from_labelled([(&[7u32, 300, 12, 0][..], &[7i32, 300, 12, 0][..])]);
        let mut tape = Tape::new(&model.params, Mode::Grad);
        let loss = model.decoder.loss(&mut tape, &batch).unwrap();
        let mut grads = Gradients::new(&model.params);
        tape.backward(&loss.loss, 1.0, &mut grads).unwrap();
        grads.check_complete(&model.params).unwrap();
        let numbers: usize = model.params.ids().map(|id| grads.get(id).unwrap().numel()).sum();
        assert!(numbers < 4 * hidden + 2000, "no gradient is as large as a table: {numbers}");
    }
}

fn refused(model: &str, spec: &AdapterSpec, words: &[&str]) {
    let model = files(model).config.spec;
    // A new adapter is checked before a weight is read, one that is given when it is put in place.
    for text in [spec.check(&model).unwrap_err(), spec.check(&model).and(spec.trained(&model)).unwrap_err()] {
        let text = text.to_string();
        assert!(words.iter().all(|w| text.contains(w)), "{spec:?}: {text}");
    }
}

#[test]
fn ids_that_are_no_tokens_and_modules_that_are_no_tables_are_refused_by_name() {
    const KEY: &str = "trainable_token_indices";
    let q = &["q_proj"][..];
    for model in ["gqa-untied", "tied-bf16"] {
        let wrong = |indices, words: &[&str]| refused(model, &on(q, indices), &[&[KEY][..], words].concat());
        wrong(list(&[]), &["names no token"]);
        wrong(list(&[3, -1]), &["holds -1", "from 0 to 300"]);
        wrong(list(&[301]), &["holds 301", "from 0 to 300"]);
        wrong(list(&[1 << 40]), &["holds 1099511627776"]);
        wrong(list(&[3, 5, 3]), &["holds the token 3 twice"]);
        wrong(by_module(&[]), &["names no module"]);
        wrong(by_module(&[("embed_tokens", &[3]), ("lm_head", &[9, 9])]), &["of lm_head", "9 twice"]);
        wrong(by_module(&[("embed_token", &[3])]), &["'embed_token'", "did you mean 'embed_tokens'?"]);
        wrong(by_module(&[("q_proj", &[3])]), &["'q_proj' is no table", "embed_tokens and lm_head"]);
        wrong(by_module(&[("", &[3])]), &["no table"]);
        wrong(by_module(&[("embed_tokens", &[3]), ("model.embed_tokens", &[4])]), &["one module twice"]);
    }
}

#[test]
fn what_peft_cannot_train_together_is_refused() {
    const KEY: &str = "trainable_token_indices";
    let saving = |names: &[&str], indices| AdapterSpec {
        modules_to_save: names.iter().map(|n| n.to_string()).collect(),
        ..on(&["q_proj"], indices)
    };
    let head = || by_module(&[("lm_head", &[3])]);
    for model in ["gqa-untied", "tied-bf16"] {
        for name in ["embed_tokens", "model.embed_tokens"] {
            refused(model, &saving(&[name], list(&[3])), &["model.embed_tokens", "modules_to_save", KEY]);
        }
        refused(model, &saving(&["lm_head"], head()), &["lm_head", "modules_to_save", KEY]);
        refused(model, &on(&["embed_tokens", "q_proj"], list(&[3])), &["model.embed_tokens", "adapted", KEY]);
        refused(model, &on(&["lm_head", "q_proj"], head()), &["lm_head", "adapted", KEY]);
    }
    // Through the tie.
    let through = "through the embedding";
    refused("tied-bf16", &saving(&["lm_head"], list(&[3])), &["lm_head", "modules_to_save", through]);
    let lora = on(&["lm_head", "q_proj"], list(&[3]));
    refused("tied-bf16", &AdapterSpec { use_dora: true, ..lora.clone() }, &["lm_head", "DoRA", through]);
    refused("tied-bf16", &AdapterSpec { init: Init::Olora, ..lora.clone() }, &["lm_head", "start", through]);
    let apart = by_module(&[("embed_tokens", &[3, 5]), ("lm_head", &[5, 3])]);
    let ensured = AdapterSpec { ensure_weight_tying: true, ..on(&["q_proj"], apart) };
    refused("tied-bf16", &ensured, &["ensure_weight_tying", "different ids"]);
    // What it can.
    let spec = |model: &str| files(model).config.spec;
    for good in
        [saving(&["lm_head"], list(&[3])), AdapterSpec { use_dora: true, ..lora.clone() }, ensured.clone()]
    {
        good.check(&spec("gqa-untied")).unwrap();
    }
    for good in [lora, saving(&["embed_tokens"], head()), on(&["embed_tokens"], head())] {
        good.check(&spec("tied-bf16")).unwrap();
        good.check(&spec("gqa-untied")).unwrap();
    }
}

#[test]
fn generating_with_cached_keys_sees_the_rows() {
    for name in ["gqa-untied", "tied-bf16"] {
        let spec = on(&["q_proj"], by_module(&[("embed_tokens", &[7, 12]), ("lm_head", &[7, 12])]));
        let mut model = attach(&files(name), &spec, DType::F32, Start::Fresh { seed: 1 });
        let ids: BTreeSet<_> =
            model.decoder.matrices().filter_map(|m| Some(m.rows.as_ref()?.param())).collect();
        for id in ids {
            let mut rows = model.params.value(id).clone();
            rows.scale_assign(-20.0);
            model.params.set(id, rows).unwrap();
        }
        let prompt = vec![5u32, 7, 40, 12];
        let new = generate(
            &model.decoder,
            &model.params,
            std::slice::from_ref(&prompt),
            &Sampling::greedy(8, vec![]),
            |_, _| true,
        );
        let new = new.unwrap().remove(0).tokens;
        let mut seen: Vec<u32> = prompt;
        for token in new {
            let logits = model.decoder.logits(&model.params, &Batch::from_ids([&seen[..]])).unwrap();
            let last = &logits.to_f64_vec()[(seen.len() - 1) * 301..];
            let best = (0..301).max_by(|&a, &b| last[a].total_cmp(&last[b])).unwrap();
            assert_eq!(token as usize, best, "{name} after {seen:?}");
            seen.push(token);
        }
    }
}

/// PEFT's files of a resized model: tables below `token_adapter`, and a tied head's rows twice.
#[test]
fn pefts_files_of_a_resized_model_with_rows_are_read_and_written_once() {
    for (name, base) in [("untied", "gqa-untied"), ("tied", "tied-bf16")] {
        let folder = goldens("tokens").join(name);
        let (config, tensors) = peft::read_adapter(&folder).unwrap();
        let files = vocabulary::fitted(&files(base), &config, &tensors).unwrap().unwrap();
        assert_eq!(files.config.spec.vocab_size, 304);
        let spec = AdapterSpec::from_config(&config).unwrap();
        let model = attach(&files, &spec, DType::F32, Start::Saved(&tensors));
        let expected = SafetensorsSource::open_file(&folder.join("logits.safetensors")).unwrap();
        // IDS of goldens/tokens.py.
        let ids = [1u32, 302, 5, 40, 17, 0, 301, 9];
        let ours = model.decoder.logits(&model.params, &Batch::from_ids([&ids[..]])).unwrap().to_f64_vec();
        let theirs = expected.read("logits").unwrap().to_f64();
        assert_eq!(ours.len(), theirs.len());
        let error = ours.iter().zip(&theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(error < 1e-4, "{name}: a logit is {error:e} off");

        let (_, written) =
            adapter::adapter_files(&model.decoder, &model.params, &model.attached, None, Form::Plain)
                .unwrap();
        let ours: BTreeSet<&str> = written.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!(ours.len(), written.len(), "{name}: every key once");
        let mut theirs: BTreeSet<&str> = tensors.keys().map(String::as_str).collect();
        // The second copy of the tied head's rows.
        assert_eq!(theirs.remove(format!("base_model.model.{HEAD}").as_str()), name == "tied");
        assert_eq!(ours, theirs, "{name}");
        for (key, tensor) in &written {
            assert_eq!(tensor.to_f64_vec(), tensors[key].to_f64(), "{name}: {key}");
        }
        // Converting, which keeps what is no factor, has every key once as well.
        let adapter = SavedAdapter { name: name.into(), config, tensors: tensors.clone() };
        let (config, converted) = convert::plain(&adapter, &files).unwrap();
        assert_eq!(config.trainable_token_indices, list(&[302, 5, 0]));
        assert_eq!(converted.len(), written.len());
        assert_eq!(converted.iter().map(|(key, _)| key.as_str()).collect::<BTreeSet<_>>(), ours);
    }
}
