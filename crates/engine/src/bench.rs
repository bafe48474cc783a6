//! Single ops to be timed, and what the machine can do at best.

use std::time::Instant;

use half::bf16;
use rayon::prelude::*;

use crate::cuda::{self, CudaDevice};
use crate::error::Result;
use crate::gemm::{self, Finish, Mat, MatMut, Term, Threads, sum_of_products};
use crate::ops::elementwise;
use crate::{DType, Device, Element, Real, Tensor, pool};

/// The first card, for a test or a benchmark that needs one; or nothing, and a line that says why.
pub fn card() -> Option<Device> {
    match cuda::available() {
        Ok(_) => Some(Device::Cuda(0)),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

/// A product that can be run again and again.
pub struct Product {
    pub name: &'static str,
    pub flops: f64,
    pub run: Box<dyn FnMut()>,
}

/// Numbers that cost little to draw, uniform in ±0.035 (a standard deviation near 0.02), made where they are to be: the same
/// bits on all devices.
///
/// # Errors
/// If the device fails or has no room.
pub fn quick(start: u32, shape: &[usize], dtype: DType, device: Device) -> Result<Tensor> {
    let n = shape.iter().product();
    if let Device::Cuda(ordinal) = device {
        let there = elementwise::quick(&CudaDevice::get(ordinal)?, dtype, start, n)?;
        return Ok(Tensor::on_cuda(there, shape));
    }
    let draw = |i: usize| {
        let mixed = (i as u32 ^ start).wrapping_mul(0x9e37_79b1);
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x85eb_ca6b);
        ((mixed >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.07
    };
    match dtype {
        DType::BF16 => {
            let data: Vec<bf16> = (0..n).into_par_iter().map(|i| bf16::from_f32(draw(i))).collect();
            Tensor::from_vec(data, shape)
        }
        _ => {
            let data: Vec<f32> = (0..n).into_par_iter().map(draw).collect();
            Ok(Tensor::from_vec(data, shape)?.to_dtype(dtype))
        }
    }
}

/// The least time of some runs after one, in seconds.
pub fn best_of(runs: usize, run: &mut dyn FnMut()) -> f64 {
    run();
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..runs).map(time).fold(f64::INFINITY, f64::min)
}

/// y = x·Wᵀ and dx = dy·W in f32 and bf16, for x `[n, cols]` and W `[out, cols]`.
pub fn products(n: usize, out: usize, cols: usize) -> Vec<Product> {
    let mut all = of::<f32>(n, out, cols, ["f32 x·Wᵀ", "f32 dy·W"]);
    all.extend(of::<bf16>(n, out, cols, ["bf16 x·Wᵀ", "bf16 dy·W"]));
    all
}

fn of<E: Element>(n: usize, out: usize, cols: usize, names: [&'static str; 2]) -> Vec<Product> {
    let values = |len: usize| -> Vec<E> {
        // Where a step's values lie; all bits of f32 count, which is not so of most weights that come from a file.
        let mut values = pool::any::<E>(len);
        let of = |i: usize| (i.wrapping_mul(2_654_435_761) % (1 << 24)) as f64 / f64::from(1 << 24) - 0.5;
        values.par_iter_mut().enumerate().for_each(|(i, x)| *x = E::from_acc(E::Acc::of(of(i))));
        values
    };
    let w = std::sync::Arc::new(values(out * cols));
    let (x, dy, w2) = (values(n * cols), values(n * out), w.clone());
    let (mut y, mut dx) = (values(n * out), values(n * cols));
    let flops = 2.0 * n as f64 * out as f64 * cols as f64;
    let forward = move || {
        let term = Term::new(Mat::new(&x, n, cols), Mat::new(&w, out, cols).t());
        sum_of_products(MatMut::new(&mut y, n, out), false, &[term], Finish::default(), Threads::All);
    };
    let backward = move || {
        let term = Term::new(Mat::new(&dy, n, out), Mat::new(&w2, out, cols));
        sum_of_products(MatMut::new(&mut dx, n, cols), false, &[term], Finish::default(), Threads::All);
    };
    vec![
        Product { name: names[0], flops, run: Box::new(forward) },
        Product { name: names[1], flops, run: Box::new(backward) },
    ]
}

/// What all threads together can do at best.
#[derive(Clone, Copy, Debug)]
pub struct Ceilings {
    /// Of the multiply-add that products in this type use, on registers alone; where products are the `gemm` crate's, its own
    /// best at 1024 × 1024 × 1024.
    pub gflops: f64,
    /// Bytes read and written per second by a copy of 128 MiB.
    pub copy_gbs: f64,
    /// Bytes read per second from 256 MiB.
    pub read_gbs: f64,
}

pub fn ceilings(dtype: DType) -> Ceilings {
    let threads = rayon::current_num_threads();
    let gflops = match gemm::peak(dtype) {
        Some(peak) => {
            let mut flops = 0.0;
            let seconds = best_of(3, &mut || flops = rayon::broadcast(|_| peak()).iter().sum());
            flops / seconds / 1e9
        }
        None => {
            let product = of::<f32>(1024, 1024, 1024, ["", ""]).into_iter().next();
            product.map_or(f64::NAN, |mut p| p.flops / best_of(3, &mut p.run) / 1e9)
        }
    };
    let words: Vec<u64> = (0..32 << 20).into_par_iter().collect();
    let mut copy = vec![0u64; words.len() / 2];
    let part = copy.len().div_ceil(threads * 8);
    let copied = best_of(3, &mut || {
        copy.par_chunks_mut(part).zip(words.par_chunks(part)).for_each(|(to, from)| to.copy_from_slice(from));
        std::hint::black_box(&mut copy);
    });
    let read = best_of(3, &mut || {
        std::hint::black_box(words.par_chunks(part).map(sum_of).sum::<u64>());
    });
    Ceilings {
        gflops,
        copy_gbs: 16.0 * copy.len() as f64 / copied / 1e9,
        read_gbs: 8.0 * words.len() as f64 / read / 1e9,
    }
}

fn sum_of(words: &[u64]) -> u64 {
    crate::isa::vectorised!([] (words: &[u64]) -> u64 { words.iter().fold(0u64, |sum, &w| sum.wrapping_add(w)) })
}
