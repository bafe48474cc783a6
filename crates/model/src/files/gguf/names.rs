//! llama.cpp's tensor names and Hugging Face's, and what is done to a tensor between the two.

use crate::spec::DecoderSpec;

/// What has to happen to a tensor on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing.
    Keep,
    /// The rows of each query head are interleaved in the file.
    Queries,
    /// The rows of each key head are interleaved in the file.
    Keys,
    /// A norm's weight that llama.cpp has whole and the model less one.
    LessOne,
}

/// Outside the blocks.
const TOP: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// A tensor's Hugging Face name; `None` for one that has no place in the decoder.
pub(crate) fn hugging_face(name: &str, spec: &DecoderSpec, interleaved: bool) -> Option<(String, Change)> {
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    if let Some((_, hf)) = TOP.iter().find(|(gguf, _)| *gguf == stem) {
        return Some((format!("{hf}.{kind}"), change(hf, spec, interleaved)));
    }
    let (layer, part) = layer_of(stem, "blk.")?;
    let (_, hf) = block(spec).find(|(gguf, _)| *gguf == part)?;
    Some((format!("model.layers.{layer}.{hf}.{kind}"), change(hf, spec, interleaved)))
}

/// llama.cpp's name of a tensor; `None` for one that its files have no place for.
pub(crate) fn llama_cpp(name: &str, spec: &DecoderSpec, interleaved: bool) -> Option<(String, Change)> {
    let (stem, kind) = name.rsplit_once('.')?;
    if let Some((gguf, hf)) = TOP.iter().find(|(_, hf)| *hf == stem) {
        return Some((format!("{gguf}.{kind}"), change(hf, spec, interleaved)));
    }
    let (layer, part) = layer_of(stem, "model.layers.")?;
    let (gguf, hf) = block(spec).find(|(_, hf)| *hf == part)?;
    Some((format!("blk.{layer}.{gguf}.{kind}"), change(hf, spec, interleaved)))
}

fn change(hf: &str, spec: &DecoderSpec, interleaved: bool) -> Change {
    match hf {
        "self_attn.q_proj" if interleaved => Change::Queries,
        "self_attn.k_proj" if interleaved => Change::Keys,
        norm if norm.ends_with("norm") && spec.norm.offset == 1.0 => Change::LessOne,
        _ => Change::Keep,
    }
}

/// The layer and the rest of a name behind `prefix`.
fn layer_of<'a>(stem: &'a str, prefix: &str) -> Option<(u32, &'a str)> {
    let (layer, part) = stem.strip_prefix(prefix)?.split_once('.')?;
    // A canonical number, so that two names cannot mean the same tensor.
    let layer = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    Some((layer, part))
}

/// Inside a block: llama.cpp's names and the model's. A norm's name says where it stands; the model's own name of it follows from
/// that.
fn block(spec: &DecoderSpec) -> impl Iterator<Item = (&'static str, &'static str)> {
    let [before, after, mlp_before, mlp_after] = spec.norms.names();
    let norms = [
        ("attn_norm", before),
        ("post_attention_norm", after),
        ("ffn_norm", mlp_before),
        ("post_ffw_norm", mlp_after),
    ];
    let inputs: &[(&str, &str)] = match spec.fused {
        true => &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
        false => &[
            ("attn_q", "self_attn.q_proj"),
            ("attn_k", "self_attn.k_proj"),
            ("attn_v", "self_attn.v_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
        ],
    };
    let rest = [
        ("attn_q_norm", "self_attn.q_norm"),
        ("attn_k_norm", "self_attn.k_norm"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_down", "mlp.down_proj"),
    ];
    let norms = norms.into_iter().filter_map(|(gguf, hf)| Some((gguf, hf?)));
    norms.chain(inputs.iter().copied()).chain(rest)
}
