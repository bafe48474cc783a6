//! Folding adapters into the weights.

use std::collections::HashMap;
use std::path::Path;

use loratune_engine::{DType, Params, Tensor};

use crate::decoder::{Decoder, Linear};
use crate::error::Result;
use crate::files::{FileDType, ModelFiles};
use crate::load;

/// W + s·B·A of an adapted layer, `[out, in]`, in f32 whatever W is stored in; who writes it rounds once.
fn merged_weight(linear: &Linear, mut w: Tensor, params: &Params) -> Result<Tensor> {
    if let Some(lora) = &linear.adapter {
        let (a, b) = (params.value(lora.a), params.value(lora.b));
        w.add_assign(&b.to_dtype(DType::F32).matmul(&a.to_dtype(DType::F32), lora.scaling)?)?;
    }
    Ok(w)
}

/// Writes the model's folder with the decoder's adapters folded into the weights of `files`, in type `dtype`. Weights
/// are read, merged in f32 and rounded once, one at a time.
///
/// # Errors
/// If a merged weight is not finite, or something can't be read or written.
pub fn merge(
    dir: &Path,
    files: &ModelFiles,
    decoder: &Decoder,
    params: &Params,
    dtype: FileDType,
) -> Result<()> {
    let linears: HashMap<String, &Linear> =
        decoder.linears().map(|l| (format!("{}.weight", l.path), l)).collect();
    load::write_model(dir, files, dtype, |name| {
        let base = load::read_f32(files, name)?;
        let merged = match linears.get(name) {
            Some(linear) => merged_weight(linear, base, params)?,
            None => base,
        };
        if !merged.is_finite() {
            return Err(crate::Error::Invalid(format!(
                "the merged weight {name} is not finite: the adapter is damaged"
            )));
        }
        Ok(merged)
    })
}
