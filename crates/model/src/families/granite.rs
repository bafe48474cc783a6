//! IBM's Granite 3: multipliers of embeddings, attention scores, residuals and logits.

use super::{Defaults, Family, llama_like, no_windows};

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
    gguf: None,
};
