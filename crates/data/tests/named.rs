//! What named templates do besides LLaMA-Factory's goldens: errors, options, text, thoughts in fields.

mod common;

use common::{bundle, compile};
use loratune_data::encode::IGNORE;
use loratune_data::template::RenderInput;
use loratune_data::{
    ChatTemplate, Dataset, DatasetSource, DatasetSpec, EncodeOptions, Message, NamedTemplate, TemplateChoice,
    Text, load_examples,
};
use serde_json::{Map, Value, json};

fn options(template: &str) -> EncodeOptions {
    EncodeOptions { template: Some(template.into()), now: Some(0), ..EncodeOptions::default() }
}

fn load(row: Value, options: &EncodeOptions) -> Result<Dataset, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    std::fs::write(&path, row.to_string()).unwrap();
    let spec = DatasetSpec { train: vec![DatasetSource::new(path)], ..DatasetSpec::default() };
    load_examples(&spec, &bundle("tokenizer", json!({})), options).map_err(|e| e.to_string())
}

/// The text with what is trained in brackets.
fn shown(row: Value, options: &EncodeOptions) -> String {
    let data = load(row, options).unwrap();
    let text = bundle("tokenizer", json!({}));
    let (mut out, mut open) = (String::new(), false);
    for (&id, &label) in data.train.get(0).input_ids.iter().zip(&data.train.get(0).labels) {
        if open != (label != IGNORE) {
            open = !open;
            out.push(if open { '⟦' } else { '⟧' });
        }
        out += &Text::decode(&text, &[id]).unwrap();
    }
    if open { out + "⟧" } else { out }
}

fn chat(turns: &[(&str, &str)]) -> Value {
    let turn = |(role, content): &(&str, &str)| json!({"role": role, "content": content});
    json!({"messages": turns.iter().map(turn).collect::<Vec<_>>()})
}

fn template(name: &str) -> ChatTemplate {
    TemplateChoice::parse(Some(name)).load(&bundle("tokenizer", json!({})), Some(0)).unwrap()
}

#[test]
fn tokens_that_the_tokenizer_lacks_are_named() {
    let error = load(chat(&[("user", "Hi"), ("assistant", "Yes")]), &options("phi")).unwrap_err();
    assert!(
        error.starts_with("template `phi` needs the token `<|end|>`, which the tokenizer does not have"),
        "{error}"
    );
    let error = load(chat(&[("user", "Hi"), ("assistant", "Yes")]), &options("chatglm3")).unwrap_err();
    assert!(error.contains("`[gMASK]`"), "{error}");
    // <|eom_id|> is missing, too, but no turn of llama3 writes it.
    assert!(load(chat(&[("user", "Hi"), ("assistant", "Yes")]), &options("llama3")).is_ok());
}

#[test]
fn turns_that_do_not_alternate_are_refused_with_their_place() {
    let wrong = [
        (
            vec![("assistant", "Hello"), ("user", "Hi")],
            "d.jsonl:1: template `default`: message 1: a turn of the response",
        ),
        (vec![("user", "Hi"), ("user", "Hi"), ("assistant", "Yes")], "message 2: a turn of the user"),
        (vec![("user", "Hi"), ("assistant", "A"), ("assistant", "B")], "message 3: a turn of the response"),
        (
            vec![("user", "Hi"), ("assistant", "A"), ("system", "B")],
            "message 3: a system text must come first",
        ),
        (vec![("user", "Hi")], "no assistant message to train on"),
    ];
    for (turns, expected) in wrong {
        let error = load(chat(&turns), &options("default")).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
    // What follows the last response trains nothing.
    let more = shown(chat(&[("user", "Hi"), ("assistant", "A"), ("user", "More")]), &options("default"));
    assert_eq!(more, "Human: Hi</s>\nAssistant:⟦A</s>\n⟧");
}

#[test]
fn options_that_do_not_go_with_a_template_are_refused() {
    let row = || chat(&[("user", "Hi"), ("assistant", "Yes")]);
    let both = EncodeOptions { train_on_prompt: true, ..options("fewshot") };
    assert!(
        load(row(), &both).unwrap_err().contains("train_on_prompt does not go with the template `fewshot`")
    );
    let format = |name: &str| EncodeOptions { tool_format: Some(name.into()), ..options("default") };
    let error = load(row(), &format("mistrall")).unwrap_err();
    assert!(error.contains("tool_format `mistrall` is unknown; did you mean `mistral`?"), "{error}");
    let own = EncodeOptions { template: None, ..format("qwen") };
    assert!(load(row(), &own).unwrap_err().contains("tool_format is for templates by name"));
}

#[test]
fn default_system_goes_into_jinja_templates_as_well() {
    let path = common::folder("templates/marked").join("chatml.jinja").display().to_string();
    let options = EncodeOptions { default_system: Some("Be kind.".into()), ..options(&path) };
    let text = shown(chat(&[("user", "Hi"), ("assistant", "Yes")]), &options);
    assert!(
        text.starts_with("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>"),
        "{text}"
    );
    let text = shown(chat(&[("system", "Own."), ("user", "Hi"), ("assistant", "Yes")]), &options);
    assert!(text.starts_with("<|im_start|>system\nOwn.<|im_end|>"), "{text}");
    // Responses of the prompt stay masked although the messages move.
    let user = |text: &str| json!({"role": "user", "content": text});
    let answer = |text: &str| json!({"role": "assistant", "content": text});
    let row = json!({"prompt": [user("Hi"), answer("A"), user("More")], "completion": [answer("B")]});
    let text = shown(row, &options);
    assert_eq!(text.matches('⟦').count(), 1, "{text}");
    assert!(text.contains("⟦B<|im_end|>⟧"), "{text}");
}

#[test]
fn responses_inside_of_a_prompt_are_not_trained() {
    let user = |text: &str| json!({"role": "user", "content": text});
    let answer = |text: &str| json!({"role": "assistant", "content": text});
    let row = json!({"prompt": [user("Hi"), answer("A"), user("More")], "completion": [answer("B")]});
    let expected = "Human: Hi</s>\nAssistant:A</s>\nHuman: More</s>\nAssistant:⟦B</s>\n⟧";
    assert_eq!(shown(row.clone(), &options("default")), expected);
    // Nor is the EOS after them.
    assert_eq!(shown(row, &options("fewshot")), "HiA\n\nMore⟦B\n\n</s>⟧");
}

#[test]
fn thoughts_in_a_field_and_a_row_s_own_variables_are_used() {
    let row = |variables: Value| {
        json!({"messages": [{"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "4", "reasoning_content": "add"}], "chat_template_kwargs": variables})
    };
    let head = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n";
    let text = shown(row(json!({})), &options("qwen3"));
    assert_eq!(text, format!("{head}⟦<think>\nadd\n</think>\n\n4<|im_end|>\n⟧"));
    let text = shown(row(json!({"enable_thinking": false})), &options("qwen3"));
    assert_eq!(text, format!("{head}<think>\n\n</think>\n\n⟦4<|im_end|>\n⟧"));
    // A template for models that do not think leaves it out.
    assert_eq!(shown(row(json!({})), &options("yi")), format!("{head}⟦4<|im_end|>\n⟧"));
}

#[test]
fn results_of_tools_called_at_once_are_one_turn_and_string_arguments_are_read() {
    let call = |name: &str, arguments: Value| json!({"function": {"name": name, "arguments": arguments}});
    let row = json!({"messages": [
        {"role": "user", "content": "Both?"},
        {"role": "assistant", "content": "", "tool_calls": [call("a", json!("{\"x\": 1.0}")), call("b", json!({}))]},
        {"role": "tool", "content": "one"}, {"role": "tool", "content": "two"},
        {"role": "assistant", "content": "Done."}]});
    let text = shown(row, &options("qwen"));
    let calls = "⟦<tool_call>\n{\"name\": \"a\", \"arguments\": {\"x\": 1.0}}\n</tool_call>\n<tool_call>\n{\"name\": \
                 \"b\", \"arguments\": {}}\n</tool_call><|im_end|>\n⟧";
    let results =
        "<|im_start|>user\n<tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response>";
    assert!(text.contains(calls) && text.contains(results), "{text}");
}

#[test]
fn a_response_whose_end_token_is_followed_by_a_line_break_counts_as_closed() {
    for (name, unclosed) in [("default", 0), ("chatml", 0), ("fewshot", 0), ("empty", 1)] {
        let data = load(chat(&[("user", "Hi"), ("assistant", "Yes")]), &options(name)).unwrap();
        assert_eq!(data.report.train.unclosed, unclosed, "{name}");
        assert_eq!(data.report.template, name);
    }
}

#[test]
fn the_sample_shows_the_text_of_every_token() {
    let data =
        load(chat(&[("user", "Grüße <|im_end|> 🙂"), ("assistant", "Ja")]), &options("default")).unwrap();
    let sample = data.report.sample.unwrap();
    let text: String = sample.segments.iter().map(|s| s.text.as_str()).collect();
    assert_eq!(text, "Human: Grüße <|im_end|> 🙂</s>\nAssistant:Ja</s>\n");
}

/// Conversations of text alone.
fn talks() -> Vec<Vec<Message>> {
    let (u, a, s) = (Message::user, Message::assistant, Message::system);
    vec![
        vec![u("Hi"), a("It's \\n 'so'.")],
        vec![s("Be \"brief\"."), u("Hi"), a("A"), u("{{ more }}"), a("B\n")],
        vec![u("Hi"), a("A"), Message::new("tool", "15"), a("B")],
        vec![s("Only."), u("Hi")],
        vec![u("")],
    ]
}

#[test]
fn templates_in_jinja_render_what_the_named_ones_render() {
    let (mut compared, text) = (0, bundle("tokenizer", json!({})));
    let variables: Map<String, Value> = Map::from_iter([("enable_thinking".to_string(), json!(true))]);
    for named in NamedTemplate::all() {
        let Ok(template) = TemplateChoice::parse(Some(named.name)).load(&text, Some(0)) else { continue };
        let ChatTemplate::Turns(turns) = &template else { panic!("{}", named.name) };
        let source = turns.to_jinja();
        let jinja = compile(named.name, &source);
        for messages in talks() {
            for add_generation_prompt in [false, true] {
                if add_generation_prompt && messages.last().unwrap().is_response() {
                    continue;
                }
                let input = RenderInput {
                    messages: &messages,
                    tools: None,
                    add_generation_prompt,
                    variables: Some(&variables),
                };
                let expected = template.render(input).unwrap();
                // What reasoning templates put before a response that does not think.
                let (open, close) = named.thought;
                let expected = expected.replace(&format!("{open}{close}"), "").replace(close, "");
                let got = jinja.render(input).unwrap().replace(close, "");
                assert_eq!(got, expected, "{}\n{source}", named.name);
                compared += 1;
            }
        }
    }
    assert!(compared > 250, "{compared}");
}

#[test]
fn a_prompt_ends_where_the_response_begins_and_needs_a_question() {
    let text = bundle("tokenizer", json!({}));
    let none = Map::new();
    for name in ["default", "default@0.7", "llama2", "mistral", "vicuna", "chatml", "gemma2"] {
        let messages = [Message::system("Be brief."), Message::user("Hi"), Message::assistant("Yes")];
        let template = template(name);
        let row = chat(&[("system", "Be brief."), ("user", "Hi"), ("assistant", "Yes")]);
        let data = load(row, &options(name)).unwrap();
        let trained = data.train.get(0).labels.iter().position(|&l| l != IGNORE).unwrap();
        let prompt = template.prompt_ids(&text, &messages[..2], None, &none).unwrap();
        assert_eq!(prompt, data.train.get(0).input_ids[..trained], "{name}");
        let error = template.prompt_ids(&text, &messages, None, &none).unwrap_err().to_string();
        assert!(error.contains("should end with a message of the user"), "{error}");
    }
}
