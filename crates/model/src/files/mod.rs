//! Model files in and out: Hugging Face folders (configuration, safetensors, tokenizer), GGUF files and PEFT
//! adapters, plus the helpers that make every write all-or-nothing.
//!
//! Everything read here came from somewhere else and may be damaged or hostile: sizes, offsets and counts are checked
//! before they are believed, and no pickle is ever opened. Tensors leave this module as [`RawTensor`]s.

pub mod atomic;
mod config;
mod config_fields;
mod dequant;
mod dtype;
mod error;
pub mod gguf;
mod mapped;
mod open;
pub mod peft;
mod quantise;
mod safetensors;
mod stream;
mod stretch;
mod suggest;
mod tensor;
mod tied;
mod unique;

pub use config::ModelConfig;
pub(crate) use config_fields::Fields;
pub use dtype::FileDType;
pub use error::{Error, Result};
pub use open::ModelFiles;
pub use quantise::encode;
pub use safetensors::{
    SafetensorsSource, TensorPlan, TensorView, write_model, write_safetensors, write_safetensors_streaming,
};
pub use tensor::{RawTensor, TensorInfo, TensorSource};
