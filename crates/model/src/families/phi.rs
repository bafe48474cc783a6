//! Microsoft's Phi-3, 3.5 and 4: fused projections, windows, rotary embeddings of part of a head, longrope.

use serde_json::json;

use super::{Defaults, Family, llama_like, set_windows, sliding_window};
use crate::files::gguf::Gguf;

pub(super) const PHI3: Family = Family {
    class: "Phi3ForCausalLM",
    model_type: "phi3",
    fields: &["embd_pdrop", "resid_pdrop", "sliding_window"],
    describe: |fields| {
        for name in ["embd_pdrop", "resid_pdrop"] {
            fields.only(name, 0.0)?;
        }
        let defaults = Defaults {
            rms_norm_eps: 1e-5,
            max_position_embeddings: 4096,
            partial_rope: true,
            original_positions: Some(4096),
            ..Defaults::default()
        };
        let mut spec = llama_like(fields, &defaults)?;
        spec.fused = true;
        // The field is there and means nothing: no Phi-3 has biases.
        spec.attention.qkv_bias = false;
        spec.attention.output_bias = false;
        spec.mlp_bias = false;
        let window = sliding_window(fields, None)?;
        set_windows(&mut spec, fields, window, |_| true)?;
        Ok(spec)
    },
    gguf: Some(Gguf {
        arch: "phi3",
        keys: &["attention.sliding_window"],
        interleaved: false,
        extend: |metadata, config| {
            // 0 is none.
            let window = metadata.whole("attention.sliding_window")?.filter(|&n| n > 0);
            config.insert("sliding_window".into(), json!(window));
            // llama.cpp writes it for every Phi-3, stretched or not.
            if let Some(original) = metadata.whole("rope.scaling.original_context_length")? {
                config.insert("original_max_position_embeddings".into(), json!(original));
            }
            Ok(())
        },
    }),
};
