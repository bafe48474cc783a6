//! Rendering, masks and token ids against transformers; see `goldens/make_goldens.py`.

mod common;

use common::{bundle, compile, conversations, golden, plain, template_sources};
use loratune_data::mask::{MaskError, Masker, Specials};
use loratune_data::template::RenderInput;
use loratune_data::{Conversation, JinjaTemplate};
use serde_json::{Map, Value, json};

fn render(template: &JinjaTemplate, c: &Conversation, add_generation_prompt: bool) -> Result<String, String> {
    let input = RenderInput {
        messages: &c.messages,
        tools: c.tools.as_ref(),
        add_generation_prompt,
        variables: None,
    };
    template.render(input).map_err(|e| e.message)
}

fn spans(value: &Value) -> Vec<std::ops::Range<usize>> {
    let at = |v: &Value, i: usize| v[i].as_u64().unwrap() as usize;
    value.as_array().unwrap().iter().map(|s| at(s, 0)..at(s, 1)).collect()
}

#[test]
fn every_template_renders_every_conversation_as_transformers_does() {
    let golden = golden("rendered.json");
    let mut compared = 0;
    for (name, source, _) in template_sources() {
        for (variant, source) in [("", source.clone()), (" without generation tags", plain(&source))] {
            let template = compile(&name, &source);
            for (case, conversation) in conversations() {
                let at = format!("{name}{variant}, {case}");
                let expected = &golden[&name][&case];
                match expected["error"].as_str() {
                    Some(error) => {
                        let got = render(&template, &conversation, false).unwrap_err();
                        assert_eq!(got, format!("the template refuses: {error}"), "{at}");
                    }
                    None => {
                        assert_eq!(
                            render(&template, &conversation, false).unwrap(),
                            expected["text"],
                            "{at}"
                        );
                        assert_eq!(
                            render(&template, &conversation, true).unwrap(),
                            expected["prompted"],
                            "{at}"
                        );
                    }
                }
                compared += 1;
            }
        }
    }
    assert_eq!(compared, golden.as_object().unwrap().len() * 2 * conversations().len());
}

fn specials() -> Specials {
    Specials::of(&bundle("tokenizer", json!({})))
}

#[test]
fn generation_blocks_give_the_spans_that_transformers_tracks() {
    let golden = golden("rendered.json");
    for (name, source, _) in template_sources() {
        let template = compile(&name, &source);
        let masker = Masker::new(&template, specials(), Map::new());
        for (case, conversation) in conversations() {
            let expected = &golden[&name][&case];
            if expected["error"].is_string() {
                assert!(matches!(masker.render(&conversation, false), Err(MaskError::Template(_))));
                continue;
            }
            let at = format!("{name}, {case}");
            let mut wanted = spans(&expected["spans"]);
            wanted.retain(|s| !s.is_empty());
            match masker.render(&conversation, false) {
                Ok(got) => {
                    assert!(expected["text"].as_str().unwrap().starts_with(&got.text), "{at}");
                    assert_eq!(got.spans, wanted, "{at}");
                }
                Err(e) => assert!(wanted.is_empty() || drops_calls(&e, &conversation, expected), "{at}: {e}"),
            }
        }
    }
}

/// Whether a row was refused because its calls are missing, and they are: transformers would train on what is left.
fn drops_calls(error: &MaskError, conversation: &Conversation, expected: &Value) -> bool {
    let text = expected["text"].as_str().unwrap();
    let in_spans = |name: &str| spans(&expected["spans"]).into_iter().any(|s| text[s].contains(name));
    let missing = conversation.messages.iter().any(|m| m.called_tools().any(|name| !in_spans(name)));
    missing && error.to_string().contains("does not write its tool calls")
}

/// Templates that leave tool calls out.
const DROPPED: [&str; 6] = ["gemma", "llama2", "llama3_base", "r1", "smollm2", "untagged_prompt"];

/// The spans found from the structure of a template without tags equal those that its author would mark by hand. Only
/// calls that a template leaves out are errors.
#[test]
fn structural_spans_equal_hand_marked_ones() {
    let golden = golden("rendered.json");
    let (mut refused, mut dropped) = (Vec::new(), Vec::new());
    for (name, source, named) in template_sources() {
        if named {
            continue;
        }
        let template = compile(&name, &plain(&source));
        assert!(!template.has_generation());
        let masker = Masker::new(&template, specials(), Map::new());
        for (case, conversation) in conversations() {
            let expected = &golden[&name][&case];
            if expected["error"].is_string() {
                continue;
            }
            let at = format!("{name}, {case}");
            match masker.render(&conversation, false) {
                Ok(got) => {
                    let text = expected["text"].as_str().unwrap();
                    let show = |s: &[std::ops::Range<usize>]| {
                        s.iter().map(|r| text[r.clone()].to_string()).collect::<Vec<_>>()
                    };
                    let wanted = spans(&expected["spans"]);
                    assert_eq!(show(&got.spans), show(&wanted), "{at}");
                    assert_eq!(got.spans, wanted, "{at}");
                }
                Err(e) if drops_calls(&e, &conversation, expected) => dropped.push(name.clone()),
                Err(MaskError::Inexact(why)) => refused.push(format!("{at}: {why}")),
                Err(e) => panic!("{at}: {e}"),
            }
        }
    }
    dropped.dedup();
    assert_eq!(dropped, DROPPED);
    assert!(refused.is_empty(), "{refused:?}");
}

#[test]
fn ids_and_masks_equal_apply_chat_template_with_return_assistant_tokens_mask() {
    use loratune_data::encode::IGNORE;
    let golden = golden("masks.json");
    let folder = tempfile::tempdir().unwrap();
    let mut compared = 0;
    for which in ["tokenizer", "metaspace"] {
        let bundle = bundle(which, json!({}));
        for (name, source, _) in template_sources() {
            let file = folder.path().join(format!("{name}.jinja"));
            std::fs::write(&file, &source).unwrap();
            for (case, conversation) in conversations() {
                let Some(expected) = golden[which].get(format!("{name}/{case}")) else {
                    continue;
                };
                if !expected[1].as_str().unwrap().contains('1') {
                    continue;
                }
                let row = folder.path().join("row.jsonl");
                std::fs::write(&row, row_of(&conversation)).unwrap();
                let spec = loratune_data::DatasetSpec {
                    train: vec![loratune_data::DatasetSource::new(&row)],
                    ..Default::default()
                };
                let options = loratune_data::EncodeOptions {
                    template: Some(file.display().to_string()),
                    ..Default::default()
                };
                let at = format!("{which}, {name}, {case}");
                let data = match loratune_data::load_examples(&spec, &bundle, &options) {
                    Err(e) if e.to_string().contains("does not write its tool calls") => continue,
                    data => data.unwrap_or_else(|e| panic!("{at}: {e}")),
                };
                let example = &data.train.get(0);
                let mask: String =
                    example.labels.iter().map(|&l| if l == IGNORE { '0' } else { '1' }).collect();
                let ids = json!(example.input_ids);
                // transformers never appends EOS; here it closes a response that the template leaves open.
                if name == "untagged_prompt" && case != "ends_with_user" {
                    assert_eq!(example.input_ids.last(), Some(&2), "{at}");
                    continue;
                }
                assert_eq!(ids, expected[0], "{at}");
                assert_eq!(mask, expected[1].as_str().unwrap(), "{at}");
                compared += 1;
            }
        }
    }
    assert!(compared > 300, "{compared}");
}

fn row_of(conversation: &Conversation) -> String {
    let messages: Vec<Value> = conversation
        .messages
        .iter()
        .map(|m| {
            let mut map = m.extra.clone();
            map.insert("role".into(), json!(m.role));
            map.insert("content".into(), json!(m.content));
            Value::Object(map)
        })
        .collect();
    json!({"messages": messages, "tools": conversation.tools}).to_string()
}

#[test]
fn tojson_writes_what_json_dumps_writes() {
    let golden = golden("json.json");
    for case in golden["cases"].as_array().unwrap() {
        let arguments: Vec<String> =
            case["kwargs"].as_object().unwrap().iter().map(|(k, v)| format!("{k}={}", literal(v))).collect();
        let template = compile("t", &format!("{{{{ value | tojson({}) }}}}", arguments.join(", ")));
        let mut variables = Map::new();
        variables.insert("value".into(), golden["value"].clone());
        let input = RenderInput { variables: Some(&variables), ..RenderInput::default() };
        assert_eq!(template.render(input).unwrap(), case["text"].as_str().unwrap());
    }
}

fn literal(value: &Value) -> String {
    match value {
        Value::Bool(b) => (if *b { "True" } else { "False" }).into(),
        other => other.to_string(),
    }
}

#[test]
fn truncation_keeps_what_the_transcribed_rule_keeps() {
    use loratune_data::truncate::{Truncation, truncate_turns};
    for case in golden("truncation.json").as_array().unwrap() {
        let number = |v: &Value| v.as_u64().unwrap() as usize;
        let mut at = 0;
        let mut starts = Vec::new();
        let mut responses = Vec::new();
        for turn in case["turns"].as_array().unwrap() {
            let (source, target) = (number(&turn[0]), number(&turn[1]));
            starts.push(at);
            responses.push(at + source..at + source + target);
            at += source + target;
        }
        let cutoff = number(&case["cutoff"]);
        let last_first = case["mask_history"].as_bool().unwrap();
        let kept: Vec<usize> = truncate_turns(Truncation::Balanced, at, &responses, cutoff, last_first)
            .into_iter()
            .flatten()
            .collect();
        let mut expected = Vec::new();
        let pairs = case["kept"].as_array().unwrap();
        // With mask_history the turns that got nothing are the first ones.
        let skip = if last_first { responses.len() - pairs.len() } else { 0 };
        for (i, pair) in pairs.iter().enumerate() {
            let (start, response) = (starts[i + skip], &responses[i + skip]);
            expected.extend(start..start + number(&pair[0]));
            expected.extend(response.start..response.start + number(&pair[1]));
        }
        assert_eq!(kept, expected, "{case}");
    }
}

#[test]
fn a_mapping_with_a_key_named_as_a_method_still_has_the_method() {
    let template = compile("t", "{{ value.items() | list | length }}{{ value.get('keys') }}");
    let mut variables = Map::new();
    variables.insert("value".into(), json!({"items": 1, "keys": 2, "get": 3}));
    let input = RenderInput { variables: Some(&variables), ..RenderInput::default() };
    assert_eq!(template.render(input).map_err(|e| e.to_string()), Ok("32".into()));
}
