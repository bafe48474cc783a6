//! Products on a card that wait until their sum is needed.

use std::sync::Arc;

use crate::cuda::{CudaBuffer, Factor, Finish};
use crate::error::{Error, Result};
use crate::{Tensor, cuda};

/// a `[rows, k]` · b `[k, cols]`.
#[derive(Clone)]
pub(crate) struct Product {
    pub a: Arc<CudaBuffer>,
    pub b: Arc<CudaBuffer>,
    pub k: usize,
    pub rows: usize,
    pub cols: usize,
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
