//! Mistral's own tokenizers and chat templates against PyPI's mistral-common (`goldens/mistral.py`).
//!
//! `LORATUNE_MISTRAL_PYTHON` is a Python with mistral-common and sentencepiece; `LORATUNE_FAMILIES` names the folder that
//! `goldens/templates.py collect` writes, for templates and for Nemo's tokenizer.json.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::{compile, shipped_conversation};
use loratune_data::template::ChatTemplate;
use loratune_tokenizer::TokenizerBundle;
use serde_json::{Map, Value, json};

fn from_environment(name: &str) -> Option<PathBuf> {
    let found = std::env::var_os(name).map(PathBuf::from);
    if found.is_none() {
        eprintln!("skipped: {name} is not set (see CONTRIBUTING.md)");
    }
    found
}

fn mistral_common() -> Option<Value> {
    let python = from_environment("LORATUNE_MISTRAL_PYTHON")?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../goldens/mistral.py");
    let out = Command::new(python).arg(script).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

fn ids(value: &Value) -> Vec<u32> {
    serde_json::from_value(value.clone()).unwrap()
}

/// A model's folder that has this file for its only tokenizer.
fn folder(file: &Value, config: Value) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::copy(file.as_str().unwrap(), dir.path().join("tokenizer.model")).unwrap();
    std::fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn texts_of_tokenizer_model_files_are_sentencepieces() {
    let Some(theirs) = mistral_common() else { return };
    for name in ["v1", "v2", "v3", "v7"] {
        let expected = &theirs["tokenizers"][name];
        let load = |config| TokenizerBundle::from_folder(folder(&expected["file"], config).path()).unwrap();
        let (legacy, plain) = (load(json!({"legacy": true})), load(json!({})));
        for (text, row) in
            theirs["strings"].as_array().unwrap().iter().zip(expected["texts"].as_array().unwrap())
        {
            let text = text.as_str().unwrap();
            assert_eq!(legacy.encode(text, false).unwrap(), ids(row), "{name}, {text:?}");
            // Without `legacy` no space is put before one that is there, as transformers has it.
            if !text.starts_with([' ', '▁']) {
                assert_eq!(plain.encode(text, false).unwrap(), ids(row), "{name}, {text:?}");
            }
        }
        assert!(plain.add_bos && !plain.add_eos, "{name}");
    }
}

/// The template as Mistral writes it for SentencePiece, from the one for Tekken: there contents follow a space.
fn for_sentencepiece(nemo: &str) -> String {
    let spaced = ["[INST]", "[AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"];
    let spaced = spaced.iter().fold(nemo.to_owned(), |t, mark| t.replace(mark, &format!("{mark} ")));
    spaced.replace("{{- message[\"content\"] + eos_token}}", "{{- ' ' + message[\"content\"] + eos_token}}")
}

#[test]
fn conversations_by_mistrals_templates_are_mistral_commons() {
    let (Some(theirs), Some(families)) = (mistral_common(), from_environment("LORATUNE_FAMILIES")) else {
        return;
    };
    let template = |name: &str| {
        std::fs::read_to_string(families.join("templates").join(format!("{name}.jinja"))).unwrap()
    };
    let sentencepiece = |name: &str| {
        let dir = folder(&theirs["tokenizers"][name]["file"], json!({"legacy": false}));
        TokenizerBundle::from_folder(dir.path()).unwrap()
    };
    let nemo = TokenizerBundle::from_folder(&families.join("tokenizers/mistral_nemo")).unwrap();
    let mut wrong = Vec::new();
    for (name, bundle, source, tools) in [
        ("v1", sentencepiece("v1"), template("gguf-mixtral-8x7b"), false),
        ("v2", sentencepiece("v2"), template("gguf-mixtral-8x22b"), false),
        ("v3", sentencepiece("v3"), template("gguf-mixtral-8x22b"), false),
        ("v3", sentencepiece("v3"), for_sentencepiece(&template("npm-mistral_nemo")), true),
        ("v7", sentencepiece("v7"), template("gguf-mistral-large-123b"), false),
        ("nemo", nemo.clone(), template("npm-mistral_nemo"), true),
        ("nemo", nemo, template("other-Mistral-Nemo-Instruct-2407"), true),
    ] {
        let template = ChatTemplate::Jinja(Box::new(compile(name, &source)));
        let mut compared = 0;
        for (case, row) in theirs["tokenizers"][name]["chats"].as_object().unwrap() {
            let c = shipped_conversation(&theirs, case);
            if c.tools.is_some() && !tools {
                continue;
            }
            compared += 1;
            let got = template.prompt_ids(&bundle, &c.messages, c.tools.as_ref(), &Map::new());
            if !got.as_ref().is_ok_and(|got| *got == ids(row)) {
                let decode = |ids: &[u32]| bundle.decode(ids, false).unwrap();
                let ours = got.map_or_else(|e| e.to_string(), |ids| decode(&ids));
                wrong.push(format!("{name}, {case}:\n  ours   {ours:?}\n  theirs {:?}", decode(&ids(row))));
            }
        }
        assert!(compared >= if tools { 16 } else { 7 }, "{name}: {compared} conversations");
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn nemos_tokenizer_json_is_mistral_commons_tekken() {
    let (Some(theirs), Some(families)) = (mistral_common(), from_environment("LORATUNE_FAMILIES")) else {
        return;
    };
    let nemo = TokenizerBundle::from_folder(&families.join("tokenizers/mistral_nemo")).unwrap();
    let rows = theirs["tokenizers"]["nemo"]["texts"].as_array().unwrap();
    for (text, row) in theirs["strings"].as_array().unwrap().iter().zip(rows) {
        let text = text.as_str().unwrap();
        assert_eq!(nemo.encode(text, false).unwrap(), ids(row), "{text:?}");
    }
}
