//! What a GGUF file's metadata means for transformers: config.json and the vocabulary.

use loratune_tokenizer::GgufVocabulary;
use serde_json::{Value, json};

use super::super::{Error, Result};
use super::parse::GgufFile;
use super::value::MetaValue;

/// `llama.*` keys that don't change what a decoder computes, or that are read below.
const KNOWN: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.value_length",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.original_context_length",
    "tensor_data_layout",
    "vocab_size",
];

impl GgufFile {
    fn key_error(&self, key: &str, detail: impl Into<String>) -> Error {
        Error::field(self.path(), key, detail)
    }

    fn whole(&self, key: &str) -> Result<Option<u64>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        // Some files give one value per layer; a decoder whose layers are all alike has one.
        if let Some(mut each) = value.scalars() {
            let first = each.next();
            if first.is_some() && each.all(|v| Some(&v) == first.as_ref()) {
                return Ok(first.and_then(|v| v.as_u64()));
            }
            return Err(self.key_error(key, "differs from layer to layer, which is not supported"));
        }
        let number = value.as_u64();
        number
            .map(Some)
            .ok_or_else(|| self.key_error(key, format!("is {}, not a whole number", value.kind())))
    }

    fn required(&self, key: &str) -> Result<u64> {
        self.whole(key)?.ok_or_else(|| self.key_error(key, "is missing from the metadata"))
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let number = value.as_f64();
        number.map(Some).ok_or_else(|| self.key_error(key, format!("is {}, not a number", value.kind())))
    }

    fn has_tensor(&self, name: &str) -> bool {
        self.tensors.iter().any(|t| t.name == name)
    }

    /// The config.json that transformers would have for this file.
    ///
    /// # Errors
    /// When the architecture isn't Llama's, a key is missing, or one asks for something that isn't implemented.
    pub fn hf_config(&self) -> Result<Value> {
        match self.metadata.get("general.architecture").and_then(MetaValue::as_str) {
            Some("llama") => {}
            Some(other) => {
                let detail = format!("is `{other}`; only `llama` is supported");
                return Err(self.key_error("general.architecture", detail));
            }
            None => return Err(self.key_error("general.architecture", "is missing from the metadata")),
        }
        self.refuse_unsupported()?;
        let heads = self.required("llama.attention.head_count")?;
        let hidden = self.required("llama.embedding_length")?;
        let embedding = self.tensors.iter().find(|t| t.name == "token_embd.weight");
        let vocab = embedding
            .and_then(|t| t.shape.first())
            .ok_or_else(|| Error::tensor(self.path(), "token_embd.weight", "is missing"))?;
        let usual_head = hidden.checked_div(heads).unwrap_or(0);
        let head_dim = self.whole("llama.attention.key_length")?.unwrap_or(usual_head);
        for key in ["llama.attention.value_length", "llama.rope.dimension_count"] {
            if let Some(other) = self.whole(key)?.filter(|&n| n != head_dim) {
                let detail = format!("is {other}, but a head is {head_dim} wide; that is not implemented");
                return Err(self.key_error(key, detail));
            }
        }
        // The file has f32; printed shortest they are what the model's author wrote.
        let float = |x: f64| (x as f32).to_string().parse::<f64>().unwrap_or(x);
        let eps = self.number("llama.attention.layer_norm_rms_epsilon")?.map(float);
        let eps = eps.ok_or_else(|| {
            self.key_error("llama.attention.layer_norm_rms_epsilon", "is missing from the metadata")
        })?;
        let theta = self.number("llama.rope.freq_base")?.map_or(10_000.0, float);
        let config = json!({
            "architectures": ["LlamaForCausalLM"],
            "attention_bias": self.has_tensor("blk.0.attn_q.bias"),
            "attention_dropout": 0.0,
            "bos_token_id": self.whole("tokenizer.ggml.bos_token_id")?,
            "dtype": "float32",
            "eos_token_id": self.whole("tokenizer.ggml.eos_token_id")?,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": hidden,
            "initializer_range": 0.02,
            "intermediate_size": self.required("llama.feed_forward_length")?,
            "max_position_embeddings": self.required("llama.context_length")?,
            "mlp_bias": self.has_tensor("blk.0.ffn_gate.bias"),
            "model_type": "llama",
            "num_attention_heads": heads,
            "num_hidden_layers": self.required("llama.block_count")?,
            "num_key_value_heads": self.whole("llama.attention.head_count_kv")?.unwrap_or(heads),
            "pad_token_id": self.whole("tokenizer.ggml.padding_token_id")?,
            "rms_norm_eps": eps,
            "rope_parameters": {"rope_theta": theta, "rope_type": "default"},
            "tie_word_embeddings": !self.has_tensor("output.weight"),
            "use_cache": true,
            "vocab_size": vocab,
        });
        Ok(config)
    }

    fn refuse_unsupported(&self) -> Result<()> {
        if self.has_tensor("rope_freqs.weight") {
            let detail = "scales the rotary frequencies (Llama 3's rope_type), which is not implemented";
            return Err(Error::tensor(self.path(), "rope_freqs.weight", detail));
        }
        for (key, value) in &self.metadata {
            let Some(name) = key.strip_prefix("llama.") else { continue };
            let off = matches!(value, MetaValue::Bool(false)) || value.as_f64() == Some(0.0);
            if name == "rope.scaling.type" && value.as_str() != Some("none") {
                let detail = "asks for scaled rotary embeddings, which are not implemented";
                return Err(self.key_error(key, detail));
            }
            if !off && !KNOWN.contains(&name) {
                let detail = "is not known here and might change what the model computes";
                return Err(self.key_error(key, detail));
            }
        }
        Ok(())
    }

    /// The vocabulary that the metadata holds.
    ///
    /// # Errors
    /// When a key is missing or of the wrong type.
    pub fn vocabulary(&self) -> Result<GgufVocabulary> {
        let text = |key: &str| self.metadata.get(key).and_then(MetaValue::as_str).map(str::to_owned);
        let flag = |key: &str| self.metadata.get(key).and_then(MetaValue::as_bool);
        let id = |key: &str| -> Result<Option<u32>> {
            let id = self.whole(key)?;
            id.map(|n| u32::try_from(n).map_err(|_| self.key_error(key, "is no token id"))).transpose()
        };
        let model = text("tokenizer.ggml.model").ok_or_else(|| {
            self.key_error("tokenizer.ggml.model", "is missing; the file holds no tokenizer")
        })?;
        Ok(GgufVocabulary {
            model,
            pre: text("tokenizer.ggml.pre"),
            tokens: self.string_array("tokenizer.ggml.tokens")?.unwrap_or_default(),
            scores: self.number_array("tokenizer.ggml.scores", |v| v.as_f64().map(|x| x as f32))?,
            token_types: self
                .number_array("tokenizer.ggml.token_type", |v| i32::try_from(v.as_u64()?).ok())?,
            merges: self.string_array("tokenizer.ggml.merges")?,
            bos_id: id("tokenizer.ggml.bos_token_id")?,
            eos_id: id("tokenizer.ggml.eos_token_id")?,
            pad_id: id("tokenizer.ggml.padding_token_id")?,
            unk_id: id("tokenizer.ggml.unknown_token_id")?,
            add_bos: flag("tokenizer.ggml.add_bos_token"),
            add_eos: flag("tokenizer.ggml.add_eos_token"),
            add_space_prefix: flag("tokenizer.ggml.add_space_prefix"),
            chat_template: text("tokenizer.chat_template"),
        })
    }

    fn string_array(&self, key: &str) -> Result<Option<Vec<String>>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let strings = value.as_strings().map(<[String]>::to_vec);
        strings
            .map(Some)
            .ok_or_else(|| self.key_error(key, format!("is {}, not an array of strings", value.kind())))
    }

    fn number_array<T>(&self, key: &str, f: impl Fn(MetaValue) -> Option<T>) -> Result<Option<Vec<T>>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let numbers = value.scalars().and_then(|each| each.map(f).collect::<Option<Vec<T>>>());
        numbers
            .map(Some)
            .ok_or_else(|| self.key_error(key, format!("is {}, not as it should be", value.kind())))
    }
}
