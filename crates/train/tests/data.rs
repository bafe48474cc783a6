//! Runs over several datasets, by `dataset_info.json`, with an evaluation of each, over a stream, over tokenised rows that were kept,
//! and in halved batches.

#[path = "common/tiny.rs"]
mod tiny;

use std::path::Path;

use loratune_train::config::RunConfig;
use loratune_train::trainer::Ending;
use serde_json::{Value, json};
use tiny::{bytes, config, goldens, run, run_until};

/// A data folder with an index of the goldens' rows.
fn data_folder(folder: &Path) -> String {
    let file = |name: &str| goldens().join(name).canonicalize().unwrap();
    let index = json!({"a": {"file_name": file("train.jsonl")}, "b": {"file_name": file("eval.jsonl")}});
    std::fs::write(folder.join("dataset_info.json"), index.to_string()).unwrap();
    format!("dataset_dir={}", folder.display())
}

#[test]
fn each_evaluation_set_has_its_own_loss_in_the_log() {
    let folder = tempfile::tempdir().unwrap();
    let dir = data_folder(folder.path());
    let settings = [
        &dir,
        "dataset=a,b",
        "eval_dataset=a,b",
        "eval_strategy=steps",
        "eval_steps=8",
        "eval_on_each_dataset=true",
    ];
    let (outcome, watcher) = run(config(&folder.path().join("out"), &settings));
    let evaluation = outcome.unwrap().evaluation.unwrap();
    let state: Value =
        serde_json::from_slice(&bytes(&folder.path().join("out"), "trainer_state.json")).unwrap();
    let entry =
        state["log_history"].as_array().unwrap().iter().find(|e| e.get("eval_loss").is_some()).unwrap();
    let loss = |key: &str| entry[key].as_f64().unwrap_or_else(|| panic!("{key} is not in {entry}"));
    let (a, b, all) = (loss("eval_a_loss"), loss("eval_b_loss"), loss("eval_loss"));
    assert!(a != b && a.min(b) < all && all < a.max(b), "{a} {b} {all}");
    assert_eq!(watcher.evaluations, [all]);
    assert_eq!(evaluation.loss, all);
    // The same rows without looking at each: the same loss over all of them.
    let together = [&dir, "dataset=a,b", "eval_dataset=a,b", "eval_strategy=steps", "eval_steps=8"];
    let (outcome, _) = run(config(&folder.path().join("together"), &together));
    let whole = outcome.unwrap().evaluation.unwrap().loss;
    assert!((whole - all).abs() < 1e-6 * all, "{whole} {all}");
}

#[test]
fn a_streamed_run_can_be_interrupted_and_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let dir = data_folder(folder.path());
    for extra in [&["packing=true"][..], &["val_size=3", "eval_strategy=steps", "eval_steps=4"]] {
        let mut settings =
            vec![dir.as_str(), "dataset=a,b", "streaming=true", "buffer_size=7", "save_steps=3"];
        settings.extend(extra);
        let (place, keep) = (folder.path().join("run"), folder.path().join("whole"));
        run(config(&place, &settings)).0.unwrap();
        std::fs::rename(&place, &keep).unwrap();
        let (outcome, _) = run_until(config(&place, &settings), Some(4));
        assert_eq!(outcome.unwrap().ending, Ending::Interrupted { step: 4 });
        settings.push("resume_from_checkpoint=true");
        run(config(&place, &settings)).0.unwrap();
        for file in ["adapter_model.safetensors", "trainer_state.json"] {
            assert_eq!(bytes(&place, file), bytes(&keep, file), "{file}");
        }
        std::fs::remove_dir_all(&place).unwrap();
        std::fs::remove_dir_all(&keep).unwrap();
    }
}

#[test]
fn a_stream_in_file_order_trains_what_the_same_rows_in_memory_train() {
    let folder = tempfile::tempdir().unwrap();
    let losses = |more: &str| {
        let settings = ["disable_shuffling=true", "max_steps=4", more];
        let (outcome, watcher) = run(config(&folder.path().join(more), &settings));
        outcome.unwrap();
        watcher.steps.iter().map(|s| s.loss).collect::<Vec<_>>()
    };
    assert_eq!(losses("streaming=true"), losses("streaming=false"));
}

#[test]
fn tokenised_rows_are_written_once_and_trained_again() {
    let folder = tempfile::tempdir().unwrap();
    let dir = data_folder(folder.path());
    let kept = format!("tokenized_path={}", folder.path().join("new/rows").display());
    for (n, extra) in
        [&["val_size=0.2"][..], &["eval_dataset=a,b", "eval_on_each_dataset=true"]].iter().enumerate()
    {
        let kept = format!("{kept}{n}");
        let common = [&dir, "dataset=a,b", &kept, "eval_strategy=steps", "eval_steps=4", "max_samples=40"];
        let (first, again) = (folder.path().join("first"), folder.path().join("again"));
        let settings = [&common[..], extra].concat();
        let before = run(config(&first, &settings)).1;
        // Neither the data nor how it was read is needed any more.
        let bare = [&kept, "dataset=null", "eval_strategy=steps", "eval_steps=4", "mask_history=true"];
        let after = run(config(&again, &bare)).1;
        assert_eq!(before.evaluations, after.evaluations);
        assert_eq!(bytes(&first, "adapter_model.safetensors"), bytes(&again, "adapter_model.safetensors"));
        let state = |dir: &Path| String::from_utf8(bytes(dir, "trainer_state.json")).unwrap();
        assert_eq!(state(&first).contains("eval_a_loss"), n == 1);
        assert_eq!(state(&first), state(&again));
        std::fs::remove_dir_all(&first).unwrap();
        std::fs::remove_dir_all(&again).unwrap();
    }
    let refused = |settings: &[&str], parts: &[&str]| {
        let message = run(config(&folder.path().join("out"), settings)).0.unwrap_err().to_string();
        parts.iter().for_each(|p| assert!(message.contains(p), "{message}\nlacks {p}"));
    };
    let other = format!("tokenized_path={}", folder.path().display());
    refused(&[&other], &["holds something else than tokenised rows"]);
    let nothing = format!("tokenized_path={}", folder.path().join("nothing").display());
    refused(&[&nothing, "dataset=null"], &["holds no rows", "no dataset is named"]);
    let without = format!("tokenized_path={}", folder.path().join("without").display());
    run(config(&folder.path().join("made"), &[&without])).0.unwrap();
    refused(&[&without, "do_eval=true"], &["no rows to evaluate on", "`validation`"]);
}

#[test]
fn halved_batches_make_the_same_steps() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("run");
    let settings = ["save_steps=4", "gradient_accumulation_steps=2"];
    let (_, whole) = run(config(&place, &settings));
    let adapter = bytes(&place, "adapter_model.safetensors");
    // As if a card had had no room for a batch of four rows, nor for one of two.
    let path = place.join("checkpoint-4/loratune_state.json");
    let state = std::fs::read_to_string(&path).unwrap();
    assert!(state.contains("\"halvings\": 0"), "{state}");
    std::fs::write(&path, state.replace("\"halvings\": 0", "\"halvings\": 2")).unwrap();
    std::fs::remove_dir_all(place.join("checkpoint-8")).unwrap();
    let (outcome, rest) = run(config(&place, &[&settings[..], &["resume_from_checkpoint=true"]].concat()));
    outcome.unwrap();
    assert_eq!(rest.steps.len(), 4);
    for (a, b) in whole.steps[4..].iter().zip(&rest.steps) {
        let near = |a: f64, b: f64| (a - b).abs() < 1e-5 * a.abs();
        assert!(near(a.loss, b.loss) && near(a.grad_norm, b.grad_norm), "{a:?} {b:?}");
        assert_eq!((a.tokens, a.trained_tokens), (b.tokens, b.trained_tokens));
    }
    // Sums in another order: it was computed in other parts.
    assert_ne!(bytes(&place, "adapter_model.safetensors"), adapter);
}

#[test]
fn contradictions_about_data_are_refused() {
    let refused = |settings: &[&str], parts: &[&str]| {
        let mut all = vec!["model_name_or_path=m", "dataset=a,b", "output_dir=o"];
        all.extend(settings);
        let all: Vec<String> = all.iter().map(|s| s.to_string()).collect();
        let message = RunConfig::from_words(&all).unwrap_err().to_string();
        parts.iter().for_each(|p| assert!(message.contains(p), "{message}\nlacks {p}"));
    };
    refused(&["streaming=true"], &["streaming", "max_steps"]);
    refused(&["streaming=true", "max_steps=5", "val_size=0.5", "eval_strategy=steps"], &["a number of rows"]);
    refused(&["interleave_probs=0.5,0.5"], &["interleave_probs", "mix_strategy"]);
    refused(&["eval_on_each_dataset=true"], &["there is no eval_dataset"]);
    refused(&["streaming=true", "max_steps=5", "tokenized_path=t"], &["tokenized_path", "are not kept"]);
    refused(&["tokenized_path=o"], &["overwrite its own input"]);
    refused(&["mix_strategy=interleave"], &["mix_strategy", "interleave_under"]);
    refused(&["mix_strategy=interleave_undre"], &["did you mean `interleave_under`?"]);
}
