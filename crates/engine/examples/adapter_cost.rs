//! What a linear layer costs with LoRA and with DoRA, forward and backward, in milliseconds (the best of some runs).
//!
//! `cargo run --release -p loratune-engine --example adapter_cost`

use std::time::Instant;

use loratune_engine::ops::{self, Dora, Dropout, Lora, RowNorm};
use loratune_engine::{DType, Error, FrozenWeight, Gradients, Mode, Params, Tape, Tensor, Weight, rng::Key};

const RANK: usize = 16;
const RUNS: usize = 15;

fn random(name: &str, shape: &[usize], dtype: DType) -> Result<Tensor, Error> {
    let key = Key::new(1).named(name);
    let data: Vec<f32> =
        (0..shape.iter().product::<usize>() as u64).map(|i| key.normal(i) as f32 * 0.1).collect();
    Ok(Tensor::from_vec(data, shape)?.to_dtype(dtype))
}

/// Best times of the layer with LoRA and with DoRA, run in turn so that both see the same machine.
fn cost([n, cols, out]: [usize; 3], dtype: DType, p: f64) -> Result<[f64; 2], Error> {
    let mut params = Params::new();
    let mut add = |name: &str, shape: &[usize]| params.add(name, random(name, shape, DType::F32)?);
    let (x, a, b) = (add("x", &[n, cols])?, add("a", &[RANK, cols])?, add("b", &[out, RANK])?);
    let magnitude = add("m", &[out])?;
    let weight = FrozenWeight::Dense(random("w", &[out, cols], dtype)?);
    let norm = RowNorm::Recomputed { squares: weight.row_squares().into() };
    let weight = Weight::Frozen(weight.into());
    let dropout = if p > 0.0 { Dropout::Random(p) } else { Dropout::None };
    let lora = Lora { a, b, scaling: 2.0, dropout, dora: None };
    let dora = Lora { dora: Some(Dora { magnitude, norm }), ..lora.clone() };
    let dy = random("dy", &[n, out], dtype)?;
    let mut best = [f64::INFINITY; 2];
    for _ in 0..RUNS {
        for (best, adapter) in best.iter_mut().zip([&lora, &dora]) {
            let mut tape = Tape::new(&params, Mode::Train(Key::new(2)));
            let x = tape.param(x);
            let x = ops::cast(&mut tape, &x, dtype);
            let mut dy = dy.clone();
            dy.scale_assign(1.0); // a copy of its own, as a gradient from the next op is
            let mut grads = Gradients::new(&params);
            let start = Instant::now();
            let y = ops::linear(&mut tape, &x, &weight, None, Some(adapter))?;
            tape.backward_with(&y, dy, &mut grads)?;
            *best = best.min(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    Ok(best)
}

fn main() -> Result<(), Error> {
    println!("tokens x in -> out, rank {RANK}                     LoRA ms   DoRA ms");
    for p in [0.0, 0.05] {
        for dtype in [DType::F32, DType::BF16] {
            for shape in
                [[512, 576, 576], [2048, 576, 576], [2048, 576, 1536], [2048, 1536, 576], [1024, 2048, 2048]]
            {
                let [lora, dora] = cost(shape, dtype, p)?;
                let [n, cols, out] = shape;
                let label = format!("{n} x {cols} -> {out}, {dtype}, dropout {p}");
                println!("{label:45} {lora:9.2} {dora:9.2}  {:+5.1} %", (dora / lora - 1.0) * 100.0);
            }
        }
    }
    Ok(())
}
