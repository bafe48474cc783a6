//! What templates see of Python: printing, tests, scopes. The expected texts are what transformers 5.23 renders.

mod common;

use common::compile;
use loratune_data::mask::{MaskError, Masker, Specials};
use loratune_data::template::RenderInput;
use loratune_data::{Conversation, Message};
use serde_json::{Map, Value, json};

fn shown(source: &str, variables: Value) -> String {
    let variables = variables.as_object().unwrap().clone();
    let input = RenderInput { variables: Some(&variables), ..RenderInput::default() };
    compile("t", source).render(input).unwrap()
}

#[test]
fn values_print_as_python_prints_them() {
    let value = json!({"x": [1, 1.0, 1e-5, true, null, "it's", "a\"b", "é\n\u{200b}\\"], "e": {}, "n": []});
    let whole = r#"{'x': [1, 1.0, 1e-05, True, None, "it's", 'a"b', 'é\n\u200b\\'], 'e': {}, 'n': []}"#;
    for source in ["{{ v }}", "{{ v | string }}", "{{ [v] | join }}", "{{ ''.join([v | string]) }}"] {
        assert_eq!(shown(source, json!({"v": value})), whole, "{source}");
    }
    let source = "{{ none }} {{ true }} {{ 1e-7 }} {{ [1, none] | join('-') }} {{ missing }}|";
    assert_eq!(shown(source, json!({})), "None True 1e-07 1-None |");
    let source = "{{ rows | join('+', attribute='n') }}";
    assert_eq!(shown(source, json!({"rows": [{"n": 1}, {"n": false}]})), "1+False");
}

#[test]
fn tests_ask_for_pythons_protocols() {
    let source = "{% for v in [none, 1, 's', [1], {'a': 1}] %}{{ v is iterable }},{{ v is sequence }},{{ v is mapping }} {% endfor %}";
    let expected = "False,False,False False,False,False True,True,False True,True,False True,True,True ";
    assert_eq!(shown(source, json!({})), expected);
    assert_eq!(shown("{{ nothing is iterable }} {{ nothing is sequence }}", json!({})), "True True");
}

#[test]
fn white_space_is_pythons() {
    let text = json!({"v": "\u{1c}\u{3000} a \u{1f}\n"});
    assert_eq!(
        shown("[{{ v | trim }}{{ v.strip() }}{{ v.lstrip() | length }}{{ v.rstrip() | length }}]", text),
        "[aa44]"
    );
    assert_eq!(shown("{{ 'xxaxx' | trim('x') }}{{ 'xxaxx'.lstrip('x') }}", json!({})), "aaxx");
}

#[test]
fn line_breaks_of_the_template_are_read_as_newlines() {
    assert_eq!(shown("a\r\n{% if true %}\r\nb\rc{% endif %}\r\n", json!({})), "a\nb\nc");
}

fn specials() -> Specials {
    Specials::new(vec!["</s>".into(), "<|im_end|>".into()])
}

#[test]
fn generation_blocks_have_the_scope_of_a_block_and_can_set_a_namespace() {
    let source = "{% set ns = namespace(n=0) %}{% set x = 'o' %}{% for m in messages %}{% generation %}{% set x = 'i' %}{% set ns.n = 1 %}{{ m.content + x }}</s>{% endgeneration %}{% endfor %}{{ x }}{{ ns.n }}";
    let template = compile("t", source);
    let conversation = Conversation::new(vec![Message::assistant("a")]);
    let got = Masker::new(&template, specials(), Map::new()).render(&conversation, false).unwrap();
    let trained: Vec<&str> = got.spans.iter().map(|s| &got.text[s.clone()]).collect();
    assert_eq!((got.text.as_str(), trained), ("ai</s>o1", vec!["ai</s>"]));
}

#[test]
fn an_end_token_before_a_line_break_inside_of_a_generation_block_closes_the_response() {
    let source = "{% for m in messages %}{% generation %}{{ m.content }}<|im_end|>{{ '\n' }}{% endgeneration %}{% endfor %}";
    let template = compile("t", source);
    let conversation = Conversation::new(vec![Message::assistant("a")]);
    let got = Masker::new(&template, specials(), Map::new()).render(&conversation, false).unwrap();
    assert_eq!((got.text.as_str(), got.append_eos), ("a<|im_end|>\n", false));
}

fn calling(content: &str, null_content: bool) -> Conversation {
    let mut call = Message { null_content, ..Message::assistant(content) };
    call.extra.insert("tool_calls".into(), json!([{"function": {"name": "look", "arguments": {}}}]));
    Conversation::new(vec![Message::user("q"), call, Message::new("tool", "r"), Message::assistant("z")])
}

#[test]
fn a_content_of_null_is_shown_to_templates_that_ask_for_it_only() {
    let asks = "{% for m in messages %}{{ 'CALL' if m.content is none else m.content }}{% endfor %}";
    let prints = "{% for m in messages %}[{{ m.content }}]{% endfor %}";
    let render = |source: &str, null: bool| {
        let conversation = calling("", null);
        let input = RenderInput { messages: &conversation.messages, ..RenderInput::default() };
        compile("t", source).render(input).unwrap()
    };
    assert_eq!((render(asks, true).as_str(), render(asks, false).as_str()), ("qCALLrz", "qrz"));
    assert_eq!(
        (render(prints, true).as_str(), render(prints, false).as_str()),
        ("[q][][r][z]", "[q][][r][z]")
    );
}

#[test]
fn tool_calls_that_a_template_leaves_out_are_refused_and_not_trained_as_silence() {
    let blocks = "{% for m in messages %}{{ m.role + '\n' }}{% generation %}{{ m.content + '</s>' }}{% endgeneration %}{% endfor %}";
    let plain = "{% for m in messages %}{{ m.role + '\n' + m.content + '</s>' }}{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}";
    for source in [blocks, plain] {
        for content in ["", "Let me look."] {
            let template = compile("t", source);
            let masker = Masker::new(&template, specials(), Map::new());
            match masker.render(&calling(content, false), false) {
                Err(MaskError::Inexact(why)) => {
                    assert!(
                        why.contains("message 2") && why.contains("does not write its tool calls"),
                        "{why}"
                    );
                }
                other => panic!("{source}: {other:?}"),
            }
            // The call is part of the prompt when only the last response is trained.
            assert!(masker.render(&calling(content, false), true).is_ok());
        }
    }
}

#[test]
fn without_a_generation_prompt_the_space_before_the_content_is_the_responses() {
    let source = "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' if m.role == 'user' else ' ' + m.content + '</s>' }}{% endfor %}";
    let template = compile("t", source);
    let messages = ["q", "4", "r", ""].iter().enumerate();
    let conversation = Conversation::new(
        messages.map(|(i, c)| if i % 2 == 0 { Message::user(*c) } else { Message::assistant(*c) }).collect(),
    );
    let got = Masker::new(&template, specials(), Map::new()).render(&conversation, false).unwrap();
    let trained: Vec<&str> = got.spans.iter().map(|s| &got.text[s.clone()]).collect();
    assert_eq!(trained, [" 4</s>", " </s>"]);
}
