//! Goldens and small tokenizers for the tests.
#![allow(dead_code)]

use std::path::{Path, PathBuf};

use loratune_data::{Conversation, JinjaTemplate, Message};
use loratune_tokenizer::TokenizerBundle;
use serde_json::{Map, Value, json};

pub fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(name)
}

pub fn golden(name: &str) -> Value {
    let text = std::fs::read_to_string(folder("goldens").join(name)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// `tokenizer` (byte-level BPE) or `metaspace` (SentencePiece-like), with BOS `<s>` and EOS `</s>`.
pub fn bundle(name: &str, more: Value) -> TokenizerBundle {
    let json = std::fs::read_to_string(folder("goldens").join(format!("{name}.json"))).unwrap();
    let mut config = json!({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"});
    for (key, value) in more.as_object().cloned().unwrap_or_default() {
        config[key] = value;
    }
    TokenizerBundle::from_parts(&json, config).unwrap()
}

/// Sources of the test templates, by name, and whether they mark their responses themselves.
pub fn template_sources() -> Vec<(String, String, bool)> {
    let mut out = Vec::new();
    for (inside, marked) in [("templates", false), ("templates/marked", true)] {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(folder(inside)).unwrap().map(|e| e.unwrap().path()).collect();
        files.retain(|f| f.is_file());
        files.sort();
        for file in files {
            let name = file.file_stem().unwrap().to_string_lossy().into_owned();
            out.push((name, std::fs::read_to_string(file).unwrap(), marked));
        }
    }
    out.push(("plain".into(), include_str!("../../src/template/plain.jinja").into(), true));
    out
}

/// The template without its generation tags (each stands on a line of its own).
pub fn plain(source: &str) -> String {
    let tag = |l: &&str| matches!(l.trim(), "{%- generation %}" | "{%- endgeneration %}");
    source.split_inclusive('\n').filter(|l| !tag(l)).collect()
}

pub fn compile(name: &str, source: &str) -> JinjaTemplate {
    let tokens = [("bos_token", "<s>"), ("eos_token", "</s>")];
    let tokens = tokens.map(|(k, v)| (k.to_string(), v.to_string()));
    JinjaTemplate::new(name, source, tokens, Some(0)).unwrap()
}

/// The golden conversations by name.
pub fn conversations() -> Vec<(String, Conversation)> {
    let file = golden("conversations.json");
    let tools = &file["tools"];
    let mut out = Vec::new();
    for (name, messages) in file["conversations"].as_object().unwrap() {
        let messages = messages.as_array().unwrap().iter().map(message).collect();
        let with_tools = name.contains("tool") || name == "two_calls";
        let tools = with_tools.then(|| tools.clone());
        out.push((name.clone(), Conversation { tools, ..Conversation::new(messages) }));
    }
    out
}

fn message(value: &Value) -> Message {
    let text = |key: &str| value[key].as_str().unwrap().to_string();
    let extra: Map<String, Value> = value
        .as_object()
        .unwrap()
        .iter()
        .filter(|(k, _)| *k != "role" && *k != "content")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    Message { extra, ..Message::new(text("role"), text("content")) }
}

/// A conversation of `families.json`.
pub fn shipped_conversation(golden: &Value, case: &str) -> Conversation {
    let row = &golden["conversations"][case];
    let message = |m: &Value| {
        let mut extra = m.as_object().unwrap().clone();
        let (role, content) = (extra.remove("role").unwrap(), extra.remove("content").unwrap());
        let plain = Message::new(role.as_str().unwrap(), content.as_str().unwrap_or_default());
        Message { extra, null_content: content.is_null(), ..plain }
    };
    Conversation {
        tools: (row["tools"] == true).then(|| golden["tools"].clone()),
        variables: row["variables"].as_object().unwrap().clone(),
        ..Conversation::new(row["messages"].as_array().unwrap().iter().map(message).collect())
    }
}
