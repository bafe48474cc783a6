//! Folding adapters into the weights, and taking them out again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use loratune_engine::{DType, Params, Tensor};

use super::Attached;
use super::attach::stored_name;
use super::tokens;
use crate::decoder::{Decoder, Matrix};
use crate::error::{Error, Result};
use crate::files::{FileDType, ModelFiles};
use crate::load;
use crate::spec::{HEAD, MatrixKind};

/// ‖W + s·B·A‖ of DoRA's modules at merging, by module path: what merging forgets and unmerging needs.
pub type Norms = BTreeMap<String, Vec<f64>>;

/// s·B·A of an adapted matrix in f32, in the layout of its weight.
fn update(matrix: &Matrix, params: &Params) -> Result<Option<Tensor>> {
    let Some(lora) = &matrix.adapter else { return Ok(None) };
    let a = params.value(lora.a).to_dtype(DType::F32);
    let b = params.value(lora.b).to_dtype(DType::F32);
    Ok(Some(match matrix.kind {
        MatrixKind::Embedding => transposed(&a)?.matmul(&transposed(&b)?, lora.scaling)?,
        _ => b.matmul(&a, lora.scaling)?,
    }))
}

pub(super) fn transposed(t: &Tensor) -> Result<Tensor> {
    let (data, rows, cols) = (t.slice::<f32>()?, t.rows(), t.cols());
    let out = (0..rows * cols).map(|i| data[(i % rows) * cols + i / rows]).collect();
    Ok(Tensor::from_vec::<f32>(out, &[cols, rows])?)
}

/// W·diag or diag·W: each output feature (a row, or a column of an embedding table) times its factor.
fn scale_features(w: &mut Tensor, kind: MatrixKind, factors: &[f64]) -> Result<()> {
    let cols = w.cols();
    for (i, row) in w.slice_mut::<f32>()?.chunks_exact_mut(cols).enumerate() {
        for (j, x) in row.iter_mut().enumerate() {
            let factor = factors[if kind == MatrixKind::Embedding { j } else { i }];
            *x = (f64::from(*x) * factor) as f32;
        }
    }
    Ok(())
}

/// The norm of each output feature.
fn feature_norms(w: &Tensor, kind: MatrixKind) -> Result<Vec<f64>> {
    let (cols, embedding) = (w.cols(), kind == MatrixKind::Embedding);
    let mut squares = vec![0.0; if embedding { cols } else { w.rows() }];
    for (i, row) in w.slice::<f32>()?.chunks_exact(cols).enumerate() {
        for (j, &x) in row.iter().enumerate() {
            squares[if embedding { j } else { i }] += f64::from(x) * f64::from(x);
        }
    }
    squares.iter_mut().for_each(|s| *s = s.sqrt());
    Ok(squares)
}

/// W + s·B·A, and with DoRA each feature of it scaled to its magnitude, in f32 whatever W is stored in; who writes it
/// rounds once. `norms` gets what DoRA divides by.
fn merged_weight(matrix: &Matrix, mut w: Tensor, params: &Params, norms: &mut Norms) -> Result<Tensor> {
    let (Some(update), Some(lora)) = (update(matrix, params)?, &matrix.adapter) else { return Ok(w) };
    w.add_assign(&update)?;
    if let Some(dora) = &lora.dora {
        let n = feature_norms(&w, matrix.kind)?;
        let m = params.value(dora.magnitude).to_f64_vec();
        // As in the forward pass, a feature without a length stays as it is.
        let factors: Vec<f64> = m.iter().zip(&n).map(|(m, &n)| if n == 0.0 { 1.0 } else { m / n }).collect();
        scale_features(&mut w, matrix.kind, &factors)?;
        norms.insert(matrix.path.clone(), n);
    }
    Ok(w)
}

/// The tensors of a model with its adapters folded in: W + s·B·A with DoRA's magnitudes, and the trained modules, rows and
/// biases in place of the base's. Weights are read and merged in f32, one at a time, whatever they are stored in; who writes them
/// rounds once.
pub struct Merged<'a> {
    files: &'a ModelFiles,
    params: &'a Params,
    attached: Option<&'a Attached>,
    matrices: HashMap<String, &'a Matrix>,
    norms: Norms,
}

impl<'a> Merged<'a> {
    /// The tensors of `files` with what `decoder` has on them.
    pub fn new(
        files: &'a ModelFiles,
        decoder: &'a Decoder,
        params: &'a Params,
        attached: Option<&'a Attached>,
    ) -> Merged<'a> {
        let matrices = decoder.matrices().map(|m| (format!("{}.weight", m.path), m)).collect();
        Merged { files, params, attached, matrices, norms: Norms::new() }
    }

    /// A tensor by its Hugging Face name, in f32.
    ///
    /// # Errors
    /// If it can't be read, or is not finite.
    pub fn tensor(&mut self, name: &str) -> Result<Tensor> {
        let params = self.params;
        let base = |name: &str| read_base(self.files, self.attached, name);
        let merged = match (params.find(name), self.matrices.get(name)) {
            (Some(id), _) => params.value(id).to_dtype(DType::F32),
            (None, Some(matrix)) => {
                let mut w = base(name)?;
                // What the initialiser took out of the base is in A and B, not in the file's weight as well.
                if let (Some([a, b]), Some(lora)) =
                    (self.attached.and_then(|x| x.taken.get(&matrix.path)), &matrix.adapter)
                {
                    w.add_assign(&b.matmul(a, -lora.scaling)?)?;
                }
                tokens::put_into(&mut w, matrix, params)?;
                merged_weight(matrix, w, params, &mut self.norms)?
            }
            (None, None) => base(name)?,
        };
        match merged.is_finite() {
            true => Ok(merged),
            false => Err(Error::Invalid(format!(
                "the merged weight {name} is not finite: the adapter is damaged, or a magnitude's row has no length"
            ))),
        }
    }

    /// What DoRA divided by so far: all of it when all tensors were asked for. [`unmerge`] needs it.
    pub fn into_norms(self) -> Norms {
        self.norms
    }
}

/// Writes the model's folder with the decoder's adapters folded into the weights of `files` (see [`Merged`]), in type `dtype`. A
/// head that shared the embedding's weight and no longer equals it is written by itself.
///
/// Returns DoRA's norms, which [`unmerge`] needs.
///
/// # Errors
/// If a merged weight is not finite, or something can't be read or written.
pub fn merge(
    dir: &Path,
    files: &ModelFiles,
    decoder: &Decoder,
    params: &Params,
    attached: Option<&Attached>,
    dtype: FileDType,
) -> Result<Norms> {
    let mut merged = Merged::new(files, decoder, params, attached);
    load::write_model(dir, files, dtype, decoder.is_untied(), |name| merged.tensor(name))?;
    Ok(merged.into_norms())
}

/// A tensor of the base in f32: what came with the adapter, or the files'.
fn read_base(files: &ModelFiles, attached: Option<&Attached>, name: &str) -> Result<Tensor> {
    let stored = stored_name(name, files.config.spec.tied_head);
    let replaced = attached.and_then(|a| a.replaced.get(name).or(a.replaced.get(&stored)));
    match replaced {
        Some(tensor) => Ok(tensor.clone()),
        None => load::read_f32(files, &stored),
    }
}

/// Writes the model's folder without what a PiSSA or OLoRA adapter took out of the base: the base that the adapter's raw
/// factors belong on. In type `dtype`; in the one that the run's frozen weights are in it's the base that was trained on.
pub fn write_residual(
    dir: &Path,
    files: &ModelFiles,
    decoder: &Decoder,
    attached: &Attached,
    dtype: FileDType,
) -> Result<()> {
    let scalings: HashMap<&str, f64> =
        decoder.matrices().filter_map(|m| Some((m.path.as_str(), m.adapter.as_ref()?.scaling))).collect();
    let untied = attached.taken.contains_key(HEAD) && files.config.spec.tied_head;
    load::write_model(dir, files, dtype, untied, |name| {
        let mut w = read_base(files, Some(attached), name)?;
        let path = name.strip_suffix(".weight").unwrap_or(name);
        if let (Some([a, b]), Some(scaling)) = (attached.taken.get(path), scalings.get(path)) {
            w.add_assign(&b.matmul(a, -scaling)?)?;
        }
        Ok(w)
    })
}

/// Writes the model's folder with the decoder's adapters taken out of `files`, into which they were merged: W' − s·B·A, or
/// with DoRA W'·‖W + s·B·A‖/m − s·B·A by the `norms` that merging returned.
///
/// # Errors
/// If the adapter holds what replaces weights (the replaced ones are gone), or DoRA's norms are missing; if rows of the
/// model have other lengths than DoRA's magnitudes, which shows that this adapter is not in it.
pub fn unmerge(
    dir: &Path,
    files: &ModelFiles,
    decoder: &Decoder,
    params: &Params,
    attached: &Attached,
    norms: &Norms,
    dtype: FileDType,
) -> Result<()> {
    let spec = &attached.spec;
    let replaces = !spec.modules_to_save.is_empty() || spec.bias != super::Bias::None;
    if replaces || spec.token_indices.is_some() || !attached.replaced.is_empty() {
        return Err(Error::Invalid(
            "the adapter replaces weights of the base (modules_to_save, trainable_token_indices, bias, embeddings), and the \
             merged model no longer holds what they replaced: use the base itself"
                .into(),
        ));
    }
    let matrices: HashMap<String, &Matrix> =
        decoder.matrices().map(|m| (format!("{}.weight", m.path), m)).collect();
    load::write_model(dir, files, dtype, false, |name| {
        let mut w = load::read_f32(files, name)?;
        let Some(matrix) = matrices.get(name) else { return Ok(w) };
        let (Some(mut update), Some(lora)) = (update(matrix, params)?, &matrix.adapter) else { return Ok(w) };
        if let Some(dora) = &lora.dora {
            let m = params.value(dora.magnitude).to_f64_vec();
            let merged = feature_norms(&w, matrix.kind)?;
            // Written in bf16, a length keeps more than two digits.
            if let Some(row) = merged.iter().zip(&m).position(|(n, m)| (n - m.abs()).abs() > 0.02 * m.abs()) {
                return Err(Error::Invalid(format!(
                    "{} of the model has a row (number {row}) of length {:.4}, but merging this adapter gives it its \
                     magnitude, {:.4}: the adapter was not merged into this model",
                    matrix.path,
                    merged[row],
                    m[row].abs()
                )));
            }
            let n = norms.get(&matrix.path).filter(|n| n.len() == m.len()).ok_or_else(|| {
                Error::Invalid(format!(
                    "merging DoRA replaces each row's length by its magnitude; without the norms of {} that merging wrote \
                     (--norms) the old length can't be known",
                    matrix.path
                ))
            })?;
            let factors: Vec<f64> =
                m.iter().zip(n).map(|(m, &n)| if n == 0.0 { 1.0 } else { n / m }).collect();
            scale_features(&mut w, matrix.kind, &factors)?;
        }
        update.scale_assign(-1.0);
        w.add_assign(&update)?;
        match w.is_finite() {
            true => Ok(w),
            false => Err(Error::Invalid(format!(
                "the weight {name} is not finite without the adapter: a magnitude of it is 0, or it is damaged"
            ))),
        }
    })
}
