//! A GGUF file's tensors under their Hugging Face names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::safetensors::missing;
use super::super::{Error, FileDType, ModelConfig, RawTensor, Result, TensorInfo, TensorSource};
use super::names::{self, Rows};
use super::parse::{GgufFile, GgufTensor};

/// Carried along by some files: rotary frequencies that are computed here.
const COMPUTED: &str = ".attn_rot_embd.weight";

/// The tensors of a Llama-architecture GGUF file.
///
/// llama.cpp turns neighbouring pairs in its rotary embedding, transformers the halves of a head, so the converter
/// interleaves each head's rows of q and k; reading puts them back: of d rows, row `a·d/2 + b` (a in 0..2) is the
/// file's row `2·b + a`.
#[derive(Debug)]
pub struct GgufSource {
    file: Arc<GgufFile>,
    head_dim: usize,
    /// Index into the file's tensors, and what to do with the rows.
    tensors: BTreeMap<String, (usize, Rows)>,
}

impl GgufSource {
    /// Names the file's tensors for the model that its metadata describes.
    ///
    /// # Errors
    /// When the file holds a tensor that the decoder has no place for, or q or k don't consist of whole heads.
    pub fn new(file: Arc<GgufFile>, config: &ModelConfig) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (n, tensor) in file.tensors.iter().enumerate() {
            if tensor.name.ends_with(COMPUTED) {
                continue;
            }
            let Some((name, rows)) = names::llama(&tensor.name) else {
                let detail = "has no place in a Llama decoder; the model is of a kind that is not supported";
                return Err(Error::tensor(file.path(), &tensor.name, detail));
            };
            let heads = match rows {
                Rows::Keep => None,
                Rows::UnpermuteQueries => Some(config.num_attention_heads),
                Rows::UnpermuteKeys => Some(config.num_key_value_heads),
            };
            let expected = heads.map(|h| h.saturating_mul(config.head_dim));
            if let Some(expected) = expected.filter(|e| tensor.shape.first() != Some(e)) {
                let detail = format!("has the shape {:?}, but its heads make {expected} rows", tensor.shape);
                return Err(Error::tensor(file.path(), &tensor.name, detail));
            }
            tensors.insert(name, (n, rows));
        }
        Ok(GgufSource { head_dim: config.head_dim, file, tensors })
    }

    fn find(&self, name: &str) -> Option<(&GgufTensor, Rows)> {
        let (n, rows) = self.tensors.get(name)?;
        Some((self.file.tensors.get(*n)?, *rows))
    }
}

impl TensorSource for GgufSource {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let (tensor, _) = self.find(name)?;
        Some(TensorInfo {
            shape: tensor.shape.clone(),
            dtype: tensor.dtype,
            file: self.file.path().to_owned(),
        })
    }

    fn read(&self, name: &str) -> Result<RawTensor<'_>> {
        let Some((tensor, rows)) = self.find(name) else {
            return Err(missing(self.file.path(), name, self.tensors.keys().map(String::as_str)));
        };
        let bytes = self.file.file.range(tensor.start, tensor.end)?;
        let bytes = match rows {
            Rows::Keep => Cow::Borrowed(bytes),
            _ => Cow::Owned(unpermute(bytes, tensor.dtype, &tensor.shape, self.head_dim)),
        };
        Ok(RawTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes })
    }
}

/// Reorders whole rows, quantised or not (a row is a whole number of blocks; of a bias, one number).
fn unpermute(bytes: &[u8], dtype: FileDType, shape: &[usize], head_dim: usize) -> Vec<u8> {
    let row = dtype.bytes_of(shape.get(1..).unwrap_or_default()).unwrap_or(0);
    if row == 0 || head_dim == 0 {
        return bytes.to_vec();
    }
    let mut out = Vec::with_capacity(bytes.len());
    for head in bytes.chunks(row.saturating_mul(head_dim)) {
        for part in 0..2 {
            for row in head.chunks(row).skip(part).step_by(2) {
                out.extend_from_slice(row);
            }
        }
    }
    out
}
