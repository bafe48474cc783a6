//! What the writers of safetensors and GGUF share: a header, then tensors that are made one at a time.

use std::io::Write;
use std::path::Path;

use super::atomic::write_atomically;
use super::{Error, Result, TensorPlan};

/// A tensor and where its bytes lie behind the header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Placed<'a> {
    pub tensor: &'a TensorPlan,
    pub offset: u64,
    pub size: usize,
}

/// Writes the header and then each tensor at its offset (zeros between them), asking `provide` for one at a time. `placed` is in
/// the order of the offsets. The file appears whole or not at all.
///
/// # Errors
/// When a tensor's bytes are not as many as were planned, the disk refuses, or `provide` fails.
pub(crate) fn write_tensors<B: AsRef<[u8]>, E: From<Error>>(
    path: &Path,
    header: &[u8],
    placed: &[Placed<'_>],
    mut provide: impl FnMut(&TensorPlan) -> Result<B, E>,
) -> Result<(), E> {
    let mut failure = None;
    let written = write_atomically(path, |out| {
        out.write_all(header)?;
        let mut at = 0u64;
        for Placed { tensor, offset, size } in placed {
            out.write_all(&vec![0; offset.saturating_sub(at) as usize])?;
            let bytes = provide(tensor).and_then(|bytes| {
                let got = bytes.as_ref().len();
                if got == *size {
                    return Ok(bytes);
                }
                let detail = format!("has {got} bytes to write, but its type and shape need {size}");
                Err(Error::tensor(path, &tensor.name, detail).into())
            });
            match bytes {
                Ok(bytes) => out.write_all(bytes.as_ref())?,
                Err(e) => {
                    failure = Some(e);
                    return Err(std::io::Error::other("the tensor could not be made"));
                }
            }
            at = offset + *size as u64;
        }
        Ok(())
    });
    match failure {
        Some(e) => Err(e),
        None => Ok(written?),
    }
}
