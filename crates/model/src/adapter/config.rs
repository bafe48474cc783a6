//! Between [`AdapterSpec`] and PEFT's `adapter_config.json`.

use super::{AdapterSpec, Bias, Init, Targets};
use crate::error::{Error, Result};
use crate::files::peft::{AdapterConfig, InitLoraWeights, ModuleNames};

impl AdapterSpec {
    /// From PEFT's configuration file.
    ///
    /// # Errors
    /// If it asks for something that isn't implemented; each names the field.
    pub fn from_config(config: &AdapterConfig) -> Result<AdapterSpec> {
        if config.fan_in_fan_out {
            return Err(Error::Invalid(
                "the adapter uses fan_in_fan_out, which belongs to GPT-2's transposed layers; no model here has them"
                    .into(),
            ));
        }
        let targets = |names: &ModuleNames| match names {
            ModuleNames::List(n) => Targets::Names(n.clone()),
            ModuleNames::Pattern(p) if p == "all-linear" => Targets::AllLinear,
            ModuleNames::Pattern(p) => Targets::Regex(p.clone()),
        };
        let Some(target_modules) = &config.target_modules else {
            return Err(Error::Invalid(
                "the adapter's configuration names no target_modules: PEFT would take them from a table by \
                 architecture; write them into adapter_config.json"
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
            layers_pattern: config.layers_pattern.clone().unwrap_or_default(),
            rank_pattern: config.rank_pattern.clone(),
            alpha_pattern: config.alpha_pattern.clone(),
            use_rslora: config.use_rslora,
            use_dora: config.use_dora,
            bias: Bias::ALL.into_iter().find(|b| b.name() == config.bias).unwrap_or_default(),
            modules_to_save: config.modules_to_save.clone().unwrap_or_default(),
            token_indices: config.trainable_token_indices.clone(),
            ensure_weight_tying: config.ensure_weight_tying,
            init: init(&config.init_lora_weights)?,
        })
    }

    /// PEFT's configuration of this adapter. `targets` are the names that were found; `doubled` is for the plain form of
    /// an adapter that changed its base: twice the rank at the same scaling.
    pub(super) fn to_config(&self, base: Option<&str>, targets: &[String], doubled: bool) -> AdapterConfig {
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
        let (rank, alpha) = match (doubled, self.use_rslora) {
            (false, _) => (1, 1.0),
            (true, false) => (2, 2.0),
            (true, true) => (2, std::f64::consts::SQRT_2),
        };
        AdapterConfig {
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: base.map(str::to_string),
            r: rank * self.r,
            lora_alpha: alpha * self.alpha,
            lora_dropout: self.dropout,
            target_modules: Some(names(&self.targets)),
            exclude_modules: self.exclude.as_ref().map(names),
            use_rslora: self.use_rslora,
            use_dora: self.use_dora,
            bias: self.bias.name().into(),
            modules_to_save: (!self.modules_to_save.is_empty()).then(|| self.modules_to_save.clone()),
            trainable_token_indices: self.token_indices.clone(),
            ensure_weight_tying: self.ensure_weight_tying,
            init_lora_weights: match self.init {
                // In either form the base that the file belongs to is not to be changed again.
                Init::Kaiming | Init::Pissa | Init::PissaNiter(_) | Init::Olora => {
                    InitLoraWeights::Flag(true)
                }
                Init::Random => InitLoraWeights::Flag(false),
                Init::Gaussian | Init::Orthogonal => InitLoraWeights::Name(self.init.name()),
            },
            rank_pattern: self.rank_pattern.iter().map(|(k, r)| (k.clone(), rank * r)).collect(),
            alpha_pattern: self.alpha_pattern.iter().map(|(k, a)| (k.clone(), alpha * a)).collect(),
            layers_to_transform: (!self.layers.is_empty()).then(|| self.layers.clone()),
            layers_pattern: (!self.layers_pattern.is_empty()).then(|| self.layers_pattern.clone()),
            ..AdapterConfig::default()
        }
    }
}

fn init(value: &InitLoraWeights) -> Result<Init> {
    let name = match value {
        InitLoraWeights::Flag(true) => return Ok(Init::Kaiming),
        InitLoraWeights::Flag(false) => return Ok(Init::Random),
        InitLoraWeights::Name(name) => name.to_ascii_lowercase(),
    };
    match (Init::from_name(&name), name.as_str()) {
        (Some(Init::PissaNiter(_)), _) => Err(Error::Invalid(format!(
            "the adapter was trained on a base that \"{name}\" changed by an unseeded random decomposition, which can't be \
             made again: convert it with the adapter as it was before training (loratune convert --initial), or use it \
             with the residual model it was trained on and init_lora_weights true"
        ))),
        (Some(init), _) => Ok(init),
        // They leave the base as it is, and how A and B started no longer matters.
        (None, "eva" | "mica") => Ok(Init::Kaiming),
        (None, "corda" | "lora_ga") => Err(Error::Invalid(format!(
            "the adapter was trained on a base that \"{name}\" changed by what it saw of the data, which can't be made again: \
             convert it with the adapter as it was before training (loratune convert --initial)"
        ))),
        (None, _) => Err(Error::Invalid(format!(
            "the adapter uses init_lora_weights \"{name}\", which changes the base in a way that is not supported: merge it into \
             its base with PEFT"
        ))),
    }
}
