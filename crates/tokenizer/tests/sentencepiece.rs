//! Folders whose only tokenizer is a SentencePiece `tokenizer.model`, against SentencePiece and transformers
//! (`goldens/spm.py`).

use std::path::Path;

use loratune_tokenizer::TokenizerBundle;
use serde_json::{Value, json};

fn golden(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/sentencepiece").join(name))
        .unwrap()
}

fn load(model: &[u8], config: Value) -> Result<TokenizerBundle, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), model).unwrap();
    if !config.is_null() {
        std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    }
    TokenizerBundle::from_folder(dir.path()).map_err(|e| e.to_string())
}

#[test]
fn ids_are_those_of_transformers_and_of_sentencepiece() {
    let rows: Vec<(String, Vec<u32>, Vec<u32>)> = serde_json::from_slice(&golden("strings.json")).unwrap();
    let plain = load(&golden("tokenizer.model"), Value::Null).unwrap();
    let legacy = load(&golden("tokenizer.model"), json!({"legacy": true})).unwrap();
    for (text, sentencepiece, transformers) in &rows {
        assert_eq!(&plain.encode(text, false).unwrap(), transformers, "{text:?}");
        // SentencePiece takes special tokens inside of a text for text.
        if !["<s>", "[INST]", "<unk>"].iter().any(|special| text.contains(special)) {
            assert_eq!(&legacy.encode(text, false).unwrap(), sentencepiece, "{text:?}, legacy");
            let back = legacy.decode(sentencepiece, false).unwrap();
            assert_eq!(back, text.replace('▁', " "), "{text:?}");
        }
    }
}

#[test]
fn roles_come_from_the_model_and_what_the_configuration_says_goes_first() {
    let content = |t: &Option<loratune_tokenizer::SpecialToken>| t.as_ref().map(|t| t.content.clone());
    let bundle = load(&golden("tokenizer.model"), Value::Null).unwrap();
    let roles = [&bundle.bos, &bundle.eos, &bundle.unk, &bundle.pad].map(content);
    assert_eq!(roles, [Some("<s>".into()), Some("</s>".into()), Some("<unk>".into()), None]);
    assert_eq!((bundle.add_bos, bundle.add_eos, bundle.vocab_size()), (true, false, 420));
    assert!(bundle.is_special(bundle.id_of("[INST]").unwrap()));
    assert!(!bundle.is_special(bundle.id_of("[TOOL]").unwrap()));

    let config = json!({
        "add_bos_token": false, "add_eos_token": true, "eos_token": "[INST]", "pad_token": "<pad>", "unk_token": null,
        "chat_template": "{{ messages }}",
    });
    let bundle = load(&golden("tokenizer.model"), config).unwrap();
    let roles = [&bundle.bos, &bundle.eos, &bundle.unk, &bundle.pad].map(content);
    assert_eq!(roles, [Some("<s>".into()), Some("[INST]".into()), None, Some("<pad>".into())]);
    assert_eq!((bundle.add_bos, bundle.add_eos, bundle.vocab_size()), (false, true, 421));
    assert_eq!(bundle.chat_template.as_deref(), Some("{{ messages }}"));
    // What is saved is the same tokenizer in a tokenizer.json.
    let dir = tempfile::tempdir().unwrap();
    bundle.save(dir.path()).unwrap();
    assert!(bundle.is_same(&TokenizerBundle::from_folder(dir.path()).unwrap()).unwrap());
}

#[test]
fn without_a_space_in_front_nothing_is_put_there() {
    let bundle = load(&golden("tokenizer.model"), json!({"add_prefix_space": false})).unwrap();
    let ids = bundle.encode("order it", false).unwrap();
    assert_ne!(
        ids,
        load(&golden("tokenizer.model"), Value::Null).unwrap().encode("order it", false).unwrap()
    );
    assert_eq!(bundle.decode(&ids, false).unwrap(), "order it");
}

#[test]
fn broken_and_other_models_are_refused_with_the_file_and_the_way_out() {
    let good = golden("tokenizer.model");
    let error = |bytes: &[u8]| load(bytes, Value::Null).unwrap_err();
    // Cut anywhere it is no message, or lacks pieces that it names.
    for cut in (0..good.len()).step_by(97) {
        if let Err(text) = load(&good[..cut], Value::Null) {
            assert!(text.contains("tokenizer.model"), "{text}");
        }
    }
    assert!(error(b"IQ== 0\nIg== 1\n").contains("no SentencePiece model"));
    assert!(error(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).contains("damaged"));
    // Later fields of a message replace earlier ones: a trainer's and a normaliser's word appended to the good file.
    let with = |more: &[u8]| error(&[good.as_slice(), more].concat());
    assert!(with(&[0x12, 0x02, 0x18, 0x01]).contains("byte-pair encoding"));
    assert!(with(&[0x1a, 0x02, 0x20, 0x01]).contains("removes spaces"));
    assert!(with(&[0x1a, 0x03, 0x12, 0x01, 0x78]).contains("normalises characters"));
    assert!(with(&[0x12, 0x04, 0xc8, 0x02, 0x90, 0x4e]).contains("names the piece 10000 of 420"));
    assert!(with(&[0x0a, 0x03, 0x0a, 0x01, b'a']).contains("the piece `a` twice"));
}

/// Field 1 of a model, or of a part of one, as protocol buffers write it.
fn piece(text: &str, score: f32, kind: u8) -> Vec<u8> {
    let mut piece = vec![0x0a, text.len() as u8];
    piece.extend(text.as_bytes());
    piece.push(0x15);
    piece.extend(score.to_le_bytes());
    piece.extend([0x18, kind]);
    [vec![0x0a, piece.len() as u8], piece].concat()
}

#[test]
fn the_best_score_is_merged_first_whatever_the_ids() {
    let pieces = [
        ("<unk>", 0.0, 2),
        ("<s>", 0.0, 3),
        ("</s>", 0.0, 3),
        ("▁a", -2.0, 1),
        ("ab", -1.0, 1),
        ("▁", -3.0, 1),
        ("a", -4.0, 1),
        ("b", -5.0, 1),
    ];
    let mut model: Vec<u8> =
        pieces.iter().flat_map(|&(text, score, kind)| piece(text, score, kind)).collect();
    // Byte-pair encoding; spaces are kept.
    model.extend([0x12, 0x02, 0x18, 0x02, 0x1a, 0x02, 0x20, 0x00]);
    let bundle = load(&model, Value::Null).unwrap();
    assert_eq!(bundle.encode("ab", false).unwrap(), [5, 4]);
    assert_eq!(bundle.encode("aab", false).unwrap(), [3, 4]);
}
