//! Reading the adapters that are combined: their factors by module, what else they hold, and what rules them out.

use std::collections::BTreeMap;

use loratune_engine::{DType, Tensor};

use super::options::Error;
use super::{Result, SavedAdapter};
use crate::adapter::target::pattern;
use crate::adapter::tokens::ROWS;
use crate::files::peft::{AdapterConfig, InitLoraWeights, ModuleNames};
use crate::files::{FileDType, RawTensor};

/// What PEFT puts before a module path in its files.
pub(super) const PREFIX: &str = "base_model.model.";

/// A and B of one adapter at one module, f32.
pub(super) struct Factors {
    /// Which of the adapters.
    pub adapter: usize,
    /// `[r, in]`; of an embedding `[r, vocabulary]`.
    pub a: Tensor,
    /// `[out, r]`.
    pub b: Tensor,
    /// s, by which B·A is multiplied.
    pub scaling: f64,
}

impl Factors {
    pub fn rank(&self) -> usize {
        self.b.cols()
    }
}

/// A module and the adapters that have it, in their order.
pub(super) struct Module {
    pub path: String,
    pub embedding: bool,
    pub factors: Vec<Factors>,
}

/// The names of A and B, in the order of `embedding` false, true.
const SUFFIXES: [[&str; 2]; 2] =
    [[".lora_A.weight", ".lora_B.weight"], [".lora_embedding_A", ".lora_embedding_B"]];

impl Module {
    /// PEFT's names of A and B.
    pub fn names(&self) -> [String; 2] {
        SUFFIXES[usize::from(self.embedding)].map(|suffix| format!("{PREFIX}{}{suffix}", self.path))
    }
}

/// # Errors
/// If the adapter's A·B is not a plain update of the base.
pub(super) fn check_adapter(adapter: &SavedAdapter) -> Result<()> {
    let refuse = |what: String| Err(Error::Adapter { adapter: adapter.name.clone(), what });
    if adapter.config.use_dora || adapter.tensors.keys().any(|t| t.contains("lora_magnitude_vector")) {
        return refuse(
            "it is a DoRA adapter, whose update of a weight depends on the weight itself and on a magnitude; combine \
             plain LoRA adapters, or merge it into its base"
                .into(),
        );
    }
    if let InitLoraWeights::Name(init) = &adapter.config.init_lora_weights {
        let changes_base = ["pissa", "olora", "corda", "loftq", "lora_ga"];
        if changes_base.iter().any(|p| init.to_lowercase().starts_with(p)) {
            return refuse(format!(
                "init_lora_weights is \"{init}\", which changed the base weights, so A and B mean something else on the \
                 plain base; convert it to plain LoRA first"
            ));
        }
    }
    Ok(())
}

/// The module path, kind and factor (0 for A, 1 for B) of a tensor's name.
fn parse(name: &str) -> Option<(&str, bool, usize)> {
    let name = name.strip_prefix(PREFIX)?;
    SUFFIXES.iter().enumerate().find_map(|(embedding, suffixes)| {
        suffixes.iter().enumerate().find_map(|(i, s)| Some((name.strip_suffix(s)?, embedding == 1, i)))
    })
}

/// The scaling and the rank that an adapter's configuration gives to a module.
fn rank_and_scaling(config: &AdapterConfig, path: &str) -> crate::Result<(usize, f64)> {
    let r = pattern(&config.rank_pattern, path)?.unwrap_or(config.r);
    let alpha = pattern(&config.alpha_pattern, path)?.unwrap_or(config.lora_alpha);
    let divisor = if config.use_rslora { (r as f64).sqrt() } else { r as f64 };
    Ok((r, alpha / divisor))
}

fn matrix(adapter: &SavedAdapter, name: &str, raw: &RawTensor<'_>) -> Result<Tensor> {
    let refuse =
        |what: String| Error::Tensor { adapter: adapter.name.clone(), tensor: name.to_owned(), what };
    if raw.shape.len() != 2 || raw.is_empty() {
        return Err(refuse(format!("has the shape {:?}; only matrices are supported", raw.shape)));
    }
    let tensor = Tensor::from_vec(raw.to_f32(), &raw.shape)?;
    if !tensor.is_finite() {
        return Err(refuse("holds a number that is not finite: the file is damaged".into()));
    }
    Ok(tensor)
}

/// The factors of one adapter by module path and kind.
fn factors(adapter: &SavedAdapter, index: usize) -> Result<BTreeMap<(String, bool), Factors>> {
    let of_tensor = |tensor: &str, what: String| {
        Err(Error::Tensor { adapter: adapter.name.clone(), tensor: tensor.to_owned(), what })
    };
    // A and B with the names of their tensors.
    type Slots<'a> = [Option<(&'a str, Tensor)>; 2];
    let mut found: BTreeMap<(String, bool), Slots<'_>> = BTreeMap::new();
    for (name, raw) in &adapter.tensors {
        if let Some((path, embedding, which)) = parse(name) {
            let slots = found.entry((path.to_owned(), embedding)).or_default();
            slots[which] = Some((name, matrix(adapter, name, raw)?));
        } else if name.contains(".lora_") {
            return of_tensor(name, "is of a kind of LoRA that is not supported".into());
        }
    }
    let mut factors = BTreeMap::new();
    for ((path, embedding), slots) in found {
        let ((name_a, a), (name_b, b)) = match slots {
            [Some(a), Some(b)] => (a, b),
            [Some((name, _)), None] | [None, Some((name, _))] => {
                return of_tensor(name, "is there, but the other factor of its module is not".into());
            }
            [None, None] => continue,
        };
        let (r, scaling) = rank_and_scaling(&adapter.config, &path)
            .map_err(|e| Error::Adapter { adapter: adapter.name.clone(), what: e.to_string() })?;
        for (name, rank) in [(name_a, a.rows()), (name_b, b.cols())] {
            if rank != r {
                return of_tensor(
                    name,
                    format!("has the rank {rank}, but its configuration gives {r} to this module"),
                );
            }
        }
        factors.insert((path, embedding), Factors { adapter: index, a, b, scaling });
    }
    if factors.is_empty() {
        let what = format!("it has no LoRA tensor (named {PREFIX}….lora_A.weight and so on)");
        return Err(Error::Adapter { adapter: adapter.name.clone(), what });
    }
    Ok(factors)
}

/// All modules that any of the adapters has, sorted by path.
///
/// # Errors
/// If an adapter's tensors don't fit its configuration, or two adapters differ in what they are made for.
pub(super) fn modules(adapters: &[&SavedAdapter]) -> Result<Vec<Module>> {
    let mut modules: Vec<Module> = Vec::new();
    let mut index: BTreeMap<String, usize> = BTreeMap::new();
    for (i, adapter) in adapters.iter().enumerate() {
        for ((path, embedding), new) in factors(adapter, i)? {
            let at = *index.entry(path.clone()).or_insert_with(|| {
                modules.push(Module { path: path.clone(), embedding, factors: Vec::new() });
                modules.len() - 1
            });
            let module = &mut modules[at];
            if let Some(old) = module.factors.first() {
                let ours = ([new.b.rows(), new.a.cols()], embedding);
                let theirs = ([old.b.rows(), old.a.cols()], module.embedding);
                if ours != theirs {
                    let kind = |e: bool| if e { "an embedding" } else { "a linear layer" };
                    let what = format!(
                        "'{path}' is {} of shape {:?} for the first and {} of shape {:?} for the second; they are for \
                         different base models",
                        kind(theirs.1),
                        theirs.0,
                        kind(ours.1),
                        ours.0
                    );
                    return Err(pair(adapters, old.adapter, i, what));
                }
            }
            module.factors.push(new);
        }
    }
    modules.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(modules)
}

fn pair(adapters: &[&SavedAdapter], first: usize, second: usize, what: String) -> Error {
    let name = |i: usize| adapters.get(i).map(|a| a.name.clone()).unwrap_or_default();
    Error::Pair { first: name(first), second: name(second), what }
}

/// The tensors beside A and B (whole modules, biases), which must be the same in all adapters: weights that were trained
/// differently have no combination here. Only the base's own embedding, which PEFT saves along, may be absent.
///
/// # Errors
/// If one differs, or is missing from an adapter.
pub(super) fn kept(adapters: &[&SavedAdapter]) -> Result<Vec<(String, Tensor)>> {
    let mut kept: BTreeMap<&str, (usize, &RawTensor<'_>)> = BTreeMap::new();
    for (i, adapter) in adapters.iter().enumerate() {
        for (name, raw) in adapter.tensors.iter().filter(|(n, _)| parse(n).is_none()) {
            let &mut (first, other) = kept.entry(name).or_insert((i, raw));
            if (other.dtype, &other.shape, &other.bytes) != (raw.dtype, &raw.shape, &raw.bytes) {
                if name.ends_with(ROWS) {
                    let what = format!(
                        "the rows of trained tokens ('{name}', trainable_token_indices) differ, and rows that replace the \
                         base's have no sum; merge one adapter into the base first"
                    );
                    return Err(pair(adapters, first, i, what));
                }
                let what = format!(
                    "the tensor '{name}' was trained or saved whole and differs; make them share it, or train such \
                     modules with LoRA"
                );
                return Err(pair(adapters, first, i, what));
            }
        }
    }
    for (&name, &(first, _)) in &kept {
        let without = adapters.iter().position(|a| !a.tensors.contains_key(name));
        if let Some(i) = without.filter(|_| !name.ends_with(".base_layer.weight")) {
            let what = format!("only the first has the tensor '{name}', which was trained or saved whole");
            return Err(pair(adapters, first, i, what));
        }
    }
    kept.into_iter().map(|(name, (_, raw))| Ok((name.to_owned(), as_tensor(raw)?))).collect()
}

/// Without a loss; f16, which the engine has not, as f32.
fn as_tensor(raw: &RawTensor<'_>) -> Result<Tensor> {
    Ok(match raw.dtype {
        FileDType::F64 => Tensor::from_vec(raw.to_f64(), &raw.shape)?,
        FileDType::BF16 => Tensor::from_vec(raw.to_bf16(), &raw.shape)?,
        _ => Tensor::from_vec(raw.to_f32(), &raw.shape)?.to_dtype(DType::F32),
    })
}

/// The result's configuration: the first adapter's, with α = r, without patterns, and with the targets of all.
///
/// # Errors
/// If the adapters differ in a field that the result can have only once.
pub(super) fn config(adapters: &[&SavedAdapter], modules: &[Module], rank: usize) -> Result<AdapterConfig> {
    let Some((first, others)) = adapters.split_first() else { return Err(Error::NoAdapter) };
    let sorted = |names: &Option<Vec<String>>| {
        let mut names = names.clone().unwrap_or_default();
        names.sort();
        names
    };
    for (i, other) in others.iter().enumerate() {
        let (a, b) = (&first.config, &other.config);
        for (field, same) in [
            ("bias", a.bias == b.bias),
            ("fan_in_fan_out", a.fan_in_fan_out == b.fan_in_fan_out),
            ("modules_to_save", sorted(&a.modules_to_save) == sorted(&b.modules_to_save)),
            ("trainable_token_indices", a.trainable_token_indices == b.trainable_token_indices),
        ] {
            if !same {
                return Err(pair(adapters, 0, i + 1, format!("they differ in {field}")));
            }
        }
    }
    let mut config = AdapterConfig {
        r: rank,
        lora_alpha: rank as f64,
        rank_pattern: BTreeMap::new(),
        alpha_pattern: BTreeMap::new(),
        // α/√r would scale the result by √r (PEFT 0.21 keeps the first adapter's flag and does that).
        use_rslora: false,
        init_lora_weights: InitLoraWeights::Flag(true),
        inference_mode: true,
        extra: serde_json::Map::new(),
        ..first.config.clone()
    };
    match union_of_names(adapters) {
        Some(names) => config.target_modules = Some(ModuleNames::List(names)),
        None => {
            let paths = modules.iter().map(|m| m.path.clone()).collect();
            config.target_modules = Some(ModuleNames::List(paths));
            config.exclude_modules = None;
            config.layers_to_transform = None;
            config.layers_pattern = None;
        }
    }
    Ok(config)
}

/// The union of the adapters' lists of names, if it means the same modules as the adapters have: none targets by a
/// regular expression, and all narrow the choice in the same way.
fn union_of_names(adapters: &[&SavedAdapter]) -> Option<Vec<String>> {
    let narrowing = |c: &AdapterConfig| {
        (c.exclude_modules.clone(), c.layers_to_transform.clone(), c.layers_pattern.clone())
    };
    let mut union: Vec<String> = Vec::new();
    for adapter in adapters {
        if adapters.iter().any(|other| narrowing(&other.config) != narrowing(&adapter.config)) {
            return None;
        }
        match &adapter.config.target_modules {
            Some(ModuleNames::List(names)) => union.extend(names.iter().cloned()),
            _ => return None,
        }
    }
    union.sort();
    union.dedup();
    Some(union)
}
