//! Google's Gemma 1 to 3 (text): norm weights less one, scaled embeddings, GeGLU; from 2 on norms around both parts and
//! alternating windows, soft caps in 2, norms of q and k and two rotary embeddings in 3.

use loratune_engine::ops::Activation;
use serde_json::{Map, Value, json};

use super::{
    Defaults, Family, activation, count, llama_like, most, no_windows, rope, set_windows, sliding_window,
    softcap,
};
use crate::files::gguf::{Entry, Gguf, HeadTensor, Metadata, PLAIN};
use crate::files::{Fields, Result};
use crate::spec::{DecoderSpec, NormPlacement, QkNorm};

pub(super) const GEMMA: Family = Family {
    class: "GemmaForCausalLM",
    model_type: "gemma",
    fields: &["attention_bias", "hidden_activation", "use_bidirectional_attention"],
    describe: |fields| {
        let mut spec =
            gemma(fields, Defaults { max_position_embeddings: 8192, kv_heads: Some(16), ..defaults() })?;
        // The first configurations said `gelu` and were trained with its approximation; so transformers takes it.
        spec.activation = match fields.text("hidden_act")? {
            Some("gelu") => Activation::GeluTanh,
            _ => activation(fields, "hidden_act", Activation::GeluTanh)?,
        };
        if activation(fields, "hidden_activation", spec.activation)? != spec.activation {
            let detail = "is not what hidden_act says, which alone is read";
            return Err(fields.wrong("hidden_activation", detail));
        }
        no_windows(&mut spec, fields)?;
        Ok(spec)
    },
    gguf: Some(Gguf { arch: "gemma", extend: |_, config| gelu(config), head: HeadTensor::Shared, ..PLAIN }),
};

pub(super) const GEMMA2: Family = Family {
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    fields: &[
        "attention_bias",
        "attn_logit_softcapping",
        "cache_implementation",
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
        "sliding_window",
        "sliding_window_size",
        "use_bidirectional_attention",
    ],
    describe: |fields| {
        let mut spec = gemma_with_windows(fields, Defaults { max_position_embeddings: 8192, ..defaults() })?;
        spec.attention.softcap = softcap(fields, "attn_logit_softcapping", Some(50.0))?;
        spec.logits.softcap = softcap(fields, "final_logit_softcapping", Some(30.0))?;
        let window = sliding_window(fields, Some(4096))?;
        set_windows(&mut spec, fields, window, |layer| layer.is_multiple_of(2))?;
        Ok(spec)
    },
    gguf: Some(Gguf {
        arch: "gemma2",
        keys: &["attention.sliding_window", "attn_logit_softcapping", "final_logit_softcapping"],
        extend: |metadata, config| {
            gelu(config)?;
            // Of the models that Google released only the largest scales by hidden/heads.
            attention_scale(metadata, config, 46)?;
            let set =
                |config: &mut Map<String, Value>, name: &str, value: Value| config.insert(name.into(), value);
            set(config, "sliding_window", json!(metadata.whole("attention.sliding_window")?.unwrap_or(4096)));
            set(
                config,
                "attn_logit_softcapping",
                json!(metadata.number("attn_logit_softcapping")?.unwrap_or(50.0)),
            );
            set(
                config,
                "final_logit_softcapping",
                json!(metadata.number("final_logit_softcapping")?.unwrap_or(30.0)),
            );
            Ok(())
        },
        write: |spec| {
            // Without caps nothing is written, and llama.cpp caps all the same: reading back finds it.
            let cap = |name, cap: Option<f64>| cap.map(|cap| (name, Entry::F32(cap as f32)));
            let mut keys = vec![("attention.sliding_window", count(window(spec)))];
            keys.extend(cap("attn_logit_softcapping", spec.attention.softcap));
            keys.extend(cap("final_logit_softcapping", spec.logits.softcap));
            keys
        },
        head: HeadTensor::Shared,
        ..PLAIN
    }),
};

pub(super) const GEMMA3: Family = Family {
    class: "Gemma3ForCausalLM",
    model_type: "gemma3_text",
    fields: &[
        "attention_bias",
        "attn_logit_softcapping",
        "cache_implementation",
        "final_logit_softcapping",
        "hidden_activation",
        "query_pre_attn_scalar",
        "rope_local_base_freq",
        "sliding_window",
        "sliding_window_pattern",
        "use_bidirectional_attention",
    ],
    describe: |fields| {
        let defaults = Defaults { max_position_embeddings: 131_072, ropes: rope::by_kind, ..defaults() };
        let mut spec = gemma_with_windows(fields, defaults)?;
        spec.qk_norm = QkNorm::Heads;
        // transformers' Gemma 3 has the field and does not use it.
        if softcap(fields, "attn_logit_softcapping", None)?.is_some() {
            return Err(
                fields.wrong("attn_logit_softcapping", "is set; Gemma 3 has no cap of attention scores")
            );
        }
        spec.logits.softcap = softcap(fields, "final_logit_softcapping", None)?;
        let window = sliding_window(fields, Some(4096))?;
        // `_sliding_window_pattern` is what transformers 5 notes of it beside `layer_types`, and does not read.
        let pattern = fields.optional_size("sliding_window_pattern", most::LAYERS)?.unwrap_or(6);
        set_windows(&mut spec, fields, window, |layer| (layer + 1) % pattern != 0)?;
        // Layers with a window have a rotary embedding of their own.
        spec.layers.iter_mut().filter(|l| l.window.is_some()).for_each(|l| l.rope = Some(1));
        Ok(spec)
    },
    gguf: Some(Gguf {
        arch: "gemma3",
        keys: &[
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "final_logit_softcapping",
            "rope.freq_base_swa",
        ],
        extend: |metadata, config| {
            gelu(config)?;
            attention_scale(metadata, config, 62)?;
            let global = config.remove("rope_parameters").unwrap_or(Value::Null);
            let local = metadata.number("rope.freq_base_swa")?.unwrap_or(10_000.0);
            config.insert(
                "rope_parameters".into(),
                json!({
                    "full_attention": global,
                    "sliding_attention": {"rope_theta": local, "rope_type": "default"},
                }),
            );
            config.insert("rope_local_base_freq".into(), json!(local));
            let window = metadata.whole("attention.sliding_window")?.filter(|&n| n > 0);
            config.insert("sliding_window".into(), json!(window));
            if let Some(pattern) = metadata.whole("attention.sliding_window_pattern")? {
                config.insert("sliding_window_pattern".into(), json!(pattern));
            }
            config
                .insert("final_logit_softcapping".into(), json!(metadata.number("final_logit_softcapping")?));
            Ok(())
        },
        write: |spec| {
            let mut keys = vec![("attention.sliding_window", count(window(spec)))];
            if let Some(global) = spec.layers.iter().position(|l| l.window.is_none()) {
                keys.push(("attention.sliding_window_pattern", count(global + 1)));
            }
            if let Some(local) = spec.ropes.get(1) {
                keys.push(("rope.freq_base_swa", Entry::F32(local.theta as f32)));
            }
            keys.extend(spec.logits.softcap.map(|cap| ("final_logit_softcapping", Entry::F32(cap as f32))));
            keys
        },
        ..PLAIN
    }),
};

/// The window of the layers that have one.
fn window(spec: &DecoderSpec) -> usize {
    spec.layers.iter().find_map(|l| l.window).unwrap_or(0)
}

fn gelu(config: &mut Map<String, Value>) -> Result<()> {
    for name in ["hidden_act", "hidden_activation"] {
        config.insert(name.into(), json!("gelu_pytorch_tanh"));
    }
    Ok(())
}

/// `query_pre_attn_scalar`, which llama.cpp knows by the model's size: a head's width, but in the model of `largest`
/// layers hidden/heads.
fn attention_scale(metadata: &Metadata<'_>, config: &mut Map<String, Value>, largest: u64) -> Result<()> {
    let scalar = match metadata.required("block_count")? == largest {
        true => metadata.required("embedding_length")? / metadata.required("attention.head_count")?.max(1),
        false => metadata.head_dim()?,
    };
    config.insert("query_pre_attn_scalar".into(), json!(scalar));
    Ok(())
}

fn defaults() -> Defaults {
    Defaults {
        tie_word_embeddings: true,
        head_dim: Some(256),
        kv_heads: Some(4),
        pad: Some(0),
        ..Defaults::default()
    }
}

fn gemma(fields: &Fields<'_>, defaults: Defaults) -> Result<DecoderSpec> {
    if fields.flag_or("use_bidirectional_attention", false)? {
        return Err(
            fields.wrong("use_bidirectional_attention", "is true; only causal attention is implemented")
        );
    }
    let mut spec = llama_like(fields, &defaults)?;
    spec.norm.offset = 1.0;
    spec.embedding_scale = (spec.hidden_size as f64).sqrt();
    Ok(spec)
}

fn gemma_with_windows(fields: &Fields<'_>, defaults: Defaults) -> Result<DecoderSpec> {
    let mut spec = gemma(fields, defaults)?;
    spec.norms = NormPlacement::Around;
    spec.activation = activation(fields, "hidden_activation", Activation::GeluTanh)?;
    spec.attention.scale = fields.positive("query_pre_attn_scalar", 256.0)?.powf(-0.5);
    Ok(spec)
}
