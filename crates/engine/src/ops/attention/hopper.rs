//! Attention on Hopper, for heads of 64 and 128 in bf16.

use std::sync::Arc;

use super::cuda::{Forward, Shape};
use crate::DType;
use crate::cuda::{Arg, CudaBuffer, Map, Memory, Source};
use crate::error::Result;

pub(crate) static SOURCE: Source =
    Source { name: "attention_hopper", text: include_str!("hopper.cu"), variants: &[64, 128], hopper: true };

/// Rows of a tile, of queries or keys.
const ROWS: usize = 128;
/// Keys or queries that the backward takes at a time.
const STRIP: usize = 64;
/// Barriers, numbers of rows, and what aligning takes.
const MORE: usize = 3 << 10;

/// Whether there are kernels for this.
pub(super) fn is_for(shape: &Shape<'_>) -> bool {
    let dim = shape.config.head_dim;
    shape.device.is_hopper() && shape.dtype == DType::BF16 && (dim == 64 || dim == 128) && shape.tokens > 0
}

impl Shape<'_> {
    /// Tiles in the order in which they are taken: document by document, for the cache's sake, and of each those with the most
    /// work first: late queries, or early keys.
    fn pieces(&self, by_key: bool) -> Result<(Arc<Memory>, usize)> {
        let what = if by_key { "pieces of keys" } else { "pieces of queries" };
        let memory = self.device.constant(what, &self.documents.0, |starts| {
            let mut tiles: Vec<u32> = Vec::new();
            for document in starts.windows(2) {
                let (first, end) = (document[0], document[1]);
                let rows = (first..end).step_by(ROWS);
                let tile = |row: usize| [row, first, end].map(|x| x as u32);
                match by_key {
                    true => tiles.extend(rows.flat_map(tile)),
                    false => tiles.extend(rows.rev().flat_map(tile)),
                }
            }
            tiles
        })?;
        Ok((memory, self.documents.ranges().map(|r| r.len().div_ceil(ROWS)).sum()))
    }

    /// A map of a buffer `[tokens, heads · head_dim]`, a tile or a strip of rows at a time.
    fn map(&self, of: &CudaBuffer, rows: usize) -> Result<Map> {
        let columns = of.len() / self.tokens;
        self.device.map(of.pointer(), [self.tokens, columns], columns, rows as u32)
    }

    /// Starts a kernel on the tiles of `heads` heads, with `own` arguments before the common ones. `tiles` and `strips` of
    /// rows are in shared memory.
    fn pieces_of(
        &self,
        name: &str,
        (by_key, heads): (bool, usize),
        [tiles, strips]: [usize; 2],
        counter: u64,
        own: &[Arg<'_>],
    ) -> Result<()> {
        let c = self.config;
        let (pieces, count) = self.pieces(by_key)?;
        let items = count * heads;
        let mut all = own.to_vec();
        all.extend([Arg::from(counter), Arg::from(pieces.pointer), Arg::from(items as i32)]);
        let window = c.window.unwrap_or(usize::MAX).min(1 << 30);
        all.extend([self.tokens, c.heads, c.kv_heads, window].map(|n| Arg::from(n as i32)));
        all.extend([Arg::from(c.scale as f32), Arg::from(self.cap())]);
        let shared = (tiles * ROWS + strips * STRIP) * c.head_dim * 2 + MORE;
        let blocks = items.min(self.device.processors() as usize);
        self.device.launch((&SOURCE, c.head_dim as u32), name, [blocks, 1, 1], 384, shared, &all)
    }
}

/// Zeros that blocks count their pieces with, a number a kernel.
fn counters(shape: &Shape<'_>, count: usize) -> Result<CudaBuffer> {
    CudaBuffer::zeros(shape.device, DType::F32, count)
}

pub(super) fn forward(s: &Shape<'_>, [q, k, v]: [&CudaBuffer; 3], to: &Forward) -> Result<()> {
    let [q, k, v] = [s.map(q, ROWS)?, s.map(k, ROWS)?, s.map(v, ROWS)?];
    let counter = counters(s, 1)?;
    let own = [to.out.pointer().into(), to.lse.pointer().into(), (&q).into(), (&k).into(), (&v).into()];
    s.pieces_of("forward", (false, s.config.heads), [6, 0], counter.pointer(), &own)
}

/// Writes the gradients of q, k and v.
pub(super) fn backward(
    s: &Shape<'_>,
    [q, k, v, dout]: [&CudaBuffer; 4],
    [lse, deltas]: [&CudaBuffer; 2],
    to: &[CudaBuffer; 3],
) -> Result<()> {
    let counters = counters(s, 2)?;
    let [dq, dk, dv] = [0, 1, 2].map(|i| Arg::from(to[i].pointer()));
    let numbers = [Arg::from(lse.pointer()), Arg::from(deltas.pointer())];
    let maps = |of: [(&CudaBuffer, usize); 4]| -> Result<Vec<Map>> {
        of.into_iter().map(|(buffer, rows)| s.map(buffer, rows)).collect()
    };
    let start = |name, of, room, counter, outputs: &[Arg<'_>], maps: &[Map]| {
        let own: Vec<Arg<'_>> =
            outputs.iter().copied().chain(maps.iter().map(Arg::from)).chain(numbers).collect();
        s.pieces_of(name, of, room, counter, &own)
    };
    let by_query = maps([(q, ROWS), (k, STRIP), (v, STRIP), (dout, ROWS)])?;
    start("backward_q", (false, s.config.heads), [4, 6], counters.pointer(), &[dq], &by_query)?;
    let by_key = maps([(q, STRIP), (k, ROWS), (v, ROWS), (dout, STRIP)])?;
    start("backward_kv", (true, s.config.kv_heads), [4, 4], counters.pointer() + 4, &[dk, dv], &by_key)
}
