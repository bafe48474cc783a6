//! What a run promises beyond its numbers: the same result however it is cut up, interrupted or threaded.

#[path = "common/tiny.rs"]
mod tiny;

use std::path::{Path, PathBuf};

use loratune_train::Error;
use loratune_train::config::SaveStrategy;
use loratune_train::progress::{Evaluation, StepReport};
use loratune_train::report::LogEntry;
use loratune_train::report::state::TrainerState;
use loratune_train::run::prepare;
use loratune_train::trainer::{Ending, Observer};
use tiny::{bytes, config, goldens, run, run_until};

const DROPOUT: &str = "lora_dropout=0.1";

#[test]
fn an_interrupted_and_resumed_run_ends_with_the_bytes_of_the_whole_one() {
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    for extra in [
        vec![DROPOUT, "save_steps=3"],
        vec![
            DROPOUT,
            "packing=true",
            "gradient_accumulation_steps=2",
            "bf16=true",
            "lr_scheduler_type=cosine",
        ],
        vec!["finetuning_type=full", "weight_decay=0.1"],
        vec!["finetuning_type=freeze", "freeze_trainable_layers=1", "freeze_extra_modules=norm"],
        vec!["init_lora_weights=olora", "bf16=true", "bias=all"],
        vec![
            DROPOUT,
            "use_dora=true",
            "init_lora_weights=pissa_niter_2",
            "use_rslora=true",
            "loraplus_lr_ratio=4",
            "neftune_noise_alpha=5",
            "modules_to_save=lm_head",
            "packing=true",
        ],
        vec![DROPOUT, "bf16=true", "weight_decay=0.1", "trainable_token_indices=[261, 2, 16]"],
        vec![
            "init_lora_weights=pissa",
            "use_dora=true",
            "trainable_token_indices={embed_tokens: [261], lm_head: [2, 261]}",
        ],
        vec![&eval, "eval_strategy=steps", "eval_steps=2", "save_steps=2", "load_best_model_at_end=true"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("run");
        let keep = dir.path().join("whole");
        run(config(&place, &extra)).0.unwrap();
        std::fs::rename(&place, &keep).unwrap();
        for stop in [1, 4, 7] {
            let (outcome, _) = run_until(config(&place, &extra), Some(stop));
            assert_eq!(outcome.unwrap().ending, Ending::Interrupted { step: stop });
            let refused = run(config(&place, &extra)).0.unwrap_err().to_string();
            assert!(refused.contains("resume_from_checkpoint=true"), "{refused}");
            let resumed = [extra.as_slice(), &["resume_from_checkpoint=true"]].concat();
            let (outcome, seen) = run(config(&place, &resumed));
            assert_eq!(outcome.unwrap().ending, Ending::Finished);
            assert_eq!(seen.steps.first().unwrap().step, stop + 1);
            let weights = if extra[0].starts_with("finetuning_type=") {
                "model.safetensors"
            } else {
                "adapter_model.safetensors"
            };
            for file in [weights, "trainer_state.json", "README.md", "training_loss.svg"] {
                assert!(
                    bytes(&place, file) == bytes(&keep, file),
                    "{extra:?}, stopped at {stop}: {file} differs"
                );
            }
            std::fs::remove_dir_all(&place).unwrap();
        }
    }
}

#[test]
fn one_batch_of_eight_is_eight_of_one() {
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let settings = [
        ["per_device_train_batch_size=8", "gradient_accumulation_steps=1"],
        ["per_device_train_batch_size=1", "gradient_accumulation_steps=8"],
    ];
    let [a, b] = [0, 1].map(|i| run(config(dirs[i].path(), &settings[i])).1);
    for (a, b) in a.steps.iter().zip(&b.steps) {
        assert!(
            (a.loss / b.loss - 1.0).abs() < 1e-5 && (a.grad_norm / b.grad_norm - 1.0).abs() < 1e-4,
            "{a:?} {b:?}"
        );
        assert_eq!(a.trained_tokens, b.trained_tokens);
    }
}

#[test]
fn packing_changes_the_rows_but_not_the_loss_of_an_epoch() {
    // One step over all rows: packed or not, every token sees the same tokens.
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let common = ["max_steps=1", "per_device_train_batch_size=48"];
    let plain = run(config(dirs[0].path(), &common)).1;
    let packed = run(config(dirs[1].path(), &[common.as_slice(), &["packing=true"]].concat())).1;
    let (a, b) = (plain.steps[0], packed.steps[0]);
    assert_eq!(a.trained_tokens, b.trained_tokens);
    assert!((a.loss / b.loss - 1.0).abs() < 1e-6, "{} {}", a.loss, b.loss);
    assert!((a.grad_norm / b.grad_norm - 1.0).abs() < 1e-5, "{} {}", a.grad_norm, b.grad_norm);
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for extra in [vec![DROPOUT], vec![DROPOUT, "bf16=true"], vec!["finetuning_type=full"]] {
        let adapters: Vec<Vec<u8>> = ["threads=1", "threads=2", "threads=5"]
            .iter()
            .map(|threads| {
                let dir = tempfile::tempdir().unwrap();
                let settings = [extra.as_slice(), &[threads]].concat();
                run(config(dir.path(), &settings)).0.unwrap();
                let full = extra.contains(&"finetuning_type=full");
                bytes(dir.path(), if full { "model.safetensors" } else { "adapter_model.safetensors" })
            })
            .collect();
        assert!(adapters[0] == adapters[1] && adapters[0] == adapters[2], "{extra:?}");
    }
}

#[test]
fn dropout_changes_training_and_not_evaluation_and_depends_on_the_seed() {
    let dir = tempfile::tempdir().unwrap();
    let loss = |settings: &[&str]| {
        let place = dir.path().join("run");
        let seen = run(config(&place, settings)).1;
        std::fs::remove_dir_all(&place).unwrap();
        seen.steps.last().unwrap().loss
    };
    let (none, some, again, other) = (
        loss(&[]),
        loss(&["lora_dropout=0.5"]),
        loss(&["lora_dropout=0.5"]),
        loss(&["lora_dropout=0.5", "seed=7"]),
    );
    assert!(none != some && some == again && some != other, "{none} {some} {again} {other}");
}

#[test]
fn random_initialisation_and_bf16_learn() {
    for extra in [
        vec!["train_from_scratch=true", "finetuning_type=full", "learning_rate=0.02", "max_steps=60"],
        vec!["bf16=true", "max_steps=40"],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let seen = run(config(dir.path(), &extra)).1;
        let (first, last) = (seen.steps[0].loss, seen.steps.last().unwrap().loss);
        assert!(last < 0.8 * first, "{extra:?}: from {first} to {last}");
    }
}

#[test]
fn the_best_checkpoint_is_kept_and_loaded_and_no_gain_stops_early() {
    let dir = tempfile::tempdir().unwrap();
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    // So high a rate that the evaluation gets worse soon.
    let settings = [
        eval.as_str(),
        "eval_strategy=steps",
        "eval_steps=1",
        "save_steps=1",
        "save_total_limit=1",
        "load_best_model_at_end=true",
        "early_stopping_steps=2",
        "max_steps=200",
        "learning_rate=0.15",
        "lr_scheduler_type=constant",
    ];
    let (outcome, seen) = run(config(dir.path(), &settings));
    let outcome = outcome.unwrap();
    let Ending::EarlyStopped { step } = outcome.ending else { panic!("{outcome:?}") };
    assert!(step < 200);
    let best = seen.evaluations.iter().copied().fold(f64::INFINITY, f64::min);
    let kept = outcome.evaluation.unwrap().loss;
    assert!((kept - best).abs() < 1e-9 * best, "kept {kept}, best {best}");
    assert_eq!(outcome.best_step, Some(step - 2));
    let mut left: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("checkpoint"))
        .collect();
    left.sort();
    assert!(left.contains(&format!("checkpoint-{}", step - 2)) && left.len() <= 2, "{left:?}");
}

#[test]
fn answers_are_scored_in_evaluations_decide_which_is_best_and_are_written_at_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    let settings = [
        eval.as_str(),
        "eval_strategy=steps",
        "eval_steps=20",
        "save_steps=20",
        "load_best_model_at_end=true",
        "metric_for_best_model=rouge-l",
        "predict_with_generate=true",
        "do_predict=true",
        "do_sample=false",
        "max_new_tokens=12",
        "max_steps=60",
        "learning_rate=0.03",
    ];
    let outcome = run(config(dir.path(), &settings)).0.unwrap();
    let state = TrainerState::load(&dir.path().join("trainer_state.json")).unwrap();
    let scores: Vec<f64> = state
        .log_history
        .iter()
        .flat_map(|e| e.values())
        .filter_map(|(name, x)| (name == "eval_rouge-l").then_some(x))
        .collect();
    assert_eq!(scores.len(), 3);
    let best = scores.iter().copied().fold(0.0, f64::max);
    assert!(best > 20.0, "the model learned to answer: {scores:?}");
    assert_eq!(state.best_metric, Some(best), "a larger score is a better one: {scores:?}");
    let kept = outcome.evaluation.unwrap().generated.unwrap();
    assert!((kept.rouge_l - best).abs() < 1e-9 && kept.rows == 8, "{kept:?}");
    // What was measured last and what was written are answers of the same weights.
    let text = String::from_utf8(bytes(dir.path(), "generated_predictions.jsonl")).unwrap();
    assert_eq!(text.lines().count(), 8);
    assert!(text.starts_with("{\"prompt\": \""), "{text}");
    let results: serde_json::Value =
        serde_json::from_slice(&bytes(dir.path(), "predict_results.json")).unwrap();
    assert!((results["predict_rouge-l"].as_f64().unwrap() - best).abs() < 1e-9, "{results}");
    let results: serde_json::Value = serde_json::from_slice(&bytes(dir.path(), "eval_results.json")).unwrap();
    assert!(results["eval_bleu-4"].is_number() && results["eval_loss"].is_number(), "{results}");
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_is_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let settings = ["learning_rate=1e30", "max_grad_norm=0", "lr_scheduler_type=constant", "logging_steps=1"];
    let error = run(config(dir.path(), &settings)).0.unwrap_err();
    let Error::NonFinite { step, .. } = &error else { panic!("{error}") };
    let text = error.to_string();
    assert!(*step >= 2 && text.contains("model.layers.0.self_attn"), "{text}");
    let state = String::from_utf8(bytes(dir.path(), "trainer_state.json")).unwrap();
    assert!(state.contains("NaN") || state.contains("Infinity"), "{state}");
    let log = String::from_utf8(bytes(dir.path(), "trainer_log.jsonl")).unwrap();
    assert!(log.lines().last().unwrap().contains("NaN"), "{log}");
    assert!(!dir.path().join("adapter_model.safetensors").exists());
}

#[test]
fn a_checkpoint_is_not_continued_with_other_settings_or_data() {
    let dir = tempfile::tempdir().unwrap();
    run_until(config(dir.path(), &[]), Some(3)).0.unwrap();
    let resume = |extra: &[&str]| {
        let settings = [extra, &["resume_from_checkpoint=true"]].concat();
        run(config(dir.path(), &settings)).0.unwrap_err().to_string()
    };
    let text = resume(&["learning_rate=0.02", "seed=1"]);
    assert!(text.contains("learning_rate") && text.contains("seed") && !text.contains("lora_rank"), "{text}");
    let text = resume(&["max_samples=10"]);
    assert!(text.contains("max_samples"), "{text}");
    std::fs::remove_file(dir.path().join("checkpoint-3/optimizer.safetensors")).unwrap();
    assert!(resume(&[]).contains("optimizer.safetensors"));
}

#[test]
fn an_output_folder_is_only_overwritten_when_asked_and_then_only_what_runs_write() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("notes.txt"), "mine").unwrap();
    let refused = run(config(dir.path(), &[])).0.unwrap_err();
    assert!(refused.is_usage() && refused.to_string().contains("overwrite_output_dir=true"), "{refused}");
    let mut overwrite = config(dir.path(), &["save_steps=2"]);
    overwrite.overwrite_output_dir = true;
    run(overwrite.clone()).0.unwrap();
    overwrite.save_strategy = SaveStrategy::No;
    run(overwrite).0.unwrap();
    assert_eq!(bytes(dir.path(), "notes.txt"), b"mine");
    assert!(!dir.path().join("checkpoint-2").exists());
}

#[test]
fn a_run_that_stopped_early_stays_stopped_when_it_is_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    let settings = [
        eval.as_str(),
        "eval_strategy=steps",
        "eval_steps=1",
        "save_steps=1",
        "load_best_model_at_end=true",
        "early_stopping_steps=2",
        "max_steps=200",
        "learning_rate=0.15",
        "lr_scheduler_type=constant",
    ];
    let first = run(config(dir.path(), &settings)).0.unwrap();
    let adapter = bytes(dir.path(), "adapter_model.safetensors");
    let state = bytes(dir.path(), "trainer_state.json");
    let (again, seen) = run(config(dir.path(), &[&settings[..], &["resume_from_checkpoint=true"]].concat()));
    assert_eq!(again.unwrap().ending, first.ending);
    assert!(seen.steps.is_empty());
    assert!(
        bytes(dir.path(), "adapter_model.safetensors") == adapter
            && bytes(dir.path(), "trainer_state.json") == state
    );
}

#[test]
fn inputs_and_folders_of_others_are_never_overwritten() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/goldens/llama/tied-bf16");
    std::fs::create_dir(&model).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        std::fs::copy(entry.path(), model.join(entry.file_name())).unwrap();
    }
    let mut over = config(&dir.path().join("model/../model/."), &["overwrite_output_dir=true"]);
    over.model_name_or_path = model.display().to_string();
    let error = run(over).0.unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("its own input, model_name_or_path"), "{error}");
    assert!(model.join("config.json").is_file() && model.join("model.safetensors").is_file());

    // An adapter that lies in a checkpoint of the folder that is overwritten.
    let out = dir.path().join("out");
    run(config(&out, &["save_steps=4"])).0.unwrap();
    let mut on = config(&out, &["overwrite_output_dir=true"]);
    on.adapter_name_or_path = Some(out.join("checkpoint-4").display().to_string());
    assert!(run(on).0.unwrap_err().to_string().contains("adapter_name_or_path"));
    assert!(out.join("checkpoint-4/adapter_model.safetensors").is_file());

    // The model, the adapter or the data in what else is removed of an earlier run.
    let raw = dir.path().join("raw");
    let settings = ["init_lora_weights=pissa", "pissa_convert=false"];
    run(config(&raw, &settings)).0.unwrap();
    std::fs::copy(goldens().join("train.jsonl"), raw.join("residual_model/data.jsonl")).unwrap();
    let mut inputs = [
        config(&raw, &["overwrite_output_dir=true"]),
        config(&raw, &["overwrite_output_dir=true"]),
        config(&raw, &["overwrite_output_dir=true"]),
        config(&raw, &["overwrite_output_dir=true"]),
    ];
    inputs[0].model_name_or_path = raw.join("residual_model").display().to_string();
    inputs[1].adapter_name_or_path = Some(raw.join("runs/../initial_adapter").display().to_string());
    inputs[2].dataset = vec![raw.join("residual_model/data.jsonl").display().to_string()];
    inputs[3].dataset = vec![raw.join("trainer_log.jsonl").display().to_string()];
    let keys = ["model_name_or_path", "adapter_name_or_path", "dataset", "dataset"];
    for (config, key) in inputs.into_iter().zip(keys) {
        let error = run(config).0.unwrap_err().to_string();
        assert!(error.contains("its own input") && error.contains(key), "{error}");
    }
    assert!(raw.join("residual_model/config.json").is_file() && raw.join("trainer_log.jsonl").is_file());

    // A project that has files of the same names.
    let project = dir.path().join("project");
    std::fs::create_dir_all(project.join("runs/other")).unwrap();
    std::fs::write(project.join("README.md"), "mine").unwrap();
    let error = run(config(&project, &["overwrite_output_dir=true"])).0.unwrap_err().to_string();
    assert!(error.contains("README.md") && error.contains("no run of loratune wrote it"), "{error}");
    let models = dir.path().join("models");
    std::fs::create_dir_all(models.join("residual_model")).unwrap();
    std::fs::write(models.join("residual_model/config.json"), "{}").unwrap();
    let error = run(config(&models, &["overwrite_output_dir=true"])).0.unwrap_err().to_string();
    assert!(error.contains("residual_model") && error.contains("no run of loratune wrote it"), "{error}");

    // Going on from another run's checkpoint in a folder that holds a third run.
    let third = dir.path().join("third");
    run(config(&third, &[])).0.unwrap();
    let from = format!("resume_from_checkpoint={}", out.join("checkpoint-4").display());
    let error = run(config(&third, &[&from])).0.unwrap_err().to_string();
    assert!(error.contains("holds something else"), "{error}");
    let fresh = dir.path().join("fresh");
    run(config(&fresh, &[&from, "save_steps=4"])).0.unwrap();
    assert!(bytes(&fresh, "adapter_model.safetensors") == bytes(&out, "adapter_model.safetensors"));
}

#[test]
fn two_runs_do_not_write_into_one_folder() {
    struct Second(PathBuf, Option<String>);
    impl Observer for Second {
        fn step(&mut self, report: &StepReport) {
            if report.step == 2 {
                let again = config(&self.0, &["overwrite_output_dir=true"]);
                self.1 = Some(run(again).0.unwrap_err().to_string());
            }
        }
        fn evaluated(&mut self, _: u64, _: &Evaluation) {}
        fn logged(&mut self, _: &LogEntry, _: u64) {}
        fn saved(&mut self, _: u64, _: &Path) {}
    }
    let dir = tempfile::tempdir().unwrap();
    let mut second = Second(dir.path().to_path_buf(), None);
    prepare(config(dir.path(), &["save_steps=1"])).unwrap().run(&mut second).unwrap();
    assert!(second.1.unwrap().contains("another run is writing"));
    assert!(!dir.path().join(".loratune.lock").exists());
}

#[test]
fn an_evaluation_that_is_not_finite_stops_the_run_before_it_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    let settings = [
        eval.as_str(),
        "learning_rate=1e30",
        "max_grad_norm=0",
        "lr_scheduler_type=constant",
        "eval_strategy=steps",
        "eval_steps=1",
        "save_steps=1",
    ];
    let error = run(config(dir.path(), &settings)).0.unwrap_err();
    let text = error.to_string();
    assert!(
        matches!(error, Error::NonFinite { step: 1, .. }) && text.contains("the evaluation's loss"),
        "{text}"
    );
    assert!(!dir.path().join("checkpoint-1").exists());
    let log = String::from_utf8(bytes(dir.path(), "trainer_log.jsonl")).unwrap();
    assert!(log.lines().last().unwrap().contains("NaN"), "{log}");
}

#[test]
fn how_the_result_is_written_may_change_when_a_run_goes_on() {
    let (whole, resumed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let pissa = ["init_lora_weights=pissa", "save_steps=4"];
    let plain = [&pissa[..], &["pissa_convert=false"]].concat();
    run(config(whole.path(), &plain)).0.unwrap();
    run_until(config(resumed.path(), &pissa), Some(4)).0.unwrap();
    run(config(resumed.path(), &[&plain[..], &["resume_from_checkpoint=true"]].concat())).0.unwrap();
    for file in ["adapter_model.safetensors", "initial_adapter/adapter_model.safetensors"] {
        assert!(bytes(whole.path(), file) == bytes(resumed.path(), file), "{file}");
    }
}
