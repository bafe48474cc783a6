//! A block's forward pass: attention and the gated feed-forward layer around the residual stream.

use loratune_engine::ops::{self, KvCache};
use loratune_engine::{Tape, Var};

use super::{Block, Decoder, Matrix, Norm, Rotation};
use crate::batch::Batch;
use crate::error::Result;

/// What a block needs beside its input.
pub(super) struct Pass<'a, 'p> {
    pub decoder: &'a Decoder,
    pub tape: &'a mut Tape<'p>,
    pub batch: &'a Batch,
    /// Shown every stage's output.
    pub see: &'a mut dyn FnMut(&str, &Var),
}

impl Pass<'_, '_> {
    /// x `[tokens, hidden]` to the next block's.
    pub fn block(
        &mut self,
        block: &Block,
        x: Var,
        rotation: Option<&Rotation>,
        caches: Option<Vec<&mut KvCache>>,
    ) -> Result<Var> {
        let normed = self.norm(block.attention_norm.as_ref(), &x)?;
        let attended = self.attention(block, &normed, rotation, caches)?;
        drop(normed);
        let out = self.project(&block.attention_output, &attended)?;
        drop(attended);
        let x = self.join(&x, out, block.attention_output_norm.as_ref())?;

        let normed = self.norm(block.mlp_norm.as_ref(), &x)?;
        let m = self.decoder.spec.intermediate_size;
        let [gate, up] = self.inputs(&block.mlp_inputs, &normed, [m, m])?;
        drop(normed);
        let product = ops::gated(self.tape, &gate, &up, self.decoder.spec.activation)?;
        drop((gate, up));
        if self.tape.result_is_unread() && block.mlp_output_norm.is_none() {
            // The block's result is known from the first pass: the last product and the sum would be for nothing.
            let out = ops::linear_unread(self.tape, &product, block.mlp_output.layer())?;
            return Ok(ops::add_unread(self.tape, &x, &out, self.decoder.spec.residual_multiplier)?);
        }
        let out = self.project(&block.mlp_output, &product)?;
        drop(product);
        self.join(&x, out, block.mlp_output_norm.as_ref())
    }

    fn attention(
        &mut self,
        block: &Block,
        x: &Var,
        rotation: Option<&Rotation>,
        caches: Option<Vec<&mut KvCache>>,
    ) -> Result<Var> {
        let (spec, config) = (&self.decoder.spec, self.decoder.attention_config(&block.spec));
        let [q_width, kv_width] = spec.attention_widths();
        let [mut q, mut k, v] = self.inputs(&block.attention_inputs, x, [q_width, kv_width, kv_width])?;
        if let Some([q_norm, k_norm]) = &block.qk_norms {
            (q, k) = (self.norm(Some(q_norm), &q)?, self.norm(Some(k_norm), &k)?);
        }
        if let Some(Rotation { table, rows }) = rotation {
            q = ops::rope(self.tape, &q, table, rows, spec.head_dim)?;
            k = ops::rope(self.tape, &k, table, rows, spec.head_dim)?;
        }
        let documents = &self.batch.documents;
        Ok(match caches {
            None => ops::attention(self.tape, &q, &k, &v, documents, &config)?,
            Some(mut caches) => {
                let (q, k, v) = (q.value(), k.value(), v.value());
                self.tape.constant(ops::attention_cached(q, k, v, documents, &mut caches, &config)?)
            }
        })
    }

    /// x after a norm, or x itself.
    fn norm(&mut self, norm: Option<&Norm>, x: &Var) -> Result<Var> {
        let Some(norm) = norm else { return Ok(x.clone()) };
        let y = ops::rms_norm(self.tape, x, &norm.weight, self.decoder.norm_config())?;
        (self.see)(&norm.path, &y);
        Ok(y)
    }

    fn project(&mut self, matrix: &Matrix, x: &Var) -> Result<Var> {
        let y = matrix.forward(self.tape, x)?;
        (self.see)(&matrix.path, &y);
        Ok(y)
    }

    /// Several projections of x of these widths, by a matrix each or by one for all.
    fn inputs<const N: usize>(
        &mut self,
        matrices: &[Matrix],
        x: &Var,
        widths: [usize; N],
    ) -> Result<[Var; N]> {
        let parts = match matrices {
            [fused] => {
                let y = self.project(fused, x)?;
                ops::split_columns(self.tape, &y, &widths)?
            }
            each => {
                let layers: Vec<_> = each.iter().map(Matrix::layer).collect();
                let outputs = ops::linears(self.tape, x, &layers)?;
                each.iter().zip(&outputs).for_each(|(matrix, y)| (self.see)(&matrix.path, y));
                outputs
            }
        };
        parts.try_into().map_err(|parts: Vec<Var>| {
            crate::Error::Invalid(format!("a block has {} projections in place of {N}", parts.len()))
        })
    }

    /// The residual stream x and what a part of the block adds to it.
    fn join(&mut self, x: &Var, out: Var, norm: Option<&Norm>) -> Result<Var> {
        let out = self.norm(norm, &out)?;
        Ok(ops::add_scaled(self.tape, x, &out, self.decoder.spec.residual_multiplier)?)
    }
}
