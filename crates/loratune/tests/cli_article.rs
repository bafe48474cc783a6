//! The two command lines of the article that loratune follows ("Finetuning with LoRA and variants"), character for character, run by
//! a shell: variables, folders and the two commands' names are all that is filled in.

mod common;

use std::fmt::Write as _;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Place, Ran};

/// `${…}` are the article's own.
const AUTOTRAIN: &str = r#"autotrain llm \
--train \
--model ${MODEL_NAME} \
--project-name ${PROJECT_NAME} \
--data-path data/ \
--text-column text \
--batch-size ${BATCH_SIZE} \
--epochs ${NUM_EPOCHS} \
--block-size ${BLOCK_SIZE} \
--warmup-ratio ${WARMUP_RATIO} \
--lora-r ${LORA_R} \
--lora-alpha ${LORA_ALPHA} \
--lora-dropout ${LORA_DROPOUT} \
--weight-decay ${WEIGHT_DECAY} \
--gradient-accumulation ${GRADIENT_ACCUMULATION} \
--quantization ${QUANTIZATION} \
--mixed-precision ${MIXED_PRECISION} \
$( [[ "$PEFT" == "True" ]] && echo "--peft" ) \
$( [[ "$PUSH_TO_HUB" == "True" ]] && echo "--push-to-hub --token ${HF_TOKEN} --repo-id ${REPO_ID}" )"#;

const LLAMA_FACTORY: &str = r"CUDA_VISIBLE_DEVICES=0 python ../../src/ \
    --stage sft \
    --do_train \
    --model_name_or_path meta-llama/Llama-2-7b-hf \
    --dataset alpaca_gpt4_en,glaive_toolcall \
    --dataset_dir ../../data \
    --template default \
    --finetuning_type lora \
    --lora_target q_proj,v_proj \
    --output_dir ../../saves/LLaMA2-7B/loraplus/sft \
    --overwrite_cache \
    --overwrite_output_dir \
    --cutoff_len 1024 \
    --preprocessing_num_workers 16 \
    --per_device_train_batch_size 1 \
    --per_device_eval_batch_size 1 \
    --gradient_accumulation_steps 8 \
    --lr_scheduler_type cosine \
    --logging_steps 10 \
    --warmup_steps 20 \
    --save_steps 100 \
    --eval_steps 100 \
    --evaluation_strategy steps \
    --load_best_model_at_end \
    --learning_rate 5e-5 \
    --num_train_epochs 3.0 \
    --max_samples 3000 \
    --val_size 0.1 \
    --plot_loss \
    --fp16 \
    --loraplus_lr_ratio 16.0";

/// A shell runs a line in a folder of the place; `autotrain` and `python …` are loratune, which gets `extra` words besides.
fn shell(place: &Place, folder: &str, line: &str, variables: &[(&str, &str)], extra: &str) -> Ran {
    Ran::of(command(place, folder, line, variables, extra).output().expect("bash is there"))
}

fn command(place: &Place, folder: &str, line: &str, variables: &[(&str, &str)], extra: &str) -> Command {
    let script = format!(
        "autotrain() {{ \"$LORATUNE\" \"$@\" {extra}; }}\npython() {{ shift; \"$LORATUNE\" train \"$@\" {extra}; }}\n{line}"
    );
    let mut command = Command::new("bash");
    command
        .args(["-c", &script])
        .current_dir(place.path(folder))
        .env("LORATUNE", env!("CARGO_BIN_EXE_loratune"));
    command.env_remove("RUST_LOG").env("HF_HUB_OFFLINE", "1").env("HF_HOME", place.path("hf"));
    command.envs(variables.iter().copied());
    command
}

/// Lets a line run until its output has a line that begins so, and presses Ctrl-C then.
fn interrupted(mut command: Command, at: &str) -> Ran {
    command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("bash is there");
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut out: Vec<String> = Vec::new();
    for line in lines.by_ref() {
        let done = line.starts_with(at);
        out.push(line);
        if done {
            let group = format!("-{}", child.id());
            assert!(Command::new("kill").args(["-INT", "--", &group]).status().unwrap().success());
            break;
        }
    }
    out.extend(lines);
    let ended = child.wait_with_output().unwrap();
    Ran { out: out.join("\n"), ..Ran::of(ended) }
}

fn event<'a>(events: &'a [serde_json::Value], name: &str) -> &'a serde_json::Value {
    events.iter().find(|e| e["event"] == name).unwrap_or_else(|| panic!("no event {name}"))
}

/// Folders as the article's line has them, with the embedded model and 3,010 short rows of each dataset.
fn llama_factory_place() -> Place {
    let place = Place::new();
    for folder in ["data", "examples/lora/meta-llama"] {
        std::fs::create_dir_all(place.path(folder)).unwrap();
    }
    place.embedded_model("examples/lora/meta-llama/Llama-2-7b-hf");
    let (mut alpaca, mut tools) = (String::new(), String::new());
    for i in 0..3010 {
        let _ =
            writeln!(alpaca, r#"{{"instruction": "{}", "input": "", "output": "{}"}}"#, i % 10, (i + 1) % 10);
        let _ = writeln!(
            tools,
            r#"{{"conversations": [{{"from": "human", "value": "{}"}}, {{"from": "gpt", "value": "no"}}], "tools": "[]"}}"#,
            i % 7
        );
    }
    place.write("data/alpaca_gpt4_en.jsonl", alpaca);
    place.write("data/glaive_toolcall.jsonl", tools);
    place
}

/// The learning rate of an update, counted from 1, by the article's cosine of 2,025 steps with 20 of warm-up.
fn articles_rate(update: u64) -> f64 {
    let t = (update - 1) as f64;
    let factor = match t < 20.0 {
        true => t / 20.0,
        false => 0.5 * (1.0 + (std::f64::consts::PI * (t - 20.0) / 2005.0).cos()),
    };
    5e-5 * factor
}

#[test]
fn llama_factorys_line_trains_the_embedded_model_as_the_article_says() {
    let place = llama_factory_place();
    let planned = shell(&place, "examples/lora", LLAMA_FACTORY, &[], "--dry-run --json").ok();
    let events = planned.json();
    let plan = &event(&events, "plan")["plan"];
    assert_eq!((&plan["examples"], &plan["eval_examples"]), (&5400.into(), &600.into()));
    assert_eq!((&plan["steps_per_epoch"], &plan["total_steps"]), (&675.into(), &2025.into()));
    // Six layers, r = 8: q of 160 → 160 and v of 160 → 32; B learns 16 times as fast as A.
    let groups: Vec<(f64, f64, u64)> = plan["parameter_groups"]
        .as_array()
        .unwrap()
        .iter()
        .map(|g| {
            let number = |key: &str| g[key].as_f64().unwrap();
            (number("learning_rate"), number("weight_decay"), g["parameters"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(groups, [(5e-5, 0.0, 6 * 8 * (160 + 160)), (8e-4, 0.0, 6 * 8 * (160 + 32))]);
    let start = event(&events, "start");
    let notes = start["notes"].to_string();
    assert!(
        notes.contains("evaluation_strategy") && notes.contains("old spelling of `eval_strategy`"),
        "{notes}"
    );
    assert!(notes.contains("fp16: nothing here computes in float16"), "{notes}");
    let config = &start["config"];
    assert_eq!((&config["lora_alpha"], &config["loraplus_lr_ratio"]), (&16.into(), &16.into()));

    // The line as it stands, to its end (some minutes) or past its first evaluation.
    let whole = std::env::var_os("LORATUNE_WHOLE_RUNS").is_some();
    let line = command(&place, "examples/lora", LLAMA_FACTORY, &[], "");
    let ran = match whole {
        true => interrupted(line, "never").ok(),
        false => interrupted(line, "saved ../../saves/LLaMA2-7B/loraplus/sft/checkpoint-100"),
    };
    let dir = place.path("saves/LLaMA2-7B/loraplus/sft");
    let log = std::fs::read_to_string(dir.join("trainer_log.jsonl")).unwrap();
    let log: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (mut rates, mut losses, mut evaluated) = (0, Vec::new(), Vec::new());
    for entry in &log {
        let step = entry["current_steps"].as_u64().unwrap();
        if let Some(rate) = entry["lr"].as_f64() {
            assert!((rate - articles_rate(step)).abs() < 1e-12, "{entry}");
            losses.push(entry["loss"].as_f64().unwrap());
            rates += 1;
        }
        if entry["eval_loss"].is_f64() {
            evaluated.push(step);
        }
    }
    assert!(losses[losses.len() - 1] < 0.5 * losses[0], "{losses:?}");
    let file = |name: &str| assert!(dir.join(name).is_file(), "{name}");
    if whole {
        assert!(ran.out.contains("2,025 steps") || ran.out.contains("2025 steps"), "{}", ran.out);
        assert_eq!((rates, evaluated), (203, (1..=20).map(|n| 100 * n).collect::<Vec<u64>>()));
        ["adapter_model.safetensors", "training_loss.png", "checkpoint-2000/adapter_config.json"]
            .into_iter()
            .for_each(file);
    } else {
        assert_eq!(ran.code, Some(130), "{ran:?}");
        assert!(rates >= 10 && evaluated[0] == 100 && ran.err.contains("to go on:"), "{ran:?}");
        ["checkpoint-100/adapter_model.safetensors", "checkpoint-100/adapter_config.json"]
            .into_iter()
            .for_each(file);
    }

    // Run again, to the end of a shorter run: the line says that it may overwrite.
    let short = "--max_samples 40 --max_steps 30 --eval_steps 15 --save_steps 15";
    let ran = shell(&place, "examples/lora", LLAMA_FACTORY, &[], short).ok();
    assert!(ran.out.contains("30 steps"), "{}", ran.out);
    ["adapter_model.safetensors", "adapter_config.json", "training_loss.png", "training_eval_loss.png"]
        .into_iter()
        .for_each(file);
}

const VARIABLES: [(&str, &str); 15] = [
    ("MODEL_NAME", "model"),
    ("PROJECT_NAME", "first-project"),
    ("BATCH_SIZE", "2"),
    ("NUM_EPOCHS", "2"),
    ("BLOCK_SIZE", "64"),
    ("WARMUP_RATIO", "0.1"),
    ("LORA_R", "4"),
    ("LORA_ALPHA", "8"),
    ("LORA_DROPOUT", "0.05"),
    ("WEIGHT_DECAY", "0.01"),
    ("GRADIENT_ACCUMULATION", "2"),
    ("QUANTIZATION", "none"),
    ("MIXED_PRECISION", "fp16"),
    ("PEFT", "True"),
    ("PUSH_TO_HUB", "False"),
];

fn autotrain_place() -> Place {
    let place = Place::new();
    std::fs::create_dir_all(place.path("data")).unwrap();
    place.embedded_model("model");
    for (name, rows) in [("train", 60), ("valid", 12)] {
        let mut texts = String::new();
        for i in 0..rows {
            let _ = writeln!(texts, r#"{{"text": "Row {i} says that {i} and one more are {}."}}"#, i + 1);
        }
        place.write(&format!("data/{name}.jsonl"), texts);
    }
    place
}

fn with(changes: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    VARIABLES.into_iter().chain(changes.iter().copied()).collect()
}

#[test]
fn autotrains_line_trains_the_embedded_model_as_the_article_says() {
    let place = autotrain_place();
    let ran = shell(&place, "", AUTOTRAIN, &VARIABLES, "--threads 2").ok();
    assert!(ran.err.contains("data/valid.jsonl is there but not used: --valid-split valid"), "{}", ran.err);
    assert!(ran.out.contains("blocks of 64 tokens"), "{}", ran.out);
    let config = String::from_utf8(place.read("first-project/run_config.yaml")).unwrap();
    for line in [
        "stage: pt",
        "finetuning_type: lora",
        "lora_rank: 4",
        "lora_dropout: 0.05",
        "cutoff_len: 64",
        "learning_rate: 3.0e-5",
        "weight_decay: 0.01",
        "warmup_ratio: 0.1",
        "per_device_eval_batch_size: 2",
        "fp16: true",
        "dtype: float32",
    ] {
        assert!(config.lines().any(|l| l == line), "{line}:\n{config}");
    }
    assert!(Path::new(&place.path("first-project/adapter_model.safetensors")).is_file());

    // Local validation files are used, EOS is a choice, and what is not AutoTrain's is a key.
    let extra = "--valid-split valid --no-add-eos-token --project-name second --print-config";
    let printed = shell(&place, "", AUTOTRAIN, &VARIABLES, extra).ok().out;
    for line in [
        "eval_dataset: [data/valid.jsonl]",
        "add_eos_token: false",
        "eval_strategy: epoch",
        "load_best_model_at_end: true",
    ] {
        assert!(printed.lines().any(|l| l.starts_with(line)), "{line}:\n{printed}");
    }
    let extra = "--valid-split valid --project-name second --lora_target q_proj --threads 2 --max_steps 4";
    let ran = shell(&place, "", AUTOTRAIN, &VARIABLES, extra).ok();
    assert!(ran.out.contains("evaluation"), "{}", ran.out);
}

#[test]
fn what_autotrains_line_asks_for_and_is_not_there_is_refused() {
    let place = autotrain_place();
    for quantization in ["int4", "int8"] {
        let ran = shell(&place, "", AUTOTRAIN, &with(&[("QUANTIZATION", quantization)]), "");
        ran.fails(
            2,
            &["--quantization", quantization, "quantised bases are not there yet", "--quantization none"],
        );
    }
    let ran = shell(&place, "", AUTOTRAIN, &VARIABLES, "--trainer dpo");
    ran.fails(2, &["--trainer", "dpo", "default, sft"]);
    shell(&place, "", AUTOTRAIN, &VARIABLES, "--lora-dropuot 1").fails(2, &["did you mean `--lora-dropout`"]);
    // The token of a push is shown nowhere, whatever becomes of the push.
    let token = "hf_abcdefghijklmnopqrstuvwxyz";
    let push = with(&[("PUSH_TO_HUB", "True"), ("HF_TOKEN", token), ("REPO_ID", "me/model")]);
    let ran = shell(&place, "", AUTOTRAIN, &push, "--print-config");
    assert!(!ran.out.contains(token) && !ran.err.contains(token), "{}{}", ran.out, ran.err);
}
