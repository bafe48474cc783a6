//! Adapters: what they are put on, how they start, how they are saved, merged and converted.
//!
//! Three choices stay apart: the forward variant (LoRA or DoRA, in the engine's `linear` op), the initialiser
//! ([`Init`]), and the training dynamics, which this crate knows nothing of.

mod attach;
mod check;
pub mod combine;
mod config;
pub mod convert;
mod init;
mod merge;
mod plan;
mod saved;
mod target;
mod tokens;

use attach::base_weight;
pub(crate) use attach::stored_name;
pub use attach::{Attached, Start, attach};
pub use init::Init;
pub use merge::{Merged, Norms, merge, unmerge, write_residual};
pub(crate) use saved::PREFIX;
pub use saved::{Form, adapter_files, dense, initial_files, restore};
pub use target::Targets;

use std::collections::BTreeMap;

use crate::error::Result;
pub use crate::files::peft::TokenIndices;

/// Which biases are trained with the adapters (PEFT's `bias`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Bias {
    #[default]
    None,
    /// Every bias of the model.
    All,
    /// Those of adapted layers.
    LoraOnly,
}

impl Bias {
    pub const ALL: [Bias; 3] = [Bias::None, Bias::All, Bias::LoraOnly];

    /// PEFT's name.
    pub fn name(self) -> &'static str {
        match self {
            Bias::None => "none",
            Bias::All => "all",
            Bias::LoraOnly => "lora_only",
        }
    }
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
    /// Regular expressions for what stands before the block index in a path; the first number when empty.
    pub layers_pattern: Vec<String>,
    /// Ranks and alphas of modules whose path ends with (or matches) the key, in PEFT's order.
    pub rank_pattern: BTreeMap<String, usize>,
    pub alpha_pattern: BTreeMap<String, f64>,
    /// s = α/√r instead of α/r (arXiv 2312.03732).
    pub use_rslora: bool,
    /// Weight-decomposed: rows of the adapted weight have trained magnitudes (arXiv 2402.09353).
    pub use_dora: bool,
    pub bias: Bias,
    /// Modules that are trained and saved whole; each the end of a module's path.
    pub modules_to_save: Vec<String>,
    /// Tokens whose rows in the embedding or the head are trained by themselves (PEFT's `trainable_token_indices`).
    pub token_indices: Option<TokenIndices>,
    /// Embedding and head that share a table must not be given different trained rows.
    pub ensure_weight_tying: bool,
    pub init: Init,
}

impl Default for AdapterSpec {
    /// PEFT's defaults, on every linear layer.
    fn default() -> AdapterSpec {
        AdapterSpec {
            r: 8,
            alpha: 8.0,
            dropout: 0.0,
            targets: Targets::AllLinear,
            exclude: None,
            layers: Vec::new(),
            layers_pattern: Vec::new(),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            use_dora: false,
            bias: Bias::None,
            modules_to_save: Vec::new(),
            token_indices: None,
            ensure_weight_tying: false,
            init: Init::Kaiming,
        }
    }
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
