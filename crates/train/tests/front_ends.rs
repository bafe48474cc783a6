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
