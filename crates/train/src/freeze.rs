//! Training some of a model's own weights: LLaMA-Factory's `freeze`, and Axolotl's `unfrozen_parameters`.

use std::collections::BTreeSet;

use loratune_model::DecoderSpec;
use loratune_model::decoder::Trained;

use crate::config::{Finetuning, RunConfig};
use crate::error::{Error, Result};

/// The tensors that a run without adapters trains.
///
/// # Errors
/// If an expression is broken or matches nothing, or a module or layer does not exist.
pub fn trained(config: &RunConfig, model: &DecoderSpec) -> Result<Trained> {
    let names: Vec<String> = model.tensors().into_iter().map(|t| t.name).collect();
    let chosen = match config.finetuning_type {
        Finetuning::Freeze => by_layer(config, model, &names)?,
        _ if config.unfrozen_parameters.is_empty() => return Ok(Trained::Everything),
        _ => by_expression(&config.unfrozen_parameters, &names)?,
    };
    // A head that is the embedding's is trained with it, as when everything is trained.
    Ok(Trained::Tensors { names: chosen, untied: false })
}

/// Names that an expression matches from their start (Python's `re.match`).
fn by_expression(expressions: &[String], names: &[String]) -> Result<BTreeSet<String>> {
    let mut chosen = BTreeSet::new();
    for text in expressions {
        let invalid = |what: String| Error::Invalid(format!("unfrozen_parameters: '{text}' {what}"));
        if has_row_range(text) {
            return Err(invalid(
                "ends with a range of rows: row ranges are not supported, only whole parameters are trained"
                    .into(),
            ));
        }
        let regex = fancy_regex::Regex::new(&format!("^(?:{text})"))
            .map_err(|e| invalid(format!("is not a regular expression: {e}")))?;
        let before = chosen.len();
        for name in names {
            if regex.is_match(name).map_err(|e| invalid(format!("failed on {name}: {e}")))? {
                chosen.insert(name.clone());
            }
        }
        if chosen.len() == before && !names.iter().any(|n| regex.is_match(n).unwrap_or(false)) {
            let example = names.get(names.len() / 2).map_or("", String::as_str);
            return Err(invalid(format!("matches no parameter of the model; one is called {example}")));
        }
    }
    Ok(chosen)
}

/// Whether an expression ends with rows as Axolotl writes them: `lm_head.weight$[:32000]`.
fn has_row_range(text: &str) -> bool {
    let range = text.strip_suffix(']').and_then(|t| t.rsplit_once('['));
    let bounds = range.and_then(|(_, range)| range.split_once(':'));
    bounds.is_some_and(|(from, to)| [from, to].iter().all(|b| b.bytes().all(|c| c.is_ascii_digit())))
}

/// LLaMA-Factory's choice: modules of the last (or, if negative, the first) layers, and modules outside the layers.
fn by_layer(config: &RunConfig, model: &DecoderSpec, names: &[String]) -> Result<BTreeSet<String>> {
    let (layers, wanted) = (model.num_layers(), config.freeze_trainable_layers.0);
    let count = usize::try_from(wanted.unsigned_abs()).unwrap_or(usize::MAX);
    if count > layers {
        return Err(Error::Invalid(format!(
            "freeze_trainable_layers: {wanted} are more than the {layers} layers of the model"
        )));
    }
    let range = if wanted > 0 { layers - count..layers } else { 0..count };
    let prefix = |layer: usize| format!("model.layers.{layer}.");
    let mut chosen = BTreeSet::new();
    for module in &config.freeze_trainable_modules {
        let before = chosen.len();
        for layer in range.clone() {
            let prefix = prefix(layer);
            let inside = |n: &&String| {
                n.strip_prefix(&prefix)
                    .is_some_and(|rest| module == "all" || rest.split('.').any(|part| part == module))
            };
            chosen.extend(names.iter().filter(inside).cloned());
        }
        if chosen.len() == before && module != "all" {
            return Err(unknown("freeze_trainable_modules", module, names, |n| {
                n.starts_with("model.layers.")
            }));
        }
    }
    for module in &config.freeze_extra_modules {
        let outside =
            |n: &&String| !n.starts_with("model.layers.") && n.split('.').any(|part| part == module);
        let found: Vec<String> = names.iter().filter(outside).cloned().collect();
        if found.is_empty() {
            return Err(unknown("freeze_extra_modules", module, names, |n| !n.starts_with("model.layers.")));
        }
        chosen.extend(found);
    }
    Ok(chosen)
}

fn unknown(key: &str, module: &str, names: &[String], which: impl Fn(&str) -> bool) -> Error {
    let there: BTreeSet<&str> = names
        .iter()
        .filter(|n| which(n))
        .flat_map(|n| n.split('.'))
        .filter(|part| {
            part.parse::<usize>().is_err() && !["model", "layers", "weight", "bias"].contains(part)
        })
        .collect();
    let there: Vec<&str> = there.into_iter().collect();
    Error::Invalid(format!("{key}: the model has no module '{module}' there; it has {}", there.join(", ")))
}
