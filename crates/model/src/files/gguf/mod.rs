//! GGUF files (versions 2 and 3): metadata, tensors under their Hugging Face names, configuration and vocabulary.
//!
//! Layout: magic, version, counts, key-value pairs, tensor descriptions, padding, tensor data. The format's definition
//! is ggml's `docs/gguf.md`.

mod convert;
mod names;
mod parse;
mod reader;
mod rope;
mod source;
mod value;

pub(crate) use convert::{Gguf, Metadata};
pub use parse::{GgufFile, GgufTensor};
pub use source::GgufSource;
pub use value::MetaValue;
