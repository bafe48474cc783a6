//! Reading a run's configuration: meanings, origins, round trips.

#[path = "common/settings.rs"]
mod settings;

use loratune_engine::Checkpointing;
use loratune_train::config::*;
use loratune_train::schedule::ScheduleKind;
use settings::{config, load};

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

#[test]
fn gradient_checkpointing_has_three_names() {
    for (text, want) in [
        ("", Checkpointing::None),
        ("gradient_checkpointing: true\n", Checkpointing::Block),
        ("gradient_checkpointing: none\n", Checkpointing::None),
        ("gradient_checkpointing: block\n", Checkpointing::Block),
        ("gradient_checkpointing: offload\n", Checkpointing::Offload),
        ("disable_gradient_checkpointing: true\n", Checkpointing::None),
        ("disable_gradient_checkpointing: false\n", Checkpointing::Block),
        ("activation_checkpointing: true\n", Checkpointing::Block),
    ] {
        assert_eq!(load(text, &[]).unwrap().config.gradient_checkpointing, want, "{text}");
    }
}
