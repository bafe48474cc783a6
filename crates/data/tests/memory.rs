//! Tokenising keeps no more in memory, however many rows there are. (A test by itself: it looks at the whole process.)
#![cfg(target_os = "linux")]

mod common;

use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use loratune_data::{CacheOptions, DatasetSource, DatasetSpec, EncodeOptions, load_examples};
use serde_json::json;

/// Mebibytes of this process that are not a mapped file's.
fn anonymous() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() / 1024
}

/// The most memory that was in use while so many rows of two kilobytes were tokenised and kept, beyond what was before.
fn peak(rows: usize, folder: &Path) -> u64 {
    let path = folder.join(format!("{rows}.jsonl"));
    let mut out = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    let sentence = "the shop opens at nine and people learn ".repeat(50);
    for row in 0..rows {
        writeln!(out, "{{\"instruction\": \"question {row}\", \"output\": \"{sentence}\"}}").unwrap();
    }
    out.flush().unwrap();
    let spec = DatasetSpec {
        train: vec![DatasetSource::new(&path)],
        cache: Some(CacheOptions::new(folder.join("kept"))),
        ..DatasetSpec::default()
    };
    let options = EncodeOptions { template: Some("chatml".into()), ..EncodeOptions::default() };
    let tokenizer = common::bundle("tokenizer", json!({}));
    let before = anonymous();
    let (peak, done) = (Arc::new(AtomicU64::new(before)), Arc::new(AtomicBool::new(false)));
    let watch = std::thread::spawn({
        let (peak, done) = (peak.clone(), done.clone());
        move || {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(anonymous(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    });
    let data = load_examples(&spec, &tokenizer, &options).unwrap();
    assert_eq!(data.train.len(), rows);
    let tokens: usize = (0..rows).map(|i| data.train.length(i)).sum();
    done.store(true, Ordering::Relaxed);
    watch.join().unwrap();
    eprintln!("{rows} rows, {tokens} tokens: {} MiB", peak.load(Ordering::Relaxed) - before);
    peak.load(Ordering::Relaxed) - before
}

#[test]
fn seven_times_the_rows_take_no_more_memory() {
    let folder = tempfile::tempdir().unwrap();
    let few = peak(3_000, folder.path());
    let many = peak(20_000, folder.path());
    // 17,000 rows more are 34 MB of text and 97 MB of tokens.
    assert!(many < few + 40, "{few} MiB of 3,000 rows, {many} MiB of 20,000");
}
