//! Mistral 7B v0.1 (a window in every layer) to v0.3, Nemo (heads wider than hidden/heads), Ministral.

use crate::files::gguf::{Gguf, PLAIN};

use super::{Defaults, Family, llama_like, one_window, sliding_window};

pub(super) const MISTRAL: Family = Family {
    class: "MistralForCausalLM",
    model_type: "mistral",
    fields: &["sliding_window"],
    describe: |fields| {
        let defaults =
            Defaults { max_position_embeddings: 4096 * 32, kv_heads: Some(8), ..Defaults::default() };
        let mut spec = llama_like(fields, &defaults)?;
        let window = sliding_window(fields, Some(4096))?;
        one_window(&mut spec, fields, window)?;
        Ok(spec)
    },
    // llama.cpp has Mistral as Llama, and reads it back so: without windows.
    gguf: Some(Gguf { arch: "llama", interleaved: true, biases: true, ..PLAIN }),
};
