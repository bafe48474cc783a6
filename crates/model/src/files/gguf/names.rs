//! llama.cpp's tensor names to Hugging Face's.

use crate::spec::DecoderSpec;

/// What has to happen to a tensor on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    Keep,
    /// Undo the interleaving of each query head's rows.
    UnpermuteQueries,
    /// Undo the interleaving of each key head's rows.
    UnpermuteKeys,
    /// A norm's weight that llama.cpp has whole and the model less one.
    LessOne,
}

/// Outside the blocks.
const TOP: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// A tensor's Hugging Face name; `None` for one that has no place in the decoder.
pub(crate) fn hugging_face(name: &str, spec: &DecoderSpec, interleaved: bool) -> Option<(String, Change)> {
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let change = |hf: &str| match hf {
        "self_attn.q_proj" if interleaved => Change::UnpermuteQueries,
        "self_attn.k_proj" if interleaved => Change::UnpermuteKeys,
        norm if norm.ends_with("norm") && spec.norm.offset == 1.0 => Change::LessOne,
        _ => Change::Keep,
    };
    if let Some((_, hf)) = TOP.iter().find(|(gguf, _)| *gguf == stem) {
        return Some((format!("{hf}.{kind}"), change(hf)));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    // A canonical number, so that two names cannot mean the same tensor.
    let layer = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    let hf = block(part, spec)?;
    Some((format!("model.layers.{layer}.{hf}.{kind}"), change(hf)))
}

/// Inside a block. A norm's name says where it stands; the model's own name of it follows from that.
fn block(part: &str, spec: &DecoderSpec) -> Option<&'static str> {
    let [before, after, mlp_before, mlp_after] = spec.norms.names();
    match part {
        "attn_norm" => before,
        "post_attention_norm" => after,
        "ffn_norm" => mlp_before,
        "post_ffw_norm" => mlp_after,
        "attn_q_norm" => Some("self_attn.q_norm"),
        "attn_k_norm" => Some("self_attn.k_norm"),
        "attn_output" => Some("self_attn.o_proj"),
        "ffn_down" => Some("mlp.down_proj"),
        "attn_qkv" if spec.fused => Some("self_attn.qkv_proj"),
        "ffn_up" if spec.fused => Some("mlp.gate_up_proj"),
        "attn_q" if !spec.fused => Some("self_attn.q_proj"),
        "attn_k" if !spec.fused => Some("self_attn.k_proj"),
        "attn_v" if !spec.fused => Some("self_attn.v_proj"),
        "ffn_gate" if !spec.fused => Some("mlp.gate_proj"),
        "ffn_up" => Some("mlp.up_proj"),
        _ => None,
    }
}
