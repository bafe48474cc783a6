//! Reading a run's configuration: meanings, origins, round trips, and every refusal word for word.

use loratune_train::config::*;
use loratune_train::schedule::ScheduleKind;

const BASE: &str = "model_name_or_path: m\ndataset: d.jsonl\noutput_dir: out\n";

fn load(extra: &str, overrides: &[&str]) -> Result<Loaded, ConfigError> {
    let overrides: Vec<String> = overrides.iter().map(|s| s.to_string()).collect();
    RunConfig::from_text(&format!("{BASE}{extra}"), "run.yaml", &overrides)
}

fn config(extra: &str, overrides: &[&str]) -> RunConfig {
    load(extra, overrides).unwrap_or_else(|e| panic!("{extra}{overrides:?}: {e}")).config
}

fn refusal(extra: &str, overrides: &[&str]) -> String {
    match load(extra, overrides) {
        Ok(loaded) => panic!("accepted: {extra}{overrides:?}\n{}", loaded.config.to_yaml()),
        Err(e) => {
            assert!(e.is_usage());
            e.to_string()
        }
    }
}

#[test]
fn defaults_are_those_of_llama_factory_and_hugging_face() {
    let c = config("", &[]);
    assert_eq!((c.lora_rank, c.lora_alpha, c.lora_dropout), (8, Some(16.0), Some(0.0)));
    assert_eq!(c.lora_target, Targets::AllLinear);
    assert_eq!((c.cutoff_len, c.num_train_epochs, c.learning_rate), (2048, 3.0, 5e-5));
    assert_eq!((c.per_device_train_batch_size, c.gradient_accumulation_steps), (8, 1));
    assert_eq!((c.adam_beta1, c.adam_beta2, c.adam_epsilon), (0.9, 0.999, 1e-8));
    assert_eq!((c.weight_decay, c.max_grad_norm, c.seed, c.data_seed), (0.0, 1.0, 42, Some(42)));
    assert_eq!((c.logging_steps, c.save_steps), (LogSteps::Steps(Steps::Count(500)), Steps::Count(500)));
    assert_eq!((c.lr_scheduler_type, c.warmup_steps), (ScheduleKind::Linear, Steps::Count(0)));
    assert_eq!((c.eval_strategy, c.save_strategy), (EvalStrategy::No, SaveStrategy::Steps));
    assert_eq!((c.packing, c.dtype, c.max_steps), (false, BaseDtype::Float32, Limit(None)));
    assert_eq!(config("bf16: true\n", &[]).dtype, BaseDtype::Bfloat16);
    assert_eq!(config("r: 4\n", &[]).lora_alpha, Some(8.0));
    let eval = config("eval_strategy: steps\nval_size: 0.1\nlogging_steps: 10\n", &[]);
    assert_eq!(eval.eval_steps, Some(Steps::Count(10)));
}

#[test]
fn a_llama_factory_file_runs_as_it_is() {
    let text = "### model\nmodel_name_or_path: m\ntrust_remote_code: true\n### method\nstage: sft\ndo_train: true\n\
        finetuning_type: lora\nlora_rank: 8\nlora_target: all\ndataset: identity,alpaca_en_demo\ntemplate: llama3\n\
        cutoff_len: 2048\nmax_samples: 1000\noverwrite_cache: true\npreprocessing_num_workers: 16\n\
        dataloader_num_workers: 4\noutput_dir: saves/sft\nlogging_steps: 10\nsave_steps: 500\nplot_loss: true\n\
        overwrite_output_dir: true\nsave_only_model: false\nreport_to: none  # choices: [none, wandb]\n\
        per_device_train_batch_size: 1\ngradient_accumulation_steps: 8\nlearning_rate: 1.0e-4\n\
        num_train_epochs: 3.0\nlr_scheduler_type: cosine\nwarmup_ratio: 0.1\nbf16: true\nddp_timeout: 180000000\n\
        resume_from_checkpoint: null\nval_size: 0.1\nper_device_eval_batch_size: 1\nevaluation_strategy: steps\n\
        eval_steps: 500\n";
    let loaded = RunConfig::from_text(text, "lora.yaml", &[]).unwrap();
    let c = &loaded.config;
    assert_eq!(c.dataset, ["identity", "alpaca_en_demo"]);
    assert_eq!((c.template.as_deref(), c.max_samples), (Some("llama3"), Some(1000)));
    assert_eq!((c.learning_rate, c.warmup(675), c.report_to.len()), (1e-4, 68, 0));
    assert_eq!((c.eval_strategy, c.eval_steps), (EvalStrategy::Steps, Some(Steps::Count(500))));
    assert_eq!(
        loaded.notes,
        [
            "lora.yaml:3: `trust_remote_code` changes nothing here: no code from a model's folder is ever run",
            "lora.yaml:16: `dataloader_num_workers` changes nothing here: batches are made in the training process",
            "lora.yaml:31: `ddp_timeout` changes nothing here: a run is one process",
            "lora.yaml:35: `evaluation_strategy` is the old spelling of `eval_strategy`",
        ]
    );
}

#[test]
fn numbers_are_numbers_in_every_spelling() {
    for spelling in ["5e-5", "5E-5", "5.0e-05", "0.00005", "'5e-5'", "\"5e-5\"", ".5e-4"] {
        assert_eq!(config(&format!("learning_rate: {spelling}\n"), &[]).learning_rate, 5e-5, "{spelling}");
        assert_eq!(config("", &[&format!("learning_rate={spelling}")]).learning_rate, 5e-5, "{spelling}");
    }
    assert_eq!(config("num_train_epochs: 2\nlora_alpha: 16.0\nseed: 1e3\n", &[]).seed, 1000);
    assert_eq!(config("logging_steps: 0.05\n", &[]).logging_steps.resolve(101, 0.0), 6);
    assert_eq!(config("logging_steps: 5.0\n", &[]).logging_steps, LogSteps::Steps(Steps::Count(5)));
    for (spelling, want) in [("true", true), ("True", true), ("yes", true), ("off", false), ("FALSE", false)]
    {
        assert_eq!(config(&format!("bf16: {spelling}\n"), &[]).bf16, want, "{spelling}");
    }
    assert_eq!(config("eval_strategy: no\n", &[]).eval_strategy, EvalStrategy::No);
    assert_eq!(config("eval_strategy: false\n", &[]).eval_strategy, EvalStrategy::No);
}

#[test]
fn a_regex_is_told_from_names() {
    let names = |n: &[&str]| Targets::Names(n.iter().map(|s| s.to_string()).collect());
    for (written, want) in [
        ("q_proj", names(&["q_proj"])),
        ("q_proj,v_proj", names(&["q_proj", "v_proj"])),
        ("q_proj, v_proj", names(&["q_proj", "v_proj"])),
        ("[q_proj, v_proj]", names(&["q_proj", "v_proj"])),
        ("layers.0.self_attn.q_proj", names(&["layers.0.self_attn.q_proj"])),
        ("['.*q_proj']", names(&[".*q_proj"])),
        ("all", Targets::AllLinear),
        ("all-linear", Targets::AllLinear),
        ("[all-linear]", Targets::AllLinear),
        (r"'.*\.(q|v)_proj'", Targets::Regex(r".*\.(q|v)_proj".into())),
    ] {
        assert_eq!(config(&format!("lora_target: {written}\n"), &[]).lora_target, want, "{written}");
        assert_eq!(config("", &[&format!("target_modules={written}")]).lora_target, want, "{written}");
    }
    // On the command line nothing needs quotes.
    let regex = config("", &[r"lora_target=model\.layers\.[0-3]\..*(q|v)_proj"]);
    assert_eq!(regex.lora_target, Targets::Regex(r"model\.layers\.[0-3]\..*(q|v)_proj".into()));
}

#[test]
fn tokens_are_ids_or_texts_in_a_list_or_by_module() {
    let of = |extra: &str, overrides: &[&str]| config(extra, overrides).trainable_token_indices.unwrap();
    let (id, text) = (TokenRef::Id, |t: &str| TokenRef::Text(t.into()));
    let list = |tokens: Vec<TokenRef>| TrainedTokens::OfEmbedding(tokens);
    assert_eq!(
        of("trainable_token_indices: [5, <think>, '7']\n", &[]),
        list(vec![id(5), text("<think>"), text("7")])
    );
    assert_eq!(of("", &["trainable_token_indices=[5, 7]"]), list(vec![id(5), id(7)]));
    assert_eq!(of("", &["trainable_token_indices=5"]), list(vec![id(5)]));
    assert_eq!(of("", &["trainable_token_indices=<think>"]), list(vec![text("<think>")]));
    let modules = of("trainable_token_indices: {lm_head: [5], embed_tokens: 7}\n", &[]);
    let expected = vec![("lm_head".to_string(), vec![id(5)]), ("embed_tokens".into(), vec![id(7)])];
    assert_eq!(modules, TrainedTokens::ByModule(expected));
    assert_eq!(config("", &["trainable_token_indices=null"]).trainable_token_indices, None);
}

#[test]
fn overrides_beat_the_file_and_the_last_one_wins() {
    let loaded =
        load("lora_rank: 4\n", &["r=16", "lora_rank=32", "output_dir=1.0", "--learning-rate=1e-3"]).unwrap();
    assert_eq!((loaded.config.lora_rank, loaded.config.output_dir.as_str()), (32, "1.0"));
    assert_eq!(loaded.config.learning_rate, 1e-3);
    assert_eq!(loaded.origin("lora_rank"), Origin::Override("lora_rank=32".into()));
    assert_eq!(loaded.origin("dataset"), Origin::File { file: "run.yaml".into(), line: Some(2) });
    assert_eq!(loaded.origin("lora_alpha"), Origin::Derived("2 × lora_rank"));
    assert_eq!(loaded.origin("seed"), Origin::Default);
    let taken_back =
        load("max_samples: 4\nlora_dropout: 0.5\n", &["max_samples=", "lora_dropout=null"]).unwrap();
    assert_eq!((taken_back.config.max_samples, taken_back.config.lora_dropout), (None, Some(0.0)));
    assert_eq!(taken_back.origin("max_samples"), Origin::Default);
    let alone: Vec<String> =
        ["model_name_or_path=m", "dataset=a,b", "output_dir=o"].map(String::from).to_vec();
    assert_eq!(RunConfig::from_words(&alone).unwrap().config.dataset, ["a", "b"]);
}

#[test]
fn the_resolved_file_gives_the_same_configuration() {
    for extra in [
        "",
        "bf16: true\nlora_target: q_proj,v_proj\nrank_pattern: {v_proj: 4, q_proj: 16}\nalpha_pattern: {q_proj: 2.5}\n",
        "lora_target: '.*\\.(q|v)_proj'\nexclude_modules: [lm_head]\ninit_lora_weights: gaussian\nuse_rslora: true\n",
        "finetuning_type: full\ntrain_from_scratch: true\npacking: true\nmax_steps: 7\nthreads: 2\nreport_to: none\n",
        "eval_strategy: steps\nval_size: 0.1\neval_steps: 0.1\nsave_steps: 0.3\nload_best_model_at_end: true\n\
         early_stopping_patience: 3\n",
        "trainable_token_indices: [32000, <think>, '5', -3]\n",
        "trainable_token_indices: {embed_tokens: [5, 'no'], lm_head: 7}\n",
        "lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 2}\nwarmup_steps: 0.1\n",
        "eval_dataset: [e, 'f g']\neval_strategy: epoch\nlayers_to_transform: 3\nresume_from_checkpoint: true\n",
        "template: 'no'\ndataset_dir: \"a: b # c\\n\\u00e9\\\"\"\nadapter_name_or_path: '-'\nlearning_rate: 1e-300\n",
    ] {
        let first = load(extra, &[]).unwrap();
        let yaml = first.config.to_yaml();
        let again = RunConfig::from_text(&yaml, "again.yaml", &[]).unwrap_or_else(|e| panic!("{e}\n{yaml}"));
        assert_eq!(again.config, first.config, "{yaml}");
        assert_eq!(again.config.to_yaml(), yaml);
        let annotated = RunConfig::from_text(&first.to_annotated_yaml(), "a.yaml", &[]).unwrap();
        assert_eq!(annotated.config, first.config);
    }
}

#[test]
fn json_says_the_same_as_yaml() {
    let json = r#"{"model_name_or_path": "m", "dataset": ["d.jsonl"], "output_dir": "out", "learning_rate": 1e-4,
        "lora_target": ["q_proj"], "lr_scheduler_kwargs": null}"#;
    let from_json = RunConfig::from_text(json, "run.JSON", &[]).unwrap();
    assert_eq!(from_json.config, config("learning_rate: 1e-4\nlora_target: q_proj\n", &[]));
    assert_eq!(from_json.origin("dataset"), Origin::File { file: "run.JSON".into(), line: None });
    let twice = RunConfig::from_text("{\"seed\": 1, \"seed\": 2}", "a.json", &[]).unwrap_err();
    assert_eq!(twice.to_string(), "a.json: not valid JSON: the key `seed` stands twice at line 1 column 22");
    let cut = RunConfig::from_text("{\"seed\": 1", "a.json", &[]).unwrap_err();
    assert_eq!(cut.to_string(), "a.json: not valid JSON: EOF while parsing an object at line 1 column 10");
}

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
        ("stage: stf\n", &[], "run.yaml:4: stage is `stf`; expected sft or pt"),
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
             pissa_niter_N (N iterations) or olora",
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
            "gradient_checkpointing: true\n",
            "run.yaml:4: `gradient_checkpointing` is Hugging Face's; here it is always `false`: recomputing activations \
             is not there yet",
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
fn llama_factorys_spellings_of_the_methods_mean_the_same() {
    use loratune_model::adapter::{Bias, Init};
    let c = config("pissa_init: true\n", &[]);
    assert_eq!((c.init_lora_weights, c.pissa_init, c.pissa_iter), (Init::PissaNiter(16), false, None));
    assert_eq!(config("pissa_init: true\npissa_iter: 4\n", &[]).init_lora_weights, Init::PissaNiter(4));
    assert_eq!(config("pissa_init: true\npissa_iter: -1\n", &[]).init_lora_weights, Init::Pissa);
    assert_eq!(config("pissa_init: false\npissa_convert: true\n", &[]), config("", &[]));
    let c = config("additional_target: embed_tokens,lm_head\nbias: lora_only\nuse_dora: true\n", &[]);
    assert_eq!(c.modules_to_save, ["embed_tokens", "lm_head"]);
    assert!(c.use_dora && c.bias == Bias::LoraOnly);
    // The article's command line has a ratio of 0.
    assert!(!config("loraplus_lr_ratio: 0\n", &[]).lora_plus());
    assert!(!config("loraplus_lr_ratio: 1\n", &[]).lora_plus());
    assert!(config("loraplus_lr_ratio: 16\n", &[]).lora_plus());
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
fn what_has_no_effect_is_said() {
    let notes = |extra| load(extra, &[]).unwrap().notes;
    assert_eq!(
        notes("finetuning_type: full\nlora_rank: 4\n"),
        ["run.yaml:5: `lora_rank` is not used: finetuning_type is full"]
    );
    // LLaMA-Factory's spellings too, although they are resolved; and each key once.
    assert_eq!(
        notes("finetuning_type: freeze\npissa_init: true\npissa_iter: 4\npissa_convert: false\n"),
        ["5: `pissa_init`", "6: `pissa_iter`", "7: `pissa_convert`"]
            .map(|key| format!("run.yaml:{key} is not used: finetuning_type is freeze"))
    );
    assert_eq!(
        notes("finetuning_type: full\nloraplus_lr_ratio: 8\nloraplus_lr_embedding: 1e-5\n"),
        ["5: `loraplus_lr_ratio`", "6: `loraplus_lr_embedding`"]
            .map(|key| format!("run.yaml:{key} is not used: finetuning_type is full"))
    );
    // An adapter that is given keeps its shape; dropout, LoRA+ and how it's written are the run's.
    let given = "adapter_name_or_path: a\npissa_init: true\nlora_dropout: 0.1\npissa_convert: false\nloraplus_lr_ratio: 8\n";
    assert_eq!(
        notes(given),
        ["run.yaml:5: `pissa_init` is not used: the adapter in adapter_name_or_path has its own"]
    );
    assert_eq!(notes("pissa_init: true\npissa_convert: false\nloraplus_lr_ratio: 8\n"), [""; 0]);
    assert_eq!(
        notes("pissa_convert: false\nloraplus_lr_embedding: 1e-5\n"),
        [
            "run.yaml:5: `loraplus_lr_embedding` is not used: loraplus_lr_ratio is off",
            "run.yaml:4: `pissa_convert` is not used: init_lora_weights leaves the base as it is",
        ]
    );
    assert_eq!(
        notes("num_train_epochs: 2\nmax_steps: 10\nlr_scheduler_type: constant\nwarmup_steps: 3\n"),
        [
            "run.yaml:7: `warmup_steps` is not used: lr_scheduler_type is constant; constant_with_warmup warms up",
            "run.yaml:4: `num_train_epochs` is not used: max_steps sets the length",
        ]
    );
}

#[test]
fn a_given_adapter_keeps_its_dropout_unless_the_run_has_one() {
    assert_eq!(config("adapter_name_or_path: a\n", &[]).lora_dropout, None);
    assert_eq!(config("adapter_name_or_path: a\nlora_dropout: 0\n", &[]).lora_dropout, Some(0.0));
    // Written out and read again, it's still the adapter's.
    let resolved = config("adapter_name_or_path: a\n", &[]).to_yaml();
    assert_eq!(RunConfig::from_text(&resolved, "run_config.yaml", &[]).unwrap().config.lora_dropout, None);
    assert_eq!(config("", &[]).lora_dropout, Some(0.0));
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
fn the_registry_is_sound() {
    let mut seen = std::collections::BTreeSet::new();
    for key in KEYS {
        for spelling in key.spellings() {
            assert!(seen.insert(spelling), "{spelling} stands twice");
        }
        assert!(key.doc.trim().ends_with('.'), "{}: {}", key.name, key.doc);
        let default = (key.get)(&RunConfig::default());
        if let (Some(rule), false) = (key.rule, default == Value::Null) {
            assert!((rule.ok)(&default), "{}: its default breaks its rule", key.name);
        }
    }
    let table = RunConfig::keys_markdown();
    for key in KEYS {
        assert!(table.contains(&format!("| `{}`", key.name)), "{}", key.name);
    }
    assert!(
        table.lines().filter(|l| l.starts_with('|')).all(|l| l.replace("\\|", "").matches('|').count() >= 4)
    );
}

/// docs/configuration.md is made from the registry; LORATUNE_UPDATE_SNAPSHOTS=1 writes it.
#[test]
fn the_documentation_of_the_keys_is_the_registry() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let text = format!(
        "# Configuration\n\nOne YAML or JSON file, and settings that win over it: `key=value`, or flags as Hugging \
         Face's parser takes them (`--key value`, `--switch`, `--no_switch`; `-` and `_` are the same). The names are those of \
         LLaMA-Factory, Hugging Face, TRL and PEFT; the last column says whose meaning a key has.\n\n{}\n## \
         AutoTrain's command line\n\n`loratune llm` takes AutoTrain's flags, with its defaults; every key above is a flag \
         there too.\n\n{}\n## Dataset formats\n\nRows are recognised by their fields (`[…]` are optional).\n\n```\n{}```\n\n## Named \
         templates\n\n`template` takes one of these names or the path of a .jinja file; without it the model's own is \
         used.\n\n```\n{}```\n",
        RunConfig::keys_markdown(),
        autotrain_markdown(),
        loratune_data::format_table(),
        loratune_data::template_table()
    );
    if std::env::var_os("LORATUNE_UPDATE_SNAPSHOTS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == text,
        "docs/configuration.md is out of date: run this test with LORATUNE_UPDATE_SNAPSHOTS=1"
    );
}
