//! Makes the data that the embedded default is made from: a corpus of letters to a shop and its answers, a tokenizer and
//! an untrained model's configuration, and the rows of the quickstart's task. Everything follows from one seed.
//!
//! `cargo run --release --example quickstart_corpus -- OUT_DIR`

mod letters;
mod tokenizer;

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use loratune_engine::rng::Key;
use serde_json::{Value, json};

use letters::{Draw, Letter, Pool};

const SEED: u64 = 20_261_123;
/// Rows of the corpus; about 2.6 million tokens.
const CORPUS_ROWS: usize = 36_000;
const TRAIN_ROWS: usize = 1200;
const TEST_ROWS: usize = 200;

fn main() -> Result<()> {
    let out = PathBuf::from(std::env::args().nth(1).context("usage: quickstart_corpus OUT_DIR")?);
    std::fs::create_dir_all(out.join("model"))?;
    let key = Key::new(SEED);

    let corpus: Vec<Value> =
        (0..CORPUS_ROWS).map(|i| corpus_row(&mut Draw::new(key.named("corpus"), i))).collect();
    write_lines(&out.join("corpus.jsonl"), &corpus)?;
    tokenizer::write(&out.join("model"), corpus.iter().map(text_of))?;
    write_config(&out.join("model"))?;

    let train: Vec<Letter> =
        (0..TRAIN_ROWS).map(|i| Letter::draw(&mut Draw::new(key.named("train"), i), Pool::Train)).collect();
    // No test letter has the sentences of a training letter, in whatever order and with whatever names in them.
    let known: HashSet<Vec<&str>> = train.iter().map(Letter::sorted_sentences).collect();
    let test = (0..)
        .map(|i| Letter::draw(&mut Draw::new(key.named("test"), i), Pool::Test))
        .filter(|letter| !known.contains(&letter.sorted_sentences()))
        .take(TEST_ROWS);
    write_lines(&out.join("test.jsonl"), &test.map(|l| task_row(&l)).collect::<Vec<_>>())?;
    write_lines(&out.join("train.jsonl"), &train.iter().map(task_row).collect::<Vec<_>>())?;
    Ok(())
}

fn chat(user: &str, assistant: &str) -> Value {
    json!({"messages": [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]})
}

/// Mostly letters with the shop's answer; some with two turns, some notes and price lists.
fn corpus_row(draw: &mut Draw) -> Value {
    match draw.below(10) {
        0 => json!({"text": letters::note(draw)}),
        1 => json!({"text": letters::price_list(draw)}),
        2 => {
            let (first, second) = (Letter::draw(draw, Pool::All), Letter::draw(draw, Pool::All));
            json!({"messages": [
                {"role": "user", "content": first.text},
                {"role": "assistant", "content": first.answer(draw)},
                {"role": "user", "content": second.text},
                {"role": "assistant", "content": second.answer(draw)},
            ]})
        }
        _ => {
            let letter = Letter::draw(draw, Pool::All);
            chat(&letter.text, &letter.answer(draw))
        }
    }
}

/// The task: the letter's topic, mood and urgency as a JSON record.
fn task_row(letter: &Letter) -> Value {
    let record = format!(
        "{{\"topic\": \"{}\", \"mood\": \"{}\", \"urgent\": {}}}",
        letter.topic.name(),
        letter.mood.name(),
        letter.urgent
    );
    chat(&letter.text, &record)
}

fn text_of(row: &Value) -> String {
    match row.get("text").and_then(Value::as_str) {
        Some(text) => text.to_string(),
        None => row["messages"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|m| m["content"].as_str())
            .collect::<Vec<_>>()
            .join("\n"),
    }
}

fn write_lines(path: &Path, rows: &[Value]) -> Result<()> {
    let lines: String = rows.iter().map(|r| format!("{r}\n")).collect();
    std::fs::write(path, lines).with_context(|| path.display().to_string())
}

fn write_config(dir: &Path) -> Result<()> {
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer::VOCABULARY,
        "hidden_size": 160,
        "intermediate_size": 432,
        "num_hidden_layers": 6,
        "num_attention_heads": 5,
        "num_key_value_heads": 1,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": true,
        "attention_bias": false,
        "mlp_bias": false,
        "initializer_range": 0.05,
        "bos_token_id": null,
        "eos_token_id": tokenizer::EOS,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    });
    std::fs::write(dir.join("config.json"), format!("{config:#}\n"))?;
    Ok(())
}
