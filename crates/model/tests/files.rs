//! Files of transformers, PEFT and gguf-py read whole, and ours written: against the goldens of
//! `goldens/files/generate.py`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::bf16;
use loratune_model::files::gguf::GgufFile;
use loratune_model::files::peft::{AdapterConfig, InitLoraWeights, ModuleNames, read_adapter, write_adapter};
use loratune_model::files::{
    Error, FileDType, ModelFiles, SafetensorsSource, TensorPlan, TensorSource, write_model, write_safetensors,
};
use serde_json::{Value, json};

fn goldens() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/files")
}

/// The n-th tensor by name of the generator's model.
fn filled(n: usize, len: usize) -> Vec<f32> {
    (0..len).map(|i| (((7 * i + n) % 251) as f32 - 125.0) / 64.0).collect()
}

fn check_filled(tensors: &dyn TensorSource, expected: usize) {
    let names = tensors.names();
    assert_eq!(names.len(), expected);
    for (n, name) in names.into_iter().enumerate() {
        let raw = tensors.read(name).unwrap();
        let info = tensors.info(name).unwrap();
        assert_eq!((info.shape, info.dtype), (raw.shape.clone(), raw.dtype));
        assert_eq!(raw.to_f32(), filled(n, raw.len()), "{name}");
    }
}

#[test]
fn sharded_folder_of_transformers_is_read_whole() {
    let model = ModelFiles::open(&goldens().join("llama")).unwrap();
    check_filled(model.tensors.as_ref(), 29);
    let (c, s) = (&model.config, &model.config.spec);
    assert_eq!((s.vocab_size, s.hidden_size, s.intermediate_size, s.num_layers()), (420, 32, 48, 2));
    assert_eq!((s.num_heads, s.num_kv_heads, s.head_dim), (4, 2, 8));
    assert_eq!((s.norm.eps, s.ropes[0].theta, s.max_positions), (1e-6, 10000.0, 256));
    assert_eq!(
        (s.tied_head, s.attention.qkv_bias, s.attention.output_bias, s.mlp_bias),
        (false, true, true, false)
    );
    assert_eq!((c.bos_token_ids.as_slice(), c.eos_token_ids.as_slice()), ([1].as_slice(), [2].as_slice()));
    assert_eq!((c.pad_token_id, c.dtype, s.initializer_range), (None, Some(FileDType::F32), 0.02));
    assert_eq!(model.raw_config["transformers_version"], json!("5.23.0"));
    assert_eq!(model.generation_config.as_ref().unwrap()["eos_token_id"], json!(2));
    assert_eq!(model.tokenizer().unwrap().eos.unwrap().content, "<|im_end|>");
    let missing = model.tensors.read("model.layers.0.self_attn.q_proj.weigth").unwrap_err().to_string();
    assert!(missing.contains("near it: `model.layers.0.self_attn.q_proj.weight`"), "{missing}");
}

#[test]
fn gguf_file_gives_the_same_model_with_q_and_k_put_back() {
    let (gguf, folder) = (goldens().join("llama.gguf"), goldens().join("llama"));
    let (model, hf) = (ModelFiles::open(&gguf).unwrap(), ModelFiles::open(&folder).unwrap());
    check_filled(model.tensors.as_ref(), 29);
    assert_eq!(model.config, hf.config);
    let tokenizer = model.tokenizer().unwrap();
    assert_eq!(tokenizer.chat_template.as_deref(), Some("{{ messages }}"));
    let ids = |files: &ModelFiles| files.tokenizer().unwrap().encode("clips 12 <|im_end|>\n", false).unwrap();
    assert_eq!(ids(&model), ids(&hf));
    // A folder with this one file is as good as its path.
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(&gguf, dir.path().join("model.gguf")).unwrap();
    assert_eq!(ModelFiles::open(dir.path()).unwrap().config, hf.config);
}

#[test]
fn every_block_format_dequantises_exactly_as_gguf_py() {
    let gguf = GgufFile::open(&goldens().join("quants.gguf")).unwrap();
    let expected = SafetensorsSource::open_file(&goldens().join("quants.safetensors")).unwrap();
    assert_eq!(gguf.tensors.len(), 12);
    for tensor in &gguf.tensors {
        assert_eq!(tensor.name, tensor.dtype.name());
        let raw = gguf.read(tensor).unwrap();
        let expected = expected.read(&tensor.name).unwrap();
        assert_eq!(raw.shape, expected.shape);
        let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
        assert_eq!(bits(raw.to_f32()), bits(expected.to_f32()), "{}", tensor.name);
        let wide: Vec<f64> = raw.to_f32().into_iter().map(f64::from).collect();
        assert_eq!(raw.to_f64(), wide);
        let narrow: Vec<bf16> = raw.to_f32().into_iter().map(bf16::from_f32).collect();
        assert_eq!(raw.to_bf16(), narrow);
    }
}

#[test]
fn adapter_of_peft_is_read_whole() {
    let (config, tensors) = read_adapter(&goldens().join("adapter")).unwrap();
    assert_eq!((config.r, config.lora_alpha, config.lora_dropout), (2, 4.0, 0.1));
    let mut targets = match config.target_modules.clone().unwrap() {
        ModuleNames::List(list) => list,
        ModuleNames::Pattern(pattern) => panic!("{pattern}"),
    };
    targets.sort();
    assert_eq!(targets, ["q_proj", "v_proj"]);
    assert_eq!(config.rank_pattern, BTreeMap::from([("v_proj".to_owned(), 3)]));
    assert_eq!(config.alpha_pattern, BTreeMap::from([("v_proj".to_owned(), 7.5)]));
    assert_eq!(
        (config.layers_to_transform.clone(), config.layers_pattern.clone()),
        (Some(vec![1]), Some(vec!["layers".into()]))
    );
    assert_eq!(config.init_lora_weights, InitLoraWeights::Flag(true));
    assert_eq!(
        (config.base_model_name_or_path.clone(), config.task_type.as_deref()),
        (None, Some("CAUSAL_LM"))
    );
    assert!(config.inference_mode && !config.use_rslora && !config.use_dora);
    assert_eq!(config.extra["peft_version"], json!("0.21.2"));
    let shapes: Vec<_> = tensors.iter().map(|(n, t)| (n.as_str(), t.shape.clone())).collect();
    let prefix = "base_model.model.model.layers.1.self_attn";
    let name = |end: &str| format!("{prefix}.{end}.weight");
    let names = [name("q_proj.lora_A"), name("q_proj.lora_B"), name("v_proj.lora_A"), name("v_proj.lora_B")];
    let expected = [vec![2, 32], vec![32, 2], vec![3, 32], vec![16, 3]];
    assert_eq!(shapes, names.iter().map(String::as_str).zip(expected).collect::<Vec<_>>());
    assert!(tensors.values().all(|t| t.dtype == FileDType::F32 && t.to_f32().iter().all(|x| x.is_finite())));
}

#[test]
fn adapter_written_again_has_the_bytes_and_the_classic_fields_of_peft() {
    let (config, tensors) = read_adapter(&goldens().join("adapter")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let views: Vec<_> = tensors
        .iter()
        .rev()
        .map(|(n, t)| (n.as_str(), t.dtype, t.shape.as_slice(), t.bytes.as_ref()))
        .collect();
    write_adapter(dir.path(), &config, &views).unwrap();
    let read = |folder: &Path, name: &str| std::fs::read(folder.join(name)).unwrap();
    let name = "adapter_model.safetensors";
    assert_eq!(read(dir.path(), name), read(&goldens().join("adapter"), name));
    let parse = |bytes: Vec<u8>| serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes).unwrap();
    let ours = read(dir.path(), "adapter_config.json");
    let peft = parse(read(&goldens().join("adapter"), "adapter_config.json"));
    let text = String::from_utf8(ours.clone()).unwrap();
    let ours = parse(ours);
    assert!(
        ours.keys().is_sorted()
            && text.starts_with("{\n  \"alpha_pattern\"")
            && text.contains("\"lora_alpha\": 4,")
    );
    for (key, value) in &ours {
        // PEFT keeps one index and one pattern as they were given.
        let listed = |v: &Value| if v.is_array() || v.is_null() { v.clone() } else { json!([v]) };
        let same =
            if key.starts_with("layers_") { *value == listed(&peft[key]) } else { *value == peft[key] };
        assert!(same, "{key}: {value} against {}", peft[key]);
    }
    let (again, _) = read_adapter(dir.path()).unwrap();
    assert_eq!(
        AdapterConfig { extra: Default::default(), ..again },
        AdapterConfig { extra: Default::default(), ..config }
    );
    python(
        "
import sys
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM
c = LoraConfig.from_pretrained(sys.argv[1])
assert c.r == 2 and c.rank_pattern == {'v_proj': 3} and c.inference_mode
m = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(sys.argv[2]), sys.argv[1])
n = sum(p.numel() for k, p in m.named_parameters() if 'lora_' in k)
assert n == 2 * 64 + 3 * 48, n
",
        &[dir.path(), &goldens().join("llama")],
    );
}

#[test]
fn written_safetensors_equal_the_library_s_bytes_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let data: Vec<u8> = (0..96).collect();
    let tensors = [
        ("b.weight", FileDType::BF16, vec![3usize, 5], &data[..30]),
        ("a.weight", FileDType::F32, vec![2, 3], &data[..24]),
        ("z", FileDType::F64, vec![1], &data[..8]),
        ("empty", FileDType::F32, vec![0, 4], &data[..0]),
        ("é \"quoted\"", FileDType::F16, vec![7], &data[..14]),
        ("scalar", FileDType::F32, vec![], &data[4..8]),
    ];
    let views: Vec<_> = tensors.iter().map(|(n, d, s, b)| (*n, *d, s.as_slice(), *b)).collect();
    let path = dir.path().join("a.safetensors");
    write_safetensors(&path, &views).unwrap();
    let first = std::fs::read(&path).unwrap();
    let library_dtype = |d| match d {
        FileDType::F64 => safetensors::Dtype::F64,
        FileDType::F32 => safetensors::Dtype::F32,
        FileDType::F16 => safetensors::Dtype::F16,
        _ => safetensors::Dtype::BF16,
    };
    let library = tensors.iter().map(|(n, d, s, b)| {
        (*n, safetensors::tensor::TensorView::new(library_dtype(*d), s.clone(), b).unwrap())
    });
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    assert_eq!(first, safetensors::serialize(library, Some(metadata)).unwrap());
    let reversed: Vec<_> = views.iter().rev().copied().collect();
    write_safetensors(&path, &reversed).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), first);
    let source = SafetensorsSource::open_file(&path).unwrap();
    for (name, dtype, shape, bytes) in &tensors {
        let raw = source.read(name).unwrap();
        assert_eq!((raw.dtype, &raw.shape, raw.bytes.as_ref()), (*dtype, shape, *bytes));
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn what_cannot_be_written_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let bytes = [0u8; 18];
    for (tensors, expected) in [
        (vec![("a", FileDType::F32, [4usize].as_slice(), &bytes[..8])], "need 16"),
        (vec![("a", FileDType::Q4_0, &[32], &bytes[..])], "Q4_0"),
        (vec![("a", FileDType::F32, &[usize::MAX, 3], &bytes[..])], "cannot be written"),
        (vec![("a", FileDType::F32, &[1], &bytes[..4]), ("a", FileDType::F32, &[1], &bytes[..4])], "twice"),
    ] {
        let message = write_safetensors(&path, &tensors).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("a.safetensors"), "{message}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_model_is_written_in_shards_that_read_back_and_that_transformers_reads() {
    let hf = ModelFiles::open(&goldens().join("llama")).unwrap();
    let plan: Vec<TensorPlan> = hf
        .tensors
        .names()
        .into_iter()
        .map(|name| TensorPlan {
            name: name.to_owned(),
            dtype: FileDType::BF16,
            shape: hf.tensors.info(name).unwrap().shape,
        })
        .collect();
    let provide = |t: &TensorPlan| -> Result<Vec<u8>, Error> {
        Ok(hf.tensors.read(&t.name)?.to_bf16().into_iter().flat_map(|x| x.to_le_bytes()).collect())
    };
    let dir = tempfile::tempdir().unwrap();
    for (limit, files) in [(30_000, 5), (u64::MAX, 1)] {
        let folder = dir.path().join(limit.to_string());
        std::fs::create_dir(&folder).unwrap();
        let written = write_model(&folder, &plan, limit, provide).unwrap();
        assert_eq!(written.len(), files, "{written:?}");
        std::fs::write(folder.join("config.json"), hf.raw_config.to_string()).unwrap();
        check_filled(ModelFiles::open(&folder).unwrap().tensors.as_ref(), 29);
        python(
            "
import sys, torch
from transformers import AutoModelForCausalLM
a, b = (AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32).state_dict() for p in sys.argv[1:3])
assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
",
            &[&folder, &goldens().join("llama")],
        );
    }
    // The provider's error comes out, and no file is left.
    let folder = dir.path().join("failed");
    std::fs::create_dir(&folder).unwrap();
    let fail = |_: &TensorPlan| -> Result<Vec<u8>, Error> {
        Err(Error::Damaged { path: "x".into(), detail: "on purpose".into() })
    };
    assert!(write_model(&folder, &plan, 30_000, fail).unwrap_err().to_string().contains("on purpose"));
    assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
}

/// Runs a script with the interpreter of LORATUNE_PYTHON; says so when there is none.
fn python(script: &str, arguments: &[&Path]) {
    let Some(python) = std::env::var_os("LORATUNE_PYTHON") else {
        eprintln!("skipped: set LORATUNE_PYTHON to check written files with transformers and peft");
        return;
    };
    let status = std::process::Command::new(python).arg("-c").arg(script).args(arguments).status().unwrap();
    assert!(status.success());
}
