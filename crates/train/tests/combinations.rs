//! What methods promise one another: each may be combined with any other, is off when it should be, and what makes no
//! sense is refused before anything is written.

#[path = "common/tiny.rs"]
mod tiny;

use std::path::Path;

use loratune_train::Error;
use loratune_train::config::RunConfig;
use loratune_train::run::prepare;
use tiny::{bytes, config, goldens, run};

fn losses(settings: &[&str]) -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    let (outcome, seen) = run(config(dir.path(), settings));
    outcome.unwrap_or_else(|e| panic!("{settings:?}: {e}"));
    seen.steps.iter().map(|s| s.loss).collect()
}

#[test]
fn every_combination_of_methods_runs_and_learns() {
    let inits = ["true", "gaussian", "orthogonal", "pissa", "pissa_niter_2", "olora"];
    for (i, init) in inits.iter().enumerate() {
        for mask in 0..32u32 {
            // Half of all, every pair of switches among them.
            if (mask.count_ones() as usize + i) % 2 == 1 {
                continue;
            }
            let switches = [
                "use_dora=true",
                "use_rslora=true",
                "loraplus_lr_ratio=4",
                "neftune_noise_alpha=1",
                "lora_dropout=0.05",
            ];
            let init = format!("init_lora_weights={init}");
            // All rows in every step, so that losses compare.
            let mut settings =
                vec![init.as_str(), "max_steps=4", "per_device_train_batch_size=48", "learning_rate=0.002"];
            settings.extend(switches.iter().enumerate().filter(|(k, _)| mask >> k & 1 == 1).map(|(_, s)| *s));
            if mask & 4 == 0 {
                settings.push("modules_to_save=norm");
            }
            if mask & 8 == 0 {
                settings.push("bias=lora_only");
            }
            if mask % 3 == 0 {
                settings.push("lora_target=q_proj,up_proj,embed_tokens,lm_head");
            }
            let losses = losses(&settings);
            assert!(losses.iter().all(|l| l.is_finite()), "{settings:?}: {losses:?}");
            let [first, last] = [losses[0], losses[3]];
            assert!(last < first, "{settings:?}: {losses:?}");
        }
    }
}

#[test]
fn lora_plus_with_ratio_1_is_lora_bit_for_bit() {
    for base in
        [vec!["weight_decay=0.1"], vec!["use_dora=true", "bias=all", "lora_target=q_proj,embed_tokens"]]
    {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        for (dir, ratio) in dirs.iter().zip(["", "loraplus_lr_ratio=1", "loraplus_lr_ratio=0"]) {
            let mut settings = base.clone();
            settings.extend((!ratio.is_empty()).then_some(ratio));
            run(config(dir.path(), &settings)).0.unwrap();
        }
        let adapter = |i: usize| bytes(dirs[i].path(), "adapter_model.safetensors");
        assert!(adapter(0) == adapter(1) && adapter(0) == adapter(2), "{base:?}");
    }
    assert_ne!(losses(&["loraplus_lr_ratio=8"]), losses(&[]));
}

#[test]
fn noise_is_in_training_only_and_by_the_seed() {
    let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
    let common = [
        &eval,
        "eval_strategy=steps",
        "eval_steps=1",
        "eval_on_start=true",
        "learning_rate=0",
        "max_steps=2",
    ];
    let both =
        [vec![], vec!["neftune_noise_alpha=15"], vec!["neftune_noise_alpha=15", "seed=7"]].map(|extra| {
            let dir = tempfile::tempdir().unwrap();
            let seen = run(config(dir.path(), &[&common[..], &extra].concat())).1;
            (seen.steps.iter().map(|s| s.loss).collect::<Vec<_>>(), seen.evaluations)
        });
    assert_eq!(both[0].1, both[1].1, "evaluation has no noise");
    assert_ne!(both[0].0, both[1].0);
    assert_ne!(both[1].0, both[2].0);
}

#[test]
fn noise_by_sequence_does_not_depend_on_what_a_row_is_padded_or_packed_with() {
    // With a learning rate of 0 the loss shows the noise alone. One row of a batch is the longest, so both scales agree
    // there and only there.
    let one = |extra: &[&str]| {
        let settings = ["neftune_noise_alpha=40", "learning_rate=0", "max_steps=1", "disable_shuffling=true"];
        losses(&[&settings[..], extra].concat())[0]
    };
    let alone = ["per_device_train_batch_size=1", "neftune_scale=per_batch"];
    assert_eq!(one(&alone), one(&["per_device_train_batch_size=1"]));
    let many = ["per_device_train_batch_size=4", "neftune_scale=per_batch"];
    assert_ne!(one(&many), one(&["per_device_train_batch_size=4"]));
}

#[test]
fn raw_factors_are_written_with_the_model_they_belong_on() {
    let (plain, raw) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = ["init_lora_weights=pissa", "use_dora=true"];
    run(config(plain.path(), &settings)).0.unwrap();
    let not_converted = [&settings[..], &["pissa_convert=false"]].concat();
    run(config(raw.path(), &not_converted)).0.unwrap();
    let eval = |dir: &Path, model: Option<&Path>| {
        let out = tempfile::tempdir().unwrap();
        let eval = format!("eval_dataset={}", goldens().join("eval.jsonl").display());
        let adapter = format!("adapter_name_or_path={}", dir.display());
        let settings =
            [&eval, &adapter, "eval_strategy=steps", "eval_steps=1", "eval_on_start=true", "max_steps=1"];
        let mut config: RunConfig = config(out.path(), &settings);
        if let Some(model) = model {
            config.model_name_or_path = model.display().to_string();
        }
        run(config).1.evaluations[0]
    };
    let (a, b) = (eval(plain.path(), None), eval(raw.path(), Some(&raw.path().join("residual_model"))));
    assert!((a / b - 1.0).abs() < 1e-5, "{a} as plain LoRA, {b} from the raw factors");
    // Overwriting removes the residual model too; the second run here has none.
    run(config(raw.path(), &[&settings[..], &["overwrite_output_dir=true"]].concat())).0.unwrap();
    assert!(!raw.path().join("residual_model").exists());
}

fn refused(settings: &[&str], words: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    let output = dir.path().join("out");
    let error: Error =
        prepare(config(&output, settings)).err().unwrap_or_else(|| panic!("accepted: {settings:?}"));
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "{settings:?}: {text}");
    }
    assert!(!output.exists(), "{settings:?} left something behind");
}

#[test]
fn what_makes_no_sense_is_refused_with_its_reason() {
    refused(&["init_lora_weights=orthogonal", "lora_rank=3"], &["orthogonal", "even", "not 3"]);
    refused(&["init_lora_weights=pissa", "lora_rank=64"], &["pissa", "at most rank", "not 64", "q_proj"]);
    refused(&["init_lora_weights=olora", "rank_pattern={up_proj: 33}"], &["olora", "up_proj", "not 33"]);
    refused(&["modules_to_save=lm_haed"], &["modules_to_save", "did you mean 'lm_head'?"]);
    refused(&["modules_to_save=lm_head", "lora_target=lm_head,q_proj"], &["both adapted", "keep one"]);
    refused(&["lora_target=down_proj", "bias=lora_only"], &["bias: lora_only", "none"]);
    refused(&["lora_target=embed_token"], &["did you mean 'embed_tokens'?"]);
    refused(&["finetuning_type=full", "unfrozen_parameters=lm_haed"], &["lm_haed", "matches no parameter"]);
    refused(&["finetuning_type=full", "unfrozen_parameters=("], &["not a regular expression"]);
    refused(&["finetuning_type=freeze", "freeze_trainable_layers=9"], &["9", "3 layers"]);
    refused(&["finetuning_type=freeze", "freeze_trainable_modules=mpl"], &["mpl", "it has", "mlp"]);
    refused(&["finetuning_type=freeze", "freeze_extra_modules=mlp"], &["mlp", "it has", "embed_tokens"]);
}

#[test]
fn freezing_trains_the_layers_and_modules_that_are_named() {
    let trained = |settings: &[&str]| {
        let dir = tempfile::tempdir().unwrap();
        let model = prepare(config(dir.path(), settings)).unwrap().model;
        model.params.ids().map(|id| model.params.name(id).to_string()).collect::<Vec<_>>()
    };
    let last = trained(&["finetuning_type=freeze", "freeze_trainable_layers=1"]);
    assert!(last.len() == 13 && last.iter().all(|n| n.starts_with("model.layers.2.")), "{last:?}");
    let first =
        trained(&["finetuning_type=freeze", "freeze_trainable_layers=-2", "freeze_trainable_modules=mlp"]);
    assert!(
        first.len() == 6 && first.iter().all(|n| n.contains(".mlp.") && !n.contains("layers.2.")),
        "{first:?}"
    );
    let extra = trained(&[
        "finetuning_type=freeze",
        "freeze_trainable_layers=1",
        "freeze_extra_modules=lm_head,norm",
    ]);
    assert_eq!(extra.len(), 15);
    let some = trained(&["finetuning_type=full", "unfrozen_parameters=.*norm,lm_head"]);
    assert!(some.len() == 8 && some.iter().all(|n| n.contains("norm") || n == "lm_head.weight"), "{some:?}");
}
