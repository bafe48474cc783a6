//! What a configuration is refused for, word for word.

#[path = "common/settings.rs"]
mod settings;

use loratune_train::config::*;
use settings::{BASE, load, refusal};

#[test]
fn wrong_values_name_line_key_value_and_expectation() {
    for (extra, overrides, want) in [
        (
            "lora_rank: 0\n",
            &[][..],
            "run.yaml:4: lora_rank is `0`; expected a whole number, from 1 to 1048576",
        ),
        (
            "lora_rank: abc\n",
            &[],
            "run.yaml:4: lora_rank is `abc`; expected a whole number, from 1 to 1048576",
        ),
        (
            "",
            &["trainable_token_indices=[]"],
            "override trainable_token_indices=[]: trainable_token_indices is `[]`; expected token ids or tokens as a list, \
             such as [32000, \"<think>\"], or by module: {embed_tokens: [5], lm_head: [5]}",
        ),
        (
            "trainable_token_indices: {embed_tokens: [1.5]}\n",
            &[],
            "run.yaml:4: trainable_token_indices is `{embed_tokens: [1.5]}`; expected token ids or tokens as a list, such as \
             [32000, \"<think>\"], or by module: {embed_tokens: [5], lm_head: [5]}",
        ),
        ("r: 8.5\n", &[], "run.yaml:4: r is `8.5`; expected a whole number, from 1 to 1048576"),
        (
            "",
            &["lora_rank=[1]"],
            "override lora_rank=[1]: lora_rank is `[1]`; expected a whole number, from 1 to 1048576",
        ),
        ("r: 1048577\n", &[], "run.yaml:4: r is `1048577`; expected a whole number, from 1 to 1048576"),
        (
            "per_device_train_batch_size: 99999999999\n",
            &[],
            "run.yaml:4: per_device_train_batch_size is `99999999999`; expected a whole number, from 1 to 16777216",
        ),
        (
            "per_device_eval_batch_size: 16777217\n",
            &[],
            "run.yaml:4: per_device_eval_batch_size is `16777217`; expected a whole number, from 1 to 16777216",
        ),
        (
            "gradient_accumulation_steps: 16777217\n",
            &[],
            "run.yaml:4: gradient_accumulation_steps is `16777217`; expected a whole number, from 1 to 16777216",
        ),
        (
            "cutoff_len: 9223372036854775807\n",
            &[],
            "run.yaml:4: cutoff_len is `9223372036854775807`; expected a whole number, from 2 to 16777216",
        ),
        ("\n# x\nbf16: maybe\n", &[], "run.yaml:6: bf16 is `maybe`; expected true or false"),
        ("learning_rate: fast\n", &[], "run.yaml:4: learning_rate is `fast`; expected a number, at least 0"),
        (
            "learning_rate: -1e-5\n",
            &[],
            "run.yaml:4: learning_rate is `-1.0e-5`; expected a number, at least 0",
        ),
        (
            "lora_dropout: 1\n",
            &[],
            "run.yaml:4: lora_dropout is `1`; expected a number, from 0 up to, but not, 1",
        ),
        (
            "val_size: 1\n",
            &[],
            "run.yaml:4: val_size is `1`; expected a number, a share below 1 or a whole number of rows from 2 (a bare 1 \
             is neither)",
        ),
        (
            "max_samples: -1\n",
            &[],
            "run.yaml:4: max_samples is `-1`; expected a whole number, at least 1; leave it out for all rows",
        ),
        (
            "max_steps: 0\n",
            &[],
            "run.yaml:4: max_steps is `0`; expected a whole number of at least 1, or -1 for no limit",
        ),
        (
            "logging_steps: 0\n",
            &[],
            "run.yaml:4: logging_steps is `0`; expected a whole number of steps, or a share of all steps below 1, or auto, above 0",
        ),
        (
            "template: 3\n",
            &[],
            "run.yaml:4: template is `3`; expected text (in quotes if it looks like a number)",
        ),
        ("stage: stf\n", &[], "run.yaml:4: stage is `stf`; expected sft or pt; did you mean `sft`?"),
        (
            "rank_pattern: {q_proj: 0}\n",
            &[],
            "run.yaml:4: rank_pattern is `{q_proj: 0}`; expected a mapping such as {q_proj: 16}, every value from 1 to \
             1048576",
        ),
        (
            "rank_pattern: {v_proj: 4, q_proj: 4611686018427387904}\n",
            &[],
            "run.yaml:4: rank_pattern is `{v_proj: 4, q_proj: 4611686018427387904}`; expected a mapping such as \
             {q_proj: 16}, every value from 1 to 1048576",
        ),
        (
            "alpha_pattern: {q_proj: .inf}\n",
            &[],
            "run.yaml: not valid YAML: non-finite float `.inf` rejected by the configured policy at line 4, column 25",
        ),
        (
            "alpha_pattern: {q_proj: 0}\n",
            &[],
            "run.yaml:4: alpha_pattern is `{q_proj: 0}`; expected a mapping such as {q_proj: 16}, every value above 0",
        ),
        (
            "exclude_modules: all\n",
            &[],
            "run.yaml:4: exclude_modules is `all`; expected all, names (a list or with commas), or a regular expression, \
             not all, which would leave nothing to adapt",
        ),
        ("seed: 99999999999999999999\n", &[], "run.yaml:4: seed is `1.0e+20`; expected a whole number"),
        (
            "init_lora_weights: corda\n",
            &[],
            "run.yaml:4: init_lora_weights is `corda`: loratune does not have it yet; it has true, false, gaussian, \
             orthogonal, pissa, pissa_niter_N (N iterations) or olora",
        ),
        (
            "init_lora_weights: pissa_niter\n",
            &[],
            "run.yaml:4: init_lora_weights is `pissa_niter`; expected true, false, gaussian, orthogonal, pissa, \
             pissa_niter_N (N iterations) or olora; did you mean `pissa_niter_16`?",
        ),
        ("bias: some\n", &[], "run.yaml:4: bias is `some`; expected none, all or lora_only"),
        (
            "pissa_iter: -2\n",
            &[],
            "run.yaml:4: pissa_iter is `-2`; expected a number of iterations up to 1000, or -1 for the exact decomposition",
        ),
        (
            "freeze_trainable_layers: 0\n",
            &[],
            "run.yaml:4: freeze_trainable_layers is `0`; expected a whole number, not 0",
        ),
        (
            "optim: galore_adamw\n",
            &[],
            "run.yaml:4: optim is `galore_adamw`: loratune does not have it yet; it has adamw_torch, adamw_bnb_8bit, adafactor, \
             sgd, lion_32bit or lion_8bit",
        ),
        (
            "report_to: wandb\n",
            &[],
            "run.yaml:4: report_to is `wandb`: loratune does not have it yet; it has tensorboard",
        ),
        (
            "",
            &["device=mps"],
            "override device=mps: device is `mps`: loratune does not have it yet; it has auto, cpu, cuda, or cuda:N for the card of \
             that number",
        ),
    ] {
        assert_eq!(refusal(extra, overrides), want);
    }
}

#[test]
fn keys_of_nobody_and_of_other_tools_are_told_apart() {
    for (extra, want) in [
        ("lora_rnk: 3\n", "run.yaml:4: unknown key `lora_rnk`; did you mean `lora_rank`?"),
        ("Learning-Rate: 3\n", "run.yaml:4: unknown key `Learning-Rate`; did you mean `learning_rate`?"),
        ("target_module: x\n", "run.yaml:4: unknown key `target_module`; did you mean `target_modules`?"),
        (
            "quantisation_bit: 4\n",
            "run.yaml:4: unknown key `quantisation_bit`; did you mean `quantization_bit`?",
        ),
        ("zzz: 3\n", "run.yaml:4: unknown key `zzz`; `loratune train --help` lists the keys"),
        (
            "quantization_bit: 4\n",
            "run.yaml:4: `quantization_bit` is LLaMA-Factory's; loratune does not have it: quantised bases are not there yet; \
             bf16: true halves the memory",
        ),
        (
            "target_parameters: [a]\n",
            "run.yaml:4: `target_parameters` is PEFT's; loratune does not have it yet; remove it",
        ),
        ("lr: 1e-4\n", "run.yaml:4: `lr` is AutoTrain's; in loratune the key is `learning_rate`"),
        (
            "logging_nan_inf_filter: true\n",
            "run.yaml:4: `logging_nan_inf_filter` is Hugging Face's; here it is always `false`: a loss that is not finite \
             is never hidden",
        ),
        (
            "do_train: false\n",
            "run.yaml:4: `do_train` is LLaMA-Factory's; here it is always `true`: `loratune train` trains; use `loratune \
             eval` to evaluate only",
        ),
    ] {
        assert_eq!(refusal(extra, &[]), want);
    }
    let off = "quantization_bit: null\nuse_dora: false\nfp16: false\ngradient_checkpointing: false\nbias: none\n\
        logging_nan_inf_filter: false\ndeepspeed: ''\nmodules_to_save: []\n";
    assert!(load(off, &[]).unwrap().notes.is_empty());
}

#[test]
fn contradictions_name_both_sides() {
    for (extra, want) in [
        (
            "pissa_init: true\ninit_lora_weights: olora\n",
            "`pissa_init: true` (run.yaml:4) and `init_lora_weights: olora` (run.yaml:5) do not go together: both say how \
             adapters start; keep one",
        ),
        (
            "pissa_iter: 4\n",
            "`pissa_iter: 4` (run.yaml:4) and `pissa_init: false` (default) do not go together: it counts the iterations \
             of pissa_init; set pissa_init: true, or init_lora_weights: pissa_niter_N",
        ),
        (
            "unfrozen_parameters: [lm_head]\n",
            "`unfrozen_parameters: [lm_head]` (run.yaml:4) and `finetuning_type: lora` (default) do not go together: it \
             chooses among the weights that full fine-tuning trains; with lora, name whole modules in modules_to_save",
        ),
        (
            "trainable_token_indices: [5, \"<a>\"]\nfinetuning_type: full\n",
            "`trainable_token_indices: [5, \"<a>\"]` (run.yaml:4) and `finetuning_type: full` (run.yaml:5) do not go together: \
             rows are trained by themselves beside adapters only; use finetuning_type: lora, or train the embedding whole",
        ),
        (
            "loraplus_lr_ratio: 16\nlearning_rate: 0\n",
            "`loraplus_lr_ratio: 16` (run.yaml:4) and `learning_rate: 0` (run.yaml:5) do not go together: a multiple of a \
             learning rate of 0 is 0; set learning_rate",
        ),
        (
            "load_best_model_at_end: true\n",
            "`load_best_model_at_end: true` (run.yaml:4) and `eval_strategy: \"no\"` (default) do not go together: nothing \
             would say which is best; set eval_strategy to steps or epoch",
        ),
        (
            "early_stopping_steps: 2\n",
            "`early_stopping_steps: 2` (run.yaml:4) and `eval_strategy: \"no\"` (default) do not go together: nothing would \
             say when to stop; set eval_strategy to steps or epoch",
        ),
        (
            "eval_steps: 2\n",
            "`eval_steps: 2` (run.yaml:4) and `eval_strategy: \"no\"` (default) do not go together: evaluation is off; set \
             eval_strategy to steps or epoch",
        ),
        (
            "val_size: 0.1\n",
            "`val_size: 0.1` (run.yaml:4) and `eval_strategy: \"no\"` (default) do not go together: these rows would not be \
             used; set eval_strategy to steps or epoch, or remove `val_size`",
        ),
        (
            "eval_strategy: steps\n",
            "`eval_strategy: steps` (run.yaml:4): there is nothing to evaluate on; set val_size or eval_dataset",
        ),
        (
            "val_size: 0.1\neval_dataset: e\n",
            "`val_size: 0.1` (run.yaml:4) and `eval_dataset: [e]` (run.yaml:5) do not go together: evaluate on held-out \
             rows or on a dataset; keep one",
        ),
        (
            "val_size: 9\neval_strategy: steps\nsave_strategy: epoch\nload_best_model_at_end: true\n",
            "`load_best_model_at_end: true` (run.yaml:7) and `eval_strategy: steps` (run.yaml:5) and `save_strategy: epoch` \
             (run.yaml:6) do not go together: the best model can only be kept if it is saved when it is evaluated; make \
             both strategies equal, or save_strategy best",
        ),
        (
            "val_size: 9\neval_strategy: steps\neval_steps: 30\nsave_steps: 100\nload_best_model_at_end: true\n",
            "`load_best_model_at_end: true` (run.yaml:8) and `save_steps: 100` (run.yaml:7) and `eval_steps: 30` \
             (run.yaml:6) do not go together: save_steps must be a multiple of eval_steps (both counts or both shares), so \
             that what is evaluated is saved",
        ),
        (
            "warmup_steps: 5\nwarmup_ratio: 0.1\n",
            "`warmup_steps: 5` (run.yaml:4) and `warmup_ratio: 0.1` (run.yaml:5) do not go together: both set the length \
             of the warm-up; keep one",
        ),
        (
            "train_on_prompt: true\nmask_history: true\n",
            "`train_on_prompt: true` (run.yaml:4) and `mask_history: true` (run.yaml:5) do not go together: one trains on \
             earlier turns, the other does not",
        ),
        (
            "resume_from_checkpoint: out/checkpoint-5\noverwrite_output_dir: true\n",
            "`overwrite_output_dir: true` (run.yaml:5) and `resume_from_checkpoint: out/checkpoint-5` (run.yaml:4) do not \
             go together: overwriting would delete the checkpoint to go on from; keep one",
        ),
        (
            "train_from_scratch: true\n",
            "`train_from_scratch: true` (run.yaml:4) and `finetuning_type: lora` (default) do not go together: adapters on \
             frozen random weights learn nothing; use finetuning_type: full",
        ),
        (
            "train_from_scratch: true\nfinetuning_type: freeze\n",
            "`train_from_scratch: true` (run.yaml:4) and `finetuning_type: freeze` (run.yaml:5) do not go together: what is \
             not trained would stay random numbers; train all weights (finetuning_type: full without unfrozen_parameters)",
        ),
        (
            "train_from_scratch: true\nfinetuning_type: full\nunfrozen_parameters: [lm_head]\n",
            "`train_from_scratch: true` (run.yaml:4) and `unfrozen_parameters: [lm_head]` (run.yaml:6) do not go together: \
             what is not trained would stay random numbers; train all weights (finetuning_type: full without \
             unfrozen_parameters)",
        ),
        (
            "layers_pattern: [layers]\n",
            "`layers_pattern: [layers]` (run.yaml:4) and `layers_to_transform: null` (default) do not go together: it says \
             where the layers' indices stand, but not which ones are meant; set layers_to_transform, or remove it",
        ),
        (
            "layers_pattern: [layers]\nlora_target: .*q_proj\n",
            "`lora_target: \".*q_proj\"` (run.yaml:5) and `layers_pattern: [layers]` (run.yaml:4) do not go together: a regular \
             expression already says which layers; use names, or put the layers into the expression",
        ),
        (
            "layers_to_transform: 1\nlora_target: .*q_proj\n",
            "`lora_target: \".*q_proj\"` (run.yaml:5) and `layers_to_transform: [1]` (run.yaml:4) do not go together: a regular \
             expression already says which layers; use names, or put the layers into the expression",
        ),
        (
            "adapter_name_or_path: out\n",
            "`adapter_name_or_path: out` (run.yaml:4) and `output_dir: out` (run.yaml:3) do not go together: the result \
             would overwrite its own input; name another folder",
        ),
        (
            "lr_scheduler_type: cosine_with_min_lr\n",
            "`lr_scheduler_kwargs: {}` (default): cosine_with_min_lr needs either min_lr or min_lr_rate, and only one, in \
             lr_scheduler_kwargs",
        ),
        (
            "lora_rank: 3\nr: 4\n",
            "`lora_rank` (run.yaml:4) and `r` (run.yaml:5) are the same setting; keep one",
        ),
    ] {
        assert_eq!(refusal(extra, &[]), want);
    }
}

#[test]
fn files_that_are_no_configuration() {
    let refuse = |text: &str| RunConfig::from_text(text, "x.yaml", &[]).unwrap_err().to_string();
    let empty =
        "x.yaml: the configuration is empty; it needs at least model_name_or_path, dataset and output_dir";
    assert_eq!(refuse(""), empty);
    assert_eq!(refuse("# only a comment\n"), empty);
    assert_eq!(refuse("{}"), empty);
    assert_eq!(refuse("- a\n"), "x.yaml: expected a mapping of `key: value` lines, found a list");
    assert_eq!(refuse("train me"), "x.yaml: expected a mapping of `key: value` lines, found text");
    assert_eq!(
        refuse("seed: 1\nseed: 2\n"),
        "x.yaml: not valid YAML: duplicate mapping key: seed at line 2, column 1"
    );
    assert_eq!(refuse("seed: [1\n"), "x.yaml: not valid YAML: unclosed bracket '[' at line 1, column 7");
    assert_eq!(
        refuse("dataset: d\noutput_dir: o\n"),
        "x.yaml: model_name_or_path is missing; add for example `model_name_or_path: models/SmolLM2-135M`"
    );
    let text = refusal("", &["lora_rank"]);
    assert_eq!(
        text,
        "`lora_rank`: a setting has the form key=value or --key value, such as learning_rate=1e-4"
    );
}

#[test]
fn a_missing_file_lists_similar_names() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["lora_sft.yaml", "lora_sft.json", "unrelated.txt"] {
        std::fs::write(folder.path().join(name), BASE).unwrap();
    }
    let path = folder.path().join("lora-sft.yml");
    let error = RunConfig::load(&path, &[]).unwrap_err();
    assert!(error.is_usage());
    let want = format!(
        "{}: there is no such file; similar names there: lora_sft.yaml, lora_sft.json",
        path.display()
    );
    assert_eq!(error.to_string(), want);
    let error = RunConfig::load(folder.path(), &[]).unwrap_err();
    assert!(!error.is_usage() && error.to_string().contains("cannot read the configuration"), "{error}");
    assert!(RunConfig::load(&folder.path().join("lora_sft.yaml"), &[]).is_ok());
}

#[test]
fn what_needs_evaluations_and_what_is_not_there_is_said() {
    let needs = [
        "eval_delay: 2\n",
        "save_strategy: best\n",
        "lr_scheduler_type: greedy\n",
        "lr_scheduler_type: reduce_lr_on_plateau\n",
    ];
    for text in needs {
        assert!(refusal(text, &[]).contains("set eval_strategy to steps or epoch"), "{text}");
    }
    let with = "eval_strategy: steps\nval_size: 0.1\nlr_scheduler_type: greedy\nlr_scheduler_kwargs: ";
    assert!(load(&format!("{with}{{patience: 3, smooth: true, mode: max}}\n"), &[]).is_ok());
    assert!(refusal(&format!("{with}{{factor: 1.5}}\n"), &[]).contains("a number above 0 and below 1"));
    assert!(refusal(&format!("{with}{{mode: best}}\n"), &[]).contains("min or max"));
    for (text, why) in [
        ("label_smoothing_factor: 1\n", "from 0 up to, but not, 1"),
        ("rope_scaling: longrope\n", "linear, dynamic, yarn or llama3"),
        ("create_new_adapter: true\n", "loratune merge --model MODEL --adapter ADAPTER"),
        ("lr_scheduler_type: cosin\n", "did you mean `cosine`?"),
        ("lr_scheduler_type: greedi\n", "did you mean `greedy`?"),
        ("gradient_checkpointing: ofload\n", "did you mean `offload`?"),
        ("optim: adamw_troch\n", "did you mean `adamw_torch`?"),
        ("report_to: [tensorbord]\n", "did you mean `tensorboard`?"),
        ("bf16: ture\n", "did you mean `true`?"),
        ("init_lora_weights: pisa\n", "did you mean `pissa`?"),
        ("device: gpu0\n", "expected"),
    ] {
        assert!(refusal(text, &[]).contains(why), "{text}: {}", refusal(text, &[]));
    }
}
