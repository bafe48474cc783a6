//! GGUF files (versions 2 and 3 in, 3 out): metadata, tensors under their Hugging Face names, configuration and vocabulary.
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
mod write;

pub(crate) use convert::{Gguf, HeadTensor, Metadata, PLAIN};
pub(crate) use names::{Change, llama_cpp};
pub use parse::{GgufFile, GgufTensor};
pub use source::GgufSource;
pub use value::MetaValue;
pub use write::{Entry, GgufHeader};
