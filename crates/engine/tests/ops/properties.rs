//! What is claimed of the ops beyond their gradients.

use loratune_engine::ops::{
    self, Activation, AttentionConfig, Documents, KvCache, Logits, RmsNorm, TableAdapter, attention_cached,
};
use loratune_engine::rng::Key;
use loratune_engine::{DType, Gradients, Mode, Params, Tape, Tensor, Weight};

use crate::harness::relative;

fn tensor(name: &str, shape: &[usize], dtype: DType) -> Tensor {
    let key = Key::new(9).named(name);
    let data: Vec<f64> = (0..shape.iter().product::<usize>() as u64).map(|i| key.normal(i)).collect();
    Tensor::from_vec(data, shape).unwrap().to_dtype(dtype)
}

const HEADS: usize = 4;
const DIM: usize = 6;

fn windowed(window: usize, softcap: Option<f64>) -> AttentionConfig {
    AttentionConfig { heads: HEADS, kv_heads: 2, head_dim: DIM, scale: 0.5, window: Some(window), softcap }
}

fn qkv(n: usize, dtype: DType) -> [Tensor; 3] {
    [("q", HEADS), ("k", 2), ("v", 2)].map(|(name, heads)| tensor(name, &[n, heads * DIM], dtype))
}

/// Output and gradients of q, k and v.
fn attend(qkv: &[Tensor; 3], dy: &Tensor, config: &AttentionConfig) -> [Tensor; 4] {
    let mut params = Params::new();
    let ids = ["q", "k", "v"].map(|name| {
        let i = ["q", "k", "v"].iter().position(|n| *n == name).unwrap();
        params.add(name, qkv[i].clone()).unwrap()
    });
    let mut tape = Tape::new(&params, Mode::Grad);
    let [q, k, v] = ids.map(|id| tape.param(id));
    let documents = Documents::from_lengths(&[dy.rows()]);
    let y = ops::attention(&mut tape, &q, &k, &v, &documents, config).unwrap();
    let out = y.value().clone();
    let mut grads = Gradients::new(&params);
    tape.backward_with(&y, dy.clone(), &mut grads).unwrap();
    let [dq, dk, dv] = ids.map(|id| grads.get(id).unwrap().clone());
    [out, dq, dk, dv]
}

fn rows_from(t: &Tensor, first: usize) -> Vec<f64> {
    t.to_f64_vec()[first * t.cols()..].to_vec()
}

/// A block that is read makes everything computed with it NaN, even where the mask makes its probabilities 0.
#[test]
fn keys_before_the_window_of_a_block_are_not_read() {
    let (n, window, poisoned) = (400, 70, 90);
    for softcap in [None, Some(2.0)] {
        let (clean, dy) = (qkv(n, DType::F32), tensor("dy", &[n, HEADS * DIM], DType::F32));
        let expected = attend(&clean, &dy, &windowed(window, softcap));
        let mut dirty = clean.clone();
        for t in &mut dirty {
            let end = poisoned * t.cols();
            t.slice_mut::<f32>().unwrap()[..end].fill(f32::NAN);
        }
        let got = attend(&dirty, &dy, &windowed(window, softcap));
        // The first block of queries of which none sees a poisoned key; keys from there on are seen by such ones only.
        let first = (poisoned + window - 1usize).next_multiple_of(64);
        assert!(rows_from(&got[0], 0).iter().any(|x| x.is_nan()));
        for (got, expected) in got.iter().zip(&expected) {
            assert_eq!(rows_from(got, first), rows_from(expected, first), "{softcap:?}");
        }
    }
}

#[test]
fn continuing_a_sequence_equals_the_whole_beyond_the_window_and_after_going_back() {
    let n = 150;
    for (dtype, tolerance) in [(DType::F32, 1e-5), (DType::BF16, 1e-2)] {
        for (window, softcap) in [(1, None), (7, Some(1.5)), (70, None), (300, Some(0.5))] {
            let config = windowed(window, softcap);
            let [q, k, v] = qkv(n, dtype);
            let params = Params::new();
            let mut tape = Tape::new(&params, Mode::Infer);
            let [qv, kv, vv] = [&q, &k, &v].map(|t| tape.constant(t.clone()));
            let whole = ops::attention(&mut tape, &qv, &kv, &vv, &Documents::from_lengths(&[n]), &config);
            let whole = whole.unwrap().value().clone();
            let mut cache = KvCache::default();
            let mut at = 0;
            let mut feed = |from: usize, lengths: &[usize]| {
                cache.shorten(at, from);
                at = from;
                for &length in lengths {
                    let rows: Vec<usize> = (at..at + length).collect();
                    let [q, k, v] = [&q, &k, &v].map(|t| t.select_rows(&rows).unwrap());
                    let documents = Documents::from_lengths(&[length]);
                    let y = attention_cached(&q, &k, &v, &documents, &mut [&mut cache], &config).unwrap();
                    let expected = whole.select_rows(&rows).unwrap();
                    let error = relative(&y, &expected);
                    assert!(error < tolerance, "{window} {softcap:?} {dtype} from {at}: off by {error:e}");
                    at += length;
                }
            };
            feed(0, &[90, 1, 1, 33, 1]);
            // A chat goes back to where it differs, further than any window.
            feed(12, &[1, 80, 1, 1, 55]);
        }
    }
}

#[test]
fn logits_are_scaled_and_then_capped() {
    let logits = Logits { scale: 0.25, softcap: Some(3.0) };
    for (dtype, tolerance) in [(DType::F64, 1e-15), (DType::F32, 5e-7), (DType::BF16, 5e-3)] {
        let u = Tensor::from_vec(vec![-1000.0, -8.0, 0.0, 0.5, 1e-6, 40.0], &[2, 3]).unwrap().to_dtype(dtype);
        let got = logits.apply(u.clone()).unwrap();
        for (y, u) in got.to_f64_vec().iter().zip(u.to_f64_vec()) {
            let expected = 3.0 * (u * 0.25 / 3.0).tanh();
            assert!((y - expected).abs() <= tolerance * expected.abs(), "{dtype}: {y} {expected}");
        }
        assert_eq!(Logits::default().apply(u.clone()).unwrap().to_f64_vec(), u.to_f64_vec());
    }
}

/// The loss of transformed logits by the plain loss of the transformed outputs, through an identity as the head.
#[test]
fn the_loss_is_that_of_the_logits_that_generation_sees() {
    let (n, d, v) = (9, 5, 13);
    let (x, head) = (tensor("x", &[n, d], DType::F64), tensor("head", &[v, d], DType::F64));
    let identity: Vec<f64> = (0..v * v).map(|i| if i % (v + 1) == 0 { 1.0 } else { 0.0 }).collect();
    let identity = Weight::dense(Tensor::from_vec(identity, &[v, v]).unwrap());
    let targets: Vec<i32> = (0..n as i32).map(|i| if i == 3 { -100 } else { i }).collect();
    let params = Params::new();
    let mut tape = Tape::new(&params, Mode::Infer);
    let x = tape.constant(x);
    let head = Weight::dense(head);
    for logits in crate::cases::logits() {
        let fused =
            ops::linear_cross_entropy(&mut tape, &x, &head, TableAdapter::default(), &targets, logits)
                .unwrap();
        let u = ops::linear(&mut tape, &x, &head, None, None).unwrap();
        let y = tape.constant(logits.apply(u.value().clone()).unwrap());
        let apart = ops::linear_cross_entropy(
            &mut tape,
            &y,
            &identity,
            TableAdapter::default(),
            &targets,
            Logits::default(),
        );
        let apart = apart.unwrap();
        assert!((fused.loss.value().item() - apart.loss.value().item()).abs() < 1e-12, "{logits:?}");
        assert_eq!((fused.tokens, fused.correct), (apart.tokens, apart.correct), "{logits:?}");
    }
}

#[test]
fn activations_of_extreme_gates_are_0_or_the_gate() {
    for activation in [Activation::Silu, Activation::GeluTanh, Activation::Gelu] {
        for dtype in [DType::F64, DType::F32, DType::BF16] {
            let gates = [-3e38, -1e20, -200.0, 0.0, 64.0, 1e20, 2e38];
            let mut params = Params::new();
            let gate = Tensor::from_vec(gates.to_vec(), &[7]).unwrap().to_dtype(dtype);
            let id = params.add("gate", gate.to_dtype(dtype.compute())).unwrap();
            let mut tape = Tape::new(&params, Mode::Grad);
            let g = tape.param(id);
            let g = ops::cast(&mut tape, &g, dtype);
            let up = tape.constant(Tensor::from_vec(vec![1.0; 7], &[7]).unwrap().to_dtype(dtype));
            let y = ops::gated(&mut tape, &g, &up, activation).unwrap();
            let expected: Vec<f64> = gate.to_f64_vec().iter().map(|g| g.max(0.0)).collect();
            let near = |a: &Tensor, b: &[f64]| {
                a.to_f64_vec().iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6 * b.abs() + 1e-30)
            };
            assert!(near(y.value(), &expected), "{activation:?} {dtype}: {:?}", y.value().to_f64_vec());
            let mut grads = Gradients::new(&params);
            let ones = up.value().clone();
            tape.backward_with(&y, ones, &mut grads).unwrap();
            let slopes = [0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0];
            let got = grads.get(id).unwrap();
            assert!(near(got, &slopes), "{activation:?} {dtype}: {:?}", got.to_f64_vec());
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let params = Params::new();
    let mut tape = Tape::new(&params, Mode::Infer);
    let x = tape.constant(tensor("x", &[3, 6], DType::F32));
    let weight = |n: usize| Weight::dense(tensor("w", &[n], DType::F32));
    let config = RmsNorm { eps: 1e-6, offset: 0.0 };
    for n in [0, 4, 7, 12] {
        let error = ops::rms_norm(&mut tape, &x, &weight(n), config).unwrap_err().to_string();
        let expected = format!("rms_norm: weight: expected [6] or [a divisor of 6], got [{n}]");
        assert_eq!(error, expected);
    }
    for sizes in [&[3, 2][..], &[6, 1], &[], &[usize::MAX, 7]] {
        let error = ops::split_columns(&mut tape, &x, sizes).unwrap_err().to_string();
        assert!(error.starts_with("split_columns: input for pieces of") && error.ends_with("got [3, 6]"));
    }
    let head = Weight::dense(tensor("head", &[5, 6], DType::F32));
    let all = [Logits { scale: 0.0, softcap: None }, Logits { scale: f64::NAN, softcap: None }];
    for logits in
        all.into_iter().chain([0.0, -1.0, f64::INFINITY].map(|c| Logits { scale: 1.0, softcap: Some(c) }))
    {
        let loss =
            ops::linear_cross_entropy(&mut tape, &x, &head, TableAdapter::default(), &[1, 2, 3], logits);
        let error = loss.unwrap_err().to_string();
        assert!(error.contains("expected a number"), "{error}");
        assert!(logits.apply(x.value().clone()).is_err());
    }
    let [q, k, v] = qkv(3, DType::F32).map(|t| tape.constant(t));
    let documents = Documents::from_lengths(&[3]);
    let error = ops::attention(&mut tape, &q, &k, &v, &documents, &windowed(2, Some(0.0))).unwrap_err();
    assert!(error.to_string().contains("attention: a soft cap of 0"), "{error}");
}
