//! config.json: the description of a model, read strictly. A field that could change the mathematics and isn't
//! implemented is an error that names it; see [`super::config_fields`] for which pass.

use std::path::Path;

use serde_json::{Map, Value};

use super::config_fields::{self, Fields};
use super::{Error, FileDType, Result, rope};

/// The model families that are read. To add one: a variant, a line in [`Architecture::ALL`] and its own reading of the
/// fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Architecture {
    /// Meta's Llama and everything that shares its class: SmolLM, TinyLlama, Yi, DeepSeek-LLM …
    Llama,
}

impl Architecture {
    /// Each with its class name in transformers and its `model_type`.
    pub const ALL: &'static [(Architecture, &'static str, &'static str)] =
        &[(Architecture::Llama, "LlamaForCausalLM", "llama")];

    /// transformers' class name, as in config.json's `architectures`.
    pub fn class_name(self) -> &'static str {
        // One line per variant; the first stands in so that there is no panic to reason about.
        Self::ALL.iter().find(|(a, _, _)| *a == self).unwrap_or(&Self::ALL[0]).1
    }

    /// The class names of all families.
    pub fn supported() -> Vec<&'static str> {
        Self::ALL.iter().map(|(_, class, _)| *class).collect()
    }
}

/// The largest sizes that are believed, far above those of any model: a damaged file is refused for the field that is
/// wrong, before anything is counted or allocated by it.
mod most {
    pub const LAYERS: u64 = 10_000;
    pub const VOCABULARY: u64 = 1 << 24;
    pub const HIDDEN: u64 = 1 << 20;
    pub const INTERMEDIATE: u64 = 1 << 22;
    pub const HEADS: u64 = 1 << 16;
    pub const HEAD_DIM: u64 = 1 << 16;
    pub const POSITIONS: u64 = 1 << 31;
}

/// A decoder's dimensions and constants, with transformers' names and defaults.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Which family of models.
    pub architecture: Architecture,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of blocks.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; divides the query heads.
    pub num_key_value_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// ε of the RMS norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The longest sequence that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Is the output layer the embedding?
    pub tie_word_embeddings: bool,
    /// Biases in q, k, v and o.
    pub attention_bias: bool,
    /// Biases in gate, up and down.
    pub mlp_bias: bool,
    /// None, one or several.
    pub bos_token_ids: Vec<u32>,
    /// None, one or several.
    pub eos_token_ids: Vec<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// The format that the weights were saved in (`dtype`, formerly `torch_dtype`).
    pub dtype: Option<FileDType>,
    /// Standard deviation of a random initialisation.
    pub initializer_range: f64,
}

impl ModelConfig {
    /// Reads config.json's value; `path` names it in errors.
    ///
    /// # Errors
    /// When a field is missing, impossible, or asks for something that isn't implemented; each names the field.
    pub fn from_value(value: &Value, path: &Path) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::damaged(path, "it is not a JSON object"))?;
        let fields = Fields { map, path };
        let architecture = architecture(map, path)?;
        config_fields::refuse_unsupported(&fields)?;
        let hidden_size = fields.size("hidden_size", most::HIDDEN)?;
        let num_attention_heads = fields.size("num_attention_heads", most::HEADS)?;
        let head_dim = match fields.optional_size("head_dim", most::HEAD_DIM)? {
            Some(given) => given,
            None if hidden_size.is_multiple_of(num_attention_heads) => hidden_size / num_attention_heads,
            None => {
                let detail = format!(
                    "({hidden_size}) is not a multiple of num_attention_heads ({num_attention_heads})"
                );
                return Err(fields.wrong("hidden_size", detail));
            }
        };
        let config = ModelConfig {
            architecture,
            vocab_size: fields.size("vocab_size", most::VOCABULARY)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", most::INTERMEDIATE)?,
            num_hidden_layers: fields.size("num_hidden_layers", most::LAYERS)?,
            num_attention_heads,
            num_key_value_heads: fields
                .optional_size("num_key_value_heads", most::HEADS)?
                .unwrap_or(num_attention_heads),
            head_dim,
            rms_norm_eps: fields.positive("rms_norm_eps", 1e-6)?,
            rope_theta: rope::theta(&fields)?,
            max_position_embeddings: fields
                .optional_size("max_position_embeddings", most::POSITIONS)?
                .unwrap_or(2048),
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            bos_token_ids: fields.ids("bos_token_id")?,
            eos_token_ids: fields.ids("eos_token_id")?,
            pad_token_id: fields.ids("pad_token_id")?.first().copied(),
            dtype: dtype(&fields)?,
            initializer_range: fields.positive("initializer_range", 0.02)?,
        };
        config.check_dimensions(&fields)?;
        Ok(config)
    }

    fn check_dimensions(&self, fields: &Fields<'_>) -> Result<()> {
        let (heads, kv) = (self.num_attention_heads, self.num_key_value_heads);
        if !heads.is_multiple_of(kv) {
            let detail = format!("({heads}) is not a multiple of num_key_value_heads ({kv})");
            return Err(fields.wrong("num_attention_heads", detail));
        }
        if !self.head_dim.is_multiple_of(2) {
            let detail = format!("({}) is odd; rotary embeddings turn pairs of numbers", self.head_dim);
            return Err(fields.wrong("head_dim", detail));
        }
        // Every weight matrix, and all blocks together, must be countable.
        let product = |factors: &[usize]| factors.iter().try_fold(8usize, |n, &f| n.checked_mul(f));
        let countable = product(&[self.vocab_size, self.hidden_size])
            .and(product(&[self.num_hidden_layers, self.hidden_size, self.intermediate_size]))
            .and(product(&[self.num_hidden_layers, heads, self.head_dim, self.hidden_size]));
        if countable.is_none() {
            return Err(fields.wrong("hidden_size", "and the other sizes make weights too large to count"));
        }
        Ok(())
    }
}

fn architecture(map: &Map<String, Value>, path: &Path) -> Result<Architecture> {
    let named = map.get("architectures").and_then(Value::as_array).filter(|list| !list.is_empty());
    let class = named.and_then(|list| list.first()).and_then(Value::as_str);
    let model_type = map.get("model_type").and_then(Value::as_str);
    let find = |f: &dyn Fn(&(Architecture, &str, &str)) -> bool| {
        Architecture::ALL.iter().find(|a| f(a)).map(|a| a.0)
    };
    let (found, given) = match (class, model_type) {
        (Some(class), _) => (find(&|a| a.1 == class), class),
        // Configurations written by hand, or of a bare `LlamaModel`, may leave the class out.
        (None, Some(kind)) => (find(&|a| a.2 == kind), kind),
        (None, None) => {
            return Err(Error::field(path, "architectures", "is missing; it names the model's class"));
        }
    };
    let supported = Architecture::supported();
    let found = found.ok_or_else(|| {
        let detail = format!("is `{given}`, which is not supported; supported: {}", supported.join(", "));
        Error::field(path, "architectures", detail)
    })?;
    let expected = Architecture::ALL.iter().find(|a| a.0 == found).map(|a| a.2);
    if model_type.is_some() && model_type != expected {
        let detail =
            format!("is `{}`, which does not go with {}", model_type.unwrap_or(""), found.class_name());
        return Err(Error::field(path, "model_type", detail));
    }
    Ok(found)
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
