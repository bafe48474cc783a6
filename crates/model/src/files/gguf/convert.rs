//! What a GGUF file's metadata means for transformers: config.json and the vocabulary.

use loratune_tokenizer::GgufVocabulary;
use serde_json::{Map, Value, json};

use super::super::{Error, Result};
use super::parse::GgufFile;
use super::value::MetaValue;
use super::write::Entry;
use crate::families::{FAMILIES, Family};
use crate::spec::DecoderSpec;

/// How llama.cpp writes a family.
#[derive(Debug)]
pub(crate) struct Gguf {
    /// `general.architecture`, which is also what its keys begin with.
    pub arch: &'static str,
    /// Keys beside [`KNOWN`] that [`Gguf::extend`] reads or that change nothing.
    pub keys: &'static [&'static str],
    /// Rows of q and k are interleaved: llama.cpp turns neighbouring pairs.
    pub interleaved: bool,
    /// Adds the family's own fields to config.json.
    pub extend: fn(&Metadata<'_>, &mut Map<String, Value>) -> Result<()>,
    /// The family's own keys, for writing; the architecture's prefix is added.
    pub write: fn(&DecoderSpec) -> Vec<(&'static str, Entry)>,
    /// Whether a file has the head as a tensor of its own.
    pub head: HeadTensor,
    /// Whether there may be biases behind attention and in the feed-forward layer.
    pub biases: bool,
}

/// Whether a GGUF file has `output.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadTensor {
    /// If the head is not the embedding's table.
    IfOwn,
    /// Never: llama.cpp takes the embedding's table.
    Shared,
    /// Always: llama.cpp asks for it.
    Own,
}

/// As most architectures are.
pub(crate) const PLAIN: Gguf = Gguf {
    arch: "",
    keys: &[],
    interleaved: false,
    extend: |_, _| Ok(()),
    write: |_| Vec::new(),
    head: HeadTensor::IfOwn,
    biases: false,
};

/// Keys that don't change what a decoder computes, or that are read below.
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
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
    "tensor_data_layout",
    "vocab_size",
];

/// The metadata of a file of a known architecture.
pub(crate) struct Metadata<'a> {
    pub file: &'a GgufFile,
    gguf: &'static Gguf,
}

impl Metadata<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.gguf.arch)
    }

    pub fn wrong(&self, name: &str, detail: impl Into<String>) -> Error {
        self.file.key_error(&self.key(name), detail)
    }

    /// A whole number of the architecture's.
    pub fn whole(&self, name: &str) -> Result<Option<u64>> {
        self.file.whole(&self.key(name))
    }

    pub fn required(&self, name: &str) -> Result<u64> {
        self.whole(name)?.ok_or_else(|| self.wrong(name, "is missing from the metadata"))
    }

    /// The file has f32; printed shortest they are what the model's author wrote.
    pub fn number(&self, name: &str) -> Result<Option<f64>> {
        let key = self.key(name);
        let Some(value) = self.file.metadata.get(&key) else { return Ok(None) };
        let number = value.as_f64().map(|x| (x as f32).to_string().parse::<f64>().unwrap_or(x));
        number
            .map(Some)
            .ok_or_else(|| self.file.key_error(&key, format!("is {}, not a number", value.kind())))
    }

    pub fn text(&self, name: &str) -> Option<&str> {
        self.file.metadata.get(&self.key(name)).and_then(MetaValue::as_str)
    }

    /// The numbers of a small tensor, if the file has it.
    pub fn tensor(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.file.tensors.iter().find(|t| t.name == name) else { return Ok(None) };
        Ok(Some(self.file.read(tensor)?.to_f32()))
    }

    /// Width of a head.
    pub fn head_dim(&self) -> Result<u64> {
        let usual = self.required("embedding_length")?.checked_div(self.required("attention.head_count")?);
        Ok(self.whole("attention.key_length")?.unwrap_or(usual.unwrap_or(0)))
    }

    /// The fields that all families have.
    fn config(&self, family: &Family) -> Result<Map<String, Value>> {
        let file = self.file;
        let embedding = file.tensors.iter().find(|t| t.name == "token_embd.weight");
        let vocab = embedding
            .and_then(|t| t.shape.first())
            .ok_or_else(|| Error::tensor(file.path(), "token_embd.weight", "is missing"))?;
        let (heads, head_dim) = (self.required("attention.head_count")?, self.head_dim()?);
        if let Some(other) = self.whole("attention.value_length")?.filter(|&n| n != head_dim) {
            let detail = format!("is {other}, but a head is {head_dim} wide; that is not implemented");
            return Err(self.wrong("attention.value_length", detail));
        }
        let eps = "attention.layer_norm_rms_epsilon";
        let config = json!({
            "architectures": [family.class],
            "attention_bias": file.has_tensor("blk.0.attn_q.bias"),
            "attention_dropout": 0.0,
            "bos_token_id": file.whole("tokenizer.ggml.bos_token_id")?,
            "dtype": "float32",
            "eos_token_id": file.whole("tokenizer.ggml.eos_token_id")?,
            "head_dim": head_dim,
            "hidden_act": "silu",
            "hidden_size": self.required("embedding_length")?,
            "initializer_range": 0.02,
            "intermediate_size": self.required("feed_forward_length")?,
            "max_position_embeddings": self.required("context_length")?,
            "mlp_bias": file.has_tensor("blk.0.ffn_gate.bias"),
            "model_type": family.model_type,
            "num_attention_heads": heads,
            "num_hidden_layers": self.required("block_count")?,
            "num_key_value_heads": self.whole("attention.head_count_kv")?.unwrap_or(heads),
            "pad_token_id": file.whole("tokenizer.ggml.padding_token_id")?,
            "rms_norm_eps": self.number(eps)?.ok_or_else(|| self.wrong(eps, "is missing from the metadata"))?,
            "tie_word_embeddings": !file.has_tensor("output.weight"),
            "use_cache": true,
            "vocab_size": vocab,
        });
        let mut config = match config {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        self.rope(head_dim)?.write(&mut config);
        Ok(config)
    }

    fn refuse_unsupported(&self) -> Result<()> {
        let prefix = format!("{}.", self.gguf.arch);
        for (key, value) in &self.file.metadata {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            let off = matches!(value, MetaValue::Bool(false)) || value.as_f64() == Some(0.0);
            if !off && !KNOWN.contains(&name) && !self.gguf.keys.contains(&name) {
                let detail = "is not known here and might change what the model computes";
                return Err(self.file.key_error(key, detail));
            }
        }
        Ok(())
    }
}

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

    fn has_tensor(&self, name: &str) -> bool {
        self.tensors.iter().any(|t| t.name == name)
    }

    /// The family that the file's architecture belongs to, and how llama.cpp writes it.
    ///
    /// # Errors
    /// When it is none that is read.
    pub(crate) fn family(&self) -> Result<(&'static Family, &'static Gguf)> {
        let key = "general.architecture";
        let Some(arch) = self.metadata.get(key).and_then(MetaValue::as_str) else {
            return Err(self.key_error(key, "is missing from the metadata"));
        };
        let written = FAMILIES.iter().filter_map(|f| Some((f, f.gguf.as_ref()?)));
        written.clone().find(|(_, g)| g.arch == arch).ok_or_else(|| {
            let mut known: Vec<&str> = written.map(|(_, g)| g.arch).collect();
            known.dedup();
            let detail = match arch.contains("moe") || self.has_tensor("blk.0.ffn_gate_inp.weight") {
                true => format!("is `{arch}`, a mixture of experts; loratune trains dense decoders only"),
                false => format!("is `{arch}`, which is not supported; supported: {}", known.join(", ")),
            };
            self.key_error(key, detail)
        })
    }

    /// The config.json that transformers would have for this file.
    ///
    /// # Errors
    /// When the architecture isn't known, a key is missing, or one asks for something that isn't implemented.
    pub fn hf_config(&self) -> Result<Value> {
        let (family, gguf) = self.family()?;
        if self.metadata.get("general.type").and_then(MetaValue::as_str) == Some("adapter") {
            let detail = "is `adapter`: the file holds an adapter for a model, not a model";
            return Err(self.key_error("general.type", detail));
        }
        let metadata = Metadata { file: self, gguf };
        if metadata.whole("expert_count")?.is_some_and(|n| n > 1) {
            let detail = "makes this a mixture of experts; loratune trains dense decoders only";
            return Err(metadata.wrong("expert_count", detail));
        }
        metadata.refuse_unsupported()?;
        let mut config = metadata.config(family)?;
        (gguf.extend)(&metadata, &mut config)?;
        Ok(Value::Object(config))
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
