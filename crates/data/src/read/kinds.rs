//! Which files make up a dataset, and what kind they are.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{io, near_paths, packed};
use crate::error::{DataError, Result};
use crate::saved::INDEX;

/// A kind of dataset file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// An array of objects, or one object a line.
    Json,
    /// One object a line.
    JsonLines,
    /// Cells between commas, names in the first row.
    Csv,
    /// Cells between tabs.
    Tsv,
    /// Apache Parquet.
    Parquet,
    /// Arrow IPC, as a file or as a stream (which is what `datasets` saves).
    Arrow,
    /// One text a line.
    Text,
}

/// Endings and what they are.
const ENDINGS: [(&str, FileKind); 8] = [
    ("json", FileKind::Json),
    ("jsonl", FileKind::JsonLines),
    ("ndjson", FileKind::JsonLines),
    ("csv", FileKind::Csv),
    ("tsv", FileKind::Tsv),
    ("parquet", FileKind::Parquet),
    ("arrow", FileKind::Arrow),
    ("txt", FileKind::Text),
];

/// Files of a data folder that hold no rows: LLaMA-Factory's index, and what `datasets` saves beside its rows.
const NO_ROWS: [&str; 3] = ["dataset_info.json", "state.json", INDEX];

fn by_ending(path: &Path) -> Option<FileKind> {
    let ending = ending(&packed::inner(path));
    ENDINGS.iter().find(|(e, _)| *e == ending).map(|(_, kind)| *kind)
}

fn ending(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// Whether a file's name says that it holds rows.
pub fn is_data_file(path: &Path) -> bool {
    let is_index = path.file_name().is_some_and(|n| NO_ROWS.iter().any(|no| n == *no));
    by_ending(path).is_some() && !is_index
}

/// The kind of a file by its ending.
pub(super) fn kind_of(path: &Path) -> Result<FileKind> {
    by_ending(path).ok_or_else(|| {
        let kind = match ending(path).as_str() {
            "" => "(no ending)".to_string(),
            ending => format!(".{ending}"),
        };
        DataError::UnsupportedFile { path: path.display().to_string(), kind }
    })
}

/// The dataset files that a path stands for.
pub(super) fn files_of(path: &Path, split: Option<&str>) -> Result<Vec<PathBuf>> {
    if !path.try_exists().map_err(io(path))? {
        return Err(DataError::Missing { path: path.display().to_string(), hint: near_paths(path) });
    }
    if !path.is_dir() {
        kind_of(path)?;
        return Ok(vec![path.to_path_buf()]);
    }
    if path.join(INDEX).is_file() {
        return files_of(&saved_split(path, split)?, None);
    }
    if let Some(files) = saved_files(path)? {
        return Ok(files);
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io(path))? {
        let file = entry.map_err(io(path))?.path();
        if file.is_file() && is_data_file(&file) {
            files.push(file);
        }
    }
    files.sort();
    let Some(first) = files.first() else {
        return Err(DataError::EmptyFolder { path: path.display().to_string() });
    };
    let class = |file: &Path| match by_ending(file) {
        Some(FileKind::JsonLines) => Some(FileKind::Json),
        kind => kind,
    };
    if let Some(other) = files.iter().find(|f| class(f) != class(first)) {
        let name = |f: &Path| f.file_name().unwrap_or_default().to_string_lossy().into_owned();
        return Err(DataError::MixedFolder {
            path: path.display().to_string(),
            first: name(first),
            other: name(other),
        });
    }
    Ok(files)
}

/// The folder of a split in what `datasets.DatasetDict.save_to_disk` wrote.
fn saved_split(path: &Path, split: Option<&str>) -> Result<PathBuf> {
    let index = path.join(INDEX);
    let splits: Vec<String> = read_json(&index)?["splits"]
        .as_array()
        .map(|s| s.iter().filter_map(Value::as_str).map(str::to_string).collect())
        .unwrap_or_default();
    let wanted = split.unwrap_or("train");
    if !splits.iter().any(|s| s == wanted) {
        return Err(DataError::NoSplit {
            path: path.display().to_string(),
            split: wanted.into(),
            known: splits.join(", "),
        });
    }
    Ok(path.join(wanted))
}

/// The files of what `datasets.Dataset.save_to_disk` wrote, in its order.
fn saved_files(path: &Path) -> Result<Option<Vec<PathBuf>>> {
    let state = path.join("state.json");
    if !state.is_file() {
        return Ok(None);
    }
    let state = read_json(&state)?;
    let Some(files) = state["_data_files"].as_array() else { return Ok(None) };
    let named = files.iter().filter_map(|f| f["filename"].as_str());
    // Names only: a file that points elsewhere is not what was saved here.
    let inside = |name: &&str| Path::new(name).file_name().is_some_and(|n| n == *name);
    Ok(Some(named.filter(inside).map(|name| path.join(name)).collect()))
}

pub(crate) fn read_json(path: &Path) -> Result<Value> {
    let text = std::fs::read_to_string(path).map_err(io(path))?;
    serde_json::from_str(&text)
        .map_err(|e| DataError::BrokenIndex { path: path.display().to_string(), message: e.to_string() })
}
