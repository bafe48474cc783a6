//! GGUF's block formats to f32, number for number as gguf-py's `gguf.quants.dequantize` (and llama.cpp) does it. The
//! order of the operations matters: each product and difference rounds in f32.
//!
//! Layouts are those of `ggml-common.h`; `d`, `m` are f16 at the places given.

use half::f16;
use rayon::prelude::*;

use super::FileDType;

/// Blocks handled by one task.
const TASK: usize = 256;

/// Dequantises whole blocks; plain formats give nothing.
pub(crate) fn dequantise(dtype: FileDType, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        FileDType::Q8_0 => blocks::<34, 32>(bytes, q8_0),
        FileDType::Q4_0 => blocks::<18, 32>(bytes, q4_0),
        FileDType::Q4_1 => blocks::<20, 32>(bytes, q4_1),
        FileDType::Q5_0 => blocks::<22, 32>(bytes, q5_0),
        FileDType::Q5_1 => blocks::<24, 32>(bytes, q5_1),
        FileDType::Q4K => blocks::<144, 256>(bytes, q4_k),
        FileDType::Q5K => blocks::<176, 256>(bytes, q5_k),
        FileDType::Q6K => blocks::<210, 256>(bytes, q6_k),
        FileDType::F64 | FileDType::F32 | FileDType::F16 | FileDType::BF16 => Vec::new(),
    }
}

fn blocks<const IN: usize, const OUT: usize>(bytes: &[u8], f: fn(&[u8; IN], &mut [f32; OUT])) -> Vec<f32> {
    let (input, _) = bytes.as_chunks::<IN>();
    let mut out = vec![0.0f32; input.len() * OUT];
    let (output, _) = out.as_chunks_mut::<OUT>();
    output.par_chunks_mut(TASK).zip(input.par_chunks(TASK)).for_each(|(output, input)| {
        for (o, i) in output.iter_mut().zip(input) {
            f(i, o);
        }
    });
    out
}

fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// d, then 32 signed bytes.
fn q8_0(b: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (o, &q) in out.iter_mut().zip(&b[2..]) {
        *o = f32::from(q as i8) * d;
    }
}

/// d, then 16 bytes: low nibbles are numbers 0..16, high ones 16..32.
fn q4_0(b: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    for (i, &q) in b[2..].iter().enumerate() {
        out[i] = d * (f32::from(q & 15) - 8.0);
        out[i + 16] = d * (f32::from(q >> 4) - 8.0);
    }
}

/// d, m, then nibbles as in Q4_0.
fn q4_1(b: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    for (i, &q) in b[4..].iter().enumerate() {
        out[i] = d * f32::from(q & 15) + m;
        out[i + 16] = d * f32::from(q >> 4) + m;
    }
}

/// The fifth bits (one u32) of number i, as 0 or 16.
fn fifth(high: u32, i: usize) -> u8 {
    (((high >> i) & 1) << 4) as u8
}

/// d, 32 fifth bits, nibbles.
fn q5_0(b: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(b, 0);
    let high = u32::from_le_bytes([b[2], b[3], b[4], b[5]]);
    for (i, &q) in b[6..].iter().enumerate() {
        out[i] = d * (f32::from((q & 15) | fifth(high, i)) - 16.0);
        out[i + 16] = d * (f32::from((q >> 4) | fifth(high, i + 16)) - 16.0);
    }
}

/// d, m, 32 fifth bits, nibbles.
fn q5_1(b: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(b, 0), half_at(b, 2));
    let high = u32::from_le_bytes([b[4], b[5], b[6], b[7]]);
    for (i, &q) in b[8..].iter().enumerate() {
        out[i] = d * f32::from((q & 15) | fifth(high, i)) + m;
        out[i + 16] = d * f32::from((q >> 4) | fifth(high, i + 16)) + m;
    }
}

/// Scale and minimum (6 bits each) of sub-block `j` of 8, from 12 packed bytes.
fn scale_min(s: &[u8], j: usize) -> (f32, f32) {
    let (scale, min) = if j < 4 {
        (s[j] & 63, s[j + 4] & 63)
    } else {
        ((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4))
    };
    (f32::from(scale), f32::from(min))
}

/// d, dmin, 12 bytes of scales, then 128 bytes of nibbles: 32 bytes hold two sub-blocks of 32.
fn q4_k(b: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], j);
        let (scale, min) = (d * scale, dmin * min);
        let quants = &b[16 + 32 * (j / 2)..][..32];
        for (o, &q) in out.iter_mut().zip(quants) {
            *o = scale * f32::from((q >> (4 * (j % 2))) & 15) - min;
        }
    }
}

/// d, dmin, 12 bytes of scales, 32 bytes of fifth bits (bit j for sub-block j), nibbles as in Q4_K.
fn q5_k(b: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(b, 0), half_at(b, 2));
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, min) = scale_min(&b[4..16], j);
        let (scale, min) = (d * scale, dmin * min);
        let quants = &b[48 + 32 * (j / 2)..][..32];
        for ((o, &q), &high) in out.iter_mut().zip(quants).zip(&b[16..48]) {
            let value = ((q >> (4 * (j % 2))) & 15) | (((high >> j) & 1) << 4);
            *o = scale * f32::from(value) - min;
        }
    }
}

/// 128 bytes of low nibbles, 64 of high bit pairs, 16 signed scales (one per 16 numbers), d. Each half of 128 numbers
/// has 64 + 32 bytes; its quarters of 32 take nibble `q / 2` of bytes `32·(q % 2)..` and bit pair `q`.
fn q6_k(b: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(b, 208);
    for (k, out) in out.chunks_exact_mut(32).enumerate() {
        let (half, quarter) = (k / 4, k % 4);
        let low = &b[64 * half + 32 * (quarter % 2)..][..32];
        let high = &b[128 + 32 * half..][..32];
        for (i, o) in out.iter_mut().enumerate() {
            let value = ((low[i] >> (4 * (quarter / 2))) & 15) | (((high[i] >> (2 * quarter)) & 3) << 4);
            let scale = d * f32::from(b[192 + 2 * k + i / 16] as i8);
            *o = scale * (f32::from(value) - 32.0);
        }
    }
}
