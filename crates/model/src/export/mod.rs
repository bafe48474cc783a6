//! Models and adapters for other programs: GGUF files as llama.cpp's converters write them.

mod adapter;
mod check;
mod keys;
mod model;

use std::path::Path;

use crate::error::{Error, Result};
use crate::families::Family;
use crate::files::gguf::Gguf;
use crate::files::{FileDType, ModelFiles};

pub use adapter::adapter_to_gguf;
pub use model::model_to_gguf;

/// What the weight matrices of a GGUF file are stored as. Norms and biases are f32 in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgufType {
    F32,
    F16,
    Bf16,
    /// 8.5 bits a number.
    Q8_0,
    /// 4.5 bits a number; the head stays Q8_0.
    Q4_0,
}

impl GgufType {
    /// The format of its matrices.
    pub fn dtype(self) -> FileDType {
        match self {
            GgufType::F32 => FileDType::F32,
            GgufType::F16 => FileDType::F16,
            GgufType::Bf16 => FileDType::BF16,
            GgufType::Q8_0 => FileDType::Q8_0,
            GgufType::Q4_0 => FileDType::Q4_0,
        }
    }

    /// llama.cpp's number of the file type (`general.file_type`).
    fn number(self) -> u32 {
        match self {
            GgufType::F32 => 0,
            GgufType::F16 => 1,
            GgufType::Q4_0 => 2,
            GgufType::Q8_0 => 7,
            GgufType::Bf16 => 32,
        }
    }

    /// The format of a matrix with rows of this length: block formats need whole blocks, as llama.cpp's converter f16 where a
    /// row has none.
    fn of_matrix(self, columns: usize, head: bool) -> FileDType {
        let dtype = match self {
            GgufType::Q4_0 if head => FileDType::Q8_0,
            other => other.dtype(),
        };
        if columns.is_multiple_of(dtype.block_len()) { dtype } else { FileDType::F16 }
    }
}

/// The family and how llama.cpp writes it.
fn written(files: &ModelFiles) -> Result<(&'static Family, &'static Gguf)> {
    let family = files.config.family;
    family.gguf.as_ref().map(|gguf| (family, gguf)).ok_or_else(|| {
        Error::Invalid(format!(
            "{}: llama.cpp knows no models of the class {}",
            files.path.display(),
            family.class
        ))
    })
}

/// The bytes of numbers in a file's format.
///
/// # Errors
/// If a number is too large for it.
fn encoded(path: &Path, name: &str, values: &[f32], dtype: FileDType) -> Result<Vec<u8>> {
    let largest = values.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    // Block formats keep their scales as f16.
    let most = match dtype {
        FileDType::F16 => 65504.0,
        FileDType::Q8_0 => 65504.0 * 127.0,
        FileDType::Q4_0 => 65504.0 * 8.0,
        _ => f32::INFINITY,
    };
    if largest > most {
        return Err(Error::Invalid(format!(
            "{}: {name} holds {largest:e}, too large for {}: export as bf16 or f32",
            path.display(),
            dtype.name()
        )));
    }
    crate::files::encode(values, dtype).ok_or_else(|| {
        Error::Invalid(format!("{}: {name} has no whole blocks of {}", path.display(), dtype.name()))
    })
}

/// Puts the rows of each head in the order in which llama.cpp turns neighbours: row `2·b + a` is row `a·d/2 + b` of d, a in 0..2.
fn interleaved(values: &[f32], columns: usize, head_dim: usize) -> Vec<f32> {
    let mut out = Vec::with_capacity(values.len());
    for head in values.chunks(head_dim * columns) {
        let (first, second) = head.split_at(head.len() / 2);
        for (a, b) in first.chunks(columns).zip(second.chunks(columns)) {
            out.extend_from_slice(a);
            out.extend_from_slice(b);
        }
    }
    out
}
