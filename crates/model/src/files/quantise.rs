//! f32 to the number formats of files, rounded once: plain ones, and GGUF's blocks bit for bit as ggml's reference quantisers
//! (`quantize_row_q8_0_ref`, `quantize_row_q4_0_ref`) and gguf-py make them. Products and quotients round in f32 in their order.

use half::{bf16, f16};
use rayon::prelude::*;

use super::FileDType;

/// Numbers, or blocks of 32, converted by one task.
const TASK: usize = 1 << 12;

/// The bytes of numbers in a format; `None` for block formats that are only read, and for numbers that are not whole blocks.
pub fn encode(values: &[f32], dtype: FileDType) -> Option<Vec<u8>> {
    match dtype {
        FileDType::F64 => Some(plain(values, |x| f64::from(x).to_le_bytes())),
        FileDType::F32 => Some(plain(values, f32::to_le_bytes)),
        FileDType::F16 => Some(plain(values, |x| f16::from_f32(x).to_le_bytes())),
        FileDType::BF16 => Some(plain(values, |x| bf16::from_f32(x).to_le_bytes())),
        FileDType::Q8_0 => blocks(values, q8_0),
        FileDType::Q4_0 => blocks(values, q4_0),
        _ => None,
    }
}

fn plain<const N: usize>(values: &[f32], f: impl Fn(f32) -> [u8; N] + Sync) -> Vec<u8> {
    let mut out = vec![0u8; values.len() * N];
    let (items, _) = out.as_chunks_mut::<N>();
    items.par_chunks_mut(TASK).zip(values.par_chunks(TASK)).for_each(|(items, values)| {
        for (item, &x) in items.iter_mut().zip(values) {
            *item = f(x);
        }
    });
    out
}

fn blocks<const N: usize>(values: &[f32], f: fn(&[f32; 32]) -> [u8; N]) -> Option<Vec<u8>> {
    let (input, rest) = values.as_chunks::<32>();
    if !rest.is_empty() {
        return None;
    }
    let mut out = vec![0u8; input.len() * N];
    let (items, _) = out.as_chunks_mut::<N>();
    items.par_chunks_mut(TASK).zip(input.par_chunks(TASK)).for_each(|(items, input)| {
        for (item, block) in items.iter_mut().zip(input) {
            *item = f(block);
        }
    });
    Some(out)
}

/// 1/d, and nothing for blocks of zeros.
fn inverse(d: f32) -> f32 {
    if d == 0.0 { 0.0 } else { 1.0 / d }
}

/// d = max|x|/127 as f16, then x/d rounded half away from zero. The division is by the d of f32, not by the rounded one.
fn q8_0(block: &[f32; 32]) -> [u8; 34] {
    let d = block.iter().fold(0.0f32, |m, x| m.max(x.abs())) / 127.0;
    let id = inverse(d);
    let mut out = [0; 34];
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (o, x) in out[2..].iter_mut().zip(block) {
        *o = (x * id).round() as i8 as u8;
    }
    out
}

/// d = x/−8 for the x of the largest magnitude (the first of them), then x/d + 8.5 cut to a whole number up to 15; numbers 0..16
/// are low nibbles, 16..32 high ones.
fn q4_0(block: &[f32; 32]) -> [u8; 18] {
    let largest = block.iter().fold(0.0f32, |m, &x| if m.abs() < x.abs() { x } else { m });
    let d = largest / -8.0;
    let id = inverse(d);
    let nibble = |x: f32| ((x * id + 8.5) as i8 as u8).min(15);
    let mut out = [0; 18];
    out[..2].copy_from_slice(&f16::from_f32(d).to_le_bytes());
    for (i, o) in out[2..].iter_mut().enumerate() {
        *o = nibble(block[i]) | (nibble(block[i + 16]) << 4);
    }
    out
}
