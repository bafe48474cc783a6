//! GGUF files that we write: read back they are the same models, with adapters merged and beside; block formats are ggml's bits;
//! what llama.cpp could not compute is refused. With LORATUNE_GGUF_PYTHON (a Python with `gguf`, and `llama-cpp-python` if it is
//! there) the real tools read them, and llama.cpp's logits are compared with ours.

use std::path::{Path, PathBuf};

use loratune_engine::{DType, Params};
use loratune_model::adapter::{self, AdapterSpec, Attached, Init, Start};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::export::{GgufType, adapter_to_gguf, model_to_gguf};
use loratune_model::files::gguf::GgufFile;
use loratune_model::files::{self, FileDType, ModelFiles, RawTensor};
use loratune_model::{Batch, Decoder, load};
use serde_json::{Value, json};
use tempfile::TempDir;

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

/// Cases of the families' goldens that llama.cpp can compute, and what it may say of them.
const CASES: &[(&str, &str)] = &[
    ("gemma", ""),
    ("gemma2", ""),
    ("gemma3", ""),
    ("granite", ""),
    ("llama-dynamic", "scaling of rotary embeddings"),
    ("llama-linear", ""),
    ("llama-yarn", ""),
    ("llama-yarn-attention-factor", ""),
    ("llama3", ""),
    ("mistral-nemo", ""),
    ("mistral-window", "windows"),
    ("olmo2", ""),
    ("phi3", ""),
    ("phi3-longrope", ""),
    ("phi4", ""),
    ("phi4-mini", ""),
    ("qwen2", ""),
    ("qwen2-window", "windows"),
    ("qwen3", ""),
    ("smollm3", ""),
];

/// Cases whose architecture has biases in llama.cpp (Qwen 2 those of q, k and v).
const BIASED: &[&str] = &["granite", "llama3", "qwen2", "qwen2-window"];

/// Copies weights, the biases only where llama.cpp has them.
fn write_weights(from: &Path, to: &Path, biases: bool) {
    let bytes = std::fs::read(from).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = file.tensors().into_iter().filter(|(name, _)| biases || !name.ends_with(".bias"));
    std::fs::write(to, safetensors::serialize(kept, None).unwrap()).unwrap();
}

/// A copy of a case's folder whose configuration llama.cpp can express.
fn folder(case: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(goldens().join("families").join(case)).unwrap().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "model.safetensors" {
            write_weights(&entry.path(), &dir.path().join(name), BIASED.contains(&case));
        } else if name.starts_with("tokenizer") {
            std::fs::copy(entry.path(), dir.path().join(name)).unwrap();
        }
    }
    let text = std::fs::read(goldens().join("families").join(case).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&text).unwrap();
    // llama.cpp knows the scale of Gemma's scores by the model's size.
    if config.get("query_pre_attn_scalar").is_some() {
        config["query_pre_attn_scalar"] = config["head_dim"].clone();
    }
    if case == "smollm3" {
        // In llama.cpp every fourth layer is without; the golden has three.
        config["no_rope_layers"] = json!([1, 1, 1]);
    }
    for field in ["attention_bias", "mlp_bias"] {
        if config.get(field).is_some() && !BIASED.contains(&case) {
            config[field] = json!(false);
        }
    }
    change(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

struct Model {
    files: ModelFiles,
    decoder: Decoder,
    params: Params,
    attached: Option<Attached>,
}

fn open(path: &Path, adapter: Option<&AdapterSpec>) -> Model {
    let files = ModelFiles::open(path).unwrap_or_else(|e| panic!("{e}"));
    let mut params = Params::new();
    let trained = adapter.map_or(Trained::Nothing, |spec| spec.trained(&files.config.spec).unwrap());
    let mut decoder = load::decoder(&files, Dtypes::both(DType::F32), &mut params, &trained)
        .unwrap_or_else(|e| panic!("{e}"));
    let start = Start::Fresh { seed: 7 };
    let attached =
        adapter.map(|spec| adapter::attach(&mut decoder, &mut params, spec, start, &files).unwrap());
    Model { files, decoder, params, attached }
}

impl Model {
    fn logits(&self, ids: &[u32]) -> Vec<f64> {
        self.decoder.logits(&self.params, &Batch::from_ids([ids])).unwrap().to_f64_vec()
    }

    fn export(&self, path: &Path, kind: GgufType) -> Result<Vec<String>, String> {
        let tokenizer = self.files.tokenizer().map_err(|e| e.to_string())?;
        let (decoder, params, attached) = (&self.decoder, &self.params, self.attached.as_ref());
        model_to_gguf(path, &self.files, decoder, params, attached, &tokenizer, "tiny", kind)
            .map_err(|e| e.to_string())
    }
}

/// An adapter that changes the model at once, with a scaling that is not α/r.
fn random() -> AdapterSpec {
    AdapterSpec { r: 4, alpha: 3.0, use_rslora: true, init: Init::Random, ..AdapterSpec::default() }
}

fn worst(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter()
        .zip(theirs)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, |m, d| if d > m || d.is_nan() { d } else { m })
}

/// Ids of the tiny vocabularies, fewer than any window of the goldens.
const IDS: [u32; 6] = [1, 5, 9, 14, 7, 11];

/// Ids that both take by the same frequencies: llama.cpp chooses longrope's by the size of its context, which is at least 256,
/// and not by the sequence's.
fn ids_for_llama_cpp(case: &str) -> Vec<u32> {
    let repeat = if case == "phi3-longrope" || case == "phi4-mini" { 5 } else { 1 };
    IDS.iter().copied().cycle().take(IDS.len() * repeat).collect()
}

#[test]
fn a_model_with_a_merged_adapter_reads_back_as_itself() {
    let mut wrong = Vec::new();
    for (case, note) in CASES {
        let source = folder(case, |_| {});
        let model = open(source.path(), Some(&random()));
        let path = source.path().join("out.gguf");
        let notes = model.export(&path, GgufType::F32).unwrap_or_else(|e| panic!("{case}: {e}"));
        let told = notes.join(" ");
        if told.is_empty() != note.is_empty() || !told.contains(note) {
            wrong.push(format!("{case}: said {notes:?}, not `{note}`"));
        }
        let error = worst(&model.logits(&IDS), &open(&path, None).logits(&IDS));
        if error.is_nan() || error > 5e-5 {
            wrong.push(format!("{case}: logits differ by {error:e}"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn tensors_are_those_of_llama_cpps_layout() {
    let mut seen = 0;
    for (case, _) in CASES {
        let theirs = goldens().join("families").join(case).join("model.gguf");
        if !theirs.is_file() {
            continue;
        }
        seen += 1;
        let source = folder(case, |_| {});
        let path = source.path().join("out.gguf");
        open(source.path(), None).export(&path, GgufType::F32).unwrap();
        let (ours, theirs) = (GgufFile::open(&path).unwrap(), GgufFile::open(&theirs).unwrap());
        // Biases that `folder` left out.
        let compared = |name: &str| BIASED.contains(case) || !name.ends_with(".bias");
        for tensor in theirs.tensors.iter().filter(|t| compared(&t.name)) {
            let same = ours
                .tensors
                .iter()
                .find(|t| t.name == tensor.name)
                .unwrap_or_else(|| panic!("{case}: {}", tensor.name));
            assert_eq!(same.shape, tensor.shape, "{case}: {}", tensor.name);
            let (a, b) = (ours.read(same).unwrap().to_f64(), theirs.read(tensor).unwrap().to_f64());
            assert!(worst(&a, &b) < 1e-6, "{case}: {}", tensor.name);
        }
        let count = theirs.tensors.iter().filter(|t| compared(&t.name)).count();
        assert_eq!(ours.tensors.len(), count, "{case}");
        for (key, value) in &theirs.metadata {
            // The golden's name, and the pre-tokenizer's other keys, are its own.
            if key.starts_with("general.") || key.ends_with("attn_factor") {
                continue;
            }
            assert_eq!(ours.metadata.get(key), Some(value), "{case}: {key}");
        }
    }
    assert!(seen >= 5, "{seen} GGUF files");
}

#[test]
fn what_llama_cpp_could_not_compute_is_refused_by_name() {
    let refused = [
        ("gemma2", "scale of attention scores", json!({"query_pre_attn_scalar": 5})),
        ("gemma", "no head apart", json!({"tie_word_embeddings": false})),
        ("smollm3", "rotary embedding of layer", json!({"no_rope_layers": [0, 1, 1]})),
    ];
    for (case, what, change) in refused {
        let source = folder(case, |config| {
            for (key, value) in change.as_object().unwrap() {
                config[key] = value.clone();
            }
        });
        // What changes the configuration only is enough: nothing is read before it is refused.
        let files = ModelFiles::open_without_weights(source.path()).unwrap();
        let mut params = Params::new();
        let decoder =
            load::random_decoder(&files, 1, Dtypes::both(DType::F32), &mut params, &Trained::Nothing)
                .unwrap();
        let path = source.path().join("out.gguf");
        let tokenizer = files.tokenizer().unwrap();
        let error = model_to_gguf(&path, &files, &decoder, &params, None, &tokenizer, "x", GgufType::F32);
        let error = error.unwrap_err().to_string();
        assert!(error.contains(what), "{case}: {error}");
        assert!(!path.exists(), "{case}");
    }
}

#[test]
fn other_types_round_once_and_dequantise_to_what_was_written() {
    let source = folder("llama3", |_| {});
    let model = open(source.path(), Some(&random()));
    let mut sizes = Vec::new();
    let exact = source.path().join("f32.gguf");
    model.export(&exact, GgufType::F32).unwrap();
    let exact = GgufFile::open(&exact).unwrap();
    for kind in [GgufType::F16, GgufType::Bf16, GgufType::Q8_0, GgufType::Q4_0] {
        let path = source.path().join(format!("{kind:?}.gguf"));
        model.export(&path, kind).unwrap();
        sizes.push(std::fs::metadata(&path).unwrap().len());
        let file = GgufFile::open(&path).unwrap();
        for tensor in &file.tensors {
            let of = exact.tensors.iter().find(|t| t.name == tensor.name).unwrap();
            let values = exact.read(of).unwrap().to_f32();
            let bytes = files::encode(&values, tensor.dtype).unwrap();
            assert_eq!(file.read(tensor).unwrap().bytes, bytes.as_slice(), "{kind:?} {}", tensor.name);
            if tensor.shape.len() == 1 {
                assert_eq!(tensor.dtype, FileDType::F32, "{}", tensor.name);
            }
        }
    }
    assert!(sizes[0] == sizes[1], "{sizes:?}");
}

/// `goldens/quantise.py` writes rows of numbers and what gguf-py makes of them.
#[test]
fn blocks_are_bit_for_bit_those_of_gguf_py() {
    let bytes = std::fs::read(goldens().join("quantise.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let raw = golden.tensor("values").unwrap();
    let values: Vec<f32> =
        raw.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert!(values.len() >= 4096);
    for (name, dtype) in [("q8_0", FileDType::Q8_0), ("q4_0", FileDType::Q4_0), ("bf16", FileDType::BF16)] {
        let theirs = golden.tensor(name).unwrap().data();
        let ours = files::encode(&values, dtype).unwrap();
        assert_eq!(ours.len(), theirs.len(), "{name}");
        let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
        assert_eq!(at, None, "{name}: the first byte that differs");
        let raw = RawTensor { dtype, shape: vec![values.len()], bytes: ours.into() };
        let theirs: Vec<f64> = golden
            .tensor(&format!("{name}.values"))
            .unwrap()
            .data()
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect();
        assert_eq!(worst(&raw.to_f64(), &theirs), 0.0, "{name}");
    }
    assert_eq!(files::encode(&values[..33], FileDType::Q8_0), None);
}

#[test]
fn adapters_are_written_beside_their_model() {
    let source = folder("llama3", |_| {});
    let model = open(source.path(), Some(&random()));
    let attached = model.attached.as_ref().unwrap();
    let path = source.path().join("lora.gguf");
    adapter_to_gguf(&path, &model.files, &model.decoder, &model.params, attached, "a", GgufType::F32)
        .unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.metadata["general.type"].as_str(), Some("adapter"));
    assert_eq!(file.metadata["adapter.lora.alpha"].as_f64(), Some(3.0));
    assert_eq!(file.tensors.len(), 2 * attached.modules);
    let error = ModelFiles::open(&path).unwrap_err().to_string();
    assert!(error.contains("holds an adapter"), "{error}");
    // What is more than A and B has no place there.
    let dora = open(source.path(), Some(&AdapterSpec { use_dora: true, ..random() }));
    let attached = dora.attached.as_ref().unwrap();
    let error =
        adapter_to_gguf(&path, &dora.files, &dora.decoder, &dora.params, attached, "a", GgufType::F32);
    assert!(error.unwrap_err().to_string().contains("DoRA"));
}

#[test]
fn the_real_tools_read_what_we_write() {
    let Ok(python) = std::env::var("LORATUNE_GGUF_PYTHON") else {
        eprintln!("skipped: LORATUNE_GGUF_PYTHON is not set (a Python with gguf and llama-cpp-python)");
        return;
    };
    let (mut runs, mut ours, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    for (case, _) in CASES {
        let source = folder(case, |_| {});
        let model = open(source.path(), Some(&random()));
        let path = source.path().join("model.gguf");
        model.export(&path, GgufType::F32).unwrap();
        let ids = ids_for_llama_cpp(case);
        runs.push(json!({"case": case, "model": path, "lora": null, "ids": ids}));
        ours.push(model.logits(&ids));
        // The adapter on the plain model must answer as the merged one.
        let plain = source.path().join("plain.gguf");
        open(source.path(), None).export(&plain, GgufType::F32).unwrap();
        let lora = source.path().join("lora.gguf");
        let attached = model.attached.as_ref().unwrap();
        adapter_to_gguf(&lora, &model.files, &model.decoder, &model.params, attached, "a", GgufType::F32)
            .unwrap();
        runs.push(json!({"case": format!("{case}, adapter"), "model": plain, "lora": lora, "ids": ids}));
        ours.push(model.logits(&ids));
        folders.push(source);
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/llama_cpp_reads_ours.py");
    let request = folders[0].path().join("request.json");
    std::fs::write(&request, Value::Array(runs.clone()).to_string()).unwrap();
    let output = std::process::Command::new(python).arg(script).arg(&request).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let answers: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(answers.len(), ours.len());
    let mut compared = 0;
    let mut wrong = Vec::new();
    for ((run, answer), ours) in runs.iter().zip(&answers).zip(&ours) {
        let Some(theirs) = answer["logits"].as_array() else { continue };
        compared += 1;
        let theirs: Vec<f64> = theirs.iter().map(|x| x.as_f64().unwrap_or(f64::NAN)).collect();
        let error = worst(ours, &theirs);
        eprintln!("{}: llama.cpp's logits differ by {error:.1e}", run["case"]);
        // llama.cpp looks GELU up in a table of f16.
        let most = if run["case"].to_string().contains("gemma") { 5e-3 } else { 5e-5 };
        if error.is_nan() || error > most {
            wrong.push(format!("{}: llama.cpp's logits differ by {error:e}", run["case"]));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    eprintln!("{} files read by gguf-py, {compared} run by llama.cpp", answers.len());
}
