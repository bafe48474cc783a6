//! Writes everything that the embedded default is made from: the corpus of the base model, the model's configuration
//! and tokenizer, and the task that `loratune quickstart` fine-tunes. All of it comes from the rules in this folder and
//! one seed, so the same bytes come out everywhere.
//!
//! `cargo run --release --example quickstart_corpus -- OUT_DIR` (see `recipes/quickstart/README.md`).

mod base;
mod corpus;
mod draw;
mod scenes;
mod task;
mod words;

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

/// The seed of everything.
const SEED: u64 = 2024;
/// Rows of the corpus: about 10 million tokens. Looking back and copying appears after about 5 million.
const CORPUS_ROWS: usize = 100_000;
/// The tokenizer sees this many of them.
const TOKENIZER_ROWS: usize = 10_000;
const TRAIN_ROWS: usize = 1200;
const TEST_ROWS: usize = 200;

fn main() -> Result<()> {
    let out = std::env::args_os().nth(1).map(PathBuf::from);
    let out = out.context("where to? usage: quickstart_corpus OUT_DIR")?;
    base::write(&out.join("model"), (0..TOKENIZER_ROWS).flat_map(|i| texts(&corpus::row(i))))?;
    write_rows(&out.join("corpus.jsonl"), (0..CORPUS_ROWS).map(corpus::row))?;
    let train = task::train_rows(TRAIN_ROWS);
    let test = task::test_rows(TEST_ROWS, &train);
    write_rows(&out.join("train.jsonl"), train.into_iter())?;
    write_rows(&out.join("test.jsonl"), test.into_iter())
}

/// The text of a row, for the tokenizer: of a chat, each message with the header that the chat template gives it.
fn texts(row: &Value) -> Vec<String> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
    match row["messages"].as_array() {
        Some(messages) => {
            messages.iter().flat_map(|m| [text(&m["role"]) + "\n", text(&m["content"])]).collect()
        }
        None => vec![text(&row["text"])],
    }
}

fn write_rows(path: &Path, rows: impl Iterator<Item = Value>) -> Result<()> {
    let failed = || format!("writing {}", path.display());
    let mut file = BufWriter::new(File::create(path).with_context(failed)?);
    let mut count = 0;
    for row in rows {
        writeln!(file, "{row}").with_context(failed)?;
        count += 1;
    }
    file.flush().with_context(failed)?;
    println!("{}: {count} rows", path.display());
    Ok(())
}
