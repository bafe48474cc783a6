//! Turning adapters into others that mean the same: factors whose start was taken out of the base (PiSSA, OLoRA) into plain
//! LoRA on the untouched base, plain LoRA into factors on a residual model, and any adapter into plain LoRA of a given
//! rank, as near as that rank allows.
//!
//! An adapter *on a residual* is one whose A and B belong on W − s·B₀·A₀. The plain one is A' = [A; A₀], B' = [B, −B₀] at the
//! same scaling (PEFT's `path_initial_model_for_weight_conversion`, which drops magnitudes, embeddings and whole modules; here
//! they are kept).

mod lowrank;

use std::collections::BTreeMap;
use std::path::Path;

use loratune_engine::{DType, Params, Tensor};

pub use self::lowrank::{Decomposition, Loss, lowrank};
use super::combine::SavedAdapter;
use super::saved::{PREFIX, join_cols, join_rows, split_cols, split_rows};
use super::target::pattern;
use super::{AdapterSpec, Attached, Form, Init, Start, adapter_files, attach, initial_files, merge};
use crate::decoder::{Decoder, Dtypes};
use crate::error::{Error, Result};
use crate::files::peft::{AdapterConfig, InitLoraWeights};
use crate::files::{FileDType, ModelFiles, RawTensor};
use crate::load;
use crate::spec::HEAD;

/// PEFT's configuration and the tensors under PEFT's names.
pub type AdapterFiles = (AdapterConfig, Vec<(String, Tensor)>);

/// Whether A and B belong on the untouched base, by the configuration. (PEFT also writes `true` for factors that belong on a
/// residual model, so that it does not decompose again.)
pub fn is_plain(config: &AdapterConfig) -> bool {
    match &config.init_lora_weights {
        InitLoraWeights::Flag(_) => true,
        InitLoraWeights::Name(name) => !takes_from_base(name),
    }
}

/// PEFT's initialisers that leave W − s·B₀·A₀ behind.
fn takes_from_base(init: &str) -> bool {
    let init = init.to_ascii_lowercase();
    init.starts_with("pissa") || ["olora", "corda", "lora_ga"].contains(&init.as_str())
}

/// A factor, by the end of its tensor's name.
#[derive(Clone, Copy, PartialEq)]
enum Factor {
    A,
    B,
    EmbeddingA,
    EmbeddingB,
}

impl Factor {
    /// The module's path and which factor of it a tensor is.
    fn of(key: &str) -> Option<(&str, Factor)> {
        let path = key.strip_prefix(PREFIX)?;
        [
            (".lora_A.weight", Factor::A),
            (".lora_B.weight", Factor::B),
            (".lora_embedding_A", Factor::EmbeddingA),
            (".lora_embedding_B", Factor::EmbeddingB),
        ]
        .into_iter()
        .find_map(|(end, factor)| Some((path.strip_suffix(end)?, factor)))
    }

    fn is_a(self) -> bool {
        matches!(self, Factor::A | Factor::EmbeddingA)
    }

    fn is_embedding(self) -> bool {
        matches!(self, Factor::EmbeddingA | Factor::EmbeddingB)
    }
}

/// A tensor of a file without a loss but for f64 (to f32); f16, which the engine has not, as f32.
fn as_tensor(name: &str, raw: &RawTensor<'_>) -> Result<Tensor> {
    let dtype = if raw.dtype == FileDType::BF16 { DType::BF16 } else { DType::F32 };
    super::dense(name, raw, &raw.shape, dtype)
}

/// α' at which twice the rank has the same scaling, as a multiple of α.
fn alpha_of_twice_the_rank(use_rslora: bool) -> f64 {
    if use_rslora { std::f64::consts::SQRT_2 } else { 2.0 }
}

/// The plain form of an adapter on a residual, from the adapter as it was before training (whose B·A is what its start took
/// out of the base): A' = [A; A₀], B' = [B, −B₀], exactly. α' = 2α (√2·α with rsLoRA) and ranks are doubled. Adapters on
/// embeddings, which take nothing out of the base, get zeros. Magnitudes, biases and whole modules stay as they are.
///
/// # Errors
/// If the adapter's start left the base as it is, or the two are not of one run: other modules, shapes, ranks, or scalings.
pub fn subtract_initial(adapter: &SavedAdapter, initial: &SavedAdapter) -> Result<AdapterFiles> {
    let (config, first) = (&adapter.config, &initial.config);
    match &config.init_lora_weights {
        InitLoraWeights::Flag(true) => {}
        InitLoraWeights::Name(name) if takes_from_base(name) => {}
        other => {
            let name = match other {
                InitLoraWeights::Flag(flag) => flag.to_string(),
                InitLoraWeights::Name(name) => name.clone(),
            };
            return Err(Error::Invalid(format!(
                "{}: init_lora_weights is \"{name}\", which takes nothing out of the base (or more than the initial \
                 adapter tells), so there is nothing to convert with an initial adapter",
                adapter.name
            )));
        }
    }
    for (field, same) in [
        ("r", config.r == first.r),
        ("lora_alpha", config.lora_alpha == first.lora_alpha),
        ("use_rslora", config.use_rslora == first.use_rslora),
        ("rank_pattern", config.rank_pattern == first.rank_pattern),
        ("alpha_pattern", config.alpha_pattern == first.alpha_pattern),
    ] {
        if !same {
            return Err(Error::Invalid(format!(
                "{} and the initial adapter {} differ in {field}: they are not of one run",
                adapter.name, initial.name
            )));
        }
    }
    let left_over = |from: &SavedAdapter, other: &SavedAdapter| {
        let mut keys = from.tensors.keys().filter(|k| Factor::of(k).is_some());
        keys.find(|k| !other.tensors.contains_key(*k)).cloned().map(|key| (key, from.name.clone()))
    };
    if let Some((key, of)) = left_over(adapter, initial).or_else(|| left_over(initial, adapter)) {
        return Err(Error::Invalid(format!(
            "only {of} has the tensor '{key}': {} and the initial adapter {} are not of one run",
            adapter.name, initial.name
        )));
    }
    let tensors = adapter
        .tensors
        .iter()
        .map(|(key, raw)| Ok((key.clone(), joined(adapter, initial, key, raw)?)))
        .collect::<Result<_>>()?;
    let alpha = alpha_of_twice_the_rank(config.use_rslora);
    let config = AdapterConfig {
        r: 2 * config.r,
        lora_alpha: alpha * config.lora_alpha,
        rank_pattern: config.rank_pattern.iter().map(|(k, r)| (k.clone(), 2 * r)).collect(),
        alpha_pattern: config.alpha_pattern.iter().map(|(k, a)| (k.clone(), alpha * a)).collect(),
        init_lora_weights: InitLoraWeights::Flag(true),
        ..config.clone()
    };
    Ok((config, tensors))
}

/// One tensor of the plain form.
fn joined(
    adapter: &SavedAdapter,
    initial: &SavedAdapter,
    key: &str,
    raw: &RawTensor<'static>,
) -> Result<Tensor> {
    let Some((path, factor)) = Factor::of(key) else { return as_tensor(key, raw) };
    let r = pattern(&adapter.config.rank_pattern, path)?.unwrap_or(adapter.config.r);
    let rank = if factor.is_a() { raw.shape.first() } else { raw.shape.get(1) };
    if raw.shape.len() != 2 || rank != Some(&r) {
        return Err(Error::Invalid(format!(
            "{}: tensor '{key}' has the shape {:?}, but its configuration gives the rank {r} to this module",
            adapter.name, raw.shape
        )));
    }
    let value = super::dense(key, raw, &raw.shape, DType::F32)?;
    let mut first = match initial.tensors.get(key) {
        Some(first) if !factor.is_embedding() => {
            if first.shape != raw.shape {
                return Err(Error::Invalid(format!(
                    "tensor '{key}' has the shape {:?} in {} and {:?} in the initial adapter {}: they are not of one run",
                    raw.shape, adapter.name, first.shape, initial.name
                )));
            }
            super::dense(key, first, &raw.shape, DType::F32)?
        }
        _ => Tensor::zeros(DType::F32, &raw.shape),
    };
    if factor.is_a() {
        return join_rows(&value, &first);
    }
    first.scale_assign(-1.0);
    join_cols(&value, &first)
}

/// An adapter in place.
struct OnBase {
    decoder: Decoder,
    params: Params,
    attached: Attached,
}

impl OnBase {
    fn new(adapter: &SavedAdapter, files: &ModelFiles) -> Result<OnBase> {
        let spec = AdapterSpec::from_config(&adapter.config)?;
        OnBase::start(&spec, Start::Saved(&adapter.tensors), files)
    }

    fn start(spec: &AdapterSpec, start: Start<'_>, files: &ModelFiles) -> Result<OnBase> {
        let mut params = Params::new();
        let trained = spec.trained(&files.config.spec)?;
        // The decoder is never run; what looks at weights reads them from the files.
        let mut decoder = load::decoder(files, Dtypes::both(DType::BF16), &mut params, &trained)?;
        let attached = attach(&mut decoder, &mut params, spec, start, files)?;
        Ok(OnBase { decoder, params, attached })
    }

    /// The files of the adapter in a form, with the base weights that came along.
    fn files(&self, adapter: &SavedAdapter, base: Option<&str>, form: Form) -> Result<AdapterFiles> {
        let (config, mut tensors) = adapter_files(&self.decoder, &self.params, &self.attached, base, form)?;
        // As they are in the file, whatever their type.
        for (key, _) in self.attached.base_keys(&self.decoder) {
            let place = tensors.iter_mut().find(|(name, _)| *name == key);
            if let (Some((_, tensor)), Some(raw)) = (place, adapter.tensors.get(&key)) {
                *tensor = as_tensor(&key, raw)?;
            }
        }
        let revision = adapter.config.revision.clone().filter(|_| base == adapter.base());
        Ok((AdapterConfig { revision, ..config }, tensors))
    }
}

impl SavedAdapter {
    fn base(&self) -> Option<&str> {
        self.config.base_model_name_or_path.as_deref()
    }

    /// Files that were not written yet, as if they had been read.
    pub fn of_files(name: impl Into<String>, (config, tensors): AdapterFiles) -> SavedAdapter {
        let raw = |t: &Tensor| {
            let dtype = if t.dtype() == DType::BF16 { FileDType::BF16 } else { FileDType::F32 };
            RawTensor { dtype, shape: t.shape().to_vec(), bytes: load::encode(t, dtype).into() }
        };
        let tensors = tensors.iter().map(|(key, t)| (key.clone(), raw(t))).collect();
        SavedAdapter { name: name.into(), config, tensors }
    }
}

/// The plain form of an adapter as PEFT leaves it after `pissa` or `olora`: what its start took out of the base is found
/// again by decomposing the base's weights. A plain adapter comes out as it is.
///
/// # Errors
/// If the adapter does not fit the model, or its start can't be found again (`pissa_niter_N` draws random numbers).
pub fn plain(adapter: &SavedAdapter, files: &ModelFiles) -> Result<AdapterFiles> {
    OnBase::new(adapter, files)?.files(adapter, adapter.base(), Form::Plain)
}

/// An adapter on a residual model.
#[derive(Clone, Debug)]
pub struct Raw {
    /// The factors, for the residual model.
    pub adapter: AdapterFiles,
    /// The factors that the residual model lacks: with [`subtract_initial`] the way back.
    pub initial: AdapterFiles,
}

/// Divides an adapter into factors of half its rank, and a residual model that is written to `dir` in type `dtype`:
/// W + s(BA − B₀A₀) = (W − s·B₀A₀) + s·BA holds for any adapter of even rank, the halves of whose factors are taken for
/// these. An unconverted PiSSA or OLoRA adapter stays as it is, and gets its residual model. `base` is the name of the
/// residual model in the adapter's configuration. Exact up to the rounding of the residual weights to `dtype`.
///
/// # Errors
/// If a rank is odd, the adapter does not fit the model, or an embedding's factors have no half of zeros; and what
/// the disk refuses.
pub fn raw(
    dir: &Path,
    adapter: &SavedAdapter,
    files: &ModelFiles,
    base: &str,
    dtype: FileDType,
) -> Result<Raw> {
    let on = if is_plain(&adapter.config) {
        halves_of_embeddings_are_empty(adapter)?;
        let spec = halved(&AdapterSpec::from_config(&adapter.config)?)?;
        OnBase::start(&spec, Start::Resumed(&adapter.tensors), files)?
    } else {
        OnBase::new(adapter, files)?
    };
    if on.attached.taken.contains_key(HEAD) && !on.attached.replaced.is_empty() {
        return Err(Error::Invalid(format!(
            "{}: it brings an embedding or a head of its own along and adapts the head too, which a residual model can't \
             express",
            adapter.name
        )));
    }
    merge::write_residual(dir, files, &on.decoder, &on.attached, dtype)?;
    let adapter = on.files(adapter, Some(base), Form::Raw)?;
    let initial = initial_files(&on.decoder, &on.params, &on.attached, Some(base));
    Ok(Raw { adapter, initial })
}

/// Half the rank at the same scaling, as if it had started by taking something out of the base.
fn halved(spec: &AdapterSpec) -> Result<AdapterSpec> {
    let half = |r: usize, place: &str| match r % 2 {
        0 => Ok(r / 2),
        _ => Err(Error::Invalid(format!(
            "an adapter can only be divided into factors and a residual model if its ranks are even, but {place} is {r}"
        ))),
    };
    let alpha = alpha_of_twice_the_rank(spec.use_rslora);
    Ok(AdapterSpec {
        r: half(spec.r, "r")?,
        alpha: spec.alpha / alpha,
        rank_pattern: spec
            .rank_pattern
            .iter()
            .map(|(k, &r)| Ok((k.clone(), half(r, &format!("rank_pattern's {k}"))?)))
            .collect::<Result<_>>()?,
        alpha_pattern: spec.alpha_pattern.iter().map(|(k, a)| (k.clone(), a / alpha)).collect(),
        init: Init::Pissa,
        ..spec.clone()
    })
}

/// A table is not changed by a start, so the second half of an embedding's factors must be nothing.
fn halves_of_embeddings_are_empty(adapter: &SavedAdapter) -> Result<()> {
    let mut empty: BTreeMap<&str, bool> = BTreeMap::new();
    for (key, raw) in &adapter.tensors {
        let Some((path, factor)) = Factor::of(key).filter(|(_, f)| f.is_embedding()) else { continue };
        if raw.shape.len() != 2 || raw.is_empty() {
            return Err(Error::Invalid(format!(
                "{}: tensor '{key}' has the shape {:?}, but a matrix is needed",
                adapter.name, raw.shape
            )));
        }
        let value = super::dense(key, raw, &raw.shape, DType::F32)?;
        let [_, second] = if factor.is_a() { split_rows(&value)? } else { split_cols(&value)? };
        // Either factor's zeros do.
        *empty.entry(path).or_default() |= second.to_f64_vec().iter().all(|&x| x == 0.0);
    }
    match empty.iter().find(|(_, empty)| !**empty) {
        None => Ok(()),
        Some((path, _)) => Err(Error::Invalid(format!(
            "{}: it adapts the embedding '{path}', of which nothing can be taken out into a residual model",
            adapter.name
        ))),
    }
}
