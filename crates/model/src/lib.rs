//! Models: files in and out, the decoder, adapters, merging, generation.

pub mod adapter;
mod batch;
pub mod bench;
pub mod decoder;
mod error;
pub mod export;
pub mod families;
pub mod files;
pub mod generate;
pub mod linalg;
pub mod load;
mod neftune;
pub mod rope;
mod spec;
pub mod vocabulary;

pub use batch::Batch;
pub use decoder::Decoder;
pub use error::{Error, Result};
pub use neftune::{Neftune, NoiseLength};
pub use spec::*;
