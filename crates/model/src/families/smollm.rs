//! SmolLM 3: every fourth layer without rotary embeddings. (SmolLM 1 and 2 are Llamas.)

use crate::files::gguf::{Gguf, PLAIN};

use super::{Defaults, Family, llama_like, set_windows, sliding_window};

pub(super) const SMOLLM3: Family = Family {
    class: "SmolLM3ForCausalLM",
    model_type: "smollm3",
    fields: &[
        "attention_bias",
        "mlp_bias",
        "no_rope_layer_interval",
        "no_rope_layers",
        // A trace of how it was trained; nothing is computed by it.
        "pretraining_tp",
        "sliding_window",
        "use_sliding_window",
    ],
    describe: |fields| {
        let defaults = Defaults {
            rope_theta: 2_000_000.0,
            max_position_embeddings: 32_768,
            tie_word_embeddings: true,
            kv_heads: Some(4),
            pad: Some(128_004),
            ..Defaults::default()
        };
        let mut spec = llama_like(fields, &defaults)?;
        let interval = fields.count("no_rope_layer_interval")?.unwrap_or(4).max(1);
        let rotated: Vec<bool> = match fields.numbers("no_rope_layers")? {
            // In spite of the name, 1 is a layer that has them.
            Some(list) if list.len() == spec.layers.len() => list.iter().map(|&n| n != 0.0).collect(),
            Some(list) => {
                let detail = format!("has {} entries for {} layers", list.len(), spec.layers.len());
                return Err(fields.wrong("no_rope_layers", detail));
            }
            None => (0..spec.layers.len()).map(|layer| (layer + 1) % interval != 0).collect(),
        };
        let window = match fields.flag_or("use_sliding_window", false)? {
            true => sliding_window(fields, None)?,
            false => None,
        };
        // The layers that see everything are those with rotary embeddings.
        set_windows(&mut spec, fields, window, |layer| !rotated[layer])?;
        for (layer, &rotated) in spec.layers.iter_mut().zip(&rotated) {
            layer.rope = rotated.then_some(0);
        }
        Ok(spec)
    },
    gguf: Some(Gguf { arch: "smollm3", interleaved: true, ..PLAIN }),
};
