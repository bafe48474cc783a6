//! Weights that are not what the configuration says: heads under either name or of their own, tensors too many or too few,
//! and of other shapes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use loratune_engine::{DType, Params};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::files::ModelFiles;
use loratune_model::{Batch, load};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Shape and bytes of f32 tensors by name.
type Tensors = BTreeMap<String, (Vec<usize>, Vec<u8>)>;

fn golden(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/families").join(case)
}

/// The case's folder with other weights, and with this field of the configuration.
fn changed(case: &str, change: impl FnOnce(&mut Tensors), field: (&str, Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let file = std::fs::read(golden(case).join("model.safetensors")).unwrap();
    let mut tensors: Tensors = SafeTensors::deserialize(&file)
        .unwrap()
        .tensors()
        .into_iter()
        .map(|(name, t)| (name, (t.shape().to_vec(), t.data().to_vec())))
        .collect();
    change(&mut tensors);
    let views = tensors.iter().map(|(name, (shape, bytes))| {
        (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    std::fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap())
        .unwrap();
    let config = std::fs::read(golden(case).join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    config[field.0] = field.1;
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

fn tied(on: bool) -> (&'static str, Value) {
    ("tie_word_embeddings", on.into())
}

/// Whether head and embedding are one, and the logits.
fn logits(folder: &Path) -> Result<(bool, Vec<f64>), String> {
    let files = ModelFiles::open(folder).map_err(|e| e.to_string())?;
    let (mut params, both) = (Params::new(), Dtypes::both(DType::F32));
    let decoder = load::decoder(&files, both, &mut params, &Trained::Nothing).map_err(|e| e.to_string())?;
    let document = Batch::from_ids([[5u32, 9, 4, 7].as_slice()]);
    Ok((decoder.spec().tied_head, decoder.logits(&params, &document).unwrap().to_f64_vec()))
}

/// A head like the embedding, with its numbers changed.
fn add_head(tensors: &mut Tensors, change: impl Fn(f32) -> f32) {
    let (shape, bytes) = tensors[EMBEDDING].clone();
    let number = |b: &[u8]| change(f32::from_le_bytes(b.try_into().unwrap())).to_le_bytes();
    tensors.insert(HEAD.into(), (shape, bytes.chunks_exact(4).flat_map(number).collect()));
}

#[test]
fn a_head_of_its_own_in_the_weights_is_not_left_out_for_what_the_configuration_says() {
    let other = |tensors: &mut Tensors| add_head(tensors, |x| 1.5 * x + 0.01);
    assert!(logits(&golden("qwen2")).unwrap().0);
    // transformers 5 warns and does not tie them; models whose tied head was merged with an adapter are such.
    let said = changed("qwen2", other, tied(true));
    let stored = logits(changed("qwen2", other, tied(false)).path()).unwrap();
    assert_eq!(logits(said.path()).unwrap(), stored);
    assert!(!stored.0);
    // What is written of it says so.
    assert_eq!(ModelFiles::open(said.path()).unwrap().raw_config["tie_word_embeddings"], false);
    // The same matrix twice is one.
    let same = logits(changed("qwen2", |t| add_head(t, |x| x), tied(true)).path()).unwrap();
    assert_eq!(same, logits(&golden("qwen2")).unwrap());
    assert!(same.0 && same != stored);
}

#[test]
fn a_tied_model_whose_file_has_only_the_head_is_the_same_model() {
    let rename = |tensors: &mut Tensors| {
        let table = tensors.remove(EMBEDDING).unwrap();
        tensors.insert(HEAD.into(), table);
    };
    for case in ["qwen2", "gemma2", "phi4-mini"] {
        let dir = changed(case, rename, tied(true));
        let files = ModelFiles::open(dir.path()).unwrap();
        assert!(files.tensors.names().contains(&EMBEDDING) && files.tensors.names().is_sorted(), "{case}");
        assert!(files.tensors.info(HEAD).is_none() && files.tensors.read(HEAD).is_err(), "{case}");
        assert_eq!(logits(dir.path()), logits(&golden(case)), "{case}");
        // All that is written of it has the one matrix under the embedding's name.
        let out = tempfile::tempdir().unwrap();
        load::write_model(out.path(), &files, load::file_dtype(&files), false, |name| {
            load::read_f32(&files, name)
        })
        .unwrap();
        assert!(ModelFiles::open(out.path()).unwrap().tensors.info(HEAD).is_none());
        assert_eq!(logits(out.path()), logits(&golden(case)), "{case}");
    }
    // Two matrices of which one is missing stay an error.
    let error = logits(changed("qwen2", rename, tied(false)).path()).unwrap_err();
    assert!(error.contains(EMBEDDING) && error.contains("is missing"), "{error}");
}

#[test]
fn tensors_that_the_model_does_not_have_are_refused_by_name() {
    let with = |case: &str, name: &str, shape: &[usize]| {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        let add = |t: &mut Tensors| drop(t.insert(name.into(), (shape.to_vec(), bytes)));
        logits(changed(case, add, ("transformers_version", "5.0".into())).path())
    };
    for (case, name, shape) in [
        ("llama3", "model.layers.0.self_attn.q_proj.bias", [32].as_slice()),
        ("llama3", "model.layers.0.self_attn.q_norm.weight", &[16]),
        ("mistral-nemo", "lm_head.bias", &[48]),
        ("gemma", "model.layers.1.post_feedforward_layernorm.weight", &[16]),
        ("qwen3", "model.layers.2.input_layernorm.weight", &[16]),
        ("phi3", "model.layers.0.self_attn.q_proj.weight", &[16, 16]),
        ("granite", "model.layers.0.block_sparse_moe.router.layer.weight", &[8, 16]),
        ("smollm3", "model.vision_tower.weight", &[1]),
    ] {
        let error = with(case, name, shape).unwrap_err();
        assert!(error.contains(name) && error.contains("would change the model"), "{case}: {error}");
    }
    // Frequencies, which old files hold, are computed.
    let inverse = with("mistral-nemo", "model.layers.0.self_attn.rotary_emb.inv_freq", &[3]);
    assert_eq!(inverse, logits(&golden("mistral-nemo")));
}

#[test]
fn weights_of_the_bare_model_are_refused_with_the_missing_prefix() {
    let bare = |t: &mut Tensors| {
        *t = std::mem::take(t).into_iter().map(|(n, x)| (n.replacen("model.", "", 1), x)).collect();
    };
    for (case, remedy) in [("qwen3", "lm_head.weight"), ("granite", "AutoModelForCausalLM")] {
        let tied = ("tie_word_embeddings", (case == "granite").into());
        let error = logits(changed(case, bare, tied).path()).unwrap_err();
        assert!(error.contains("lacks the prefix `model.`") && error.contains(remedy), "{case}: {error}");
    }
}

#[test]
fn granite_is_read_with_the_attention_dropout_of_its_own_configuration() {
    let dropping = changed("granite", |_| {}, ("attention_dropout", 0.1.into()));
    assert_eq!(logits(dropping.path()), logits(&golden("granite")));
    let files = ModelFiles::open(dropping.path()).unwrap();
    assert_eq!(files.config.attention_dropout, 0.1);
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    let version = || ("transformers_version", Value::from("5.0"));
    for (case, name) in [
        ("llama3", "model.layers.1.mlp.down_proj.weight"),
        ("gemma2", "model.layers.0.pre_feedforward_layernorm.weight"),
        ("qwen2", "model.layers.0.self_attn.k_proj.bias"),
        ("qwen3", "model.layers.1.self_attn.k_norm.weight"),
        ("phi3", "model.layers.0.mlp.gate_up_proj.weight"),
        ("olmo2", "model.layers.0.self_attn.q_norm.weight"),
        ("mistral-nemo", HEAD),
        ("granite", "model.norm.weight"),
    ] {
        let without = changed(case, |t| drop(t.remove(name).unwrap()), version());
        let error = logits(without.path()).unwrap_err();
        assert!(error.contains(name) && error.contains("is missing"), "{case}: {error}");
        let cut = |t: &mut Tensors| {
            let (shape, bytes) = t.get_mut(name).unwrap();
            bytes.truncate(bytes.len() / shape[0] * (shape[0] - 1));
            shape[0] -= 1;
        };
        let error = logits(changed(case, cut, version()).path()).unwrap_err();
        assert!(error.contains(name) && error.contains("shape"), "{case}: {error}");
    }
    // More rows than the configuration says: they are not cut off in silence.
    let error = logits(changed("qwen2", |_| (), ("vocab_size", 48.into())).path()).unwrap_err();
    assert!(error.contains(EMBEDDING), "{error}");
}
