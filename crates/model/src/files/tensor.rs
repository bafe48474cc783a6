//! A tensor as it lies in a file, and where tensors come from.

use std::borrow::Cow;
use std::path::PathBuf;

use half::{bf16, f16};
use rayon::prelude::*;

use super::{FileDType, Result, dequant};

/// A tensor's bytes, usually borrowed from a memory-mapped file.
#[derive(Debug, Clone)]
pub struct RawTensor<'a> {
    /// The format of the numbers.
    pub dtype: FileDType,
    /// Outermost dimension first; rows are contiguous.
    pub shape: Vec<usize>,
    /// Little-endian, `dtype.bytes_of(shape)` long.
    pub bytes: Cow<'a, [u8]>,
}

/// What is known of a tensor before its bytes are read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Outermost dimension first.
    pub shape: Vec<usize>,
    /// The format in the file.
    pub dtype: FileDType,
    /// The file that holds it.
    pub file: PathBuf,
}

/// Tensors by their Hugging Face names.
pub trait TensorSource: Send + Sync {
    /// All names, sorted.
    fn names(&self) -> Vec<&str>;
    /// Shape, format and file of a tensor; `None` when there is none of this name.
    fn info(&self, name: &str) -> Option<TensorInfo>;
    /// The tensor. Cheap for plain files: the bytes are borrowed from the mapped file.
    ///
    /// # Errors
    /// When there is no such tensor, with the nearest names, or it is of a format that isn't read.
    fn read(&self, name: &str) -> Result<RawTensor<'_>>;
}

/// Numbers converted by one task; below it threads cost more than they give.
const CHUNK: usize = 1 << 15;

/// Converts fixed-size little-endian items, in parallel.
fn convert<const N: usize, T: Copy + Default + Send>(
    bytes: &[u8],
    f: impl Fn([u8; N]) -> T + Sync,
) -> Vec<T> {
    let (items, _) = bytes.as_chunks::<N>();
    let mut out = vec![T::default(); items.len()];
    out.par_chunks_mut(CHUNK).zip(items.par_chunks(CHUNK)).for_each(|(out, items)| {
        for (o, &item) in out.iter_mut().zip(items) {
            *o = f(item);
        }
    });
    out
}

impl RawTensor<'_> {
    /// How many numbers.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Has it no numbers?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The numbers as f32: exact from F16, BF16 and F32, rounded to nearest from F64; block formats as gguf-py and
    /// llama.cpp dequantise them, in f32.
    pub fn to_f32(&self) -> Vec<f32> {
        match self.dtype {
            FileDType::F64 => convert(&self.bytes, |b| f64::from_le_bytes(b) as f32),
            FileDType::F32 => convert(&self.bytes, f32::from_le_bytes),
            FileDType::F16 => convert(&self.bytes, |b| f16::from_le_bytes(b).to_f32()),
            FileDType::BF16 => convert(&self.bytes, |b| bf16::from_le_bytes(b).to_f32()),
            _ => dequant::dequantise(self.dtype, &self.bytes),
        }
    }

    /// The numbers as f64: exact, after f32 for block formats.
    pub fn to_f64(&self) -> Vec<f64> {
        match self.dtype {
            FileDType::F64 => convert(&self.bytes, f64::from_le_bytes),
            _ => self.to_f32().into_par_iter().with_min_len(CHUNK).map(f64::from).collect(),
        }
    }

    /// The numbers as bf16, rounded to nearest even (F64 and block formats by way of f32).
    pub fn to_bf16(&self) -> Vec<bf16> {
        match self.dtype {
            FileDType::BF16 => convert(&self.bytes, bf16::from_le_bytes),
            FileDType::F32 => convert(&self.bytes, |b| bf16::from_f32(f32::from_le_bytes(b))),
            _ => self.to_f32().into_par_iter().with_min_len(CHUNK).map(bf16::from_f32).collect(),
        }
    }

    /// The same with its own bytes, free of the file.
    pub fn into_owned(self) -> RawTensor<'static> {
        RawTensor { dtype: self.dtype, shape: self.shape, bytes: Cow::Owned(self.bytes.into_owned()) }
    }
}
