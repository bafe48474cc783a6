//! Combined adapters against PEFT's `add_weighted_adapter` (`goldens/combine.py`), and what is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use loratune_engine::{DType, Tensor};
use loratune_model::adapter::combine::{
    Combination, CombineOptions, Error, MajoritySign, SavedAdapter, combine,
};
use loratune_model::files::peft::{
    AdapterConfig, InitLoraWeights, ModuleNames, TokenIndices, read_adapter, write_adapter,
};
use loratune_model::files::{FileDType, RawTensor, TensorView};
use safetensors::SafeTensors;
use serde_json::Value;

type Combined = (AdapterConfig, BTreeMap<String, Tensor>);

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/combine")
}

fn saved(name: &str) -> SavedAdapter {
    let (config, tensors) = read_adapter(&folder().join(name)).unwrap();
    SavedAdapter { name: name.to_owned(), config, tensors }
}

fn run(adapters: &[(SavedAdapter, f64)], options: &CombineOptions) -> Result<Combined, Error> {
    let (config, tensors) = combine(adapters, options)?;
    assert!(tensors.is_sorted_by(|a, b| a.0 < b.0));
    Ok((config, tensors.into_iter().collect()))
}

fn pair() -> Vec<(SavedAdapter, f64)> {
    vec![(saved("a"), 0.7), (saved("b"), -1.3)]
}

fn of(kind: Combination) -> CombineOptions {
    CombineOptions::new(kind)
}

fn with_density(kind: Combination, density: f64) -> CombineOptions {
    CombineOptions { density: Some(density), ..of(kind) }
}

fn product(b: &Tensor, a: &Tensor) -> Vec<f64> {
    b.to_dtype(DType::F64).matmul(&a.to_dtype(DType::F64), 1.0).unwrap().to_f64_vec()
}

fn largest(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, v| m.max(v.abs()))
}

fn close(ours: &[f64], theirs: &[f64], tolerance: f64, what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    let scale = largest(theirs).max(1e-3);
    let worst = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / scale;
    assert!(worst < tolerance, "{what} differs by {worst:e} of the largest");
}

/// Pairs of names of A and B.
fn factor_names<'a>(names: impl Iterator<Item = &'a String>) -> Vec<(String, String)> {
    names.filter(|n| n.contains("_A")).map(|n| (n.clone(), n.replace("_A", "_B"))).collect()
}

fn options(case: &Value) -> CombineOptions {
    CombineOptions {
        combination: case["combination_type"].as_str().unwrap().parse().unwrap(),
        density: case["density"].as_f64(),
        majority_sign: case["majority_sign_method"].as_str().unwrap_or("total").parse().unwrap(),
        svd_rank: case["svd_rank"].as_u64().map(|r| r as usize),
        svd_clamp: case["svd_clamp"].as_f64(),
        seed: 0,
    }
}

fn adapters(case: &Value) -> Vec<(SavedAdapter, f64)> {
    let list = |key: &str| case[key].as_array().unwrap().clone();
    let weights = list("weights").into_iter().map(|w| w.as_f64().unwrap());
    list("adapters").iter().map(|n| saved(n.as_str().unwrap())).zip(weights).collect()
}

/// PEFT's and our factors of an svd kind: the same update, and the same vectors where the values don't vanish.
fn compare_svd(case: &str, ours: [&Tensor; 2], theirs: [&Tensor; 2]) {
    let ([a, b], [ta, tb]) = (ours, theirs);
    close(&product(b, a), &product(tb, ta), 1e-5, case);
    let (r, n) = (a.rows(), a.cols());
    let (a, b, ta, tb) = (a.to_f64_vec(), b.to_f64_vec(), ta.to_f64_vec(), tb.to_f64_vec());
    let column = |x: &[f64], i: usize| -> Vec<f64> { x.iter().skip(i).step_by(r).copied().collect() };
    let scale = largest(&tb);
    for i in 0..r {
        let (ours, theirs) = (column(&b, i), column(&tb, i));
        if largest(&theirs) > 1e-3 * scale {
            close(&ours, &theirs, 1e-4, &format!("{case}: column {i} of B"));
            close(&a[i * n..][..n], &ta[i * n..][..n], 1e-4, &format!("{case}: row {i} of A"));
        }
    }
}

#[test]
fn every_kind_without_random_numbers_equals_peft() {
    let cases: Value = serde_json::from_slice(&std::fs::read(folder().join("cases.json")).unwrap()).unwrap();
    let bytes = std::fs::read(folder().join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut kinds = BTreeSet::new();
    for (name, case) in cases.as_object().unwrap() {
        let options = options(case);
        kinds.insert(options.combination.name());
        let theirs: BTreeMap<String, Tensor> = file
            .names()
            .iter()
            .filter_map(|full| {
                let key = full.strip_prefix(&format!("{name}/"))?;
                let t = file.tensor(full).unwrap();
                let data: Vec<f32> =
                    t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
                Some((key.to_owned(), Tensor::from_vec(data, t.shape()).unwrap()))
            })
            .collect();
        let (config, ours) = run(&adapters(case), &options).unwrap();
        assert!(ours.keys().eq(theirs.keys()), "{name}: {:?} {:?}", ours.keys(), theirs.keys());
        for (key, tensor) in &theirs {
            assert_eq!(ours[key].shape(), tensor.shape(), "{name}: {key}");
        }
        for (a, b) in factor_names(theirs.keys()) {
            match options.combination {
                kind if kind.is_svd() => {
                    compare_svd(name, [&ours[&a], &ours[&b]], [&theirs[&a], &theirs[&b]])
                }
                _ => [a, b].iter().for_each(|key| {
                    // Bit for bit: the operations are PEFT's, in its order.
                    assert_eq!(
                        ours[key].slice::<f32>().unwrap(),
                        theirs[key].slice::<f32>().unwrap(),
                        "{name}: {key}"
                    );
                }),
            }
        }
        check_config(name, &config, &case["config"], &ours);
    }
    let random = Combination::ALL.iter().filter(|c| c.name().starts_with("dare"));
    assert_eq!(kinds.len() + random.count(), Combination::ALL.len());
}

fn check_config(name: &str, config: &AdapterConfig, theirs: &Value, tensors: &BTreeMap<String, Tensor>) {
    assert_eq!(config.r as u64, theirs["r"].as_u64().unwrap(), "{name}");
    assert_eq!(config.lora_alpha, config.r as f64);
    assert!(!config.use_rslora && config.rank_pattern.is_empty() && config.alpha_pattern.is_empty());
    let Some(ModuleNames::List(targets)) = &config.target_modules else {
        panic!("{name}: no list of targets")
    };
    match &theirs["target_modules"] {
        Value::Array(list) => assert!(list.iter().map(|t| t.as_str().unwrap()).eq(targets), "{name}"),
        _ => {
            let paths: Vec<&str> = tensors
                .keys()
                .filter_map(|k| k.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight"))
                .collect();
            assert!(paths.iter().eq(targets), "{name}: {targets:?}");
        }
    }
}

/// Σ wᵢΔWᵢ by module from the files themselves.
fn exact_sum(
    adapters: &[(SavedAdapter, f64)],
    scaling: impl Fn(&str, &str) -> f64,
) -> BTreeMap<String, Vec<f64>> {
    let mut sums: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (adapter, weight) in adapters {
        for (a, b) in factor_names(adapter.tensors.keys()) {
            let tensor = |n: &str| {
                let raw = &adapter.tensors[n];
                Tensor::from_vec(raw.to_f32(), &raw.shape).unwrap()
            };
            let factor = weight * scaling(&adapter.name, &a);
            let update = product(&tensor(&b), &tensor(&a));
            let sum = sums.entry(a).or_insert_with(|| vec![0.0; update.len()]);
            sum.iter_mut().zip(update).for_each(|(s, u)| *s += factor * u);
        }
    }
    sums
}

#[test]
fn cat_is_the_exact_sum_svd_its_best_approximation_and_linear_is_not() {
    // Both adapters have four rows; a: 8/4, b with rsLoRA: 12/√4.
    let sums = exact_sum(&pair(), |adapter, _| if adapter == "a" { 2.0 } else { 6.0 });
    let update = |kind: CombineOptions| {
        let (_, t) = run(&pair(), &kind).unwrap();
        sums.keys()
            .map(|a| (a.clone(), product(&t[&a.replace("_A", "_B")], &t[a])))
            .collect::<BTreeMap<_, _>>()
    };
    let cat = update(of(Combination::Cat));
    let wide = update(CombineOptions { svd_rank: Some(8), ..of(Combination::Svd) });
    let linear = update(of(Combination::Linear));
    let distance = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let both = sums.keys().filter(|k| k.contains("q_proj") || k.contains("embed"));
    for (key, sum) in &sums {
        close(&cat[key], sum, 1e-6, key);
        close(&wide[key], sum, 1e-6, key);
    }
    for key in both {
        assert!(distance(&linear[key], &sums[key]) > 0.1 * distance(&sums[key], &vec![0.0; sums[key].len()]));
    }
}

#[test]
fn ranks_beyond_what_a_module_can_have_are_filled_with_zeros() {
    let options = CombineOptions { svd_rank: Some(25), ..of(Combination::Svd) };
    let (config, tensors) = run(&pair(), &options).unwrap();
    assert_eq!(config.r, 25);
    let sums = exact_sum(&pair(), |adapter, _| if adapter == "a" { 2.0 } else { 6.0 });
    for (a, sum) in &sums {
        let b = &tensors[&a.replace("_A", "_B")];
        assert_eq!((tensors[a].rows(), b.cols()), (25, 25));
        close(&product(b, &tensors[a]), sum, 1e-6, a);
    }
}

#[test]
fn dare_at_density_one_is_linear_or_ties() {
    for (dare, plain) in [
        (Combination::DareLinear, of(Combination::Linear)),
        (Combination::DareLinearSvd, of(Combination::Svd)),
        (Combination::DareTies, with_density(Combination::Ties, 1.0)),
        (Combination::DareTiesSvd, with_density(Combination::TiesSvd, 1.0)),
    ] {
        let (_, ours) = run(&pair(), &with_density(dare, 1.0)).unwrap();
        let (_, theirs) = run(&pair(), &plain).unwrap();
        for (a, b) in factor_names(theirs.keys()) {
            if dare.is_svd() {
                close(&product(&ours[&b], &ours[&a]), &product(&theirs[&b], &theirs[&a]), 1e-5, dare.name());
            } else {
                assert_eq!(ours[&a].slice::<f32>().unwrap(), theirs[&a].slice::<f32>().unwrap());
                assert_eq!(ours[&b].slice::<f32>().unwrap(), theirs[&b].slice::<f32>().unwrap());
            }
        }
    }
}

#[test]
fn dare_drops_and_rescales_each_adapter_on_its_own() {
    // Only `a` has down_proj, so its factors show the drops: each element is 0 or √(w·s)/density times the original.
    let a = saved("a");
    let density = 0.6;
    let (mut kept, mut all) = (0usize, 0usize);
    let mut patterns = BTreeSet::new();
    for seed in 0..30 {
        let options = CombineOptions { seed, ..with_density(Combination::DareLinear, density) };
        let (_, tensors) = run(&pair(), &options).unwrap();
        for part in ["lora_A", "lora_B"] {
            let name = format!("base_model.model.model.layers.0.mlp.down_proj.{part}.weight");
            let factor = (0.7f64 * 2.0).sqrt() / density;
            let original = a.tensors[&name].to_f64();
            let new = tensors[&name].to_f64_vec();
            for (x, y) in original.iter().zip(&new) {
                assert!(*y == 0.0 || (y / (x * factor) - 1.0).abs() < 1e-6, "{x} became {y}");
            }
            all += new.len();
            kept += new.iter().filter(|y| **y != 0.0).count();
            patterns.insert(new.iter().map(|y| *y != 0.0).collect::<Vec<_>>());
        }
    }
    let rate = kept as f64 / all as f64;
    let deviation = (density * (1.0 - density) / all as f64).sqrt();
    assert!((rate - density).abs() < 5.0 * deviation, "kept {rate}");
    assert_eq!(patterns.len(), 60, "each seed and tensor has its own drops");
}

#[test]
fn the_expectation_of_dare_is_the_plain_combination() {
    let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_";
    let (_, plain) = run(&pair(), &of(Combination::Linear)).unwrap();
    let n = 400;
    for part in ["A", "B"] {
        let name = format!("{q}{part}.weight");
        let mut mean = vec![0.0; plain[&name].numel()];
        for seed in 0..n {
            let options = CombineOptions { seed, ..with_density(Combination::DareLinear, 0.5) };
            let (_, t) = run(&pair(), &options).unwrap();
            mean.iter_mut().zip(t[&name].to_f64_vec()).for_each(|(m, x)| *m += x / n as f64);
        }
        // At this density a term's deviation is its own size, so that of the mean is a twentieth; 0.25 is five of them.
        close(&mean, &plain[&name].to_f64_vec(), 0.25, part);
        let errors: Vec<f64> = mean.iter().zip(plain[&name].to_f64_vec()).map(|(m, p)| m - p).collect();
        let bias = errors.iter().sum::<f64>() / errors.len() as f64;
        assert!(bias.abs() < 0.02, "{part}: {bias}");
    }
}

#[test]
fn bytes_depend_on_the_seed_and_not_on_threads_or_names() {
    let run = |threads: usize, seed: u64, name: &str| {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(|| {
            let mut adapters = pair();
            adapters[0].0.name = name.to_owned();
            let options = CombineOptions { seed, ..with_density(Combination::DareTiesSvd, 0.5) };
            let (_, tensors) = run(&adapters, &options).unwrap();
            tensors.into_values().map(|t| t.slice::<f32>().unwrap().to_vec()).collect::<Vec<_>>()
        })
    };
    let one = run(1, 3, "a");
    assert!(one == run(5, 3, "elsewhere/a"));
    assert!(one != run(1, 4, "a"));
}

#[test]
fn one_adapter_is_scaled_exactly() {
    for kind in [Combination::Cat, Combination::Linear, Combination::Svd] {
        let adapters = [(saved("b"), -0.6)];
        let (config, tensors) = run(&adapters, &of(kind)).unwrap();
        assert_eq!(config.r, 4);
        for (a, sum) in exact_sum(&adapters, |_, _| 6.0) {
            close(&product(&tensors[&a.replace("_A", "_B")], &tensors[&a]), &sum, 1e-6, kind.name());
        }
    }
    let text = run(&[(saved("b"), 1.0)], &with_density(Combination::Ties, 0.5)).unwrap_err().to_string();
    assert!(text.contains("one adapter only"), "{text}");
    assert!(matches!(run(&[], &of(Combination::Cat)), Err(Error::NoAdapter)));
}

#[test]
fn the_result_is_read_again_from_its_files() {
    let (config, tensors) = combine(&pair(), &of(Combination::Cat)).unwrap();
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|(_, t)| t.slice::<f32>().unwrap().iter().flat_map(|x| x.to_le_bytes()).collect())
        .collect();
    let views: Vec<TensorView<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, t), bytes)| (name.as_str(), FileDType::F32, t.shape(), bytes.as_slice()))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    write_adapter(dir.path(), &config, &views).unwrap();
    let (config, tensors) = read_adapter(dir.path()).unwrap();
    let again = SavedAdapter { name: "again".into(), config, tensors };
    let (config, _) = run(&[(again, 1.0)], &of(Combination::Linear)).unwrap();
    assert_eq!(config.r, 8);
}

fn raw(shape: &[usize], values: &[f32]) -> RawTensor<'static> {
    let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    RawTensor { dtype: FileDType::F32, shape: shape.to_vec(), bytes: bytes.into() }
}

const HEAD: &str = "base_model.model.lm_head.weight";

#[test]
fn tensors_beside_the_adapters_are_kept_if_they_are_the_same() {
    let mut both = pair();
    for (adapter, _) in &mut both {
        adapter.config.modules_to_save = Some(vec!["lm_head".into()]);
        adapter.tensors.insert(HEAD.into(), raw(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    }
    // The base's embedding, which PEFT saves along with an adapter on it.
    let base = "base_model.model.model.embed_tokens.base_layer.weight";
    both[0].0.tensors.insert(base.into(), raw(&[1, 2], &[5.0, 6.0]));
    let (config, tensors) = run(&both, &of(Combination::Cat)).unwrap();
    assert_eq!(config.modules_to_save, Some(vec!["lm_head".to_owned()]));
    assert_eq!(tensors[HEAD].slice::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(tensors[base].slice::<f32>().unwrap(), [5.0, 6.0]);

    let refused = |change: &dyn Fn(&mut SavedAdapter), text: &str| {
        let mut both = both.clone();
        change(&mut both[1].0);
        let error = run(&both, &of(Combination::Cat)).unwrap_err();
        assert!(matches!(error, Error::Pair { .. }) && error.to_string().contains(text), "{error}");
    };
    refused(&|a| drop(a.tensors.insert(HEAD.into(), raw(&[2, 2], &[1.0, 2.0, 3.0, 4.5]))), "lm_head.weight");
    refused(&|a| drop(a.tensors.insert(HEAD.into(), raw(&[4], &[1.0, 2.0, 3.0, 4.0]))), "lm_head.weight");
    refused(&|a| drop(a.tensors.insert(base.into(), raw(&[1, 2], &[5.0, 7.0]))), "base_layer.weight");
    refused(&|a| drop(a.tensors.remove(HEAD)), "only the first has");
    refused(&|a| a.config.modules_to_save = None, "modules_to_save");
    refused(&|a| a.config.bias = "all".into(), "bias");
    refused(&|a| a.config.fan_in_fan_out = true, "fan_in_fan_out");
}

#[test]
fn rows_of_trained_tokens_are_kept_if_they_are_the_same_and_have_no_sum() {
    let rows = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
    let mut both = pair();
    for (adapter, _) in &mut both {
        adapter.config.trainable_token_indices = Some(TokenIndices::OfEmbedding(vec![3, 1]));
        adapter.tensors.insert(rows.into(), raw(&[2, 2], &[1.0, 2.0, 3.0, 4.0]));
    }
    let (config, tensors) = run(&both, &of(Combination::Cat)).unwrap();
    assert_eq!(config.trainable_token_indices, Some(TokenIndices::OfEmbedding(vec![3, 1])));
    assert_eq!(tensors[rows].slice::<f32>().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    let refused = |change: &dyn Fn(&mut SavedAdapter), text: &str| {
        let mut both = both.clone();
        change(&mut both[1].0);
        let error = run(&both, &of(Combination::Cat)).unwrap_err();
        assert!(matches!(error, Error::Pair { .. }) && error.to_string().contains(text), "{error}");
    };
    let other = raw(&[2, 2], &[1.0, 2.0, 3.0, 4.5]);
    refused(&|a| drop(a.tensors.insert(rows.into(), other.clone())), "rows of trained tokens");
    let indices = |ids: &[i64]| Some(TokenIndices::OfEmbedding(ids.into()));
    refused(&|a| a.config.trainable_token_indices = indices(&[1, 3]), "trainable_token_indices");
    refused(&|a| a.config.trainable_token_indices = None, "trainable_token_indices");
}

#[test]
fn targets_name_the_modules_whatever_narrowed_the_inputs() {
    let list = |config: &AdapterConfig| match &config.target_modules {
        Some(ModuleNames::List(names)) => names.clone(),
        other => panic!("{other:?}"),
    };
    let mut both = pair();
    both.iter_mut().for_each(|(a, _)| a.config.layers_to_transform = Some(vec![0]));
    let (config, _) = run(&both, &of(Combination::Cat)).unwrap();
    assert_eq!(list(&config), ["down_proj", "embed_tokens", "q_proj", "v_proj"]);
    assert_eq!(config.layers_to_transform, Some(vec![0]));
    both[1].0.config.layers_to_transform = None;
    let (config, _) = run(&both, &of(Combination::Cat)).unwrap();
    let paths =
        ["embed_tokens", "layers.0.mlp.down_proj", "layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj"];
    assert_eq!(list(&config), paths.map(|p| format!("model.{p}")));
    assert_eq!(config.layers_to_transform, None);
}

#[test]
fn adapters_that_mean_something_else_are_refused() {
    let q = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight";
    let refused = |change: &dyn Fn(&mut SavedAdapter), kind: Combination, text: &str| {
        let mut both = pair();
        change(&mut both[1].0);
        let options = CombineOptions { density: kind.needs_density().then_some(0.5), ..of(kind) };
        let error = run(&both, &options).unwrap_err().to_string();
        assert!(error.contains(text) && error.contains("'b'"), "{error}");
    };
    let cat = Combination::Cat;
    refused(&|a| a.config.use_dora = true, cat, "DoRA");
    let magnitude = "base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector";
    refused(&|a| drop(a.tensors.insert(magnitude.into(), raw(&[1], &[1.0]))), cat, "DoRA");
    for init in ["pissa", "pissa_niter_4", "olora", "OLoRA", "corda", "loftq", "lora_ga"] {
        refused(&|a| a.config.init_lora_weights = InitLoraWeights::Name(init.into()), cat, init);
    }
    let smaller = |a: &mut SavedAdapter| {
        a.config.r = 3;
        for (name, t) in &mut a.tensors {
            let (rows, cols) = (t.shape[0], t.shape[1]);
            let cut = if name.contains("_A") { [3, cols] } else { [rows, 3] };
            *t = raw(&cut, &vec![0.5; cut[0] * cut[1]]);
        }
    };
    for kind in Combination::ALL.into_iter().filter(|k| k.needs_equal_ranks()) {
        refused(&smaller, kind, "have 4 and 3");
    }
    refused(&|a| drop(a.tensors.insert(q.into(), raw(&[4, 21], &[0.5; 84]))), cat, "different base models");
    refused(&|a| drop(a.tensors.insert(q.into(), raw(&[3, 20], &[0.5; 60]))), cat, "the rank 3");
    refused(&|a| drop(a.tensors.insert(q.into(), raw(&[4, 20, 1], &[0.5; 80]))), cat, "only matrices");
    refused(&|a| drop(a.tensors.insert(q.into(), raw(&[4, 20], &[f32::NAN; 80]))), cat, "not finite");
    refused(&|a| drop(a.tensors.remove(q)), cat, "the other factor");
    refused(&|a| a.tensors.clear(), cat, "no LoRA tensor");
    let bias = q.replace("lora_A.weight", "lora_B.bias");
    refused(&|a| drop(a.tensors.insert(bias.clone(), raw(&[20], &[0.5; 20]))), cat, "not supported");
    refused(&|a| a.config.rank_pattern = BTreeMap::from([("(".into(), 4)]), cat, "regular expression");
}

#[test]
fn options_are_refused_when_missing_out_of_range_or_without_effect() {
    let refused = |options: CombineOptions, text: &str| {
        let error = run(&pair(), &options).unwrap_err();
        assert!(matches!(error, Error::Option { .. }) && error.to_string().contains(text), "{error}");
    };
    for kind in Combination::ALL {
        assert_eq!(kind.to_string().parse::<Combination>().unwrap(), kind);
        if kind.needs_density() {
            refused(of(kind), "density is missing");
            for density in [-0.1, 1.5, f64::NAN] {
                refused(with_density(kind, density), "must be in [0, 1]");
            }
        } else {
            refused(with_density(kind, 0.5), "has no effect");
        }
        if kind.name().starts_with("dare") {
            refused(with_density(kind, 0.0), "above 0");
        }
        let base = CombineOptions { density: kind.needs_density().then_some(0.5), ..of(kind) };
        let (rank, clamp) = (
            CombineOptions { svd_rank: Some(0), ..base.clone() },
            CombineOptions { svd_clamp: Some(1.1), ..base.clone() },
        );
        let (no_rank, no_clamp) =
            if kind.is_svd() { ("svd_rank is 0", "quantile in") } else { ("has no effect", "has no effect") };
        refused(rank, no_rank);
        refused(clamp, no_clamp);
    }
    for sign in MajoritySign::ALL {
        assert_eq!(sign.to_string().parse::<MajoritySign>().unwrap(), sign);
    }
    assert!("tie".parse::<Combination>().unwrap_err().to_string().contains("ties, ties_svd"));
    assert!("most".parse::<MajoritySign>().is_err());
    for weight in [f64::NAN, f64::INFINITY] {
        let error = run(&[(saved("a"), 1.0), (saved("b"), weight)], &of(Combination::Cat)).unwrap_err();
        assert!(error.to_string().contains("adapter 'b'") && error.to_string().contains("finite"), "{error}");
    }
    let huge = run(&[(saved("a"), 1.0), (saved("b"), 1e39)], &of(Combination::Cat)).unwrap_err();
    assert!(matches!(huge, Error::Overflow { .. }), "{huge}");
}
