//! What somebody wrote of a new adapter, against the model: every name must mean something. (Adapters from files may name
//! modules that a model lacks; PEFT allows it.)

use std::collections::BTreeMap;

use super::target::{last_names, nearest, pattern};
use super::{AdapterSpec, Targets};
use crate::error::{Error, Result};
use crate::spec::{DecoderSpec, MatrixSpec};

impl AdapterSpec {
    /// # Errors
    /// The first name, pattern or layer that matches nothing in the model.
    pub fn check(&self, model: &DecoderSpec) -> Result<()> {
        let matrices = model.matrices();
        self.check_targets(&matrices)?;
        self.check_excluded(&matrices)?;
        self.check_layers(model)?;
        let adapted: Vec<MatrixSpec> = self.sites(model)?.into_iter().map(|s| s.matrix).collect();
        for key in self.rank_pattern.keys() {
            check_pattern("rank_pattern", key, &adapted, &matrices)?;
        }
        for key in self.alpha_pattern.keys() {
            check_pattern("alpha_pattern", key, &adapted, &matrices)?;
        }
        Ok(())
    }

    fn check_excluded(&self, matrices: &[MatrixSpec]) -> Result<()> {
        let each: Vec<Targets> = match &self.exclude {
            Some(Targets::Names(names)) => names.iter().map(|n| Targets::Names(vec![n.clone()])).collect(),
            other => other.iter().cloned().collect(),
        };
        for excluded in each {
            let mut found = false;
            for matrix in matrices {
                found |= excluded.contains(matrix)?;
            }
            if !found {
                let name = excluded.to_string();
                let names = last_names(matrices);
                return Err(Error::Invalid(format!(
                    "exclude_modules: '{name}' matches no layer of the model that could be adapted{} The model has {}",
                    nearest(&name, names.iter().map(String::as_str)),
                    names.join(", ")
                )));
            }
        }
        Ok(())
    }

    fn check_layers(&self, model: &DecoderSpec) -> Result<()> {
        match self.layers.iter().find(|&&layer| layer >= model.num_layers()) {
            None => Ok(()),
            Some(layer) => Err(Error::Invalid(format!(
                "layers_to_transform: the model has no layer {layer}; it has {}, counted from 0",
                model.num_layers()
            ))),
        }
    }
}

/// Whether a key of `rank_pattern` or `alpha_pattern` is the end of one of these paths.
fn matches_one(key: &str, matrices: &[MatrixSpec]) -> Result<bool> {
    let one = BTreeMap::from([(key.to_string(), ())]);
    for matrix in matrices {
        if pattern(&one, &matrix.path)?.is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn check_pattern(what: &str, key: &str, adapted: &[MatrixSpec], all: &[MatrixSpec]) -> Result<()> {
    if matches_one(key, adapted)? {
        return Ok(());
    }
    let names = last_names(adapted);
    // A module that exists was spelt right: it is the choice of modules that leaves it out.
    let why = match matches_one(key, all)? {
        true => ": the model has it, but this adapter is not put there.".into(),
        false => nearest(key, names.iter().map(String::as_str)),
    };
    Err(Error::Invalid(format!(
        "{what}: '{key}' matches no adapted module{why} Adapted are {}",
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> DecoderSpec {
        let config = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": 8,
            "hidden_size": 4,
            "intermediate_size": 6,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        });
        crate::files::ModelConfig::from_value(&config, "config.json".as_ref()).unwrap().spec
    }

    fn spec() -> AdapterSpec {
        AdapterSpec { r: 2, alpha: 4.0, targets: names(&["q_proj", "up_proj"]), ..AdapterSpec::default() }
    }

    fn names(n: &[&str]) -> Targets {
        Targets::Names(n.iter().map(|s| s.to_string()).collect())
    }

    #[test]
    fn what_matches_something_is_accepted() {
        spec().check(&model()).unwrap();
        let rich = AdapterSpec {
            exclude: Some(Targets::Regex(r".*layers\.1\..*".into())),
            layers: vec![0, 1, 2],
            rank_pattern: BTreeMap::from([("q_proj".into(), 4), (r"layers\.0\.mlp\.up_proj".into(), 3)]),
            alpha_pattern: BTreeMap::from([(r"(q|up)_proj".into(), 3.0)]),
            ..spec()
        };
        rich.check(&model()).unwrap();
    }

    #[test]
    fn what_matches_nothing_is_refused_with_what_is_near() {
        let rank = |key: &str| AdapterSpec { rank_pattern: BTreeMap::from([(key.into(), 4)]), ..spec() };
        let alpha = |key: &str| AdapterSpec { alpha_pattern: BTreeMap::from([(key.into(), 4.0)]), ..spec() };
        let exclude = |targets| AdapterSpec { exclude: Some(targets), ..spec() };
        let cases: [(AdapterSpec, &[&str]); 8] = [
            (exclude(names(&["q_porj"])), &["exclude_modules: 'q_porj'", "did you mean 'q_proj'?"]),
            (exclude(names(&["up_proj", "k_porj"])), &["exclude_modules: 'k_porj'", "'k_proj'?"]),
            (exclude(Targets::Regex("x.*".into())), &["exclude_modules: 'x.*'", "lm_head"]),
            (AdapterSpec { layers: vec![0, 99], ..spec() }, &["no layer 99; it has 3, counted from 0"]),
            (rank("q_porj"), &["rank_pattern: 'q_porj' matches no adapted module; did you mean 'q_proj'?"]),
            (rank("v_proj"), &["rank_pattern: 'v_proj'", "not put there", "Adapted are q_proj, up_proj"]),
            (alpha(r"layers\.7\.q_proj"), &["alpha_pattern: 'layers\\.7\\.q_proj' matches no adapted"]),
            (
                AdapterSpec { exclude: Some(names(&["q_proj"])), ..rank("q_proj") },
                &["rank_pattern: 'q_proj'", "not put there"],
            ),
        ];
        for (spec, words) in cases {
            let text = spec.check(&model()).unwrap_err().to_string();
            assert!(words.iter().all(|w| text.contains(w)), "{text}");
        }
    }
}
