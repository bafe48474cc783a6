//! Putting adapters on a decoder, fresh or from files, and taking their tensors off again.

use std::collections::{BTreeMap, BTreeSet};

use loratune_engine::ops::{Dropout, Lora};
use loratune_engine::rng::Key;
use loratune_engine::{DType, Params, Tensor};

use super::{AdapterSpec, Init, Targets};
use crate::decoder::{Decoder, Linear};
use crate::error::{Error, Result};
use crate::files::RawTensor;
use crate::files::peft::{AdapterConfig, InitLoraWeights, ModuleNames};

/// What PEFT puts before a module path in its files.
const PREFIX: &str = "base_model.model.";

/// What was attached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attached {
    /// Last path components of the adapted modules, sorted: what PEFT's `target_modules` lists.
    pub targets: Vec<String>,
    pub modules: usize,
}

fn chosen(decoder: &Decoder, spec: &AdapterSpec) -> Result<Vec<usize>> {
    let paths: Vec<&str> = decoder.linears().map(|l| l.path.as_str()).collect();
    spec.targets.choose(&paths, spec.exclude.as_ref(), &spec.layers)
}

fn attach(
    decoder: &mut Decoder,
    params: &mut Params,
    spec: &AdapterSpec,
    mut tensors: impl FnMut(&Linear, usize) -> Result<[Tensor; 2]>,
) -> Result<Attached> {
    if spec.r == 0 || !(0.0..1.0).contains(&spec.dropout) {
        return Err(Error::Invalid(format!(
            "an adapter of rank {} with dropout {} can't be made: the rank is at least 1, the dropout in [0, 1)",
            spec.r, spec.dropout
        )));
    }
    let wanted: BTreeSet<usize> = chosen(decoder, spec)?.into_iter().collect();
    let mut names = BTreeSet::new();
    for (_, linear) in decoder.linears_mut().enumerate().filter(|(i, _)| wanted.contains(i)) {
        let (r, scaling) = spec.rank_and_scaling(&linear.path)?;
        let [a, b] = tensors(linear, r)?;
        let dropout = if spec.dropout > 0.0 { Dropout::Random(spec.dropout) } else { Dropout::None };
        linear.adapter = Some(Lora {
            a: params.add(format!("{}.lora_A.weight", linear.path), a)?,
            b: params.add(format!("{}.lora_B.weight", linear.path), b)?,
            scaling,
            dropout,
            dora: None,
        });
        names.extend(linear.path.rsplit('.').next().map(str::to_string));
    }
    Ok(Attached { targets: names.into_iter().collect(), modules: wanted.len() })
}

/// Attaches fresh adapters, drawn from `seed`.
pub fn attach_new(
    decoder: &mut Decoder,
    params: &mut Params,
    spec: &AdapterSpec,
    seed: u64,
) -> Result<Attached> {
    let dtype = decoder.dtype().compute();
    attach(decoder, params, spec, |linear, r| initial(linear, r, spec.init, seed, dtype))
}

fn initial(linear: &Linear, r: usize, init: Init, seed: u64, dtype: DType) -> Result<[Tensor; 2]> {
    let [out, input] = linear.shape;
    let key = Key::new(seed).named("adapter").named(&linear.path);
    let draw = |i: u64| match init {
        Init::Kaiming => (2.0 * key.uniform(i) - 1.0) / (input as f64).sqrt(),
        Init::Gaussian => key.normal(i) / r as f64,
    };
    let a: Vec<f64> = (0..(r * input) as u64).map(draw).collect();
    Ok([Tensor::from_vec(a, &[r, input])?.to_dtype(dtype), Tensor::zeros(dtype, &[out, r])])
}

/// Attaches adapters from PEFT's files.
///
/// # Errors
/// If a tensor is missing, left over, of the wrong shape, or not finite: an adapter is loaded whole or not at all.
pub fn attach_saved(
    decoder: &mut Decoder,
    params: &mut Params,
    spec: &AdapterSpec,
    tensors: &BTreeMap<String, RawTensor<'static>>,
) -> Result<Attached> {
    let dtype = decoder.dtype().compute();
    let mut used = BTreeSet::new();
    let attached = attach(decoder, params, spec, |linear, r| {
        let [out, input] = linear.shape;
        let mut one = |suffix: &str, shape: [usize; 2]| -> Result<Tensor> {
            let name = format!("{PREFIX}{}.{suffix}.weight", linear.path);
            let raw = tensors
                .get(&name)
                .ok_or_else(|| Error::Invalid(format!("the adapter's file has no tensor '{name}'")))?;
            let tensor = dense(&name, raw, &shape, dtype)?;
            used.insert(name);
            Ok(tensor)
        };
        Ok([one("lora_A", [r, input])?, one("lora_B", [out, r])?])
    })?;
    if let Some(extra) = tensors.keys().find(|k| !used.contains(*k)) {
        return Err(Error::Invalid(format!(
            "the adapter's file holds the tensor '{extra}', which belongs to no module that its target_modules name \
             in this model: is it an adapter of another model?"
        )));
    }
    Ok(attached)
}

/// A file's tensor as a dense one.
pub(crate) fn dense(name: &str, raw: &RawTensor<'_>, shape: &[usize], dtype: DType) -> Result<Tensor> {
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

/// The adapter's tensors under PEFT's names.
pub fn adapter_tensors(decoder: &Decoder, params: &Params) -> Vec<(String, Tensor)> {
    decoder
        .linears()
        .filter_map(|l| l.adapter.as_ref())
        .flat_map(|lora| [lora.a, lora.b])
        .map(|id| (format!("{PREFIX}{}", params.name(id)), params.value(id).clone()))
        .collect()
}

/// See [`AdapterSpec::from_config`].
pub(super) fn spec_from_config(config: &AdapterConfig) -> Result<AdapterSpec> {
    let refuse =
        |what: &str| Err(Error::Invalid(format!("the adapter uses {what}, which is not supported yet")));
    if config.use_dora {
        return refuse("DoRA (use_dora)");
    }
    if config.bias != "none" {
        return refuse("trained biases (bias)");
    }
    if config.modules_to_save.as_ref().is_some_and(|m| !m.is_empty()) {
        return refuse("whole trained modules (modules_to_save)");
    }
    if config.fan_in_fan_out || config.layers_pattern.is_some() {
        return refuse("fan_in_fan_out or layers_pattern");
    }
    let init = match &config.init_lora_weights {
        InitLoraWeights::Flag(_) => Init::Kaiming,
        InitLoraWeights::Name(name) if name == "gaussian" => Init::Gaussian,
        InitLoraWeights::Name(name) if name == "orthogonal" || name == "eva" => Init::Kaiming,
        // These change the base weights when they start, so their A and B mean something else on the plain base.
        InitLoraWeights::Name(name) => return refuse(&format!("init_lora_weights \"{name}\"")),
    };
    let targets = |names: &ModuleNames| match names {
        ModuleNames::List(n) => Targets::Names(n.clone()),
        ModuleNames::Pattern(p) if p == "all-linear" => Targets::AllLinear,
        ModuleNames::Pattern(p) => Targets::Regex(p.clone()),
    };
    let Some(target_modules) = &config.target_modules else {
        return Err(Error::Invalid(
            "the adapter's configuration names no target_modules: PEFT would take them from a table by architecture; \
             write them into adapter_config.json"
                .into(),
        ));
    };
    Ok(AdapterSpec {
        r: config.r,
        alpha: config.lora_alpha,
        dropout: config.lora_dropout,
        targets: targets(target_modules),
        exclude: config.exclude_modules.as_ref().map(targets),
        layers: config.layers_to_transform.clone().unwrap_or_default(),
        rank_pattern: config.rank_pattern.clone(),
        alpha_pattern: config.alpha_pattern.clone(),
        use_rslora: config.use_rslora,
        init,
    })
}

/// See [`AdapterSpec::to_config`].
pub(super) fn config_from_spec(spec: &AdapterSpec, base: Option<&str>, targets: &[String]) -> AdapterConfig {
    let names = |t: &Targets| match t {
        // The names that `all-linear` found, as PEFT saves it: every reader understands a list.
        Targets::AllLinear => ModuleNames::List(targets.to_vec()),
        Targets::Names(n) => {
            let mut sorted = n.clone();
            sorted.sort();
            ModuleNames::List(sorted)
        }
        Targets::Regex(r) => ModuleNames::Pattern(r.clone()),
    };
    AdapterConfig {
        task_type: Some("CAUSAL_LM".into()),
        base_model_name_or_path: base.map(str::to_string),
        r: spec.r,
        lora_alpha: spec.alpha,
        lora_dropout: spec.dropout,
        target_modules: Some(names(&spec.targets)),
        exclude_modules: spec.exclude.as_ref().map(names),
        use_rslora: spec.use_rslora,
        init_lora_weights: match spec.init {
            Init::Kaiming => InitLoraWeights::Flag(true),
            Init::Gaussian => InitLoraWeights::Name("gaussian".into()),
        },
        rank_pattern: spec.rank_pattern.clone(),
        alpha_pattern: spec.alpha_pattern.clone(),
        layers_to_transform: (!spec.layers.is_empty()).then(|| spec.layers.clone()),
        ..AdapterConfig::default()
    }
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
