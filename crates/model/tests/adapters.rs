//! Adapters of every kind on a tiny model: how they start, what saving and reading back keeps, merging and unmerging.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loratune_engine::rng::Key;
use loratune_engine::{DType, Gradients, Mode, Params, Tape, Tensor};
use loratune_model::adapter::{self, AdapterSpec, Attached, Bias, Form, Init, Start, Targets, TokenIndices};
use loratune_model::decoder::Dtypes;
use loratune_model::files::peft::{self, AdapterConfig};
use loratune_model::files::{FileDType, ModelFiles, RawTensor};
use loratune_model::{Batch, Decoder, load};

const MODELS: [&str; 2] = ["gqa-untied", "tied-bf16"];

fn files(model: &str) -> ModelFiles {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama").join(model);
    ModelFiles::open(&path).unwrap()
}

fn spec() -> AdapterSpec {
    AdapterSpec { r: 4, alpha: 6.0, ..AdapterSpec::default() }
}

/// Trained rows: some are in the texts, and the last one in none.
const ROWS: [i64; 4] = [9, 250, 5, 99];

/// Every initialiser × LoRA and DoRA × scalings × what is adapted or trained whole beside it.
fn combinations() -> Vec<AdapterSpec> {
    let names = |n: &[&str]| Targets::Names(n.iter().map(|s| s.to_string()).collect());
    let mut out = Vec::new();
    let inits = [
        Init::Kaiming,
        Init::Random,
        Init::Gaussian,
        Init::Orthogonal,
        Init::Pissa,
        Init::PissaNiter(3),
        Init::Olora,
    ];
    for init in inits {
        for use_dora in [false, true] {
            for use_rslora in [false, true] {
                let base = AdapterSpec { init, use_dora, use_rslora, ..spec() };
                let patterned = AdapterSpec {
                    rank_pattern: BTreeMap::from([("q_proj".into(), 2)]),
                    alpha_pattern: BTreeMap::from([("v_proj".into(), 3.0)]),
                    ..base.clone()
                };
                let tables =
                    AdapterSpec { targets: names(&["embed_tokens", "lm_head", "q_proj"]), ..base.clone() };
                let rows = AdapterSpec {
                    token_indices: Some(TokenIndices::OfEmbedding(ROWS.into())),
                    ..base.clone()
                };
                let whole = AdapterSpec { modules_to_save: vec!["lm_head".into(), "norm".into()], ..base };
                out.extend([patterned, tables, rows, whole]);
            }
        }
    }
    out
}

struct Model {
    decoder: Decoder,
    params: Params,
    attached: Attached,
}

fn attach(files: &ModelFiles, spec: &AdapterSpec, start: Start<'_>) -> Result<Model, loratune_model::Error> {
    let mut params = Params::new();
    let trained = spec.trained(&files.config.spec)?;
    let mut decoder = load::decoder(files, Dtypes::both(DType::F32), &mut params, &trained)?;
    let attached = adapter::attach(&mut decoder, &mut params, spec, start, files)?;
    Ok(Model { decoder, params, attached })
}

fn fresh(files: &ModelFiles, spec: &AdapterSpec) -> Model {
    attach(files, spec, Start::Fresh { seed: 5 }).unwrap()
}

impl Model {
    /// As if it had been trained: every parameter moved a little.
    fn moved(mut self) -> Model {
        for id in self.params.ids() {
            let key = Key::new(17).named(self.params.name(id));
            let value = self.params.value(id);
            let moved: Vec<f64> =
                value.to_f64_vec().iter().enumerate().map(|(i, x)| x + 0.05 * key.normal(i as u64)).collect();
            let tensor = Tensor::from_vec(moved, value.shape()).unwrap();
            self.params.set(id, tensor).unwrap();
        }
        self
    }

    fn logits(&self) -> Vec<f64> {
        logits(&self.decoder, &self.params)
    }

    fn save(&self, dir: &Path, form: Form) {
        let (config, tensors) =
            adapter::adapter_files(&self.decoder, &self.params, &self.attached, Some("base"), form).unwrap();
        let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, t)| load::encode(t, FileDType::F32)).collect();
        let views: Vec<_> = tensors
            .iter()
            .zip(&bytes)
            .map(|((name, t), b)| (name.as_str(), FileDType::F32, t.shape(), b.as_slice()))
            .collect();
        peft::write_adapter(dir, &config, &views).unwrap();
    }
}

/// A folder in another.
fn folder(dir: &Path, name: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

type Saved = (AdapterConfig, BTreeMap<String, RawTensor<'static>>);

fn read(dir: &Path) -> Saved {
    peft::read_adapter(dir).unwrap()
}

fn batch() -> Batch {
    let docs: [&[u32]; 2] = [&[5, 9, 40, 17, 200, 31, 7], &[11, 250, 13]];
    Batch::from_labelled(docs.iter().map(|d| (*d, &[5i32, 9, 40, 17, 200, 31, 7][..d.len()])))
}

fn logits(decoder: &Decoder, params: &Params) -> Vec<f64> {
    decoder.logits(params, &batch()).unwrap().to_f64_vec()
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if (a - b).is_nan() { f64::NAN } else { (a - b).abs() }).fold(0.0, f64::max)
}

#[test]
fn every_combination_starts_as_the_base_and_every_parameter_learns() {
    for name in MODELS {
        let files = files(name);
        let mut params = Params::new();
        let base = load::decoder(&files, Dtypes::both(DType::F32), &mut params, &Default::default()).unwrap();
        let expected = logits(&base, &params);
        for spec in combinations() {
            let model = fresh(&files, &spec);
            let error = far(&model.logits(), &expected);
            match spec.init {
                Init::Random => assert!(error > 1e-3, "{spec:?}: a random B should show"),
                // PiSSA's and OLoRA's W − s·B·A + s·B·A rounds.
                _ => assert!(error < 2e-5, "{name}, {spec:?}: the start is {error:e} from the base"),
            }
            let model = model.moved();
            let mut tape = Tape::new(&model.params, Mode::Train(Key::new(1)));
            let loss = model.decoder.loss(&mut tape, &batch()).unwrap();
            let mut grads = Gradients::new(&model.params);
            tape.backward(&loss.loss, 1.0, &mut grads).unwrap();
            grads.check_complete(&model.params).unwrap();
            for id in model.params.ids() {
                let moves = grads.get(id).unwrap().to_f64_vec().iter().any(|g| *g != 0.0);
                assert!(moves, "{name}, {spec:?}: {} has no gradient", model.params.name(id));
            }
        }
    }
}

#[test]
fn what_is_saved_plain_is_the_same_model_on_the_untouched_base() {
    for name in MODELS {
        let files = files(name);
        for spec in combinations() {
            let model = fresh(&files, &spec).moved();
            let dir = tempfile::tempdir().unwrap();
            model.save(dir.path(), Form::Plain);
            let (config, tensors) = read(dir.path());
            let again = AdapterSpec::from_config(&config).unwrap();
            assert!(!again.init.changes_base());
            let back = attach(&files, &again, Start::Saved(&tensors)).unwrap();
            let error = far(&back.logits(), &model.logits());
            let tolerance = if spec.init.changes_base() { 5e-5 } else { 1e-7 };
            assert!(error < tolerance, "{name}, {spec:?}: read back it is {error:e} off");
        }
    }
}

#[test]
fn a_checkpoint_gives_the_same_run_bit_for_bit() {
    for name in MODELS {
        let files = files(name);
        for spec in combinations() {
            let model = fresh(&files, &spec).moved();
            let dir = tempfile::tempdir().unwrap();
            model.save(dir.path(), Form::Plain);
            let (_, tensors) = read(dir.path());
            let back = attach(&files, &spec, Start::Resumed(&tensors)).unwrap();
            assert_eq!(back.logits(), model.logits(), "{name}, {spec:?}");
            assert!(back.params.ids().eq(model.params.ids()));
            for id in back.params.ids() {
                assert_eq!(back.params.name(id), model.params.name(id));
                assert_eq!(back.params.value(id).to_f64_vec(), model.params.value(id).to_f64_vec());
            }
            // And into a model that is already there.
            let mut other = fresh(&files, &spec);
            let raw = |key: &str, shape: &[usize]| {
                assert_eq!(tensors[key].shape, shape);
                Ok::<_, loratune_model::Error>(Tensor::from_vec(tensors[key].to_f32(), shape)?)
            };
            adapter::restore(&other.decoder, &mut other.params, &other.attached, raw).unwrap();
            assert_eq!(other.logits(), model.logits(), "{name}, {spec:?}");
        }
    }
}

#[test]
fn merging_keeps_the_logits_and_unmerging_gives_the_base_back() {
    for name in MODELS {
        let files = files(name);
        for spec in combinations() {
            let model = fresh(&files, &spec).moved();
            let dir = tempfile::tempdir().unwrap();
            let Model { decoder, params, attached } = &model;
            let merged = folder(dir.path(), "merged");
            let norms =
                adapter::merge(&merged, &files, decoder, params, Some(attached), FileDType::F32).unwrap();
            let merged_files = ModelFiles::open(&merged).unwrap();
            let untied = name == "tied-bf16" && decoder.is_untied();
            assert_eq!(merged_files.config.spec.tied_head, name == "tied-bf16" && !untied);
            let mut none = Params::new();
            let dtypes = Dtypes::both(DType::F32);
            let plain = load::decoder(&merged_files, dtypes, &mut none, &Default::default()).unwrap();
            let error = far(&logits(&plain, &none), &model.logits());
            assert!(error < 5e-5, "{name}, {spec:?}: merging moved a logit by {error:e}");

            if spec.token_indices.is_some() {
                let out = folder(dir.path(), "base");
                let error =
                    adapter::unmerge(&out, &merged_files, decoder, params, attached, &norms, FileDType::F32);
                assert!(error.unwrap_err().to_string().contains("trainable_token_indices"));
            }
            if !spec.modules_to_save.is_empty() || spec.token_indices.is_some() || untied {
                continue;
            }
            let plain_form = dir.path().join("adapter");
            model.save(&plain_form, Form::Plain);
            let (config, tensors) = read(&plain_form);
            let plain_spec = AdapterSpec::from_config(&config).unwrap();
            let on_merged = attach(&merged_files, &plain_spec, Start::Saved(&tensors)).unwrap();
            let Model { decoder, params, attached } = &on_merged;
            let out = folder(dir.path(), "base");
            adapter::unmerge(&out, &merged_files, decoder, params, attached, &norms, FileDType::F32).unwrap();
            let base = ModelFiles::open(&out).unwrap();
            for tensor in files.config.spec.tensors() {
                let (a, b) = (load::read_f32(&base, &tensor.name), load::read_f32(&files, &tensor.name));
                let error = far(&a.unwrap().to_f64_vec(), &b.unwrap().to_f64_vec());
                assert!(error < 1e-5, "{name}, {spec:?}: {} is {error:e} off", tensor.name);
            }
            if spec.use_dora {
                let missing = adapter::unmerge(
                    &folder(dir.path(), "no"),
                    &merged_files,
                    decoder,
                    params,
                    attached,
                    &Default::default(),
                    FileDType::F32,
                );
                assert!(missing.unwrap_err().to_string().contains("--norms"));
            }
        }
    }
}

#[test]
fn raw_factors_belong_on_the_residual_model() {
    let files = files("gqa-untied");
    for init in [Init::Pissa, Init::PissaNiter(2), Init::Olora] {
        for use_dora in [false, true] {
            let model = fresh(&files, &AdapterSpec { init, use_dora, ..spec() }).moved();
            let dir = tempfile::tempdir().unwrap();
            let (residual, raw) = (folder(dir.path(), "residual"), dir.path().join("raw"));
            adapter::write_residual(&residual, &files, &model.decoder, &model.attached, FileDType::F32)
                .unwrap();
            model.save(&raw, Form::Raw);
            let (config, tensors) = read(&raw);
            let again = AdapterSpec::from_config(&config).unwrap();
            assert_eq!((again.r, again.init), (4, Init::Kaiming));
            let residual = ModelFiles::open(&residual).unwrap();
            let back = attach(&residual, &again, Start::Saved(&tensors)).unwrap();
            assert!(far(&back.logits(), &model.logits()) < 1e-6, "{init:?}");
        }
    }
}

/// What PEFT itself leaves of a PiSSA adapter: its factors, and a configuration that makes the reader decompose again.
#[test]
fn an_unconverted_exact_adapter_is_read_as_peft_reads_it_and_a_random_one_is_refused() {
    let files = files("gqa-untied");
    for init in [Init::Pissa, Init::Olora] {
        let model = fresh(&files, &AdapterSpec { init, ..spec() }).moved();
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), Form::Raw);
        let (mut config, tensors) = read(dir.path());
        config.init_lora_weights = peft::InitLoraWeights::Name(init.name());
        let again = AdapterSpec::from_config(&config).unwrap();
        let back = attach(&files, &again, Start::Saved(&tensors)).unwrap();
        assert!(far(&back.logits(), &model.logits()) < 5e-5, "{init:?}");
        config.init_lora_weights = peft::InitLoraWeights::Name("pissa_niter_4".into());
        let text = AdapterSpec::from_config(&config).unwrap_err().to_string();
        assert!(text.contains("unseeded") && text.contains("convert"), "{text}");
    }
}

#[test]
fn biases_are_trained_saved_under_pefts_names_and_merged() {
    let files = files("gqa-untied");
    let targets = Targets::Names(vec!["q_proj".into()]);
    for (bias, count) in [(Bias::All, 12), (Bias::LoraOnly, 3)] {
        let spec = AdapterSpec { bias, targets: targets.clone(), use_dora: true, ..spec() };
        let model = fresh(&files, &spec).moved();
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), Form::Plain);
        let (config, mut tensors) = read(dir.path());
        let biases: Vec<&String> = tensors.keys().filter(|k| k.ends_with(".bias")).collect();
        assert_eq!(biases.len(), count);
        assert!(biases.iter().all(|k| k.ends_with("q_proj.base_layer.bias") == k.contains("q_proj")));
        let again = AdapterSpec::from_config(&config).unwrap();
        let back = attach(&files, &again, Start::Saved(&tensors)).unwrap();
        assert_eq!(back.logits(), model.logits());
        // Older PEFT left the wrapper's name out.
        let key = "base_model.model.model.layers.0.self_attn.q_proj";
        let old = tensors.remove(&format!("{key}.base_layer.bias")).unwrap();
        tensors.insert(format!("{key}.bias"), old);
        assert_eq!(attach(&files, &again, Start::Saved(&tensors)).unwrap().logits(), model.logits());
    }
    let text = attach(
        &self::files("tied-bf16"),
        &AdapterSpec { bias: Bias::All, ..spec() },
        Start::Fresh { seed: 1 },
    );
    assert!(text.err().unwrap().to_string().contains("has none"));
}

#[test]
fn a_base_embedding_that_comes_with_the_adapter_replaces_the_models() {
    for name in MODELS {
        let files = files(name);
        let targets = Targets::Names(vec!["embed_tokens".into(), "q_proj".into()]);
        let model = fresh(&files, &AdapterSpec { targets, ..spec() }).moved();
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), Form::Plain);
        let (config, mut tensors) = read(dir.path());
        let again = AdapterSpec::from_config(&config).unwrap();
        let same = load::read_f32(&files, "model.embed_tokens.weight").unwrap();
        let raw = |factor: f32| RawTensor {
            dtype: FileDType::F32,
            shape: same.shape().to_vec(),
            bytes: same
                .slice::<f32>()
                .unwrap()
                .iter()
                .flat_map(|x| (x * factor).to_le_bytes())
                .collect::<Vec<u8>>()
                .into(),
        };
        let key = "base_model.model.model.embed_tokens.base_layer.weight";
        tensors.insert(key.into(), raw(1.0));
        let equal = attach(&files, &again, Start::Saved(&tensors)).unwrap();
        assert_eq!(equal.logits(), model.logits(), "{name}");
        tensors.insert(key.into(), raw(1.5));
        let other = attach(&files, &again, Start::Saved(&tensors)).unwrap();
        assert!(far(&other.logits(), &model.logits()) > 1e-3, "{name}");
        let merged = folder(dir.path(), "merged");
        let Model { decoder, params, attached } = &other;
        adapter::merge(&merged, &files, decoder, params, Some(attached), FileDType::F32).unwrap();
        let merged = ModelFiles::open(&merged).unwrap();
        let mut none = Params::new();
        let plain = load::decoder(&merged, Dtypes::both(DType::F32), &mut none, &Default::default()).unwrap();
        assert!(far(&logits(&plain, &none), &other.logits()) < 5e-5, "{name}");
    }
}

#[test]
fn tensors_that_are_missing_or_left_over_are_named() {
    let files = files("gqa-untied");
    let spec = AdapterSpec { use_dora: true, modules_to_save: vec!["lm_head".into()], ..spec() };
    let model = fresh(&files, &spec).moved();
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), Form::Plain);
    let (_, tensors) = read(dir.path());
    for gone in ["v_proj.lora_magnitude_vector", "v_proj.lora_B.weight", "base_model.model.lm_head.weight"] {
        let mut tensors = tensors.clone();
        tensors.retain(|k, _| !k.ends_with(gone));
        let text = attach(&files, &spec, Start::Saved(&tensors)).err().unwrap().to_string();
        assert!(text.contains("has no tensor") && text.contains(gone), "{text}");
    }
    let plain = AdapterSpec { use_dora: false, ..spec.clone() };
    let text = attach(&files, &plain, Start::Saved(&tensors)).err().unwrap().to_string();
    assert!(text.contains("lora_magnitude_vector"), "{text}");
    let text = AdapterSpec { modules_to_save: vec!["lm_haed".into()], ..spec }
        .trained(&files.config.spec)
        .unwrap_err()
        .to_string();
    assert!(text.contains("did you mean 'lm_head'?"), "{text}");
}

fn f32_tensor(t: &Tensor) -> RawTensor<'static> {
    let bytes: Vec<u8> = t.slice::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect();
    RawTensor { dtype: FileDType::F32, shape: t.shape().to_vec(), bytes: bytes.into() }
}

/// With the head adapted PEFT writes its base weight along, and after PiSSA that is the residual already.
#[test]
fn a_residual_that_comes_with_the_adapter_is_not_taken_apart_again() {
    let files = files("gqa-untied");
    let targets = Targets::Names(vec!["q_proj".into(), "lm_head".into()]);
    for init in [Init::Pissa, Init::Olora] {
        let model = fresh(&files, &AdapterSpec { init, targets: targets.clone(), ..spec() });
        let [a, b] = ["lora_A", "lora_B"].map(|x| {
            let id = model.params.find(&format!("lm_head.{x}.weight")).unwrap();
            model.params.value(id).clone()
        });
        let mut residual = load::read_f32(&files, "lm_head.weight").unwrap();
        residual.add_assign(&b.matmul(&a, -1.5).unwrap()).unwrap();
        let model = model.moved();
        let dir = tempfile::tempdir().unwrap();
        model.save(dir.path(), Form::Raw);
        let (mut config, mut tensors) = read(dir.path());
        config.init_lora_weights = peft::InitLoraWeights::Name(init.name());
        tensors.insert("base_model.model.lm_head.base_layer.weight".into(), f32_tensor(&residual));
        let again = AdapterSpec::from_config(&config).unwrap();
        let back = attach(&files, &again, Start::Saved(&tensors)).unwrap();
        assert!(far(&back.logits(), &model.logits()) < 5e-5, "{init:?}");
        // And it goes along when the adapter is written again, and into a merged model.
        let plain = folder(dir.path(), "plain");
        back.save(&plain, Form::Plain);
        let (config, tensors) = read(&plain);
        assert!(tensors.contains_key("base_model.model.lm_head.base_layer.weight"));
        let again = AdapterSpec::from_config(&config).unwrap();
        let once_more = attach(&files, &again, Start::Saved(&tensors)).unwrap();
        assert!(far(&once_more.logits(), &model.logits()) < 5e-5, "{init:?}");
        let merged = folder(dir.path(), "merged");
        adapter::merge(&merged, &files, &back.decoder, &back.params, Some(&back.attached), FileDType::F32)
            .unwrap();
        let merged = ModelFiles::open(&merged).unwrap();
        let mut none = Params::new();
        let plain = load::decoder(&merged, Dtypes::both(DType::F32), &mut none, &Default::default()).unwrap();
        assert!(far(&logits(&plain, &none), &model.logits()) < 5e-5, "{init:?}");
    }
}

#[test]
fn what_peft_writes_beside_saved_modules_and_names_that_no_module_has_are_no_obstacle() {
    let files = files("gqa-untied");
    let spec = AdapterSpec { modules_to_save: vec!["lm_head".into()], ..spec() };
    let model = fresh(&files, &spec).moved();
    let dir = tempfile::tempdir().unwrap();
    model.save(dir.path(), Form::Plain);
    let (mut config, mut tensors) = read(dir.path());
    let saved = tensors["base_model.model.lm_head.weight"].clone();
    tensors.insert("base_model.model.lm_head.modules_to_save.weight".into(), saved.clone());
    tensors.insert("base_model.model.lm_head.original_module.weight".into(), saved.clone());
    if let Some(peft::ModuleNames::List(names)) = &mut config.target_modules {
        names.push("query_key_value".into());
    }
    let again = AdapterSpec::from_config(&config).unwrap();
    let back = attach(&files, &again, Start::Saved(&tensors)).unwrap();
    assert_eq!(back.logits(), model.logits());
    tensors.remove("base_model.model.lm_head.weight");
    let back = attach(&files, &again, Start::Saved(&tensors)).unwrap();
    assert_eq!(back.logits(), model.logits());
    assert!(again.check(&files.config.spec).unwrap_err().to_string().contains("query_key_value"));
}

#[test]
fn a_module_is_adapted_or_trained_whole_however_it_is_named() {
    let files = files("gqa-untied");
    let targets = Targets::Names(vec!["q_proj".into(), "v_proj".into()]);
    let spec = AdapterSpec { modules_to_save: vec!["proj".into()], targets, ..spec() };
    let text = attach(&files, &spec, Start::Fresh { seed: 1 }).err().unwrap().to_string();
    assert!(text.contains("q_proj is both adapted"), "{text}");
}
