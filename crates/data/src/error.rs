//! Every way in which preparing a dataset can fail, each with what was expected and what to do.

use std::fmt;
use std::sync::Arc;

use crate::template::TemplateError;

/// Where a row came from, for messages: `train.jsonl:12` (a line) or `train.json, row 12` (an array element).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowRef {
    /// The file as the user named it.
    pub file: Arc<str>,
    /// 1-based position of the row in its file (blank lines are not rows).
    pub row: usize,
    /// 1-based line in a JSONL file; `None` in a JSON array.
    pub line: Option<usize>,
}

impl fmt::Display for RowRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}", self.file),
            None => write!(f, "{}, row {}", self.file, self.row),
        }
    }
}

/// An error of this crate. `Display` is one complete message for the user.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// The path does not exist; `hint` holds near names in its folder.
    #[error("{path}: no such file or folder{hint}")]
    Missing { path: String, hint: String },
    /// The operating system refused.
    #[error("{path}: cannot be read: {source}")]
    Io { path: String, source: std::io::Error },
    /// An ending that stands for no format.
    #[error(
        "{path}: `{kind}` files are not read; convert it to .jsonl (one JSON object a line), .json (an array of objects), \
         .csv, .tsv, .parquet, .arrow or .txt (a text a line), .gz and .zst of these too"
    )]
    UnsupportedFile { path: String, kind: String },
    /// A compressed file that is not whole, or not compressed.
    #[error(
        "{file}: it cannot be unpacked ({message}); it may be cut off or not be what its ending says: fetch or write it again"
    )]
    BrokenPacked { file: String, message: String },
    /// A folder without any dataset file.
    #[error("{path}: the folder holds no .json, .jsonl, .csv, .tsv, .parquet, .arrow or .txt file")]
    EmptyFolder { path: String },
    /// A folder with files of different kinds.
    #[error(
        "{path}: the folder holds files of different kinds, such as {first} and {other}; name the file, or keep one kind"
    )]
    MixedFolder { path: String, first: String, other: String },
    /// What `datasets` saved does not hold the split.
    #[error("{path}: there is no split `{split}`; it holds {known}")]
    NoSplit { path: String, split: String, known: String },
    /// An index (`dataset_info.json`, `state.json`) that cannot be used.
    #[error("{path}: {message}")]
    BrokenIndex { path: String, message: String },
    /// A dataset's name that leads nowhere.
    #[error(
        "dataset `{name}` is unknown: it is no path, no file in {dataset_dir}, and no entry of its dataset_info.json{hint}"
    )]
    UnknownDataset { name: String, dataset_dir: String, hint: String },
    /// A dataset of the hub that cannot be had.
    #[error("dataset {repository} of the Hugging Face hub: {message}")]
    Hub { repository: String, message: String },
    /// A CSV or TSV file.
    #[error("{file}:{line}: {message}")]
    BrokenTable { file: String, line: usize, message: String },
    /// A Parquet or Arrow file.
    #[error("{file}: cannot be read: {message}; if it was cut off on its way, fetch or write it again")]
    BrokenColumns { file: String, message: String },
    /// A folder for tokenised rows that holds something else.
    #[error(
        "{path}: the folder holds something else than tokenised rows (there is no dataset_dict.json); name an empty one, or none"
    )]
    NotSaved { path: String },
    /// Tokenised rows that cannot be written where they should be.
    #[error("{path}: cannot be written: {source}")]
    Write { path: String, source: std::io::Error },
    /// Tokenised rows that cannot be kept.
    #[error(
        "{path}: tokenised rows cannot be kept there: {source}; set HF_HOME or XDG_CACHE_HOME to a folder with room"
    )]
    Cache { path: String, source: std::io::Error },
    /// A column that `dataset_info.json` names and no row has.
    #[error("{dataset}: dataset_info.json names the column `{column}`, which no row has{hint}")]
    NoColumn { dataset: String, column: String, hint: String },
    /// No rows at all.
    #[error("{path}: the dataset is empty; it needs at least one row")]
    EmptyDataset { path: String },
    /// Nothing was named.
    #[error(
        "no dataset is given: name at least one file, a folder of files, or an entry of dataset_info.json"
    )]
    NoDataset,
    /// `max_samples: 0`.
    #[error("{path}: max_samples is 0, which leaves no rows; leave it out to use all of them")]
    ZeroSamples { path: String },
    /// Bytes that are no UTF-8.
    #[error("{file}: not valid UTF-8 at byte {offset} (line {line}); save the file as UTF-8")]
    NotUtf8 { file: String, offset: usize, line: usize },
    /// A JSONL line that is not JSON.
    #[error("{file}:{line}: broken JSON at column {column}: {message}; near: {fragment}")]
    BrokenLine { file: String, line: usize, column: usize, message: String, fragment: String },
    /// A `.json` file whose content is not an array of objects.
    #[error("{file}: expected an array of objects (or one object a line), found {found}")]
    NotAnArray { file: String, found: String },
    /// A row that is a number, a string, …
    #[error("{row}: expected an object with named fields, found {found}")]
    NotAnObject { row: RowRef, found: String },
    /// Fields that match no format.
    #[error("{row}: no format has the fields {fields}{hint}\nexpected the fields of one of:\n{expected}")]
    UnknownFormat { row: RowRef, fields: String, hint: String, expected: String },
    /// A field of a recognised format holds the wrong thing.
    #[error("{row} ({format}): {message}")]
    Field { row: RowRef, format: &'static str, message: String },
    /// A template name that is neither built in nor a file.
    #[error("template `{name}` is unknown{hint}; known: {known}, or the path of a .jinja file")]
    UnknownTemplate { name: String, hint: String, known: String },
    /// A named template needs a token that the tokenizer lacks.
    #[error(
        "template `{template}` needs the token `{token}`, which the tokenizer does not have: it is a template of other \
         models; leave `template` out to use the model's own, or choose another"
    )]
    TemplateToken { template: String, token: String },
    /// The template does not compile.
    #[error("{0}")]
    Template(TemplateError),
    /// The template refused a row.
    #[error("{row}: {source}")]
    TemplateRow { row: RowRef, source: TemplateError },
    /// The template gives no exact mask for a row.
    #[error(
        "{row}: template `{template}` cannot be masked exactly: {message}; \
         mark the responses with {{% generation %}} … {{% endgeneration %}} in it, choose another `template`, \
         or set train_on_prompt: true"
    )]
    Mask { row: RowRef, template: String, message: String },
    /// A conversation with nothing to learn from.
    #[error("{row}: no assistant message to train on; a conversation needs at least one response")]
    NoResponse { row: RowRef },
    /// The tokenizer failed.
    #[error("{row}: {message}")]
    Tokenize { row: RowRef, message: String },
    /// A pre-tokenised id or label outside of the vocabulary.
    #[error(
        "{row}: `{field}`[{position}] is {id}, but the vocabulary has {vocab_size} tokens; was it tokenised for another model?"
    )]
    TokenOutOfRange { row: RowRef, field: &'static str, position: usize, id: i64, vocab_size: usize },
    /// No row has a trained token left.
    #[error("nothing to train on: {message}")]
    NothingTrained { message: String },
    /// A `val_size` that cannot be met.
    #[error("val_size {val_size}: {message}")]
    ValSize { val_size: f64, message: String },
    /// Options that contradict each other or are out of range.
    #[error("{0}")]
    Options(String),
}

impl DataError {
    /// Whether the options are at fault rather than the data.
    pub fn is_usage(&self) -> bool {
        use DataError::*;
        matches!(
            self,
            NoDataset
                | ZeroSamples { .. }
                | UnknownTemplate { .. }
                | TemplateToken { .. }
                | ValSize { .. }
                | Options(_)
        )
    }
}

/// Result of this crate.
pub type Result<T, E = DataError> = std::result::Result<T, E>;

/// What a JSON value is, in words, for messages.
pub(crate) fn kind_of(value: &serde_json::Value) -> &'static str {
    use serde_json::Value::*;
    match value {
        Null => "null",
        Bool(_) => "a boolean",
        Number(_) => "a number",
        String(_) => "a string",
        Array(_) => "a list",
        Object(_) => "an object",
    }
}

/// The candidate nearest to `name`, if any is near enough to be a likely slip.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = name.to_lowercase();
    let score = |candidate: &str| {
        let candidate = candidate.to_lowercase();
        let edit = strsim::normalized_damerau_levenshtein(&lower, &candidate);
        // `instruct` for `instruction`: a long shared beginning is a slip too.
        let shorter = lower.chars().count().min(candidate.chars().count());
        let shared = lower.chars().zip(candidate.chars()).take_while(|(a, b)| a == b).count();
        if shorter >= 4 && shared == shorter { edit.max(0.7) } else { edit }
    };
    let mut best: Option<(&str, f64)> = None;
    for candidate in candidates {
        let s = score(candidate);
        if s >= 0.6 && best.is_none_or(|(_, b)| s > b) {
            best = Some((candidate, s));
        }
    }
    best.map(|(name, _)| name)
}
