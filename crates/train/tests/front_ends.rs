//! The front ends of a run's configuration: files, flags, and AutoTrain's command line lead to the same keys.

use loratune_train::config::*;

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_string).collect()
}

const BASE: &str = "--model_name_or_path m --dataset d.jsonl --output_dir out";

fn flags(line: &str) -> Loaded {
    RunConfig::from_words(&words(&format!("{BASE} {line}"))).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn refusal(line: &str) -> String {
    match RunConfig::from_words(&words(&format!("{BASE} {line}"))) {
        Ok(loaded) => panic!("accepted: {line}\n{}", loaded.config.to_yaml()),
        Err(e) => {
            assert!(e.is_usage());
            e.to_string()
        }
    }
}

fn autotrain(line: &str) -> Result<Loaded, ConfigError> {
    RunConfig::from_autotrain(&words(line))
}

const LLM: &str = "--train --model m --project-name out --data-path d.jsonl";

fn llm(line: &str) -> Loaded {
    autotrain(&format!("{LLM} {line}")).unwrap_or_else(|e| panic!("{line}: {e}"))
}

#[test]
fn flags_say_what_a_file_says() {
    let file = "model_name_or_path: m\ndataset: [a, b]\noutput_dir: out\nlora_target: [q_proj, v_proj]\nval_size: 0.1\n\
        eval_strategy: steps\neval_steps: 100\nplot_loss: false\nlearning_rate: 5e-5\nbf16: true\nmax_steps: -1\n\
        lr_scheduler_kwargs: {num_cycles: 2}\nlr_scheduler_type: cosine_with_restarts\nlayers_to_transform: [0, 1]\n";
    let want = RunConfig::from_text(file, "run.yaml", &[]).unwrap().config;
    for line in [
        "--model_name_or_path m --dataset a,b --output_dir out --lora_target q_proj,v_proj --val_size 0.1 --eval_strategy steps \
         --eval_steps 100 --no_plot_loss --learning_rate 5e-5 --bf16 --max_steps -1 --lr_scheduler_kwargs {\"num_cycles\":2} \
         --lr_scheduler_type cosine_with_restarts --layers_to_transform 0 1",
        "--model-name-or-path=m --dataset a b --output-dir=out --lora-target q_proj v_proj --val-size=.1 --evaluation-strategy \
         steps --eval-steps 100 --plot-loss false --learning-rate=0.00005 --bf16 true --max-steps=-1 \
         lr_scheduler_kwargs={num_cycles:\\ 2} --lr-scheduler-type cosine_with_restarts --layers-to-transform [0,1]",
    ] {
        let line = line.replace("\\ ", "\u{0}");
        let words: Vec<String> = words(&line).iter().map(|w| w.replace('\u{0}', " ")).collect();
        assert_eq!(RunConfig::from_words(&words).unwrap().config, want, "{line}");
    }
}

#[test]
fn switches_are_read_as_hugging_face_does() {
    for (line, want) in [
        ("--bf16", true),
        ("--bf16 True", true),
        ("--bf16 1", true),
        ("--bf16 yes --packing", true),
        ("--bf16 false", false),
        ("--bf16 0", false),
        ("--bf16=no", false),
        ("--no_bf16", false),
        ("--no-bf16", false),
        ("--bf16 --no_bf16", false),
        ("--bf16 bf16=false", false),
        ("bf16=false --bf16", true),
    ] {
        assert_eq!(flags(line).config.bf16, want, "{line}");
    }
    assert_eq!(flags("--resume_from_checkpoint").config.resume_from_checkpoint, Resume::Latest);
    let from = flags("--resume_from_checkpoint out/checkpoint-5").config.resume_from_checkpoint;
    assert_eq!(from, Resume::From("out/checkpoint-5".into()));
    // What only other tools have.
    assert!(flags("--do_train --overwrite_cache --no_gradient_checkpointing").notes.is_empty());
    assert_eq!(flags("--no_use_fast_tokenizer").notes.len(), 0);
    assert_eq!(flags("--ddp_timeout 180000000").notes.len(), 1);
}

#[test]
fn what_is_wrong_with_a_flag_is_said_in_its_spelling() {
    for (line, want) in [
        ("--lora_rnk 3", "unknown flag `--lora_rnk`; did you mean `--lora_rank`?"),
        ("--lora-rnk=3", "unknown flag `--lora-rnk`; did you mean `--lora-rank`?"),
        ("-lora_rank 3", "flag -lora_rank 3: lora_rank is `3`"),
        ("--learning_rate", "flag --learning_rate: a value is missing; expected a number, at least 0"),
        ("--learning_rate --bf16", "flag --learning_rate: a value is missing; expected a number, at least 0"),
        (
            "--lora-rank abc",
            "flag --lora-rank abc: lora_rank is `abc`; expected a whole number, from 1 to 1048576",
        ),
        ("stray", "`stray`: a setting has the form key=value or --key value, such as learning_rate=1e-4"),
        (
            "--deepspeed ds.json",
            "flag --deepspeed: `deepspeed` is Hugging Face's; it has no place here: a run is one process",
        ),
        ("--lr 1e-4", "flag --lr: `lr` is AutoTrain's; in loratune the key is `learning_rate`"),
        (
            "--pref_beta 0.1",
            "flag --pref_beta: `pref_beta` is LLaMA-Factory's; it has no place here: it is for preferences and rewards; \
             loratune has the stages sft and pt",
        ),
    ] {
        if line.starts_with("-lora") {
            assert_eq!(flags(line).config.lora_rank, 3);
        } else {
            assert_eq!(refusal(line), want);
        }
    }
}

#[test]
fn where_each_value_comes_from() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("run.yaml");
    std::fs::write(&file, "model_name_or_path: m\ndataset: d\noutput_dir: out\nlora_rank: 4\nseed: 1\n")
        .unwrap();
    let file = file.display().to_string();
    let loaded =
        RunConfig::from_words(&[vec![file.clone()], words("--lora-dropout 0.1 seed=2 --bf16")].concat())
            .unwrap();
    let yaml = loaded.to_annotated_yaml();
    for (line, origin) in [
        ("lora_rank: 4", format!("{file}:4")),
        ("lora_dropout: 0.1", "flag --lora-dropout 0.1".into()),
        ("seed: 2", "override seed=2".into()),
        ("bf16: true", "flag --bf16".into()),
        ("lora_alpha: 8", "2 × lora_rank".into()),
        ("weight_decay: 0", "default".into()),
    ] {
        let found = yaml.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("{line}:\n{yaml}"));
        assert!(found.ends_with(&format!("# {origin}")), "{found}");
    }
    let yaml = llm("--lora-r 4 --peft").to_annotated_yaml();
    for (line, origin) in [
        ("lora_rank: 4", "flag --lora-r 4"),
        ("learning_rate: 3.0e-5", "preset AutoTrain"),
        ("seed: 42", "default"),
    ] {
        let found = yaml.lines().find(|l| l.starts_with(line)).unwrap_or_else(|| panic!("{line}:\n{yaml}"));
        assert!(found.ends_with(&format!("# {origin}")), "{found}");
    }
}

#[test]
fn flags_whose_meaning_differs_say_which_was_taken() {
    let notes = |line| flags(line).notes;
    assert_eq!(
        notes("--max_length 512"),
        [
            "flag --max_length 512: `max_length`: taken as TRL's, the most tokens of a row; in LLaMA-Factory it is the most of an \
          answer"
        ]
    );
    assert_eq!(notes("--cutoff_len 512 --max_seq_length 512"), [""; 0]);
    assert_eq!(notes("--packing").len(), 1);
    assert_eq!(notes("--no_packing --neat_packing"), [""; 0]);
    assert!(flags("--neat_packing").config.packing);
    assert!(!flags("--assistant_only_loss").config.train_on_prompt);
    assert!(flags("--assistant_only_loss false").config.train_on_prompt);
    assert!(flags("--no_completion_only_loss").config.train_on_prompt);
}

#[test]
fn autotrains_flags_are_keys_with_its_defaults() {
    let c = llm("").config;
    assert_eq!(
        (c.stage, c.finetuning_type, c.packing, c.bos_of),
        (Stage::Pt, Finetuning::Full, true, BosOf::Document)
    );
    assert_eq!((c.per_device_train_batch_size, c.gradient_accumulation_steps, c.cutoff_len), (2, 4, 1024));
    assert_eq!((c.learning_rate, c.num_train_epochs, c.warmup_ratio), (3e-5, 1.0, 0.1));
    assert_eq!(
        (c.logging_steps, c.eval_strategy, c.save_strategy),
        (LogSteps::Auto, EvalStrategy::No, SaveStrategy::No)
    );
    assert_eq!(c.logging_steps.resolve(1000, 60.0), 12);
    assert_eq!(c.logging_steps.resolve(1000, 2.0), 1);
    assert_eq!(c.logging_steps.resolve(1000, 1e6), 25);

    let c = llm(
        "--peft --lora-r 4 --lora_alpha 8 --lora-dropout 0 --batch_size 3 --epochs 2 --block-size 512 --lr 1e-4 --optimizer sgd \
         --scheduler cosine --mixed-precision bf16 --quantization none --target-modules q_proj,v_proj --no-add-eos-token \
         --logging-steps 7 --log tensorboard --seed 7 --text-column body",
    )
    .config;
    assert_eq!(
        (c.finetuning_type, c.lora_rank, c.lora_alpha, c.lora_dropout),
        (Finetuning::Lora, 4, Some(8.0), Some(0.0))
    );
    assert_eq!(
        (c.per_device_train_batch_size, c.per_device_eval_batch_size, c.num_train_epochs),
        (3, 3, 2.0)
    );
    assert_eq!(
        (c.cutoff_len, c.learning_rate, c.optim, c.bf16, c.seed),
        (512, 1e-4, Optimizer::Sgd, true, 7)
    );
    assert_eq!((c.add_eos_token, c.text_column.as_deref(), c.report_to.len()), (false, Some("body"), 1));
    assert_eq!(c.logging_steps, LogSteps::Steps(Steps::Count(7)));

    assert_eq!(llm("--block-size -1").config.cutoff_len, 1024);
    assert_eq!(llm("--block-size 4096").config.cutoff_len, 2048);
    assert_eq!(llm("--block-size 4096 --model-max-length 8192").config.cutoff_len, 4096);
    let sft = llm("--trainer sft").config;
    assert_eq!((sft.stage, sft.packing, sft.train_on_prompt), (Stage::Sft, true, true));
    let masked = llm("--trainer sft --train_on_prompt false --no-packing packing=false").config;
    assert_eq!((masked.packing, masked.train_on_prompt), (false, false));
    let chat = llm("--trainer sft --chat-template chatml --text-column chat").config;
    assert_eq!((chat.template.as_deref(), chat.messages_column.as_deref()), (Some("chatml"), Some("chat")));
}

#[test]
fn what_autotrains_line_cannot_say_is_refused() {
    let refuse = |line: &str| autotrain(line).unwrap_err().to_string();
    let with = |line: &str| refuse(&format!("{LLM} {line}"));
    assert!(refuse("--model m --project-name o --data-path d").starts_with("`loratune llm` needs --train"));
    assert_eq!(
        with("--mixed-precision fp8"),
        "flag --mixed-precision fp8: --mixed-precision is `fp8`; expected fp16, bf16 or none"
    );
    assert!(with("--quantization int4").contains("quantised bases are not there yet"));
    assert!(with("--block-size 512,128").contains("lists are for preferences"));
    assert!(with("--trainer orpo").contains("it has default, sft"));
    assert!(with("--dpo-beta 0.1").contains("not on preferences"));
    assert!(with("--backend spaces-a10g").contains("the only backend is local"));
    assert_eq!(with("--lora-alhpa 3"), "unknown flag `--lora-alhpa`; did you mean `--lora-alpha`?");
    assert_eq!(with("--batch-size"), "flag --batch-size: a value is missing; expected one");
    assert!(llm("--use-flash-attention-2 --padding left --unsloth").notes.len() == 3);
    assert!(llm("--no-merge-adapter").notes.is_empty());
}

#[test]
fn autotrains_file_says_what_its_line_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("autotrain.yml");
    let text = "task: llm-sft\nbase_model: m\nproject_name: out\nlog: tensorboard\nbackend: local\ndata:\n  path: d.jsonl\n  \
        train_split: train\n  valid_split: null\n  chat_template: chatml\n  column_mapping:\n    text_column: chat\nparams:\n  \
        block_size: 256\n  lr: 1e-4\n  peft: true\n  mixed_precision: bf16\nhub:\n  push_to_hub: false\n";
    std::fs::write(&path, text).unwrap();
    let c = autotrain(&format!("--train --config {} --block-size 128", path.display())).unwrap().config;
    assert_eq!(
        (c.model_name_or_path.as_str(), c.output_dir.as_str(), c.dataset[0].as_str()),
        ("m", "out", "d.jsonl")
    );
    assert_eq!((c.stage, c.cutoff_len, c.learning_rate, c.bf16), (Stage::Sft, 128, 1e-4, true));
    assert_eq!((c.finetuning_type, c.messages_column.as_deref()), (Finetuning::Lora, Some("chat")));
    std::fs::write(&path, "params:\n  lora_rr: 3\n").unwrap();
    let error = autotrain(&format!("--train --config {}", path.display())).unwrap_err().to_string();
    assert!(error.contains("unknown key `lora_rr`; did you mean `lora_r`"), "{error}");
}

#[test]
fn one_precision_one_column_and_plain_text_without_prompts() {
    assert!(refusal("--fp16 --bf16").contains("a run has one precision"));
    assert!(refusal("--text_column a --messages_column b").contains("a row is a text or a conversation"));
    assert!(refusal("--stage pt --mask_history").contains("plain text has no prompts"));
    assert!(flags("--fp16").notes[0].contains("computes in float32"));
    assert!(
        flags("--stage pt").config.cuts_blocks() && !flags("--stage pt --no_packing").config.cuts_blocks()
    );
    assert!(refusal("--optim sgd --optim_args beta=1").contains("sgd takes momentum"));
    assert!(refusal("--optim_args momentum=0.9").contains("this optimiser takes no arguments"));
    assert!(refusal("--optim sgd --optim_args nesterov=true").contains("nesterov needs a momentum"));
    let args = flags("--optim sgd --optim_args momentum=0.9,nesterov=True").config;
    assert_eq!(
        (args.optim_args.number("momentum"), args.optim_args.switch("nesterov")),
        (Some(0.9), Some(true))
    );
    let again = RunConfig::from_text(&args.to_yaml(), "run_config.yaml", &[]).unwrap().config;
    assert_eq!(again, args);
}
