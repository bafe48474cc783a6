//! Blocked attention on the CPU. A task is a block of queries of one head (forward) or one head of one document
//! (backward); tasks write their own results, which are then put in place, so the bytes do not depend on the threads.

use rayon::prelude::*;

use super::{AttentionConfig, Documents};
use crate::Real;
use crate::gemm::{Mat, MatMut, Threads, matmul};
use crate::ops::softcap::Softcap;
use crate::ops::softmax::{exponentials, largest};

/// Queries and keys per block: the scores of a block stay in the first-level cache's reach.
const BLOCK: usize = 64;

/// One sequence: its queries are the last `q` rows of the positions that `k` and `v` cover.
pub(super) struct Segment<'a, R> {
    pub q: &'a [R],
    pub k: &'a [R],
    pub v: &'a [R],
}

/// Which keys a query at a position sees.
#[derive(Clone, Copy)]
struct Visible {
    window: usize,
}

impl Visible {
    fn new(config: &AttentionConfig) -> Visible {
        Visible { window: config.window.unwrap_or(usize::MAX) }
    }
    /// First visible key of the query at `position`; the last is `position` itself.
    fn first(self, position: usize) -> usize {
        (position + 1).saturating_sub(self.window)
    }
}

struct Head {
    /// Column offset in q and out.
    q: usize,
    /// Column offset in k and v.
    kv: usize,
}

fn head(config: &AttentionConfig, h: usize) -> Head {
    let group = config.heads / config.kv_heads;
    Head { q: h * config.head_dim, kv: h / group * config.head_dim }
}

/// A column block `[rows, head_dim]` of a wider row-major matrix.
fn part<R: Real>(data: &[R], stride: usize, row: usize, rows: usize, col: usize, dim: usize) -> Mat<'_, R> {
    Mat::strided(&data[row * stride + col..], rows, dim, stride)
}

/// Returns out `[Σ q rows, heads · head_dim]` and the log-sum-exp `[heads, Σ q rows]`.
pub(super) fn forward<R: Real>(segments: &[Segment<'_, R>], config: &AttentionConfig) -> (Vec<R>, Vec<R>) {
    let q_cols = config.heads * config.head_dim;
    let mut tasks = Vec::new();
    // For each token: the first task of its sequence, tasks a head has there, its block, and its row in the block.
    let mut places = Vec::new();
    for (s, segment) in segments.iter().enumerate() {
        let (rows, first) = (segment.q.len() / q_cols, tasks.len());
        places.extend((0..rows).map(|row| (first, rows.div_ceil(BLOCK), row / BLOCK, row % BLOCK)));
        for h in 0..config.heads {
            tasks.extend((0..rows).step_by(BLOCK).map(|row| (s, h, row, BLOCK.min(rows - row))));
        }
    }
    let results: Vec<(Vec<R>, Vec<R>)> = tasks
        .par_iter()
        .map(|&(s, h, row, rows)| forward_block(&segments[s], config, h, row, rows))
        .collect();

    let (total, dim) = (places.len(), config.head_dim);
    let mut out = vec![R::zero(); total * q_cols];
    out.par_chunks_mut(q_cols).zip(places.par_iter()).for_each(|(to, &(first, blocks, block, row))| {
        for (h, to) in to.chunks_exact_mut(dim).enumerate() {
            to.copy_from_slice(&results[first + h * blocks + block].0[row * dim..(row + 1) * dim]);
        }
    });
    let mut lse = vec![R::zero(); config.heads * total];
    for (h, lse) in lse.chunks_exact_mut(total.max(1)).enumerate() {
        for (to, &(first, blocks, block, row)) in lse.iter_mut().zip(&places) {
            *to = results[first + h * blocks + block].1[row];
        }
    }
    (out, lse)
}

fn forward_block<R: Real>(
    segment: &Segment<'_, R>,
    config: &AttentionConfig,
    h: usize,
    row: usize,
    rows: usize,
) -> (Vec<R>, Vec<R>) {
    let dim = config.head_dim;
    let (q_cols, kv_cols) = (config.heads * dim, config.kv_heads * dim);
    let (head, visible) = (head(config, h), Visible::new(config));
    let softcap = config.softcap.map(Softcap::<R>::new);
    let keys = segment.k.len() / kv_cols;
    let offset = keys - segment.q.len() / q_cols;
    let first = visible.first(offset + row);
    let last = offset + row + rows;

    let q = part(segment.q, q_cols, row, rows, head.q, dim);
    let mut out = vec![R::zero(); rows * dim];
    let mut scores = vec![R::zero(); rows * BLOCK];
    let mut max = vec![R::neg_infinity(); rows];
    let mut sum = vec![R::zero(); rows];
    for k0 in (first..last).step_by(BLOCK) {
        let n = BLOCK.min(last - k0);
        let k = part(segment.k, kv_cols, k0, n, head.kv, dim);
        matmul(MatMut::new(&mut scores, rows, n), q, k.t(), R::of(config.scale), R::zero(), Threads::One);
        for i in 0..rows {
            let position = offset + row + i;
            let score = &mut scores[i * n..(i + 1) * n];
            if let Some(cap) = softcap {
                score.iter_mut().for_each(|s| *s = cap.apply(*s));
            }
            mask(score, k0, visible.first(position), position);
            let block_max = largest(score);
            let new_max = if block_max > max[i] { block_max } else { max[i] };
            if new_max == R::neg_infinity() && !score.iter().any(|s| s.is_nan()) {
                score.fill(R::zero());
                continue;
            }
            let correction = (max[i] - new_max).exp_fast();
            let block_sum = exponentials(score, new_max);
            sum[i] = sum[i] * correction + block_sum;
            max[i] = new_max;
            out[i * dim..(i + 1) * dim].iter_mut().for_each(|o| *o *= correction);
        }
        let v = part(segment.v, kv_cols, k0, n, head.kv, dim);
        matmul(
            MatMut::new(&mut out, rows, dim),
            Mat::new(&scores, rows, n),
            v,
            R::one(),
            R::one(),
            Threads::One,
        );
    }
    for i in 0..rows {
        let scale = R::one() / sum[i];
        out[i * dim..(i + 1) * dim].iter_mut().for_each(|o| *o *= scale);
        max[i] += sum[i].ln();
    }
    (out, max)
}

/// Sets the scores of keys outside [first, position] to −∞; `k0` is the first score's key.
fn mask<R: Real>(score: &mut [R], k0: usize, first: usize, position: usize) {
    let n = score.len();
    score[..first.saturating_sub(k0).min(n)].fill(R::neg_infinity());
    score[(position + 1).saturating_sub(k0).min(n)..].fill(R::neg_infinity());
}

/// Of one query: scores `p` become probabilities, and their gradients `ds` those of q·k. `mask` hides the unseen scores.
fn score_gradients<R: Real>(
    p: &mut [R],
    ds: &mut [R],
    mask: impl Fn(&mut [R]),
    [lse, dot, scale]: [R; 3],
    softcap: Option<Softcap<R>>,
) {
    let Some(cap) = softcap else {
        mask(p);
        for (p, ds) in p.iter_mut().zip(ds) {
            *p = (*p - lse).exp_fast();
            *ds = *p * (*ds - dot) * scale;
        }
        return;
    };
    for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
        *p = cap.apply(*p);
        // Before the mask: the slope at a hidden score is not a number.
        *ds = (*ds - dot) * cap.slope(*p);
    }
    mask(p);
    for (p, ds) in p.iter_mut().zip(ds) {
        *p = (*p - lse).exp_fast();
        *ds = *p * *ds * scale;
    }
}

/// What the forward saved, and the gradient of its output.
pub(super) struct Saved<'a, R> {
    pub q: &'a [R],
    pub k: &'a [R],
    pub v: &'a [R],
    pub out: &'a [R],
    pub lse: &'a [R],
    pub dout: &'a [R],
}

/// Gradients of q, k, v, shaped like them.
pub(super) fn backward<R: Real>(
    saved: &Saved<'_, R>,
    documents: &Documents,
    config: &AttentionConfig,
) -> [Vec<R>; 3] {
    let dim = config.head_dim;
    let ranges: Vec<_> = documents.ranges().collect();
    let tasks: Vec<(usize, usize)> =
        (0..ranges.len()).flat_map(|r| (0..config.heads).map(move |h| (r, h))).collect();
    let results: Vec<[Vec<R>; 3]> =
        tasks.par_iter().map(|&(r, h)| backward_head(saved, config, h, ranges[r].clone())).collect();

    let places: Vec<(usize, usize)> =
        ranges.iter().enumerate().flat_map(|(r, range)| (0..range.len()).map(move |row| (r, row))).collect();
    // Puts the heads' parts of one gradient side by side; query heads that share a head add up in their order.
    let assemble = |which: usize, heads: usize| {
        let group = config.heads / heads;
        let mut all = vec![R::zero(); places.len() * heads * dim];
        all.par_chunks_mut(heads * dim).zip(places.par_iter()).for_each(|(to, &(r, row))| {
            for (h, to) in to.chunks_exact_mut(dim).enumerate() {
                for own in &results[r * config.heads + h * group..][..group] {
                    let own = &own[which][row * dim..(row + 1) * dim];
                    to.iter_mut().zip(own).for_each(|(t, &o)| *t += o);
                }
            }
        });
        all
    };
    [assemble(0, config.heads), assemble(1, config.kv_heads), assemble(2, config.kv_heads)]
}

fn backward_head<R: Real>(
    saved: &Saved<'_, R>,
    config: &AttentionConfig,
    h: usize,
    range: std::ops::Range<usize>,
) -> [Vec<R>; 3] {
    let (dim, start, tokens) = (config.head_dim, range.start, range.len());
    let (q_cols, kv_cols) = (config.heads * dim, config.kv_heads * dim);
    let (head, visible, scale) = (head(config, h), Visible::new(config), R::of(config.scale));
    let softcap = config.softcap.map(Softcap::<R>::new);
    let (one, zero) = (R::one(), R::zero());
    let q = |row, n| part(saved.q, q_cols, start + row, n, head.q, dim);
    let k = |row, n| part(saved.k, kv_cols, start + row, n, head.kv, dim);
    let v = |row, n| part(saved.v, kv_cols, start + row, n, head.kv, dim);
    let dout = |row, n| part(saved.dout, q_cols, start + row, n, head.q, dim);
    let total = saved.lse.len() / config.heads;
    let lse = &saved.lse[h * total + start..][..tokens];
    let row_dot: Vec<R> = range
        .clone()
        .map(|row| {
            let at = row * q_cols + head.q;
            saved.dout[at..at + dim].iter().zip(&saved.out[at..at + dim]).map(|(&a, &b)| a * b).sum()
        })
        .collect();

    let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![zero; tokens * dim]);
    let [mut p, mut ds] = [(); 2].map(|()| vec![zero; BLOCK * BLOCK]);
    for q0 in (0..tokens).step_by(BLOCK) {
        let nq = BLOCK.min(tokens - q0);
        for k0 in (visible.first(q0)..q0 + nq).step_by(BLOCK) {
            let nk = BLOCK.min(q0 + nq - k0);
            let key_rows = k0 * dim..(k0 + nk) * dim;
            matmul(MatMut::new(&mut p, nq, nk), q(q0, nq), k(k0, nk).t(), scale, zero, Threads::One);
            matmul(MatMut::new(&mut ds, nq, nk), dout(q0, nq), v(k0, nk).t(), one, zero, Threads::One);
            for i in 0..nq {
                let (p, ds) = (&mut p[i * nk..(i + 1) * nk], &mut ds[i * nk..(i + 1) * nk]);
                let (lse, dot) = (lse[q0 + i], row_dot[q0 + i]);
                let seen = |p: &mut [R]| mask(p, k0, visible.first(q0 + i), q0 + i);
                score_gradients(p, ds, seen, [lse, dot, scale], softcap);
            }
            let (p, ds) = (Mat::new(&p, nq, nk), Mat::new(&ds, nq, nk));
            matmul(
                MatMut::new(&mut dv[key_rows.clone()], nk, dim),
                p.t(),
                dout(q0, nq),
                one,
                one,
                Threads::One,
            );
            matmul(MatMut::new(&mut dk[key_rows], nk, dim), ds.t(), q(q0, nq), one, one, Threads::One);
            let dq = &mut dq[q0 * dim..(q0 + nq) * dim];
            matmul(MatMut::new(dq, nq, dim), ds, k(k0, nk), one, one, Threads::One);
        }
    }
    [dq, dk, dv]
}
