//! Attention on a card: tiles on tensor cores for bf16, and plain kernels for f32 and odd head sizes.

use std::sync::Arc;

use super::{AttentionConfig, Documents, hopper};
use crate::cuda::{Arg, CudaBuffer, CudaDevice, Source};
use crate::error::{Error, Result};
use crate::ops::elementwise::{args, suffix};
use crate::{DType, profile};

pub(crate) static PLAIN: Source =
    Source { name: "attention", text: include_str!("plain.cu"), variants: &[0], hopper: false };
pub(crate) static FLASH: Source =
    Source { name: "flash", text: include_str!("flash.cu"), variants: &[64, 128, 256], hopper: false };

/// Rows of a tile, of queries or keys.
const ROWS: usize = 64;
/// Keys or queries that the backward takes at a time.
const STRIP: usize = 32;
/// The largest head that the plain kernels have registers for.
const LARGEST: usize = 512;
/// Warps of a block of the plain kernels.
const WARPS: usize = 4;

/// The saved log-sum-exp is in f32.
pub(super) struct Forward {
    pub out: CudaBuffer,
    pub lse: CudaBuffer,
}

pub(super) struct Shape<'a> {
    pub device: &'a Arc<CudaDevice>,
    pub documents: &'a Documents,
    pub config: &'a AttentionConfig,
    pub tokens: usize,
    pub dtype: DType,
}

impl<'a> Shape<'a> {
    fn new(q: &'a CudaBuffer, documents: &'a Documents, config: &'a AttentionConfig) -> Result<Shape<'a>> {
        if config.head_dim > LARGEST {
            let what = format!("heads of {}, more than {LARGEST}", config.head_dim);
            return Err(Error::Unsupported { op: "attention", what, on: "CUDA" });
        }
        Ok(Shape { device: q.device(), documents, config, tokens: documents.tokens(), dtype: q.dtype() })
    }

    fn is_flash(&self) -> bool {
        let dim = self.config.head_dim;
        self.dtype == DType::BF16 && dim.is_multiple_of(16) && dim <= 256
    }

    /// Tiles of each document, those with the most work first: late queries, or early keys.
    fn tiles(&self, by_key: bool) -> Result<(Arc<crate::cuda::Memory>, usize)> {
        let tiles = |starts: &[usize]| {
            let mut tiles = Vec::new();
            for document in starts.windows(2) {
                tiles.extend(
                    (document[0]..document[1]).step_by(ROWS).map(|row| [row, document[0], document[1]]),
                );
            }
            tiles.sort_by_key(|&[row, first, end]| {
                std::cmp::Reverse(if by_key { end - row } else { row - first })
            });
            tiles
        };
        let count = self.documents.ranges().map(|r| r.len().div_ceil(ROWS)).sum();
        let what = if by_key { "tiles of keys" } else { "tiles of queries" };
        let memory = self.device.constant(what, &self.documents.0, |starts| {
            tiles(starts).into_iter().flatten().map(|x| x as u32).collect()
        })?;
        Ok((memory, count))
    }

    /// First token, or end, of each token's document.
    fn bounds(&self, ends: bool) -> Result<Arc<crate::cuda::Memory>> {
        let what = if ends { "ends of documents" } else { "starts of documents" };
        self.device.constant(what, &self.documents.0, |starts| {
            let documents = starts.windows(2);
            documents.flat_map(|d| vec![(if ends { d[1] } else { d[0] }) as u32; d[1] - d[0]]).collect()
        })
    }

    /// Elements of a row of a tile in shared memory.
    fn pitch(&self) -> usize {
        self.config.head_dim.next_multiple_of(64)
    }

    pub fn cap(&self) -> f32 {
        self.config.softcap.unwrap_or(0.0) as f32
    }

    /// A tiled kernel, with its own arguments and the shape.
    fn flash(&self, name: &str, by_key: bool, heads: usize, rows: usize, own: &[u64]) -> Result<()> {
        let c = self.config;
        let (tiles, count) = self.tiles(by_key)?;
        let mut all: Vec<Arg<'_>> = own.iter().map(|&p| Arg::from(p)).collect();
        all.push(tiles.pointer.into());
        let window = c.window.unwrap_or(usize::MAX).min(1 << 30) as i32;
        for number in [self.tokens as i32, c.heads as i32, c.kv_heads as i32, window] {
            all.push(number.into());
        }
        all.extend([Arg::from(c.scale as f32), Arg::from(self.cap())]);
        let shared = rows * self.pitch() * 2 + if by_key { 4 * STRIP * 4 } else { 0 };
        self.device.launch((&FLASH, c.head_dim as u32), name, [count, heads, 1], 128, shared, &all)
    }

    /// A plain kernel; `rows` are the rows of a head that a warp holds.
    fn plain(&self, name: &str, heads: usize, rows: usize, own: &[u64]) -> Result<()> {
        let c = self.config;
        let mut all: Vec<Arg<'_>> = own.iter().map(|&p| Arg::from(p)).collect();
        all.extend([self.tokens, c.heads, c.kv_heads, c.head_dim].map(Arg::from));
        all.extend([Arg::from(c.scale as f32), Arg::from(self.cap())]);
        all.push(c.window.unwrap_or(usize::MAX).min(1 << 40).into());
        let name = format!("{name}_{}", suffix("attention", self.dtype)?);
        let grid = [self.tokens.div_ceil(WARPS), heads, 1];
        self.device.launch((&PLAIN, 0), &name, grid, 32 * WARPS as u32, WARPS * rows * c.head_dim * 4, &all)
    }

    /// Floating-point operations of `products` products over the visible scores.
    fn count(&self, products: f64) {
        let window = self.config.window.unwrap_or(usize::MAX);
        let seen = |n: usize| {
            let (full, growing) = (n.saturating_sub(window), n.min(window));
            growing * (growing + 1) / 2 + full * growing
        };
        let scores: usize = self.documents.ranges().map(|r| seen(r.len())).sum();
        profile::count(2.0 * products * (scores * self.config.heads * self.config.head_dim) as f64, 0.0);
    }
}

pub(super) fn forward(
    [q, k, v]: [&CudaBuffer; 3],
    documents: &Documents,
    config: &AttentionConfig,
) -> Result<Forward> {
    let s = Shape::new(q, documents, config)?;
    // The processor's heads, in f32, and the same side by side.
    s.device.passing(&[4 * q.len(), 4 * q.len()])?;
    let out = CudaBuffer::any(s.device, s.dtype, q.len())?;
    let to = Forward { out, lse: CudaBuffer::any(s.device, DType::F32, config.heads * s.tokens)? };
    let [o, l] = [to.out.pointer(), to.lse.pointer()];
    if hopper::is_for(&s) {
        hopper::forward(&s, [q, k, v], &to)?;
        s.count(2.0);
        return Ok(to);
    }
    let [q, k, v] = [q.pointer(), k.pointer(), v.pointer()];
    if s.is_flash() {
        let keys = if config.head_dim <= 128 { 64 } else { 32 };
        s.flash("forward", false, config.heads, 4 * keys, &[o, l, q, k, v])?;
    } else {
        let first = s.bounds(false)?;
        s.plain("forward", config.heads, 1, &[o, l, q, k, v, first.pointer])?;
    }
    s.count(2.0);
    Ok(to)
}

/// Gradients of q, k and v.
pub(super) fn backward(
    [q, k, v]: [&CudaBuffer; 3],
    [out, lse, dout]: [&CudaBuffer; 3],
    documents: &Documents,
    config: &AttentionConfig,
) -> Result<[CudaBuffer; 3]> {
    let s = Shape::new(q, documents, config)?;
    let any = |like: &CudaBuffer| CudaBuffer::any(s.device, s.dtype, like.len());
    // Likewise; gradients of keys and values come by query head.
    let [of_q, of_kv] = [4 * q.len(), 4 * k.len()];
    s.device.passing(&[of_q, of_q, of_q, of_q, of_kv, of_kv])?;
    let gradients = [any(q)?, any(k)?, any(v)?];
    let deltas = CudaBuffer::any(s.device, DType::F32, config.heads * s.tokens)?;
    let rows = s.tokens * config.heads;
    let args =
        args![deltas.pointer(), dout.pointer(), out.pointer(), s.tokens, config.heads, config.head_dim];
    let name = format!("delta_{}", suffix("attention", s.dtype)?);
    s.device.launch((&PLAIN, 0), &name, [rows.div_ceil(WARPS), 1, 1], 32 * WARPS as u32, 0, args)?;

    s.count(5.0);
    if hopper::is_for(&s) {
        hopper::backward(&s, [q, k, v, dout], [lse, &deltas], &gradients)?;
        return Ok(gradients);
    }
    let [dq, dk, dv] = [0, 1, 2].map(|i| gradients[i].pointer());
    let inputs = [q, k, v, dout, lse, &deltas].map(CudaBuffer::pointer);
    let with = |outputs: &[u64]| [outputs, &inputs].concat();
    if s.is_flash() {
        let wide = config.head_dim > 128;
        let (own, strips) = (2 * ROWS, 4 * STRIP);
        let of_q = if wide { own + strips } else { own.max(strips) };
        s.flash("backward_q", false, config.heads, of_q, &with(&[dq]))?;
        let kernels: &[&str] = if wide { &["backward_k", "backward_v"] } else { &["backward_kv"] };
        for kernel in kernels {
            s.flash(kernel, true, config.kv_heads, own + strips, &with(&[dk, dv]))?;
        }
    } else {
        let (first, end) = (s.bounds(false)?, s.bounds(true)?);
        let with_bounds = |outputs: &[u64], bounds: u64| [&with(outputs)[..], &[bounds]].concat();
        s.plain("backward_q", config.heads, 2, &with_bounds(&[dq], first.pointer))?;
        s.plain("backward_kv", config.kv_heads, 2, &with_bounds(&[dk, dv], end.pointer))?;
    }
    Ok(gradients)
}
