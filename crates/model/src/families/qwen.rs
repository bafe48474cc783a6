//! Qwen 2 and 2.5 (biases on q, k, v) and Qwen 3 (norms of q and k by head).

use super::{Defaults, Family, llama_like, set_windows, sliding_window};
use crate::files::gguf::{Gguf, PLAIN};
use crate::files::{Fields, Result};
use crate::spec::{DecoderSpec, QkNorm};

/// Qwen 2 has its biases whatever `attention_bias` says.
const FIELDS: &[&str] = &["attention_bias", "max_window_layers", "sliding_window", "use_sliding_window"];

pub(super) const QWEN2: Family = Family {
    class: "Qwen2ForCausalLM",
    model_type: "qwen2",
    fields: FIELDS,
    describe: |fields| {
        let mut spec = qwen(
            fields,
            Defaults { max_position_embeddings: 32_768, kv_heads: Some(32), ..Defaults::default() },
        )?;
        spec.attention.qkv_bias = true;
        spec.attention.output_bias = false;
        Ok(spec)
    },
    gguf: Some(Gguf { arch: "qwen2", ..PLAIN }),
};

pub(super) const QWEN3: Family = Family {
    class: "Qwen3ForCausalLM",
    model_type: "qwen3",
    fields: FIELDS,
    describe: |fields| {
        let defaults = Defaults {
            max_position_embeddings: 32_768,
            kv_heads: Some(32),
            head_dim: Some(128),
            ..Defaults::default()
        };
        let mut spec = qwen(fields, defaults)?;
        spec.qk_norm = QkNorm::Heads;
        Ok(spec)
    },
    gguf: Some(Gguf { arch: "qwen3", ..PLAIN }),
};

/// Windows, if `use_sliding_window`, from layer `max_window_layers` on.
fn qwen(fields: &Fields<'_>, defaults: Defaults) -> Result<DecoderSpec> {
    let mut spec = llama_like(fields, &defaults)?;
    let window = match fields.flag_or("use_sliding_window", false)? {
        true => sliding_window(fields, Some(4096))?,
        false => None,
    };
    let first = fields.count("max_window_layers")?.unwrap_or(28);
    set_windows(&mut spec, fields, window, |layer| layer >= first)?;
    Ok(spec)
}
