//! Masks beyond the goldens: options, what must be refused, BOS and EOS.

mod common;

use common::{bundle, compile};
use loratune_data::encode::IGNORE;
use loratune_data::mask::{MaskError, Masker, Specials};
use loratune_data::{
    Conversation, Dataset, DatasetSource, DatasetSpec, EncodeOptions, Message, Text, load_examples,
};
use loratune_tokenizer::TokenizerBundle;
use serde_json::{Map, json};

fn specials() -> Specials {
    Specials::of(&bundle("tokenizer", json!({})))
}

fn talk() -> Conversation {
    Conversation::new(vec![
        Message::user("Hi"),
        Message::assistant("Hello."),
        Message::user("And?"),
        Message::assistant("Bye."),
    ])
}

fn trained(
    source: &str,
    conversation: &Conversation,
    mask_history: bool,
) -> Result<(Vec<String>, bool), MaskError> {
    let template = compile("t", source);
    let got = Masker::new(&template, specials(), Map::new()).render(conversation, mask_history)?;
    Ok((got.spans.iter().map(|s| got.text[s.clone()].to_string()).collect(), got.append_eos))
}

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

#[test]
fn mask_history_trains_the_last_response_only() {
    assert_eq!(trained(CHATML, &talk(), true).unwrap(), (vec!["Bye.<|im_end|>".into()], false));
    let blocks = include_str!("templates/marked/chatml.jinja");
    assert_eq!(trained(blocks, &talk(), true).unwrap(), (vec!["Bye.<|im_end|>".into()], false));
}

#[test]
fn responses_inside_of_a_prompt_are_not_trained() {
    for source in [CHATML, include_str!("templates/marked/chatml.jinja")] {
        let conversation = Conversation { first_response: 3, ..talk() };
        assert_eq!(trained(source, &conversation, false).unwrap().0, ["Bye.<|im_end|>"]);
    }
}

#[test]
fn a_template_without_a_generation_prompt_does_not_train_its_headers() {
    let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}";
    let mut conversation = talk();
    assert_eq!(trained(source, &conversation, false).unwrap().0, ["Hello.<|im_end|>", "Bye.<|im_end|>"]);
    conversation.messages[1].content.clear();
    assert_eq!(trained(source, &conversation, false).unwrap().0, ["<|im_end|>", "Bye.<|im_end|>"]);
}

#[test]
fn text_between_content_and_end_token_is_trained_and_what_follows_the_token_is_not() {
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% if m.role == 'assistant' %}{{ ' (over)</s> ---' }}{% endif %}{{ '\n' }}{% endfor %}";
    assert_eq!(trained(source, &talk(), false).unwrap().0, ["Hello. (over)</s>", "Bye. (over)</s>"]);
}

#[test]
fn white_space_that_a_template_keeps_belongs_to_the_response() {
    let conversation = Conversation::new(vec![Message::user("Hi"), Message::assistant(" \n Hello. \n")]);
    assert_eq!(trained(CHATML, &conversation, false).unwrap().0, [" \n Hello. \n<|im_end|>"]);
    for (filter, kept) in [(".strip()", "Hello."), (".lstrip()", "Hello. \n"), (".rstrip()", " \n Hello.")] {
        let source = CHATML.replace("m.content", &format!("m.content{filter}"));
        assert_eq!(
            trained(&source, &conversation, false).unwrap().0,
            [format!("{kept}<|im_end|>")],
            "{filter}"
        );
    }
}

#[test]
fn what_cannot_be_masked_exactly_is_refused() {
    // The response is written in capitals, so nothing marks its end in the middle of the conversation, and a final
    // remark keeps a shorter conversation from being a prefix of the longer one.
    let source = "{% for m in messages %}{{ m.role + ': ' + m.content | upper | reverse + '\n' }}{% endfor %}{{ messages | length }} turns";
    assert!(matches!(trained(source, &talk(), false), Err(MaskError::Inexact(_))));
    // Every response twice: which one is trained?
    let source = "{% for m in messages %}{{ m.content }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}";
    assert!(matches!(trained(source, &talk(), false), Err(MaskError::Inexact(_))));
    // The response is summed up, not written.
    let source =
        "{% for m in messages %}{{ m.role }} wrote {{ m.content | length }} characters\n{% endfor %}";
    assert!(matches!(trained(source, &talk(), false), Err(MaskError::Inexact(_))));
    // Closed by one token inside of a conversation and by another at its end.
    let source = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{{ '</s>' if loop.last else '<|im_end|>' }}{% endfor %}";
    assert!(matches!(trained(source, &talk(), false), Err(MaskError::Inexact(_))));
}

#[test]
fn private_use_characters_in_the_data_do_not_disturb_the_marks() {
    let mut conversation = talk();
    conversation.messages[1].content = "\u{F0003}\u{F0004}x\u{F0000}".into();
    assert_eq!(trained(CHATML, &conversation, false).unwrap().0[0], "\u{F0003}\u{F0004}x\u{F0000}<|im_end|>");
    conversation.messages[0].content = "\u{100003}".into();
    assert!(matches!(trained(CHATML, &conversation, false), Err(MaskError::Inexact(_))));
}

fn load(bundle: &TokenizerBundle, row: serde_json::Value, options: &EncodeOptions) -> Dataset {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    std::fs::write(&path, row.to_string()).unwrap();
    let spec = DatasetSpec { train: vec![DatasetSource::new(path)], ..DatasetSpec::default() };
    load_examples(&spec, bundle, options).unwrap()
}

fn shown(bundle: &TokenizerBundle, data: &Dataset) -> (String, String) {
    let example = &data.train.get(0);
    let text = |keep: bool| {
        let ids: Vec<u32> = example
            .input_ids
            .iter()
            .zip(&example.labels)
            .filter(|(_, l)| (**l != IGNORE) == keep)
            .map(|(id, _)| *id)
            .collect();
        Text::decode(bundle, &ids).unwrap()
    };
    (text(false), text(true))
}

fn options(template: &str) -> EncodeOptions {
    EncodeOptions { template: Some(template.into()), ..EncodeOptions::default() }
}

#[test]
fn bos_is_added_once_and_masked_when_the_tokenizer_wants_it() {
    let row = json!({"question": "Hi", "answer": "Hello."});
    let adds = bundle("tokenizer", json!({"add_bos_token": true}));
    assert!(Text::add_bos(&adds));
    let words = common::folder("templates/marked").join("default.jinja").display().to_string();
    let data = load(&adds, row.clone(), &options(&words));
    assert_eq!(shown(&adds, &data), ("<s>Human: Hi</s>\nAssistant:\n".into(), "Hello.</s>".into()));
    // The template writes BOS already.
    let path = common::folder("templates").join("llama2.jinja").display().to_string();
    let data = load(&adds, row.clone(), &options(&path));
    assert_eq!(shown(&adds, &data).0.matches("<s>").count(), 1);
    assert_eq!(data.report.train.doubled_bos, 0);
    // Neither wants it.
    let data = load(&bundle("tokenizer", json!({})), row, &options(&words));
    assert_eq!(shown(&adds, &data).0, "Human: Hi</s>\nAssistant:\n");
}

#[test]
fn a_doubled_bos_in_the_data_is_reported() {
    let adds = bundle("tokenizer", json!({"add_bos_token": true}));
    let data = load(&adds, json!({"text": "<s><s>twice"}), &EncodeOptions::default());
    assert_eq!(data.report.train.doubled_bos, 1);
    assert!(data.report.to_string().contains("1 row with a doubled BOS"));
}

#[test]
fn text_rows_train_every_token_and_eos_but_not_bos() {
    let adds = bundle("tokenizer", json!({"add_bos_token": true}));
    let data = load(&adds, json!({"text": "Once."}), &EncodeOptions::default());
    assert_eq!(shown(&adds, &data), ("<s>".into(), "Once.</s>".into()));
    let data = load(&adds, json!({"text": "Once.</s>"}), &EncodeOptions::default());
    assert_eq!(shown(&adds, &data).1, "Once.</s>");
}

#[test]
fn eos_closes_and_is_trained_where_the_template_writes_no_end_token() {
    let b = bundle("tokenizer", json!({}));
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("words.jinja");
    std::fs::write(&file, "{% for m in messages %}{{ m.role + ': ' + m.content + '\n\n' }}{% endfor %}")
        .unwrap();
    let options = options(&file.display().to_string());
    let data = load(&b, json!({"question": "Hi", "answer": "Hello."}), &options);
    assert_eq!(shown(&b, &data), ("user: Hi\n\nassistant:".into(), " Hello.</s>".into()));
    assert_eq!(data.report.train.unclosed, 0);
    // A last word that is no token: trained, then EOS.
    std::fs::write(&file, "{% for m in messages %}{{ m.role + ': ' + m.content + '\nEND\n' }}{% endfor %}")
        .unwrap();
    let data = load(&b, json!({"question": "Hi", "answer": "Hello."}), &options);
    assert_eq!(shown(&b, &data).1, " Hello.\nEND</s>");
}

#[test]
fn train_on_prompt_trains_everything_but_bos() {
    let adds = bundle("tokenizer", json!({"add_bos_token": true}));
    let words = common::folder("templates/marked").join("default.jinja").display().to_string();
    let options = EncodeOptions { train_on_prompt: true, ..options(&words) };
    let data = load(&adds, json!({"question": "Hi", "answer": "Hello."}), &options);
    let (masked, trained) = shown(&adds, &data);
    assert_eq!((masked.as_str(), trained.trim_end()), ("<s>", "Human: Hi</s>\nAssistant:Hello.</s>"));
}

#[test]
fn a_model_without_a_template_joins_prompt_and_completion_and_says_so() {
    let b = bundle("tokenizer", json!({}));
    let data = load(&b, json!({"prompt": "2 + 2 =", "completion": " 4"}), &EncodeOptions::default());
    assert_eq!(shown(&b, &data), ("2 + 2 =".into(), " 4</s>".into()));
    assert!(data.report.to_string().contains("the model has no chat template"));
}

#[test]
fn a_token_that_straddles_the_start_of_the_response_is_trained() {
    // `ĠHello` holds the space that the template writes and the first letters of the response.
    let b = bundle("tokenizer", json!({}));
    let path = common::folder("templates").join("mistral.jinja");
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.jinja");
    std::fs::write(&file, common::plain(&std::fs::read_to_string(path).unwrap())).unwrap();
    let data = load(&b, json!({"question": "Hi", "answer": "Hello."}), &options(&file.display().to_string()));
    let example = &data.train.get(0);
    let first = example.labels.iter().position(|&l| l != IGNORE).unwrap();
    let piece = Text::piece(&b, example.input_ids[first]).unwrap();
    assert!(piece.starts_with('Ġ') && piece.len() > 'Ġ'.len_utf8(), "{piece}");
}
