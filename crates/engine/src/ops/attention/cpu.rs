//! Blocked attention on the CPU. A task is a block of queries of one head (forward) or one head of one document
//! (backward); tasks write their own results, which are then put in place, so the bytes do not depend on the threads.
//! Products take what they multiply as it is stored: beside bf16 queries, keys and values, probabilities and the gradients
//! of scores are rounded to bf16, as flash attention does.

use rayon::prelude::*;

use super::{AttentionConfig, Documents};
use crate::gemm::block::product;
use crate::gemm::{Mat, MatMut};
use crate::isa::vectorised;
use crate::ops::softcap::Softcap;
use crate::ops::softmax::{exponentials, largest};
use crate::{Element, Real, pool, profile};

/// Queries and keys per block: the scores of a block stay in the first-level cache's reach.
const BLOCK: usize = 64;

/// One sequence: its queries are the last `q` rows of the positions that `k` and `v` cover.
pub(super) struct Segment<'a, E> {
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
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
    #[inline(always)]
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
fn part<E: Element>(
    data: &[E],
    stride: usize,
    row: usize,
    rows: usize,
    col: usize,
    dim: usize,
) -> Mat<'_, E> {
    Mat::strided(&data[row * stride + col..], rows, dim, stride)
}

/// Floating-point operations of so many products of blocks.
fn products(count: usize, queries: usize, keys: usize, dim: usize) -> f64 {
    2.0 * (count * queries * keys * dim) as f64
}

/// Of a block of queries of one head: out `[rows, head_dim]`, and the log-sum-exp of each.
type Block<R> = (Vec<R>, Vec<R>);

/// Returns out `[Σ q rows, heads · head_dim]` and the log-sum-exp `[heads, Σ q rows]`.
pub(super) fn forward<E: Element>(
    segments: &[Segment<'_, E>],
    config: &AttentionConfig,
) -> (Vec<E::Acc>, Vec<E::Acc>) {
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
    let results: Vec<Block<E::Acc>> = tasks
        .par_iter()
        .map(|&(s, h, row, rows)| forward_block(&segments[s], config, h, row, rows))
        .collect();

    let (total, dim) = (places.len(), config.head_dim);
    let mut out = pool::any::<E::Acc>(total * q_cols);
    out.par_chunks_mut(q_cols).zip(places.par_iter()).for_each(|(to, &(first, blocks, block, row))| {
        for (h, to) in to.chunks_exact_mut(dim).enumerate() {
            to.copy_from_slice(&results[first + h * blocks + block].0[row * dim..(row + 1) * dim]);
        }
    });
    let mut lse = vec![E::Acc::of(0.0); config.heads * total];
    for (h, lse) in lse.chunks_exact_mut(total.max(1)).enumerate() {
        for (to, &(first, blocks, block, row)) in lse.iter_mut().zip(&places) {
            *to = results[first + h * blocks + block].1[row];
        }
    }
    (out, lse)
}

/// The running softmax of a block of queries: their largest scores so far, the sums of exponentials below these, and the
/// sums of values.
struct Running<R> {
    max: Vec<R>,
    sum: Vec<R>,
    out: Vec<R>,
}

/// How a block's products of queries and keys become scores.
#[derive(Clone, Copy)]
struct Scores<R> {
    scale: R,
    softcap: Option<Softcap<R>>,
    visible: Visible,
    /// Positions of the first query and of the first key.
    query: usize,
    key: usize,
}

impl<R: Real> Scores<R> {
    #[inline(always)]
    fn capped(&self, score: &mut [R]) {
        let scale = self.scale;
        score.iter_mut().for_each(|s| *s *= scale);
        if let Some(cap) = self.softcap {
            score.iter_mut().for_each(|s| *s = cap.apply(*s));
        }
    }

    /// Hides the scores of query i of the block that it may not see.
    #[inline(always)]
    fn mask(&self, score: &mut [R], i: usize) {
        let position = self.query + i;
        mask(score, self.key, self.visible.first(position), position);
    }

    /// Products of a row of queries with n keys each to probabilities below the running maximum, which is what the sums are
    /// brought down to.
    fn soften<E: Element<Acc = R>>(self, scores: &mut [R], n: usize, running: &mut Running<R>, to: &mut [E]) {
        let (rows, Running { max, sum, out }) = (self, running);
        type Acc<E> = <E as Element>::Acc;
        vectorised!([E: Element] (
            rows: Scores<Acc<E>>, scores: &mut [Acc<E>], n: usize, max: &mut [Acc<E>], sum: &mut [Acc<E>],
            out: &mut [Acc<E>], to: &mut [E],
        ) {
            let dim = out.len() / max.len();
            let lowest = Acc::<E>::of(f64::NEG_INFINITY);
            let mut corrections = [Acc::<E>::default(); BLOCK];
            for (i, correction) in corrections[..max.len()].iter_mut().enumerate() {
                let score = &mut scores[i * n..(i + 1) * n];
                rows.capped(score);
                rows.mask(score, i);
                let block_max = largest(score);
                let new_max = if block_max > max[i] { block_max } else { max[i] };
                // Where nothing was visible so far there is nothing to bring down.
                *correction = if new_max == lowest { Acc::<E>::default() } else { max[i] - new_max };
                max[i] = new_max;
            }
            // Of all rows at a time: one by one each would wait for the steps of its own.
            corrections.iter_mut().for_each(|c| *c = c.exp_fast());
            for (i, &correction) in corrections[..max.len()].iter().enumerate() {
                let score = &mut scores[i * n..(i + 1) * n];
                if max[i] == lowest && !score.iter().any(|s| s.f64().is_nan()) {
                    to[i * n..(i + 1) * n].fill(E::default());
                    continue;
                }
                let block_sum = exponentials(score, max[i]);
                sum[i] = sum[i] * correction + block_sum;
                out[i * dim..(i + 1) * dim].iter_mut().for_each(|o| *o *= correction);
                to[i * n..(i + 1) * n].iter_mut().zip(&*score).for_each(|(to, &p)| *to = E::from_acc(p));
            }
        });
    }
}

fn forward_block<E: Element>(
    segment: &Segment<'_, E>,
    config: &AttentionConfig,
    h: usize,
    row: usize,
    rows: usize,
) -> Block<E::Acc> {
    let dim = config.head_dim;
    let (q_cols, kv_cols) = (config.heads * dim, config.kv_heads * dim);
    let (head, visible) = (head(config, h), Visible::new(config));
    let keys = segment.k.len() / kv_cols;
    let offset = keys - segment.q.len() / q_cols;
    let first = visible.first(offset + row);
    let last = offset + row + rows;
    let zero = E::Acc::of(0.0);

    let q = part(segment.q, q_cols, row, rows, head.q, dim);
    let mut scores = vec![zero; rows * BLOCK];
    let mut p = vec![E::default(); rows * BLOCK];
    let mut running = Running {
        max: vec![E::Acc::of(f64::NEG_INFINITY); rows],
        sum: vec![zero; rows],
        out: vec![zero; rows * dim],
    };
    for k0 in (first..last).step_by(BLOCK) {
        let n = BLOCK.min(last - k0);
        let k = part(segment.k, kv_cols, k0, n, head.kv, dim);
        product(MatMut::new(&mut scores, rows, n), false, q, k.t());
        Scores {
            scale: E::Acc::of(config.scale),
            softcap: config.softcap.map(Softcap::new),
            visible,
            query: offset + row,
            key: k0,
        }
        .soften(&mut scores, n, &mut running, &mut p);
        let v = part(segment.v, kv_cols, k0, n, head.kv, dim);
        product(MatMut::new(&mut running.out, rows, dim), true, Mat::new(&p, rows, n), v);
        profile::count(products(2, rows, n, dim), 0.0);
    }
    let Running { mut max, sum, mut out } = running;
    for i in 0..rows {
        let scale = E::Acc::of(1.0) / sum[i];
        out[i * dim..(i + 1) * dim].iter_mut().for_each(|o| *o *= scale);
        max[i] += E::Acc::of(sum[i].f64().ln());
    }
    (out, max)
}

/// Sets the scores of keys outside [first, position] to −∞; `k0` is the first score's key.
#[inline(always)]
fn mask<R: Real>(score: &mut [R], k0: usize, first: usize, position: usize) {
    let n = score.len();
    score[..first.saturating_sub(k0).min(n)].fill(R::of(f64::NEG_INFINITY));
    score[(position + 1).saturating_sub(k0).min(n)..].fill(R::of(f64::NEG_INFINITY));
}

impl<R: Real> Scores<R> {
    /// Of a block of queries with n keys: products p become probabilities, and ds, the gradients of these, become those of
    /// the products.
    fn gradients<E: Element<Acc = R>>(
        self,
        [p, ds]: [&mut [R]; 2],
        n: usize,
        [lse, dot]: [&[R]; 2],
        [p_to, ds_to]: [&mut [E]; 2],
    ) {
        let rows = self;
        type Acc<E> = <E as Element>::Acc;
        vectorised!([E: Element] (
            rows: Scores<Acc<E>>, p: &mut [Acc<E>], ds: &mut [Acc<E>], n: usize, lse: &[Acc<E>], dot: &[Acc<E>],
            p_to: &mut [E], ds_to: &mut [E],
        ) {
            for i in 0..lse.len() {
                let row = i * n..(i + 1) * n;
                let (p, ds) = (&mut p[row.clone()], &mut ds[row.clone()]);
                let (lse, dot, scale) = (lse[i], dot[i], rows.scale);
                rows.capped(p);
                match rows.softcap {
                    None => ds.iter_mut().for_each(|ds| *ds = (*ds - dot) * scale),
                    // Before the mask: the slope at a hidden score is not a number.
                    Some(cap) => {
                        ds.iter_mut().zip(&*p).for_each(|(ds, &p)| *ds = (*ds - dot) * scale * cap.slope(p));
                    }
                }
                rows.mask(p, i);
                for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
                    *p = (*p - lse).exp_fast();
                    *ds *= *p;
                }
                p_to[row.clone()].iter_mut().zip(&*p).for_each(|(to, &p)| *to = E::from_acc(p));
                ds_to[row].iter_mut().zip(&*ds).for_each(|(to, &ds)| *to = E::from_acc(ds));
            }
        });
    }
}

/// What the forward saved, and the gradient of its output.
pub(super) struct Saved<'a, E: Element> {
    pub q: &'a [E],
    pub k: &'a [E],
    pub v: &'a [E],
    pub out: &'a [E],
    pub lse: &'a [E::Acc],
    pub dout: &'a [E],
}

/// Gradients of q, k, v, shaped like them.
pub(super) fn backward<E: Element>(
    saved: &Saved<'_, E>,
    documents: &Documents,
    config: &AttentionConfig,
) -> [Vec<E::Acc>; 3] {
    let dim = config.head_dim;
    let ranges: Vec<_> = documents.ranges().collect();
    let tasks: Vec<(usize, usize)> =
        (0..ranges.len()).flat_map(|r| (0..config.heads).map(move |h| (r, h))).collect();
    let results: Vec<[Vec<E::Acc>; 3]> =
        tasks.par_iter().map(|&(r, h)| backward_head(saved, config, h, ranges[r].clone())).collect();

    let places: Vec<(usize, usize)> =
        ranges.iter().enumerate().flat_map(|(r, range)| (0..range.len()).map(move |row| (r, row))).collect();
    // Puts the heads' parts of one gradient side by side; query heads that share a head add up in their order.
    let assemble = |which: usize, heads: usize| {
        let group = config.heads / heads;
        let mut all = pool::any::<E::Acc>(places.len() * heads * dim);
        all.par_chunks_mut(heads * dim).zip(places.par_iter()).for_each(|(to, &(r, row))| {
            for (h, to) in to.chunks_exact_mut(dim).enumerate() {
                let mut parts = results[r * config.heads + h * group..][..group]
                    .iter()
                    .map(|own| &own[which][row * dim..(row + 1) * dim]);
                if let Some(first) = parts.next() {
                    to.copy_from_slice(first);
                }
                parts.for_each(|own| to.iter_mut().zip(own).for_each(|(t, &o)| *t += o));
            }
        });
        all
    };
    let gradients = [assemble(0, config.heads), assemble(1, config.kv_heads), assemble(2, config.kv_heads)];
    results.into_iter().flatten().for_each(pool::keep);
    gradients
}

fn backward_head<E: Element>(
    saved: &Saved<'_, E>,
    config: &AttentionConfig,
    h: usize,
    range: std::ops::Range<usize>,
) -> [Vec<E::Acc>; 3] {
    let (dim, start, tokens) = (config.head_dim, range.start, range.len());
    let (q_cols, kv_cols) = (config.heads * dim, config.kv_heads * dim);
    let (head, visible) = (head(config, h), Visible::new(config));
    let zero = E::Acc::of(0.0);
    let q = |row, n| part(saved.q, q_cols, start + row, n, head.q, dim);
    let k = |row, n| part(saved.k, kv_cols, start + row, n, head.kv, dim);
    let v = |row, n| part(saved.v, kv_cols, start + row, n, head.kv, dim);
    let dout = |row, n| part(saved.dout, q_cols, start + row, n, head.q, dim);
    let total = saved.lse.len() / config.heads;
    let lse = &saved.lse[h * total + start..][..tokens];
    let row_dot: Vec<E::Acc> = range
        .clone()
        .map(|row| {
            let at = row * q_cols + head.q;
            let (dout, out) = (&saved.dout[at..at + dim], &saved.out[at..at + dim]);
            dout.iter().zip(out).map(|(a, b)| a.to_acc() * b.to_acc()).sum()
        })
        .collect();

    let [mut dq, mut dk, mut dv] = [(); 3].map(|()| {
        let mut gradient = pool::any::<E::Acc>(tokens * dim);
        gradient.fill(zero);
        gradient
    });
    let [mut p, mut ds] = [(); 2].map(|()| vec![zero; BLOCK * BLOCK]);
    let [mut p_as, mut ds_as] = [(); 2].map(|()| vec![E::default(); BLOCK * BLOCK]);
    for q0 in (0..tokens).step_by(BLOCK) {
        let nq = BLOCK.min(tokens - q0);
        for k0 in (visible.first(q0)..q0 + nq).step_by(BLOCK) {
            let nk = BLOCK.min(q0 + nq - k0);
            let (key_rows, size) = (k0 * dim..(k0 + nk) * dim, nq * nk);
            product(MatMut::new(&mut p, nq, nk), false, q(q0, nq), k(k0, nk).t());
            product(MatMut::new(&mut ds, nq, nk), false, dout(q0, nq), v(k0, nk).t());
            Scores {
                scale: E::Acc::of(config.scale),
                softcap: config.softcap.map(Softcap::new),
                visible,
                query: q0,
                key: k0,
            }
            .gradients(
                [&mut p[..size], &mut ds[..size]],
                nk,
                [&lse[q0..q0 + nq], &row_dot[q0..q0 + nq]],
                [&mut p_as[..size], &mut ds_as[..size]],
            );
            let (p, ds) = (Mat::new(&p_as, nq, nk), Mat::new(&ds_as, nq, nk));
            product(MatMut::new(&mut dv[key_rows.clone()], nk, dim), true, p.t(), dout(q0, nq));
            product(MatMut::new(&mut dk[key_rows], nk, dim), true, ds.t(), q(q0, nq));
            product(MatMut::new(&mut dq[q0 * dim..(q0 + nq) * dim], nq, dim), true, ds, k(k0, nk));
            profile::count(products(5, nq, nk, dim), 0.0);
        }
    }
    [dq, dk, dv]
}
