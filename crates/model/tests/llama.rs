//! The decoder against transformers: logits, loss and all weight gradients of tiny models read from real files
//! (`goldens/llama.py`), and generation with the cache against the full forward pass.

use std::path::{Path, PathBuf};

use loratune_engine::{DType, Gradients, Mode, Params, Tape};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::files::ModelFiles;
use loratune_model::generate::{Sampling, generate};
use loratune_model::{Batch, Decoder, load};
use safetensors::SafeTensors;

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/llama").join(name)
}

fn open(name: &str, dtype: DType, train_all: bool) -> (Decoder, Params) {
    let files = ModelFiles::open(&path(name)).unwrap();
    let mut params = Params::new();
    let trained = if train_all { Trained::Everything } else { Trained::Nothing };
    let decoder = load::decoder(&files, Dtypes::both(dtype), &mut params, &trained).unwrap();
    (decoder, params)
}

struct Expected(Vec<u8>);

impl Expected {
    fn of(folder: &str) -> Expected {
        Expected(std::fs::read(path(folder).join("expected.safetensors")).unwrap())
    }
    fn ints(&self, name: &str) -> Vec<i64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let t = file.tensor(name).unwrap();
        t.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect()
    }
    fn floats(&self, name: &str) -> Vec<f64> {
        let file = SafeTensors::deserialize(&self.0).unwrap();
        let t = file.tensor(name).unwrap();
        t.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()) as f64).collect()
    }
    /// Both documents in one batch: they must not see each other.
    fn batch(&self) -> Batch {
        let docs: Vec<(Vec<u32>, Vec<i32>)> = (0..2)
            .map(|i| {
                let ids = self.ints(&format!("doc{i}.input_ids")).iter().map(|&x| x as u32).collect();
                let labels = self.ints(&format!("doc{i}.labels")).iter().map(|&x| x as i32).collect();
                (ids, labels)
            })
            .collect();
        Batch::from_labelled(docs.iter().map(|(a, b)| (a.as_slice(), b.as_slice())))
    }
}

fn worst(ours: &[f64], theirs: &[f64]) -> f64 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

#[test]
fn logits_and_loss_equal_transformers_for_every_kind_of_file() {
    for (model, folder) in [
        ("gqa-untied", "gqa-untied"),
        ("gqa-untied.gguf", "gqa-untied"),
        ("tied-bf16", "tied-bf16"),
        ("mha-f16", "mha-f16"),
    ] {
        let expected = Expected::of(folder);
        let batch = expected.batch();
        let theirs = [expected.floats("doc0.logits"), expected.floats("doc1.logits")].concat();
        for dtype in [DType::F32, DType::F64] {
            let (decoder, params) = open(model, dtype, false);
            let ours = decoder.logits(&params, &batch).unwrap().to_f64_vec();
            let error = worst(&ours, &theirs);
            assert!(error < 1e-4, "{model} in {dtype}: logits differ by {error:e}");
            let mut tape = Tape::new(&params, Mode::Infer);
            let out = decoder.loss(&mut tape, &batch).unwrap();
            assert_eq!(out.tokens as i64, expected.ints("trained_tokens")[0]);
            let loss = out.loss.value().item() / out.tokens as f64;
            assert!(
                (loss / expected.floats("loss")[0] - 1.0).abs() < 1e-6,
                "{model} in {dtype}: loss {loss}"
            );
        }
    }
}

#[test]
fn bf16_logits_are_near_f32() {
    let expected = Expected::of("tied-bf16");
    let batch = expected.batch();
    let theirs = [expected.floats("doc0.logits"), expected.floats("doc1.logits")].concat();
    let (decoder, params) = open("tied-bf16", DType::BF16, false);
    let ours = decoder.logits(&params, &batch).unwrap().to_f64_vec();
    let scale = theirs.iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let error = worst(&ours, &theirs) / scale;
    assert!(error < 0.03 && error > 1e-6, "bf16 logits differ by {error:e} of the largest");
}

#[test]
fn gradients_of_all_weights_equal_transformers() {
    let expected = Expected::of("gqa-untied");
    let batch = expected.batch();
    for dtype in [DType::F32, DType::F64] {
        let (decoder, params) = open("gqa-untied", dtype, true);
        let mut tape = Tape::new(&params, Mode::Grad);
        let out = decoder.loss(&mut tape, &batch).unwrap();
        let mut grads = Gradients::new(&params);
        tape.backward(&out.loss, 1.0 / out.tokens as f64, &mut grads).unwrap();
        grads.check_complete(&params).unwrap();
        for id in params.ids() {
            let theirs = expected.floats(&format!("grad.{}", params.name(id)));
            let scale = theirs.iter().fold(0.0f64, |m, x| m.max(x.abs()));
            let error = worst(&grads.get(id).unwrap().to_f64_vec(), &theirs) / scale;
            assert!(error < 1e-4, "{} in {dtype}: gradient differs by {error:e}", params.name(id));
        }
    }
}

#[test]
fn frozen_weights_leave_nothing_on_the_tape() {
    let (decoder, params) = open("gqa-untied", DType::F32, false);
    let mut tape = Tape::new(&params, Mode::Grad);
    decoder.loss(&mut tape, &Expected::of("gqa-untied").batch()).unwrap();
    assert_eq!(tape.recorded(), 0);
}

#[test]
fn greedy_generation_with_the_cache_equals_the_full_forward() {
    let (decoder, params) = open("gqa-untied", DType::F32, false);
    let vocabulary = decoder.spec().vocab_size;
    let prompts = [vec![5u32, 9, 40], vec![7], vec![11, 12, 13, 14, 15, 16, 17]];
    let out = generate(&decoder, &params, &prompts, &Sampling::greedy(40, vec![]), |_, _| true).unwrap();
    for (prompt, generated) in prompts.iter().zip(&out) {
        assert_eq!(generated.tokens.len(), 40);
        let mut all = prompt.clone();
        for &token in &generated.tokens {
            let logits = decoder.logits(&params, &Batch::from_ids([all.as_slice()])).unwrap();
            let row = &logits.slice::<f32>().unwrap()[(all.len() - 1) * vocabulary..];
            let best = (0..vocabulary).reduce(|a, b| if row[b] > row[a] { b } else { a }).unwrap();
            assert_eq!(best as u32, token, "after {} tokens", all.len());
            all.push(token);
        }
    }
}

#[test]
fn generation_stops_at_a_stop_token_and_at_the_context() {
    let (decoder, params) = open("gqa-untied", DType::F32, false);
    let free =
        generate(&decoder, &params, &[vec![5, 9]], &Sampling::greedy(10, vec![]), |_, _| true).unwrap();
    let stop = free[0].tokens[4];
    let until = free[0].tokens.iter().position(|&t| t == stop).unwrap();
    let stopped =
        generate(&decoder, &params, &[vec![5, 9]], &Sampling::greedy(10, vec![stop]), |_, _| true).unwrap();
    assert_eq!(stopped[0].tokens, free[0].tokens[..=until]);
    assert!(stopped[0].stopped && !free[0].stopped);
    let max = decoder.spec().max_positions;
    let all =
        generate(&decoder, &params, &[vec![5, 9]], &Sampling::greedy(9999, vec![]), |_, _| true).unwrap();
    assert_eq!(all[0].tokens.len(), max - 2 + 1);
    let error = generate(&decoder, &params, &[vec![5; max + 1]], &Sampling::greedy(1, vec![]), |_, _| true);
    assert!(error.unwrap_err().to_string().contains("longer than the model's context of 128"));
}
