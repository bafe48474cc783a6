//! Ai2's OLMo 2: norms after attention and feed-forward only, norms of all of q and of k.

use crate::files::gguf::{Gguf, HeadTensor, PLAIN};

use super::{Defaults, Family, llama_like, no_windows};
use crate::spec::{NormPlacement, QkNorm};

pub(super) const OLMO2: Family = Family {
    class: "Olmo2ForCausalLM",
    model_type: "olmo2",
    fields: &["attention_bias"],
    describe: |fields| {
        let defaults = Defaults { rms_norm_eps: 1e-5, pad: Some(1), ..Defaults::default() };
        let mut spec = llama_like(fields, &defaults)?;
        spec.norms = NormPlacement::After;
        spec.qk_norm = QkNorm::Full;
        no_windows(&mut spec, fields)?;
        Ok(spec)
    },
    gguf: Some(Gguf { arch: "olmo2", head: HeadTensor::Own, ..PLAIN }),
};
