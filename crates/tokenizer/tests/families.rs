//! The tokenizers that model makers ship, against transformers (`goldens/templates.py`).
//!
//! The shipped files are not in this repository; `LORATUNE_FAMILIES` names the folder that `templates.py collect` writes.

use std::path::PathBuf;

use loratune_tokenizer::TokenizerBundle;
use serde_json::Value;

/// FNV-1a, 64 bits.
fn hash(text: &str) -> String {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
}

/// Calls `check` for each tokenizer that is there, with its golden and the strings.
fn each(check: impl Fn(&str, &TokenizerBundle, &Value, &[&str])) {
    let Some(families) = std::env::var_os("LORATUNE_FAMILIES").map(PathBuf::from) else {
        eprintln!("SKIPPED: LORATUNE_FAMILIES is not set (see goldens/templates.py)");
        return;
    };
    let golden: Value = serde_json::from_str(include_str!("goldens/families.json")).unwrap();
    let strings: Vec<&str> =
        golden["strings"].as_array().unwrap().iter().map(|s| s.as_str().unwrap()).collect();
    let mut compared = 0;
    for (name, expected) in golden["tokenizers"].as_object().unwrap() {
        let folder = families.join("tokenizers").join(name);
        if !folder.is_dir() {
            eprintln!("SKIPPED: {} is not there", folder.display());
            continue;
        }
        check(name, &TokenizerBundle::from_folder(&folder).unwrap(), expected, &strings);
        compared += 1;
    }
    assert!(compared > 0, "{} holds no tokenizer of the goldens", families.display());
}

#[test]
fn ids_and_decoded_texts_of_shipped_tokenizers_equal_transformers() {
    each(|name, bundle, expected, strings| {
        let [before, after] = [0, 1].map(|i| ids(&expected["around"][i]));
        for (text, row) in strings.iter().zip(expected["rows"].as_array().unwrap()) {
            let at = format!("{name}, {text:?}");
            let bare = ids(&row[0]);
            let full = [before.clone(), bare.clone(), after.clone()].concat();
            assert_eq!(bundle.encode(text, false).unwrap(), bare, "{at}");
            assert_eq!(bundle.encode(text, true).unwrap(), full, "{at}");
            assert_eq!(bundle.encode_with_offsets(text).unwrap().0, bare, "{at}");
            let decoded = bundle.decode(&bare, false).unwrap();
            assert_eq!(hash(&decoded), row[1], "{at}: {decoded:?}");
            let decoded = bundle.decode(&full, true).unwrap();
            assert_eq!(hash(&decoded), row[2], "{at}: {decoded:?}");
        }
    });
}

#[test]
fn roles_and_special_tokens_of_shipped_tokenizers_equal_transformers() {
    each(|name, bundle, expected, _| {
        let roles = [("bos", &bundle.bos), ("eos", &bundle.eos), ("pad", &bundle.pad), ("unk", &bundle.unk)];
        for (role, token) in roles {
            let id = token.as_ref().map(|t| u64::from(t.id));
            assert_eq!(id, expected["roles"][role].as_u64(), "{name}, {role}");
        }
        assert_eq!(bundle.vocab_size() as u64, expected["vocab_size"].as_u64().unwrap(), "{name}");
        let [before, after] = [0, 1].map(|i| ids(&expected["around"][i]));
        assert_eq!((bundle.add_bos, bundle.add_eos), (!before.is_empty(), !after.is_empty()), "{name}");
        let special: Vec<u32> = (0..bundle.vocab_size() as u32).filter(|&id| bundle.is_special(id)).collect();
        assert_eq!(special, ids(&expected["special"]), "{name}");
    });
}

#[test]
fn streamed_text_of_shipped_tokenizers_equals_the_text_decoded_at_once() {
    each(|name, bundle, _, strings| {
        for text in strings {
            let ids = bundle.encode(text, false).unwrap();
            let mut stream = bundle.stream_decoder(false);
            let mut out: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
            out.push_str(&stream.finish().unwrap());
            assert_eq!(out, bundle.decode(&ids, false).unwrap(), "{name}, {text:?}");
        }
    });
}
