//! What an adapter puts where, decided from the model's description before a weight is read.

use std::collections::BTreeSet;

use super::{AdapterSpec, Bias};
use crate::decoder::Trained;
use crate::error::{Error, Result};
use crate::spec::{DecoderSpec, EMBEDDING, HEAD, MatrixSpec};

/// A matrix that gets an adapter.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Site {
    pub matrix: MatrixSpec,
    pub r: usize,
    /// s: α/r, or α/√r with rsLoRA.
    pub scaling: f64,
}

impl Site {
    /// The name of the matrix's weight.
    pub fn weight(&self) -> String {
        format!("{}.weight", self.matrix.path)
    }

    /// `[out, in]` of the layer that A and B are factors for: an embedding's is its table's transpose.
    pub fn oriented(&self) -> [usize; 2] {
        let [rows, cols] = self.matrix.shape;
        if self.matrix.kind == crate::spec::MatrixKind::Embedding { [cols, rows] } else { [rows, cols] }
    }
}

impl AdapterSpec {
    /// The adapted matrices, in the order of the forward pass.
    ///
    /// # Errors
    /// If the choice of modules matches nothing or contradicts itself, or a rank is impossible.
    pub(crate) fn sites(&self, model: &DecoderSpec) -> Result<Vec<Site>> {
        if self.r == 0 || !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::Invalid(format!(
                "an adapter of rank {} with dropout {} can't be made: the rank is at least 1, the dropout in [0, 1)",
                self.r, self.dropout
            )));
        }
        let matrices = model.matrices();
        let chosen = self.targets.choose(&matrices, self)?;
        let saved = self.saved_tensors(model)?;
        let sites: Vec<Site> = chosen
            .into_iter()
            .map(|i| {
                let matrix = matrices[i].clone();
                let (r, scaling) = self.rank_and_scaling(&matrix.path)?;
                self.init.check(&matrix, r, scaling)?;
                let site = Site { matrix, r, scaling };
                if saved.contains(&site.weight()) {
                    return Err(Error::Invalid(format!(
                        "{} is both adapted (target_modules) and trained whole (modules_to_save); name it in one only",
                        site.matrix.path
                    )));
                }
                Ok(site)
            })
            .collect::<Result<_>>()?;
        self.check_rows(&sites, model)?;
        Ok(sites)
    }

    /// The tensors of `modules_to_save`.
    pub(super) fn saved_tensors(&self, model: &DecoderSpec) -> Result<BTreeSet<String>> {
        if self.modules_to_save.is_empty() {
            return Ok(BTreeSet::new());
        }
        let tensors = all_tensors(model);
        let mut names = BTreeSet::new();
        for wanted in &self.modules_to_save {
            let before = names.len();
            names.extend(tensors.iter().filter(|t| belongs_to(t, wanted)).cloned());
            if names.len() == before && !tensors.iter().any(|t| belongs_to(t, wanted)) {
                return Err(unknown(wanted, &tensors));
            }
        }
        Ok(names)
    }

    /// The model's own tensors that are trained beside the adapters: `modules_to_save` and biases.
    ///
    /// # Errors
    /// If a name matches nothing, there is no bias to train, or rows that are trained by themselves can't be.
    pub fn trained(&self, model: &DecoderSpec) -> Result<Trained> {
        self.token_rows(model)?;
        let saved = self.saved_tensors(model)?;
        let mut names = saved.clone();
        match self.bias {
            Bias::None => {}
            Bias::All => names.extend(all_tensors(model).into_iter().filter(|t| t.ends_with(".bias"))),
            Bias::LoraOnly => {
                let biased = self.sites(model)?.into_iter().filter(|s| s.matrix.bias);
                names.extend(biased.map(|s| format!("{}.bias", s.matrix.path)));
            }
        }
        if self.bias != Bias::None && names == saved {
            let which = if self.bias == Bias::All { "the model has" } else { "the adapted layers have" };
            return Err(Error::Invalid(format!(
                "bias: {} trains biases, but {which} none: leave it at none",
                self.bias.name()
            )));
        }
        if names.is_empty() {
            return Ok(Trained::Nothing);
        }
        let shared = [EMBEDDING, HEAD].iter().any(|p| names.contains(&format!("{p}.weight")));
        Ok(Trained::Tensors { names, untied: model.tied_head && shared })
    }
}

/// Every tensor of a model, a head that shares the embedding's weight included.
fn all_tensors(model: &DecoderSpec) -> Vec<String> {
    let mut tensors: Vec<String> = model.tensors().into_iter().map(|t| t.name).collect();
    if model.tied_head {
        tensors.push(format!("{HEAD}.weight"));
    }
    tensors
}

/// Whether a module on the way to a tensor ends with `name`. PEFT compares ends of text, not whole components:
/// `norm` is every norm of a Llama.
fn belongs_to(tensor: &str, name: &str) -> bool {
    tensor.match_indices('.').any(|(end, _)| tensor[..end].ends_with(name))
}

fn unknown(name: &str, tensors: &[String]) -> Error {
    let modules: BTreeSet<&str> =
        tensors.iter().filter_map(|t| t.rsplit('.').nth(1)).collect::<BTreeSet<_>>();
    let nearest = super::target::nearest(name, modules.iter().copied());
    let all: Vec<&str> = modules.into_iter().collect();
    Error::Invalid(format!(
        "modules_to_save: the model has no module '{name}'{nearest} The model has {}",
        all.join(", ")
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_to_save_match_the_end_of_a_module_or_of_one_around_it() {
        assert!(belongs_to("lm_head.weight", "lm_head"));
        assert!(belongs_to("model.layers.0.input_layernorm.weight", "norm"));
        assert!(belongs_to("model.layers.0.mlp.up_proj.weight", "0.mlp"));
        assert!(!belongs_to("model.layers.0.mlp.up_proj.weight", "weight"));
        assert!(!belongs_to("model.layers.0.mlp.up_proj.weight", "up"));
    }
}
