//! Packing, order, split and report.

mod common;

use std::collections::HashSet;

use common::bundle;
use loratune_data::rng::keyed;
use loratune_data::split::split;
use loratune_data::{DatasetSource, DatasetSpec, EncodeOptions, EpochOrder, Plan, load_examples, pack};
use serde_json::json;

fn lengths(case: u64) -> (Vec<usize>, usize) {
    let n = keyed(&[case, 0]) as usize % 60;
    let capacity = 1 + keyed(&[case, 1]) as usize % 100;
    ((0..n).map(|i| 1 + keyed(&[case, 2, i as u64]) as usize % (capacity + capacity / 8)).collect(), capacity)
}

#[test]
fn packing_keeps_every_document_whole_and_once_within_capacity_and_fits_best() {
    for case in 0..500 {
        let (lengths, capacity) = lengths(case);
        let rows = pack(&lengths, capacity);
        let mut seen: Vec<usize> = rows.iter().flatten().copied().collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..lengths.len()).collect::<Vec<_>>());
        for row in &rows {
            let total: usize = row.iter().map(|&i| lengths[i]).sum();
            assert!(!row.is_empty() && (total <= capacity || row.len() == 1), "case {case}");
        }
        assert_eq!(rows, slow_pack(&lengths, capacity), "case {case}");
        // Any two rows together hold more than one row could: otherwise the second need not have been opened.
        let totals: Vec<usize> = rows.iter().map(|r| r.iter().map(|&i| lengths[i]).sum()).collect();
        for (i, a) in totals.iter().enumerate() {
            totals[..i].iter().for_each(|b| assert!(a + b > capacity, "case {case}"));
        }
    }
}

/// The definition, in O(n²).
fn slow_pack(lengths: &[usize], capacity: usize) -> Vec<Vec<usize>> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by(|&a, &b| lengths[b].cmp(&lengths[a]).then(a.cmp(&b)));
    let mut rows: Vec<(usize, Vec<usize>)> = Vec::new();
    for i in order {
        let fit = rows.iter_mut().filter(|r| r.0 >= lengths[i]).min_by_key(|r| r.0);
        match fit {
            Some(row) => {
                row.0 -= lengths[i];
                row.1.push(i);
            }
            None => rows.push((capacity.saturating_sub(lengths[i]), vec![i])),
        }
    }
    rows.into_iter().map(|r| r.1).collect()
}

#[test]
fn packing_200_000_documents_takes_no_quadratic_time() {
    let lengths: Vec<usize> = (0..200_000).map(|i| 1 + keyed(&[i]) as usize % 2048).collect();
    let start = std::time::Instant::now();
    let rows = pack(&lengths, 2048);
    assert!(start.elapsed().as_secs() < 5);
    let fill = lengths.iter().sum::<usize>() as f64 / (rows.len() * 2048) as f64;
    assert!(fill > 0.99, "{fill}");
}

fn plan(case: u64, packed: bool, shuffle: bool) -> Plan {
    let (lengths, capacity) = lengths(case);
    Plan { lengths, capacity: packed.then_some(capacity), order: EpochOrder { seed: case, shuffle } }
}

#[test]
fn batches_are_a_pure_function_of_epoch_and_index_and_cover_each_epoch() {
    for case in 0..60 {
        for packed in [false, true] {
            for shuffle in [false, true] {
                let plan = plan(case, packed, shuffle);
                for epoch in [0, 1, 7] {
                    let rows = plan.rows(epoch);
                    assert_eq!(rows.len(), plan.rows_per_epoch(), "every epoch has the same number of rows");
                    let n = plan.batches_per_epoch(4);
                    // Backwards, as a resumed run would not have seen the earlier ones.
                    let mut batches: Vec<_> = (0..n).rev().map(|i| plan.batch(epoch, i, 4)).collect();
                    batches.reverse();
                    assert_eq!(batches.concat(), rows);
                    assert!(plan.batch(epoch, n, 4).is_empty());
                    let seen: HashSet<usize> = rows.iter().flatten().copied().collect();
                    assert_eq!(
                        (seen.len(), rows.iter().flatten().count()),
                        (plan.lengths.len(), plan.lengths.len())
                    );
                }
            }
        }
    }
}

#[test]
fn epochs_and_seeds_differ_when_shuffling_and_do_not_otherwise() {
    let order = |seed, shuffle| EpochOrder { seed, shuffle };
    assert_ne!(order(1, true).permutation(50, 0), order(1, true).permutation(50, 1));
    assert_ne!(order(1, true).permutation(50, 0), order(2, true).permutation(50, 0));
    assert_eq!(order(1, false).permutation(50, 3), (0..50).collect::<Vec<_>>());
    // Fixed for good: a change would reorder the data of every resumed run.
    assert_eq!(order(42, true).permutation(8, 0), PINNED);
    // Each place is taken by each element about equally often.
    let mut counts = [[0usize; 4]; 4];
    for epoch in 0..4000 {
        order(3, true).permutation(4, epoch).iter().enumerate().for_each(|(i, &p)| counts[i][p] += 1);
    }
    assert!(counts.iter().flatten().all(|c| (900..1100).contains(c)), "{counts:?}");
}

const PINNED: [usize; 8] = [1, 3, 2, 5, 4, 7, 6, 0];

#[test]
fn val_size_is_a_fraction_or_a_count() {
    let sizes = |n, v| split(n, v, 42).map(|(a, b)| (a.len(), b.len()));
    assert_eq!(sizes(6000, 0.1).unwrap(), (5400, 600));
    assert_eq!(sizes(7, 0.1).unwrap(), (6, 1));
    assert_eq!(sizes(100, 20.0).unwrap(), (80, 20));
    assert_eq!(sizes(5, 0.0).unwrap(), (5, 0));
    for (v, part) in [
        (1.0, "the fraction 1.0"),
        (1.5, "an integer"),
        (-0.1, "expected a fraction"),
        (9.0, "only 5"),
        (0.99, "only 5"),
    ] {
        let message = split(5, v, 42).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    let (train, eval) = split(100, 0.2, 1).unwrap();
    assert_ne!(eval, split(100, 0.2, 2).unwrap().1);
    assert_ne!(eval, (80..100).collect::<Vec<_>>());
    let mut all = [train, eval].concat();
    all.sort_unstable();
    assert_eq!(all, (0..100).collect::<Vec<_>>());
}

fn many(folder: &std::path::Path, n: usize) -> DatasetSpec {
    let rows: Vec<String> = (0..n)
        .map(|i| json!({"question": format!("What is {i} + {}?", i % 7), "answer": format!("It is {}.", i + i % 7)}).to_string())
        .collect();
    let path = folder.join("many.jsonl");
    std::fs::write(&path, rows.join("\n")).unwrap();
    DatasetSpec { train: vec![DatasetSource::new(path)], val_size: 0.1, ..DatasetSpec::default() }
}

#[test]
fn examples_do_not_depend_on_the_number_of_threads() {
    let folder = tempfile::tempdir().unwrap();
    let spec = many(folder.path(), 500);
    let bundle = bundle("tokenizer", json!({}));
    let file = common::folder("templates").join("qwen3.jinja").display().to_string();
    let options = EncodeOptions { template: Some(file), cutoff_len: Some(40), ..EncodeOptions::default() };
    let load = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let data = pool.install(|| load_examples(&spec, &bundle, &options)).unwrap();
        (data.train, data.eval, serde_json::to_string(&data.report).unwrap())
    };
    let one = load(1);
    assert_eq!((one.0.len(), one.1.len()), (450, 50));
    assert_eq!(one, load(2));
    assert_eq!(one, load(5));
}

#[test]
fn the_report_fits_the_screen_and_shows_the_mask_and_the_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("d.jsonl");
    let long = "many words ".repeat(200);
    let row = json!({"messages": [{"role": "system", "content": long}, {"role": "user", "content": "Hi\tthere"},
                                  {"role": "assistant", "content": "Line one\nline two"}]});
    std::fs::write(&path, format!("{row}\n{row}")).unwrap();
    let spec = DatasetSpec { train: vec![DatasetSource::new(path)], ..DatasetSpec::default() };
    let options =
        EncodeOptions { template: Some("chatml".into()), packing: Some(2000), ..EncodeOptions::default() };
    let data = load_examples(&spec, &bundle("tokenizer", json!({})), &options).unwrap();
    let text = data.report.to_string();
    assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    assert!(text.contains("⟦Line one↵\n  line two<|im_end|>↵\n  ⟧"), "{text}");
    assert!(text.contains("Hi␉there") && text.contains("characters …"), "{text}");
    assert!(text.contains("first      3 <|im_start|>") && text.contains("4 ⟦<|im_end|>⟧  217 ⟦Ċ⟧"), "{text}");
    assert!(text.contains("packing    2 rows of 2000 tokens, "), "{text}");
    assert!(!text.contains('\x1b'));
    let colored = data.report.render(true);
    assert!(colored.contains("\x1b[32mLine one↵\x1b[0m\n  \x1b[32mline two<|im_end|>↵\x1b[0m"), "{colored}");
    let json = serde_json::to_value(&data.report).unwrap();
    assert_eq!(json["train"]["rows"], 2);
    assert_eq!(json["formats"], json!([["messages", 2]]));
}
