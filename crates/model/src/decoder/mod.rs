//! The decoder: embedding, blocks of attention and gated feed-forward, final norm, head.

mod block;
mod build;
mod cache;
mod device;
mod rotation;

use std::sync::Arc;

use loratune_engine::ops::{
    self, AttentionConfig, Lora, LossOutput, RmsNorm, RowNorm, TableAdapter, Targets, TrainedRows,
};
use loratune_engine::{Checkpointing, DType, FrozenWeight, Mode, Params, Tape, Tensor, Var, Weight};

use block::Pass;
pub use build::{Dtypes, RandomWeights, Trained, WeightSource};
pub use cache::Sequences;
use rotation::{Rotation, Tables};

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::neftune::Neftune;
use crate::spec::{DecoderSpec, LayerSpec, MatrixKind};

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
    /// Rows of the embedding or the head that are trained by themselves and stand in the place of the weight's. A tied head
    /// has the embedding's.
    pub rows: Option<TrainedRows>,
}

impl Matrix {
    /// ‖W + s·B·A‖ that DoRA's magnitudes belong to: by row, or by column of an embedding table.
    pub(crate) fn adapted_norms(&self, params: &Params, lora: &Lora) -> Result<Vec<f64>> {
        Ok(match self.kind {
            MatrixKind::Embedding => ops::column_norms(params, &self.weight, lora)?,
            _ => ops::row_norms(params, &self.weight, lora)?,
        })
    }

    /// What is trained on the embedding or the head.
    fn table_adapter(&self) -> TableAdapter<'_> {
        TableAdapter { lora: self.adapter.as_ref(), rows: self.rows.as_ref() }
    }

    fn layer(&self) -> ops::Layer<'_> {
        ops::Layer { weight: &self.weight, bias: self.bias.as_ref(), lora: self.adapter.as_ref() }
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
    attention_norm: Option<Norm>,
    /// q, k and v, or all in one.
    attention_inputs: Vec<Matrix>,
    qk_norms: Option<[Norm; 2]>,
    attention_output: Matrix,
    attention_output_norm: Option<Norm>,
    mlp_norm: Option<Norm>,
    /// Gate and up, or both in one.
    mlp_inputs: Vec<Matrix>,
    mlp_output: Matrix,
    mlp_output_norm: Option<Norm>,
    spec: LayerSpec,
}

/// A block's part that has weights.
enum Part<'a> {
    Matrix(&'a mut Matrix),
    Norm(&'a mut Norm),
}

impl Block {
    /// Visits every part in the order in which a block is built.
    fn each(&mut self, visit: &mut dyn FnMut(Part<'_>) -> Result<()>) -> Result<()> {
        let norms = |norms: Option<&mut Norm>, visit: &mut dyn FnMut(Part<'_>) -> Result<()>| {
            norms.map_or(Ok(()), |n| visit(Part::Norm(n)))
        };
        norms(self.attention_norm.as_mut(), visit)?;
        self.attention_inputs.iter_mut().try_for_each(|m| visit(Part::Matrix(m)))?;
        if let Some([q, k]) = &mut self.qk_norms {
            visit(Part::Norm(q))?;
            visit(Part::Norm(k))?;
        }
        visit(Part::Matrix(&mut self.attention_output))?;
        norms(self.attention_output_norm.as_mut(), visit)?;
        norms(self.mlp_norm.as_mut(), visit)?;
        self.mlp_inputs.iter_mut().try_for_each(|m| visit(Part::Matrix(m)))?;
        visit(Part::Matrix(&mut self.mlp_output))?;
        norms(self.mlp_output_norm.as_mut(), visit)
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let attention = self.attention_inputs.iter().chain([&self.attention_output]);
        attention.chain(&self.mlp_inputs).chain([&self.mlp_output])
    }

    fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let attention = self.attention_inputs.iter_mut().chain([&mut self.attention_output]);
        attention.chain(&mut self.mlp_inputs).chain([&mut self.mlp_output])
    }
}

/// A causal language model. Its trainable weights live in the [`Params`] that it was built with. A clone shares the frozen
/// weights, so that several adapters can stand on one base.
#[derive(Clone, Debug)]
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
    label_smoothing: f64,
    /// What training passes keep of the blocks.
    checkpointing: Checkpointing,
    ropes: Tables,
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

    fn attention_config(&self, layer: &LayerSpec) -> AttentionConfig {
        AttentionConfig {
            heads: self.spec.num_heads,
            kv_heads: self.spec.num_kv_heads,
            head_dim: self.spec.head_dim,
            scale: self.spec.attention.scale,
            softcap: self.spec.attention.softcap,
            window: layer.window,
        }
    }

    /// What turns a pass's tokens, by rotary embedding.
    fn rotations(&self, batch: &Batch, sequences: Option<&Sequences>) -> Result<Vec<Rotation>> {
        let (longest, max) =
            (batch.positions.iter().max().map_or(0, |&p| p as usize + 1), self.spec.max_positions);
        if longest > max {
            return Err(Error::ContextLength { length: longest, max });
        }
        let lengths = sequences.map(Sequences::active_lengths);
        let ropes = self.spec.ropes.iter().enumerate();
        Ok(ropes.map(|(i, rope)| self.ropes.rotation(i, rope, batch, lengths.as_deref(), max)).collect())
    }

    /// Every weight matrix in the order of the forward pass, the embedding first and the head last.
    pub fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        let blocks = self.blocks.iter().flat_map(Block::matrices);
        [&self.embedding].into_iter().chain(blocks).chain([&self.head])
    }

    pub fn matrices_mut(&mut self) -> impl Iterator<Item = &mut Matrix> {
        let blocks = self.blocks.iter_mut().flat_map(Block::matrices_mut);
        [&mut self.embedding].into_iter().chain(blocks).chain([&mut self.head])
    }

    /// Whether head and embedding, shared in the files, have become two: one is adapted, or trained by itself, or has other
    /// trained rows.
    pub fn is_untied(&self) -> bool {
        let [head, embedding] = [&self.head, &self.embedding];
        let own = head.weight.param() != embedding.weight.param() || head.rows != embedding.rows;
        self.spec.tied_head && (own || head.adapter.is_some() || embedding.adapter.is_some())
    }

    /// Noise on the embeddings in training passes.
    pub fn set_neftune(&mut self, neftune: Option<Neftune>) {
        self.neftune = neftune;
    }

    /// ε of label smoothing in [`Decoder::loss`], training or not.
    pub fn set_label_smoothing(&mut self, share: f64) {
        self.label_smoothing = share;
    }

    /// Whether training passes keep only the inputs of the blocks, and where, and compute these again in the backward pass
    /// (gradient checkpointing): the same gradients with less memory and about a quarter more arithmetic.
    pub fn set_checkpointing(&mut self, checkpointing: Checkpointing) {
        self.checkpointing = checkpointing;
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
        let rotations = self.rotations(batch, sequences.as_deref())?;
        let mut see = |name: &str, v: &Var| {
            if let Some(p) = probe.as_mut() {
                p(name, v.value());
            }
        };
        let table = &self.embedding;
        let scale = self.spec.embedding_scale;
        let (adapter, padding) = (table.table_adapter(), self.spec.padding);
        let mut x = ops::embedding(tape, &batch.ids, &table.weight, adapter, scale, padding, self.dtype)?;
        if let Some(neftune) = &self.neftune {
            x = ops::uniform_noise(tape, &x, &neftune.magnitudes(batch, self.spec.hidden_size, scale))?;
        }
        see("model.embed_tokens", &x);
        if self.checkpointing != Checkpointing::None && tape.mode() != Mode::Infer && sequences.is_none() {
            let y = self.recomputed(tape, x, batch, &rotations)?;
            return Ok(ops::rms_norm(tape, &y, &self.norm.weight, self.norm_config())?);
        }
        for (i, block) in self.blocks.iter().enumerate() {
            let caches = sequences.as_deref_mut().map(|s| s.layer(i));
            let rotation = block.spec.rope.map(|r| &rotations[r]);
            let mut pass = Pass { decoder: self, tape, batch, see: &mut see };
            x = pass.block(block, x, rotation, caches)?;
            if let Some(sequences) = &mut sequences {
                sequences.taken(i);
            }
        }
        let y = ops::rms_norm(tape, &x, &self.norm.weight, self.norm_config())?;
        see(&self.norm.path, &y);
        Ok(y)
    }

    /// The blocks, each of which is computed again in the backward pass.
    fn recomputed(
        &self,
        tape: &mut Tape<'_>,
        mut x: Var,
        batch: &Batch,
        rotations: &[Rotation],
    ) -> Result<Var> {
        let shared = Arc::new((self.clone(), batch.clone()));
        for (i, block) in self.blocks.iter().enumerate() {
            let rotation = block.spec.rope.map(|r| rotations[r].clone());
            let shared = shared.clone();
            x = tape.checkpoint(&x, self.checkpointing == Checkpointing::Offload, move |tape, x| {
                let (decoder, batch) = &*shared;
                let mut pass = Pass { decoder, tape, batch, see: &mut |_, _| {} };
                pass.block(&decoder.blocks[i], x.clone(), rotation.as_ref(), None).map_err(|e| match e {
                    crate::Error::Engine(e) => e,
                    other => loratune_engine::Error::Invalid(other.to_string()),
                })
            })?;
        }
        Ok(x)
    }

    fn norm_config(&self) -> RmsNorm {
        RmsNorm { eps: self.spec.norm.eps, offset: self.spec.norm.offset }
    }

    /// The sum of the trained tokens' losses, recorded on the tape.
    pub fn loss(&self, tape: &mut Tape<'_>, batch: &Batch) -> Result<LossOutput> {
        let x = self.last_hidden(tape, batch)?;
        self.loss_of(tape, &x, batch)
    }

    /// The hidden states that [`loss_of`](Decoder::loss_of) takes: all of a training pass but the head.
    pub fn last_hidden(&self, tape: &mut Tape<'_>, batch: &Batch) -> Result<Var> {
        self.hidden(tape, batch, None, None)
    }

    /// The loss of these hidden states.
    pub fn loss_of(&self, tape: &mut Tape<'_>, x: &Var, batch: &Batch) -> Result<LossOutput> {
        Ok(ops::linear_cross_entropy(
            tape,
            x,
            &self.head.weight,
            self.head.table_adapter(),
            Targets { ids: &batch.targets, smoothing: self.label_smoothing },
            self.spec.logits,
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
        let (x, head) = (hidden.to_dtype(self.dtype.compute()), &self.head);
        let outputs = match &head.rows {
            Some(_) => ops::head_outputs(tape.params(), &x, &head.weight, head.table_adapter())?,
            None => head.forward(tape, &tape.constant(x))?.value().clone(),
        };
        Ok(self.spec.logits.apply(outputs)?)
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
