//! Every family against transformers: logits, loss and the gradients of all weights of tiny models with every feature of
//! the family switched on, from the configuration in both spellings and from GGUF files; generation with the cache beyond
//! windows; and what is refused. `goldens/families.py` makes the files.

use std::path::{Path, PathBuf};

use loratune_engine::{DType, Gradients, Mode, Params, Tape};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::families::FAMILIES;
use loratune_model::files::{ModelConfig, ModelFiles};
use loratune_model::generate::{Sampling, generate};
use loratune_model::rope::RopeScaling;
use loratune_model::{Batch, Decoder, DecoderSpec, load};
use safetensors::SafeTensors;

/// Largest absolute error of a logit, and of a gradient as a part of its tensor's largest.
const LOGIT: f64 = 1e-4;
const GRADIENT: f64 = 1e-4;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/families")
}

fn cases() -> Vec<String> {
    let entries = std::fs::read_dir(goldens()).unwrap().flatten();
    let mut names: Vec<String> = entries
        .filter(|e| e.path().join("expected.safetensors").is_file())
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    assert!(names.len() >= 20, "{names:?}");
    names
}

struct Expected(Vec<u8>);

impl Expected {
    fn open(path: &Path) -> Expected {
        Expected(std::fs::read(path).unwrap())
    }
    fn ints(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = file.tensor(name).unwrap().data().to_vec();
        bytes.chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
    fn floats(&self, name: &str) -> Option<Vec<f64>> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let bytes = file.tensor(name).ok()?.data().to_vec();
        Some(bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect())
    }
    /// The documents, each by itself: how frequencies are scaled may depend on the longest of a pass.
    fn documents(&self) -> Vec<Batch> {
        (0..2)
            .map(|i| {
                let ids: Vec<u32> =
                    self.ints(&format!("doc{i}.input_ids")).iter().map(|&x| x as u32).collect();
                let labels: Vec<i32> =
                    self.ints(&format!("doc{i}.labels")).iter().map(|&x| x as i32).collect();
                Batch::from_labelled([(ids.as_slice(), labels.as_slice())])
            })
            .collect()
    }
}

/// The largest difference; NaN counts.
fn worst(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    let difference = |(a, b): (&f64, &f64)| (a - b).abs();
    ours.iter().zip(theirs).map(difference).fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

fn open(path: &Path, dtype: DType, trained: &Trained) -> (Decoder, Params) {
    let files = ModelFiles::open(path).unwrap_or_else(|e| panic!("{e}"));
    let mut params = Params::new();
    let decoder =
        load::decoder(&files, Dtypes::both(dtype), &mut params, trained).unwrap_or_else(|e| panic!("{e}"));
    (decoder, params)
}

/// What is wrong with a model's logits, if anything.
fn check_logits(what: &str, path: &Path, documents: &[Batch], expected: &Expected) -> Vec<String> {
    let (decoder, params) = open(path, DType::F32, &Trained::Nothing);
    let mut wrong = Vec::new();
    for (i, document) in documents.iter().enumerate() {
        let ours = decoder.logits(&params, document).unwrap().to_f64_vec();
        let error = worst(&ours, &expected.floats(&format!("doc{i}.logits")).unwrap());
        if error.is_nan() || error >= LOGIT {
            wrong.push(format!("{what}: logits of document {i} differ by {error:e}"));
        }
    }
    wrong
}

fn nothing_wrong(wrong: Vec<String>) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// The case's folder with another configuration.
fn with_config(case: &str, config: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(goldens().join(case)).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.ends_with(".gguf") && !name.starts_with("config") {
            std::fs::copy(entry.path(), dir.path().join(name)).unwrap();
        }
    }
    std::fs::copy(goldens().join(case).join(config), dir.path().join("config.json")).unwrap();
    dir
}

#[test]
fn logits_equal_transformers_from_both_spellings_of_the_configuration() {
    let mut wrong = Vec::new();
    for case in cases() {
        let expected = Expected::open(&goldens().join(&case).join("expected.safetensors"));
        for config in ["config.json", "config.v5.json", "config.v4.json"] {
            if goldens().join(&case).join(config).is_file() {
                let dir = with_config(&case, config);
                let what = format!("{case}/{config}");
                wrong.extend(check_logits(&what, dir.path(), &expected.documents(), &expected));
            }
        }
    }
    nothing_wrong(wrong);
}

#[test]
fn losses_and_gradients_of_all_weights_equal_transformers() {
    let mut wrong = Vec::new();
    for case in cases() {
        let path = goldens().join(&case);
        let expected = Expected::open(&path.join("expected.safetensors"));
        let dir = with_config(&case, "config.json");
        let (decoder, params) = open(dir.path(), DType::F32, &Trained::Everything);
        let mut grads = Gradients::new(&params);
        let (mut loss, mut tokens) = (0.0, 0);
        let total = expected.ints("trained_tokens")[0] as f64;
        for document in expected.documents() {
            let mut tape = Tape::new(&params, Mode::Grad);
            let out = decoder.loss(&mut tape, &document).unwrap();
            (loss, tokens) = (loss + out.loss.value().item(), tokens + out.tokens);
            tape.backward(&out.loss, 1.0 / total, &mut grads).unwrap();
        }
        assert_eq!(tokens as f64, total, "{case}");
        let error = (loss / expected.floats("loss_sum").unwrap()[0] - 1.0).abs();
        if error.is_nan() || error >= 1e-6 {
            wrong.push(format!("{case}: the loss differs by {error:e}"));
        }
        grads.check_complete(&params).unwrap();
        for id in params.ids() {
            let name = params.name(id);
            let theirs =
                expected.floats(&format!("grad.{name}")).unwrap_or_else(|| panic!("{case}: no {name}"));
            let scale = theirs.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let error = worst(&grads.get(id).unwrap().to_f64_vec(), &theirs) / scale;
            if error.is_nan() || error >= GRADIENT {
                wrong.push(format!("{case}: the gradient of {name} differs by {error:e}"));
            }
        }
    }
    nothing_wrong(wrong);
}

#[test]
fn gguf_files_of_llama_cpp_are_the_same_models() {
    let (mut seen, mut wrong) = (0, Vec::new());
    for case in cases() {
        let path = goldens().join(&case).join("model.gguf");
        if !path.is_file() {
            continue;
        }
        seen += 1;
        // Where the GGUF format can't say all that config.json does, it has logits of its own.
        let own = goldens().join(&case).join("gguf.safetensors");
        let expected = goldens().join(&case).join("expected.safetensors");
        let documents = Expected::open(&expected).documents();
        let expected = Expected::open(if own.is_file() { &own } else { &expected });
        wrong.extend(check_logits(&format!("{case}/model.gguf"), &path, &documents, &expected));
    }
    nothing_wrong(wrong);
    assert!(seen >= 12, "{seen} GGUF files");
}

/// The golden GGUF file of a case with one more number in its metadata.
fn with_key(case: &str, key: &str, value: f32) -> (tempfile::TempDir, PathBuf) {
    let mut bytes = std::fs::read(goldens().join(case).join("model.gguf")).unwrap();
    let mut entry = Vec::new();
    let text = |entry: &mut Vec<u8>, key: &str, kind: u32, value: &[u8]| {
        entry.extend((key.len() as u64).to_le_bytes());
        entry.extend(key.as_bytes());
        entry.extend(kind.to_le_bytes());
        entry.extend(value);
    };
    text(&mut entry, key, 6, &value.to_le_bytes());
    // A key of no meaning fills up to the alignment of the tensors, 32: a flag of one byte.
    let fill = (32 - (entry.len() + 13) % 32) % 32;
    text(&mut entry, &"x".repeat(fill), 7, &[0]);
    let count = u64::from_le_bytes(bytes[16..24].try_into().unwrap());
    bytes[16..24].copy_from_slice(&(count + 2).to_le_bytes());
    bytes.splice(24..24, entry);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

#[test]
fn gguf_files_that_mix_yarn_in_part_are_refused_by_name() {
    let key = "llama.rope.scaling.yarn_ext_factor";
    let error = |case: &str, value: f32| {
        let (_dir, path) = with_key(case, key, value);
        ModelFiles::open(&path).err().map(|e| e.to_string())
    };
    // llama.cpp writes a configuration's `extrapolation_factor`; 1 is what YaRN is.
    assert_eq!(error("llama-yarn", 1.0), None);
    assert_eq!(error("llama3", 0.0), None);
    for (case, value) in [("llama-yarn", 0.5), ("llama-yarn", 0.0), ("llama3", 1.0)] {
        let text = error(case, value).unwrap_or_else(|| panic!("{case}: {value} is accepted"));
        assert!(text.contains(key), "{text}");
    }
}

#[test]
fn generation_with_the_cache_equals_the_full_forward_beyond_the_window() {
    for case in cases() {
        // Frequencies that change with the length turn keys that are cached already, in transformers too.
        if case.contains("dynamic") || case.contains("longrope") || case == "phi4-mini" {
            continue;
        }
        let dir = with_config(&case, "config.json");
        let (decoder, params) = open(dir.path(), DType::F32, &Trained::Nothing);
        let vocabulary = decoder.spec().vocab_size;
        let prompts = [vec![5u32, 9, 4], vec![7], (10..30).collect()];
        let out = generate(&decoder, &params, &prompts, &Sampling::greedy(24, vec![]), |_, _| true).unwrap();
        for (prompt, generated) in prompts.iter().zip(&out) {
            let mut all = prompt.clone();
            for &token in &generated.tokens {
                let logits = decoder.logits(&params, &Batch::from_ids([all.as_slice()])).unwrap();
                let row = &logits.slice::<f32>().unwrap()[(all.len() - 1) * vocabulary..];
                let best = (0..vocabulary).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap();
                // Equal but for rounding: a tie may fall the other way.
                assert!(row[best] - row[token as usize] < 1e-5, "{case} after {} tokens", all.len());
                all.push(token);
            }
        }
    }
}

#[test]
fn mixtures_of_experts_and_others_are_refused_by_name() {
    for entry in std::fs::read_dir(goldens().join("refused")).unwrap().flatten() {
        let text = ModelFiles::open(&entry.path()).unwrap_err().to_string();
        let name = entry.file_name().to_string_lossy().into_owned();
        assert!(text.contains("architectures"), "{name}: {text}");
        assert_eq!(text.contains("mixture of experts"), name != "gemma3", "{name}: {text}");
    }
}

#[test]
fn every_family_has_a_case() {
    let seen: Vec<&str> = cases()
        .iter()
        .map(|case| ModelFiles::open(with_config(case, "config.json").path()).unwrap().config.family.class)
        .collect();
    for family in FAMILIES {
        assert!(seen.contains(&family.class), "{} has no golden", family.class);
    }
}

/// The description of a case's configuration, changed.
fn changed(case: &str, change: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) -> DecoderSpec {
    let path = goldens().join(case).join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    ModelConfig::from_value(&config, &path).unwrap_or_else(|e| panic!("{e}")).spec
}

#[test]
fn what_a_configuration_leaves_out_is_what_transformers_class_says() {
    use serde_json::json;
    // Windows of SmolLM 3 are on the layers without rotary embeddings.
    let spec = changed("smollm3", |c| {
        c.remove("layer_types");
        c.insert("use_sliding_window".into(), json!(true));
        c.insert("sliding_window".into(), json!(5));
    });
    assert!(spec.layers.iter().any(|l| l.window.is_some()));
    assert!(spec.layers.iter().all(|l| l.window.is_some() == l.rope.is_none()), "{:?}", spec.layers);
    // Key and value heads: missing is the class's number, null as many as queries.
    let heads = |c: &mut serde_json::Map<String, serde_json::Value>| {
        c.insert("num_attention_heads".into(), json!(16));
        c.insert("head_dim".into(), json!(4));
        c.remove("num_key_value_heads");
    };
    assert_eq!(changed("mistral-window", heads).num_kv_heads, 8);
    let null = |c: &mut serde_json::Map<String, serde_json::Value>| {
        heads(c);
        c.insert("num_key_value_heads".into(), json!(null));
    };
    assert_eq!(changed("mistral-window", null).num_kv_heads, 16);
    assert_eq!(changed("llama3", heads).num_kv_heads, 16);
    // The original context at the top level goes before the one inside.
    let spec = changed("llama-yarn", |c| {
        c.insert("original_max_position_embeddings".into(), json!(11));
    });
    assert!(matches!(spec.ropes[0].scaling, RopeScaling::Yarn { original: 11, .. }), "{:?}", spec.ropes);
}

#[test]
fn the_readme_lists_every_family() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let text = std::fs::read_to_string(readme).unwrap();
    let listed = text.lines().filter(|l| l.starts_with("| `") && l.contains("ForCausalLM`")).count();
    assert_eq!(listed, FAMILIES.len(), "rows of the table of models, and families");
    for family in FAMILIES {
        assert!(text.contains(&format!("| `{}` |", family.class)), "README's table lacks {}", family.class);
    }
}
