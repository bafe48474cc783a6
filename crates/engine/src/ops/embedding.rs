pub(super) mod cuda;

use std::sync::Arc;

use rayon::prelude::*;

use super::linear::{Factors, Scale, scale_gradient};
use super::{Lora, TableAdapter, TrainedRows};
use crate::error::{Error, Result};
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Tape, Var};
use crate::{DType, FrozenWeight, Params, Real, Tensor, Weight, dispatch_real};

struct EmbeddingBackward {
    ids: Arc<[u32]>,
    table: Weight,
    lora: Option<Lora>,
    rows: Option<TrainedRows>,
    /// g and 1/norm, both `[hidden]`, with DoRA.
    dora: Option<[Tensor; 2]>,
    scale: f64,
    padding: Option<u32>,
}

impl Backward for EmbeddingBackward {
    fn name(&self) -> &'static str {
        "embedding"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        if let Some(there) = dy.cuda() {
            let Some(id) = self.table.param() else { return Ok(()) };
            let &[vocabulary, d] = grads.params.value(id).shape() else { return Ok(()) };
            let table = cuda::backward(there, &self.ids, [vocabulary, d], self.scale, self.padding)?;
            return grads.add_param(id, Tensor::on_cuda(table, &[vocabulary, d]));
        }
        dispatch_real!(dy.dtype(), R => self.run::<R>(dy, grads))
    }
}

impl EmbeddingBackward {
    fn run<R: Real>(self, mut dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let (n, d) = (dy.rows(), dy.cols());
        if self.scale != 1.0 {
            dy.scale_assign(self.scale);
        }
        let w = self.table.resolve(grads.params);
        let vocabulary = w.shape()[0];
        let mut dz = dy.reals::<R>().into_owned();
        if let Some(lora) = &self.lora {
            let f = lora.factors::<R>(grads.params, [d, vocabulary])?;
            let h = picked(&f, &self.ids);
            if let (Some(dora), Some([g, inverse_norm])) = (&lora.dora, &self.dora) {
                let mut u = w.gather::<R>(&self.ids)?;
                f.add_up(&h, n, &mut u);
                let mut dm = scale_gradient(&mut dz, &u, g.slice::<R>()?);
                dm.iter_mut().zip(inverse_norm.slice::<R>()?).for_each(|(d, &i)| *d *= i);
                grads.add_param(dora.magnitude, Tensor::new(dm, &[d]))?;
            }
            let mut db = vec![R::zero(); d * f.r];
            let dh = f.up_backward(&dz, &h, n, &mut db);
            grads.add_param(lora.b, Tensor::new(db, &[d, f.r]))?;
            grads.add_param(lora.a, scattered(&f, &self.ids, self.padding, &dh))?;
        }
        if let Some(rows) = &self.rows {
            let mut drows = vec![R::zero(); rows.ids().len() * d];
            for (row, &id) in dz.chunks_exact(d).zip(self.ids.iter()) {
                let Some(k) = rows.place(id).filter(|_| Some(id) != self.padding) else { continue };
                drows[k * d..][..d].iter_mut().zip(row).for_each(|(t, &v)| *t += v);
            }
            grads.add_param(rows.param(), Tensor::new(drows, &[rows.ids().len(), d]))?;
        }
        let Some(table) = self.table.param() else { return Ok(()) };
        let mut dtable = vec![R::zero(); vocabulary * d];
        // In the order of the tokens, so that the sums of a repeated id have a fixed order.
        let learns = |id: u32| Some(id) != self.padding;
        for (row, &id) in dz.chunks_exact(d).zip(self.ids.iter()).filter(|(_, id)| learns(**id)) {
            let t = &mut dtable[id as usize * d..][..d];
            t.iter_mut().zip(row).for_each(|(t, &v)| *t += v);
        }
        grads.add_param(table, Tensor::new(dtable, &[vocabulary, d]))
    }
}

/// h `[tokens, r]`: the columns of A `[r, vocabulary]` that the ids name. The ids are known to be in range.
fn picked<R: Real>(f: &Factors<'_, R>, ids: &[u32]) -> Vec<R> {
    let mut h = vec![R::zero(); ids.len() * f.r];
    h.par_chunks_mut(f.r.max(1)).zip(ids).for_each(|(h, &id)| {
        h.iter_mut().enumerate().for_each(|(k, h)| *h = f.a[k * f.cols + id as usize]);
    });
    h
}

/// dA `[r, vocabulary]`: dh `[tokens, r]` summed into the columns it came from, in the order of the tokens.
fn scattered<R: Real>(f: &Factors<'_, R>, ids: &[u32], padding: Option<u32>, dh: &[R]) -> Tensor {
    let mut da = vec![R::zero(); f.r * f.cols];
    da.par_chunks_mut(f.cols.max(1)).enumerate().for_each(|(k, da)| {
        let learning = ids.iter().enumerate().filter(|(_, id)| Some(**id) != padding);
        learning.for_each(|(i, &id)| da[id as usize] += dh[i * f.r + k]);
    });
    Tensor::new(da, &[f.r, f.cols])
}

/// Rows of the table E `[vocabulary, hidden]` by token id: `[tokens, hidden]` in type `dtype`, times `scale` (the
/// model's own: Gemma's √hidden, elsewhere 1).
///
/// With an adapter y = scale·u and u = E[id] + s·A[:, id]ᵀ·Bᵀ, with A `[r, vocabulary]`, B `[hidden, r]`; with DoRA
/// y = scale·g∘u and g = m / [`column_norms`](super::column_norms), m `[hidden]`. PEFT has no dropout here: the adapter's is
/// ignored, and no random key is taken for it.
///
/// With dz = scale·g∘dy: a trained table and A sum dz and dh = s·dz·B over the places where a row or column was used;
/// dB = s·dzᵀ·h with h = A[:, id]ᵀ; dm = scale·Σ dy∘u / norm, the norm being a constant. Saved: the ids; u and h are
/// looked up again. The row of `padding` (of E or, by column, of A) gets no gradient, as in PyTorch's embedding with a
/// `padding_idx`.
///
/// [`TrainedRows`] stand in the place of the table's: their gradient is the sum of dz over the places of each id, and nothing
/// is as large as the table.
///
/// # Errors
/// If an id is not in the vocabulary, shapes do not fit, the table is trained and has a DoRA, or trained rows meet a trained
/// table or an adapter.
pub fn embedding(
    tape: &mut Tape<'_>,
    ids: &Arc<[u32]>,
    table: &Weight,
    adapter: TableAdapter<'_>,
    scale: f64,
    padding: Option<u32>,
    dtype: DType,
) -> Result<Var> {
    let _span = profile::span("embedding", Pass::Forward);
    let w = table.resolve(tape.params());
    let (y, dora) = match w.card() {
        Some(there) => {
            cuda::check(adapter)?;
            let (vocabulary, d) = w.matrix("embedding")?;
            (
                Tensor::on_cuda(cuda::forward(there, ids, [vocabulary, d], scale, dtype)?, &[ids.len(), d]),
                None,
            )
        }
        None => {
            dispatch_real!(dtype, R => forward::<R>(tape.params(), ids, table, &w, adapter, scale, dtype)?)
        }
    };
    let TableAdapter { lora, rows } = adapter;
    if lora.is_none() && rows.is_none() && table.param().is_none() {
        return Ok(tape.constant(y));
    }
    Ok(tape.record(y, true, || EmbeddingBackward {
        ids: ids.clone(),
        table: table.clone(),
        lora: lora.cloned(),
        rows: rows.cloned(),
        dora,
        scale,
        padding,
    }))
}

fn forward<R: Real>(
    params: &Params,
    ids: &[u32],
    table: &Weight,
    w: &FrozenWeight,
    adapter: TableAdapter<'_>,
    scale: f64,
    dtype: DType,
) -> Result<(Tensor, Option<[Tensor; 2]>)> {
    let (vocabulary, d) = w.matrix("embedding")?;
    let mut u = w.gather::<R>(ids)?;
    let mut dora = None;
    if let Some(rows) = adapter.rows {
        if adapter.lora.is_some() {
            return Err(Error::Invalid("embedding: it has an adapter and trained rows at once".into()));
        }
        let values = rows.values::<R>("embedding", params, table, [vocabulary, d])?;
        for (u, &id) in u.chunks_exact_mut(d.max(1)).zip(ids) {
            if let Some(k) = rows.place(id) {
                u.copy_from_slice(&values[k * d..][..d]);
            }
        }
    }
    if let Some(lora) = adapter.lora {
        let f = lora.factors::<R>(params, [d, vocabulary])?;
        f.add_up(&picked(&f, ids), ids.len(), &mut u);
        if let Some(magnitudes) = &lora.dora {
            magnitudes.check_frozen("embedding", table)?;
            let cross = if magnitudes.wants_cross() { w.times(f.a, f.r)? } else { Vec::new() };
            dora = Some(magnitudes.scale(params, &f, &cross)?);
        }
    }
    let s = R::of(scale);
    let y = Tensor::from_rows(u, [ids.len(), d], dtype, |_, y| match &dora {
        Some(Scale { g, .. }) => y.iter_mut().zip(g).for_each(|(y, &g)| *y *= g * s),
        None if scale != 1.0 => y.iter_mut().for_each(|y| *y *= s),
        None => {}
    });
    let dora = dora.map(|Scale { g, inverse_norm }| [Tensor::new(g, &[d]), Tensor::new(inverse_norm, &[d])]);
    Ok((y, dora))
}
