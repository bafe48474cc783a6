use rayon::prelude::*;

use super::elementwise;
use crate::cuda::CudaBuffer;
use crate::error::{Error, Result};
use crate::pool;
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{Element, Tensor, dispatch};

struct PieceBackward {
    x: Source,
    /// First column of the piece in x.
    first: usize,
    /// Columns of x.
    cols: usize,
}

impl Backward for PieceBackward {
    fn name(&self) -> &'static str {
        "split_columns"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        grads.add_columns(self.x, self.first, self.cols, &dy)
    }
}

/// The columns of x `[tokens, Σ sizes]` in pieces `[tokens, size]`, in order: the parts of a fused projection.
///
/// Each piece's gradient is written where its columns lie in the gradient of x, which is made, of zeros, by the first of
/// them that arrives: every element is written once, and pieces that get no gradient count as zero. Nothing is saved.
///
/// The pieces are copies, because a tensor is contiguous: one more pass over x, which is little beside the projection
/// that made x.
///
/// # Errors
/// If the sizes do not add up to the columns.
pub fn split_columns(tape: &mut Tape<'_>, x: &Var, sizes: &[usize]) -> Result<Vec<Var>> {
    let _span = profile::span("split_columns", Pass::Forward);
    let value = x.value();
    let (rows, cols) = (value.rows(), value.cols());
    if sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n)) != Some(cols) {
        return Err(Error::Shape {
            op: "split_columns",
            what: format!("input for pieces of {sizes:?} columns"),
            expected: "as many columns".into(),
            got: format!("{:?}", value.shape()),
        });
    }
    let mut pieces = Vec::with_capacity(sizes.len());
    let mut first = 0;
    for &size in sizes {
        let piece = match value.cuda() {
            Some(there) => {
                let piece = CudaBuffer::any(there.device(), there.dtype(), rows * size)?;
                elementwise::columns((&piece, 0, size), (there, first, cols), [rows, size], false)?;
                Tensor::on_cuda(piece, &[rows, size])
            }
            None => dispatch!(value.dtype(), E => {
                Tensor::new(columns(value.slice::<E>()?, cols, first, size), &[rows, size])
            }),
        };
        pieces.push(tape.record(piece, x.needs_grad(), || PieceBackward { x: x.source(), first, cols }));
        first += size;
    }
    Ok(pieces)
}

fn columns<E: Element>(x: &[E], cols: usize, first: usize, size: usize) -> Vec<E> {
    let mut piece = pool::any::<E>(x.len() / cols.max(1) * size);
    let rows = piece.par_chunks_mut(size.max(1)).zip(x.par_chunks(cols.max(1))).with_min_len(16);
    rows.for_each(|(to, from)| to.copy_from_slice(&from[first..first + size]));
    piece
}
