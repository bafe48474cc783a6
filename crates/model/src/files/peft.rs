//! Adapters as PEFT writes and reads them: `adapter_config.json` and `adapter_model.safetensors`.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::atomic::write_atomically;
use super::suggest::must_exist;
use super::{Error, RawTensor, Result, SafetensorsSource, TensorSource, TensorView, write_safetensors};

const CONFIG: &str = "adapter_config.json";
const WEIGHTS: &str = "adapter_model.safetensors";

/// Modules by name: a list of (suffixes of) module paths, or one string that is a regular expression for the whole path
/// or `all-linear`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum ModuleNames {
    /// Each a module's path or the end of one.
    List(Vec<String>),
    /// A regular expression, or `all-linear`.
    Pattern(String),
}

/// Tokens whose rows of a table are trained by themselves. Ids are as they are in the file: a model decides which of them are
/// tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenIndices {
    /// Rows of the embedding (and of a head that is tied to it).
    OfEmbedding(Vec<i64>),
    /// By module (`embed_tokens`, `lm_head`), each the end of a path.
    ByModule(BTreeMap<String, Vec<i64>>),
}

/// How A and B started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum InitLoraWeights {
    /// `true`: Kaiming-uniform A and zero B; `false`: both random.
    Flag(bool),
    /// `gaussian`, `orthogonal`, `pissa`, `olora` …
    Name(String),
}

/// PEFT's `LoraConfig` (0.21): the fields that matter for what an adapter computes. Field names, meanings and defaults
/// are PEFT's.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default)]
pub struct AdapterConfig {
    /// Always "LORA"; others are refused.
    pub peft_type: String,
    /// Usually "CAUSAL_LM".
    pub task_type: Option<String>,
    /// Path or name of the base model.
    pub base_model_name_or_path: Option<String>,
    /// The base model's revision.
    pub revision: Option<String>,
    /// The rank.
    pub r: usize,
    /// α; the update is scaled by α/r.
    pub lora_alpha: f64,
    /// Dropout on the adapter's input in training.
    pub lora_dropout: f64,
    /// The adapted modules; `None` leaves the choice to PEFT's table by architecture.
    pub target_modules: Option<ModuleNames>,
    /// Modules that are not adapted although `target_modules` names them.
    pub exclude_modules: Option<ModuleNames>,
    /// "none", "all" or "lora_only": the biases that were trained.
    pub bias: String,
    /// Scale by α/√r instead.
    pub use_rslora: bool,
    /// Weight-decomposed (DoRA).
    pub use_dora: bool,
    /// How A and B started.
    pub init_lora_weights: InitLoraWeights,
    /// Ranks of modules whose path matches the key; PEFT takes the first that matches, and writes them sorted.
    #[serde(deserialize_with = "nullable")]
    pub rank_pattern: BTreeMap<String, usize>,
    /// α of modules whose path matches the key.
    #[serde(deserialize_with = "nullable")]
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Modules that are trained and saved whole.
    pub modules_to_save: Option<Vec<String>>,
    /// Tokens whose rows in the embedding or the head are trained by themselves.
    pub trainable_token_indices: Option<TokenIndices>,
    /// Embedding and head that share a table must not be given different trained rows.
    #[serde(deserialize_with = "nullable")]
    pub ensure_weight_tying: bool,
    /// Only these blocks are adapted (one index or a list in the file).
    #[serde(deserialize_with = "one_or_many")]
    pub layers_to_transform: Option<Vec<usize>>,
    /// Names of the list of blocks (one or a list in the file).
    #[serde(deserialize_with = "one_or_many")]
    pub layers_pattern: Option<Vec<String>>,
    /// The base's weights are stored transposed (GPT-2's Conv1D).
    pub fan_in_fan_out: bool,
    /// True in every saved adapter.
    pub inference_mode: bool,
    /// All other fields, as they were read; not written.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        AdapterConfig {
            peft_type: "LORA".to_owned(),
            task_type: None,
            base_model_name_or_path: None,
            revision: None,
            r: 8,
            lora_alpha: 8.0,
            lora_dropout: 0.0,
            target_modules: None,
            exclude_modules: None,
            bias: "none".to_owned(),
            use_rslora: false,
            use_dora: false,
            init_lora_weights: InitLoraWeights::Flag(true),
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            modules_to_save: None,
            trainable_token_indices: None,
            ensure_weight_tying: false,
            layers_to_transform: None,
            layers_pattern: None,
            fan_in_fan_out: false,
            inference_mode: false,
            extra: Map::new(),
        }
    }
}

fn nullable<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

fn one_or_many<'de, D: Deserializer<'de>, T: Deserialize<'de>>(d: D) -> Result<Option<Vec<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }
    Ok(Option::deserialize(d)?.map(|value| match value {
        OneOrMany::One(one) => vec![one],
        OneOrMany::Many(many) => many,
    }))
}

/// PEFT fields that change what an adapter computes and aren't implemented, when they are on.
const REFUSED: &[&str] = &[
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "use_bdlora",
    "use_qalora",
    "velora_config",
];

impl AdapterConfig {
    /// Reads the value of an adapter_config.json; `path` names it in errors.
    ///
    /// # Errors
    /// When a field is of the wrong type or asks for something that isn't implemented; each names the field.
    pub fn from_value(value: Value, path: &Path) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| Error::damaged(path, "it is not a JSON object"))?;
        match map.get("peft_type") {
            Some(Value::String(kind)) if kind == "LORA" => {}
            None => {
                return Err(Error::field(
                    path,
                    "peft_type",
                    "is missing; is this an adapter_config.json of PEFT?",
                ));
            }
            Some(other) => {
                let detail = format!("is {other}; only \"LORA\" adapters are supported");
                return Err(Error::field(path, "peft_type", detail));
            }
        }
        for name in REFUSED {
            if let Some(value) = map.get(*name).filter(|v| !is_off(v)) {
                let detail = format!("is {value}, which is not supported");
                return Err(Error::field(path, name, detail));
            }
        }
        for name in ["r", "lora_alpha"] {
            if !map.contains_key(name) {
                return Err(Error::field(path, name, "is missing"));
            }
        }
        if let Some(value) = map.get("trainable_token_indices").filter(|v| !v.is_null())
            && TokenIndices::deserialize(value).is_err()
        {
            let detail = format!("is {value}; it must be a list of token ids, or such lists by module");
            return Err(Error::field(path, "trainable_token_indices", detail));
        }
        let mut config: AdapterConfig = serde_json::from_value(value)
            .map_err(|e| Error::damaged(path, format!("a field is not as PEFT writes it: {e}")))?;
        // Rows of no module: nothing is asked for.
        let none = |t: &TokenIndices| matches!(t, TokenIndices::ByModule(modules) if modules.is_empty());
        config.trainable_token_indices = config.trainable_token_indices.filter(|t| !none(t));
        config.check(path)?;
        Ok(config)
    }

    fn check(&self, path: &Path) -> Result<()> {
        let field = |name: &str, detail: String| Err(Error::field(path, name, detail));
        let ranks =
            std::iter::once(("r", &self.r)).chain(self.rank_pattern.values().map(|r| ("rank_pattern", r)));
        for (name, &r) in ranks {
            if r == 0 || r > 1 << 20 {
                return field(name, format!("holds the rank {r}; it must be from 1 to 2^20"));
            }
        }
        let alphas = self.alpha_pattern.values().map(|a| ("alpha_pattern", a));
        for (name, alpha) in std::iter::once(("lora_alpha", &self.lora_alpha)).chain(alphas) {
            if !alpha.is_finite() {
                return field(name, format!("holds {alpha}; it must be a finite number"));
            }
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return field(
                "lora_dropout",
                format!("is {}; it must be at least 0 and below 1", self.lora_dropout),
            );
        }
        if self.ensure_weight_tying && self.changes_whole_tables() {
            return field(
                "ensure_weight_tying",
                "is true and embed_tokens or lm_head is in target_modules or modules_to_save: training the two as one is not \
                 supported"
                    .into(),
            );
        }
        if !["none", "all", "lora_only"].contains(&self.bias.as_str()) {
            return field("bias", format!("is `{}`; it must be none, all or lora_only", self.bias));
        }
        Ok(())
    }

    /// Whether embedding or head is adapted or trained whole, as PEFT finds out for `ensure_weight_tying`.
    fn changes_whole_tables(&self) -> bool {
        let is_table = |name: &String| {
            let last = name.rsplit('.').next().unwrap_or(name);
            ["embed_tokens", "lm_head"].contains(&last)
        };
        let adapted = match &self.target_modules {
            Some(ModuleNames::List(names)) => names.iter().any(is_table),
            Some(ModuleNames::Pattern(p)) => p.contains("embed_tokens") || p.contains("lm_head"),
            None => false,
        };
        adapted || self.modules_to_save.iter().flatten().any(is_table)
    }

    /// As PEFT saves it: the fields that all readers of PEFT adapters know, sorted, `inference_mode` true.
    pub fn to_value(&self) -> Value {
        let mut fields = BTreeMap::from([
            (
                "alpha_pattern",
                Value::Object(self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect()),
            ),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("bias", json!(self.bias)),
            ("fan_in_fan_out", json!(self.fan_in_fan_out)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(self.init_lora_weights)),
            ("layer_replication", Value::Null),
            ("layers_pattern", json!(self.layers_pattern)),
            ("layers_to_transform", json!(self.layers_to_transform)),
            ("loftq_config", json!({})),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("modules_to_save", json!(self.modules_to_save)),
            ("peft_type", json!(self.peft_type)),
            ("r", json!(self.r)),
            ("rank_pattern", json!(self.rank_pattern)),
            ("revision", json!(self.revision)),
            ("target_modules", json!(self.target_modules)),
            ("task_type", json!(self.task_type)),
            ("use_dora", json!(self.use_dora)),
            ("use_rslora", json!(self.use_rslora)),
        ]);
        if let Some(exclude) = &self.exclude_modules {
            // Old readers don't know this one; it only appears when it says something.
            fields.insert("exclude_modules", json!(exclude));
        }
        if let Some(indices) = &self.trainable_token_indices {
            fields.insert("trainable_token_indices", json!(indices));
        }
        if self.ensure_weight_tying {
            fields.insert("ensure_weight_tying", json!(true));
        }
        Value::Object(fields.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
    }
}

impl Serialize for AdapterConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

/// Whole numbers without ".0": PEFT declares α as an integer, and strict readers insist.
fn number(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 9e15 { json!(x as i64) } else { json!(x) }
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(on) => !on,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// Reads an adapter's folder: its configuration and all its tensors under the file's names (Llama's first A is
/// `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`), copied out of the file.
///
/// # Errors
/// When the folder or a file is missing or broken, or the adapter is of a kind that isn't supported.
pub fn read_adapter(dir: &Path) -> Result<(AdapterConfig, BTreeMap<String, RawTensor<'static>>)> {
    must_exist(dir)?;
    let config_path = dir.join(CONFIG);
    if !config_path.is_file() {
        let what = if dir.join("config.json").is_file() {
            "is a model, not an adapter (it has a config.json and no adapter_config.json)"
        } else {
            "is not an adapter: it has no adapter_config.json"
        };
        return Err(Error::unsupported(dir, what));
    }
    let bytes = std::fs::read(&config_path).map_err(|e| Error::io("read", &config_path, e))?;
    let value = serde_json::from_slice(&bytes)
        .map_err(|e| Error::damaged(&config_path, format!("it is not valid JSON: {e}")))?;
    let config = AdapterConfig::from_value(value, &config_path)?;
    let weights = dir.join(WEIGHTS);
    if !weights.is_file() {
        let what = if dir.join("adapter_model.bin").is_file() {
            "holds only adapter_model.bin, a pickle, which is not read because it can run any code; load it with PEFT \
             and save it again (save_pretrained writes adapter_model.safetensors)"
        } else {
            "has no adapter_model.safetensors"
        };
        return Err(Error::unsupported(dir, what));
    }
    let source = SafetensorsSource::open_file(&weights)?;
    let tensors = source
        .names()
        .into_iter()
        .map(|name| Ok((name.to_owned(), source.read(name)?.into_owned())))
        .collect::<Result<_>>()?;
    Ok((config, tensors))
}

/// Writes an adapter's folder (created if needed) so that PEFT, vLLM and llama.cpp's converter read it. Each file is
/// atomic; for the folder as a whole use [`replace_dir_atomically`](super::atomic::replace_dir_atomically).
///
/// # Errors
/// When a tensor's bytes don't fit its shape, or the disk refuses.
pub fn write_adapter(dir: &Path, config: &AdapterConfig, tensors: &[TensorView<'_>]) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|e| Error::io("create the folder", dir, e))?;
    write_safetensors(&dir.join(WEIGHTS), tensors)?;
    let text = format!("{:#}", config.to_value());
    write_atomically(&dir.join(CONFIG), |out| out.write_all(text.as_bytes()))
}
