//! Every optimiser against torch, transformers and bitsandbytes (goldens/optimizers.py), and its checkpoints.

use std::collections::BTreeMap;

use loratune_engine::{Gradients, Params, Tensor};
use loratune_train::config::RunConfig;
use loratune_train::optimizer::Optimizer;

const SHAPES: [&[usize]; 3] = [&[80, 60], &[3, 5], &[7]];
const STEPS: u64 = 12;

fn numbers(shape: &[usize], seed: f64, scaled: impl Fn(f32) -> f32) -> Tensor {
    let n: usize = shape.iter().product();
    let at = |i: usize| {
        let x = i as f64;
        // Rounded before it is scaled, as in the generator.
        ((x * 0.37 + seed * 1.7).sin() * (x * 0.011 + seed).cos()) as f32
    };
    Tensor::from_vec((0..n).map(|i| scaled(at(i))).collect(), shape).unwrap()
}

fn params() -> Params {
    let mut params = Params::new();
    for (i, shape) in SHAPES.iter().enumerate() {
        params.add(format!("p{i}.weight"), numbers(shape, i as f64, |x| x)).unwrap();
    }
    params
}

fn config(optim: &str, weight_decay: f64) -> RunConfig {
    let (optim, args) = match optim {
        "sgd_momentum" => ("sgd", "optim_args=momentum=0.9,dampening=0.3"),
        "sgd_nesterov" => ("sgd", "optim_args=momentum=0.9,nesterov=true"),
        other => (other, "optim_args="),
    };
    let words = ["model_name_or_path=m", "dataset=d", "output_dir=o", args, &format!("optim={optim}")]
        .map(str::to_string)
        .to_vec();
    RunConfig { weight_decay, ..RunConfig::from_words(&words).unwrap().config }
}

fn step(optimizer: &mut Optimizer, params: &mut Params, step: u64) {
    let mut grads = Gradients::new(params);
    for (i, id) in params.ids().enumerate() {
        let seed = (100 + 7 * step + i as u64) as f64;
        grads.add(id, numbers(SHAPES[i], seed, |x| x * 0.1 / (1.0 + step as f32))).unwrap();
    }
    let rates = vec![1e-2; params.ids().count()];
    optimizer.step(params, &grads, 1.0, &rates).unwrap();
}

fn sample(params: &Params) -> Vec<Vec<f64>> {
    let every = |t: &Tensor| t.slice::<f32>().unwrap().iter().step_by(37).map(|&x| f64::from(x)).collect();
    params.ids().map(|id| every(params.value(id))).collect()
}

#[test]
fn every_optimiser_equals_its_model() {
    let golden: BTreeMap<String, Vec<Vec<Vec<f64>>>> =
        serde_json::from_str(include_str!("goldens/optimizers.json")).unwrap();
    assert_eq!(golden.len(), 8);
    for (name, traces) in golden {
        let decay = if name == "sgd_nesterov" { 0.0 } else { 0.1 };
        let mut params = params();
        let mut optimizer = Optimizer::new(&params, &config(&name, decay)).unwrap();
        let mut seen = Vec::new();
        for s in 0..STEPS {
            step(&mut optimizer, &mut params, s);
            seen.push(sample(&params));
        }
        let ours = [&seen[0], &seen[1], &seen[STEPS as usize - 1]];
        let mut worst = 0f64;
        for (got, want) in ours.into_iter().flatten().flatten().zip(traces.iter().flatten().flatten()) {
            worst = worst.max((got - want).abs());
        }
        println!("{name}: {worst:e}");
        // A few units in the last place of numbers near 1.
        assert!(worst <= 5e-7, "{name}: {worst:e}");
    }
}

#[test]
fn a_restored_optimiser_goes_on_to_the_same_bytes() {
    for name in ["adamw_torch", "adamw_8bit", "adafactor", "sgd", "sgd_momentum", "lion", "lion_8bit"] {
        let mut params = params();
        let mut optimizer = Optimizer::new(&params, &config(name, 0.1)).unwrap();
        (0..3).for_each(|s| step(&mut optimizer, &mut params, s));
        let saved: BTreeMap<String, Tensor> = optimizer.tensors(&params).unwrap().into_iter().collect();
        let mut copy = params.clone();
        let mut resumed = Optimizer::new(&copy, &config(name, 0.1)).unwrap();
        let read = |name: &str, shape: &[usize]| {
            assert_eq!(saved[name].shape(), shape);
            Ok::<_, loratune_engine::Error>(saved[name].clone())
        };
        resumed.restore(&copy, optimizer.steps(), read).unwrap();
        for s in 3..6 {
            step(&mut optimizer, &mut params, s);
            step(&mut resumed, &mut copy, s);
        }
        for id in params.ids() {
            assert!(
                params.value(id).slice::<f32>().unwrap() == copy.value(id).slice::<f32>().unwrap(),
                "{name}"
            );
        }
    }
}

#[test]
fn moments_of_8_bits_take_a_quarter_of_the_memory() {
    let (params, of) = (params(), |name| config(name, 0.0));
    let full = Optimizer::new(&params, &of("adamw_torch")).unwrap().bytes();
    let eight = Optimizer::new(&params, &of("adamw_8bit")).unwrap().bytes();
    assert_eq!(full, 8 * (4800 + 15 + 7));
    // Codes and a scale for each 256, for the matrix that is large enough.
    assert_eq!(eight, 2 * (4800 + 4 * 19) + 8 * (15 + 7));
}
