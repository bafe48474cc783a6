//! Products on a card that wait until their sum is needed.

use std::sync::Arc;

use crate::cuda::{Also, CudaBuffer, Factor, Finish, Sum, Tall};
use crate::error::{Error, Result};
use crate::kept::{Kept, Parts};
use crate::ops::on_card;
use crate::param::Gradients;
use crate::{DType, ParamId, Tensor, cuda};

/// a `[rows, k]` · b `[k, cols]`.
#[derive(Clone)]
pub(crate) struct Product {
    pub a: Arc<CudaBuffer>,
    pub b: Arc<CudaBuffer>,
    pub k: usize,
    pub rows: usize,
    pub cols: usize,
}

/// The gradient eᵀ·x of a parameter `[r, k]`, with e `[n, r]` and x `[n, k]`.
pub(crate) struct FactorGradient {
    pub id: ParamId,
    pub e: Arc<CudaBuffer>,
    pub x: Kept,
    pub n: usize,
    pub r: usize,
    pub k: usize,
}

/// Adds up such gradients, those of one x together: it is read once, or made from what it is computed from.
pub(super) fn factors(mut waiting: &[FactorGradient], grads: &mut Gradients) -> Result<()> {
    while let Some(first) = waiting.first() {
        let &FactorGradient { n, r, k, .. } = first;
        let device = first.e.device();
        let there = |what, t| on_card("lora", what, t, device, first.e.dtype());
        let made = first.x.parts().filter(|_| device.thin_makes(first.e.dtype(), n, r, k));
        let value = if made.is_none() { Some(first.x.get()?) } else { None };
        let x = match (made, &value) {
            (Some(Parts::Normed { x, .. } | Parts::Gated { gate: x, .. }), _) | (None, Some(x)) => x,
            (None, None) => return Err(Error::Invalid("a gradient of no input".into())),
        };
        let x = match device.plans_processor() {
            true => on_card("lora", "input", x, device, x.dtype())?,
            false => there("input", x)?,
        };
        let tall = Tall { x, n, k, r };
        let most = device.thin_at_once(tall);
        let alike = |f: &&FactorGradient| f.r == r && f.x.is_same(&first.x);
        let count = waiting.iter().take_while(alike).count().min(most).max(1);
        let (now, rest) = waiting.split_at(count);
        let any = |_: &_| CudaBuffer::any(device, DType::F32, r * k);
        let sums = now.iter().map(any).collect::<Result<Vec<_>>>()?;
        if most > 0 {
            let parts: Vec<_> = now.iter().zip(&sums).map(|(f, d)| Sum { e: &f.e, d }).collect();
            let also = match made {
                None => Also::Nothing,
                Some(Parts::Normed { rstd, weight, offset, .. }) => Also::Normed {
                    rstd: on_card("lora", "1/sigma", rstd, device, DType::F32)?,
                    w: weight.on_card("lora", device)?,
                    offset: *offset,
                },
                Some(Parts::Gated { up, activation, .. }) => {
                    Also::Gated { up: there("up", up)?, activation: *activation }
                }
            };
            device.thin_across(tall, &parts, false, &also)?;
        } else {
            let e = Factor::new(&first.e, n, r).t();
            device.product(Factor::new(&sums[0], r, k), e, Factor::new(x, n, k), 1.0, false)?;
        }
        for (f, sum) in now.iter().zip(sums) {
            grads.add(f.id, Tensor::on_cuda(sum, &[r, k]))?;
        }
        waiting = rest;
    }
    Ok(())
}

/// What the kernel takes at a time.
const TERMS: usize = cuda::TERMS;

/// A gradient of which some has arrived, and the rest.
pub(super) fn sum(before: Option<Tensor>, products: &[Product]) -> Result<Tensor> {
    let [first, ..] = products else { return Err(Error::Invalid("a gradient of no products".into())) };
    let shape = [first.rows, first.cols];
    if products.iter().any(|p| [p.rows, p.cols] != shape) {
        return Err(Error::Invalid("gradients of different shapes for one value".into()));
    }
    let mut there = before.is_some();
    let mut sum = match before {
        Some(before) => before,
        None => {
            let buffer = CudaBuffer::any(first.a.device(), first.a.dtype(), first.rows * first.cols)?;
            Tensor::on_cuda(buffer, &shape)
        }
    };
    // The largest first, each before its adapter's.
    let mut terms: Vec<[Factor<'_>; 2]> =
        products.iter().map(|p| [Factor::new(&p.a, p.rows, p.k), Factor::new(&p.b, p.k, p.cols)]).collect();
    terms.sort_by_key(|[a, _]| std::cmp::Reverse(a.columns()));
    let Some(buffer) = sum.cuda_mut()? else {
        return Err(Error::Invalid("a gradient on the CPU of a value on a card".into()));
    };
    buffer.pointer_mut();
    for terms in terms.chunks(TERMS) {
        let finish = Finish { added: there.then_some(&*buffer), ..Finish::default() };
        buffer.device().sum((buffer, shape), terms, finish)?;
        there = true;
    }
    Ok(sum)
}
