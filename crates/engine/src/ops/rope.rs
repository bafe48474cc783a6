pub(super) mod cuda;

use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::isa::vectorised;
use crate::pool;
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{Element, Real, Tensor, dispatch};

/// Cosines and sines by row, shared by all layers. A row is a position, as a rule.
#[derive(Debug)]
pub struct RopeTable {
    /// `[rows, rotary_dim / 2]` each. In f32 like transformers', so that a table of 131,072 positions of heads of 128 takes
    /// 67 MB.
    cos: Vec<f32>,
    sin: Vec<f32>,
    half: usize,
    rows: usize,
}

impl RopeTable {
    /// From the inverse frequencies (one for each rotated pair), for positions 0 to `positions` - 1. Cosines and sines
    /// are multiplied by `scale` (1 but for YaRN and longrope).
    ///
    /// The angle is rounded to f32 like transformers', so that long positions agree with it.
    pub fn new(inverse_frequencies: &[f32], positions: usize, scale: f64) -> RopeTable {
        let half = inverse_frequencies.len();
        RopeTable::of_angles(positions, half, scale, |p, i| p as f32 * inverse_frequencies[i])
    }

    /// From the angle of each row and pair, for rows of different frequencies; scaled as in [`RopeTable::new`].
    pub fn of_angles(
        rows: usize,
        half: usize,
        scale: f64,
        angle: impl Fn(usize, usize) -> f32 + Sync,
    ) -> RopeTable {
        let (mut cos, mut sin) = (vec![0.0; rows * half], vec![0.0; rows * half]);
        if half > 0 {
            let lines = cos.par_chunks_mut(half).zip(sin.par_chunks_mut(half)).enumerate().with_min_len(64);
            lines.for_each(|(row, (cos, sin))| {
                for (i, (cos, sin)) in cos.iter_mut().zip(sin).enumerate() {
                    let (s, c) = (angle(row, i) as f64).sin_cos();
                    (*cos, *sin) = ((c * scale) as f32, (s * scale) as f32);
                }
            });
        }
        RopeTable { cos, sin, half, rows }
    }

    /// θ^(-2i/d) for i in 0..d/2 (Su et al., arXiv 2104.09864).
    pub fn default_frequencies(rotary_dim: usize, theta: f64) -> Vec<f32> {
        (0..rotary_dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / rotary_dim as f32)).collect()
    }

    /// Rows: positions from 0, if it was made by [`RopeTable::new`].
    pub fn positions(&self) -> usize {
        self.rows
    }
}

struct RopeBackward {
    x: Source,
    table: Arc<RopeTable>,
    positions: Arc<[u32]>,
    head_dim: usize,
}

impl Backward for RopeBackward {
    fn name(&self) -> &'static str {
        "rope"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let dx = dispatch!(dy.dtype(), E => {
            rotate::<E>(&dy, &self.table, &self.positions, self.head_dim, -1.0)?
        });
        grads.add(self.x, dx)
    }
}

fn rotate<E: Element>(
    x: &Tensor,
    table: &Arc<RopeTable>,
    positions: &Arc<[u32]>,
    head_dim: usize,
    direction: f64,
) -> Result<Tensor> {
    if let Some(there) = x.cuda() {
        let y = cuda::rotate(there, table, positions, head_dim, direction as f32)?;
        return Ok(Tensor::on_cuda(y, x.shape()));
    }
    let (cols, half) = (x.cols(), table.half);
    let xs = x.slice::<E>()?;
    let mut y = pool::any::<E>(xs.len());
    let rows = y.par_chunks_mut(cols).zip(xs.par_chunks(cols)).zip(positions.par_iter()).with_min_len(16);
    rows.for_each(|((to, from), &p)| {
        let at = p as usize * half;
        let (cos, sin) = (&table.cos[at..at + half], &table.sin[at..at + half]);
        for (to, from) in to.chunks_exact_mut(head_dim).zip(from.chunks_exact(head_dim)) {
            rotate_head(to, from, cos, sin, direction);
        }
    });
    Ok(Tensor::new(y, x.shape()))
}

fn rotate_head<E: Element>(to: &mut [E], from: &[E], cos: &[f32], sin: &[f32], direction: f64) {
    vectorised!([E: Element] (to: &mut [E], from: &[E], cos: &[f32], sin: &[f32], direction: f64) {
        let half = cos.len();
        let ((to_a, to), (a, from)) = (to.split_at_mut(half), from.split_at(half));
        let ((to_b, to), (b, from)) = (to.split_at_mut(half), from.split_at(half));
        for (((((to_a, to_b), a), b), &cos), &sin) in to_a.iter_mut().zip(to_b).zip(a).zip(b).zip(cos).zip(sin) {
            let (c, s) = (E::Acc::of(cos as f64), E::Acc::of(sin as f64 * direction));
            let (a, b) = (a.to_acc(), b.to_acc());
            *to_a = E::from_acc(a * c - b * s);
            *to_b = E::from_acc(b * c + a * s);
        }
        to.copy_from_slice(from);
    });
}

/// Rotary position embedding of x `[tokens, heads · head_dim]`: element i of a head's first half is paired with element
/// i of its second half (Hugging Face's convention) and the pair is turned by position · frequency i. Elements past
/// twice the number of frequencies stay as they are (partial rotation). With a table's scale the rotated ones are
/// multiplied by it, the others not.
///
/// A rotation's transpose is the rotation back, so dx is dy turned by the negative angle (and scaled alike). Nothing is
/// saved. A layer without rotation has no rope: its caller leaves the op out. `positions` are rows of the table.
///
/// # Errors
/// If a position lies beyond the table.
pub fn rope(
    tape: &mut Tape<'_>,
    x: &Var,
    table: &Arc<RopeTable>,
    positions: &Arc<[u32]>,
    head_dim: usize,
) -> Result<Var> {
    let _span = profile::span("rope", Pass::Forward);
    let value = x.value();
    if value.rows() != positions.len() || head_dim < 2 * table.half || !value.cols().is_multiple_of(head_dim)
    {
        return Err(Error::Shape {
            op: "rope",
            what: "input [tokens, heads * head_dim]".into(),
            expected: format!("[{}, multiple of {head_dim} >= {}]", positions.len(), 2 * table.half),
            got: format!("{:?}", value.shape()),
        });
    }
    if let Some(&p) = positions.iter().find(|&&p| p as usize >= table.rows) {
        return Err(Error::Index { op: "rope", what: "positions", index: p as usize, size: table.rows });
    }
    let y = dispatch!(value.dtype(), E => rotate::<E>(value, table, positions, head_dim, 1.0)?);
    Ok(tape.record(y, x.needs_grad(), || RopeBackward {
        x: x.source(),
        table: table.clone(),
        positions: positions.clone(),
        head_dim,
    }))
}
