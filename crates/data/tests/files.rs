//! Tables, columns and text as datasets, read back from what other tools wrote.

mod common;

use std::path::Path;
use std::process::Command;

use arrow_array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use common::bundle;
use loratune_data::read::read_source;
use loratune_data::{DatasetSource, DatasetSpec, EncodeOptions, load_examples};
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use std::sync::Arc;

fn rows(path: &Path) -> Vec<Value> {
    let rows = read_source(&DatasetSource::new(path)).unwrap_or_else(|e| panic!("{e}"));
    rows.into_iter().map(|r| Value::Object(r.fields)).collect()
}

fn batch() -> RecordBatch {
    let texts: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("ü\n\"c\"")]));
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1, 2, 3]));
    RecordBatch::try_from_iter([("text", texts), ("n", numbers)]).unwrap()
}

fn expected() -> Vec<Value> {
    vec![json!({"text": "a", "n": 1}), json!({"text": null, "n": 2}), json!({"text": "ü\n\"c\"", "n": 3})]
}

#[test]
fn parquet_and_both_kinds_of_arrow_files_are_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.parquet");
    let mut writer =
        ArrowWriter::try_new(std::fs::File::create(&path).unwrap(), batch().schema(), None).unwrap();
    writer.write(&batch()).unwrap();
    writer.close().unwrap();
    assert_eq!(rows(&path), expected());

    let path = folder.path().join("stream.arrow");
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = arrow_ipc::writer::StreamWriter::try_new(file, &batch().schema()).unwrap();
    writer.write(&batch()).unwrap();
    writer.write(&batch()).unwrap();
    writer.finish().unwrap();
    assert_eq!(rows(&path), [expected(), expected()].concat());
    let places = read_source(&DatasetSource::new(&path)).unwrap();
    assert_eq!(places[4].source.to_string(), format!("{}, row 5", path.display()));

    let path = folder.path().join("file.arrow");
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = arrow_ipc::writer::FileWriter::try_new(file, &batch().schema()).unwrap();
    writer.write(&batch()).unwrap();
    writer.finish().unwrap();
    assert_eq!(rows(&path), expected());
}

#[test]
fn tables_and_text_are_rows_with_their_lines() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let csv = write("d.csv", "\u{feff}question,answer\n\"a, \"\"b\"\"\nc\",d\r\ne,\n");
    assert_eq!(
        rows(&csv),
        [json!({"question": "a, \"b\"\nc", "answer": "d"}), json!({"question": "e", "answer": ""})]
    );
    let second = read_source(&DatasetSource::new(&csv)).unwrap()[1].source.to_string();
    assert_eq!(second, format!("{}, row 2", csv.display()));
    assert_eq!(rows(&write("d.tsv", "text\tn\na,b\t1\n")), [json!({"text": "a,b", "n": "1"})]);
    assert_eq!(rows(&write("d.txt", "one\r\n\n  two\n")), [json!({"text": "one"}), json!({"text": "  two"})]);
}

#[test]
fn compressed_files_are_read_as_what_is_inside() {
    let folder = tempfile::tempdir().unwrap();
    let text = "{\"text\": \"a\"}\n{\"text\": \"b\"}\n";
    let wanted = [json!({"text": "a"}), json!({"text": "b"})];
    let gz = |name: &str, text: &str| {
        let path = folder.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        let mut out = flate2::write::GzEncoder::new(file, flate2::Compression::default());
        std::io::Write::write_all(&mut out, text.as_bytes()).unwrap();
        out.finish().unwrap();
        path
    };
    let lines = gz("d.jsonl.gz", text);
    assert_eq!(rows(&lines), wanted);
    assert_eq!(
        read_source(&DatasetSource::new(&lines)).unwrap()[1].source.to_string(),
        format!("{}:2", lines.display())
    );
    assert_eq!(rows(&gz("d.csv.gz", "text\na\nb\n")), wanted);
    let path = folder.path().join("d.json.zst");
    std::fs::write(&path, zstd::encode_all(text.as_bytes(), 0).unwrap()).unwrap();
    assert_eq!(rows(&path), wanted);
    // Cut off, and not compressed at all.
    let whole = std::fs::read(&lines).unwrap();
    std::fs::write(&lines, &whole[..whole.len() - 9]).unwrap();
    for (path, content) in [(lines, None), (folder.path().join("e.jsonl.gz"), Some(text))] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error = read_source(&DatasetSource::new(&path)).unwrap_err().to_string();
        assert!(error.contains("cannot be unpacked") && error.contains(".jsonl.gz"), "{error}");
    }
}

#[test]
fn parquet_s_codecs_are_read() {
    use parquet::basic::{BrotliLevel, Compression, GzipLevel, ZstdLevel};
    let folder = tempfile::tempdir().unwrap();
    for codec in [
        Compression::SNAPPY,
        Compression::BROTLI(BrotliLevel::default()),
        Compression::GZIP(GzipLevel::default()),
        Compression::ZSTD(ZstdLevel::default()),
        Compression::LZ4,
    ] {
        let path = folder.path().join("d.parquet");
        let properties =
            parquet::file::properties::WriterProperties::builder().set_compression(codec).build();
        let file = std::fs::File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch().schema(), Some(properties)).unwrap();
        writer.write(&batch()).unwrap();
        writer.close().unwrap();
        assert_eq!(rows(&path), expected(), "{codec:?}");
    }
}

#[test]
fn a_table_s_cell_may_hold_a_conversation_as_python_prints_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.csv");
    let cell =
        r#"[{'role': 'user', 'content': ""Isn't it?""}, {'role': 'assistant', 'content': 'It\'s.\n'}]"#;
    std::fs::write(&path, format!("chat\n\"{cell}\"\n")).unwrap();
    let spec = DatasetSpec { train: vec![DatasetSource::new(&path)], ..DatasetSpec::default() };
    let options = EncodeOptions {
        template: Some("chatml".into()),
        messages_column: Some("chat".into()),
        ..EncodeOptions::default()
    };
    let data = load_examples(&spec, &bundle("tokenizer", json!({})), &options).unwrap();
    assert_eq!(data.report.formats, [("messages".to_string(), 1)]);
}

#[test]
fn a_table_s_cell_may_hold_a_conversation_as_json() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.csv");
    let messages = json!([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]);
    let cell = messages.to_string().replace('"', "\"\"");
    std::fs::write(&path, format!("messages\n\"{cell}\"\n")).unwrap();
    let spec = DatasetSpec { train: vec![DatasetSource::new(&path)], ..DatasetSpec::default() };
    let options = EncodeOptions { template: Some("chatml".into()), ..EncodeOptions::default() };
    let data = load_examples(&spec, &bundle("tokenizer", json!({})), &options).unwrap();
    assert_eq!(data.report.formats, [("messages".to_string(), 1)]);
}

/// Nested columns, lists by field, splits: as pyarrow and `datasets` write them.
#[test]
fn what_datasets_saves_is_read() {
    let Some(python) = std::env::var_os("LORATUNE_PYTHON") else {
        println!("skipped: LORATUNE_PYTHON is not set");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let script = r#"
import sys
try:
    from datasets import Dataset, DatasetDict
except ImportError:
    print("no datasets"); sys.exit(0)
folder = sys.argv[1]
rows = [{"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "é" * i}], "n": [1.5, None], "d": {"a": i}}
        for i in range(1, 6)]
data = Dataset.from_list(rows)
data.save_to_disk(folder + "/one", num_shards=2)
DatasetDict({"train": data, "test": data.select([4, 0])}).save_to_disk(folder + "/several")
data.to_parquet(folder + "/d.parquet", batch_size=2)
print("written")
"#;
    let output = Command::new(python).args(["-c", script]).arg(folder.path()).output().unwrap();
    if !String::from_utf8_lossy(&output.stdout).contains("written") {
        println!("skipped: that Python has no datasets: {}", String::from_utf8_lossy(&output.stderr));
        return;
    }
    let row = |i: usize| {
        json!({"messages": [{"role": "user", "content": i.to_string()}, {"role": "assistant", "content": "é".repeat(i)}],
            "n": [1.5, null], "d": {"a": i}})
    };
    let all: Vec<Value> = (1..6).map(row).collect();
    assert_eq!(rows(&folder.path().join("one")), all);
    assert_eq!(rows(&folder.path().join("several")), all);
    assert_eq!(rows(&folder.path().join("d.parquet")), all);
    let test =
        DatasetSource { split: Some("test".into()), ..DatasetSource::new(folder.path().join("several")) };
    assert_eq!(read_source(&test).unwrap().len(), 2);
    let none = DatasetSource { split: Some("dev".into()), ..test };
    assert!(
        read_source(&none).unwrap_err().to_string().contains("there is no split `dev`; it holds train, test")
    );
}

#[test]
fn a_misspelt_dataset_is_told_the_nearest_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("alpaca_gpt4_en.jsonl"), "{\"text\": \"a\"}\n").unwrap();
    let mut finder = loratune_data::Finder::new(&folder.path().display().to_string(), None).unwrap();
    let error = finder.find("alpaca_gpt4_eng").unwrap_err().to_string();
    assert!(error.contains("did you mean `alpaca_gpt4_en`?"), "{error}");
    assert!(!finder.find("quite_another").unwrap_err().to_string().contains("did you mean"));
}
