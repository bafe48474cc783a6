//! An adapter as a GGUF file that llama.cpp puts on the model's own.

use std::path::Path;

use loratune_engine::Params;

use super::keys::Keys;
use super::{GgufType, encoded, interleaved, written};
use crate::adapter::{Attached, Bias};
use crate::decoder::{Decoder, Matrix};
use crate::error::{Error, Result};
use crate::files::gguf::{Change, Entry, GgufHeader, HeadTensor, llama_cpp};
use crate::files::{ModelFiles, TensorPlan};
use crate::spec::{HEAD, MatrixKind};

/// Writes an adapter of A and B as llama.cpp's converter lays it out (`general.type` = adapter). llama.cpp scales each module by
/// α over its rank, with one α for all; where a module's scaling is another (rsLoRA, alpha_pattern), its B carries the rest.
///
/// # Errors
/// If the adapter holds more than A and B (DoRA's magnitudes, trained modules, rows or biases, a changed base), or adapts a head
/// that the file's model has not; as [`super::model_to_gguf`] otherwise.
pub fn adapter_to_gguf(
    path: &Path,
    files: &ModelFiles,
    decoder: &Decoder,
    params: &Params,
    attached: &Attached,
    name: &str,
    kind: GgufType,
) -> Result<()> {
    let (_, gguf) = written(files)?;
    refuse_more(decoder, attached)?;
    let spec = &files.config.spec;
    let alpha = if attached.spec.alpha == 0.0 { 1.0 } else { attached.spec.alpha };
    let text = |t: &str| Entry::Text(t.to_owned());
    let metadata: Keys = vec![
        ("general.architecture".into(), text(gguf.arch)),
        ("general.type".into(), text("adapter")),
        ("general.name".into(), text(name)),
        ("adapter.type".into(), text("lora")),
        ("adapter.lora.alpha".into(), Entry::F32(alpha as f32)),
        ("general.file_type".into(), Entry::U32(kind.number())),
        ("general.quantization_version".into(), Entry::U32(2)),
    ];
    let (mut tensors, mut bytes) = (Vec::new(), Vec::new());
    for matrix in decoder.matrices().filter(|m| m.adapter.is_some()) {
        if matrix.path == HEAD && spec.tied_head && gguf.head != HeadTensor::Own {
            return Err(Error::Invalid(
                "the adapter adapts lm_head, which shares the embedding's table: in llama.cpp that is one tensor, and an adapter \
                 of it is taken for the embedding's. Export the merged model instead"
                    .into(),
            ));
        }
        let weight = format!("{}.weight", matrix.path);
        let (to, change) = llama_cpp(&weight, spec, gguf.interleaved).ok_or_else(|| {
            Error::Invalid(format!("llama.cpp has no place for an adapter of {}", matrix.path))
        })?;
        let [a, b] = factors(matrix, params, change, spec.head_dim, alpha)?;
        for (suffix, (values, shape)) in [("lora_a", a), ("lora_b", b)] {
            let name = format!("{to}.{suffix}");
            let dtype = kind.of_matrix(shape[1], false);
            bytes.push(encoded(path, &name, &values, dtype)?);
            tensors.push(TensorPlan { name, dtype, shape: shape.to_vec() });
        }
    }
    let mut next = bytes.into_iter();
    GgufHeader { metadata, tensors }.write(path, |_| Ok(next.next().unwrap_or_default()))
}

/// A factor's numbers and its shape in the file.
type Factor = (Vec<f32>, [usize; 2]);

/// A and B as llama.cpp has them: B's rows in its order, A of an embedding by token.
fn factors(
    matrix: &Matrix,
    params: &Params,
    change: Change,
    head_dim: usize,
    alpha: f64,
) -> Result<[Factor; 2]> {
    let Some(lora) = &matrix.adapter else { return Ok(Default::default()) };
    let (a, b) = (params.value(lora.a), params.value(lora.b));
    let (r, out) = (a.rows(), b.rows());
    let mut a = (a.reals::<f32>().to_vec(), [r, a.cols()]);
    if matrix.kind == MatrixKind::Embedding {
        let [r, tokens] = a.1;
        let by_token = (0..r * tokens).map(|i| a.0[(i % r) * tokens + i / r]).collect();
        a = (by_token, [tokens, r]);
    }
    let rest = lora.scaling * r as f64 / alpha;
    let mut b = b.reals::<f32>().to_vec();
    if (rest - 1.0).abs() > 1e-12 {
        b.iter_mut().for_each(|x| *x = (f64::from(*x) * rest) as f32);
    }
    if matches!(change, Change::Queries | Change::Keys) {
        b = interleaved(&b, r, head_dim);
    }
    Ok([a, (b, [out, r])])
}

/// llama.cpp's adapters are A and B, and nothing else.
fn refuse_more(decoder: &Decoder, attached: &Attached) -> Result<()> {
    let spec = &attached.spec;
    let dora = decoder.matrices().any(|m| m.adapter.as_ref().is_some_and(|lora| lora.dora.is_some()));
    let more = [
        (
            dora,
            "DoRA's magnitudes",
            "`loratune convert --rank` makes LoRA of it, with an error that it tells",
        ),
        (!spec.modules_to_save.is_empty(), "trained modules (modules_to_save)", ""),
        (spec.token_indices.is_some(), "trained rows (trainable_token_indices)", ""),
        (spec.bias != Bias::None, "trained biases", ""),
        (!attached.replaced.is_empty(), "a vocabulary of another size", ""),
        (
            !attached.taken.is_empty(),
            "factors on a residual model",
            "`loratune convert` makes plain LoRA of it",
        ),
    ];
    match more.into_iter().find(|(is, _, _)| *is) {
        None => Ok(()),
        Some((_, what, "")) => Err(Error::Invalid(format!(
            "the adapter holds {what}, and llama.cpp's adapters are low-rank factors only: export the merged model instead"
        ))),
        Some((_, what, how)) => Err(Error::Invalid(format!(
            "the adapter holds {what}, and llama.cpp's adapters are low-rank factors only: export the merged model instead, or \
             {how}"
        ))),
    }
}
