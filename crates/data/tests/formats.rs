//! Every format and everything that can be wrong with a file or a row.

mod common;

use std::path::Path;

use common::bundle;
use loratune_data::formats::recognise;
use loratune_data::read::read_source;
use loratune_data::{
    DataError, Dataset, DatasetSource, DatasetSpec, EncodeOptions, Message, Record, format_table,
    load_examples,
};
use serde_json::{Value, json};

fn write(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn convert(row: Value) -> Result<(&'static str, Record), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "d.jsonl", &row.to_string());
    let rows = read_source(&DatasetSource::new(&path)).map_err(|e| e.to_string())?;
    recognise(&rows[0]).map(|(f, r)| (f.name, r)).map_err(|e| e.to_string())
}

fn chat(row: Value) -> (&'static str, Vec<Message>) {
    match convert(row).unwrap() {
        (name, Record::Chat(c)) => (name, c.messages),
        other => panic!("{other:?}"),
    }
}

fn error(row: Value) -> String {
    convert(row).unwrap_err()
}

#[test]
fn alpaca_joins_instruction_and_input_and_skips_empty_ones() {
    let (name, messages) = chat(json!({
        "instruction": "Add.", "input": "2 and 3", "output": "5", "system": "Count.",
        "history": [["Hi", "Hello"]], "id": 7
    }));
    assert_eq!(name, "alpaca");
    let expected = [
        Message::system("Count."),
        Message::user("Hi"),
        Message::assistant("Hello"),
        Message::user("Add.\n2 and 3"),
        Message::assistant("5"),
    ];
    assert_eq!(messages, expected);
    let (_, messages) = chat(json!({"instruction": "Add.", "input": "", "output": "5", "history": null}));
    assert_eq!(messages[0], Message::user("Add."));
    let (_, messages) = chat(json!({"instruction": "", "input": "2", "output": "5"}));
    assert_eq!(messages[0], Message::user("2"));
}

#[test]
fn messages_take_text_parts_and_tool_calls_and_drop_nulls() {
    let row = json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": null},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
        {"role": "tool", "content": "ok", "tool_call_id": "1"},
        {"role": "assistant", "content": "done"}
    ], "tools": [{"type": "function", "function": {"name": "f"}}], "chat_template_kwargs": {"enable_thinking": false}});
    let (name, Record::Chat(c)) = convert(row).unwrap() else { panic!() };
    assert_eq!(name, "messages");
    assert_eq!(c.messages[0], Message::user("ab"));
    assert_eq!(c.messages[1].extra["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
    assert_eq!(c.messages[2].extra["tool_call_id"], "1");
    assert_eq!(c.variables["enable_thinking"], false);
    assert_eq!(c.tools.unwrap()[0]["function"]["name"], "f");
}

#[test]
fn conversations_take_sharegpt_roles_and_function_calls() {
    let row = json!({"conversations": [
        {"from": "human", "value": "Weather?"},
        {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"x\": 1}}"},
        {"from": "observation", "value": "15"},
        {"from": "gpt", "value": "15 degrees"}
    ], "system": "Be brief.", "tools": "[{\"name\": \"f\", \"parameters\": {}}]"});
    let (name, Record::Chat(c)) = convert(row).unwrap() else { panic!() };
    assert_eq!(name, "conversations");
    let roles: Vec<&str> = c.messages.iter().map(|m| m.role.as_str()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "tool", "assistant"]);
    assert_eq!(c.messages[2].extra["tool_calls"][0]["function"], json!({"name": "f", "arguments": {"x": 1}}));
    assert_eq!(c.tools.unwrap(), json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]));
    let (_, messages) =
        chat(json!({"conversations": [{"role": "user", "content": "a"}, {"from": "gpt", "value": "b"}]}));
    assert_eq!(messages, [Message::user("a"), Message::assistant("b")]);
}

#[test]
fn prompt_and_completion_may_be_strings_or_message_lists() {
    let (name, messages) = chat(json!({"prompt": "2+2=", "completion": "4"}));
    assert_eq!((name, messages), ("prompt/completion", vec![Message::user("2+2="), Message::assistant("4")]));
    let row = json!({
        "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
        "completion": [{"role": "assistant", "content": "d"}]
    });
    let (_, Record::Chat(c)) = convert(row).unwrap() else { panic!() };
    assert_eq!((c.messages.len(), c.first_response), (4, 3));
    assert!(
        error(json!({"prompt": "a", "completion": [{"role": "assistant", "content": "d"}]})).contains("both")
    );
}

#[test]
fn the_simple_formats_are_recognised() {
    assert_eq!(chat(json!({"question": "a", "answer": "b"})).0, "question/answer");
    assert_eq!(convert(json!({"text": "a"})).unwrap(), ("text", Record::Text("a".into())));
    let tokens =
        convert(json!({"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [1, 1]})).unwrap();
    assert_eq!(tokens, ("tokens", Record::Tokens { input_ids: vec![1, 2], labels: Some(vec![-100, 2]) }));
    for name in
        ["alpaca", "messages", "conversations", "prompt/completion", "question/answer", "text", "tokens"]
    {
        assert!(format_table().contains(name));
    }
}

#[test]
fn wrong_fields_name_the_row_and_the_nearest_right_field() {
    let cases: &[(Value, &[&str])] = &[
        (
            json!({"instruct": "a", "output": "b"}),
            &["d.jsonl:1", "`instruct`", "did you mean `instruction` for `instruct` (alpaca)?"],
        ),
        (json!({"mesages": []}), &["did you mean `messages` for `mesages`"]),
        (json!({"prompt": "a", "completions": "b"}), &["`completion` for `completions`"]),
        (json!({"prompt": "a", "completion": null}), &["`completion` is null"]),
        (json!({"instruction": "a"}), &["for alpaca, `output` is missing"]),
        (json!({}), &["(none)", "input_ids"]),
        (
            json!({"instruction": "a", "inputs": "b", "output": "c"}),
            &["`inputs` is unknown; did you mean `input`?"],
        ),
        (
            json!({"instruction": 3, "output": "c"}),
            &["(alpaca)", "`instruction` should be a string, found a number"],
        ),
        (json!({"instruction": "a", "output": "b", "history": [["x"]]}), &["`history`[0] should be a pair"]),
        (json!({"text": ["a"]}), &["`text` should be a string, found a list"]),
        (json!({"messages": []}), &["`messages` is an empty list"]),
        (
            json!({"messages": [{"role": "asistant", "content": "a"}]}),
            &["`messages`[0]: unknown role `asistant`; did you mean `assistant`?"],
        ),
        (json!({"messages": [{"rolle": "user", "content": "a"}]}), &["did you mean `role` for `rolle`?"]),
        (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), &["part of type `image`"]),
        (
            json!({"conversations": [{"from": "function_call", "value": "f(1)"}]}),
            &["function_call should be JSON"],
        ),
        (json!({"conversations": [{"from": "human", "value": "a"}], "tools": "{"}), &["`tools` is not JSON"]),
        (json!({"input_ids": []}), &["`input_ids` is empty"]),
        (json!({"input_ids": [1], "labels": [1, 2]}), &["`labels` has 2 entries but `input_ids` has 1"]),
        (json!({"input_ids": [1.5]}), &["`input_ids`[0] should be an integer, found 1.5"]),
    ];
    for (row, parts) in cases {
        let message = error(row.clone());
        for part in *parts {
            assert!(message.contains(part), "{row}\n{message}\nlacks {part}");
        }
    }
}

fn read(path: &Path) -> Result<usize, String> {
    read_source(&DatasetSource::new(path)).map(|r| r.len()).map_err(|e| e.to_string())
}

#[test]
fn files_are_read_as_lines_or_arrays_and_folders_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    assert_eq!(read(&write(f, "a.jsonl", "\u{feff}{\"text\": \"1\"}\r\n\n{\"text\": \"2\"}\n")), Ok(2));
    assert_eq!(read(&write(f, "b.json", "[{\"text\": \"3\"}]")), Ok(1));
    assert_eq!(read(&write(f, "c.json", "{\"text\": \"4\"}\n{\"text\": \"5\"}")), Ok(2));
    write(f, "dataset_info.json", "{}");
    write(f, "notes.md", "");
    let rows = read_source(&DatasetSource::new(f)).unwrap();
    let texts: Vec<&str> = rows.iter().map(|r| r.fields["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["1", "2", "3", "4", "5"]);
    assert_eq!(rows[1].source.line, Some(3));
    assert_eq!(rows[2].source.to_string(), format!("{}, row 1", f.join("b.json").display()));
    let head = DatasetSource { max_samples: Some(4), ..DatasetSource::new(f) };
    assert_eq!(read_source(&head).unwrap().len(), 4);
    // Rows past max_samples are not looked at.
    let path = write(f, "d.jsonl", "{\"text\": \"1\"}\n{broken");
    assert_eq!(
        read_source(&DatasetSource { max_samples: Some(1), ..DatasetSource::new(path) }).unwrap().len(),
        1
    );
}

#[test]
fn broken_files_are_named_with_line_and_fragment() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    let check = |path: &Path, parts: &[&str]| {
        let message = read(path).unwrap_err();
        parts.iter().for_each(|p| assert!(message.contains(p), "{message}\nlacks {p}"));
    };
    check(
        &write(f, "a.jsonl", "{\"text\": \"1\"}\n\n{\"text\": \"ü\" \"x\"}"),
        &["a.jsonl:3", "near: ", "ü"],
    );
    check(&write(f, "t.jsonl", "{\"text\": \"cut"), &["t.jsonl:1", "broken JSON", "EOF"]);
    check(&write(f, "b.json", "[{\"text\": \"1\"},\n {\"text\": }]"), &["b.json:2", "near: "]);
    check(&write(f, "c.json", "3"), &["expected an array of objects", "found a number"]);
    check(&write(f, "d.jsonl", "[1]"), &["d.jsonl:1: expected an object", "found a list"]);
    check(&write(f, "e.jsonl", "\n \n"), &["the dataset is empty"]);
    check(&write(f, "f.json", "[]"), &["the dataset is empty"]);
    check(&write(f, "g.xlsx", "a,b"), &["`.xlsx` files are not read", ".jsonl"]);
    check(&write(f, "h.parquet", "PAR1"), &["h.parquet: cannot be read"]);
    check(&write(f, "h.arrow", "ARROW1 and no more"), &["h.arrow: cannot be read"]);
    check(&write(f, "h.csv", "a,b\n1,2\n3\n"), &["h.csv:3: 1 cells where the first line names 2"]);
    check(&write(f, "i.csv", "a,a\n1,2\n"), &["`a` stands there twice"]);
    check(&write(f, "k.json", "[{\"text\": \"1\"} {\"text\": \"2\"}]"), &["k.json:1", "expected `,` or `]`"]);
    check(&write(f, "l.json", "[{\"text\": \"1\"},\n{\"text\": \"2\""), &["l.json:2", "EOF"]);
    check(&write(f, "m.json", "[{\"text\": \"1\"},]"), &["m.json:1", "broken JSON at column 16"]);
    check(&write(f, "n.json", "[{\"text\": \"1\"}] 5"), &["n.json:1", "trailing characters"]);
    check(&f.join("a.json"), &["no such file or folder; did you mean", "a.jsonl"]);
    check(&f.join("nowhere/x.json"), &["does not exist either"]);
    let bytes = f.join("i.jsonl");
    std::fs::write(&bytes, b"{}\n{\"text\": \"\xff\"}").unwrap();
    check(&bytes, &["not valid UTF-8", "line 2"]);
    check(f, &["holds files of different kinds", "a.jsonl"]);
    std::fs::create_dir(f.join("empty")).unwrap();
    check(&f.join("empty"), &["holds no .json, .jsonl, .csv"]);
    let none = DatasetSource { max_samples: Some(0), ..DatasetSource::new(f.join("d.jsonl")) };
    assert!(read_source(&none).unwrap_err().to_string().contains("max_samples is 0"));
}

fn load(lines: &[Value], spec: DatasetSpec, options: &EncodeOptions) -> Result<Dataset, DataError> {
    let folder = tempfile::tempdir().unwrap();
    let text: Vec<String> = lines.iter().map(Value::to_string).collect();
    let path = write(folder.path(), "d.jsonl", &text.join("\n"));
    let spec = DatasetSpec { train: vec![DatasetSource::new(path)], ..spec };
    load_examples(&spec, &bundle("tokenizer", json!({})), options)
}

#[test]
fn contradicting_or_impossible_requests_say_what_to_change() {
    let row = json!({"question": "Hi there you", "answer": "Hello"});
    let message = |spec: DatasetSpec, options: EncodeOptions, row: &Value| {
        load(std::slice::from_ref(row), spec, &options).unwrap_err().to_string()
    };
    let none = DatasetSpec::default;
    let named = |t: &str| EncodeOptions { template: Some(t.into()), ..EncodeOptions::default() };
    let both = EncodeOptions { train_on_prompt: true, mask_history: true, ..named("default") };
    assert!(message(none(), both, &row).contains("contradict"));
    let zero = EncodeOptions { cutoff_len: Some(0), ..named("default") };
    assert!(message(none(), zero, &row).contains("cutoff_len is 0"));
    let m = message(none(), named("chatm"), &row);
    assert!(m.contains("`chatm` is unknown; did you mean `chatml`?") && m.contains("vicuna, xuanyuan, yi"));
    assert!(message(none(), named("no/such.jinja"), &row).contains("there is no file of that name"));
    let spec = DatasetSpec { val_size: 0.1, eval: vec![DatasetSource::new("x.json")], ..none() };
    assert!(message(spec, named("default"), &row).contains("val_size and eval_dataset"));
    let users = json!({"messages": [{"role": "user", "content": "Hi"}]});
    assert!(message(none(), named("default"), &users).contains("d.jsonl:1: no assistant message"));
    let m = message(none(), named("default"), &json!({"input_ids": [5, 99999]}));
    assert!(m.contains("`input_ids`[1] is 99999, but the vocabulary has"), "{m}");
    let m = message(none(), named("default"), &json!({"input_ids": [5], "labels": [-1]}));
    assert!(m.contains("`labels`[0] is -1"), "{m}");
    let m = message(none(), named("default"), &json!({"input_ids": [5], "labels": [-100]}));
    assert!(m.contains("nothing to train on: none of the 1 rows"), "{m}");
    let nothing = load_examples(&none(), &bundle("tokenizer", json!({})), &named("default")).unwrap_err();
    assert!(matches!(nothing, DataError::NoDataset));
}

#[test]
fn a_template_that_raises_is_one_clear_error_with_its_row() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        folder.path(),
        "t.jinja",
        "{% if messages | length > 2 %}\n{{ raise_exception('too many turns') }}{% endif %}",
    );
    let options = EncodeOptions { template: Some(file.display().to_string()), ..EncodeOptions::default() };
    let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]});
    let message = load(&[row], DatasetSpec::default(), &options).unwrap_err().to_string();
    assert!(
        message.contains("d.jsonl:1: template `")
            && message.ends_with("(line 2): the template refuses: too many turns"),
        "{message}"
    );
    write(folder.path(), "t.jinja", "{% for %}");
    let message = load(&[json!({"text": "a"})], DatasetSpec::default(), &options).unwrap_err().to_string();
    assert!(message.contains("(line 1)") && message.contains("syntax error"), "{message}");
    write(
        folder.path(),
        "t.jinja",
        "{% for i in range(100000) %}{% for i in range(100000) %}{% endfor %}{% endfor %}",
    );
    let row = json!({"question": "a", "answer": "b"});
    assert!(load(&[row], DatasetSpec::default(), &options).unwrap_err().to_string().contains("fuel"));
}

#[test]
fn responses_lost_to_cutoff_len_are_dropped_counted_and_explained() {
    // Right truncation (pre-tokenised rows) can lose a response; turns keep a share for it.
    let lost = json!({"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, -100, -100, -100, 9, 10]});
    let kept = json!({"input_ids": [5, 6, 7, 8], "labels": [-100, 6, 7, 8]});
    let options = EncodeOptions { cutoff_len: Some(3), ..EncodeOptions::default() };
    let data = load(&[lost.clone(), kept], DatasetSpec::default(), &options).unwrap();
    let train = &data.report.train;
    assert_eq!(
        (train.rows, train.dropped, train.truncated_rows, train.tokens, train.trained_tokens),
        (2, 1, 2, 3, 2)
    );
    assert!(data.report.to_string().contains("1 row left out: no trained token after cutting at 3 tokens"));
    let message = load(&[lost.clone(), lost], DatasetSpec::default(), &options).unwrap_err().to_string();
    assert_eq!(
        message,
        "nothing to train on: all 2 rows lost their response to cutoff_len 3; the shortest prompt has 4 tokens"
    );
}

#[test]
fn a_label_of_the_first_token_is_no_target() {
    let alone = json!({"input_ids": [5]});
    let first_only = json!({"input_ids": [5, 6, 7], "labels": [5, -100, -100]});
    let kept = json!({"input_ids": [5, 6, 7]});
    let options = EncodeOptions::default();
    let rows = [alone.clone(), first_only.clone(), kept];
    let data = load(&rows, DatasetSpec::default(), &options).unwrap();
    let train = &data.report.train;
    assert_eq!((train.rows, train.dropped, train.tokens, train.trained_tokens), (3, 2, 3, 2));
    assert_eq!(data.train.iter().map(|e| e.trained()).collect::<Vec<_>>(), [2]);
    let shown: Vec<bool> = data.report.sample.unwrap().tokens.iter().map(|t| t.trained).collect();
    assert_eq!(shown, [false, true, true]);

    let message = load(&[alone, first_only], DatasetSpec::default(), &options).unwrap_err().to_string();
    assert_eq!(
        message,
        "nothing to train on: none of the 2 rows has a trained token; their responses are empty, or their labels are \
         all -100"
    );
    // A cut that leaves one token leaves no target.
    let options = EncodeOptions { cutoff_len: Some(1), ..EncodeOptions::default() };
    let cut = json!({"input_ids": [5, 6, 7]});
    let message = load(&[cut], DatasetSpec::default(), &options).unwrap_err().to_string();
    assert!(message.contains("the only row lost its response to cutoff_len 1"), "{message}");
}
