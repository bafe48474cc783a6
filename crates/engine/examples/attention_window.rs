//! What attention over 8,192 tokens costs with and without a window, in milliseconds (the best of some runs): forward,
//! forward and backward, and one more token after them in generation.
//!
//! `cargo run --release -p loratune-engine --example attention_window`

use std::time::Instant;

use loratune_engine::ops::{self, AttentionConfig, Documents, KvCache};
use loratune_engine::{DType, Error, Gradients, Mode, Params, Tape, Tensor, rng::Key};

const RUNS: usize = 3;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;

fn random(name: &str, shape: &[usize]) -> Result<Tensor, Error> {
    let key = Key::new(1).named(name);
    let data: Vec<f32> = (0..shape.iter().product::<usize>() as u64).map(|i| key.normal(i) as f32).collect();
    Tensor::from_vec(data, shape)
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

/// Best times of forward, forward and backward, and a cached token.
fn cost(tokens: usize, window: Option<usize>, softcap: Option<f64>) -> Result<[f64; 3], Error> {
    let config = AttentionConfig {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        scale: (HEAD_DIM as f64).powf(-0.5),
        window,
        softcap,
    };
    let mut params = Params::new();
    let mut add = |name: &str, heads: usize| params.add(name, random(name, &[tokens, heads * HEAD_DIM])?);
    let ids = [add("q", HEADS)?, add("k", KV_HEADS)?, add("v", KV_HEADS)?];
    let (dy, documents) = (random("dy", &[tokens, HEADS * HEAD_DIM])?, Documents::from_lengths(&[tokens]));
    let [q1, k1, v1] = ids.map(|id| params.value(id).select_rows(&[0]));
    let (q1, k1, v1) = (q1?, k1?, v1?);
    let mut cache = KvCache::default();
    let mut best = [f64::INFINITY; 3];
    for _ in 0..RUNS {
        let mut tape = Tape::new(&params, Mode::Grad);
        let [q, k, v] = ids.map(|id| tape.param(id));
        let mut grads = Gradients::new(&params);
        let start = Instant::now();
        let y = ops::attention(&mut tape, &q, &k, &v, &documents, &config)?;
        best[0] = best[0].min(milliseconds(start));
        tape.backward_with(&y, dy.clone(), &mut grads)?;
        best[1] = best[1].min(milliseconds(start));
        cache.shorten(tokens + 1, 0);
        let [q, k, v] = ids.map(|id| params.value(id));
        ops::attention_cached(q, k, v, &documents, &mut [&mut cache], &config)?;
        let start = Instant::now();
        let one = Documents::from_lengths(&[1]);
        ops::attention_cached(&q1, &k1, &v1, &one, &mut [&mut cache], &config)?;
        best[2] = best[2].min(milliseconds(start));
    }
    Ok(best)
}

fn main() -> Result<(), Error> {
    println!("{HEADS} heads over {KV_HEADS} of {HEAD_DIM}, {}, milliseconds", DType::F32);
    println!("tokens  window  soft cap    forward  and backward  one more token");
    for (tokens, window, softcap) in [
        (8192, None, None),
        (8192, Some(4096), None),
        (8192, Some(1024), None),
        (8192, Some(512), None),
        (4096, Some(512), None),
        (2048, Some(512), None),
        (8192, Some(512), Some(50.0)),
        (8192, None, Some(50.0)),
    ] {
        let [forward, both, token] = cost(tokens, window, softcap)?;
        let window = window.map_or("none".to_string(), |w| w.to_string());
        let softcap = softcap.map_or("none".to_string(), |c| c.to_string());
        println!("{tokens:6}  {window:>6}  {softcap:>8}  {forward:9.1}  {both:12.1}  {token:14.3}");
    }
    Ok(())
}
