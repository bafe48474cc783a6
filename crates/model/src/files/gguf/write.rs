//! Writing GGUF files (version 3): metadata and tensors, one tensor in memory at a time, each file whole or not at all.

use std::path::Path;

use super::super::stream::{Placed, write_tensors};
use super::super::{Error, Result, TensorPlan};

/// What tensors are aligned to; readers assume it where the file does not say.
pub(crate) const ALIGNMENT: u64 = 32;
const VERSION: u32 = 3;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A metadata value with the type that llama.cpp asks for: it does not convert numbers.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
}

impl Entry {
    /// Type number and bytes, as the file has them.
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Entry::U32(n) => put(out, 4, &n.to_le_bytes()),
            Entry::F32(x) => put(out, 6, &x.to_le_bytes()),
            Entry::Bool(b) => put(out, 7, &[u8::from(*b)]),
            Entry::Text(text) => {
                out.extend_from_slice(&STRING.to_le_bytes());
                string(out, text);
            }
            Entry::Texts(texts) => {
                array(out, STRING, texts.len());
                texts.iter().for_each(|text| string(out, text));
            }
            Entry::F32s(numbers) => {
                array(out, 6, numbers.len());
                numbers.iter().for_each(|x| out.extend_from_slice(&x.to_le_bytes()));
            }
            Entry::I32s(numbers) => {
                array(out, 5, numbers.len());
                numbers.iter().for_each(|n| out.extend_from_slice(&n.to_le_bytes()));
            }
        }
    }
}

fn put(out: &mut Vec<u8>, kind: u32, bytes: &[u8]) {
    out.extend_from_slice(&kind.to_le_bytes());
    out.extend_from_slice(bytes);
}

fn array(out: &mut Vec<u8>, kind: u32, count: usize) {
    out.extend_from_slice(&ARRAY.to_le_bytes());
    put(out, kind, &(count as u64).to_le_bytes());
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A GGUF file that is about to be written: everything but the tensors' numbers.
#[derive(Debug, Clone)]
pub struct GgufHeader {
    /// The key-value pairs, in the order of the file.
    pub metadata: Vec<(String, Entry)>,
    /// The tensors under llama.cpp's names, in the order of the file; shapes outermost dimension first.
    pub tensors: Vec<TensorPlan>,
}

impl GgufHeader {
    /// The header's bytes up to the first tensor, and where each tensor lies behind them.
    ///
    /// # Errors
    /// When a tensor's shape is impossible for its type; `path` names the file.
    pub(crate) fn lay_out(&self, path: &Path) -> Result<(Vec<u8>, Vec<Placed<'_>>)> {
        let mut out = b"GGUF".to_vec();
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&(self.tensors.len() as u64).to_le_bytes());
        out.extend_from_slice(&(self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            string(&mut out, key);
            value.write(&mut out);
        }
        let (mut placed, mut offset) = (Vec::with_capacity(self.tensors.len()), 0u64);
        for tensor in &self.tensors {
            let size = tensor.dtype.bytes_of(&tensor.shape).ok_or_else(|| {
                let detail =
                    format!("has the shape {:?}, impossible for {}", tensor.shape, tensor.dtype.name());
                Error::tensor(path, &tensor.name, detail)
            })?;
            string(&mut out, &tensor.name);
            out.extend_from_slice(&(tensor.shape.len() as u32).to_le_bytes());
            for dim in tensor.shape.iter().rev() {
                out.extend_from_slice(&(*dim as u64).to_le_bytes());
            }
            put(&mut out, tensor.dtype.gguf_number(), &offset.to_le_bytes());
            placed.push(Placed { tensor, offset, size });
            offset = (offset + size as u64).next_multiple_of(ALIGNMENT);
        }
        out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
        Ok((out, placed))
    }

    /// Writes the file atomically, asking `provide` for each tensor's bytes when its turn comes, in the file's order. The bytes
    /// depend only on the header and the tensors.
    ///
    /// # Errors
    /// When a tensor's bytes don't fit its type and shape, the disk refuses, or `provide` fails.
    pub fn write<B: AsRef<[u8]>, E: From<Error>>(
        &self,
        path: &Path,
        provide: impl FnMut(&TensorPlan) -> Result<B, E>,
    ) -> Result<(), E> {
        let (header, placed) = self.lay_out(path)?;
        write_tensors(path, &header, &placed, provide)
    }
}
