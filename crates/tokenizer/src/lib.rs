//! A tokenizer together with what training needs to know about it: its special tokens, whether encoding adds
//! BOS and EOS, and the chat template. Read from a Hugging Face folder or rebuilt from GGUF metadata; written as
//! either. This crate knows nothing of tensors or models.

mod add;
mod bundle;
mod config;
mod error;
mod fast;
mod fingerprint;
mod folder;
mod gguf;
mod pre_tokenizers;
mod save;
mod sentencepiece;
mod stream;
mod to_gguf;

pub use bundle::{ByteRange, SpecialToken, TokenizerBundle};
pub use error::{Result, TokenizerError};
pub use gguf::GgufVocabulary;
pub use pre_tokenizers::supported_pre_tokenizers;
pub use stream::StreamDecoder;
