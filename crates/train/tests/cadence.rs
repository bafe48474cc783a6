//! When a run logs, evaluates and saves, and learning rates that follow its evaluations.

#[path = "common/tiny.rs"]
mod tiny;

use std::path::Path;

use loratune_train::config::RunConfig;
use loratune_train::report::state::TrainerState;
use loratune_train::report::{LogEntry, LogKind};
use loratune_train::trainer::Ending;
use tiny::{bytes, config, goldens, run, run_until};

/// 48 rows by 4: 12 steps an epoch.
const TWO_EPOCHS: &str = "max_steps=24";

fn with_eval(dir: &Path, more: &[&str]) -> RunConfig {
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    config(dir, &[&[eval.as_str()], more].concat())
}

fn history(dir: &Path) -> Vec<LogEntry> {
    TrainerState::load(&dir.join("trainer_state.json")).unwrap().log_history
}

/// Steps of the log at which the loss stands, and those at which an evaluation does.
fn steps(dir: &Path) -> (Vec<u64>, Vec<u64>) {
    let (mut logged, mut evaluated) = (Vec::new(), Vec::new());
    for entry in history(dir) {
        match entry.kind {
            LogKind::Train { .. } => logged.push(entry.step),
            LogKind::Eval { .. } => evaluated.push(entry.step),
            LogKind::Summary { .. } => {}
        }
    }
    (logged, evaluated)
}

fn checkpoints(dir: &Path) -> Vec<String> {
    let names = std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|n| n.starts_with("checkpoint-")).collect();
    names.sort_by_key(|n| n["checkpoint-".len()..].parse::<u64>().unwrap());
    names
}

#[test]
fn losses_are_logged_when_logging_strategy_says() {
    let logged = |settings: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        run(config(dir.path(), &[&[TWO_EPOCHS, "logging_steps=10"], settings].concat())).0.unwrap();
        steps(dir.path()).0
    };
    assert_eq!(logged(&[]), [10, 20, 24]);
    assert_eq!(logged(&["logging_first_step=true"]), [1, 10, 20, 24]);
    assert_eq!(logged(&["logging_strategy=epoch"]), [12, 24]);
    assert_eq!(logged(&["logging_strategy=no"]), [] as [u64; 0]);
    assert_eq!(logged(&["logging_strategy=no", "logging_first_step=true"]), [1]);
}

#[test]
fn no_evaluation_comes_before_eval_delay() {
    let seen = |settings: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        run(with_eval(dir.path(), &[&[TWO_EPOCHS], settings].concat())).0.unwrap();
        steps(dir.path()).1
    };
    assert_eq!(seen(&["eval_strategy=steps", "eval_steps=6", "eval_delay=12"]), [12, 18, 24]);
    assert_eq!(seen(&["eval_strategy=epoch", "eval_delay=1.5"]), [24]);
}

#[test]
fn the_best_are_saved_whatever_the_steps() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        ["eval_strategy=steps", "eval_steps=2", "save_strategy=best", "load_best_model_at_end=true"];
    run(with_eval(
        dir.path(),
        &[&["max_steps=12", "learning_rate=2", "lr_scheduler_type=constant"], &settings[..]].concat(),
    ))
    .0
    .unwrap();
    let mut best = f64::INFINITY;
    let mut expected = Vec::new();
    for entry in history(dir.path()) {
        if let LogKind::Eval { loss, .. } = entry.kind
            && loss < best
        {
            best = loss;
            expected.push(format!("checkpoint-{}", entry.step));
        }
    }
    assert!(expected.len() < 6, "every evaluation was the best: nothing is shown");
    assert_eq!(checkpoints(dir.path()), expected);
}

#[test]
fn checkpoints_of_models_only_are_no_places_to_go_on_from_but_an_interruption_is() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["save_steps=2", "save_only_model=true", "max_steps=6"];
    run(config(dir.path(), &settings)).0.unwrap();
    assert_eq!(checkpoints(dir.path()), ["checkpoint-2", "checkpoint-4", "checkpoint-6"]);
    assert!(!dir.path().join("checkpoint-4/optimizer.safetensors").exists());
    assert!(dir.path().join("checkpoint-4/adapter_model.safetensors").exists());
    let from = format!("resume_from_checkpoint={}", dir.path().join("checkpoint-4").display());
    let refused = run(config(dir.path(), &[&settings[..], &[&from]].concat())).0.unwrap_err().to_string();
    assert!(refused.contains("save_only_model"), "{refused}");

    let whole = bytes(dir.path(), "adapter_model.safetensors");
    for stop in [3, 4] {
        let dir = tempfile::tempdir().unwrap();
        let ending = run_until(config(dir.path(), &settings), Some(stop)).0.unwrap().ending;
        assert_eq!(ending, Ending::Interrupted { step: stop });
        let resumed = [&settings[..], &["resume_from_checkpoint=true"]].concat();
        run(config(dir.path(), &resumed)).0.unwrap();
        assert!(bytes(dir.path(), "adapter_model.safetensors") == whole);
    }
}

#[test]
fn a_short_last_batch_is_left_out_on_request() {
    // 48 rows by 5: nine whole batches and one of three rows.
    let of = |settings: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let all = ["per_device_train_batch_size=5", "max_steps=-1", "num_train_epochs=2", "max_samples=48"];
        let seen = run(config(dir.path(), &[&all[..], settings].concat())).1;
        seen.steps.len()
    };
    assert_eq!(of(&[]), 20);
    assert_eq!(of(&["dataloader_drop_last=true"]), 18);
    // Windows of four batches: nine batches are two of them and one of a single batch.
    assert_eq!(of(&["dataloader_drop_last=true", "gradient_accumulation_steps=4"]), 6);
}

#[test]
fn rates_that_follow_evaluations_survive_an_interruption() {
    let settings = [
        TWO_EPOCHS,
        "eval_strategy=steps",
        "eval_steps=2",
        "save_steps=5",
        "logging_steps=1",
        "learning_rate=0.2",
        "lr_scheduler_type=reduce_lr_on_plateau",
        "lr_scheduler_kwargs={patience: 0, factor: 0.5, threshold: 0.05}",
        "loraplus_lr_ratio=4",
    ];
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("run");
    let (outcome, seen) = run(with_eval(&place, &settings));
    outcome.unwrap();
    let rates: Vec<f64> = seen.steps.iter().map(|s| s.learning_rate).collect();
    assert_eq!(rates[..3], [0.2; 3], "nothing was evaluated twice before the fourth step");
    assert!(rates[23] < 0.1, "{rates:?}");
    // Each rate is that of the step before, or half of it right after an evaluation.
    for (i, pair) in rates.windows(2).enumerate() {
        assert!(pair[0] == pair[1] || ((i + 1) % 2 == 0 && pair[1] == pair[0] / 2.0), "{i}: {rates:?}");
    }
    let whole = bytes(&place, "adapter_model.safetensors");
    std::fs::remove_dir_all(&place).unwrap();
    run_until(with_eval(&place, &settings), Some(13)).0.unwrap();
    let resumed = [&settings[..], &["resume_from_checkpoint=true"]].concat();
    run(with_eval(&place, &resumed)).0.unwrap();
    assert!(bytes(&place, "adapter_model.safetensors") == whole);
}
