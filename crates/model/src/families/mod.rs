//! The families of models that are read. A family is a file here: from a configuration's fields to a [`DecoderSpec`], and
//! a line in [`FAMILIES`].

mod gemma;
mod granite;
mod llama;
mod mistral;
mod olmo;
mod phi;
mod qwen;
mod rope;
mod smollm;

use serde_json::Value;

use crate::files::gguf::{Entry, Gguf};
use crate::files::{Fields, Result};
use crate::spec::{AttentionSpec, DecoderSpec, LayerSpec, NormPlacement, NormSpec, QkNorm};
use loratune_engine::ops::{Activation, Logits};

/// A family of models.
#[derive(Debug)]
pub struct Family {
    /// transformers' class, as in config.json's `architectures`.
    pub class: &'static str,
    /// config.json's `model_type`.
    pub model_type: &'static str,
    /// Fields beside [`COMMON`] that [`Family::describe`] reads.
    pub(crate) fields: &'static [&'static str],
    /// From the fields to the description.
    pub(crate) describe: fn(&Fields<'_>) -> Result<DecoderSpec>,
    /// How llama.cpp writes it, if its GGUF files are read.
    pub(crate) gguf: Option<Gguf>,
}

impl PartialEq for Family {
    fn eq(&self, other: &Family) -> bool {
        self.class == other.class
    }
}

/// Every family.
pub static FAMILIES: &[Family] = &[
    llama::LLAMA,
    mistral::MISTRAL,
    gemma::GEMMA,
    gemma::GEMMA2,
    gemma::GEMMA3,
    qwen::QWEN2,
    qwen::QWEN3,
    phi::PHI3,
    smollm::SMOLLM3,
    olmo::OLMO2,
    granite::GRANITE,
];

/// Fields that every family reads.
pub(crate) const COMMON: &[&str] = &[
    "architectures",
    "attention_dropout",
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "head_dim",
    "hidden_act",
    "hidden_size",
    "initializer_range",
    "intermediate_size",
    "layer_types",
    "max_position_embeddings",
    "model_type",
    "num_attention_heads",
    "num_hidden_layers",
    "num_key_value_heads",
    "original_max_position_embeddings",
    "pad_token_id",
    "partial_rotary_factor",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
    "vocab_size",
];

/// Mixtures of experts, which are refused as such.
pub(crate) fn is_mixture_of_experts(class: &str, fields: &Fields<'_>) -> bool {
    let by_name = ["moe", "mixtral", "gptoss", "dbrx", "jetmoe", "deepseekv2", "deepseekv3", "llama4"];
    let class = class.to_ascii_lowercase();
    let experts = [
        "num_experts",
        "num_local_experts",
        "n_routed_experts",
        "moe_intermediate_size",
        "num_experts_per_tok",
    ];
    let counted = |name: &str| fields.map.get(name).and_then(Value::as_u64).is_some_and(|n| n > 1);
    by_name.iter().any(|name| class.contains(name)) || experts.iter().any(|name| counted(name))
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

/// A family's own defaults, for fields that a configuration leaves out.
struct Defaults {
    rms_norm_eps: f64,
    rope_theta: f64,
    tie_word_embeddings: bool,
    head_dim: Option<usize>,
    max_position_embeddings: usize,
    /// Key and value heads where the field is missing (null is as many as queries).
    kv_heads: Option<usize>,
    /// Context before it was stretched, where neither place says it.
    original_positions: Option<usize>,
    /// Rotary embeddings as Phi-3 has them: they may turn part of a head only, and scale by longrope only.
    phi_rope: bool,
    /// The padding token.
    pad: Option<u32>,
    /// Reads the rotary embeddings and the context length.
    ropes: rope::Reader,
}

impl Default for Defaults {
    /// Llama's.
    fn default() -> Defaults {
        Defaults {
            rms_norm_eps: 1e-6,
            rope_theta: 10_000.0,
            tie_word_embeddings: false,
            head_dim: None,
            max_position_embeddings: 2048,
            kv_heads: None,
            original_positions: None,
            phi_rope: false,
            pad: None,
            ropes: rope::one,
        }
    }
}

/// What Llama would be with these fields: the ground that families build on.
fn llama_like(fields: &Fields<'_>, defaults: &Defaults) -> Result<DecoderSpec> {
    let hidden_size = fields.size("hidden_size", most::HIDDEN)?;
    let num_heads = fields.size("num_attention_heads", most::HEADS)?;
    let head_dim = match fields.optional_size("head_dim", most::HEAD_DIM)?.or(defaults.head_dim) {
        Some(given) => given,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let detail = format!("({hidden_size}) is not a multiple of num_attention_heads ({num_heads})");
            return Err(fields.wrong("hidden_size", detail));
        }
    };
    if !head_dim.is_multiple_of(2) {
        let detail = format!("({head_dim}) is odd; rotary embeddings turn pairs of numbers");
        return Err(fields.wrong("head_dim", detail));
    }
    let layers = fields.size("num_hidden_layers", most::LAYERS)?;
    let positions = fields
        .optional_size("max_position_embeddings", most::POSITIONS)?
        .unwrap_or(defaults.max_position_embeddings);
    let vocab_size = fields.size("vocab_size", most::VOCABULARY)?;
    let (ropes, max_positions) = (defaults.ropes)(fields, head_dim, defaults, positions)?;
    let bias = fields.flag_or("attention_bias", false)?;
    let spec = DecoderSpec {
        vocab_size,
        hidden_size,
        intermediate_size: fields.size("intermediate_size", most::INTERMEDIATE)?,
        num_heads,
        num_kv_heads: match fields.map.contains_key("num_key_value_heads") {
            true => fields.optional_size("num_key_value_heads", most::HEADS)?.unwrap_or(num_heads),
            false => defaults.kv_heads.unwrap_or(num_heads),
        },
        head_dim,
        max_positions,
        tied_head: fields.flag_or("tie_word_embeddings", defaults.tie_word_embeddings)?,
        embedding_scale: 1.0,
        padding: padding(fields, defaults.pad, vocab_size)?,
        norm: NormSpec { eps: fields.positive("rms_norm_eps", defaults.rms_norm_eps)?, offset: 0.0 },
        norms: NormPlacement::Before,
        qk_norm: QkNorm::None,
        attention: AttentionSpec {
            scale: (head_dim as f64).powf(-0.5),
            softcap: None,
            qkv_bias: bias,
            output_bias: bias,
        },
        mlp_bias: fields.flag_or("mlp_bias", false)?,
        activation: activation(fields, "hidden_act", Activation::Silu)?,
        fused: false,
        residual_multiplier: 1.0,
        logits: Logits::default(),
        ropes,
        layers: vec![LayerSpec { window: None, rope: Some(0) }; layers],
        initializer_range: fields.positive("initializer_range", 0.02)?,
    };
    check_dimensions(&spec, fields)?;
    Ok(spec)
}

/// The padding token, whose embedding PyTorch does not train: the class's where the field is missing, none if it is null,
/// counted from the vocabulary's end if it is negative. None, too, if there is no such row, where transformers fails.
fn padding(fields: &Fields<'_>, default: Option<u32>, vocab_size: usize) -> Result<Option<u32>> {
    let id = match fields.map.get("pad_token_id") {
        None => default.map(i64::from),
        Some(Value::Null) => None,
        Some(value) => match value.as_array().and_then(|list| list.first()).unwrap_or(value).as_i64() {
            Some(id) if id < 0 => id.checked_add(vocab_size as i64),
            Some(id) => Some(id),
            None => return Err(fields.wrong("pad_token_id", format!("is {value}, which is no token id"))),
        },
    };
    Ok(id.and_then(|id| u32::try_from(id).ok()).filter(|&id| (id as usize) < vocab_size))
}

fn check_dimensions(spec: &DecoderSpec, fields: &Fields<'_>) -> Result<()> {
    let (heads, kv) = (spec.num_heads, spec.num_kv_heads);
    if !heads.is_multiple_of(kv) {
        let detail = format!("({heads}) is not a multiple of num_key_value_heads ({kv})");
        return Err(fields.wrong("num_attention_heads", detail));
    }
    // Every weight matrix, and all blocks together, must be countable.
    let product = |factors: &[usize]| factors.iter().try_fold(16usize, |n, &f| n.checked_mul(f));
    let countable = product(&[spec.vocab_size, spec.hidden_size])
        .and(product(&[spec.num_layers(), spec.hidden_size, spec.intermediate_size]))
        .and(product(&[spec.num_layers(), heads, spec.head_dim, spec.hidden_size]));
    if countable.is_none() {
        return Err(fields.wrong("hidden_size", "and the other sizes make weights too large to count"));
    }
    Ok(())
}

/// A size as a GGUF file counts: the sizes that are believed are far below u32's end.
fn count(n: usize) -> Entry {
    Entry::U32(u32::try_from(n).unwrap_or(u32::MAX))
}

/// The activation that a field names.
fn activation(fields: &Fields<'_>, name: &str, default: Activation) -> Result<Activation> {
    match fields.text(name)? {
        None => Ok(default),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
        Some("gelu") => Ok(Activation::Gelu),
        Some(other) => {
            let detail = format!("is `{other}`; `silu`, `gelu` and `gelu_pytorch_tanh` are implemented");
            Err(fields.wrong(name, detail))
        }
    }
}

/// Gives each layer its window: where `layer_types` says so, or where `slides` does for configurations without it.
fn set_windows(
    spec: &mut DecoderSpec,
    fields: &Fields<'_>,
    window: Option<usize>,
    slides: impl Fn(usize) -> bool,
) -> Result<()> {
    let types = fields.texts("layer_types")?;
    if let Some(types) = &types {
        if types.len() != spec.layers.len() {
            let detail = format!("has {} entries for {} layers", types.len(), spec.layers.len());
            return Err(fields.wrong("layer_types", detail));
        }
        let known = |t: &&String| !["full_attention", "sliding_attention"].contains(&t.as_str());
        if let Some(other) = types.iter().find(known) {
            let detail = format!("holds `{other}`; full_attention and sliding_attention are implemented");
            return Err(fields.wrong("layer_types", detail));
        }
    }
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        let sliding = types.as_ref().map_or_else(|| slides(i), |t| t[i] == "sliding_attention");
        if sliding && window.is_none() && types.is_some() {
            return Err(fields.wrong("sliding_window", "is missing, but layer_types asks for windows"));
        }
        layer.window = window.filter(|_| sliding);
    }
    Ok(())
}

/// A window's length.
fn sliding_window(fields: &Fields<'_>, default: Option<usize>) -> Result<Option<usize>> {
    match fields.map.get("sliding_window") {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(_) => fields.optional_size("sliding_window", most::POSITIONS),
    }
}

/// A cap of logits or scores: null is none.
fn softcap(fields: &Fields<'_>, name: &str, default: Option<f64>) -> Result<Option<f64>> {
    match fields.map.get(name) {
        None => Ok(default),
        Some(Value::Null) => Ok(None),
        Some(_) => fields.positive(name, 1.0).map(Some),
    }
}

/// One window for all layers, for classes that do not read `layer_types`: a file that says anything else by them is another
/// class's.
fn one_window(spec: &mut DecoderSpec, fields: &Fields<'_>, window: Option<usize>) -> Result<()> {
    set_windows(spec, fields, window, |_| true)?;
    if spec.layers.iter().any(|layer| layer.window != window) {
        let detail = "has layers without a window, which models of this class do not; transformers ignores the field here, \
                      so the model is perhaps of another class (Ministral)";
        return Err(fields.wrong("layer_types", detail));
    }
    Ok(())
}

/// Refuses `layer_types` other than full attention, for families without windows.
fn no_windows(spec: &mut DecoderSpec, fields: &Fields<'_>) -> Result<()> {
    set_windows(spec, fields, None, |_| false)
}
