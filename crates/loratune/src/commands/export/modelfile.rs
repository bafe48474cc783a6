//! A Modelfile for Ollama.

use std::fmt::Write;

use loratune_data::{ChatTemplate, ollama_template};
use loratune_tokenizer::TokenizerBundle;

use crate::load::LoadedModel;

/// The context that Ollama gets; more costs memory that few answers need. LLaMA-Factory writes the same.
const CONTEXT: usize = 4096;

/// The file's text. A template that has no form there is left out, with a note: Ollama then takes its own guess.
pub fn text(
    from: &str,
    template: Option<&ChatTemplate>,
    tokenizer: &TokenizerBundle,
    model: &LoadedModel,
    notes: &mut Vec<String>,
) -> String {
    let mut out = format!("# Written by loratune; for `ollama create NAME -f Modelfile`.\n{from}");
    let bos = tokenizer.bos.as_ref().filter(|_| tokenizer.add_bos).map(|t| t.content.as_str());
    match template.map(|t| ollama_template(t, bos)) {
        Some(Ok(found)) => {
            let _ = write!(out, "\nTEMPLATE \"\"\"{}\"\"\"\n", found.template);
            if let Some(system) = found.system {
                let _ = write!(out, "\nSYSTEM \"\"\"{system}\"\"\"\n");
            }
        }
        Some(Err(why)) => notes.push(format!(
            "the Modelfile has no TEMPLATE, because the chat template {why}: Ollama takes the one that it knows the model by"
        )),
        None => notes.push("the Modelfile has no TEMPLATE, because the model has no chat template".into()),
    }
    out.push('\n');
    let mut ids = model.stop_ids();
    ids.extend(template.into_iter().flat_map(|t| t.stop_ids().iter().copied()));
    ids.sort_unstable();
    ids.dedup();
    for stop in ids.into_iter().filter_map(|id| tokenizer.token(id)) {
        let _ = writeln!(out, "PARAMETER stop \"{}\"", stop.replace('\\', "\\\\").replace('"', "\\\""));
    }
    let _ = writeln!(out, "PARAMETER num_ctx {}", CONTEXT.min(model.files.config.spec.max_positions));
    out
}
