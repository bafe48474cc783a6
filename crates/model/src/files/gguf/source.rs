//! A GGUF file's tensors under their Hugging Face names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::super::safetensors::missing;
use super::super::{Error, FileDType, ModelConfig, RawTensor, Result, TensorInfo, TensorSource};
use super::names::{Change, hugging_face};
use super::parse::{GgufFile, GgufTensor};

/// Carried along by some files: rotary frequencies, which are computed here (from these factors, in `convert`).
const COMPUTED: [&str; 4] =
    [".attn_rot_embd.weight", "rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];

/// The tensors of a GGUF file under the names of the model's family.
///
/// For Llama's architecture llama.cpp turns neighbouring pairs in its rotary embedding, transformers the halves of a
/// head, so the converter interleaves each head's rows of q and k; reading puts them back: of d rows, row `a·d/2 + b` (a in
/// 0..2) is the file's row `2·b + a`. Gemma's norms are stored whole there and less one here.
#[derive(Debug)]
pub struct GgufSource {
    file: Arc<GgufFile>,
    head_dim: usize,
    /// Index into the file's tensors, and what to do with them.
    tensors: BTreeMap<String, (usize, Change)>,
}

impl GgufSource {
    /// Names the file's tensors for the model that its metadata describes.
    ///
    /// # Errors
    /// When the file holds a tensor that the decoder has no place for, or q or k don't consist of whole heads.
    pub fn new(file: Arc<GgufFile>, config: &ModelConfig) -> Result<Self> {
        let interleaved = file.family()?.1.interleaved;
        let mut tensors = BTreeMap::new();
        for (n, tensor) in file.tensors.iter().enumerate() {
            if COMPUTED.iter().any(|c| tensor.name.ends_with(c)) {
                continue;
            }
            let Some((name, change)) = hugging_face(&tensor.name, &config.spec, interleaved) else {
                let detail = format!(
                    "has no place in a {}; the model is of a kind that is not supported",
                    config.family.class
                );
                return Err(Error::tensor(file.path(), &tensor.name, detail));
            };
            let heads = match change {
                Change::Keep | Change::LessOne => None,
                Change::Queries => Some(config.spec.num_heads),
                Change::Keys => Some(config.spec.num_kv_heads),
            };
            let expected = heads.map(|h| h.saturating_mul(config.spec.head_dim));
            if let Some(expected) = expected.filter(|e| tensor.shape.first() != Some(e)) {
                let detail = format!("has the shape {:?}, but its heads make {expected} rows", tensor.shape);
                return Err(Error::tensor(file.path(), &tensor.name, detail));
            }
            tensors.insert(name, (n, change));
        }
        Ok(GgufSource { head_dim: config.spec.head_dim, file, tensors })
    }

    fn find(&self, name: &str) -> Option<(&GgufTensor, Change)> {
        let (n, change) = self.tensors.get(name)?;
        Some((self.file.tensors.get(*n)?, *change))
    }
}

impl TensorSource for GgufSource {
    fn names(&self) -> Vec<&str> {
        self.tensors.keys().map(String::as_str).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let (tensor, change) = self.find(name)?;
        Some(TensorInfo {
            shape: tensor.shape.clone(),
            dtype: if change == Change::LessOne { FileDType::F32 } else { tensor.dtype },
            file: self.file.path().to_owned(),
        })
    }

    fn read(&self, name: &str) -> Result<RawTensor<'_>> {
        let Some((tensor, change)) = self.find(name) else {
            return Err(missing(self.file.path(), name, self.tensors.keys().map(String::as_str)));
        };
        let bytes = self.file.file.range(tensor.start, tensor.end)?;
        let bytes = match change {
            Change::Keep => Cow::Borrowed(bytes),
            Change::LessOne => return Ok(less_one(self.file.read(tensor)?)),
            _ => Cow::Owned(unpermute(bytes, tensor.dtype, &tensor.shape, self.head_dim)),
        };
        Ok(RawTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes })
    }
}

/// A norm's weight less one, in f32.
fn less_one(weight: RawTensor<'_>) -> RawTensor<'static> {
    let bytes: Vec<u8> = weight.to_f32().iter().flat_map(|x| (x - 1.0).to_le_bytes()).collect();
    RawTensor { dtype: FileDType::F32, shape: weight.shape, bytes: Cow::Owned(bytes) }
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
