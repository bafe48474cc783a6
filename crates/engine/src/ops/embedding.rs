use std::sync::Arc;

use crate::error::Result;
use crate::tape::{Backward, Sink, Tape, Var};
use crate::{DType, ParamId, Real, Tensor, Weight, dispatch_real};

struct EmbeddingBackward {
    ids: Arc<[u32]>,
    table: ParamId,
    rows: usize,
}

impl Backward for EmbeddingBackward {
    fn name(&self) -> &'static str {
        "embedding"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let grad = dispatch_real!(dy.dtype(), R => {
            let d = dy.cols();
            let dys = dy.reals::<R>();
            let mut table = vec![R::of(0.0); self.rows * d];
            // In the order of the tokens, so that the sums of a repeated id have a fixed order.
            for (row, &id) in dys.chunks_exact(d).zip(self.ids.iter()) {
                let t = &mut table[id as usize * d..][..d];
                t.iter_mut().zip(row).for_each(|(t, &v)| *t += v);
            }
            Tensor::new(table, &[self.rows, d])
        });
        grads.add_param(self.table, grad)
    }
}

/// Rows of the table `[vocabulary, hidden]` by token id: `[tokens, hidden]` in type `dtype`.
///
/// The gradient of a trained table sums dy over the places where a row was used. Saved: the ids.
///
/// # Errors
/// If an id is not in the vocabulary.
pub fn embedding(
    tape: &mut Tape<'_>,
    ids: &Arc<[u32]>,
    table: &Weight,
    lora: Option<&super::Lora>,
    scale: f64,
    dtype: DType,
) -> Result<Var> {
    if lora.is_some() || scale != 1.0 {
        return Err(crate::Error::Invalid("adapters on the embedding are not there yet".into()));
    }
    let w = table.resolve(tape.params());
    let d = w.shape().get(1).copied().unwrap_or(0);
    let y = dispatch_real!(dtype, R => Tensor::from_reals(w.gather::<R>(ids)?, &[ids.len(), d], dtype));
    let id = table.param();
    Ok(match id {
        Some(table) => {
            tape.record(y, true, || EmbeddingBackward { ids: ids.clone(), table, rows: w.shape()[0] })
        }
        None => tape.constant(y),
    })
}
