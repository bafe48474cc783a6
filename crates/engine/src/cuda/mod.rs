//! NVIDIA GPUs: found at run time, by the driver, NVRTC and cuBLASLt that the machine has. Nothing of CUDA is needed to build.
//!
//! A [`CudaDevice`] is one card with one stream: everything that is asked of it happens in the order in which it was asked, so
//! memory that a tensor leaves behind can be given to the next one at once. Kernels are CUDA C++ beside the ops that use them
//! (`ops/*/kernel.cu`), compiled by NVRTC for the card at hand and kept on disk.

mod buffer;
mod cublaslt;
mod device;
mod driver;
mod kernels;
mod launch;
mod library;
mod nvrtc;
mod offload;
mod planned;
mod pool;
mod staging;
mod sums;
mod thin;

pub(crate) use buffer::{CudaBuffer, Pod};
pub(crate) use cublaslt::Factor;
pub use device::{CudaDevice, available};
pub(crate) use device::{Mark, Memory};
pub(crate) use kernels::Source;
pub use kernels::{Compiled, compile_all};
pub(crate) use launch::{Arg, Map};
pub(crate) use offload::Away;
pub use planned::{Planned, PlannedDevice, Use};
pub(crate) use sums::{Finish, SOURCE as SUMS, TERMS};
pub(crate) use thin::{Also, Down, SOURCE as THIN, Scaling, Sum, Tall, Up};
