//! A run's configuration, in the names that LLaMA-Factory, Hugging Face and PEFT users know.
//!
//! Three front ends lead to one [`RunConfig`]: a YAML or JSON file (`file.rs`), the words of a command line (`words.rs`: `key=value`
//! and flags), and AutoTrain's line (`autotrain.rs`), which has names and defaults of its own. Each turns what it reads into settings
//! with their origin; `load.rs` puts these together and checks the whole, and what it returns can be used without further
//! questions. The keys stand in `keys.rs`, the peers' keys that are not here in `elsewhere.rs`, rules over several keys in
//! `validate.rs`.

mod autotrain;
mod choices;
mod elsewhere;
mod error;
mod field;
mod file;
mod keys;
mod load;
mod optim;
mod registry;
mod render;
mod rules;
mod secret;
mod tokens;
mod unused;
mod validate;
mod value;
mod words;

use std::collections::BTreeMap;

pub use autotrain::{help as autotrain_help, markdown as autotrain_markdown};
pub use choices::{
    BaseDtype, BosOf, EvalStrategy, Finetuning, HubStrategy, LogStrategy, Metric, MixStrategy, NeftuneScale,
    NewTokens, Optimizer, Reporter, RopeScaling, SaveStrategy, Stage, Thinking,
};
pub use error::{ConfigError, Entry, Origin};
pub use field::{
    Arity, Field, Iterations, Kwargs, Limit, LogSteps, MicroBatch, Problem, Resume, Signed, Steps, Targets,
};
pub use keys::{KEYS, RunConfig};
pub use optim::OptimArgs;
pub use registry::{Key, Rule, Source};
pub use secret::{Secret, hidden};
pub use tokens::{TokenRef, TrainedTokens};
pub use value::Value;

/// Where each key's value came from; keys that are absent here stand at their default.
pub type Origins = BTreeMap<&'static str, Origin>;

/// A checked configuration and how it came about.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values, every one decided.
    pub config: RunConfig,
    /// Where they came from.
    pub origins: Origins,
    /// One line each, to be shown before the run: deprecated spellings, keys without effect.
    pub notes: Vec<String>,
}

impl Loaded {
    /// The origin of a key's value.
    pub fn origin(&self, key: &str) -> Origin {
        self.origins.get(key).cloned().unwrap_or(Origin::Default)
    }
}

/// Of `candidates`, the one that `name` was probably meant to be.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |s: &str| s.to_ascii_lowercase().replace(['-', ' '], "_");
    let wanted = fold(name.trim_start_matches('-'));
    candidates
        .map(|c| (strsim::normalized_damerau_levenshtein(&wanted, &fold(c)), c))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}
