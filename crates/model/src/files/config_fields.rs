//! Reading config.json's fields one by one, and the policy on the fields that aren't read.
//!
//! A field passes if it is read by its family, known to be harmless ([`HARMLESS`]), starts with `_`, or is "off" (null,
//! false, 0, "", [] or {}) and not one of those that are on by default ([`ON`]). Every other field is refused by name: better a refusal than a model that computes something
//! else.

use std::path::Path;

use serde_json::{Map, Value};

use super::{Error, Result};
use crate::families::{COMMON, Family};

/// Bookkeeping, what outputs to return, defaults of generation, and notes by other tools: nothing of the forward pass.
const HARMLESS: &[&str] = &[
    "begin_suppress_tokens",
    "cross_attention_hidden_size",
    "decoder_start_token_id",
    "diversity_penalty",
    "do_sample",
    "early_stopping",
    "encoder_no_repeat_ngram_size",
    "exponential_decay_length_penalty",
    "finetuning_task",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "full_attn_mod",
    "id2label",
    "interpolate_factor",
    "is_decoder",
    "is_llama_config",
    "label2id",
    "length_penalty",
    "max_length",
    "max_sequence_length",
    "max_window_layers",
    "min_length",
    "model_name",
    "name_or_path",
    "no_repeat_ngram_size",
    "num_beam_groups",
    "num_beams",
    "num_labels",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_scores",
    "prefix",
    "problem_type",
    "remove_invalid_values",
    "repetition_penalty",
    "return_dict",
    "return_dict_in_generate",
    "sep_token_id",
    "suppress_tokens",
    "task_specific_params",
    "temperature",
    "tokenizer_class",
    "top_k",
    "top_p",
    "torchscript",
    "transformers.js_config",
    "transformers_version",
    "typical_p",
    "unsloth_fixed",
    "unsloth_version",
    "use_bfloat16",
    "use_cache",
    "xla_device",
];

/// Refused with more to say than "unknown".
const REFUSED: &[(&str, &str)] = &[
    ("quantization_config", "says that the weights are quantised; use the unquantised model, or a GGUF file"),
    ("auto_map", "asks for a model of its own code, which is not run"),
    ("attention_bias", NO_BIASES),
    ("mlp_bias", NO_BIASES),
    ("sliding_window", "asks for sliding-window attention, which models of this family do not have"),
    ("rope_interleaved", "asks for interleaved rotary embeddings, which are not implemented"),
];

const NO_BIASES: &str = "is true, but models of this class have no such biases: transformers ignores it and would leave the \
                         weights of biases out; set it to false if the model has none";

/// Fields that are on where they are missing: `false` changes the model.
const ON: &[&str] = &["is_causal"];

/// A configuration's fields, with the path for messages.
pub(crate) struct Fields<'a> {
    pub map: &'a Map<String, Value>,
    pub path: &'a Path,
}

/// Refuses every field that could change what the model computes.
pub(crate) fn refuse_unsupported(fields: &Fields<'_>, family: &Family) -> Result<()> {
    for (name, value) in fields.map {
        let name = name.as_str();
        let read = COMMON.contains(&name) || family.fields.contains(&name);
        if ON.contains(&name) {
            match value {
                Value::Bool(true) => continue,
                _ => {
                    return Err(
                        fields.wrong(name, format!("is {value}; only causal attention is implemented"))
                    );
                }
            }
        }
        if read || HARMLESS.contains(&name) || name.starts_with('_') || is_off(value) {
            continue;
        }
        if name == "auto_map" && maps_to(value, family.class) {
            continue;
        }
        if let Some((_, why)) = REFUSED.iter().find(|(n, _)| *n == name) {
            return Err(fields.wrong(name, *why));
        }
        let detail = format!(
            "is {value}, which is not known here and might change what the model computes; remove it if it does not"
        );
        return Err(fields.wrong(name, detail));
    }
    Ok(())
}

/// Whether the code that a model brings along is at most the class that is built in (Phi-3's models bring theirs).
fn maps_to(auto_map: &Value, class: &str) -> bool {
    let named = auto_map.get("AutoModelForCausalLM").map(|name| name.as_str().unwrap_or_default());
    auto_map.is_object() && named.is_none_or(|name| name.rsplit('.').next() == Some(class))
}

/// A configuration without what names code of the model's own: where it is read no such code is run, and copies of the
/// model do not bring it along.
pub(crate) fn without_code(mut config: Value) -> Value {
    if let Some(map) = config.as_object_mut() {
        map.remove("auto_map");
    }
    config
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
    }
}

impl Fields<'_> {
    /// An error about a field.
    pub fn wrong(&self, field: &str, detail: impl Into<String>) -> Error {
        Error::field(self.path, field, detail)
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    /// A whole number from 1 to `most` that must be there.
    pub fn size(&self, name: &str, most: u64) -> Result<usize> {
        self.optional_size(name, most)?
            .ok_or_else(|| self.wrong(name, "is missing; it must be a positive whole number"))
    }

    /// As [`Self::size`], `None` when absent or null.
    pub fn optional_size(&self, name: &str, most: u64) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let size = value.as_u64().filter(|n| (1..=most).contains(n)).and_then(|n| usize::try_from(n).ok());
        size.map(Some).ok_or_else(|| {
            self.wrong(name, format!("is {value}; it must be a whole number from 1 to {most}"))
        })
    }

    /// A positive finite number.
    pub fn positive(&self, name: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = value.as_f64().filter(|x| x.is_finite() && *x > 0.0);
        number.ok_or_else(|| self.wrong(name, format!("is {value}; it must be a positive number")))
    }

    /// The share of something that is dropped, 0 if absent.
    pub fn dropout(&self, name: &str) -> Result<f64> {
        let Some(value) = self.get(name) else { return Ok(0.0) };
        let share = value.as_f64().filter(|x| (0.0..1.0).contains(x));
        share.ok_or_else(|| self.wrong(name, format!("is {value}; it must be a number from 0 to below 1")))
    }

    /// A flag.
    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(name) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(name, format!("is {value}; it must be true or false")))
    }

    /// A whole number from 0 that may be absent.
    pub fn count(&self, name: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let count = value.as_u64().and_then(|n| usize::try_from(n).ok());
        count.map(Some).ok_or_else(|| self.wrong(name, format!("is {value}; it must be a whole number")))
    }

    /// Text that may be absent.
    pub fn text(&self, name: &str) -> Result<Option<&str>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(name, format!("is {value}; it must be text")))
    }

    /// A list of texts that may be absent.
    pub fn texts(&self, name: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let list = value.as_array().and_then(|l| l.iter().map(text).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.wrong(name, "must be a list of texts"))
    }

    /// A list of numbers that may be absent.
    pub fn numbers(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let list = value.as_array().and_then(|l| l.iter().map(Value::as_f64).collect::<Option<Vec<_>>>());
        list.map(Some).ok_or_else(|| self.wrong(name, "must be a list of numbers"))
    }

    /// # Errors
    /// If the field is there and neither this number nor off.
    pub fn only(&self, name: &str, allowed: f64) -> Result<()> {
        match self.get(name) {
            Some(value) if !is_off(value) && value.as_f64() != Some(allowed) => {
                Err(self.wrong(name, format!("is {value}; only {allowed} is implemented")))
            }
            _ => Ok(()),
        }
    }

    /// Token ids: absent, one, or a list. -1 means none, as in old configurations.
    pub fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let values: Vec<&Value> = match self.get(name) {
            None => return Ok(Vec::new()),
            Some(value) if value.as_i64() == Some(-1) => return Ok(Vec::new()),
            Some(Value::Array(list)) => list.iter().collect(),
            Some(value) => vec![value],
        };
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        values
            .into_iter()
            .map(|v| id(v).ok_or_else(|| self.wrong(name, format!("holds {v}, which is no token id"))))
            .collect()
    }
}
