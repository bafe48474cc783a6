//! Errors about files: each names the file, what was expected and what to do.

use std::path::{Path, PathBuf};

use loratune_tokenizer::TokenizerError;

/// Result of this module.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error about a model's or an adapter's files.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}{}", path.display(), io_hint(source))]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// There is nothing at the path; `suggestion` is empty or names what is near.
    #[error("{} does not exist{suggestion}", path.display())]
    NotFound { path: PathBuf, suggestion: String },
    /// The file contradicts itself or its format.
    #[error("{} is damaged or incomplete: {detail}; download or write it again", path.display())]
    Damaged { path: PathBuf, detail: String },
    /// A configuration file's field is missing or has an impossible value.
    #[error("{}: field `{field}` {detail}", path.display())]
    Field { path: PathBuf, field: String, detail: String },
    /// One tensor is the trouble.
    #[error("{}: tensor `{tensor}` {detail}", path.display())]
    Tensor { path: PathBuf, tensor: String, detail: String },
    /// The file is fine, but it is of a kind that isn't read.
    #[error("{}: {what}", path.display())]
    Unsupported { path: PathBuf, what: String },
    /// The tokenizer's files.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl Error {
    pub(crate) fn io(action: &'static str, path: &Path, source: std::io::Error) -> Self {
        Error::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn damaged(path: &Path, detail: impl Into<String>) -> Self {
        Error::Damaged { path: path.to_owned(), detail: detail.into() }
    }

    pub(crate) fn field(path: &Path, field: &str, detail: impl Into<String>) -> Self {
        Error::Field { path: path.to_owned(), field: field.to_owned(), detail: detail.into() }
    }

    pub(crate) fn tensor(path: &Path, tensor: &str, detail: impl Into<String>) -> Self {
        Error::Tensor { path: path.to_owned(), tensor: tensor.to_owned(), detail: detail.into() }
    }

    pub(crate) fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Error::Unsupported { path: path.to_owned(), what: what.into() }
    }
}

/// What to do about the commonest refusals.
fn io_hint(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::StorageFull => "; free some space and run again, nothing was left half-written",
        std::io::ErrorKind::QuotaExceeded => "; your quota is used up, nothing was left half-written",
        std::io::ErrorKind::PermissionDenied => "; check who owns the folder",
        _ => "",
    }
}
