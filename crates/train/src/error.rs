//! Errors of a run.

use std::path::PathBuf;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] crate::config::ConfigError),
    #[error(transparent)]
    Data(#[from] loratune_data::DataError),
    #[error(transparent)]
    Model(#[from] loratune_model::Error),
    #[error(transparent)]
    Files(#[from] loratune_model::files::Error),
    #[error(transparent)]
    Tokenizer(#[from] loratune_tokenizer::TokenizerError),
    #[error(transparent)]
    Report(#[from] crate::report::ReportError),
    #[error(transparent)]
    Engine(#[from] loratune_engine::Error),
    #[error(
        "step {step}: {what} is not a finite number; {place}. The last good state is {last}. \
         Usual causes: a learning rate that is too high (now {learning_rate:e}), or damaged weights or data"
    )]
    NonFinite { step: u64, what: String, place: String, last: String, learning_rate: f64 },
    #[error("{}: {what}", path.display())]
    Output { path: PathBuf, what: String },
    #[error("{}: {source}", path.display())]
    OutputIo { path: PathBuf, source: std::io::Error },
    #[error("{}: {what}", path.display())]
    Checkpoint { path: PathBuf, what: String },
    /// Data and model do not belong together.
    #[error("{0}")]
    Misfit(String),
    #[error("{0}")]
    Invalid(String),
}

impl Error {
    /// Whether a card had no room for what was computed.
    pub fn is_out_of_memory(&self) -> bool {
        use loratune_engine::Error::OutOfMemory;
        let engine = match self {
            Error::Engine(e) | Error::Model(loratune_model::Error::Engine(e)) => e,
            _ => return false,
        };
        matches!(engine, OutOfMemory { .. })
    }

    /// Whether the command line or the configuration is wrong, rather than something met on the way.
    pub fn is_usage(&self) -> bool {
        match self {
            Error::Config(e) => e.is_usage(),
            Error::Data(e) => e.is_usage(),
            Error::Output { .. } | Error::Invalid(_) => true,
            _ => false,
        }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
