//! Causal attention within documents, with grouped queries and an optional window, never holding tokens × tokens.

mod cpu;
pub(super) mod cuda;
pub(super) mod hopper;

use std::sync::Arc;

use super::elementwise::on;
use super::softcap;
use crate::error::{Error, Result};
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{DType, Tensor, dispatch};

/// Where the documents of a batch begin and end: document i holds tokens `starts[i]..starts[i + 1]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Documents(Arc<[usize]>);

impl Documents {
    /// From the documents' lengths.
    pub fn from_lengths(lengths: &[usize]) -> Documents {
        let mut at = 0;
        let ends = lengths.iter().map(|n| {
            at += n;
            at
        });
        Documents(std::iter::once(0).chain(ends).collect())
    }

    pub fn tokens(&self) -> usize {
        self.0.last().copied().unwrap_or(0)
    }
    pub fn len(&self) -> usize {
        self.0.len() - 1
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
    pub fn ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        self.0.windows(2).map(|w| w[0]..w[1])
    }
    /// Each token's position in its document.
    pub fn positions(&self) -> Vec<u32> {
        self.ranges().flat_map(|r| 0..r.len() as u32).collect()
    }
}

/// The shape of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionConfig {
    pub heads: usize,
    /// Divides `heads`; each key-value head serves heads / kv_heads query heads in a row.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Factor of q·k, usually 1/√head_dim.
    pub scale: f64,
    /// Key j is seen from query i only if i − j < window.
    pub window: Option<usize>,
    /// Scores s become cap·tanh(s/cap) before the mask (Gemma 2's `attn_logit_softcapping`).
    pub softcap: Option<f64>,
}

impl AttentionConfig {
    fn check(&self, q: &Tensor, k: &Tensor, v: &Tensor, tokens: usize) -> Result<()> {
        let (q_cols, kv_cols) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        crate::error::check_shape("attention", "q", q.shape(), &[tokens, q_cols])?;
        crate::error::check_shape("attention", "k", k.shape(), &[tokens, kv_cols])?;
        crate::error::check_shape("attention", "v", v.shape(), &[tokens, kv_cols])?;
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) || self.window == Some(0) {
            return Err(Error::Invalid(format!(
                "attention: {} heads over {} key-value heads with window {:?}",
                self.heads, self.kv_heads, self.window
            )));
        }
        softcap::check("attention", self.softcap)
    }
}

struct AttentionBackward {
    sources: [Source; 3],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    /// log Σ exp of each query's scores, `[heads, tokens]`, in the compute type.
    lse: Tensor,
    documents: Documents,
    config: AttentionConfig,
}

impl Backward for AttentionBackward {
    fn name(&self) -> &'static str {
        "attention"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let dtype = dy.dtype();
        if let Some(q) = self.q.cuda() {
            let there = |what, t| on("attention", what, t, q.device(), q.dtype());
            let inputs = [q, there("k", &self.k)?, there("v", &self.v)?].map(|b| &**b);
            let lse = on("attention", "log-sum-exp", &self.lse, q.device(), DType::F32)?;
            let saved =
                [there("output", &self.out)?, lse, there("the output's gradient", &dy)?].map(|b| &**b);
            let gradients = cuda::backward(inputs, saved, &self.documents, &self.config)?;
            for ((source, grad), like) in
                self.sources.into_iter().zip(gradients).zip([&self.q, &self.k, &self.v])
            {
                grads.add(source, Tensor::on_cuda(grad, like.shape()))?;
            }
            return Ok(());
        }
        dispatch!(dtype, E => {
            let saved = cpu::Saved::<E> {
                q: self.q.slice()?,
                k: self.k.slice()?,
                v: self.v.slice()?,
                out: self.out.slice()?,
                lse: self.lse.slice()?,
                dout: dy.slice()?,
            };
            let [dq, dk, dv] = cpu::backward(&saved, &self.documents, &self.config);
            for ((source, grad), like) in self.sources.into_iter().zip([dq, dk, dv]).zip([&self.q, &self.k, &self.v]) {
                if source.needs_grad() {
                    grads.add(source, Tensor::from_reals(grad, like.shape(), dtype))?;
                }
            }
            Ok(())
        })
    }
}

/// out = softmax(c(scale · q·kᵀ) + mask) · v, with q `[tokens, heads · head_dim]`, k and v `[tokens, kv_heads · head_dim]`
/// and c(s) = cap·tanh(s/cap), or s itself without a soft cap; a token sees itself and the earlier tokens of its own
/// document (within the window, if there is one).
///
/// Computed block by block with a running maximum and sum (Milakov & Gimelshein, arXiv 1805.02867; Dao et al.,
/// arXiv 2205.14135), so memory is linear in the tokens; blocks of keys that no query of a block sees are not read, so
/// with a window the time is linear too. With P the probabilities, recomputed from the saved log-sum-exp: dv = Pᵀ·dout,
/// dS = P∘(dout·vᵀ − rowsum(dout∘out))∘(1 − (c/cap)²), dq = scale·dS·k, dk = scale·dSᵀ·q.
/// Saved: q, k, v, out, and one number per query.
pub fn attention(
    tape: &mut Tape<'_>,
    q: &Var,
    k: &Var,
    v: &Var,
    documents: &Documents,
    config: &AttentionConfig,
) -> Result<Var> {
    let _span = profile::span("attention", Pass::Forward);
    config.check(q.value(), k.value(), v.value(), documents.tokens())?;
    let dtype = q.value().dtype();
    let (out, lse) = if let Some(there) = q.value().cuda() {
        let beside = |what, t| on("attention", what, t, there.device(), there.dtype());
        let inputs = [there, beside("k", k.value())?, beside("v", v.value())?].map(|b| &**b);
        let cuda::Forward { out, lse } = cuda::forward(inputs, documents, config)?;
        (Tensor::on_cuda(out, q.value().shape()), Tensor::on_cuda(lse, &[config.heads, q.value().rows()]))
    } else {
        dispatch!(dtype, E => {
            let (q, k, v) = (q.value(), k.value(), v.value());
            let (qr, kr, vr) = (q.slice::<E>()?, k.slice::<E>()?, v.slice::<E>()?);
            let segments: Vec<_> = documents
                .ranges()
                .map(|r| cpu::Segment {
                    q: &qr[r.start * q.cols()..r.end * q.cols()],
                    k: &kr[r.start * k.cols()..r.end * k.cols()],
                    v: &vr[r.start * v.cols()..r.end * v.cols()],
                })
                .collect();
            let (out, lse) = cpu::forward(&segments, config);
            (Tensor::from_reals(out, q.shape(), dtype), Tensor::new(lse, &[config.heads, q.rows()]))
        })
    };
    let needs = q.needs_grad() || k.needs_grad() || v.needs_grad();
    Ok(tape.record(out.clone(), needs, || AttentionBackward {
        sources: [q.source(), k.source(), v.source()],
        q: q.value().clone(),
        k: k.value().clone(),
        v: v.value().clone(),
        out,
        lse,
        documents: documents.clone(),
        config: *config,
    }))
}

/// Keys and values of one sequence in one layer, `[tokens, kv_heads · head_dim]` each: of all its tokens, or of the last
/// ones, if [those before](KvCache::forget_first) can no longer be seen.
#[derive(Clone, Debug, Default)]
pub struct KvCache {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl KvCache {
    /// Forgets all but the first `to` of the `from` tokens that it holds.
    pub fn shorten(&mut self, from: usize, to: usize) {
        let kept = self.k.len().checked_div(from).unwrap_or(0) * to.min(from);
        self.k.truncate(kept);
        self.v.truncate(kept);
    }

    /// Forgets the first `count` of the `from` tokens that it holds, and keeps memory for `room` more than are left.
    pub fn forget_first(&mut self, from: usize, count: usize, room: usize) {
        let width = self.k.len().checked_div(from).unwrap_or(0);
        let gone = width * count.min(from);
        for side in [&mut self.k, &mut self.v] {
            side.drain(..gone);
            side.shrink_to(side.len() + width * room);
        }
    }

    /// Memory that it takes.
    pub fn bytes(&self) -> usize {
        (self.k.capacity() + self.v.capacity()) * size_of::<f32>()
    }
}

/// Attention of new tokens (document i of `documents` continues the sequence of `caches[i]`) over all tokens so far;
/// the new keys and values are appended. Not differentiable.
pub fn attention_cached(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    documents: &Documents,
    caches: &mut [&mut KvCache],
    config: &AttentionConfig,
) -> Result<Tensor> {
    config.check(q, k, v, documents.tokens())?;
    if q.cuda().is_some() {
        let what = "a cache of keys and values".into();
        return Err(Error::Unsupported { op: "attention", what, on: "CUDA" });
    }
    if caches.len() != documents.len() || q.dtype() == DType::F64 {
        return Err(Error::Invalid(format!(
            "attention: {} caches for {} sequences of {}",
            caches.len(),
            documents.len(),
            q.dtype()
        )));
    }
    let (qr, kr, vr) = (q.reals::<f32>(), k.reals::<f32>(), v.reals::<f32>());
    let kv = k.cols();
    for (cache, r) in caches.iter_mut().zip(documents.ranges()) {
        cache.k.extend_from_slice(&kr[r.start * kv..r.end * kv]);
        cache.v.extend_from_slice(&vr[r.start * kv..r.end * kv]);
    }
    let segments: Vec<_> = documents
        .ranges()
        .zip(caches.iter())
        .map(|(r, cache)| cpu::Segment {
            q: &qr[r.start * q.cols()..r.end * q.cols()],
            k: &cache.k,
            v: &cache.v,
        })
        .collect();
    let (out, _) = cpu::forward(&segments, config);
    Ok(Tensor::from_reals(out, q.shape(), q.dtype()))
}
