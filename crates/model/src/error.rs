//! Errors of models and adapters.

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Engine(#[from] loratune_engine::Error),
    #[error(transparent)]
    Files(#[from] crate::files::Error),
    #[error(
        "a sequence of {length} tokens is longer than the model's context of {max} positions \
         (max_position_embeddings): lower cutoff_len, or shorten the prompt"
    )]
    ContextLength { length: usize, max: usize },
    #[error("{0}")]
    Invalid(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
