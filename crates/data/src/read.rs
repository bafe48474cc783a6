//! Reading JSON and JSONL files into rows that know where they came from.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{DataError, Result, RowRef, kind_of, nearest};

/// One dataset: a `.json`/`.jsonl` file or a folder of them.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct DatasetSource {
    /// File or folder.
    pub path: PathBuf,
    /// At most this many rows from the head of this dataset, taken before the datasets are merged.
    #[serde(default)]
    pub max_samples: Option<usize>,
}

impl DatasetSource {
    /// All rows of `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), max_samples: None }
    }
}

/// One object of a dataset and its place.
#[derive(Debug, Clone)]
pub struct RawRow {
    /// Where it stands.
    pub source: RowRef,
    /// Its fields, in file order.
    pub fields: Map<String, Value>,
}

/// Reads all rows of one dataset: files in the order of their names, rows in file order.
pub fn read_source(source: &DatasetSource) -> Result<Vec<RawRow>> {
    let path = &source.path;
    let shown = path.display().to_string();
    if source.max_samples == Some(0) {
        return Err(DataError::ZeroSamples { path: shown });
    }
    let mut rows = Vec::new();
    for file in files_of(path)? {
        let left = source.max_samples.map(|n| n.saturating_sub(rows.len()));
        if left == Some(0) {
            break;
        }
        rows.extend(read_file(&file, left)?);
    }
    if rows.is_empty() { Err(DataError::EmptyDataset { path: shown }) } else { Ok(rows) }
}

/// The dataset files that a path stands for.
fn files_of(path: &Path) -> Result<Vec<PathBuf>> {
    let shown = path.display().to_string();
    let io = |source| DataError::Io { path: shown.clone(), source };
    if !path.try_exists().map_err(io)? {
        return Err(DataError::Missing { path: shown.clone(), hint: near_paths(path) });
    }
    if !path.is_dir() {
        return match extension(path).as_str() {
            "json" | "jsonl" => Ok(vec![path.to_path_buf()]),
            "" => Err(DataError::UnsupportedFile { path: shown, kind: "(no extension)".into() }),
            other => Err(DataError::UnsupportedFile { path: shown, kind: format!(".{other}") }),
        };
    }
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        // dataset_info.json is LLaMA-Factory's index of a data folder and holds no rows.
        let index = file.file_name().is_some_and(|n| n == "dataset_info.json");
        if file.is_file() && !index && matches!(extension(&file).as_str(), "json" | "jsonl") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() { Err(DataError::EmptyFolder { path: shown }) } else { Ok(files) }
}

fn extension(path: &Path) -> String {
    path.extension().map(|e| e.to_string_lossy().to_lowercase()).unwrap_or_default()
}

/// `; did you mean …?` from the names in the folder in which the path should be.
fn near_paths(path: &Path) -> String {
    let parent = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let Ok(entries) = std::fs::read_dir(parent) else {
        return format!("; the folder {} does not exist either", parent.display());
    };
    let mut names: Vec<String> =
        entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let wanted = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    match nearest(&wanted, names.iter().map(String::as_str)) {
        Some(name) => format!("; did you mean {}?", parent.join(name).display()),
        None => String::new(),
    }
}

fn read_file(path: &Path, limit: Option<usize>) -> Result<Vec<RawRow>> {
    let name: Arc<str> = path.display().to_string().into();
    let bytes = std::fs::read(path).map_err(|source| DataError::Io { path: name.to_string(), source })?;
    let text = std::str::from_utf8(&bytes).map_err(|e| {
        let offset = e.valid_up_to();
        let line = bytes.iter().take(offset).filter(|&&b| b == b'\n').count() + 1;
        DataError::NotUtf8 { file: name.to_string(), offset, line }
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if extension(path) == "jsonl" || looks_like_lines(text) {
        read_lines(&name, text, limit)
    } else {
        read_array(&name, text, limit)
    }
}

/// A `.json` file with an object on its first line is JSONL by another name; Hugging Face reads it as such.
fn looks_like_lines(text: &str) -> bool {
    let first = text.lines().find(|l| !l.trim().is_empty()).unwrap_or("").trim();
    first.starts_with('{') && serde_json::from_str::<Map<String, Value>>(first).is_ok()
}

fn read_lines(name: &Arc<str>, text: &str, limit: Option<usize>) -> Result<Vec<RawRow>> {
    let lines: Vec<(usize, &str)> = text
        .split('\n')
        .enumerate()
        .map(|(i, l)| (i + 1, l.strip_suffix('\r').unwrap_or(l)))
        .filter(|(_, l)| !l.trim().is_empty())
        .take(limit.unwrap_or(usize::MAX))
        .collect();
    let rows: Vec<Result<RawRow>> = lines
        .par_iter()
        .enumerate()
        .map(|(row, &(line, text))| {
            let source = RowRef { file: name.clone(), row: row + 1, line: Some(line) };
            let value = serde_json::from_str(text).map_err(|e| broken(name, text, line, &e))?;
            object(source, value)
        })
        .collect();
    rows.into_iter().collect()
}

fn read_array(name: &Arc<str>, text: &str, limit: Option<usize>) -> Result<Vec<RawRow>> {
    if text.trim().is_empty() {
        return Ok(Vec::new());
    }
    let value: Value = serde_json::from_str(text).map_err(|e| {
        let line = text.lines().nth(e.line().saturating_sub(1)).unwrap_or("");
        broken(name, line, e.line(), &e)
    })?;
    let Value::Array(items) = value else {
        return Err(DataError::NotAnArray { file: name.to_string(), found: kind_of(&value).into() });
    };
    let rows = items.into_iter().take(limit.unwrap_or(usize::MAX)).enumerate();
    rows.map(|(i, v)| object(RowRef { file: name.clone(), row: i + 1, line: None }, v)).collect()
}

fn object(source: RowRef, value: Value) -> Result<RawRow> {
    match value {
        Value::Object(fields) => Ok(RawRow { source, fields }),
        other => Err(DataError::NotAnObject { row: source, found: kind_of(&other).into() }),
    }
}

/// The error for a broken line, with up to 40 characters around the place.
fn broken(name: &str, line_text: &str, line: usize, e: &serde_json::Error) -> DataError {
    let column = e.column().max(1);
    let mut from = column.saturating_sub(25).min(line_text.len());
    while !line_text.is_char_boundary(from) {
        from -= 1;
    }
    let piece: String = line_text[from..].chars().take(40).collect();
    let lead = if from > 0 { "…" } else { "" };
    let tail = if from + piece.len() < line_text.len() { "…" } else { "" };
    let full = e.to_string();
    let message = full.split(" at line ").next().unwrap_or(&full).to_string();
    let fragment = format!("{lead}{}{tail}", piece.escape_debug());
    DataError::BrokenLine { file: name.to_string(), line, column, message, fragment }
}
