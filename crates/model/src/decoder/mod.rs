//! The decoder: embedding, blocks of attention and gated feed-forward, final norm, head.

mod build;
mod cache;

use std::sync::{Arc, Mutex};

use loratune_engine::ops::{
    self, Activation, AttentionConfig, Logits, Lora, LossOutput, RmsNorm, RopeTable, RowNorm,
};
use loratune_engine::{DType, FrozenWeight, Mode, Params, Tape, Tensor, Var, Weight};

pub use build::{Dtypes, RandomWeights, Trained, WeightSource};
pub use cache::Sequences;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::neftune::Neftune;
use crate::spec::{DecoderSpec, MatrixKind};

/// A weight matrix at a module path such as `model.layers.0.self_attn.q_proj`: what an adapter can be put on.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub path: String,
    pub kind: MatrixKind,
    pub weight: Weight,
    pub bias: Option<Weight>,
    /// `[out, in]`; `[vocabulary, hidden]` for the embedding and the head.
    pub shape: [usize; 2],
    /// Of an embedding, A is `[r, vocabulary]` and B `[hidden, r]`; else A is `[r, in]` and B `[out, r]`.
    pub adapter: Option<Lora>,
}

impl Matrix {
    /// ‖W + s·B·A‖ that DoRA's magnitudes belong to: by row, or by column of an embedding table.
    pub(crate) fn adapted_norms(&self, params: &Params, lora: &Lora) -> Result<Vec<f64>> {
        Ok(match self.kind {
            MatrixKind::Embedding => ops::column_norms(params, &self.weight, lora)?,
            _ => ops::row_norms(params, &self.weight, lora)?,
        })
    }

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
    q: Matrix,
    k: Matrix,
    v: Matrix,
    o: Matrix,
    post_norm: Norm,
    gate: Matrix,
    up: Matrix,
    down: Matrix,
}

/// A causal language model. Its trainable weights live in the [`Params`] that it was built with. A clone shares the frozen
/// weights, so that several adapters can stand on one base.
#[derive(Debug)]
pub struct Decoder {
    spec: DecoderSpec,
    /// Type of the activations.
    dtype: DType,
    embedding: Matrix,
    blocks: Vec<Block>,
    norm: Norm,
    /// Its weight is the embedding's when the two are tied.
    head: Matrix,
    /// Noise on the embeddings in training passes.
    neftune: Option<Neftune>,
    rope: Mutex<Arc<RopeTable>>,
}

impl Clone for Decoder {
    fn clone(&self) -> Decoder {
        Decoder {
            spec: self.spec.clone(),
            dtype: self.dtype,
            embedding: self.embedding.clone(),
            blocks: self.blocks.clone(),
            norm: self.norm.clone(),
            head: self.head.clone(),
            neftune: self.neftune,
            rope: Mutex::new(self.rope.lock().unwrap_or_else(|e| e.into_inner()).clone()),
        }
    }
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

    /// Storage type of the frozen weights; of the activations if nothing is frozen.
    pub fn storage(&self) -> DType {
        let frozen = self.matrices().find_map(|m| match &m.weight {
            Weight::Frozen(w) => Some(w.clone()),
            Weight::Param(_) => None,
        });
        frozen.map_or(self.dtype, |w| match &*w {
            FrozenWeight::Dense(t) => t.dtype(),
        })
    }

    fn attention_config(&self) -> AttentionConfig {
        AttentionConfig {
            heads: self.spec.num_heads,
            kv_heads: self.spec.num_kv_heads,
            head_dim: self.spec.head_dim,
            scale: (self.spec.head_dim as f64).powf(-0.5),
            window: None,
            softcap: None,
        }
    }

    fn norm_config(&self) -> RmsNorm {
        RmsNorm { eps: self.spec.norm_eps, offset: 0.0 }
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

    /// Every weight matrix in the order of the forward pass, the embedding first and the head last.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let blocks = self.blocks.iter().flat_map(|b| [&b.q, &b.k, &b.v, &b.o, &b.gate, &b.up, &b.down]);
        [&self.embedding].into_iter().chain(blocks).chain([&self.head])
    }

    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let blocks = self
            .blocks
            .iter_mut()
            .flat_map(|b| [&mut b.q, &mut b.k, &mut b.v, &mut b.o, &mut b.gate, &mut b.up, &mut b.down]);
        [&mut self.embedding].into_iter().chain(blocks).chain([&mut self.head])
    }

    /// Whether head and embedding, shared in the files, have become two: one is adapted, or trained by itself.
    pub fn is_untied(&self) -> bool {
        let own = self.spec.tied_head && self.head.weight.param() != self.embedding.weight.param();
        own || (self.spec.tied_head && (self.head.adapter.is_some() || self.embedding.adapter.is_some()))
    }

    /// Noise on the embeddings in training passes.
    pub fn set_neftune(&mut self, neftune: Option<Neftune>) {
        self.neftune = neftune;
    }

    /// Takes the row norms of DoRA from the present adapters once, for passes over parameters that no longer change:
    /// recomputing them for each generated token costs more than the token.
    pub fn fix_norms(&mut self, params: &Params) -> Result<()> {
        for matrix in self.matrices_mut() {
            let Some(lora) = &matrix.adapter else { continue };
            if lora.dora.is_none() {
                continue;
            }
            let norms = matrix.adapted_norms(params, lora)?;
            if let Some(dora) = matrix.adapter.as_mut().and_then(|l| l.dora.as_mut()) {
                dora.norm = RowNorm::Fixed(norms.into());
            }
        }
        Ok(())
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
        let table = &self.embedding;
        let scale = self.spec.embedding_scale;
        let mut x =
            ops::embedding(tape, &batch.ids, &table.weight, table.adapter.as_ref(), scale, self.dtype)?;
        if let Some(neftune) = &self.neftune {
            x = ops::uniform_noise(tape, &x, &neftune.magnitudes(batch, self.spec.hidden_size, scale))?;
        }
        see("model.embed_tokens", &x);
        for (i, block) in self.blocks.iter().enumerate() {
            let caches = sequences.as_deref_mut().map(|s| s.layer(i));
            x = self.block(tape, block, x, batch, &rope, caches, &mut see)?;
        }
        let y = ops::rms_norm(tape, &x, &self.norm.weight, self.norm_config())?;
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
        let (norm, head_dim, config) = (self.norm_config(), self.spec.head_dim, self.attention_config());
        let normed = ops::rms_norm(tape, &x, &block.input_norm.weight, norm)?;
        see(&block.input_norm.path, &normed);
        let mut project = |tape: &mut Tape<'_>, linear: &Matrix, x: &Var| -> Result<Var> {
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
        let normed = ops::rms_norm(tape, &x, &block.post_norm.weight, norm)?;
        let gate = project(tape, &block.gate, &normed)?;
        let up = project(tape, &block.up, &normed)?;
        drop(normed);
        let product = ops::gated(tape, &gate, &up, Activation::Silu)?;
        let down = project(tape, &block.down, &product)?;
        Ok(ops::add(tape, &x, &down)?)
    }

    /// The sum of the trained tokens' losses, recorded on the tape.
    pub fn loss(&self, tape: &mut Tape<'_>, batch: &Batch) -> Result<LossOutput> {
        let x = self.hidden(tape, batch, None, None)?;
        Ok(ops::linear_cross_entropy(
            tape,
            &x,
            &self.head.weight,
            self.head.adapter.as_ref(),
            &batch.targets,
            Logits::default(),
        )?)
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
        Ok(self.head.forward(tape, &x)?.value().clone())
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
