//! Sums of products: one kernel on Hopper, one product after the other by cuBLASLt elsewhere.

use super::{Arg, CudaBuffer, CudaDevice, Factor, Map, Source};
use crate::error::Result;
use crate::{DType, profile};

pub(crate) static SOURCE: Source =
    Source { name: "sums", text: include_str!("sums.cu"), variants: &[0], hopper: true };

/// What the kernel has room for.
pub(crate) const TERMS: usize = 8;
const ROWS: usize = 128;
/// Shared memory: stages, results on their way out, barriers, and what aligning takes.
const SHARED: usize = 4 * (128 + 256) * 128 + 2 * 64 * 256 + 256 + 1024;
/// The least share of the card that tiles must keep busy; below it cuBLASLt's choice of tiles is worth more.
const BUSY: f64 = 0.7;

/// What is done to a sum on its way out: times a factor by column, plus a bias by column, plus a matrix.
#[derive(Clone, Copy, Default)]
pub(crate) struct Finish<'a> {
    /// In f32, as is the bias.
    pub scale: Option<&'a CudaBuffer>,
    pub bias: Option<&'a CudaBuffer>,
    /// In the result's type; may be the result's own buffer.
    pub added: Option<&'a CudaBuffer>,
}

/// Maps of the factors and the steps of each term, as the kernel takes them.
#[repr(C, align(64))]
struct Terms([u64; 264]);

impl CudaDevice {
    /// c `[m, n]` = finish(Σ a·b) for terms a `[m, k]`, b `[k, n]`, the largest first; rounded once where it is one kernel.
    ///
    /// # Errors
    /// As of [`product`](CudaDevice::product).
    pub(crate) fn sum(
        &self,
        c: (&CudaBuffer, [usize; 2]),
        terms: &[[Factor<'_>; 2]],
        finish: Finish<'_>,
    ) -> Result<()> {
        let (buffer, [m, n]) = c;
        let to = Factor::new(buffer, m, n);
        if let Some(columns) = self.columns([m, n], to, terms, finish) {
            return self.sum_at_once(to, terms, finish, columns);
        }
        let in_place = finish.added.is_some_and(|added| added.pointer() == buffer.pointer());
        let plain = finish.scale.is_none() && finish.bias.is_none();
        let after = match finish.added {
            Some(added) if plain && !in_place => {
                self.copy(buffer.pointer(), added.pointer(), buffer.len() * buffer.dtype().size())?;
                true
            }
            _ => in_place && plain,
        };
        if in_place && !plain {
            let what = "a scaled sum that is added to its destination".into();
            return Err(crate::Error::Unsupported { op: "sum", what, on: "CUDA" });
        }
        // The smallest first: what comes after reads it while it multiplies.
        for (i, &[a, b]) in terms.iter().rev().enumerate() {
            self.product(to, a, b, 1.0, after || i > 0)?;
        }
        match plain {
            true => Ok(()),
            false => crate::ops::elementwise::finish_in_place(buffer, n, finish),
        }
    }

    /// The width of a tile if the kernel is to be taken.
    fn columns(
        &self,
        [m, n]: [usize; 2],
        c: Factor<'_>,
        terms: &[[Factor<'_>; 2]],
        finish: Finish<'_>,
    ) -> Option<usize> {
        let fits = |f: &Factor<'_>| {
            f.dtype() == DType::BF16 && f.stride().is_multiple_of(8) && f.pointer().is_multiple_of(16)
        };
        let [_, first] = terms.first()?;
        let alike = terms.iter().all(|[a, b]| {
            fits(a) && fits(b) && !a.is_turned() && b.is_turned() == first.is_turned() && a.columns() > 0
        });
        let wide = [finish.scale, finish.bias].into_iter().flatten().all(|v| v.pointer().is_multiple_of(8));
        let known = self.is_hopper() && fits(&c) && alike && wide && terms.len() <= TERMS && m > 0 && n > 0;
        let busy = |columns: usize| {
            let tiles = m.div_ceil(ROWS) * n.div_ceil(columns);
            let processors = self.processors() as usize;
            (m * n) as f64 / (tiles.next_multiple_of(processors) * ROWS * columns) as f64
        };
        // Wider tiles read less.
        let [wide, narrow] = [busy(256), 0.93 * busy(128)];
        (known && wide.max(narrow) >= BUSY).then_some(if wide >= narrow { 256 } else { 128 })
    }

    fn sum_at_once(
        &self,
        c: Factor<'_>,
        terms: &[[Factor<'_>; 2]],
        finish: Finish<'_>,
        columns: usize,
    ) -> Result<()> {
        let (m, n) = (c.rows(), c.columns());
        let across = !terms[0][1].is_turned();
        let mut own = Terms([0; 264]);
        let mut put = |i: usize, map: Map| own.0[i * 16..][..16].copy_from_slice(&map.0);
        let mut steps = [0u64; TERMS];
        for (i, [a, b]) in terms.iter().enumerate() {
            self.check_product([m, n], [a, b])?;
            put(i, self.map(a.pointer(), a.stored(), a.stride(), ROWS as u32)?);
            put(TERMS + i, self.map(b.pointer(), b.stored(), b.stride(), if across { 64 } else { 128 })?);
            steps[i] = a.columns().div_ceil(64) as u64;
            profile::count(2.0 * (m * n * a.columns()) as f64, (a.bytes() + b.bytes()) as f64);
        }
        profile::count(0.0, c.bytes() as f64);
        for (i, two) in steps.chunks(2).enumerate() {
            own.0[2 * TERMS * 16 + i] = two[0] | two[1] << 32;
        }
        own.0[2 * TERMS * 16 + TERMS / 2] = terms.len() as u64;
        let to = self.map(c.pointer(), [m, n], n, 64)?;
        let pointer = |b: Option<&CudaBuffer>| Arg::from(b.map_or(0, CudaBuffer::pointer));
        let [added, scale, bias] = [finish.added, finish.scale, finish.bias].map(pointer);
        let args =
            [Arg::Struct(&own.0), (&to).into(), added, scale, bias, (m as i32).into(), (n as i32).into()];
        let blocks = (m.div_ceil(ROWS) * n.div_ceil(columns)).min(self.processors() as usize);
        let name = format!("{}_{columns}", if across { "across" } else { "along" });
        self.launch((&SOURCE, 0), &name, [blocks, 1, 1], 384, SHARED, &args)
    }
}
