//! What can go wrong with a tokenizer, each with the file or name at fault and the way out.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, TokenizerError>;

/// An error about a tokenizer, its files or its use.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// The operating system refused to read or write.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// The folder has no tokenizer.json.
    #[error("{} has no tokenizer.json{hint}", folder.display())]
    NoTokenizer { folder: PathBuf, hint: &'static str },
    /// A file isn't JSON, or not a JSON object.
    #[error("{} is not a valid JSON object ({detail}); download it again", path.display())]
    Json { path: PathBuf, detail: String },
    /// tokenizer.json, or what was rebuilt from GGUF metadata, was refused by the tokenizers library.
    #[error("{origin}: the tokenizer cannot be built: {detail}")]
    Build { origin: String, detail: String },
    /// A field has a value that makes no sense.
    #[error("{origin}: field `{field}` {detail}")]
    Field { origin: String, field: String, detail: String },
    /// GGUF names a tokenizer model that isn't supported.
    #[error(
        "GGUF tokenizer model `{0}` (tokenizer.ggml.model) is not supported, only `gpt2` and `llama` are; \
             use the model's Hugging Face folder instead"
    )]
    UnknownGgufModel(String),
    /// GGUF names a pre-tokenizer that isn't supported.
    #[error(
        "GGUF pre-tokenizer `{name}` (tokenizer.ggml.pre) is not supported; supported: {supported}. \
             Use the model's Hugging Face folder, whose tokenizer.json says how to split"
    )]
    UnknownPreTokenizer { name: String, supported: String },
    /// llama.cpp has no tokenizer like this one.
    #[error(
        "this tokenizer cannot be written to a GGUF file: it {0}; llama.cpp knows byte-level BPE with its own names of splitting, \
             and SentencePiece's BPE"
    )]
    NoGgufForm(String),
    /// The tokenizers library failed on a text.
    #[error("cannot {action}: {detail}")]
    Run { action: &'static str, detail: String },
}
