//! How long tokenising and packing take, and in how much memory.
//!
//!     tokenise make ROWS.jsonl 1000000            # short instructions and answers
//!     tokenise run ROWS.jsonl TOKENIZER_FOLDER TEMPLATE.jinja [CACHE_FOLDER]
//!
//! `benches/tokenise.py` does the same with `datasets.map`.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use loratune_data::rng::keyed;
use loratune_data::{
    CacheOptions, DatasetSource, DatasetSpec, EncodeOptions, EpochOrder, Plan, load_examples,
};
use loratune_tokenizer::TokenizerBundle;

const WORDS: &[&str] = &[
    "the",
    "a",
    "shop",
    "opens",
    "at",
    "nine",
    "letter",
    "about",
    "number",
    "blue",
    "answer",
    "write",
    "short",
    "why",
    "how",
    "people",
    "water",
    "learn",
    "model",
    "which",
    "between",
    "river",
    "seven",
    "quickly",
    "and",
    "because",
    "small",
    "name",
    "list",
    "three",
    "reasons",
    "explain",
    "difference",
    "city",
    "music",
    "winter",
    "question",
    "translate",
    "sentence",
];

/// Tokens of a packed row.
const CAPACITY: usize = 2048;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["make", path, rows] => make(Path::new(path), rows.parse()?)?,
        ["run", rows, tokenizer, template] => run(rows, Path::new(tokenizer), template, None)?,
        ["run", rows, tokenizer, template, cache] => run(rows, Path::new(tokenizer), template, Some(cache))?,
        _ => return Err("expected `make FILE ROWS` or `run ROWS TOKENIZER TEMPLATE [CACHE]`".into()),
    }
    Ok(())
}

fn make(path: &Path, rows: u64) -> std::io::Result<()> {
    let mut out = std::io::BufWriter::new(std::fs::File::create(path)?);
    let words = |row: u64, part: u64, least: u64, most: u64| -> String {
        let n = least + keyed(&[row, part]) % (most - least);
        let word = |i: u64| WORDS[(keyed(&[row, part, i]) % WORDS.len() as u64) as usize];
        (0..n).map(word).collect::<Vec<_>>().join(" ")
    };
    for row in 0..rows {
        let (question, answer) = (words(row, 0, 5, 20), words(row, 1, 3, 30));
        writeln!(out, "{{\"instruction\": \"{question} {row}?\", \"output\": \"{answer}.\"}}")?;
    }
    out.flush()
}

/// Memory of this process that is not a file's, now.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    line.and_then(|l| l.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

fn run(
    rows: &str,
    tokenizer: &Path,
    template: &str,
    cache: Option<&str>,
) -> Result<(), Box<dyn std::error::Error>> {
    let tokenizer = TokenizerBundle::from_folder(tokenizer)?;
    let spec = DatasetSpec {
        train: vec![DatasetSource::new(rows)],
        cache: cache.map(CacheOptions::new),
        ..DatasetSpec::default()
    };
    let options = EncodeOptions {
        template: Some(template.into()),
        cutoff_len: Some(CAPACITY),
        now: Some(0),
        ..EncodeOptions::default()
    };
    let (peak, done) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let watch = std::thread::spawn({
        let (peak, done) = (peak.clone(), done.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
    let clock = Instant::now();
    let data = load_examples(&spec, &tokenizer, &options)?;
    let tokenised = clock.elapsed().as_secs_f64();
    let plan = Plan {
        lengths: (0..data.train.len()).map(|i| data.train.length(i)).collect(),
        capacity: Some(CAPACITY),
        order: EpochOrder { seed: 42, shuffle: true },
    };
    let packs = plan.rows(0).len();
    let packed = clock.elapsed().as_secs_f64();
    done.store(true, Ordering::Relaxed);
    watch.join().map_err(|_| "the memory could not be watched")?;
    let (examples, tokens) = (data.train.len(), data.report.train.tokens);
    println!(
        "{examples} rows, {tokens} tokens, {} trained, {packs} packs of {CAPACITY}",
        data.report.train.trained_tokens
    );
    println!("tokenised in {tokenised:.2} s, packed in {:.2} s, together {packed:.2} s", packed - tokenised);
    println!(
        "{:.0} rows/s; at most {} MiB of memory besides mapped files",
        examples as f64 / packed,
        peak.load(Ordering::Relaxed)
    );
    Ok(())
}
