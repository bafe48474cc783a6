//! config.json: the description of a model, read strictly. A field that could change the mathematics and isn't
//! implemented is an error that names it; see [`super::config_fields`] for which pass, [`crate::families`] for the families.

use std::path::Path;

use serde_json::{Map, Value};

use super::config_fields::{self, Fields};
use super::{Error, FileDType, Result};
use crate::families::{self, FAMILIES, Family};
use crate::spec::DecoderSpec;

/// What a model's configuration says.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family of models.
    pub family: &'static Family,
    /// The decoder.
    pub spec: DecoderSpec,
    /// None, one or several.
    pub bos_token_ids: Vec<u32>,
    /// None, one or several.
    pub eos_token_ids: Vec<u32>,
    /// Padding, if the file names it; [`DecoderSpec::padding`] is what the class makes of it.
    pub pad_token_id: Option<u32>,
    /// The format that the weights were saved in (`dtype`, formerly `torch_dtype`).
    pub dtype: Option<FileDType>,
    /// What share of the attention probabilities the class would drop in training, from 0 to below 1. No decoder here does.
    pub attention_dropout: f64,
}

impl ModelConfig {
    /// Reads config.json's value; `path` names it in errors.
    ///
    /// # Errors
    /// When a field is missing, impossible, or asks for something that isn't implemented; each names the field.
    pub fn from_value(value: &Value, path: &Path) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::damaged(path, "it is not a JSON object"))?;
        let fields = Fields { map, path };
        let family = family(map, &fields)?;
        config_fields::refuse_unsupported(&fields, family)?;
        let spec = (family.describe)(&fields)?;
        Ok(ModelConfig {
            family,
            bos_token_ids: fields.ids("bos_token_id")?,
            eos_token_ids: fields.ids("eos_token_id")?,
            pad_token_id: map.get("pad_token_id").and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()),
            spec,
            dtype: dtype(&fields)?,
            attention_dropout: fields.dropout("attention_dropout")?,
        })
    }
}

/// Gemma 3 from 4B up as it is released.
const WITH_IMAGES: &str = "is `Gemma3ForConditionalGeneration`, a model of text and images, of which only the text model is \
    supported; save that one by itself with transformers, and copy the tokenizer's files beside it: \
    m = Gemma3ForConditionalGeneration.from_pretrained(FOLDER); t = Gemma3ForCausalLM(m.config.text_config); \
    t.model, t.lm_head = m.model.language_model, m.lm_head; t.save_pretrained(NEW_FOLDER)";

fn family(map: &Map<String, Value>, fields: &Fields<'_>) -> Result<&'static Family> {
    let class = match map.get("architectures") {
        None | Some(Value::Null) => None,
        Some(Value::String(class)) => Some(class.as_str()),
        Some(Value::Array(list)) => match list.first() {
            None => None,
            Some(Value::String(class)) => Some(class.as_str()),
            Some(other) => {
                return Err(fields.wrong("architectures", format!("lists {other}, which is no class's name")));
            }
        },
        Some(other) => {
            return Err(
                fields.wrong("architectures", format!("is {other}; expected a list with the model's class"))
            );
        }
    };
    let model_type = map.get("model_type").and_then(Value::as_str);
    let (found, given) = match (class, model_type) {
        (Some(class), _) => (FAMILIES.iter().find(|f| f.class == class), class),
        // Configurations written by hand, or of a bare `LlamaModel`, may leave the class out.
        (None, Some(kind)) => (FAMILIES.iter().find(|f| f.model_type == kind), kind),
        (None, None) => {
            return Err(fields.wrong("architectures", "is missing; it names the model's class"));
        }
    };
    let Some(found) = found else {
        if given == "Gemma3ForConditionalGeneration" || (class.is_none() && given == "gemma3") {
            return Err(fields.wrong("architectures", WITH_IMAGES));
        }
        let detail = match families::is_mixture_of_experts(given, fields) {
            true => format!("is `{given}`, a mixture of experts; loratune trains dense decoders only"),
            false => {
                let supported: Vec<&str> = FAMILIES.iter().map(|f| f.class).collect();
                format!("is `{given}`, which is not supported; supported: {}", supported.join(", "))
            }
        };
        return Err(fields.wrong("architectures", detail));
    };
    match model_type {
        Some(kind) if kind != found.model_type => {
            Err(fields.wrong("model_type", format!("is `{kind}`, which does not go with {}", found.class)))
        }
        _ => Ok(found),
    }
}

fn dtype(fields: &Fields<'_>) -> Result<Option<FileDType>> {
    for key in ["dtype", "torch_dtype"] {
        match fields.map.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::String(name)) if name == "auto" => {}
            Some(Value::String(name)) => {
                let known = FileDType::from_torch(name);
                return known.map(Some).ok_or_else(|| {
                    fields.wrong(
                        key,
                        format!("is `{name}`; only float32, bfloat16, float16 and float64 are read"),
                    )
                });
            }
            Some(_) => return Err(fields.wrong(key, "must be a type's name")),
        }
    }
    Ok(None)
}
