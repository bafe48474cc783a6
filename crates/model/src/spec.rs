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

impl DecoderSpec {
    /// Every tensor of the model, in the order of the forward pass.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let mut out = Vec::new();
        let mut push = |name: String, shape: &[usize]| out.push(TensorSpec { name, shape: shape.to_vec() });
        let (h, q, kv) =
            (self.hidden_size, self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim);
        push("model.embed_tokens.weight".into(), &[self.vocab_size, h]);
        for layer in 0..self.num_layers {
            let p = format!("model.layers.{layer}");
            push(format!("{p}.input_layernorm.weight"), &[h]);
            for (name, rows, cols, bias) in [
                ("self_attn.q_proj", q, h, self.attention_bias),
                ("self_attn.k_proj", kv, h, self.attention_bias),
                ("self_attn.v_proj", kv, h, self.attention_bias),
                ("self_attn.o_proj", h, q, self.attention_bias),
                ("mlp.gate_proj", self.intermediate_size, h, self.mlp_bias),
                ("mlp.up_proj", self.intermediate_size, h, self.mlp_bias),
                ("mlp.down_proj", h, self.intermediate_size, self.mlp_bias),
            ] {
                push(format!("{p}.{name}.weight"), &[rows, cols]);
                if bias {
                    push(format!("{p}.{name}.bias"), &[rows]);
                }
            }
            push(format!("{p}.post_attention_layernorm.weight"), &[h]);
        }
        push("model.norm.weight".into(), &[h]);
        if !self.tied_head {
            push("lm_head.weight".into(), &[self.vocab_size, h]);
        }
        out
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> usize {
        self.tensors().iter().map(|t| t.shape.iter().product::<usize>()).sum()
    }
}
