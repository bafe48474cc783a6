//! Errors of the engine: each names the op and what did not fit.

use crate::DType;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{op}: {what}: expected {expected}, got {got}")]
    Shape { op: &'static str, what: String, expected: String, got: String },
    #[error("{op}: {what} is {got}, expected {expected}")]
    DType { op: &'static str, what: &'static str, expected: DType, got: DType },
    #[error("{op}: index {index} is out of range for {what} of size {size}")]
    Index { op: &'static str, what: &'static str, index: usize, size: usize },
    #[error(
        "after the backward pass the trainable parameter '{0}' has no gradient: \
         nothing in the loss depends on it, or an op on the way does not pass its gradient on"
    )]
    MissingGradient(String),
    #[error("{0}: a result that needs a gradient was computed on a tape that records none")]
    NotRecorded(&'static str),
    #[error("{op}: {what} is not implemented on {on} yet; the CPU has it")]
    Unsupported { op: &'static str, what: String, on: &'static str },
    #[error("{device}: {what}")]
    Device { device: String, what: String },
    /// A card has no room for what a computation needs; what it gives up again can be used.
    #[error("{device}: out of memory: {what}")]
    OutOfMemory { device: String, what: String },
    #[error("{0}")]
    Invalid(String),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

pub(crate) fn check_shape(op: &'static str, what: &str, got: &[usize], expected: &[usize]) -> Result<()> {
    if got == expected {
        return Ok(());
    }
    Err(Error::Shape { op, what: what.into(), expected: format!("{expected:?}"), got: format!("{got:?}") })
}
