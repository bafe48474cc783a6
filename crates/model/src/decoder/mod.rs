//! The decoder: embedding, blocks of attention and gated feed-forward, final norm, head.

mod build;
mod cache;

use std::sync::{Arc, Mutex};

use loratune_engine::ops::{self, AttentionConfig, Lora, LossOutput, RopeTable};
use loratune_engine::{DType, Mode, Params, Tape, Tensor, Var, Weight};

pub use build::{Dtypes, RandomWeights, WeightSource};
pub use cache::Sequences;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::spec::DecoderSpec;

/// A linear layer at a module path such as `model.layers.0.self_attn.q_proj`.
#[derive(Clone, Debug)]
pub struct Linear {
    pub path: String,
    pub weight: Weight,
    pub bias: Option<Weight>,
    /// `[out, in]`
    pub shape: [usize; 2],
    pub adapter: Option<Lora>,
}

impl Linear {
    fn forward(&self, tape: &mut Tape<'_>, x: &Var) -> Result<Var> {
        Ok(ops::linear(tape, x, &self.weight, self.bias.as_ref(), self.adapter.as_ref())?)
    }
}

#[derive(Clone, Debug)]
struct Norm {
    path: String,
    weight: Weight,
}

#[derive(Clone, Debug)]
struct Block {
    input_norm: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_norm: Norm,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// A causal language model. Its trainable weights live in the [`Params`] that it was built with.
#[derive(Debug)]
pub struct Decoder {
    spec: DecoderSpec,
    /// Type of the activations.
    dtype: DType,
    embedding: Weight,
    blocks: Vec<Block>,
    norm: Norm,
    /// `None` when tied to the embedding.
    head: Option<Weight>,
    rope: Mutex<Arc<RopeTable>>,
}

/// Called with the name and value of every stage of a forward pass; for finding where a value went wrong.
type Probe<'a> = &'a mut dyn FnMut(&str, &Tensor);

impl Decoder {
    pub fn spec(&self) -> &DecoderSpec {
        &self.spec
    }

    /// Storage type of the activations.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    fn attention_config(&self) -> AttentionConfig {
        AttentionConfig {
            heads: self.spec.num_heads,
            kv_heads: self.spec.num_kv_heads,
            head_dim: self.spec.head_dim,
            scale: (self.spec.head_dim as f64).powf(-0.5),
            window: None,
        }
    }

    /// The rotation table for positions below `needed`, grown when a longer sequence comes.
    fn rope_table(&self, needed: usize) -> Result<Arc<RopeTable>> {
        if needed > self.spec.max_positions {
            return Err(Error::ContextLength { length: needed, max: self.spec.max_positions });
        }
        let mut table = self.rope.lock().unwrap_or_else(|e| e.into_inner());
        if table.positions() < needed {
            let positions = needed.next_power_of_two().max(512).min(self.spec.max_positions);
            let frequencies = RopeTable::default_frequencies(self.spec.head_dim, self.spec.rope_theta);
            *table = Arc::new(RopeTable::new(&frequencies, positions, 1.0));
        }
        Ok(table.clone())
    }

    fn head(&self) -> &Weight {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Every linear layer but the head, in the order of the forward pass.
    pub fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.blocks.iter().flat_map(|b| [&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down])
    }

    pub fn linears_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        self.blocks
            .iter_mut()
            .flat_map(|b| [&mut b.q, &mut b.k, &mut b.v, &mut b.o, &mut b.gate, &mut b.up, &mut b.down])
    }

    /// Every weight with its Hugging Face tensor name.
    pub fn weights(&self) -> Vec<(String, &Weight)> {
        let mut out = vec![("model.embed_tokens.weight".to_string(), &self.embedding)];
        for b in &self.blocks {
            for n in [&b.input_norm, &b.post_norm] {
                out.push((format!("{}.weight", n.path), &n.weight));
            }
        }
        for l in self.linears() {
            out.push((format!("{}.weight", l.path), &l.weight));
            out.extend(l.bias.as_ref().map(|b| (format!("{}.bias", l.path), b)));
        }
        out.push(("model.norm.weight".to_string(), &self.norm.weight));
        out.extend(self.head.as_ref().map(|h| ("lm_head.weight".to_string(), h)));
        out
    }

    /// The last hidden states after the final norm, `[tokens, hidden]`. With `caches`, the batch's documents continue
    /// those sequences.
    fn hidden(
        &self,
        tape: &mut Tape<'_>,
        batch: &Batch,
        mut sequences: Option<&mut Sequences>,
        mut probe: Option<Probe<'_>>,
    ) -> Result<Var> {
        let longest = batch.positions.iter().max().map_or(0, |&p| p as usize + 1);
        let rope = self.rope_table(longest)?;
        let mut see = |name: &str, v: &Var| {
            if let Some(p) = probe.as_mut() {
                p(name, v.value());
            }
        };
        let mut x = ops::embedding(tape, &batch.ids, &self.embedding, None, 1.0, self.dtype)?;
        see("model.embed_tokens", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            let caches = sequences.as_deref_mut().map(|s| s.layer(i));
            x = self.block(tape, block, x, batch, &rope, caches, &mut see)?;
        }
        let y = ops::rms_norm(tape, &x, &self.norm.weight, self.spec.norm_eps)?;
        see(&self.norm.path, &y);
        Ok(y)
    }

    #[allow(clippy::too_many_arguments)]
    fn block(
        &self,
        tape: &mut Tape<'_>,
        block: &Block,
        x: Var,
        batch: &Batch,
        rope: &Arc<RopeTable>,
        caches: Option<Vec<&mut ops::KvCache>>,
        see: &mut dyn FnMut(&str, &Var),
    ) -> Result<Var> {
        let (eps, head_dim, config) = (self.spec.norm_eps, self.spec.head_dim, self.attention_config());
        let normed = ops::rms_norm(tape, &x, &block.input_norm.weight, eps)?;
        see(&block.input_norm.path, &normed);
        let mut project = |tape: &mut Tape<'_>, linear: &Linear, x: &Var| -> Result<Var> {
            let y = linear.forward(tape, x)?;
            see(&linear.path, &y);
            Ok(y)
        };
        let q = project(tape, &block.q, &normed)?;
        let k = project(tape, &block.k, &normed)?;
        let v = project(tape, &block.v, &normed)?;
        drop(normed);
        let q = ops::rope(tape, &q, rope, &batch.positions, head_dim)?;
        let k = ops::rope(tape, &k, rope, &batch.positions, head_dim)?;
        let attended = match caches {
            None => ops::attention(tape, &q, &k, &v, &batch.documents, &config)?,
            Some(mut caches) => tape.constant(ops::attention_cached(
                q.value(),
                k.value(),
                v.value(),
                &batch.documents,
                &mut caches,
                &config,
            )?),
        };
        let o = project(tape, &block.o, &attended)?;
        let x = ops::add(tape, &x, &o)?;
        let normed = ops::rms_norm(tape, &x, &block.post_norm.weight, eps)?;
        let gate = project(tape, &block.gate, &normed)?;
        let up = project(tape, &block.up, &normed)?;
        drop(normed);
        let product = ops::silu_mul(tape, &gate, &up)?;
        let down = project(tape, &block.down, &product)?;
        Ok(ops::add(tape, &x, &down)?)
    }

    /// The sum of the trained tokens' losses, recorded on the tape.
    pub fn loss(&self, tape: &mut Tape<'_>, batch: &Batch) -> Result<LossOutput> {
        let x = self.hidden(tape, batch, None, None)?;
        Ok(ops::linear_cross_entropy(tape, &x, self.head(), None, &batch.targets)?)
    }

    /// Logits of every token, `[tokens, vocabulary]`, in the activations' compute type.
    pub fn logits(&self, params: &Params, batch: &Batch) -> Result<Tensor> {
        let mut tape = Tape::new(params, Mode::Infer);
        let x = self.hidden(&mut tape, batch, None, None)?;
        self.project_to_vocabulary(&mut tape, x.value().clone())
    }

    fn project_to_vocabulary(&self, tape: &mut Tape<'_>, hidden: Tensor) -> Result<Tensor> {
        // In the compute type: logits are compared and sampled from, and bf16 would tie close ones.
        let x = tape.constant(hidden.to_dtype(self.dtype.compute()));
        Ok(ops::linear(tape, &x, self.head(), None, None)?.value().clone())
    }

    /// Where the first non-finite value of a forward pass appears, by module path.
    pub fn first_non_finite(&self, params: &Params, batch: &Batch) -> Result<Option<String>> {
        let mut found = None;
        let mut probe = |name: &str, t: &Tensor| {
            if found.is_none() && !t.is_finite() {
                found = Some(name.to_string());
            }
        };
        let mut tape = Tape::new(params, Mode::Infer);
        self.hidden(&mut tape, batch, None, Some(&mut probe))?;
        Ok(found)
    }
}
