//! Odd configurations against what transformers makes of them, and generation against its `generate`: beyond windows, and
//! across the length where frequencies change. `goldens/family_configs.py` makes the files.

use std::path::{Path, PathBuf};

use loratune_engine::{DType, Params};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::files::{ModelConfig, ModelFiles};
use loratune_model::generate::{Sampling, generate};
use loratune_model::{Batch, Decoder, DecoderSpec, load};
use safetensors::SafeTensors;
use serde_json::{Map, Value, json};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/families")
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn spec(config: &Value) -> Result<DecoderSpec, String> {
    ModelConfig::from_value(config, Path::new("config.json")).map(|c| c.spec).map_err(|e| e.to_string())
}

/// What differs between our reading and transformers', if anything.
fn difference(spec: &DecoderSpec, theirs: &Value) -> Option<String> {
    let mut wrong = Vec::new();
    let mut same = |what: &str, ours: Value, theirs: &Value| {
        if &ours != theirs {
            wrong.push(format!("{what} {ours}, transformers' {theirs}"));
        }
    };
    same("padding", json!(spec.padding), &theirs["padding"]);
    same("windows", json!(spec.layers.iter().map(|l| l.window).collect::<Vec<_>>()), &theirs["windows"]);
    let mut biases: Vec<String> = spec.tensors().into_iter().map(|t| t.name).collect();
    biases.retain(|name| name.ends_with(".bias"));
    biases.sort();
    same("biases", json!(biases), &theirs["biases"]);
    let (frequencies, scales): (Vec<Vec<f32>>, Vec<f64>) =
        spec.ropes.iter().map(|rope| rope.frequencies(1)).unzip();
    if scales.iter().any(|s| (s - theirs["scaling"].as_f64().unwrap()).abs() > 1e-12) {
        wrong.push(format!("scales of cosines {scales:?}, transformers' {}", theirs["scaling"]));
    }
    let theirs: Vec<Vec<f64>> = serde_json::from_value(theirs["frequencies"].clone()).unwrap();
    let lengths = |a: usize| theirs.get(a).map_or(0, Vec::len);
    if frequencies.len() != theirs.len() || frequencies.iter().enumerate().any(|(i, f)| f.len() != lengths(i))
    {
        wrong.push(format!("frequencies {frequencies:?}, transformers' {theirs:?}"));
    }
    for (ours, theirs) in frequencies.iter().flatten().zip(theirs.iter().flatten()) {
        if (*ours as f64 / theirs - 1.0).abs() > 1e-6 {
            wrong.push(format!("frequency {ours}, transformers' {theirs}"));
        }
    }
    (!wrong.is_empty()).then(|| wrong.join("; "))
}

#[test]
fn odd_configurations_mean_what_transformers_makes_of_them_or_are_refused_by_name() {
    let (mut read, mut refused, mut wrong) = (0, 0, Vec::new());
    for case in read_json(&goldens().join("configs.json")).as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let found = match (spec(&case["config"]), case["refused"].as_str()) {
            (Ok(spec), None) => {
                read += 1;
                difference(&spec, &case["transformers"])
            }
            (Err(text), Some(field)) => {
                refused += 1;
                (!text.contains(field)).then(|| format!("the refusal does not name {field}: {text}"))
            }
            (Ok(_), Some(field)) => Some(format!("is read, in spite of {field}")),
            (Err(text), None) => Some(format!("is refused: {text}")),
        };
        wrong.extend(found.map(|found| format!("{name}: {found}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(read >= 40 && refused >= 20, "{read} read, {refused} refused");
}

#[test]
fn a_model_is_stretched_by_the_rules_of_llama_factory() {
    let folder = |path: &str| ModelFiles::open(&goldens().join(path)).unwrap();
    let plain = folder("../llama/gqa-untied");
    let expected = |scaling: Value, positions: usize| {
        let mut config = plain.raw_config.clone();
        config["max_position_embeddings"] = positions.into();
        config["rope_parameters"] = scaling;
        spec(&config).unwrap()
    };
    for (kind, more) in [
        ("linear", json!({})),
        ("dynamic", json!({"original_max_position_embeddings": 128})),
        ("yarn", json!({"original_max_position_embeddings": 128})),
        (
            "llama3",
            json!({"original_max_position_embeddings": 128, "low_freq_factor": 1.0, "high_freq_factor": 4.0}),
        ),
    ] {
        // 300 tokens are three times 128.
        let mut scaling = json!({"rope_theta": 5000.0, "rope_type": kind, "factor": 3.0});
        scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let stretched = plain.stretched(kind, 300).unwrap().unwrap();
        assert_eq!(stretched.config.spec, expected(scaling.clone(), 384), "{kind}");
        assert_eq!(stretched.raw_config["rope_parameters"], scaling);
        assert!(plain.stretched(kind, 128).unwrap().is_none());
        // By the original context, where it is written down.
        let further = stretched.stretched(kind, 512).unwrap().unwrap();
        let length = if kind == "linear" { 768 } else { 512 };
        assert_eq!(further.raw_config["max_position_embeddings"], length);
    }
    // A scaling that is there is replaced, in either way of writing it.
    let replaced = folder("llama-linear").stretched("yarn", 1000).unwrap().unwrap();
    assert_eq!(replaced.raw_config["rope_parameters"]["rope_type"], "yarn");
    let replaced = folder("gemma3").stretched("linear", 500).unwrap().unwrap();
    assert_eq!(replaced.raw_config["rope_scaling"], json!({"rope_type": "linear", "factor": 4.0}));
}

fn case_config(case: &str) -> Value {
    read_json(&goldens().join(case).join("config.json"))
}

#[test]
fn the_context_is_stretched_only_by_scaling_that_is_defined_by_the_length_before_it() {
    let length = |case: &str, change: &[(&str, Value)]| {
        let mut config = case_config(case);
        for (name, value) in change {
            config[*name] = value.clone();
        }
        spec(&config).unwrap().max_positions
    };
    let scaled = |kind: &str, more: Value| {
        let mut scaling = json!({"rope_type": kind, "factor": 4.0});
        scaling.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        ("rope_scaling", scaling)
    };
    let positions = |n: usize| ("max_position_embeddings", json!(n));
    // DeepSeek Coder's 16384 and Gemma 3's 131072 are what was trained; Vicuna says it beside.
    let linear = || scaled("linear", json!({}));
    let parameters = ("rope_parameters", Value::Null);
    assert_eq!(length("llama-linear", &[positions(16384), linear(), parameters.clone()]), 16384);
    assert_eq!(length("gemma3", &[positions(131_072)]), 131_072);
    let vicuna = [positions(4096), linear(), parameters, ("max_sequence_length", json!(16384))];
    assert_eq!(length("llama-linear", &vicuna), 16384);
    assert_eq!(length("llama3", &[positions(131_072)]), 131_072);
    assert_eq!(length("phi3-longrope", &[positions(131_072)]), 131_072);
    // Nothing is scaled up to max_position_embeddings.
    assert_eq!(length("llama-dynamic", &[]), 48);
    // Qwen's model cards ask for the first; others write the second.
    let yarn = || scaled("yarn", json!({"original_max_position_embeddings": 32768}));
    assert_eq!(
        length(
            "qwen3",
            &[positions(40960), ("rope_theta", json!(1e6)), yarn(), ("rope_parameters", json!({}))]
        ),
        131_072
    );
    assert_eq!(length("llama-yarn", &[positions(131_072), yarn()]), 131_072);
}

fn open(case: &str, change: &Map<String, Value>) -> (Decoder, Params) {
    let dir = tempfile::tempdir().unwrap();
    let folder = goldens().join(case);
    std::fs::copy(folder.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut config = case_config(case);
    config.as_object_mut().unwrap().extend(change.clone());
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let mut params = Params::new();
    let decoder = load::decoder(&files, Dtypes::both(DType::F32), &mut params, &Trained::Nothing).unwrap();
    (decoder, params)
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// The largest difference; NaN counts.
fn worst(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

#[test]
fn cached_logits_and_greedy_tokens_equal_transformers_generate_beyond_windows_and_borders() {
    let file = std::fs::read(goldens().join("generated.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let golden = read_json(&goldens().join("generated.json"));
    let prompts: Vec<Vec<u32>> = golden["prompts"].as_array().unwrap().iter().map(ids).collect();
    let said = ids(&golden["said"]);
    let (mut greedy, mut wrong) = (0, Vec::new());
    for case in golden["cases"].as_array().unwrap() {
        let name = case["case"].as_str().unwrap();
        let new = case["new"].as_u64().unwrap() as usize;
        let (decoder, params) = open(name, case["config"].as_object().unwrap());
        let steps: Vec<usize> = serde_json::from_value(case["steps"].clone()).unwrap();
        let theirs = |prompt: usize| -> Vec<f32> {
            let bytes = tensors.tensor(&format!("{name}.{prompt}")).unwrap().data().to_vec();
            bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        // Both prompts at once, transformers' one by one: a sequence does not depend on the others.
        let mut sequences = decoder.sequences(prompts.len());
        let mut next = prompts.clone();
        let mut ours = vec![Vec::new(); prompts.len()];
        for step in 0..new {
            let appended: Vec<(usize, &[u32])> =
                next.iter().enumerate().map(|(s, t)| (s, t.as_slice())).collect();
            let logits = decoder.extend(&params, &mut sequences, &appended).unwrap();
            if steps.contains(&step) {
                let rows = logits.slice::<f32>().unwrap().chunks_exact(logits.cols());
                ours.iter_mut().zip(rows).for_each(|(all, row)| all.extend_from_slice(row));
            }
            next = vec![vec![said[step]]; prompts.len()];
        }
        for (i, ours) in ours.iter().enumerate() {
            let error = worst(ours, &theirs(i));
            if error.is_nan() || error >= 1e-4 {
                wrong.push(format!("{name}: logits after prompt {i} differ by {error:e}"));
            }
        }
        if !case["tokens"].is_null() {
            greedy += 1;
            let theirs: Vec<Vec<u32>> = case["tokens"].as_array().unwrap().iter().map(ids).collect();
            let made =
                generate(&decoder, &params, &prompts, &Sampling::greedy(new, vec![]), |_, _| true).unwrap();
            let made: Vec<Vec<u32>> = made.into_iter().map(|g| g.tokens).collect();
            if made != theirs {
                wrong.push(format!("{name}: other tokens"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(greedy >= 4);
}

/// The logits after the last token, by one pass over everything.
fn by_one_pass(decoder: &Decoder, params: &Params, tokens: &[u32]) -> Vec<f32> {
    let logits = decoder.logits(params, &Batch::from_ids([tokens])).unwrap();
    logits.slice::<f32>().unwrap()[(tokens.len() - 1) * logits.cols()..].to_vec()
}

fn said(n: usize) -> Vec<u32> {
    (0..n).map(|i| 3 + ((7 * i * i + 11 * i) % 43) as u32).collect()
}

#[test]
fn layers_with_a_window_hold_no_more_than_it_and_128_tokens() {
    let longer = json!({"max_position_embeddings": 4096}).as_object().unwrap().clone();
    for (case, windowed, full) in [("mistral-window", 2, 0), ("gemma2", 1, 1), ("qwen2-window", 1, 1)] {
        let (decoder, params) = open(case, &longer);
        let spec = decoder.spec();
        let window = spec.layers.iter().find_map(|l| l.window).unwrap();
        let row = 2 * spec.attention_widths()[1] * size_of::<f32>();
        let tokens = said(1500);
        let mut sequences = decoder.sequences(1);
        // A long prompt, then token by token.
        let mut logits = decoder.extend(&params, &mut sequences, &[(0, &tokens[..700])]).unwrap();
        for (i, token) in tokens.iter().enumerate().skip(700) {
            logits = decoder.extend(&params, &mut sequences, &[(0, &[*token])]).unwrap();
            // A vector that grows may have room for twice what it holds.
            let most = windowed * (window + 130) * row + full * 2 * (i + 1).max(700) * row;
            assert!(sequences.bytes() <= most, "{case}: {} bytes after {i} tokens", sequences.bytes());
        }
        let error = worst(logits.slice::<f32>().unwrap(), &by_one_pass(&decoder, &params, &tokens));
        assert!(error < 1e-4, "{case}: {error}");
    }
}

#[test]
fn sequences_taken_back_go_on_as_if_new() {
    let longer = json!({"max_position_embeddings": 512}).as_object().unwrap().clone();
    // Lengths to go to and to be taken back to: within the reserve, beyond it, and across the border at 16.
    let windows: &[(usize, usize)] = &[(200, 190), (300, 20), (40, 3), (350, 140), (350, 349), (20, 0)];
    let border: &[(usize, usize)] = &[(30, 12), (14, 10), (17, 16), (17, 9), (40, 20)];
    for (case, change, turns) in [
        ("mistral-window", &longer, windows),
        ("gemma2", &longer, windows),
        ("phi3-longrope", &Map::new(), border),
        ("phi4-mini", &Map::new(), border),
    ] {
        let (decoder, params) = open(case, change);
        let tokens = said(512);
        let mut sequences = decoder.sequences(2);
        for (turn, &(to, back)) in turns.iter().enumerate() {
            let held = sequences.lengths()[1];
            for token in &tokens[held..to.max(held)] {
                decoder.extend(&params, &mut sequences, &[(1, &[*token])]).unwrap();
            }
            sequences.truncate(1, back);
            assert_eq!(sequences.lengths()[1], back);
            let next = tokens[back];
            let logits = decoder.extend(&params, &mut sequences, &[(1, &[next])]).unwrap();
            let error =
                worst(logits.slice::<f32>().unwrap(), &by_one_pass(&decoder, &params, &tokens[..back + 1]));
            assert!(error < 1e-4, "{case}, turn {turn} from {held} tokens: {error}");
        }
    }
}

#[test]
fn a_sequence_does_not_depend_on_the_others_of_its_batch() {
    // One goes across the border while the others do not.
    for case in ["phi3-longrope", "llama-dynamic", "mistral-window"] {
        let (decoder, params) = open(case, &Map::new());
        let prompts = [said(3), said(20), said(14)];
        let greedy = Sampling::greedy(12, vec![]);
        let together = generate(&decoder, &params, &prompts, &greedy, |_, _| true).unwrap();
        for (prompt, together) in prompts.iter().zip(&together) {
            let alone =
                generate(&decoder, &params, std::slice::from_ref(prompt), &greedy, |_, _| true).unwrap();
            assert_eq!(alone[0].tokens, together.tokens, "{case}: prompt of {}", prompt.len());
        }
    }
}

#[test]
fn configurations_from_gguf_say_the_rotary_embedding_for_transformers_4_and_5_alike() {
    let mut seen = 0;
    for entry in std::fs::read_dir(goldens()).unwrap().flatten() {
        let path = entry.path().join("model.gguf");
        if !path.is_file() {
            continue;
        }
        seen += 1;
        let config = ModelFiles::open(&path).unwrap().raw_config;
        let whole = spec(&config).unwrap();
        let without = |names: &[&str]| {
            let mut config = config.clone();
            names.iter().for_each(|name| drop(config.as_object_mut().unwrap().remove(*name)));
            spec(&config).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let older = ["rope_theta", "rope_scaling", "rope_local_base_freq", "partial_rotary_factor"];
        assert_eq!(without(&["rope_parameters"]), whole, "{}", path.display());
        assert_eq!(without(&older), whole, "{}", path.display());
        assert!(config.get("rope_theta").is_some() && config.get("rope_scaling").is_some());
    }
    assert!(seen >= 12, "{seen} GGUF files");
}

#[test]
fn code_of_the_models_own_is_not_copied_into_folders_that_are_written() {
    let path = goldens().join("phi4-mini");
    assert!(case_config("phi4-mini").get("auto_map").is_some());
    let files = ModelFiles::open(&path).unwrap();
    let dir = tempfile::tempdir().unwrap();
    load::write_model(dir.path(), &files, load::file_dtype(&files), false, |name| {
        load::read_f32(&files, name)
    })
    .unwrap();
    let written = read_json(&dir.path().join("config.json"));
    assert!(written.get("auto_map").is_none(), "{written}");
    assert_eq!(spec(&written).unwrap(), files.config.spec);
}

#[test]
fn the_refusal_of_gemma_3_with_images_says_how_to_get_its_text_model() {
    let text = ModelFiles::open(&goldens().join("refused/gemma3")).unwrap_err().to_string();
    assert!(
        text.contains("only the text model") && text.contains("Gemma3ForCausalLM(m.config.text_config)"),
        "{text}"
    );
}
