//! Broken, lying and unsupported files: every one must be an error that names the file, and nothing may panic, hang or
//! allocate what a header claims.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use loratune_engine::{DType, Params};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::files::atomic::{replace_dir_atomically, sweep_unfinished, write_atomically};
use loratune_model::files::gguf::GgufFile;
use loratune_model::files::peft::{AdapterConfig, read_adapter};
use loratune_model::files::{Error, ModelConfig, ModelFiles, SafetensorsSource, TensorSource};
use loratune_model::load;
use serde_json::{Value, json};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/files")
}

/// A small deterministic generator (SplitMix64).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A safetensors file from a header's text.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(bytes.len() + data, 1);
    bytes
}

fn open_safetensors(dir: &Path, bytes: &[u8]) -> Result<SafetensorsSource, Error> {
    let path = dir.join("model.safetensors");
    fs::write(&path, bytes).unwrap();
    SafetensorsSource::open_file(&path)
}

#[test]
fn each_kind_of_lying_safetensors_header_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let entry = |dtype: &str, shape: &str, from: &str, to: &str| {
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{from},{to}]}}")
    };
    let one = |e: String| format!("{{\"a\":{e}}}");
    let two = |a: String, b: String| format!("{{\"a\":{a},\"b\":{b}}}");
    let good = one(entry("F32", "[2]", "0", "8"));
    assert!(open_safetensors(dir.path(), &safetensors(&good, 8)).is_ok());
    let mut gigantic = u64::MAX.to_le_bytes().to_vec();
    gigantic.extend_from_slice(b"{}");
    let mut beyond = 1000u64.to_le_bytes().to_vec();
    beyond.extend_from_slice(b"{}");
    let cases: Vec<(Vec<u8>, &str)> = vec![
        (vec![], "empty"),
        (vec![1, 2, 3], "at least 8 bytes"),
        (gigantic, "more than safetensors allows"),
        (beyond, "only 2 follow"),
        (safetensors("nonsense", 0), "header"),
        (safetensors("[1]", 0), "header"),
        (safetensors("{\"a\":{\"dtype\":\"F32\"}}", 0), "header"),
        (safetensors(&one(entry("F32", "[-2]", "0", "8")), 8), "header"),
        (safetensors(&good, 4), "tensor `a` lies at bytes 0..8 of 4"),
        (safetensors(&good, 12), "4 bytes follow"),
        (safetensors(&one(entry("F32", "[2]", "8", "0")), 8), "tensor `a` lies"),
        (safetensors(&one(entry("F32", "[2]", "0", "18446744073709551615")), 8), "tensor `a` lies"),
        (safetensors(&one(entry("F32", "[2]", "0", "99999999999999999999999")), 8), "header"),
        (safetensors(&one(entry("F32", "[3]", "0", "8")), 8), "takes 12 bytes"),
        (safetensors(&one(entry("BF16", "[2]", "0", "8")), 8), "takes 4 bytes"),
        (safetensors(&one(entry("F99", "[2]", "0", "8")), 8), "`F99`"),
        (safetensors(&one(entry("F32", "[4294967296,4294967296,4]", "0", "8")), 8), "make no size"),
        (
            safetensors(&two(entry("F32", "[2]", "0", "8"), entry("F32", "[2]", "4", "12")), 12),
            "tensor `b` overlaps",
        ),
        (
            safetensors(&two(entry("F32", "[2]", "0", "8"), entry("F32", "[1]", "12", "16")), 16),
            "tensor `b` comes after a hole",
        ),
        (safetensors(&one(entry("F32", "[1]", "4", "8")), 8), "tensor `a` comes after a hole"),
        (
            safetensors(&good.replace("}}", &format!("}},\"a\":{}}}", entry("F32", "[2]", "8", "16"))), 16),
            "`a` twice",
        ),
    ];
    for (bytes, expected) in cases {
        let message = open_safetensors(dir.path(), &bytes).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("model.safetensors"), "{expected}: {message}");
    }
    // Buffers of other types are no weights, but they don't spoil the file.
    let bytes = safetensors(&two(entry("F32", "[2]", "0", "8"), entry("I64", "[1]", "8", "16")), 16);
    let source = open_safetensors(dir.path(), &bytes).unwrap();
    assert_eq!(source.names(), ["a"]);
    assert!(source.read("b").unwrap_err().to_string().contains("I64"));
}

#[test]
fn safetensors_cut_or_flipped_anywhere_never_panics() {
    let good = fs::read(goldens().join("adapter/adapter_model.safetensors")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let header = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    for cut in (0..=header).chain([good.len() - 1]) {
        assert!(open_safetensors(dir.path(), &good[..cut]).is_err(), "cut at {cut}");
    }
    let mut rng = Rng(1);
    for _ in 0..3000 {
        let mut bytes = good.clone();
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(header);
            bytes[at] ^= 1 << rng.below(8);
        }
        if let Ok(source) = open_safetensors(dir.path(), &bytes) {
            for name in source.names() {
                let raw = source.read(name).unwrap();
                assert_eq!(raw.to_f32().len(), raw.len());
            }
        }
    }
}

#[test]
fn gguf_cut_or_flipped_anywhere_never_panics() {
    let good = fs::read(goldens().join("llama.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.gguf");
    let header = GgufFile::open(&goldens().join("llama.gguf")).unwrap();
    let data: usize = header.tensors.iter().map(|t| t.dtype.bytes_of(&t.shape).unwrap()).sum();
    let end = good.len() - data;
    for cut in (0..end.min(600)).chain((600..end).step_by(37)).chain([end, good.len() - 40]) {
        fs::write(&path, &good[..cut]).unwrap();
        let message = ModelFiles::open(&path).unwrap_err().to_string();
        assert!(message.contains("model.gguf"), "cut at {cut}: {message}");
    }
    let mut rng = Rng(2);
    for round in 0..400 {
        let mut bytes = good.clone();
        // The counts and keys at the front, or anything up to the data.
        let range = if round % 2 == 0 { 700 } else { end };
        for _ in 0..1 + rng.below(3) {
            let at = rng.below(range);
            bytes[at] ^= 1 << rng.below(8);
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(model) = ModelFiles::open(&path) {
            let _ = model.tokenizer();
            for name in model.tensors.names() {
                let raw = model.tensors.read(name).unwrap();
                assert_eq!(raw.to_f32().len(), raw.len());
            }
        }
    }
}

/// A GGUF file put together by hand.
#[derive(Default)]
struct Gguf(Vec<u8>);

impl Gguf {
    fn start(version: u32, tensors: u64, keys: u64) -> Self {
        Gguf(b"GGUF".to_vec()).u32(version).u64(tensors).u64(keys)
    }
    fn u32(mut self, n: u32) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn u64(mut self, n: u64) -> Self {
        self.0.extend(n.to_le_bytes());
        self
    }
    fn text(mut self, s: &str) -> Self {
        self = self.u64(s.len() as u64);
        self.0.extend(s.as_bytes());
        self
    }
    fn tensor(self, name: &str, dims: &[u64], kind: u32, offset: u64) -> Self {
        let mut out = self.text(name).u32(dims.len() as u32);
        for &d in dims {
            out = out.u64(d);
        }
        out.u32(kind).u64(offset)
    }
    fn data(mut self, n: usize) -> Self {
        let aligned = self.0.len().next_multiple_of(32);
        self.0.resize(aligned + n, 0);
        self
    }
}

#[test]
fn each_kind_of_lying_gguf_header_is_refused() {
    let nested = (0..40).fold(Gguf::start(3, 0, 1).text("k").u32(9), |g, _| g.u32(9).u64(1));
    let alignment = |n| Gguf::start(3, 0, 1).text("general.alignment").u32(4).u32(n).data(0);
    let cases = [
        (Gguf(b"GGML".to_vec()).u32(3), "not a GGUF file"),
        (Gguf::start(1, 0, 0), "version 1"),
        (Gguf::start(4, 0, 0), "version 4"),
        (Gguf::start(3u32.swap_bytes(), 0, 0), "big-endian"),
        (Gguf::start(3, 0, u64::MAX).data(64), "metadata entries"),
        (Gguf::start(3, u64::MAX, 0).data(64), "claims 18446744073709551615 tensors"),
        (Gguf::start(3, 0, 1).u64(u64::MAX).data(64), "bytes of a key"),
        (Gguf::start(3, 0, 1).text("k").u32(8).u64(1 << 60).data(64), "bytes of a string"),
        (Gguf::start(3, 0, 1).text("k").u32(99).data(64), "unknown type 99"),
        (Gguf::start(3, 0, 1).text("k").u32(9).u32(8).u64(1 << 61).data(64), "entries in an array"),
        (Gguf::start(3, 0, 1).text("k").u32(9).u32(6).u64(u64::MAX / 2).data(64), "numbers in an array"),
        (nested.data(64), "too deeply"),
        (Gguf::start(3, 0, 2).text("k").u32(4).u32(1).text("k").u32(4).u32(1).data(64), "`k` twice"),
        (alignment(0), "general.alignment"),
        (alignment(33), "general.alignment"),
        (Gguf::start(3, 0, 1).text("split.count").u32(4).u32(3).data(0), "one of 3 parts"),
        (Gguf::start(3, 1, 0).tensor("t", &[4, 4, 4, 4, 4], 0, 0).data(64), "5 dimensions"),
        (Gguf::start(3, 1, 0).tensor("t", &[0], 0, 0).data(64), "impossible dimension"),
        (Gguf::start(3, 1, 0).tensor("t", &[u64::MAX, u64::MAX], 0, 0).data(64), "impossible for F32"),
        (Gguf::start(3, 1, 0).tensor("t", &[33], 8, 0).data(64), "impossible for Q8_0"),
        (Gguf::start(3, 1, 0).tensor("t", &[256], 10, 0).data(256), "tensor `t` is stored as Q2_K"),
        (Gguf::start(3, 1, 0).tensor("t", &[256], 77, 0).data(256), "number 77"),
        (Gguf::start(3, 1, 0).tensor("t", &[4], 0, 5).data(64), "not a multiple"),
        (Gguf::start(3, 1, 0).tensor("t", &[400], 0, 0).data(64), "tensor `t` should lie"),
        (Gguf::start(3, 1, 0).tensor("t", &[4], 0, u64::MAX - 31).data(64), "tensor `t` should lie"),
        (Gguf::start(3, 2, 0).tensor("t", &[4], 0, 0).tensor("t", &[4], 0, 32).data(64), "twice"),
        (
            Gguf::start(3, 2, 0).tensor("t", &[16], 0, 0).tensor("u", &[4], 0, 32).data(64),
            "tensor `u` overlaps `t`",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.gguf");
    for (gguf, expected) in cases {
        fs::write(&path, &gguf.0).unwrap();
        let message = GgufFile::open(&path).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("x.gguf"), "{expected}: {message}");
    }
    fs::write(&path, Gguf::start(2, 1, 0).tensor("t", &[4], 0, 32).data(64).0).unwrap();
    assert_eq!(GgufFile::open(&path).unwrap().tensors[0].shape, [4]);
    let architecture = Gguf::start(3, 0, 1).text("general.architecture").u32(8).text("mamba").data(0);
    fs::write(&path, architecture.0).unwrap();
    assert!(ModelFiles::open(&path).unwrap_err().to_string().contains("`mamba`"));
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(goldens().join("llama")).unwrap().flatten() {
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let index_path = dir.path().join("model.safetensors.index.json");
    let index: Value = serde_json::from_slice(&fs::read(&index_path).unwrap()).unwrap();
    let refuse = |text: String, expected: &str| {
        fs::write(&index_path, text).unwrap();
        let message = ModelFiles::open(dir.path()).unwrap_err().to_string();
        assert!(message.contains(expected), "{expected}: {message}");
    };
    let change = |name: &str, shard: Value| {
        let mut index = index.clone();
        index["weight_map"][name] = shard;
        index.to_string()
    };
    refuse(
        change("not.there", json!("model-00001-of-00003.safetensors")),
        "tensor `not.there` should be in model-00001",
    );
    refuse(
        change("x", json!("model-00004-of-00003.safetensors")),
        "the shard model-00004-of-00003.safetensors",
    );
    refuse(change("x", json!("../secret.safetensors")), "not a plain file name");
    refuse(change("x", json!("/etc/passwd")), "not a plain file name");
    refuse(change("x", json!(3)), "not an index");
    refuse("{}".into(), "not an index");
    refuse("{\"weight_map\": {\"a\": \"b\", \"a\": \"c\"}}".into(), "`a` twice");
    fs::write(&index_path, index.to_string()).unwrap();
    assert!(ModelFiles::open(dir.path()).is_ok());
    let shard = dir.path().join("model-00002-of-00003.safetensors");
    let bytes = fs::read(&shard).unwrap();
    fs::write(&shard, &bytes[..bytes.len() / 2]).unwrap();
    assert!(
        ModelFiles::open(dir.path()).unwrap_err().to_string().contains("model-00002-of-00003.safetensors")
    );
}

fn config(change: impl FnOnce(&mut serde_json::Map<String, Value>)) -> Result<ModelConfig, Error> {
    let text = fs::read(goldens().join("llama/config.json")).unwrap();
    let mut value: Value = serde_json::from_slice(&text).unwrap();
    change(value.as_object_mut().unwrap());
    ModelConfig::from_value(&value, Path::new("some/config.json"))
}

#[test]
fn configuration_fields_that_cannot_be_obeyed_are_refused_by_name() {
    let cases: Vec<(&str, Value)> = vec![
        ("architectures", json!(["MambaForCausalLM"])),
        ("model_type", json!("qwen2")),
        ("hidden_act", json!("relu")),
        ("rope_scaling", json!({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1.0})),
        ("quantization_config", json!({"bits": 4})),
        ("rope_parameters", json!({"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0})),
        ("rope_parameters", json!({"rope_type": "default", "rope_theta": -1})),
        ("rope_scaling", json!({"type": "linear"})),
        ("rope_scaling", json!({"type": "exotic", "factor": 2.0})),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0, "more": 1})),
        ("rope_scaling", json!({"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]})),
        ("layer_types", json!(["full_attention"])),
        ("layer_types", json!(["sliding_attention", "sliding_attention"])),
        ("partial_rotary_factor", json!(0.3)),
        ("sliding_window", json!(4096)),
        ("attention_dropout", json!(1.5)),
        ("attention_dropout", json!("some")),
        ("auto_map", json!({"AutoModelForCausalLM": "x.Y"})),
        ("residual_multiplier", json!(0.5)),
        ("vocab_size", json!(0)),
        ("vocab_size", json!(-5)),
        ("vocab_size", json!("many")),
        ("vocab_size", json!(1u64 << 40)),
        ("hidden_size", json!(32.5)),
        ("num_attention_heads", json!(3)),
        ("num_key_value_heads", json!(0)),
        ("head_dim", json!(7)),
        ("rms_norm_eps", json!(0)),
        ("eos_token_id", json!([2, "x"])),
        ("tie_word_embeddings", json!("yes")),
        ("dtype", json!("float8_e4m3fn")),
    ];
    for (field, value) in cases {
        let message = config(|c| drop(c.insert(field.into(), value.clone()))).unwrap_err().to_string();
        assert!(
            message.contains(field) && message.contains("some/config.json"),
            "{field} = {value}: {message}"
        );
    }
    for field in
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        let message = config(|c| drop(c.remove(field))).unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}` is missing")), "{message}");
    }
    for field in
        ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"]
    {
        let message = config(|c| drop(c.insert(field.into(), json!(i32::MAX)))).unwrap_err().to_string();
        assert!(message.contains(&format!("`{field}` is 2147483647; it must be")), "{message}");
    }
    // Each size alone passes.
    let message = config(|c| {
        for (field, size) in [("num_attention_heads", 1 << 16), ("num_key_value_heads", 1 << 16)]
            .into_iter()
            .chain([("head_dim", 1 << 16), ("hidden_size", 1 << 20), ("num_hidden_layers", 10_000)])
        {
            c.insert(field.into(), json!(size));
        }
    });
    assert!(message.unwrap_err().to_string().contains("too large to count"));
}

#[test]
fn more_layers_than_tensors_are_refused_before_they_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama/tied-bf16");
    fs::copy(from.join("model.safetensors"), dir.path().join("model.safetensors")).unwrap();
    let mut value: Value = serde_json::from_slice(&fs::read(from.join("config.json")).unwrap()).unwrap();
    value["num_hidden_layers"] = json!(10_000);
    fs::write(dir.path().join("config.json"), value.to_string()).unwrap();
    let files = ModelFiles::open(dir.path()).unwrap();
    let dtypes = Dtypes::both(DType::F32);
    let built = load::decoder(&files, dtypes, &mut Params::new(), &Trained::Nothing).map(drop);
    let message = built.unwrap_err().to_string();
    assert!(message.contains("num_hidden_layers is 10000, but the weights are only"), "{message}");
}

#[test]
fn configurations_of_older_transformers_and_harmless_fields_are_read() {
    let c = config(|c| {
        c.remove("rope_parameters");
        c.remove("dtype");
        c.remove("head_dim");
        c.remove("num_key_value_heads");
        for (key, value) in [
            ("rope_theta", json!(500000.0)),
            ("rope_scaling", json!(null)),
            ("torch_dtype", json!("bfloat16")),
            ("bos_token_id", json!([3, 4])),
            ("pad_token_id", json!(-1)),
            ("_name_or_path", json!("x")),
            ("is_llama_config", json!(true)),
            ("rope_interleaved", json!(false)),
            ("unheard_of", json!(null)),
        ] {
            c.insert(key.into(), value);
        }
    })
    .unwrap();
    assert_eq!((c.spec.ropes[0].theta, c.spec.head_dim, c.spec.num_kv_heads), (500000.0, 8, 4));
    assert_eq!((c.bos_token_ids, c.pad_token_id), (vec![3, 4], None));
    assert_eq!(c.dtype, Some(loratune_model::files::FileDType::BF16));
    let c = config(|c| drop(c.remove("architectures"))).unwrap();
    assert_eq!(c.family.class, "LlamaForCausalLM");
}

#[test]
fn paths_that_are_no_models_say_what_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| ModelFiles::open(path).unwrap_err().to_string();
    fs::create_dir(dir.path().join("SmolLM2-135M")).unwrap();
    let near = message(&dir.path().join("SmolLM-135M"));
    assert!(near.contains("did you mean `SmolLM2-135M`?"), "{near}");
    let near = message(&dir.path().join("SmoLLM2-135M/deeper/still"));
    assert!(near.contains("did you mean `SmolLM2-135M`?"), "{near}");
    let folder = dir.path().join("SmolLM2-135M");
    assert!(message(&folder).contains("neither a config.json nor one .gguf"));
    fs::write(folder.join("adapter_config.json"), "{}").unwrap();
    assert!(message(&folder).contains("is an adapter"));
    fs::copy(goldens().join("llama/config.json"), folder.join("config.json")).unwrap();
    assert!(message(&folder).contains("no weights"));
    fs::write(folder.join("pytorch_model.bin"), "x").unwrap();
    let pickle = message(&folder);
    assert!(pickle.contains("pytorch_model.bin") && pickle.contains("convert it to safetensors"), "{pickle}");
    fs::write(folder.join("config.json"), "{\"a\": ").unwrap();
    assert!(message(&folder).contains("not valid JSON"));
    fs::remove_file(folder.join("config.json")).unwrap();
    for name in ["a.gguf", "b.GGUF"] {
        fs::write(folder.join(name), "x").unwrap();
    }
    assert!(message(&folder).contains("a.gguf, b.GGUF"));
    assert!(message(&folder.join("pytorch_model.bin")).contains("not a .gguf file"));
}

#[test]
fn adapters_that_cannot_be_obeyed_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let message = |path: &Path| read_adapter(path).unwrap_err().to_string();
    assert!(message(&dir.path().join("nowhere")).contains("does not exist"));
    assert!(message(dir.path()).contains("not an adapter"));
    assert!(message(&goldens().join("llama")).contains("is a model, not an adapter"));
    let config = fs::read(goldens().join("adapter/adapter_config.json")).unwrap();
    fs::write(dir.path().join("adapter_config.json"), &config).unwrap();
    assert!(message(dir.path()).contains("no adapter_model.safetensors"));
    fs::write(dir.path().join("adapter_model.bin"), "x").unwrap();
    assert!(message(dir.path()).contains("pickle"));
    let config: Value = serde_json::from_slice(&config).unwrap();
    for (field, value) in [
        ("peft_type", json!("IA3")),
        ("use_qalora", json!(true)),
        ("megatron_config", json!({"x": 1})),
        ("layer_replication", json!([[0, 2]])),
        ("lora_bias", json!(true)),
        ("trainable_token_indices", json!("5")),
        ("alora_invocation_tokens", json!([1])),
        ("target_parameters", json!(["x"])),
        ("bias", json!("some")),
        ("lora_dropout", json!(1.5)),
        ("rank_pattern", json!({"q_proj": 0})),
    ] {
        let mut changed = config.clone();
        changed[field] = value;
        let message =
            AdapterConfig::from_value(changed, Path::new("adapter_config.json")).unwrap_err().to_string();
        assert!(message.contains(field), "{field}: {message}");
    }
    let mut changed = config.clone();
    changed["ensure_weight_tying"] = json!(true);
    AdapterConfig::from_value(changed.clone(), Path::new("adapter_config.json")).unwrap();
    for (field, tables) in [
        ("target_modules", json!(["q_proj", "model.embed_tokens"])),
        ("target_modules", json!(r"(.*q_proj|lm_head)")),
        ("modules_to_save", json!(["lm_head"])),
    ] {
        let mut tied = changed.clone();
        tied[field] = tables;
        let message = AdapterConfig::from_value(tied, Path::new("a.json")).unwrap_err().to_string();
        assert!(message.contains("ensure_weight_tying"), "{message}");
    }
    changed["trainable_token_indices"] = json!({});
    let none = AdapterConfig::from_value(changed, Path::new("a.json")).unwrap();
    assert_eq!(none.trainable_token_indices, None);
    let mut changed = config.clone();
    for (field, value) in [
        ("target_modules", json!("all-linear")),
        ("init_lora_weights", json!("pissa")),
        ("lora_alpha", json!(2.5)),
        ("layers_to_transform", json!([0, 1])),
        ("rank_pattern", json!(null)),
        ("invented_later", json!({"x": 1})),
    ] {
        changed[field] = value;
    }
    let read = AdapterConfig::from_value(changed, Path::new("x")).unwrap();
    assert_eq!((read.lora_alpha, read.layers_to_transform), (2.5, Some(vec![0, 1])));
    assert!(read.extra.contains_key("invented_later"));
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    write_atomically(&path, |out| out.write_all(b"old")).unwrap();
    let full = || std::io::Error::from(std::io::ErrorKind::StorageFull);
    let message = write_atomically(&path, |out| {
        out.write_all(&[0; 100_000])?;
        Err(full())
    });
    let message = message.unwrap_err().to_string();
    assert!(message.contains("file") && message.contains("free some space"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    let nowhere = write_atomically(&dir.path().join("no/such/file"), |_| Ok(())).unwrap_err();
    assert!(nowhere.to_string().contains("no/such/file"));
}

/// /dev/full refuses every write with ENOSPC, as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_reported_and_leaves_the_old_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    fs::write(&path, b"old").unwrap();
    std::os::unix::fs::symlink("/dev/full", dir.path().join(".model.safetensors.loratune-tmp")).unwrap();
    let zeros = [0u8; 400];
    let tensors = [("a", loratune_model::files::FileDType::F32, [100usize].as_slice(), zeros.as_slice())];
    let message = loratune_model::files::write_safetensors(&path, &tensors).unwrap_err().to_string();
    assert!(message.contains("model.safetensors") && message.contains("No space left"), "{message}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_is_replaced_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("checkpoint-1");
    let fill = |text: &'static str| {
        move |new: &Path| -> Result<(), Error> {
            fs::create_dir(new.join("sub")).unwrap();
            fs::write(new.join("sub/file"), text).unwrap();
            Ok(())
        }
    };
    let content = || fs::read_to_string(target.join("sub/file")).unwrap();
    replace_dir_atomically(&target, fill("one")).unwrap();
    assert_eq!(content(), "one");
    replace_dir_atomically(&target, fill("two")).unwrap();
    assert_eq!(content(), "two");
    let failed = replace_dir_atomically(&target, |new: &Path| -> Result<(), Error> {
        fs::write(new.join("half"), "x").unwrap();
        Err(Error::NotFound { path: "x".into(), suggestion: String::new() })
    });
    assert!(failed.is_err());
    assert_eq!(content(), "two");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    // Killed between the two renames: the old folder is aside and nothing in its place.
    fs::rename(&target, dir.path().join(".checkpoint-1.loratune-old")).unwrap();
    fs::create_dir(dir.path().join(".checkpoint-2.loratune-tmp")).unwrap();
    assert_eq!(sweep_unfinished(dir.path()).unwrap().len(), 2);
    assert_eq!(content(), "two");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}
