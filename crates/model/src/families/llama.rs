//! Meta's Llama 1 to 3.2 and everything that shares its class: SmolLM, SmolLM 2, TinyLlama, Yi, DeepSeek-LLM …

use crate::files::gguf::{Gguf, PLAIN};

use super::{Defaults, Family, llama_like, no_windows};

pub(super) const LLAMA: Family = Family {
    class: "LlamaForCausalLM",
    model_type: "llama",
    // `pretraining_tp` says how it was trained; transformers no longer computes anything by it.
    fields: &["attention_bias", "mlp_bias", "pretraining_tp"],
    describe: |fields| {
        let mut spec = llama_like(fields, &Defaults::default())?;
        no_windows(&mut spec, fields)?;
        Ok(spec)
    },
    gguf: Some(Gguf { arch: "llama", interleaved: true, biases: true, ..PLAIN }),
};
