//! Converting adapters: what starts took out of the base, residual models, and plain LoRA of a given rank.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loratune_engine::rng::Key;
use loratune_engine::{DType, Params, Tensor};
use loratune_model::adapter::combine::SavedAdapter;
use loratune_model::adapter::convert::{self, AdapterFiles, Decomposition};
use loratune_model::adapter::{self, AdapterSpec, Attached, Form, Init, Start, Targets, TokenIndices};
use loratune_model::decoder::Dtypes;
use loratune_model::files::peft::{self, InitLoraWeights};
use loratune_model::files::{FileDType, ModelFiles};
use loratune_model::linalg::svd;
use loratune_model::{Batch, Decoder, load};

const MODELS: [&str; 2] = ["gqa-untied", "tied-bf16"];

fn goldens(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens").join(path)
}

fn files(model: &str) -> ModelFiles {
    ModelFiles::open(&goldens("llama").join(model)).unwrap()
}

fn spec() -> AdapterSpec {
    AdapterSpec {
        r: 4,
        alpha: 6.0,
        rank_pattern: BTreeMap::from([("q_proj".into(), 2)]),
        alpha_pattern: BTreeMap::from([("v_proj".into(), 3.0)]),
        ..AdapterSpec::default()
    }
}

/// Initialisers × LoRA and DoRA × scalings × what is adapted or trained whole beside it.
fn combinations(inits: &[Init]) -> Vec<AdapterSpec> {
    let tables = Targets::Names(["embed_tokens", "lm_head", "q_proj"].map(str::to_string).into());
    let mut out = Vec::new();
    for &init in inits {
        for use_dora in [false, true] {
            for use_rslora in [false, true] {
                let base = AdapterSpec { init, use_dora, use_rslora, ..spec() };
                out.push(AdapterSpec { targets: tables.clone(), ..base.clone() });
                let rows = Some(TokenIndices::OfEmbedding(vec![9, 250, 5]));
                out.push(AdapterSpec { token_indices: rows, ..base.clone() });
                out.push(AdapterSpec { modules_to_save: vec!["lm_head".into(), "norm".into()], ..base });
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

impl Model {
    fn attach(files: &ModelFiles, spec: &AdapterSpec, start: Start<'_>) -> Model {
        let mut params = Params::new();
        let trained = spec.trained(&files.config.spec).unwrap();
        let mut decoder = load::decoder(files, Dtypes::both(DType::F32), &mut params, &trained).unwrap();
        let attached = adapter::attach(&mut decoder, &mut params, spec, start, files).unwrap();
        Model { decoder, params, attached }
    }

    fn fresh(files: &ModelFiles, spec: &AdapterSpec) -> Model {
        Model::attach(files, spec, Start::Fresh { seed: 5 })
    }

    fn of(files: &ModelFiles, adapter: &SavedAdapter) -> Model {
        let spec = AdapterSpec::from_config(&adapter.config).unwrap();
        Model::attach(files, &spec, Start::Saved(&adapter.tensors))
    }

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
        let docs: [&[u32]; 2] = [&[5, 9, 40, 17, 200, 31, 7], &[11, 250, 13]];
        self.decoder.logits(&self.params, &Batch::from_ids(docs)).unwrap().to_f64_vec()
    }

    fn saved(&self, form: Form) -> SavedAdapter {
        let files =
            adapter::adapter_files(&self.decoder, &self.params, &self.attached, Some("base"), form).unwrap();
        SavedAdapter::of_files("adapter", files)
    }
}

fn far(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| if (a - b).is_nan() { f64::NAN } else { (a - b).abs() }).fold(0.0, f64::max)
}

fn again(files: AdapterFiles) -> SavedAdapter {
    SavedAdapter::of_files("converted", files)
}

#[track_caller]
fn assert_same(a: &SavedAdapter, b: &SavedAdapter, tolerance: f32) {
    assert_eq!(a.config, b.config);
    assert!(a.tensors.keys().eq(b.tensors.keys()), "{:?} {:?}", a.tensors.keys(), b.tensors.keys());
    for (key, x) in &a.tensors {
        let y = &b.tensors[key];
        assert_eq!(x.shape, y.shape, "{key}");
        for (x, y) in x.to_f32().iter().zip(y.to_f32()) {
            assert!((x - y).abs() <= tolerance, "{key}: {x} {y}");
        }
    }
}

#[test]
fn an_initial_adapter_makes_any_that_changed_its_base_plain_to_the_last_bit() {
    for model in MODELS {
        let files = files(model);
        for spec in combinations(&[Init::Pissa, Init::PissaNiter(3), Init::Olora]) {
            let fresh = Model::fresh(&files, &spec);
            let initial = fresh.saved(Form::Raw);
            let trained = fresh.moved();
            let expected = trained.saved(Form::Plain);
            let mut raw = trained.saved(Form::Raw);
            // As PEFT writes it, and as it insists that the initial one is written.
            for init in [InitLoraWeights::Name(spec.init.name()), InitLoraWeights::Flag(true)] {
                raw.config.init_lora_weights = init;
                let converted = again(convert::subtract_initial(&raw, &initial).unwrap());
                assert_same(&converted, &expected, 0.0);
            }
            let error = far(&Model::of(&files, &expected).logits(), &trained.logits());
            assert!(error < 5e-5, "{model}, {spec:?}: {error:e}");
        }
    }
}

/// What PEFT's own conversion writes, tensor by tensor; its magnitudes and embeddings are missing there.
#[test]
fn conversion_with_an_initial_adapter_is_pefts() {
    let read = |name: &str| {
        let (config, tensors) = peft::read_adapter(&goldens("convert").join(name)).unwrap();
        SavedAdapter { name: name.into(), config, tensors }
    };
    for init in ["pissa", "pissa_niter_4", "olora", "pissa-rslora"] {
        let name = |kind: &str| format!("{init}/{kind}");
        let (trained, initial) = (read(&name("trained")), read(&name("initial")));
        assert!(!convert::is_plain(&trained.config), "PEFT leaves the name of its start");
        let ours = again(convert::subtract_initial(&trained, &initial).unwrap());
        let theirs = read(&name("converted"));
        assert_eq!(ours.tensors.len(), theirs.tensors.len());
        for (key, tensor) in &theirs.tensors {
            assert_eq!(ours.tensors[key].shape, tensor.shape, "{init}, {key}");
            assert_eq!(ours.tensors[key].to_f32(), tensor.to_f32(), "{init}, {key}");
        }
        let (a, b) = (&ours.config, &theirs.config);
        assert_eq!((a.r, a.lora_alpha, &a.rank_pattern), (b.r, b.lora_alpha, &b.rank_pattern), "{init}");
        assert_eq!((&a.alpha_pattern, &a.init_lora_weights), (&b.alpha_pattern, &b.init_lora_weights));
        // And from the base alone: the same update by other factors.
        let files = files("gqa-untied");
        match convert::plain(&trained, &files) {
            Ok(plain) => {
                let error =
                    far(&Model::of(&files, &again(plain)).logits(), &Model::of(&files, &ours).logits());
                // PEFT decomposes in f32.
                assert!(error < 1e-4, "{init}: {error:e}");
            }
            Err(e) => {
                let text = e.to_string();
                assert!(init == "pissa_niter_4" && text.contains("loratune convert --initial"), "{text}");
            }
        }
    }
}

#[test]
fn adapters_of_different_runs_are_not_subtracted() {
    let files = files("gqa-untied");
    let model = Model::fresh(&files, &AdapterSpec { init: Init::Pissa, ..spec() });
    let initial = model.saved(Form::Raw);
    let mut trained = model.moved().saved(Form::Raw);
    trained.config.init_lora_weights = InitLoraWeights::Name("pissa_niter_16".into());
    let refused = |trained: &SavedAdapter, initial: &SavedAdapter, part: &str| {
        let text = convert::subtract_initial(trained, initial).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    let changed = |change: &dyn Fn(&mut SavedAdapter)| {
        let mut other = initial.clone();
        change(&mut other);
        other
    };
    convert::subtract_initial(&trained, &initial).unwrap();
    refused(&trained, &changed(&|i| i.config.lora_alpha = 7.0), "differ in lora_alpha");
    refused(&trained, &changed(&|i| i.config.rank_pattern.clear()), "differ in rank_pattern");
    let key = "base_model.model.model.layers.0.self_attn.v_proj.lora_A.weight";
    refused(&trained, &changed(&|i| drop(i.tensors.remove(key))), "only adapter has the tensor");
    refused(&trained, &changed(&|i| i.tensors.get_mut(key).unwrap().shape.reverse()), "not of one run");
    let mut wrong = trained.clone();
    wrong.config.r = 8;
    refused(&wrong, &changed(&|i| i.config.r = 8), "the rank 8");
    for init in [InitLoraWeights::Name("gaussian".into()), InitLoraWeights::Flag(false)] {
        trained.config.init_lora_weights = init;
        refused(&trained, &initial, "takes nothing out of the base");
    }
}

#[test]
fn a_base_decomposed_again_gives_the_same_plain_adapter() {
    for model in MODELS {
        let files = files(model);
        for spec in combinations(&[Init::Pissa, Init::Olora]) {
            let trained = Model::fresh(&files, &spec).moved();
            let mut raw = trained.saved(Form::Raw);
            raw.config.init_lora_weights = InitLoraWeights::Name(spec.init.name());
            let plain = again(convert::plain(&raw, &files).unwrap());
            assert_same(&plain, &trained.saved(Form::Plain), 1e-6);
        }
    }
}

#[test]
fn factors_and_residual_model_are_the_adapter_and_lead_back_to_it() {
    for model in MODELS {
        let files = files(model);
        for spec in combinations(&[Init::Random, Init::Gaussian, Init::Olora]) {
            // A table can't be divided unless a start doubled its rank.
            let tables = spec.targets != Targets::AllLinear;
            let trained = Model::fresh(&files, &spec).moved();
            let whole = trained.saved(Form::Plain);
            let dir = tempfile::tempdir().unwrap();
            let raw = convert::raw(dir.path(), &whole, &files, "residual", FileDType::F32);
            if tables && !spec.init.changes_base() {
                let text = raw.unwrap_err().to_string();
                assert!(text.contains("model.embed_tokens"), "{text}");
                continue;
            }
            let raw = raw.unwrap();
            let (adapter, initial) = (again(raw.adapter), again(raw.initial));
            assert_eq!(adapter.config.r, whole.config.r / 2);
            assert_eq!(adapter.config.base_model_name_or_path.as_deref(), Some("residual"));
            let residual = ModelFiles::open(dir.path()).unwrap();
            let error = far(&Model::of(&residual, &adapter).logits(), &trained.logits());
            assert!(error < 5e-5, "{model}, {spec:?}: {error:e}");
            let without = far(&Model::of(&files, &adapter).logits(), &trained.logits());
            assert!(without > 1e-3, "{model}, {spec:?}: the residual model is the base");
            let mut back = again(convert::subtract_initial(&adapter, &initial).unwrap());
            back.config.base_model_name_or_path = whole.config.base_model_name_or_path.clone();
            back.config.init_lora_weights = whole.config.init_lora_weights.clone();
            // α·√2/√2 rounds.
            back.config.lora_alpha = whole.config.lora_alpha;
            back.config.alpha_pattern = whole.config.alpha_pattern.clone();
            assert_same(&back, &whole, 0.0);
        }
    }
    let files = files("gqa-untied");
    let odd = AdapterSpec { r: 3, ..spec() };
    let dir = tempfile::tempdir().unwrap();
    let adapter = Model::fresh(&files, &odd).saved(Form::Plain);
    let text = convert::raw(dir.path(), &adapter, &files, "x", FileDType::F32).unwrap_err().to_string();
    assert!(text.contains("r is 3"), "{text}");
}

/// ΔW of every adapted module in f64, by merging into files.
fn changes(files: &ModelFiles, model: &Model) -> BTreeMap<String, Tensor> {
    let dir = tempfile::tempdir().unwrap();
    let Model { decoder, params, attached } = model;
    adapter::merge(dir.path(), files, decoder, params, Some(attached), FileDType::F32).unwrap();
    let merged = ModelFiles::open(dir.path()).unwrap();
    let adapted = decoder.matrices().filter(|m| m.adapter.is_some()).map(|m| m.path.clone());
    adapted
        .map(|path| {
            let name = format!("{path}.weight");
            let tied = files.config.spec.tied_head && path == "lm_head";
            let base = if tied { "model.embed_tokens.weight".to_string() } else { name.clone() };
            let mut change = load::read_f32(files, &base).unwrap().to_dtype(DType::F64);
            change.scale_assign(-1.0);
            change.add_assign(&load::read_f32(&merged, &name).unwrap().to_dtype(DType::F64)).unwrap();
            (path, change)
        })
        .collect()
}

fn squares(t: &Tensor) -> f64 {
    t.to_f64_vec().iter().map(|x| x * x).sum()
}

#[test]
fn a_given_rank_is_the_nearest_one_and_its_error_is_told() {
    for model in MODELS {
        let files = files(model);
        for spec in combinations(&[Init::Random, Init::Pissa]) {
            let trained = Model::fresh(&files, &spec).moved();
            let adapter = trained.saved(Form::Plain);
            let wanted = changes(&files, &trained);
            for rank in [1, 6, 11] {
                let (low, loss) = convert::lowrank(&adapter, &files, rank, Decomposition::Exact).unwrap();
                let low = again(low);
                assert_eq!((low.config.r, low.config.lora_alpha), (rank, rank as f64));
                assert!(!low.config.use_dora && low.config.rank_pattern.is_empty());
                let got = changes(&files, &Model::of(&files, &low));
                let (mut lost, mut whole, mut worst) = (0.0, 0.0, 0.0f64);
                for (path, wanted) in &wanted {
                    let mut rest = got[path].clone();
                    rest.scale_assign(-1.0);
                    rest.add_assign(wanted).unwrap();
                    let least = wanted.rows().min(wanted.cols());
                    let s = svd(&wanted.to_dtype(DType::F32), least).unwrap().s;
                    let tail: f64 = s.iter().skip(rank).map(|&s| f64::from(s).powi(2)).sum();
                    let (own, all) = (squares(&rest), squares(wanted));
                    // The files' f32 bounds what differences of merged weights can show.
                    assert!((own / all).sqrt() < (tail / all).sqrt() + 2e-5, "{path}: {own} {tail} {all}");
                    worst = worst.max((own / all).sqrt());
                    (lost, whole) = (lost + own, whole + all);
                }
                let error = (lost / whole).sqrt();
                assert!((loss.error - error).abs() < 2e-5, "{model}, {spec:?}, {rank}: {loss:?} {error}");
                let (name, largest) = loss.worst.clone().unwrap();
                assert!((largest - worst).abs() < 2e-5 && wanted.contains_key(&name), "{loss:?} {worst}");
                assert!((loss.energy_kept() - (1.0 - error * error)).abs() < 1e-4);
                assert_eq!(loss.modules, wanted.len());
                let (_, fast) = convert::lowrank(&adapter, &files, rank, Decomposition::Fast).unwrap();
                assert!(fast.error <= 1.001 * loss.error + 1e-6, "{rank}: {fast:?} {loss:?}");
                let kept = |k: &&String| !k.contains("lora_");
                assert!(low.tensors.keys().filter(kept).eq(adapter.tensors.keys().filter(kept)));
                for key in low.tensors.keys().filter(kept) {
                    assert_eq!(low.tensors[key].to_f32(), adapter.tensors[key].to_f32());
                }
            }
        }
    }
}

#[test]
fn the_rank_that_an_adapter_has_loses_nothing() {
    for model in MODELS {
        let files = files(model);
        for spec in combinations(&[Init::Random, Init::Pissa]) {
            let trained = Model::fresh(&files, &spec).moved();
            let adapter = trained.saved(Form::Plain);
            // DoRA changes W by a matrix of full rank.
            let rank = if spec.use_dora { files.config.spec.hidden_size } else { 8 };
            let (low, loss) = convert::lowrank(&adapter, &files, rank, Decomposition::Auto).unwrap();
            assert!(loss.error < 1e-6, "{model}, {spec:?}: {loss:?}");
            let error = far(&Model::of(&files, &again(low)).logits(), &trained.logits());
            assert!(error < 5e-5, "{model}, {spec:?}: {error:e}");
        }
    }
    let files = files("gqa-untied");
    let adapter = Model::fresh(&files, &spec()).saved(Form::Plain);
    for rank in [0, 1000] {
        let text = convert::lowrank(&adapter, &files, rank, Decomposition::Auto).unwrap_err().to_string();
        assert!(text.contains(&format!("rank of {rank} can't")), "{text}");
    }
    // B is zero.
    let (low, loss) = convert::lowrank(&adapter, &files, 2, Decomposition::Auto).unwrap();
    assert_eq!(loss.error, 0.0);
    assert!(low.1.iter().all(|(_, t)| squares(t) == 0.0));
}

#[test]
fn adapters_on_one_base_share_its_weights_and_answer_as_if_alone() {
    for model in MODELS {
        let files = files(model);
        let mut none = Params::new();
        let base = load::decoder(&files, Dtypes::both(DType::F32), &mut none, &Default::default()).unwrap();
        for spec in combinations(&[Init::Kaiming, Init::Pissa]) {
            let saved = Model::fresh(&files, &spec).moved().saved(Form::Plain);
            let alone = Model::of(&files, &saved);
            let spec = AdapterSpec::from_config(&saved.config).unwrap();
            let mut params = Params::new();
            let trained = spec.trained(base.spec()).unwrap();
            let mut decoder = base.with_trained(&mut params, &trained).unwrap();
            let start = Start::Saved(&saved.tensors);
            let attached = adapter::attach(&mut decoder, &mut params, &spec, start, &files).unwrap();
            assert!(
                params.ids().map(|i| params.name(i)).eq(alone.params.ids().map(|i| alone.params.name(i)))
            );
            assert_eq!(decoder.is_untied(), alone.decoder.is_untied());
            let together = Model { decoder, params, attached };
            assert_eq!(together.logits(), alone.logits(), "{model}, {spec:?}");
        }
    }
}
