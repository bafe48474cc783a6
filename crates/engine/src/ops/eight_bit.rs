//! Optimiser states of 8 bits a number: block-wise dynamic quantisation (Dettmers et al., arXiv 2110.02861).

use std::sync::LazyLock;

use rayon::prelude::*;

use super::adamw::AdamW;
use super::lion::Lion;
use crate::Tensor;
use crate::error::{Error, Result, check_shape};
use crate::profile::{self, Pass};

/// Numbers that share a scale; bitsandbytes' size for optimisers.
pub const BLOCK: usize = 256;

/// The 256 values that codes stand for, ascending, from -1 (or 0) to 1: an exponent of base 10 whose length says how many bits are
/// left for the fraction.
struct Map([f32; 256]);

impl Map {
    /// bitsandbytes' `create_dynamic_map(signed, max_exponent_bits=7, total_bits=8)`.
    fn new(signed: bool) -> Map {
        const EXPONENT_BITS: i32 = 7;
        let mut values = Vec::with_capacity(256);
        for i in 0..EXPONENT_BITS {
            let items = if signed { (1usize << i) + 1 } else { (1usize << (i + 1)) + 1 };
            // Rounded as there: means of neighbouring bounds in f32, the power of ten in f64.
            let bounds = linspace(items);
            let power = 10f64.powi(i - (EXPONENT_BITS - 1));
            for pair in bounds.windows(2) {
                let value = (power * f64::from((pair[0] + pair[1]) / 2.0)) as f32;
                values.push(value);
                if signed {
                    values.push(-value);
                }
            }
        }
        values.extend([0.0, 1.0]);
        values.resize(256, 0.0);
        values.sort_by(f32::total_cmp);
        let mut map = [0.0; 256];
        map.copy_from_slice(&values);
        Map(map)
    }

    /// The code of the nearest value; of two as near, the smaller one.
    fn nearest(&self, x: f32) -> u8 {
        let above = self.0.partition_point(|&v| v < x).clamp(1, 255);
        let (low, high) = (self.0[above - 1], self.0[above]);
        (if x - low <= high - x { above - 1 } else { above }) as u8
    }
}

/// `n` numbers from 0.1 to 1 in equal steps, as `torch.linspace` rounds them: from both ends to the middle.
fn linspace(n: usize) -> Vec<f32> {
    let (start, end) = (0.1f32, 1.0f32);
    let step = (end - start) / (n - 1) as f32;
    let at = |i: usize| if i < n / 2 { start + step * i as f32 } else { end - step * (n - 1 - i) as f32 };
    (0..n).map(at).collect()
}

static SIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(true));
static UNSIGNED: LazyLock<Map> = LazyLock::new(|| Map::new(false));

/// Numbers of 8 bits with a scale for each [`BLOCK`].
#[derive(Clone, Debug, PartialEq)]
pub struct EightBit {
    signed: bool,
    codes: Vec<u8>,
    /// The largest magnitude of each block.
    scales: Vec<f32>,
}

impl EightBit {
    /// `n` zeros; unsigned ones are for what is never negative.
    pub fn zeros(n: usize, signed: bool) -> EightBit {
        let map: &Map = if signed { &SIGNED } else { &UNSIGNED };
        EightBit { signed, codes: vec![map.nearest(0.0); n], scales: vec![0.0; n.div_ceil(BLOCK)] }
    }

    /// Bytes that n numbers take.
    pub fn bytes_for(n: u64) -> u64 {
        n + 4 * n.div_ceil(BLOCK as u64)
    }

    /// Bytes that it takes.
    pub fn bytes(&self) -> u64 {
        (self.codes.len() + 4 * self.scales.len()) as u64
    }

    fn map(&self) -> &'static Map {
        if self.signed { &SIGNED } else { &UNSIGNED }
    }

    /// Codes and scales as tensors of f32, which hold both exactly.
    ///
    /// # Errors
    /// None in practice.
    pub fn tensors(&self) -> Result<[Tensor; 2]> {
        let codes: Vec<f32> = self.codes.iter().map(|&c| f32::from(c)).collect();
        let n = codes.len();
        Ok([Tensor::from_vec(codes, &[n])?, Tensor::from_vec(self.scales.clone(), &[self.scales.len()])?])
    }

    /// What [`EightBit::tensors`] gave.
    ///
    /// # Errors
    /// Tensors that are not of this size, or codes that are none.
    pub fn restore(&mut self, codes: &Tensor, scales: &Tensor) -> Result<()> {
        check_shape("eight bits", "codes", codes.shape(), &[self.codes.len()])?;
        check_shape("eight bits", "scales", scales.shape(), &[self.scales.len()])?;
        for (code, &x) in self.codes.iter_mut().zip(codes.slice::<f32>()?) {
            if x.fract() != 0.0 || !(0.0..=255.0).contains(&x) {
                return Err(Error::Invalid(format!("{x} is no code of 8 bits")));
            }
            *code = x as u8;
        }
        self.scales.copy_from_slice(scales.slice::<f32>()?);
        Ok(())
    }
}

/// The values of a block.
fn read(map: &Map, codes: &[u8], scale: f32, values: &mut [f32; BLOCK]) {
    for (value, &code) in values.iter_mut().zip(codes) {
        *value = map.0[usize::from(code)] * scale;
    }
}

/// Writes the values of a block back under their own scale.
fn write(map: &Map, codes: &mut [u8], scale: &mut f32, values: &[f32; BLOCK]) {
    let values = &values[..codes.len()];
    *scale = values.iter().fold(0.0, |most, v| v.abs().max(most));
    let inverse = if *scale > 0.0 { 1.0 / *scale } else { 0.0 };
    for (code, &value) in codes.iter_mut().zip(values) {
        *code = map.nearest(value * inverse);
    }
}

/// One AdamW step with both moments in 8 bits, as bitsandbytes' `AdamW8bit`: they are read, updated in f32 and rounded again,
/// and p moves by the moments before they are rounded. `step` counts from 1.
///
/// # Errors
/// Shapes that do not belong together, or parameters that are not f32.
pub fn adamw_8bit_step(
    p: &mut Tensor,
    m: &mut EightBit,
    v: &mut EightBit,
    g: &Tensor,
    grad_scale: f64,
    step: u64,
    o: &AdamW,
) -> Result<()> {
    let _span = profile::span("adamw_8bit", Pass::Forward);
    check_shape("adamw_8bit", "gradient", g.shape(), p.shape())?;
    check_shape("adamw_8bit", "moments", &[m.codes.len(), v.codes.len()], &[p.numel(), p.numel()])?;
    let (b1, c1) = (o.beta1 as f32, (1.0 - o.beta1) as f32);
    let (b2, c2) = (o.beta2 as f32, (1.0 - o.beta2) as f32);
    let bias1 = 1.0 - o.beta1.powf(step as f64);
    let bias2 = (1.0 - o.beta2.powf(step as f64)).sqrt() as f32;
    let (size, decay) = ((o.lr / bias1) as f32, (1.0 - o.lr * o.weight_decay) as f32);
    let (eps, scale) = (o.eps as f32, grad_scale as f32);
    let (m_map, v_map) = (m.map(), v.map());
    p.slice_mut::<f32>()?
        .par_chunks_mut(BLOCK)
        .zip(g.slice::<f32>()?.par_chunks(BLOCK))
        .zip(m.codes.par_chunks_mut(BLOCK).zip(&mut m.scales))
        .zip(v.codes.par_chunks_mut(BLOCK).zip(&mut v.scales))
        .for_each(|(((p, g), (m_codes, m_scale)), (v_codes, v_scale))| {
            let (mut m, mut v) = ([0.0; BLOCK], [0.0; BLOCK]);
            read(m_map, m_codes, *m_scale, &mut m);
            read(v_map, v_codes, *v_scale, &mut v);
            for (i, p) in p.iter_mut().enumerate() {
                let g = g[i] * scale;
                m[i] = m[i] * b1 + c1 * g;
                v[i] = v[i] * b2 + c2 * g * g;
                *p = *p * decay - size * (m[i] / (v[i].sqrt() / bias2 + eps));
            }
            write(m_map, m_codes, m_scale, &m);
            write(v_map, v_codes, v_scale, &v);
        });
    Ok(())
}

/// One Lion step with the momentum in 8 bits, as bitsandbytes' `Lion8bit`.
///
/// # Errors
/// As [`adamw_8bit_step`].
pub fn lion_8bit_step(p: &mut Tensor, m: &mut EightBit, g: &Tensor, grad_scale: f64, o: &Lion) -> Result<()> {
    let _span = profile::span("lion_8bit", Pass::Forward);
    check_shape("lion_8bit", "gradient", g.shape(), p.shape())?;
    check_shape("lion_8bit", "momentum", &[m.codes.len()], &[p.numel()])?;
    let map = m.map();
    p.slice_mut::<f32>()?
        .par_chunks_mut(BLOCK)
        .zip(g.slice::<f32>()?.par_chunks(BLOCK))
        .zip(m.codes.par_chunks_mut(BLOCK).zip(&mut m.scales))
        .for_each(|((p, g), (codes, scale))| {
            let mut m = [0.0; BLOCK];
            read(map, codes, *scale, &mut m);
            let n = p.len();
            super::lion::run(p, &mut m[..n], g, grad_scale as f32, o);
            write(map, codes, scale, &m);
        });
    Ok(())
}
