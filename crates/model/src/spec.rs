//! The description of a decoder that the code in [`crate::decoder`] runs. A family of models is a function from its
//! configuration to this (see [`crate::families`]).

use loratune_engine::ops::{Activation, Logits};

use crate::rope::RopeSpec;

/// A decoder of attention and gated feed-forward blocks around a residual stream.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_heads: usize,
    /// Divides `num_heads`.
    pub num_kv_heads: usize,
    pub head_dim: usize,
    /// The context length: longest sequence that the model was made for.
    pub max_positions: usize,
    /// The head is the embedding table.
    pub tied_head: bool,
    /// What embeddings are multiplied by (Gemma's √hidden, Granite's `embedding_multiplier`; 1 elsewhere).
    pub embedding_scale: f64,
    /// The padding token, whose embedding is not trained (PyTorch's `padding_idx`).
    pub padding: Option<u32>,
    pub norm: NormSpec,
    pub norms: NormPlacement,
    pub qk_norm: QkNorm,
    pub attention: AttentionSpec,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    pub activation: Activation,
    /// q, k, v are one matrix `qkv_proj`, gate and up one `gate_up_proj` (Phi).
    pub fused: bool,
    /// What a block's outputs are multiplied by before they join the residual stream (Granite).
    pub residual_multiplier: f64,
    /// What happens to the head's product (Gemma's cap, Granite's scale).
    pub logits: Logits,
    /// The rotary embeddings that layers refer to.
    pub ropes: Vec<RopeSpec>,
    pub layers: Vec<LayerSpec>,
    /// Standard deviation of a random initialisation.
    pub initializer_range: f64,
}

/// x / √(mean(x²) + eps) · (offset + weight).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NormSpec {
    pub eps: f64,
    /// 1 where weights are stored less one (Gemma), else 0.
    pub offset: f64,
}

/// Where a block's norms stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormPlacement {
    /// Before attention and before the feed-forward layer (Llama).
    Before,
    /// Before and after both (Gemma 2 and 3).
    Around,
    /// After both (OLMo 2).
    After,
}

impl NormPlacement {
    /// The norms' names: before attention, after it, before the feed-forward layer, after it.
    pub fn names(self) -> [Option<&'static str>; 4] {
        match self {
            NormPlacement::Before => [Some("input_layernorm"), None, Some("post_attention_layernorm"), None],
            NormPlacement::Around => [
                Some("input_layernorm"),
                Some("post_attention_layernorm"),
                Some("pre_feedforward_layernorm"),
                Some("post_feedforward_layernorm"),
            ],
            NormPlacement::After => {
                [None, Some("post_attention_layernorm"), None, Some("post_feedforward_layernorm")]
            }
        }
    }
}

/// Norms of queries and keys before they are rotated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    None,
    /// Of each head, weights `[head_dim]`.
    Heads,
    /// Of all heads together, weights `[heads · head_dim]`.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionSpec {
    /// Factor of q·k.
    pub scale: f64,
    /// Scores s become cap·tanh(s/cap) (Gemma 2).
    pub softcap: Option<f64>,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on o.
    pub output_bias: bool,
}

/// What differs from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerSpec {
    /// Keys that a query sees, itself included; all earlier ones if `None`.
    pub window: Option<usize>,
    /// Index into the model's rotary embeddings; none if `None` (SmolLM 3).
    pub rope: Option<usize>,
}

/// One tensor of a model: its Hugging Face name and its shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub shape: Vec<usize>,
}

/// What a weight matrix does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MatrixKind {
    /// A linear layer inside a block.
    Linear,
    /// The table of token embeddings.
    Embedding,
    /// The projection to the vocabulary.
    Head,
}

/// A weight matrix of a model at its module path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MatrixSpec {
    pub path: String,
    pub kind: MatrixKind,
    /// `[out, in]`; `[vocabulary, hidden]` for the embedding and the head.
    pub shape: [usize; 2],
    pub bias: bool,
}

/// Module path of the embedding.
pub const EMBEDDING: &str = "model.embed_tokens";
/// Module path of the head.
pub const HEAD: &str = "lm_head";

/// Name, rows, columns and bias of a block's linear layer.
pub(crate) type LinearShape = (&'static str, usize, usize, bool);

impl DecoderSpec {
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Width of all query heads, and of all key (or value) heads.
    pub fn attention_widths(&self) -> [usize; 2] {
        [self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim]
    }

    /// The projections of a block's input: q, k, v, or all in one.
    pub(crate) fn attention_inputs(&self) -> Vec<LinearShape> {
        let ([q, kv], h, bias) = (self.attention_widths(), self.hidden_size, self.attention.qkv_bias);
        match self.fused {
            true => vec![("self_attn.qkv_proj", q + 2 * kv, h, bias)],
            false => vec![
                ("self_attn.q_proj", q, h, bias),
                ("self_attn.k_proj", kv, h, bias),
                ("self_attn.v_proj", kv, h, bias),
            ],
        }
    }

    pub(crate) fn attention_output(&self) -> LinearShape {
        ("self_attn.o_proj", self.hidden_size, self.attention_widths()[0], self.attention.output_bias)
    }

    /// Gate and up, or both in one.
    pub(crate) fn mlp_inputs(&self) -> Vec<LinearShape> {
        let (h, m, bias) = (self.hidden_size, self.intermediate_size, self.mlp_bias);
        match self.fused {
            true => vec![("mlp.gate_up_proj", 2 * m, h, bias)],
            false => vec![("mlp.gate_proj", m, h, bias), ("mlp.up_proj", m, h, bias)],
        }
    }

    pub(crate) fn mlp_output(&self) -> LinearShape {
        ("mlp.down_proj", self.hidden_size, self.intermediate_size, self.mlp_bias)
    }

    /// Sizes of the weights of the norms on queries and keys.
    pub(crate) fn qk_norm_sizes(&self) -> Option<[usize; 2]> {
        match self.qk_norm {
            QkNorm::None => None,
            QkNorm::Heads => Some([self.head_dim; 2]),
            QkNorm::Full => Some(self.attention_widths()),
        }
    }

    fn block_matrices(&self, layer: usize) -> [Vec<MatrixSpec>; 2] {
        let matrix = |(name, rows, cols, bias): LinearShape| MatrixSpec {
            path: format!("model.layers.{layer}.{name}"),
            kind: MatrixKind::Linear,
            shape: [rows, cols],
            bias,
        };
        let attention = self.attention_inputs().into_iter().chain([self.attention_output()]);
        let mlp = self.mlp_inputs().into_iter().chain([self.mlp_output()]);
        [attention.map(matrix).collect(), mlp.map(matrix).collect()]
    }

    fn table(&self, path: &str, kind: MatrixKind) -> MatrixSpec {
        MatrixSpec { path: path.into(), kind, shape: [self.vocab_size, self.hidden_size], bias: false }
    }

    /// Every weight matrix in the order of the forward pass; the head is one even where it shares the embedding's.
    pub fn matrices(&self) -> Vec<MatrixSpec> {
        let mut out = vec![self.table(EMBEDDING, MatrixKind::Embedding)];
        out.extend((0..self.num_layers()).flat_map(|layer| self.block_matrices(layer)).flatten());
        out.push(self.table(HEAD, MatrixKind::Head));
        out
    }

    /// Every tensor of the model, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut out = Vec::new();
        let mut push = |name: String, shape: &[usize]| out.push(TensorSpec { name, shape: shape.to_vec() });
        let matrix = |push: &mut dyn FnMut(String, &[usize]), m: &MatrixSpec| {
            push(format!("{}.weight", m.path), &m.shape);
            if m.bias {
                push(format!("{}.bias", m.path), &m.shape[..1]);
            }
        };
        matrix(&mut push, &self.table(EMBEDDING, MatrixKind::Embedding));
        let h = [self.hidden_size];
        for layer in 0..self.num_layers() {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let [attention, mlp] = self.block_matrices(layer);
            let norms = self.norms.names();
            norms[0].into_iter().for_each(|n| push(name(n), &h));
            attention.iter().for_each(|m| matrix(&mut push, m));
            if let Some([q, k]) = self.qk_norm_sizes() {
                push(name("self_attn.q_norm"), &[q]);
                push(name("self_attn.k_norm"), &[k]);
            }
            norms[1].into_iter().chain(norms[2]).for_each(|n| push(name(n), &h));
            mlp.iter().for_each(|m| matrix(&mut push, m));
            norms[3].into_iter().for_each(|n| push(name(n), &h));
        }
        push("model.norm.weight".into(), &h);
        if !self.tied_head {
            matrix(&mut push, &self.table(HEAD, MatrixKind::Head));
        }
        out
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum()
    }
}
