//! The engine: tensors, a tape over fused ops whose backwards are written by hand, frozen-weight storage, and
//! counter-based randomness. It knows nothing of files, models or data.

#[doc(hidden)]
pub mod bench;
pub mod cuda;
mod device;
mod dtype;
mod error;
mod gemm;
mod isa;
mod kept;
mod memory;
pub mod ops;
mod param;
mod pool;
pub mod profile;
pub mod rng;
mod tape;
mod tensor;
mod weight;

pub use device::{ChosenDevice, DeviceChoice};
pub use dtype::{DType, Element, Real};
pub use error::{Error, Result};
pub use isa::{ISA_VARIABLE, Isa, isa};
pub use memory::Memory;
pub use param::{Gradients, ParamId, Params};
pub use tape::{Checkpointing, Mode, Tape, Var};
pub use tensor::{Buffer, Device, Tensor};
pub use weight::{FrozenWeight, Weight};
