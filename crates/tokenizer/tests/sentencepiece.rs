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
    assert!(error(b"all of it\n").contains("no SentencePiece model, or a damaged one"));
    let meta = error(b"IQ== 0\nIg== 1\n");
    assert!(meta.contains("tiktoken") && meta.contains("tokenizer.json"), "{meta}");
    assert!(error(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]).contains("damaged"));
    // Later fields of a message replace earlier ones: a trainer's and a normaliser's word appended to the good file.
    let with = |more: &[u8]| error(&[good.as_slice(), more].concat());
    assert!(with(&[0x12, 0x02, 0x18, 0x01]).contains("byte-pair encoding"));
    assert!(with(&[0x1a, 0x02, 0x20, 0x01]).contains("removes spaces"));
    assert!(with(&[0x1a, 0x02, 0x28, 0x00]).contains("escape_whitespaces"));
    assert!(with(&[0x12, 0x03, 0xc0, 0x01, 0x01]).contains("treat_whitespace_as_suffix"));
    assert!(with(&piece("▁New York", 0.0, 4)).contains("user-defined piece `▁New York`"));
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

fn load_with_added(added: Value, config: Value, map: Value) -> Result<TokenizerBundle, String> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.model"), golden("tokenizer.model")).unwrap();
    for (name, value) in
        [("added_tokens.json", added), ("tokenizer_config.json", config), ("special_tokens_map.json", map)]
    {
        std::fs::write(dir.path().join(name), value.to_string()).unwrap();
    }
    TokenizerBundle::from_folder(dir.path()).map_err(|e| e.to_string())
}

/// The ids are those of transformers 5.23's LlamaTokenizer from the same files.
#[test]
fn tokens_of_added_tokens_json_have_the_ids_that_it_says() {
    let text = "a<|im_start|> b<|im_end|>c [NEW]<pad>";
    let bundle =
        load_with_added(json!({"<|im_end|>": 420, "<|im_start|>": 421}), json!({}), json!({})).unwrap();
    let expected = [283, 421, 267, 420, 397, 375, 96, 83, 74, 391, 98, 65, 385, 379, 388, 67];
    assert_eq!(bundle.encode(text, false).unwrap(), expected);
    assert!(!bundle.is_special(420));

    // Listed the other way round, and as special tokens in yet another order.
    let added = json!({"<pad>": 422, "<|im_end|>": 421, "<|im_start|>": 420});
    let roles = json!({"additional_special_tokens": ["<|im_end|>", "<|im_start|>"], "pad_token": "<pad>"});
    let expected = [283, 420, 267, 421, 397, 375, 96, 83, 74, 391, 98, 422];
    for (config, map) in [(roles.clone(), json!({})), (json!({}), roles)] {
        let bundle = load_with_added(added.clone(), config, map).unwrap();
        assert_eq!(bundle.encode(text, false).unwrap(), expected);
        assert_eq!((bundle.vocab_size(), bundle.pad.as_ref().map(|t| t.id)), (423, Some(422)));
        assert!((420..423).all(|id| bundle.is_special(id)));
    }
    // Newer folders say it in tokenizer_config.json.
    let config = json!({"added_tokens_decoder": {"420": {"content": "[NEW]"}}});
    let bundle = load_with_added(json!({"[OLD]": 420}), config, json!({})).unwrap();
    assert_eq!((bundle.id_of("[NEW]"), bundle.id_of("[OLD]")), (Some(420), None));

    let error = load_with_added(json!({"[NEW]": 430}), json!({}), json!({})).unwrap_err();
    assert!(error.contains("added_tokens.json: field `[NEW]` must be 420"), "{error}");
    let error = load_with_added(json!({"[NEW]": "420"}), json!({}), json!({})).unwrap_err();
    assert!(error.contains("added_tokens.json: field `[NEW]`"), "{error}");
}
