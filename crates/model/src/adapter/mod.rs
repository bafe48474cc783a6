//! Adapters: which layers they go to, how they start, how they are saved and merged.

mod attach;
mod merge;
mod target;

pub(crate) use attach::dense;
pub use attach::{Attached, adapter_tensors, attach_new, attach_saved};
pub use merge::merge;
pub use target::{Targets, all_linear_names};

use std::collections::BTreeMap;

use crate::error::Result;
use crate::files::peft::AdapterConfig;

/// How A and B start. (Initialisers that change W come with their own files.)
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Init {
    /// A uniform in ±1/√in (`kaiming_uniform_(a=√5)`), B zero: PEFT's `init_lora_weights=True`.
    #[default]
    Kaiming,
    /// A normal with standard deviation 1/r, B zero: PEFT's `"gaussian"`.
    Gaussian,
}

/// An adapter as it's asked for; PEFT's `LoraConfig` without what does not change the mathematics.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSpec {
    pub r: usize,
    pub alpha: f64,
    pub dropout: f64,
    pub targets: Targets,
    pub exclude: Option<Targets>,
    /// Block indices that are adapted; all when empty.
    pub layers: Vec<usize>,
    /// Ranks and alphas of modules whose path ends with (or matches) the key, in PEFT's order.
    pub rank_pattern: BTreeMap<String, usize>,
    pub alpha_pattern: BTreeMap<String, f64>,
    /// s = α/√r instead of α/r (arXiv 2312.03732).
    pub use_rslora: bool,
    pub init: Init,
}

impl AdapterSpec {
    /// Rank and scaling at a module path.
    pub(crate) fn rank_and_scaling(&self, path: &str) -> Result<(usize, f64)> {
        let r = target::pattern(&self.rank_pattern, path)?.unwrap_or(self.r);
        let alpha = target::pattern(&self.alpha_pattern, path)?.unwrap_or(self.alpha);
        let scaling = if self.use_rslora { alpha / (r as f64).sqrt() } else { alpha / r as f64 };
        Ok((r, scaling))
    }
}

impl AdapterSpec {
    /// From PEFT's configuration file.
    pub fn from_config(config: &AdapterConfig) -> Result<AdapterSpec> {
        attach::spec_from_config(config)
    }

    /// PEFT's configuration of this adapter. `targets` are the names that were found.
    pub fn to_config(&self, base_model: Option<&str>, targets: &[String]) -> AdapterConfig {
        attach::config_from_spec(self, base_model, targets)
    }
}
