//! Tokenised examples in a folder, as Hugging Face's `datasets` saves and loads them (`DatasetDict.save_to_disk`), and with it
//! LLaMA-Factory's `tokenized_path`.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow_array::builder::{Int8Builder, Int32Builder, Int64Builder, ListBuilder};
use arrow_array::{ArrayRef, RecordBatch};
use arrow_ipc::writer::StreamWriter;
use arrow_schema::{DataType, Field, Schema};
use serde_json::{Value, json};

use crate::error::{DataError, Result};
use crate::examples::Examples;
use crate::read::{DatasetSource, read_json};

/// The file that makes a folder one of several splits.
pub(crate) const INDEX: &str = "dataset_dict.json";
const DATA: &str = "data-00000-of-00001.arrow";
const BATCH: usize = 1000;
/// The columns, and the type of their numbers as `datasets` names it.
const COLUMNS: [(&str, &str); 3] = [("input_ids", "int32"), ("attention_mask", "int8"), ("labels", "int64")];

/// Some of the examples of a set, under the name of a split.
pub type Split<'a> = (String, &'a Examples, Range<usize>);

/// The splits that a folder of saved examples holds; `None` if there is no such folder, or nothing in it.
///
/// # Errors
/// If the folder holds something else, or its index cannot be read.
pub fn splits(dir: &Path) -> Result<Option<Vec<String>>> {
    let io = |source| DataError::Io { path: dir.display().to_string(), source };
    let empty = || -> Result<bool> { Ok(std::fs::read_dir(dir).map_err(io)?.next().is_none()) };
    if !dir.try_exists().map_err(io)? || (dir.is_dir() && empty()?) {
        return Ok(None);
    }
    let index = dir.join(INDEX);
    let broken =
        |message: &str| DataError::BrokenIndex { path: index.display().to_string(), message: message.into() };
    if !index.is_file() {
        return Err(DataError::NotSaved { path: dir.display().to_string() });
    }
    let names =
        read_json(&index)?["splits"].as_array().cloned().ok_or_else(|| broken("it lists no splits"))?;
    let names: Option<Vec<String>> = names.iter().map(|n| n.as_str().map(str::to_string)).collect();
    let names = names
        .filter(|names| names.iter().all(|n| is_name(n)))
        .ok_or_else(|| broken("its splits are no names"))?;
    Ok(Some(names))
}

/// A split of such a folder, to be read as a dataset.
pub fn source(dir: &Path, split: &str) -> DatasetSource {
    let name = format!("{}#{split}", dir.display());
    DatasetSource { name, split: Some(split.to_string()), ..DatasetSource::new(dir) }
}

/// A name for a split that is a folder's name on every system.
pub fn split_name(text: &str) -> String {
    let plain = |c: char| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '_' };
    text.chars().map(plain).collect()
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && !text.starts_with('.') && text == split_name(text)
}

/// Writes examples into a folder that is there and empty.
///
/// # Errors
/// If a file cannot be written.
pub fn save(dir: &Path, splits: &[Split<'_>]) -> Result<()> {
    for (name, examples, range) in splits {
        let folder = dir.join(name);
        std::fs::create_dir(&folder).map_err(failed(&folder))?;
        let bytes = write_rows(&folder.join(DATA), examples, range.clone())?;
        let info = info(name, range.len(), bytes);
        write_json(&folder.join("dataset_info.json"), &info)?;
        let state = json!({
            "_data_files": [{"filename": DATA}],
            "_fingerprint": fingerprint(examples, range.clone()),
            "_format_columns": null,
            "_format_kwargs": {},
            "_format_type": null,
            "_output_all_columns": false,
            "_split": name,
        });
        write_json(&folder.join("state.json"), &state)?;
    }
    let names: Vec<&str> = splits.iter().map(|(name, ..)| name.as_str()).collect();
    write_json(&dir.join(INDEX), &json!({ "splits": names }))
}

fn info(split: &str, rows: usize, bytes: u64) -> Value {
    let feature = |kind: &str| json!({"feature": {"dtype": kind, "_type": "Value"}, "_type": "List"});
    let features: serde_json::Map<String, Value> =
        COLUMNS.iter().map(|(name, kind)| (name.to_string(), feature(kind))).collect();
    let split_info = json!({ split: {"name": split, "num_bytes": bytes, "num_examples": rows} });
    json!({"citation": "", "description": "", "features": features, "homepage": "", "license": "", "splits": split_info})
}

/// As long as those of `datasets`.
fn fingerprint(examples: &Examples, range: Range<usize>) -> String {
    let mut sum = xxhash_rust::xxh3::Xxh3::new();
    for i in range {
        let tokens = examples.tokens(i);
        tokens.ids().for_each(|id| sum.update(&id.to_le_bytes()));
        tokens.labels().for_each(|label| sum.update(&label.to_le_bytes()));
    }
    format!("{:016x}", sum.digest())
}

/// The rows as a stream of batches; the size of the file in bytes.
fn write_rows(path: &Path, examples: &Examples, range: Range<usize>) -> Result<u64> {
    let broken = |e: arrow_schema::ArrowError| failed(path)(std::io::Error::other(e));
    let kinds = [DataType::Int32, DataType::Int8, DataType::Int64];
    let fields = COLUMNS
        .iter()
        .zip(kinds)
        .map(|((name, _), kind)| Field::new_list(*name, Field::new_list_field(kind, true), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let file = BufWriter::new(File::create(path).map_err(failed(path))?);
    let mut writer = StreamWriter::try_new(file, &schema).map_err(broken)?;
    for start in range.clone().step_by(BATCH) {
        let columns = columns(examples, start..range.end.min(start + BATCH));
        writer
            .write(&RecordBatch::try_new(schema.clone(), columns.to_vec()).map_err(broken)?)
            .map_err(broken)?;
    }
    writer.finish().map_err(broken)?;
    let mut file = writer.into_inner().map_err(broken)?;
    file.flush().map_err(failed(path))?;
    Ok(file.get_ref().metadata().map_err(failed(path))?.len())
}

fn columns(examples: &Examples, rows: Range<usize>) -> [ArrayRef; 3] {
    let mut ids = ListBuilder::new(Int32Builder::new());
    let mut mask = ListBuilder::new(Int8Builder::new());
    let mut labels = ListBuilder::new(Int64Builder::new());
    for i in rows {
        let tokens = examples.tokens(i);
        tokens.ids().for_each(|id| ids.values().append_value(id as i32));
        mask.values().append_value_n(1, tokens.len());
        tokens.labels().for_each(|label| labels.values().append_value(label.into()));
        ids.append(true);
        mask.append(true);
        labels.append(true);
    }
    [Arc::new(ids.finish()), Arc::new(mask.finish()), Arc::new(labels.finish())]
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    std::fs::write(path, format!("{value:#}\n")).map_err(failed(path))
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> DataError + '_ {
    |source| DataError::Write { path: path.display().to_string(), source }
}
