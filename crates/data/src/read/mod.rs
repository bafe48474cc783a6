//! Reading dataset files into rows that know where they came from.
//!
//! A file is walked row by row ([`Rows`]); nothing but the row at hand (a batch of them in Parquet and Arrow files) is in
//! memory. Finding where a row ends is quick and done by one thread; what is inside is parsed later, by all threads
//! ([`LazyRow::parse`]).

mod columns;
mod delimited;
mod json;
mod kinds;
mod mapped;
mod packed;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::RecordBatch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{DataError, Result, RowRef, nearest};
use crate::info::Attributes;
pub(crate) use kinds::read_json;
pub use kinds::{FileKind, is_data_file};
use mapped::Piece;

/// One dataset: a file, or a folder of files of one kind.
#[derive(Debug, Clone, Default, Serialize, Deserialize, PartialEq)]
#[serde(default)]
pub struct DatasetSource {
    /// What it is called in messages and in the names of metrics; the path if empty.
    pub name: String,
    /// File or folder.
    pub path: PathBuf,
    /// The files to read, when they are known; `path` is not looked into then.
    pub files: Vec<PathBuf>,
    /// At most this many rows from the head of this dataset, taken before the datasets are merged.
    pub max_samples: Option<usize>,
    /// Exactly this many rows, drawn at random; rows come twice only if there are fewer. Taken before `max_samples`.
    pub num_samples: Option<usize>,
    /// Of a folder that `datasets` saved several splits in: which one; `train` when absent.
    pub split: Option<String>,
    /// What the columns mean; `None` = recognised by their names.
    pub attributes: Option<Attributes>,
}

impl DatasetSource {
    /// All rows of `path`.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), ..Self::default() }
    }

    /// What messages call it.
    pub fn shown(&self) -> String {
        if self.name.is_empty() { self.path.display().to_string() } else { self.name.clone() }
    }

    /// The files of this dataset in the order in which they are read.
    ///
    /// # Errors
    /// A path that does not exist, holds no dataset file, or holds files of several kinds.
    pub fn resolve(&self) -> Result<Vec<PathBuf>> {
        if self.files.is_empty() {
            kinds::files_of(&self.path, self.split.as_deref())
        } else {
            Ok(self.files.clone())
        }
    }

    /// All rows of these files, one after the other, `max_samples` not counted.
    pub fn rows(&self, files: Vec<PathBuf>) -> Rows {
        Rows { files: files.into_iter(), current: None }
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

/// A row that is found but not parsed.
#[derive(Debug, Clone)]
pub struct LazyRow {
    /// Where it stands.
    pub source: RowRef,
    body: Body,
}

#[derive(Debug, Clone)]
enum Body {
    /// JSON text.
    Json(Piece),
    /// A line of text.
    Text(Piece),
    /// Cells with their names.
    Cells(Arc<[String]>, Vec<String>),
    /// A row of a batch.
    Column(Arc<RecordBatch>, usize),
}

impl LazyRow {
    /// Roughly how many bytes it holds on to.
    pub fn bytes(&self) -> usize {
        match &self.body {
            Body::Json(piece) | Body::Text(piece) => piece.len(),
            Body::Cells(_, cells) => cells.iter().map(String::len).sum(),
            Body::Column(batch, _) => batch.get_array_memory_size() / batch.num_rows().max(1),
        }
    }

    /// Its fields.
    ///
    /// # Errors
    /// Text that is not JSON or not UTF-8, and rows that are no objects.
    pub fn parse(self) -> Result<RawRow> {
        let Self { source, body } = self;
        let fields = match body {
            Body::Json(piece) => json::object(&piece, &source)?,
            Body::Text(piece) => {
                let text = piece.text(&source.file)?;
                Map::from_iter([("text".to_string(), Value::String(text.into()))])
            }
            Body::Cells(names, cells) => {
                names.iter().cloned().zip(cells.into_iter().map(Value::String)).collect()
            }
            Body::Column(batch, row) => columns::fields(&batch, row),
        };
        Ok(RawRow { source, fields })
    }
}

/// Rows of one file.
type FileRows = Box<dyn Iterator<Item = Result<LazyRow>> + Send>;

fn open(path: &Path) -> Result<FileRows> {
    let (kind, file) = (kinds::kind_of(path)?, packed::open(path)?);
    match kind {
        FileKind::Json => json::open(file, path, false),
        FileKind::JsonLines => json::open(file, path, true),
        FileKind::Text => mapped::lines(file, path),
        FileKind::Csv => delimited::open(file, path, b','),
        FileKind::Tsv => delimited::open(file, path, b'\t'),
        FileKind::Parquet => columns::parquet(file, path),
        FileKind::Arrow => columns::arrow(file, path),
    }
}

/// The rows of several files: files in the order given, rows in file order.
pub struct Rows {
    files: std::vec::IntoIter<PathBuf>,
    current: Option<FileRows>,
}

impl Iterator for Rows {
    type Item = Result<LazyRow>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(rows) = &mut self.current {
                match rows.next() {
                    None => self.current = None,
                    some => return some,
                }
            }
            match open(&self.files.next()?) {
                Ok(rows) => self.current = Some(rows),
                Err(e) => return Some(Err(e)),
            }
        }
    }
}

/// Reads all rows of one dataset into memory, at most `max_samples`.
///
/// # Errors
/// As [`DatasetSource::resolve`] and [`LazyRow::parse`]; a dataset without rows.
pub fn read_source(source: &DatasetSource) -> Result<Vec<RawRow>> {
    source.check()?;
    let limit = source.max_samples.unwrap_or(usize::MAX);
    let rows = source.rows(source.resolve()?).take(limit);
    let rows = rows.map(|row| row?.parse()).collect::<Result<Vec<_>>>()?;
    if rows.is_empty() { Err(DataError::EmptyDataset { path: source.shown() }) } else { Ok(rows) }
}

impl DatasetSource {
    pub(crate) fn check(&self) -> Result<()> {
        if self.max_samples == Some(0) {
            return Err(DataError::ZeroSamples { path: self.shown() });
        }
        Ok(())
    }
}

fn name_of(path: &Path) -> Arc<str> {
    path.display().to_string().into()
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> DataError {
    let path = path.display().to_string();
    move |source| DataError::Io { path, source }
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
