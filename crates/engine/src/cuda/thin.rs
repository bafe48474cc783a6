//! Products of a tall matrix in bf16 with adapters' factors, several at a time: each reads the matrix once. What the kernels do not
//! take (other types, odd ranks, few rows) is left to the caller and cuBLASLt.

use std::sync::Arc;

use super::{Arg, CudaBuffer, CudaDevice, Source};
use crate::error::Result;
use crate::ops::{Activation, activation_name};
use crate::{DType, profile};

pub(crate) static SOURCE: Source = Source {
    name: "thin",
    text: concat!(include_str!("../ops/gated/activations.cuh"), include_str!("thin.cu")),
    variants: &[1, 2, 3, 4],
    hopper: false,
};

/// Groups of 8 ranks that the kernels have room for.
const GROUPS: usize = 8;
/// Below this a launch costs more than the product.
const LEAST_ROWS: usize = 64;
/// Rows of a step of the kernel that sums over rows, and the fewest steps of a block.
const STEP: usize = 16;
const LEAST_STEPS: usize = 8;

/// A matrix `[n, k]` and the rank of each factor that it is multiplied with.
#[derive(Clone, Copy)]
pub(crate) struct Tall<'a> {
    pub x: &'a CudaBuffer,
    pub n: usize,
    pub k: usize,
    pub r: usize,
}

/// h `[n, r]` in bf16 or f32 = scale · x · Aᵀ, A `[r, k]`.
pub(crate) struct Down<'a> {
    pub a: &'a CudaBuffer,
    pub h: &'a CudaBuffer,
    pub scale: f64,
}

/// d `[r, k]` in f32 = eᵀ·x, e `[n, r]`; or its transpose `[k, r]`.
pub(crate) struct Sum<'a> {
    pub e: &'a CudaBuffer,
    pub d: &'a CudaBuffer,
}

/// What else is done in a pass over x.
pub(crate) enum Also<'a> {
    Nothing,
    Up(Up<'a>),
    /// What was given as x is only what x is made of: x·rstd·(offset + w), rstd `[n]` and w `[k]`.
    Normed {
        rstd: &'a CudaBuffer,
        w: &'a CudaBuffer,
        offset: f64,
    },
    /// The same of activation(x)·up.
    Gated {
        up: &'a CudaBuffer,
        activation: Activation,
    },
}

/// h `[n, r]` in bf16 = scale · x · b, b `[k, r]`.
pub(crate) struct Up<'a> {
    pub b: &'a CudaBuffer,
    pub h: &'a CudaBuffer,
    pub scale: f64,
    pub scaling: Option<Scaling<'a>>,
}

/// DoRA's part: before everything else m `[k]` = factor ∘ Σ x∘u over the rows, and x becomes g∘x, which goes to `scaled`.
pub(crate) struct Scaling<'a> {
    pub u: &'a CudaBuffer,
    pub g: &'a CudaBuffer,
    pub scaled: &'a CudaBuffer,
    pub factor: &'a CudaBuffer,
    pub m: &'a CudaBuffer,
}

fn pointer(buffer: Option<&CudaBuffer>) -> u64 {
    buffer.map_or(0, CudaBuffer::pointer)
}

/// The addresses of groups of 8 ranks of matrices with r ranks each; `between` is the distance of two ranks in bytes.
fn groups<'a>(of: impl Iterator<Item = &'a CudaBuffer>, r: usize, between: usize) -> [u64; GROUPS] {
    let mut groups = [0; GROUPS];
    let all = of.flat_map(|b| (0..r / 8).map(move |i| b.pointer() + (i * 8 * between) as u64));
    groups.iter_mut().zip(all).for_each(|(group, pointer)| *group = pointer);
    groups
}

impl CudaDevice {
    /// How many factors of rank r the kernels take at a time beside a matrix `[n, k]`; 0 if they are not for it.
    pub(crate) fn thin_at_once(&self, Tall { x, n, k, r }: Tall<'_>) -> usize {
        if self.thin_makes(x.dtype(), n, r, k) { GROUPS * 8 / r } else { 0 }
    }

    /// Whether they take a matrix of this type that is yet to be made.
    pub(crate) fn thin_makes(&self, dtype: DType, n: usize, r: usize, k: usize) -> bool {
        let ranks = r > 0 && r.is_multiple_of(8) && r <= GROUPS * 8;
        let here = dtype == DType::BF16 && !self.plans_processor();
        here && n >= LEAST_ROWS && k > 0 && k.is_multiple_of(8) && ranks
    }

    /// At most [`thin_at_once`](Self::thin_at_once) products with one x `[n, k]`.
    pub(crate) fn thin_down(&self, Tall { x, n, k, r }: Tall<'_>, parts: &[Down<'_>]) -> Result<()> {
        let Some(first) = parts.first() else { return Ok(()) };
        let ranks = r * parts.len();
        let tiles = ranks.div_ceil(16);
        // Two tiles of rows a warp read the factors half as often; few rows are better shared by many blocks.
        let m = if n >= 16 * 2 * self.processors() as usize { 2 } else { 1 };
        let groups_of_rows = if m == 2 && tiles < 4 { 2 } else { 1 };
        let a = groups(parts.iter().map(|p| p.a), r, k * 2);
        let size = first.h.dtype().size();
        let mut out = [0; GROUPS + GROUPS / 2];
        out[..GROUPS].copy_from_slice(&groups(parts.iter().map(|p| p.h), r, size));
        let scales = parts.iter().flat_map(|p| (0..r / 8).map(|_| (p.scale as f32).to_bits() as u64));
        for (i, scale) in scales.enumerate() {
            out[GROUPS + i / 2] |= scale << (i % 2 * 32);
        }
        let args = [
            x.pointer().into(),
            n.into(),
            k.into(),
            Arg::Struct(&a),
            Arg::Struct(&out),
            r.into(),
            i32::from(first.h.dtype() == DType::F32).into(),
        ];
        let (threads, rows) = (256 * groups_of_rows, 16 * m * groups_of_rows);
        let ring = 8 * groups_of_rows * 3 * m * 2 * 512;
        let shared = ring.max(8 * groups_of_rows * tiles * 2 * 2 * 128);
        profile::count(2.0 * (n * k * ranks) as f64, (2 * k * (n + ranks) + size * n * ranks) as f64);
        let grid = [n.div_ceil(rows), 1, 1];
        self.launch((&SOURCE, tiles as u32), &format!("down_{m}"), grid, threads as u32, shared, &args)
    }

    /// At most [`thin_at_once`](Self::thin_at_once) sums over the rows of one x `[n, k]`, and what is done beside one; `turned`:
    /// to `[k, r]`.
    pub(crate) fn thin_across(
        self: &Arc<Self>,
        Tall { x, n, k, r }: Tall<'_>,
        sums: &[Sum<'_>],
        turned: bool,
        also: &Also<'_>,
    ) -> Result<()> {
        let ranks = r * sums.len();
        let tiles = ranks.div_ceil(16);
        let up = if let Also::Up(up) = also { Some(up) } else { None };
        let s = up.and_then(|up| up.scaling.as_ref());
        let (scaled, is_up) = (s.is_some(), up.is_some());
        let kind = match also {
            Also::Nothing => "plain",
            Also::Up(_) if scaled => "scaled",
            Also::Up(_) => "both",
            Also::Normed { .. } => "normed",
            Also::Gated { activation, .. } => activation_name(*activation),
        };
        let wide = tiles <= if is_up { 1 } else { 2 };
        let columns = if wide { 2 } else { 1 };
        let across = k.div_ceil(8 * 32 * columns);
        let (steps, processors) = (n.div_ceil(STEP), self.processors() as usize);
        let at_a_time = if is_up && tiles > 2 { 1 } else { 2 };
        let parts = (at_a_time * processors / across).clamp(1, steps.div_ceil(LEAST_STEPS));
        let rows = steps.div_ceil(parts) * STEP;
        let parts = n.div_ceil(rows);

        let twice = scaled || matches!(also, Also::Gated { .. });
        let depth = if twice || is_up && tiles >= 3 { 2 } else { 4 };
        let stage = (if twice { 4 } else { 2 } * columns + tiles) * 512;
        let flips = if tiles >= 3 { 1 } else { 2 };
        let shared = 8 * depth * stage + if is_up { flips * 8 * tiles * 2 * 512 } else { 0 };

        let partial = self.scratch(parts * tiles * 16 * k * 4)?;
        let of_down = if is_up { across * steps * tiles * 2 * 128 * 4 } else { 0 };
        let down = self.scratch(of_down)?;
        let dm = self.scratch(if scaled { parts * k * 4 } else { 0 })?;
        let [b, h] = [up.map(|up| up.b), up.map(|up| up.h)];
        let scale = up.map_or(0.0, |up| up.scale as f32);
        let (other, rstd, w, offset) = match *also {
            Also::Normed { rstd, w, offset } => (None, Some(rstd), Some(w), offset),
            Also::Gated { up, .. } => (Some(up), None, None, 0.0),
            _ => (None, None, None, 0.0),
        };
        let e = groups(sums.iter().map(|s| s.e), r, 2);
        let own = [
            pointer(b),
            down.pointer,
            pointer(s.map(|s| s.u)),
            pointer(s.map(|s| s.g)),
            pointer(s.map(|s| s.scaled)),
            dm.pointer,
            pointer(other),
            pointer(rstd),
            pointer(w),
            u64::from((offset as f32).to_bits())
                | u64::from(w.is_some_and(|w| w.dtype() == DType::BF16)) << 32,
        ];
        let args = [
            x.pointer().into(),
            n.into(),
            k.into(),
            rows.into(),
            Arg::Struct(&e),
            r.into(),
            partial.pointer.into(),
            Arg::Struct(&own),
        ];
        let passes = if is_up { 4.0 } else { 2.0 };
        let moved = n
            * k
            * if scaled {
                3
            } else if twice {
                2
            } else {
                1
            }
            + n * ranks
            + k * ranks;
        profile::count(passes * (n * k * ranks) as f64, 2.0 * moved as f64);
        let source = (&SOURCE, tiles as u32);
        self.launch(source, &format!("across_{kind}"), [across, parts, 1], 256, shared, &args)?;

        let mut totals = [0; GROUPS + 12];
        let between = if turned { 4 } else { 4 * k };
        totals[..GROUPS].copy_from_slice(&groups(sums.iter().map(|s| s.d), r, between));
        let more = [
            partial.pointer,
            down.pointer,
            dm.pointer,
            pointer(h),
            pointer(s.map(|s| s.factor)),
            pointer(s.map(|s| s.m)),
            parts as u64,
            across as u64,
            n as u64,
            k as u64,
            r as u64,
            u64::from(turned) | u64::from(scale.to_bits()) << 32,
        ];
        totals[GROUPS..].copy_from_slice(&more);
        let tasks =
            tiles * 16 * k / 4 + if is_up { steps * tiles * 2 * 64 } else { 0 } + if scaled { k } else { 0 };
        let args = [Arg::Struct(&totals)];
        self.launch(source, "totals", [tasks.div_ceil(256), 1, 1], 256, 0, &args)
    }
}
