//! IBM's Granite 3: multipliers of embeddings, attention scores, residuals and logits.

use serde_json::json;

use crate::files::gguf::{Entry, Gguf, PLAIN};

use super::{Defaults, Family, llama_like, no_windows};

/// llama.cpp's keys of the multipliers and the fields that they are.
const SCALES: &[(&str, &str)] = &[
    ("attention.scale", "attention_multiplier"),
    ("embedding_scale", "embedding_multiplier"),
    ("logit_scale", "logits_scaling"),
    ("residual_scale", "residual_multiplier"),
];

pub(super) const GRANITE: Family = Family {
    class: "GraniteForCausalLM",
    model_type: "granite",
    fields: &[
        "attention_bias",
        "attention_multiplier",
        "embedding_multiplier",
        "logits_scaling",
        "mlp_bias",
        "residual_multiplier",
    ],
    describe: |fields| {
        let mut spec = llama_like(fields, &Defaults::default())?;
        spec.embedding_scale = fields.positive("embedding_multiplier", 1.0)?;
        spec.attention.scale = fields.positive("attention_multiplier", 1.0)?;
        spec.residual_multiplier = fields.positive("residual_multiplier", 1.0)?;
        spec.logits.scale = 1.0 / fields.positive("logits_scaling", 1.0)?;
        no_windows(&mut spec, fields)?;
        Ok(spec)
    },
    gguf: Some(Gguf {
        arch: "granite",
        keys: &["attention.scale", "embedding_scale", "logit_scale", "residual_scale"],
        interleaved: true,
        biases: true,
        extend: |metadata, config| {
            for (key, field) in SCALES {
                config.insert((*field).into(), json!(metadata.number(key)?.unwrap_or(1.0)));
            }
            // 0 and nothing are what other models scale by.
            if metadata.number("attention.scale")?.unwrap_or(0.0) == 0.0 {
                let usual = (metadata.head_dim()? as f64).powf(-0.5);
                config.insert("attention_multiplier".into(), json!(usual));
            }
            Ok(())
        },
        write: |spec| {
            let values = [
                spec.attention.scale,
                spec.embedding_scale,
                1.0 / spec.logits.scale,
                spec.residual_multiplier,
            ];
            SCALES.iter().zip(values).map(|((key, _), x)| (*key, Entry::F32(x as f32))).collect()
        },
        ..PLAIN
    }),
};
