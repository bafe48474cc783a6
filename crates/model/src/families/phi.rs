//! Microsoft's Phi-3, 3.5 and 4: fused projections, windows, rotary embeddings of part of a head, longrope.

use serde_json::{Value, json};

use super::{Defaults, Family, count, llama_like, one_window, sliding_window};
use crate::files::gguf::{Gguf, PLAIN};
use crate::rope::RopeScaling;

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
            phi_rope: true,
            pad: Some(32_000),
            original_positions: Some(4096),
            ..Defaults::default()
        };
        let mut spec = llama_like(fields, &defaults)?;
        spec.fused = true;
        let window = sliding_window(fields, None)?;
        one_window(&mut spec, fields, window)?;
        Ok(spec)
    },
    gguf: Some(Gguf {
        arch: "phi3",
        keys: &["attention.sliding_window"],
        extend: |metadata, config| {
            // 0 is none.
            let window = metadata.whole("attention.sliding_window")?.filter(|&n| n > 0);
            config.insert("sliding_window".into(), json!(window));
            // llama.cpp writes it for every Phi-3, stretched or not.
            if let Some(original) = metadata.whole("rope.scaling.original_context_length")? {
                config.insert("original_max_position_embeddings".into(), json!(original));
            }
            // transformers 4's Phi-3 wants these three fields and no other.
            if let Some(scaling) = config.get_mut("rope_scaling").and_then(Value::as_object_mut) {
                scaling.remove("original_max_position_embeddings");
                if let Some(kind) = scaling.remove("rope_type") {
                    scaling.insert("type".into(), kind);
                }
            }
            Ok(())
        },
        write: |spec| {
            // 0 is none.
            let window = spec.layers.first().and_then(|l| l.window).unwrap_or(0);
            let mut keys = vec![("attention.sliding_window", count(window))];
            // llama.cpp wants it of every Phi-3; longrope has said it already.
            if spec.ropes.first().is_none_or(|r| r.scaling == RopeScaling::None) {
                keys.push(("rope.scaling.original_context_length", count(spec.max_positions)));
            }
            keys
        },
        ..PLAIN
    }),
};
