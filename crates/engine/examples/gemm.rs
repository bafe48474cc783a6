//! GFLOP/s of the matrix products of a training step, in f32 and bf16: y = x·Wᵀ and dx = dy·W.
//!
//! `cargo run --release -p loratune-engine --example gemm`

use std::time::Instant;

use loratune_engine::bench;

fn best(runs: usize, mut f: impl FnMut()) -> f64 {
    f();
    (0..runs).map(|_| { let t = Instant::now(); f(); t.elapsed().as_secs_f64() }).fold(f64::INFINITY, f64::min)
}

fn main() {
    for (n, out, cols) in [(1024, 4096, 4096), (1024, 576, 576), (1024, 1536, 576), (1024, 576, 1536), (512, 49152, 576), (1024, 11008, 4096), (1024,4096,11008), (4,4096,4096), (1,49152,576)] {
        print!("{n:>5} x {out:>5} x {cols:>5}:");
        for product in bench::products(n, out, cols) {
            let flops = 2.0 * n as f64 * out as f64 * cols as f64;
            let mut product = product;
            let seconds = best(5, || (product.run)());
            print!("  {} {:>6.0}", product.name, flops / seconds / 1e9);
        }
        println!();
    }
}
