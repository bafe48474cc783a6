//! llama.cpp's tensor names to Hugging Face's.

/// What has to happen to a tensor's rows on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// Nothing.
    Keep,
    /// Undo the interleaving of each query head.
    UnpermuteQueries,
    /// Undo the interleaving of each key head.
    UnpermuteKeys,
}

/// Inside a block: llama.cpp's name, Hugging Face's, rows.
const BLOCK: &[(&str, &str, Rows)] = &[
    ("attn_norm", "input_layernorm", Rows::Keep),
    ("attn_q", "self_attn.q_proj", Rows::UnpermuteQueries),
    ("attn_k", "self_attn.k_proj", Rows::UnpermuteKeys),
    ("attn_v", "self_attn.v_proj", Rows::Keep),
    ("attn_output", "self_attn.o_proj", Rows::Keep),
    ("ffn_norm", "post_attention_layernorm", Rows::Keep),
    ("ffn_gate", "mlp.gate_proj", Rows::Keep),
    ("ffn_up", "mlp.up_proj", Rows::Keep),
    ("ffn_down", "mlp.down_proj", Rows::Keep),
];

/// Outside the blocks.
const TOP: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// The Hugging Face name of a Llama tensor; `None` for one that has no place in the decoder.
pub(crate) fn llama(name: &str) -> Option<(String, Rows)> {
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    if let Some((_, hf)) = TOP.iter().find(|(gguf, _)| *gguf == stem) {
        return Some((format!("{hf}.{kind}"), Rows::Keep));
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    // A canonical number, so that two names cannot mean the same tensor.
    let layer = layer.parse::<u32>().ok().filter(|n| n.to_string() == layer)?;
    let (_, hf, rows) = BLOCK.iter().find(|(gguf, _, _)| *gguf == part)?;
    Some((format!("model.layers.{layer}.{hf}.{kind}"), *rows))
}
