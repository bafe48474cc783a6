//! What a GGUF file's metadata means for transformers: config.json and the vocabulary.

use loratune_tokenizer::GgufVocabulary;
use serde_json::{Map, Value, json};

use super::super::{Error, Result};
use super::parse::GgufFile;
use super::value::MetaValue;
use crate::families::{FAMILIES, Family};
use crate::rope::{RopeScaling, RopeSpec};

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
}

/// Far above any head's width.
const MOST_HEAD_DIM: u64 = 1 << 16;

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

    /// `rope_parameters`, by the keys and the tensors of factors.
    fn rope(&self, head_dim: u64) -> Result<Value> {
        let theta = self.number("rope.freq_base")?.unwrap_or(10_000.0);
        let mut rope = json!({"rope_theta": theta, "rope_type": "default"});
        let turned = self.whole("rope.dimension_count")?.unwrap_or(head_dim);
        if turned == 0 || turned > head_dim || head_dim > MOST_HEAD_DIM {
            let detail = format!("is {turned}, but a head is {head_dim} wide; it must be from 1 to that");
            return Err(self.wrong("rope.dimension_count", detail));
        }
        if turned != head_dim {
            rope["partial_rotary_factor"] = json!(turned as f64 / head_dim as f64);
        }
        let factor = self.number("rope.scaling.factor")?;
        match self.text("rope.scaling.type") {
            Some("none") => {}
            None if factor.is_none_or(|f| f == 1.0) => {}
            // llama.cpp's default.
            None | Some("linear") => {
                rope["rope_type"] = json!("linear");
                rope["factor"] = json!(factor.unwrap_or(1.0));
            }
            Some("yarn") => {
                rope["rope_type"] = json!("yarn");
                rope["factor"] = json!(factor.unwrap_or(1.0));
                rope["original_max_position_embeddings"] =
                    json!(self.required("rope.scaling.original_context_length")?);
                // llama.cpp multiplies by it what YaRN scales by anyway.
                if let Some(times) = self.number("rope.scaling.attn_factor")? {
                    let factor = factor.unwrap_or(1.0).max(1.0);
                    rope["attention_factor"] = json!(times * (0.1 * factor.ln() + 1.0));
                }
                for (ours, theirs) in [
                    ("attention_factor", "rope.scaling.yarn_attn_factor"),
                    ("beta_fast", "rope.scaling.yarn_beta_fast"),
                    ("beta_slow", "rope.scaling.yarn_beta_slow"),
                ] {
                    if let Some(x) = self.number(theirs)? {
                        rope[ours] = json!(x);
                    }
                }
            }
            Some("longrope") => {}
            Some(other) => {
                return Err(
                    self.wrong("rope.scaling.type", format!("is `{other}`, which is not implemented"))
                );
            }
        }
        if let Some(divisors) = self.tensor("rope_freqs.weight")? {
            self.llama3(&mut rope, theta, turned, &divisors)?;
        }
        self.longrope(&mut rope)?;
        Ok(rope)
    }

    /// llama.cpp writes what Llama 3.1 divides its frequencies by, not the parameters it comes from. Those are found
    /// among the ones in use; others are said as longrope with the same divisors at any length, which computes the same.
    fn llama3(&self, rope: &mut Value, theta: f64, turned: u64, divisors: &[f32]) -> Result<()> {
        let dim = usize::try_from(turned).unwrap_or(0);
        if divisors.len() != dim / 2 {
            let detail = format!("has {} numbers for {} pairs", divisors.len(), dim / 2);
            return Err(Error::tensor(self.file.path(), "rope_freqs.weight", detail));
        }
        let (plain, _) = RopeSpec::plain(dim, theta).frequencies(1);
        for factor in [8.0, 32.0, 2.0, 4.0, 16.0, 64.0] {
            let scaling =
                RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original: 8192 };
            let (scaled, _) = RopeSpec { dim, theta, scaling }.frequencies(1);
            let same = |((p, s), d): ((&f32, &f32), &f32)| (p / s / d - 1.0).abs() < 1e-3;
            if plain.len() == divisors.len() && plain.iter().zip(&scaled).zip(divisors).all(same) {
                rope["rope_type"] = json!("llama3");
                rope["factor"] = json!(factor);
                rope["low_freq_factor"] = json!(1.0);
                rope["high_freq_factor"] = json!(4.0);
                rope["original_max_position_embeddings"] = json!(8192);
                return Ok(());
            }
        }
        rope["rope_type"] = json!("longrope");
        rope["long_factor"] = json!(divisors);
        rope["short_factor"] = json!(divisors);
        rope["attention_factor"] = json!(1.0);
        rope["original_max_position_embeddings"] = json!(self.required("context_length")?);
        Ok(())
    }

    fn longrope(&self, rope: &mut Value) -> Result<()> {
        let (Some(long), Some(short)) =
            (self.tensor("rope_factors_long.weight")?, self.tensor("rope_factors_short.weight")?)
        else {
            return Ok(());
        };
        rope["rope_type"] = json!("longrope");
        rope["long_factor"] = json!(long);
        rope["short_factor"] = json!(short);
        rope["original_max_position_embeddings"] =
            json!(self.required("rope.scaling.original_context_length")?);
        if let Some(factor) = self.number("rope.scaling.attn_factor")? {
            rope["attention_factor"] = json!(factor);
        }
        Ok(())
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
            "rope_parameters": self.rope(head_dim)?,
            "tie_word_embeddings": !file.has_tensor("output.weight"),
            "use_cache": true,
            "vocab_size": vocab,
        });
        match config {
            Value::Object(map) => Ok(map),
            _ => Ok(Map::new()),
        }
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
            let known: Vec<&str> = written.map(|(_, g)| g.arch).collect();
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
