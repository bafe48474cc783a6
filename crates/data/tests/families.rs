//! The chat templates that model makers ship, against transformers (`goldens/templates.py`): renderings, spans, ids and masks.
//!
//! The shipped files are not in this repository; `LORATUNE_FAMILIES` names the folder that `templates.py collect` writes.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use common::{golden, shipped_conversation as conversation};
use loratune_data::encode::IGNORE;
use loratune_data::mask::{Masker, Specials};
use loratune_data::template::RenderInput;
use loratune_data::{Conversation, DatasetSource, DatasetSpec, EncodeOptions, JinjaTemplate, Message};
use loratune_tokenizer::TokenizerBundle;
use serde_json::{Map, Value, json};

/// The special tokens of all families.
const SPECIALS: [&str; 30] = [
    "<s>",
    "</s>",
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|python_tag|>",
    "<bos>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|im_start|>",
    "<|im_sep|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "[TOOL_RESULTS]",
    "[/TOOL_RESULTS]",
    "[AVAILABLE_TOOLS]",
    "[/AVAILABLE_TOOLS]",
    "<tool_call>",
];

/// FNV-1a, 64 bits.
fn hash(text: &str) -> String {
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

fn families() -> Option<PathBuf> {
    let folder = std::env::var_os("LORATUNE_FAMILIES").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("skipped: set LORATUNE_FAMILIES to the folder that goldens/templates.py collects");
    }
    folder
}

/// The template's source, when the folder has the version that the goldens were made with.
fn source(families: &Path, name: &str, expected: &Value) -> Option<String> {
    let found = std::fs::read_to_string(families.join("templates").join(format!("{name}.jinja")));
    let source = found.ok().filter(|s| hash(s) == expected["source"]);
    if source.is_none() {
        eprintln!("skipped: {name}.jinja is missing or another version");
    }
    source
}

fn compile(name: &str, source: &str, expected: &Value, now: &Value) -> JinjaTemplate {
    let token = |key: &str| (format!("{key}_token"), expected[key].as_str().unwrap().to_string());
    JinjaTemplate::new(name, source, [token("bos"), token("eos")], now.as_u64()).unwrap()
}

fn render(template: &JinjaTemplate, c: &Conversation, add_generation_prompt: bool) -> Result<String, String> {
    let (tools, variables) = (c.tools.as_ref(), Some(&c.variables));
    let input = RenderInput { messages: &c.messages, tools, add_generation_prompt, variables };
    template.render(input).map_err(|e| e.message)
}

/// A content of null is printed as "None" by templates that do not expect it; they are given an empty one here.
fn prints_null(case: &str, text: &str) -> bool {
    case == "tool_null" && !text.contains("None")
}

#[test]
fn shipped_templates_render_and_raise_as_under_transformers() {
    let Some(families) = families() else { return };
    let golden = golden("families.json");
    let mut compared = 0;
    for (name, expected) in golden["templates"].as_object().unwrap() {
        let Some(source) = source(&families, name, expected) else { continue };
        let template = compile(name, &source, expected, &golden["now"]);
        for (case, row) in expected["cases"].as_object().unwrap() {
            let conversation = conversation(&golden, case);
            let at = format!("{name}, {case}");
            match render(&template, &conversation, false) {
                Ok(text) => {
                    let both = format!("{text}\0{}", render(&template, &conversation, true).unwrap());
                    let same = row[0] == hash(&both);
                    assert!(same || prints_null(case, &text), "{at}: {both}");
                }
                Err(message) => {
                    let raised = message.strip_prefix("the template refuses: ").unwrap_or(&message);
                    let same = row.as_array().unwrap().len() == 1 && row[0] == hash(raised);
                    // The empty content is refused for another reason than none.
                    assert!(same || case == "tool_null", "{at}: {message}");
                }
            }
            compared += 1;
        }
    }
    assert!(compared > 0, "{} holds no template of the goldens", families.display());
}

fn spans(value: &Value) -> Option<Vec<Range<usize>>> {
    let at = |v: &Value| v.as_u64().unwrap() as usize;
    Some(value.as_array()?.iter().map(|s| at(&s[0])..at(&s[1])).collect())
}

/// What is refused for another reason than calls that the template leaves out.
const REFUSED: &[&str] = &[];

#[test]
fn responses_of_shipped_templates_are_trained_exactly_or_refused() {
    let Some(families) = families() else { return };
    let golden = golden("families.json");
    let specials = || Specials::new(SPECIALS.map(String::from).to_vec());
    let (mut compared, mut refused) = (0, BTreeMap::<String, BTreeSet<String>>::new());
    for (name, expected) in golden["templates"].as_object().unwrap() {
        let Some(source) = source(&families, name, expected) else { continue };
        let template = compile(name, &source, expected, &golden["now"]);
        let masker = Masker::new(&template, specials(), Map::new());
        for (case, row) in expected["cases"].as_object().unwrap() {
            let conversation = conversation(&golden, case);
            let (Some(wanted), Ok(text)) = (spans(&row[1]), render(&template, &conversation, false)) else {
                continue;
            };
            if case == "tool_null" && prints_null(case, &text) {
                continue;
            }
            match masker.render(&conversation, false) {
                Ok(got) => {
                    assert!(text.starts_with(&got.text), "{name}, {case}");
                    assert_eq!(got.spans, wanted, "{name}, {case}: {text}");
                    compared += 1;
                }
                Err(e) => {
                    let mut called = conversation.messages.iter().flat_map(Message::called_tools);
                    let dropped = called.any(|tool| !wanted.iter().any(|s| text[s.clone()].contains(tool)));
                    if !dropped {
                        refused.entry(format!("{name}: {e}")).or_default().insert(case.clone());
                    }
                }
            }
        }
    }
    let refused: Vec<String> = refused
        .into_iter()
        .map(|(why, cases)| format!("{why}: {}", cases.into_iter().collect::<Vec<_>>().join(" ")))
        .collect();
    assert_eq!(refused, REFUSED, "{compared} compared");
}

fn row_of(conversation: &Conversation) -> Value {
    let message = |m: &Message| {
        let mut fields = m.extra.clone();
        fields.insert("role".into(), json!(m.role));
        fields.insert("content".into(), if m.null_content { Value::Null } else { json!(m.content) });
        Value::Object(fields)
    };
    let messages: Vec<Value> = conversation.messages.iter().map(message).collect();
    json!({"messages": messages, "tools": conversation.tools, "chat_template_kwargs": conversation.variables})
}

#[test]
fn ids_and_masks_of_shipped_tokenizers_and_templates_equal_apply_chat_template() {
    let Some(families) = families() else { return };
    let golden = golden("families.json");
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for (pair, cases) in golden["encoded"].as_object().unwrap() {
        let (tokenizer, template) = pair.split_once('/').unwrap();
        let tokenizer_folder = families.join("tokenizers").join(tokenizer);
        let Some(source) = source(&families, template, &golden["templates"][template]) else { continue };
        if !tokenizer_folder.is_dir() {
            eprintln!("skipped: {} is missing", tokenizer_folder.display());
            continue;
        }
        let bundle = TokenizerBundle::from_folder(&tokenizer_folder).unwrap();
        let file = folder.path().join("template.jinja");
        std::fs::write(&file, source).unwrap();
        let row_file = folder.path().join("row.jsonl");
        let spec = DatasetSpec { train: vec![DatasetSource::new(&row_file)], ..DatasetSpec::default() };
        let options = EncodeOptions {
            template: Some(file.display().to_string()),
            now: golden["now"].as_u64(),
            ..EncodeOptions::default()
        };
        for (case, row) in cases.as_object().unwrap() {
            let conversation = conversation(&golden, case);
            let at = format!("{pair}, {case}");
            std::fs::write(&row_file, row_of(&conversation).to_string()).unwrap();
            let data = match loratune_data::load_examples(&spec, &bundle, &options) {
                Err(e) if e.to_string().contains("tool calls") => continue,
                Err(e) if e.to_string().contains("the header of another response") => continue,
                data => data.unwrap_or_else(|e| panic!("{at}: {e}")),
            };
            let example = &data.train.get(0);
            let ids: Vec<String> = example.input_ids.iter().map(u32::to_string).collect();
            assert_eq!(row[0], hash(&ids.join(" ")), "{at}: {ids:?}");
            let mask: String = example.labels.iter().map(|&l| if l == IGNORE { '0' } else { '1' }).collect();
            if let Some(expected) = row[1].as_str() {
                assert_eq!(hash(&mask), expected, "{at}: {mask}");
            }
            compared += 1;
        }
    }
    assert!(compared > 0, "{} holds no tokenizer of the goldens", families.display());
}
