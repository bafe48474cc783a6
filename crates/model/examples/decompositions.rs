//! What the decompositions of PiSSA and OLoRA take, exact and fast, of all linear layers of a 135M Llama and of one 4096 × 4096.
//!
//! `cargo run --release -p loratune-model --example decompositions`

use loratune_engine::{Tensor, rng::Key};
use loratune_model::linalg::{qr_leading, svd, svd_lowrank};
use rayon::prelude::*;

fn random(m: usize, n: usize, seed: u64) -> Tensor {
    let key = Key::new(seed).named("decompositions");
    let values: Vec<f32> = (0..m * n).map(|i| key.normal(i as u64) as f32).collect();
    Tensor::from_vec(values, &[m, n]).expect("as many values as the shape has")
}

fn main() {
    let shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
    let layers: Vec<Tensor> =
        (0..30).flat_map(|_| shapes).enumerate().map(|(i, (m, n))| random(m, n, i as u64)).collect();
    let time = |what: &str, f: &(dyn Fn(&Tensor) + Sync), ws: &[Tensor]| {
        let start = std::time::Instant::now();
        ws.par_iter().for_each(f);
        println!(
            "{what}: {:.2} s on {} threads",
            start.elapsed().as_secs_f64(),
            rayon::current_num_threads()
        );
    };
    let large = [random(4096, 4096, 1)];
    for (name, ws) in [("all linears of a 135M Llama", &layers[..]), ("one 4096x4096", &large[..])] {
        time(&format!("{name}, r 16, exact"), &|w| drop(svd(w, 16).expect("a matrix")), ws);
        for iterations in [4, 16] {
            let fast = |w: &Tensor| drop(svd_lowrank(w, 16, iterations, Key::new(1)).expect("a matrix"));
            time(&format!("{name}, r 16, {iterations} iterations"), &fast, ws);
        }
        time(&format!("{name}, r 16, QR"), &|w| drop(qr_leading(w, 16).expect("a matrix")), ws);
    }
}
