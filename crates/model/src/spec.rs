//! The description of a decoder that the code in [`crate::decoder`] runs. A family of models is a function from its
//! configuration to this.

/// A pre-norm decoder with grouped-query attention and a gated feed-forward layer.
#[derive(Clone, Debug, PartialEq)]
pub struct DecoderSpec {
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub num_layers: usize,
    pub num_heads: usize,
    pub num_kv_heads: usize,
    pub head_dim: usize,
    pub norm_eps: f64,
    pub rope_theta: f64,
    /// The context length: longest position that the model was made for.
    pub max_positions: usize,
    /// The head is the embedding table.
    pub tied_head: bool,
    /// What embeddings are multiplied by (Gemma's √hidden; 1 elsewhere).
    pub embedding_scale: f64,
    /// Biases on q, k, v and o.
    pub attention_bias: bool,
    /// Biases on gate, up and down.
    pub mlp_bias: bool,
    /// Standard deviation of a random initialisation.
    pub initializer_range: f64,
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

pub(crate) const EMBEDDING: &str = "model.embed_tokens";
pub(crate) const HEAD: &str = "lm_head";

impl DecoderSpec {
    /// Every weight matrix in the order of the forward pass; the head is one even where it shares the embedding's.
    pub fn matrices(&self) -> Vec<MatrixSpec> {
        let table = |path: &str, kind| MatrixSpec {
            path: path.into(),
            kind,
            shape: [self.vocab_size, self.hidden_size],
            bias: false,
        };
        let mut out = vec![table(EMBEDDING, MatrixKind::Embedding)];
        let (h, m) = (self.hidden_size, self.intermediate_size);
        let (q, kv) = (self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        let (ab, mb) = (self.attention_bias, self.mlp_bias);
        for layer in 0..self.num_layers {
            out.extend(
                [
                    ("self_attn.q_proj", q, h, ab),
                    ("self_attn.k_proj", kv, h, ab),
                    ("self_attn.v_proj", kv, h, ab),
                    ("self_attn.o_proj", h, q, ab),
                    ("mlp.gate_proj", m, h, mb),
                    ("mlp.up_proj", m, h, mb),
                    ("mlp.down_proj", h, m, mb),
                ]
                .map(|(name, rows, cols, bias)| MatrixSpec {
                    path: format!("model.layers.{layer}.{name}"),
                    kind: MatrixKind::Linear,
                    shape: [rows, cols],
                    bias,
                }),
            );
        }
        out.push(table(HEAD, MatrixKind::Head));
        out
    }

    /// Every tensor of the model, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut out = Vec::new();
        let mut push = |name: String, shape: &[usize]| out.push(TensorSpec { name, shape: shape.to_vec() });
        for matrix in self.matrices() {
            let MatrixSpec { path, kind, shape, bias } = matrix;
            let layer = path.strip_suffix(".self_attn.q_proj").map(str::to_string);
            if let Some(layer) = layer {
                push(format!("{layer}.input_layernorm.weight"), &[self.hidden_size]);
            }
            if kind == MatrixKind::Head {
                push("model.norm.weight".into(), &[self.hidden_size]);
                if self.tied_head {
                    continue;
                }
            }
            push(format!("{path}.weight"), &shape);
            if bias {
                push(format!("{path}.bias"), &shape[..1]);
            }
            if let Some(layer) = path.strip_suffix(".mlp.down_proj") {
                push(format!("{layer}.post_attention_layernorm.weight"), &[self.hidden_size]);
            }
        }
        out
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum()
    }
}
