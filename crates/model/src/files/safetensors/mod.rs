//! Safetensors files: reading one or many by mmap, writing one or many atomically.

mod header;
mod source;
mod write;

pub use source::SafetensorsSource;
pub(crate) use source::missing;
pub use write::{TensorPlan, TensorView, write_model, write_safetensors, write_safetensors_streaming};
