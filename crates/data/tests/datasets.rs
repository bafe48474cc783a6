//! `dataset_info.json`, mixing, the cache and streams.

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::bundle;
use loratune_data::{
    CacheOptions, Dataset, DatasetHub, DatasetSource, DatasetSpec, EncodeOptions, Example, ExampleStream,
    Finder, HubDataset, Mix, load_examples,
};
use serde_json::{Value, json};

fn write(folder: &Path, name: &str, value: &Value) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, value.to_string()).unwrap();
    path
}

fn options() -> EncodeOptions {
    EncodeOptions { template: Some("chatml".into()), ..EncodeOptions::default() }
}

fn load(train: Vec<DatasetSource>) -> Result<Dataset, String> {
    let spec = DatasetSpec { train, ..DatasetSpec::default() };
    load_examples(&spec, &bundle("tokenizer", json!({})), &options()).map_err(|e| e.to_string())
}

fn texts(data: &Dataset) -> Vec<String> {
    let text = bundle("tokenizer", json!({}));
    data.train.iter().map(|e| text.decode(&e.input_ids, false).unwrap()).collect()
}

fn turn(role: &str, content: &str) -> String {
    format!("<|im_start|>{role}\n{content}<|im_end|>\n")
}

fn index(folder: &Path, entries: Value) {
    write(folder, "dataset_info.json", &entries);
}

#[test]
fn entries_say_what_columns_and_tags_mean() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    index(
        f,
        json!({
            "own": {"file_name": "own.json", "columns": {"prompt": "q", "response": "a", "system": "s", "history": "h"}},
            "silent": {"file_name": "silent.json"},
            "chat": {"file_name": "chat.json", "formatting": "sharegpt", "columns": {"messages": "m", "tools": "t"},
                "tags": {"role_tag": "r", "content_tag": "c", "user_tag": "U", "assistant_tag": "A", "system_tag": "S",
                    "observation_tag": "O", "function_tag": "F"}},
            "openai": {"file_name": "openai.json", "formatting": "openai", "columns": {"messages": "messages"},
                "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant",
                    "observation_tag": "tool", "system_tag": "system", "function_tag": "function_call"}},
            "texts": {"file_name": "texts.txt", "columns": {"prompt": "text"}},
        }),
    );
    // `input` and `output` are not named, so that they are not read.
    write(
        f,
        "own.json",
        &json!([{"q": "Q", "a": "R", "s": "Z", "h": [["p", "o"]], "input": "no", "output": "no"}]),
    );
    write(
        f,
        "silent.json",
        &json!([{"instruction": "I", "output": "R", "system": "not read", "history": [["a", "b"]]}]),
    );
    write(
        f,
        "chat.json",
        &json!([{"m": [
        {"r": "S", "c": "Sys"}, {"r": "U", "c": "Hi"}, {"r": "F", "c": "{\"name\": \"f\", \"arguments\": {}}"},
        {"r": "O", "c": "15"}, {"r": "A", "c": "Done"}], "t": "[{\"name\": \"f\", \"parameters\": {}}]"}]),
    );
    write(
        f,
        "openai.json",
        &json!([{"messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, {"role": "assistant", "content": "Done"}]}]),
    );
    std::fs::write(f.join("texts.txt"), "Once upon\n").unwrap();
    let mut finder = Finder::new(&f.display().to_string(), None).unwrap();
    let mut one = |name: &str| texts(&load(vec![finder.find(name).unwrap()]).unwrap()).remove(0);
    assert_eq!(
        one("own"),
        turn("system", "Z")
            + &turn("user", "p")
            + &turn("assistant", "o")
            + &turn("user", "Q")
            + &turn("assistant", "R")
    );
    assert_eq!(one("silent"), turn("user", "I") + &turn("assistant", "R"));
    let chat = one("chat");
    for part in ["Sys", "Tool Name: f", "Action: f", &turn("tool", "15"), &turn("assistant", "Done")] {
        assert!(chat.contains(part), "{chat}\nlacks {part}");
    }
    let openai = one("openai");
    assert!(openai.contains(&turn("tool", "1\n</tool_response>\n<tool_response>\n2")), "{openai}");
    assert!(openai.contains("Action: f"), "{openai}");
    assert_eq!(one("texts"), "Once upon</s>");
}

#[test]
fn rows_that_llama_factory_leaves_out_are_counted_and_said() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    index(
        f,
        json!({"chat": {"file_name": "chat.json", "formatting": "sharegpt"}, "null": {"file_name": "null.json"}}),
    );
    let row = |roles: &[&str]| -> Value {
        json!({"conversations": roles.iter().map(|r| json!({"from": r, "value": "x"})).collect::<Vec<_>>()})
    };
    let rows = [
        row(&["human", "gpt"]),
        row(&["human", "human", "gpt"]),
        row(&["gpt", "human"]),
        row(&["human", "gpt", "human"]),
        row(&["human", "narrator"]),
    ];
    write(f, "chat.json", &json!(rows));
    write(f, "null.json", &json!([{"instruction": "a", "output": null}]));
    let mut finder = Finder::new(&f.display().to_string(), None).unwrap();
    let data = load(vec![finder.find("chat").unwrap()]).unwrap();
    let train = &data.report.train;
    assert_eq!((train.rows, train.dropped, train.unusable, data.train.len()), (5, 4, 4, 1));
    let warning = data.report.warnings.join("\n");
    assert!(warning.contains("4 rows are left out") && warning.contains("chat.json, row 2"), "{warning}");
    assert_eq!(data.report.formats, [("sharegpt".to_string(), 5)]);
    let message = load(vec![finder.find("null").unwrap()]).unwrap_err();
    assert!(message.contains("none of the 1 rows can be used"), "{message}");
}

#[test]
fn what_is_wrong_with_an_index_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    let check = |entry: Value, parts: &[&str]| {
        index(f, json!({"name": entry}));
        let found = Finder::new(&f.display().to_string(), None).and_then(|mut finder| finder.find("name"));
        let message = found.unwrap_err().to_string();
        parts.iter().for_each(|p| assert!(message.contains(p), "{message}\nlacks {p}"));
    };
    check(json!({"file_nam": "x.json"}), &["dataset_info.json: dataset `name`", "did you mean `file_name`?"]);
    check(json!({"formatting": "alpaca"}), &["names no place"]);
    check(json!({"script_url": "x"}), &["`script_url` is not supported"]);
    check(json!({"file_name": "x", "formatting": "vicuna"}), &["`formatting` is `vicuna`"]);
    check(json!({"file_name": "x", "ranking": true}), &["preferences"]);
    check(json!({"file_name": "x", "columns": {"promt": "a"}}), &["did you mean `columns.prompt`?"]);
    check(json!({"file_name": "x", "columns": {"response": "a"}}), &["names no `prompt`"]);
    check(json!({"file_name": "x", "columns": {"prompt": "a", "images": "b"}}), &["only text"]);
    check(
        json!({"file_name": "x", "formatting": "sharegpt", "tags": {"user_tag": "u"}}),
        &["no `assistant_tag`"],
    );
    check(json!({"file_name": "x", "num_samples": 0}), &["`num_samples` should be"]);
    check(json!({"hf_hub_url": "a/b"}), &["dataset a/b of the Hugging Face hub: this build cannot fetch"]);
    check(json!([]), &["expected an object"]);
    index(
        f,
        json!({"alpaca_en": {"file_name": "x.json", "columns": {"prompt": "instructions", "response": "output"}}}),
    );
    let mut finder = Finder::new(&f.display().to_string(), None).unwrap();
    let message = finder.find("alpaca_em").unwrap_err().to_string();
    assert!(
        message.contains("dataset `alpaca_em` is unknown") && message.contains("did you mean `alpaca_en`?")
    );
    write(f, "x.json", &json!([{"instruction": "a", "output": "b"}]));
    let message = load(vec![finder.find("alpaca_en").unwrap()]).unwrap_err();
    assert!(
        message.contains("names the column `instructions`, which no row has; did you mean `instruction`?"),
        "{message}"
    );
    std::fs::write(f.join("dataset_info.json"), "[]").unwrap();
    assert!(Finder::new(&f.display().to_string(), None).err().unwrap().to_string().contains("found a list"));
}

struct OneHub(PathBuf);

impl DatasetHub for OneHub {
    fn fetch(&self, wanted: &HubDataset) -> Result<Vec<PathBuf>, String> {
        match wanted.repository.as_str() {
            "llamafactory/glaive_toolcall_en" => Ok(vec![self.0.clone()]),
            other => Err(format!("there is no {other}, split {:?}", wanted.split)),
        }
    }
    fn file(&self, repository: &str, _: &str) -> Result<PathBuf, String> {
        Err(format!("nothing in {repository}"))
    }
}

#[test]
fn hub_entries_old_names_and_names_of_the_hub() {
    let folder = tempfile::tempdir().unwrap();
    let f = folder.path();
    let data = write(
        f,
        "g.jsonl",
        &json!({"conversations": [
        {"from": "human", "value": "Weather?"}, {"from": "function_call", "value": "{\"name\": \"w\", \"arguments\": {}}"},
        {"from": "observation", "value": "{\"t\": 15}"}, {"from": "gpt", "value": "15"}], "tools": "[]"}),
    );
    index(
        f,
        json!({"glaive_toolcall_en": {"hf_hub_url": "llamafactory/glaive_toolcall_en", "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"}}, "other": {"hf_hub_url": "a/b", "split": "test"}}),
    );
    let hub = OneHub(data);
    let dir = f.display().to_string();
    let mut finder = Finder::new(&dir, Some(&hub)).unwrap();
    let source = finder.find("glaive_toolcall").unwrap();
    assert!(finder.notes()[0].contains("`glaive_toolcall` is now called `glaive_toolcall_en`"));
    assert_eq!(load(vec![source]).unwrap().train.len(), 1);
    assert!(finder.find("other").unwrap_err().to_string().contains("there is no a/b, split Some(\"test\")"));
    assert_eq!(finder.find("llamafactory/glaive_toolcall_en").unwrap().files.len(), 1);
    assert!(finder.find("a/b.json").unwrap_err().to_string().contains("no such file"));
    let mut online = Finder::new("ONLINE", Some(&hub)).unwrap();
    assert_eq!(online.find("llamafactory/glaive_toolcall_en").unwrap().files.len(), 1);
    assert!(Finder::new("REMOTE:x/y", Some(&hub)).err().unwrap().to_string().contains("nothing in x/y"));
    assert!(Finder::new("REMOTE:x/y", None).err().unwrap().to_string().contains("cannot fetch"));
}

/// Rows whose question is a number from `from`.
fn numbers(folder: &Path, name: &str, numbers: std::ops::Range<usize>) -> DatasetSource {
    let rows: Vec<String> =
        numbers.map(|i| json!({"question": i.to_string(), "answer": format!("{i}!")}).to_string()).collect();
    let path = folder.join(name);
    std::fs::write(&path, rows.join("\n")).unwrap();
    DatasetSource { name: name.into(), ..DatasetSource::new(path) }
}

fn question(example: &Example) -> usize {
    let text = bundle("tokenizer", json!({})).decode(&example.input_ids, false).unwrap();
    text.split("user\n").nth(1).unwrap().split("<|im_end|>").next().unwrap().parse().unwrap()
}

fn questions(data: &Dataset) -> Vec<usize> {
    data.train.iter().map(|e| question(&e)).collect()
}

#[test]
fn datasets_are_cut_before_they_are_merged_and_split_after() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (numbers(folder.path(), "a.jsonl", 0..50), numbers(folder.path(), "b.jsonl", 100..103));
    let a = DatasetSource { max_samples: Some(4), ..a };
    let text = bundle("tokenizer", json!({}));
    let spec = DatasetSpec { train: vec![a.clone(), b.clone()], ..DatasetSpec::default() };
    let load = |spec: &DatasetSpec| load_examples(spec, &text, &options()).unwrap();
    assert_eq!(questions(&load(&spec)), [0, 1, 2, 3, 100, 101, 102]);
    let over = DatasetSpec { mix: Mix::InterleaveOver, ..spec.clone() };
    assert_eq!(questions(&load(&over)), [0, 100, 1, 101, 2, 102, 3, 100]);
    let split = load(&DatasetSpec { val_size: 0.25, ..spec.clone() });
    assert_eq!((split.train.len(), split.eval.len()), (5, 2));
    let apart = DatasetSpec {
        train: vec![a.clone()],
        eval: vec![b.clone(), a.clone()],
        eval_apart: true,
        ..spec.clone()
    };
    let apart = load(&apart);
    assert_eq!(apart.eval_sets, [("b.jsonl".to_string(), 0..3), ("a.jsonl".to_string(), 3..7)]);
    // num_samples draws at random, and draws again only when there are too few.
    let drawn = |n: usize| {
        let source = DatasetSource { num_samples: Some(n), max_samples: None, ..a.clone() };
        questions(&load(&DatasetSpec { train: vec![source], seed: 7, ..DatasetSpec::default() }))
    };
    let ten = drawn(10);
    assert_eq!(ten, drawn(10));
    assert_ne!(ten, (0..10).collect::<Vec<_>>());
    let mut counts = BTreeMap::new();
    drawn(120).into_iter().for_each(|q| *counts.entry(q).or_insert(0) += 1);
    assert_eq!((counts.len(), counts.values().sum::<i32>()), (50, 120));
}

#[test]
fn tokenised_rows_are_kept_and_found_again_by_content() {
    let folder = tempfile::tempdir().unwrap();
    let source = numbers(folder.path(), "a.jsonl", 0..3000);
    let kept = folder.path().join("kept");
    let cache = CacheOptions { min_bytes: 0, ..CacheOptions::new(&kept) };
    let text = bundle("tokenizer", json!({}));
    let spec = DatasetSpec {
        train: vec![source.clone()],
        val_size: 0.1,
        cache: Some(cache.clone()),
        ..DatasetSpec::default()
    };
    let files = || -> Vec<PathBuf> {
        let mut files: Vec<_> = std::fs::read_dir(&kept).unwrap().map(|e| e.unwrap().path()).collect();
        files.sort();
        files
    };
    let plain = load_examples(&DatasetSpec { cache: None, ..spec.clone() }, &text, &options()).unwrap();
    let load = |spec: &DatasetSpec, options: &EncodeOptions| load_examples(spec, &text, options).unwrap();
    let first = load(&spec, &options());
    assert!(first.train == plain.train && first.eval == plain.eval);
    assert_eq!(first.report, plain.report);
    let one = files();
    assert_eq!(one.len(), 1, "one file, and nothing half-written");
    let written = || std::fs::metadata(&one[0]).unwrap().modified().unwrap();
    let when = written();
    let again = load(&spec, &options());
    assert!(again.train == plain.train && again.report == plain.report && written() == when);
    // Another path with the same content is the same data, and is called by its own name.
    let moved = folder.path().join("moved.jsonl");
    std::fs::copy(&source.path, &moved).unwrap();
    let elsewhere = DatasetSpec { train: vec![DatasetSource::new(&moved)], ..spec.clone() };
    let data = load(&elsewhere, &options());
    assert_eq!(files(), one);
    assert!(data.train.source(0).to_string().starts_with(&moved.display().to_string()));
    // Whatever changes tokens has a file of its own; what does not, has none.
    let cut = EncodeOptions { cutoff_len: Some(9), ..options() };
    let prompts = EncodeOptions { train_on_prompt: true, ..options() };
    let packed = EncodeOptions { packing: Some(64), now: Some(5), ..options() };
    [&cut, &prompts, &packed].into_iter().for_each(|o| drop(load(&spec, o)));
    let head = DatasetSource { max_samples: Some(5), ..source.clone() };
    assert_eq!(
        load(&DatasetSpec { train: vec![head], val_size: 0.0, ..spec.clone() }, &options()).train.len(),
        5
    );
    assert_eq!(files().len(), 4);
    // A damaged file is noticed, whichever byte it is, and made anew.
    let bytes = std::fs::read(&one[0]).unwrap();
    for at in [3, 20, 60, bytes.len() / 2, bytes.len() - 1] {
        let mut broken = bytes.clone();
        broken[at] ^= 0x10;
        std::fs::write(&one[0], &broken).unwrap();
        let data = load(&spec, &options());
        assert!(data.train == plain.train);
        assert!(data.report.warnings.iter().any(|w| w.contains("damaged")), "byte {at}");
        assert_eq!(std::fs::read(&one[0]).unwrap(), bytes);
    }
    std::fs::write(&one[0], &bytes[..bytes.len() - 8]).unwrap();
    assert!(load(&spec, &options()).report.warnings.iter().any(|w| w.contains("damaged")));
    let when = written();
    std::thread::sleep(std::time::Duration::from_millis(20));
    load(
        &DatasetSpec { cache: Some(CacheOptions { overwrite: true, ..cache.clone() }), ..spec.clone() },
        &options(),
    );
    assert_ne!(written(), when, "overwrite");
    // Too small, or nowhere to write to: nothing is kept, and nothing fails.
    let small = CacheOptions { min_bytes: 1 << 20, ..CacheOptions::new(folder.path().join("none")) };
    load(&DatasetSpec { cache: Some(small), ..spec.clone() }, &options());
    assert!(!folder.path().join("none").exists());
    let blocked = CacheOptions { min_bytes: 0, ..CacheOptions::new(source.path.join("no folder")) };
    assert!(load(&DatasetSpec { cache: Some(blocked), ..spec.clone() }, &options()).train == plain.train);
}

#[test]
fn odd_labels_survive_the_way_through_a_store() {
    let example = |ids: &[u32], labels: &[i32], row: usize| Example {
        input_ids: ids.to_vec(),
        labels: labels.to_vec(),
        source: loratune_data::RowRef { file: "x".into(), row, line: None },
    };
    let all = vec![
        example(&[5, 6, 7], &[-100, 2, 7], 1),
        example(&[8], &[-100], 2),
        example(&[9, 1, 2, 3], &[4, -100, 2, 9], 3),
    ];
    let examples: loratune_data::Examples = all.clone().into_iter().collect();
    assert_eq!(examples.to_vec(), all);
    assert_eq!(
        (examples.len(), examples.length(2), examples.tokens(0).ids().collect::<Vec<_>>()),
        (3, 4, vec![5, 6, 7])
    );
}

fn stream(spec: DatasetSpec, buffer: Option<usize>) -> ExampleStream {
    ExampleStream::new(spec, Arc::new(bundle("tokenizer", json!({}))), options(), buffer).unwrap()
}

fn take(stream: &mut ExampleStream, n: usize) -> Vec<usize> {
    (0..n).map(|_| question(&stream.next_example().unwrap())).collect()
}

#[test]
fn a_stream_passes_over_its_rows_again_and_again_and_can_be_replayed() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (numbers(folder.path(), "a.jsonl", 0..30), numbers(folder.path(), "b.jsonl", 100..105));
    let spec = DatasetSpec { train: vec![a.clone(), b.clone()], seed: 3, ..DatasetSpec::default() };
    let order: Vec<usize> = (0..30).chain(100..105).collect();
    assert_eq!(take(&mut stream(spec.clone(), None), 70), [order.clone(), order.clone()].concat());
    let mut shuffled = stream(spec.clone(), Some(8));
    let first = take(&mut shuffled, 70);
    let pass = |rows: &[usize]| {
        let mut rows = rows.to_vec();
        rows.sort_unstable();
        rows
    };
    assert_eq!(pass(&first[..35]), order, "each pass has every row once");
    assert_eq!(pass(&first[35..]), order);
    assert_ne!(first[..35], order);
    assert_ne!(first[..35], first[35..], "each pass is shuffled anew");
    assert!(first.iter().take(10).all(|q| *q < 18), "from the buffer and no further: {first:?}");
    shuffled.restart();
    assert_eq!(take(&mut shuffled, 70), first);
    // Rows at the head are held out, in every pass.
    let mut held = stream(DatasetSpec { val_size: 5.0, ..spec.clone() }, None);
    let (eval, report) = held.head().unwrap();
    assert_eq!(eval.iter().map(question).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert_eq!((report.train.rows, report.eval.unwrap().rows), (30, 5));
    assert_eq!(take(&mut held, 31), order[5..].iter().copied().chain([5]).collect::<Vec<_>>());
    // Interleaved, as when everything is in memory.
    let mixed = DatasetSpec { mix: Mix::InterleaveOver, weights: Some(vec![0.5, 0.5]), ..spec.clone() };
    let whole = load_examples(&mixed, &bundle("tokenizer", json!({})), &options()).unwrap();
    let expected = questions(&whole);
    assert_eq!(take(&mut stream(mixed, None), expected.len()), expected);
    let once = DatasetSpec { mix: Mix::InterleaveOnce, ..spec.clone() };
    let whole = load_examples(&once, &bundle("tokenizer", json!({})), &options()).unwrap();
    assert_eq!(take(&mut stream(once, None), 35), questions(&whole));
}

#[test]
fn a_stream_without_anything_to_train_ends_with_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.jsonl");
    std::fs::write(&path, "{\"input_ids\": [5]}\n").unwrap();
    let spec = DatasetSpec { train: vec![DatasetSource::new(&path)], ..DatasetSpec::default() };
    let message = stream(spec.clone(), Some(4)).next_example().unwrap_err().to_string();
    assert!(message.contains("nothing to train on"), "{message}");
    std::fs::write(&path, "{\"input_ids\": [5, 6]}\n{broken\n").unwrap();
    let mut broken = stream(spec.clone(), None);
    let all: Vec<_> = (0..3).map(|_| broken.next_example().map_err(|e| e.to_string())).collect();
    assert!(all.iter().any(|r| r.as_ref().is_err_and(|e| e.contains("x.jsonl:2"))), "{all:?}");
    let share = DatasetSpec { val_size: 0.5, ..spec };
    let text = Arc::new(bundle("tokenizer", json!({})));
    assert!(
        ExampleStream::new(share, text, options(), None)
            .unwrap_err()
            .to_string()
            .contains("a number of rows")
    );
}
