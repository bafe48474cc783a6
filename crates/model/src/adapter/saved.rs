//! Adapters in PEFT's files: names, and the plain form of those that changed their base.

use std::collections::{BTreeMap, BTreeSet};

use loratune_engine::{DType, Device, ParamId, Params, Tensor};

use super::Attached;
use super::plan::Site;
use super::tokens::ROWS;
use crate::decoder::Decoder;
use crate::error::{Error, Result};
use crate::files::RawTensor;
use crate::files::peft::AdapterConfig;
use crate::spec::{EMBEDDING, HEAD, MatrixKind};

/// What PEFT puts before a module path in its files.
pub(crate) const PREFIX: &str = "base_model.model.";

type Tensors = BTreeMap<String, RawTensor<'static>>;

/// How an adapter whose initialiser changed the base is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Plain LoRA on the untouched base: A' = [A; A₀], B' = [B, −B₀], rank 2r and the same scaling. Adapters that
    /// did not change their base are plain as they are.
    Plain,
    /// A and B as they are, which belong on the base without its first s·B₀·A₀.
    Raw,
}

/// Names of A, B and the magnitude of a module: PEFT's, without [`PREFIX`].
pub(super) fn names(path: &str, kind: MatrixKind) -> [String; 3] {
    let (a, b) = match kind {
        MatrixKind::Embedding => ("lora_embedding_A", "lora_embedding_B"),
        _ => ("lora_A.weight", "lora_B.weight"),
    };
    [format!("{path}.{a}"), format!("{path}.{b}"), format!("{path}.lora_magnitude_vector")]
}

/// The keys that one of the model's own trained tensors may have, the one that PEFT 0.21 writes first: PEFT wraps
/// adapted layers, and a bias of theirs is `base_layer`'s; and saved modules, whose insides it sometimes writes too.
fn trained_keys(name: &str, adapted: &BTreeSet<&str>) -> Vec<String> {
    let plain = format!("{PREFIX}{name}");
    let wrapped = name.rsplit_once('.').map(|(path, last)| format!("{PREFIX}{path}.modules_to_save.{last}"));
    match name.strip_suffix(".bias").filter(|path| adapted.contains(path)) {
        Some(path) => vec![format!("{PREFIX}{path}.base_layer.bias"), plain],
        None => [plain].into_iter().chain(wrapped).collect(),
    }
}

/// The key of a base weight that comes along with an adapter: PEFT wraps adapted modules, and ones with trained rows.
fn base_key(name: &str, adapted: &BTreeSet<&str>, with_rows: &BTreeSet<&str>) -> String {
    let Some(path) = name.strip_suffix(".weight") else { return format!("{PREFIX}{name}") };
    let adapter = if adapted.contains(path) { ".base_layer" } else { "" };
    let rows = if with_rows.contains(path) { ".token_adapter.base_layer" } else { "" };
    format!("{PREFIX}{path}{adapter}{rows}.weight")
}

/// The paths of matrices with trained rows.
fn with_rows(decoder: &Decoder) -> BTreeSet<&str> {
    decoder.matrices().filter(|m| m.rows.is_some()).map(|m| m.path.as_str()).collect()
}

/// The tensors of an adapter's file beside what a spec makes of them.
pub(super) struct SavedTensors<'a> {
    tensors: &'a Tensors,
    adapted: BTreeSet<&'a str>,
    with_rows: BTreeSet<&'a str>,
    /// A, B and magnitudes.
    factors: Vec<String>,
    trained: Vec<(ParamId, Vec<String>)>,
}

impl<'a> SavedTensors<'a> {
    pub fn new(
        tensors: &'a Tensors,
        sites: &'a [Site],
        decoder: &Decoder,
        params: &Params,
        dora: bool,
    ) -> SavedTensors<'a> {
        let adapted: BTreeSet<&str> = sites.iter().map(|s| s.matrix.path.as_str()).collect();
        let factors = sites
            .iter()
            .flat_map(|s| names(&s.matrix.path, s.matrix.kind).into_iter().take(if dora { 3 } else { 2 }))
            .map(|name| format!("{PREFIX}{name}"))
            .collect();
        let trained = params.ids().map(|id| (id, trained_keys(params.name(id), &adapted))).collect();
        let rows = with_rows(decoder);
        let with_rows = [EMBEDDING, HEAD].into_iter().filter(|path| rows.contains(path)).collect();
        SavedTensors { tensors, adapted, with_rows, factors, trained }
    }

    /// The tensors of the base that PEFT saves along when embeddings are adapted or resized, with the names that they
    /// have in the model.
    fn base_names(&self) -> Vec<(String, String)> {
        let trained: BTreeSet<&String> = self.trained.iter().flat_map(|(_, keys)| keys).collect();
        [EMBEDDING, HEAD]
            .iter()
            .map(|path| {
                let name = format!("{path}.weight");
                (base_key(&name, &self.adapted, &self.with_rows), name)
            })
            .filter(|(key, _)| self.tensors.contains_key(key) && !trained.contains(key))
            .collect()
    }

    /// # Errors
    /// If a tensor is missing, or one is left over.
    pub fn check_names(&self) -> Result<()> {
        let missing = |name: &str| {
            Err(Error::Invalid(format!(
                "the adapter's file has no tensor '{name}', which its configuration asks for"
            )))
        };
        let mut used: BTreeSet<&str> = BTreeSet::new();
        for name in &self.factors {
            if !self.tensors.contains_key(name) {
                return missing(name);
            }
            used.insert(name);
        }
        for (_, keys) in &self.trained {
            if !keys.iter().any(|k| self.tensors.contains_key(k)) {
                return missing(&keys[0]);
            }
            used.extend(keys.iter().map(String::as_str));
        }
        let base = self.base_names();
        used.extend(base.iter().map(|(key, _)| key.as_str()));
        // PEFT writes a tied head's rows, which are the embedding's, once more where the vocabulary was resized.
        let copy = format!("{PREFIX}{HEAD}.{ROWS}");
        let copied = |k: &String| *k == copy && self.with_rows.contains(HEAD);
        // What a saved module was before it was trained, which PEFT writes with some.
        let known = |k: &String| used.contains(k.as_str()) || k.contains(".original_module.") || copied(k);
        match self.tensors.keys().find(|k| !known(k)) {
            None => Ok(()),
            Some(extra) => Err(Error::Invalid(format!(
                "the adapter's file holds the tensor '{extra}', which belongs to no module that its configuration \
                 names in this model: is it an adapter of another model?"
            ))),
        }
    }

    /// Takes the model's own trained tensors.
    pub fn read_trained(&self, params: &mut Params) -> Result<()> {
        for (id, keys) in &self.trained {
            if let Some((name, raw)) = keys.iter().find_map(|k| self.tensors.get_key_value(k)) {
                let tensor = dense(name, raw, params.value(*id).shape(), params.value(*id).dtype())?;
                params.set(*id, tensor)?;
            }
        }
        Ok(())
    }

    /// Base weights that come with the adapter, in f32 by the model's tensor names.
    pub fn base_weights(&self, decoder: &Decoder) -> Result<BTreeMap<String, Tensor>> {
        let shape = [decoder.spec().vocab_size, decoder.spec().hidden_size];
        self.base_names()
            .into_iter()
            .map(|(key, name)| Ok((name, dense(&key, &self.tensors[&key], &shape, DType::F32)?)))
            .collect()
    }
}

fn read(tensors: &Tensors, name: &str, shape: &[usize]) -> Result<Tensor> {
    let name = format!("{PREFIX}{name}");
    let raw = tensors
        .get(&name)
        .ok_or_else(|| Error::Invalid(format!("the adapter's file has no tensor '{name}'")))?;
    dense(&name, raw, shape, DType::F32)
}

/// A and B of a site at rank `r`, in f32.
pub(super) fn factors(site: &Site, tensors: &Tensors, r: usize) -> Result<(Tensor, Tensor)> {
    let [a, b, _] = names(&site.matrix.path, site.matrix.kind);
    let [out, input] = site.oriented();
    Ok((read(tensors, &a, &[r, input])?, read(tensors, &b, &[out, r])?))
}

/// The magnitudes of a site, `[out]`.
pub(super) fn magnitude(site: &Site, tensors: &Tensors) -> Result<Tensor> {
    let [_, _, m] = names(&site.matrix.path, site.matrix.kind);
    read(tensors, &m, &[site.oriented()[0]])
}

/// A file's tensor as a dense one.
///
/// # Errors
/// If its shape is another, or a number is not finite.
pub fn dense(name: &str, raw: &RawTensor<'_>, shape: &[usize], dtype: DType) -> Result<Tensor> {
    if raw.shape != shape {
        return Err(Error::Invalid(format!(
            "tensor '{name}' has the shape {:?} in the file, but the configuration asks for {shape:?}",
            raw.shape
        )));
    }
    let tensor = match dtype {
        DType::F64 => Tensor::from_vec(raw.to_f64(), shape)?,
        DType::F32 => Tensor::from_vec(raw.to_f32(), shape)?,
        DType::BF16 => Tensor::from_vec(raw.to_bf16(), shape)?,
    };
    // The converted numbers are looked at: quantised ones would have to be converted a second time.
    if !tensor.is_finite() {
        let first = tensor.to_f64_vec().iter().position(|x| !x.is_finite()).unwrap_or_default();
        return Err(Error::Invalid(format!(
            "tensor '{name}' holds a number that is not finite in {dtype} (element {first}): the file is damaged"
        )));
    }
    Ok(tensor)
}

/// What a parameter is to its adapter.
enum Role<'a> {
    A(&'a str),
    B(&'a str),
    Other,
}

fn roles(decoder: &Decoder) -> BTreeMap<ParamId, Role<'_>> {
    decoder
        .matrices()
        .filter_map(|m| Some((m.path.as_str(), m.adapter.as_ref()?)))
        .flat_map(|(path, l)| [(l.a, Role::A(path)), (l.b, Role::B(path))])
        .collect()
}

impl Attached {
    /// Whether the plain form has twice the rank.
    fn doubles(&self, form: Form) -> bool {
        form == Form::Plain && self.spec.init.changes_base()
    }

    /// The base weights that come along, with their keys.
    pub(super) fn base_keys<'a>(
        &'a self,
        decoder: &'a Decoder,
    ) -> impl Iterator<Item = (String, &'a Tensor)> {
        let (adapted, rows) = (adapted(decoder), with_rows(decoder));
        self.replaced.iter().map(move |(name, value)| (base_key(name, &adapted, &rows), value))
    }
}

/// PEFT's files of a decoder's adapters: the configuration (for a base of this name), and every trained tensor in f32
/// under its key.
///
/// # Errors
/// If an adapter's tensors do not belong together.
pub fn adapter_files(
    decoder: &Decoder,
    params: &Params,
    attached: &Attached,
    base: Option<&str>,
    form: Form,
) -> Result<(AdapterConfig, Vec<(String, Tensor)>)> {
    let doubles = attached.doubles(form);
    let (roles, adapted) = (roles(decoder), adapted(decoder));
    let tensors = params
        .ids()
        .map(|id| {
            let value = params.value(id).to_device(Device::Cpu)?.to_dtype(DType::F32);
            let value = match roles.get(&id).unwrap_or(&Role::Other) {
                Role::A(path) if doubles => {
                    let first = attached.taken.get(*path).map(|[a, _]| a.clone());
                    join_rows(&value, &first.unwrap_or_else(|| Tensor::zeros(DType::F32, value.shape())))?
                }
                Role::B(path) if doubles => {
                    let mut first = attached
                        .taken
                        .get(*path)
                        .map_or_else(|| Tensor::zeros(DType::F32, value.shape()), |[_, b]| b.clone());
                    first.scale_assign(-1.0);
                    join_cols(&value, &first)?
                }
                _ => value,
            };
            Ok((trained_keys(params.name(id), &adapted).swap_remove(0), value))
        })
        .chain(attached.base_keys(decoder).map(|(key, value)| Ok((key, value.clone()))))
        .collect::<Result<_>>()?;
    Ok((attached.spec.to_config(base, &attached.targets, doubles), tensors))
}

fn adapted(decoder: &Decoder) -> BTreeSet<&str> {
    decoder.matrices().filter(|m| m.adapter.is_some()).map(|m| m.path.as_str()).collect()
}

/// Takes every parameter from files in [`Form::Plain`]; `read(key, shape)` gives a tensor. What was taken out of the
/// base stays as it is: all checkpoints of a run have it in common.
pub fn restore<E: From<Error>>(
    decoder: &Decoder,
    params: &mut Params,
    attached: &Attached,
    mut read: impl FnMut(&str, &[usize]) -> Result<Tensor, E>,
) -> Result<(), E> {
    let doubles = attached.doubles(Form::Plain);
    let (roles, adapted) = (roles(decoder), adapted(decoder));
    for id in params.ids() {
        let key = trained_keys(params.name(id), &adapted).swap_remove(0);
        let shape = params.value(id).shape().to_vec();
        let value = match roles.get(&id).unwrap_or(&Role::Other) {
            Role::A(_) if doubles => {
                let [a, _] = split_rows(&read(&key, &[2 * shape[0], shape[1]])?)?;
                a
            }
            Role::B(_) if doubles => {
                let [b, _] = split_cols(&read(&key, &[shape[0], 2 * shape[1]])?)?;
                b
            }
            _ => read(&key, &shape)?,
        };
        params.set(id, value).map_err(Error::from)?;
    }
    Ok(())
}

pub(super) fn join_rows(top: &Tensor, bottom: &Tensor) -> Result<Tensor> {
    let data = [top.slice::<f32>()?, bottom.slice::<f32>()?].concat();
    Ok(Tensor::from_vec(data, &[top.rows() + bottom.rows(), top.cols()])?)
}

pub(super) fn join_cols(left: &Tensor, right: &Tensor) -> Result<Tensor> {
    let (l, r) = (left.slice::<f32>()?, right.slice::<f32>()?);
    let (n, m) = (left.cols(), right.cols());
    let data =
        l.chunks_exact(n).zip(r.chunks_exact(m)).flat_map(|(l, r)| l.iter().chain(r)).copied().collect();
    Ok(Tensor::from_vec::<f32>(data, &[left.rows(), n + m])?)
}

/// The upper and the lower half.
pub(super) fn split_rows(t: &Tensor) -> Result<[Tensor; 2]> {
    let half = t.rows() / 2;
    let part = |rows: std::ops::Range<usize>| t.select_rows(&rows.collect::<Vec<_>>());
    Ok([part(0..half)?, part(half..t.rows())?])
}

/// The left and the right half.
pub(super) fn split_cols(t: &Tensor) -> Result<[Tensor; 2]> {
    let (data, cols, half) = (t.slice::<f32>()?, t.cols(), t.cols() / 2);
    let part = |cols_of: std::ops::Range<usize>| -> Result<Tensor> {
        let shape = [t.rows(), cols_of.len()];
        let data = data.chunks_exact(cols).flat_map(|row| &row[cols_of.clone()]).copied().collect();
        Ok(Tensor::from_vec::<f32>(data, &shape)?)
    };
    Ok([part(0..half)?, part(half..cols)?])
}

/// An adapter as it was before training, for what its start took out of the base: PEFT's files of the first A and B (for a
/// base of this name), zeros where nothing was taken. With [`subtract_initial`](super::convert::subtract_initial) and the
/// adapter in [`Form::Raw`] the way to the plain form.
pub fn initial_files(
    decoder: &Decoder,
    params: &Params,
    attached: &Attached,
    base: Option<&str>,
) -> (AdapterConfig, Vec<(String, Tensor)>) {
    let config = AdapterConfig {
        use_dora: false,
        bias: "none".into(),
        modules_to_save: None,
        trainable_token_indices: None,
        ..attached.spec.to_config(base, &attached.targets, false)
    };
    let mut tensors = Vec::new();
    for matrix in decoder.matrices() {
        let Some(lora) = &matrix.adapter else { continue };
        let zeros = || [lora.a, lora.b].map(|id| Tensor::zeros(DType::F32, params.value(id).shape()));
        let first = attached.taken.get(&matrix.path).cloned().unwrap_or_else(zeros);
        let [a, b, _] = names(&matrix.path, matrix.kind);
        tensors.extend([a, b].map(|name| format!("{PREFIX}{name}")).into_iter().zip(first));
    }
    (config, tensors)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileDType;

    fn refused(dtype: FileDType, bytes: Vec<u8>, len: usize, element: usize) {
        let raw = RawTensor { dtype, shape: vec![len], bytes: bytes.into() };
        for to in [DType::F64, DType::F32, DType::BF16] {
            let message = dense("model.norm.weight", &raw, &[len], to).unwrap_err().to_string();
            let place =
                format!("'model.norm.weight' holds a number that is not finite in {to} (element {element})");
            assert!(message.contains(&place), "{dtype:?}: {message}");
        }
    }

    #[test]
    fn non_finite_numbers_are_found_in_every_format() {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut values = vec![1.0f64; 100_000];
            values[70_003] = bad;
            values[90_000] = bad;
            let cases: [(FileDType, Vec<u8>); 4] = [
                (FileDType::F64, values.iter().flat_map(|x| x.to_le_bytes()).collect()),
                (FileDType::F32, values.iter().flat_map(|x| (*x as f32).to_le_bytes()).collect()),
                (FileDType::F16, values.iter().flat_map(|x| half::f16::from_f64(*x).to_le_bytes()).collect()),
                (
                    FileDType::BF16,
                    values.iter().flat_map(|x| half::bf16::from_f64(*x).to_le_bytes()).collect(),
                ),
            ];
            for (dtype, bytes) in cases {
                refused(dtype, bytes, values.len(), 70_003);
            }
        }
        let mut block = vec![0u8; 34 * 3];
        block[68..70].copy_from_slice(&half::f16::NAN.to_le_bytes());
        refused(FileDType::Q8_0, block, 96, 64);
    }
}
