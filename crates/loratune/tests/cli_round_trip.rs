//! One tiny model through every command.

mod common;

use common::{Place, Ran, model, rows};
use serde_json::{Value, json};

const BASE: &str = "tied-bf16";

/// Trains an adapter into `adapter`, until the model knows its few sentences.
fn train(place: &Place, more: &[&str]) -> Ran {
    let settings = [
        format!("model_name_or_path={}", model(BASE)),
        format!("dataset={}", rows("train")),
        format!("eval_dataset={}", rows("eval")),
        "output_dir=adapter".into(),
        "eval_strategy=steps".into(),
        "eval_steps=20".into(),
        "logging_steps=10".into(),
        "max_steps=60".into(),
        "learning_rate=0.03".into(),
        "lora_rank=16".into(),
    ];
    let mut args = vec!["train"];
    args.extend(settings.iter().map(String::as_str));
    args.extend(more);
    place.run(&args)
}

fn eval(place: &Place, model: &str, more: &[&str]) -> Value {
    let mut args = vec!["eval", "--model", model, "--json"];
    args.extend(more);
    place.run(&args).ok().json().remove(0)
}

#[test]
fn what_training_measured_evaluation_measures_again_and_merging_keeps() {
    let place = Place::new();
    let (base, data) = (model(BASE), rows("eval"));
    let events = train(&place, &["--json"]).ok().json();
    let kinds: Vec<&str> = events.iter().map(|e| e["event"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["start", "data", "plan"]);
    assert_eq!(kinds.iter().filter(|k| **k == "log").count(), 6);
    assert_eq!(kinds.iter().filter(|k| **k == "evaluation").count(), 3);
    let end = events.last().unwrap();
    assert_eq!((end["event"].as_str(), end["ending"].as_str()), (Some("end"), Some("finished")));

    let before = eval(&place, &base, &["--dataset", &data]);
    let after = eval(&place, &base, &["--adapter", "adapter", "--dataset", &data, "--exact-match"]);
    let loss = |v: &Value| v["loss"].as_f64().unwrap();
    assert!(loss(&after) < 0.7 * loss(&before), "{before} {after}");
    assert!((loss(&after) / end["evaluation"]["loss"].as_f64().unwrap() - 1.0).abs() < 1e-5, "{after} {end}");
    assert_eq!(after["exact_match"]["rows"], 8, "one of the nine rows has no prompt");

    let merge = |out: &str, more: &[&str]| {
        let mut args = vec!["merge", "--model", &base, "--adapter", "adapter", "--output", out, "--verify"];
        args.extend(more);
        place.run(&[&args[..], &["--json"]].concat()).ok().json().remove(0)
    };
    let (exact, rounded) = (merge("merged-f32", &["--dtype", "f32"]), merge("merged", &[]));
    assert!(exact["max_logit_difference"].as_f64().unwrap() < 1e-4, "{exact}");
    assert_eq!(rounded["dtype"], "BF16", "the base's own type unless another is asked for");
    let merged = eval(&place, "merged-f32", &["--dataset", &data]);
    assert!((loss(&merged) / loss(&after) - 1.0).abs() < 1e-5, "{merged} {after}");
    for file in ["config.json", "generation_config.json", "tokenizer.json", "chat_template.jinja"] {
        assert!(place.path("merged").join(file).is_file(), "{file}");
    }
    place.assert_nothing_unfinished();
}

#[test]
fn answers_are_scored_by_every_metric_and_written() {
    let place = Place::new();
    train(&place, &[]).ok();
    let (base, data) = (model(BASE), rows("eval"));
    let asked =
        ["--dataset", &data, "--adapter", "adapter", "--gsm8k", "--rouge", "--predictions", "out.jsonl"];
    let found = eval(&place, &base, &asked);
    let words = found["rouge-l"].as_f64().unwrap();
    assert!((0.0..=100.0).contains(&words) && found["bleu-4"].is_number(), "{found}");
    assert!(found["gsm8k"]["strict"].is_number() && found.get("exact_match").is_none(), "{found}");
    let lines = String::from_utf8(place.read("out.jsonl")).unwrap();
    assert_eq!(lines.lines().count(), 8, "one of the nine rows has no prompt");
    let table = place
        .run(&["eval", "--model", &base, "--base", "--adapter", "adapter", "--dataset", &data, "--gsm8k"])
        .ok();
    assert!(table.out.contains("gsm8k strict") && table.out.contains("flexible"), "{}", table.out);
}

#[test]
fn lines_in_a_pipe_are_plain_and_the_end_names_the_next_command() {
    let place = Place::new();
    let ran = train(&place, &[]).ok();
    assert!(!ran.out.contains('\x1b') && !ran.out.contains('\r') && ran.err.is_empty(), "{ran:?}");
    for part in [
        "step 10/60  loss ",
        " tok/s  ",
        "step 20/60  eval loss ",
        "saved adapter/checkpoint-60",
        "finished ",
    ] {
        let part = if part.starts_with("saved") { "result       adapter" } else { part };
        assert!(ran.out.contains(part), "{part}:\n{}", ran.out);
    }
    let next = ran.out.lines().last().unwrap();
    assert!(next.contains("loratune generate --model") && next.contains("--adapter adapter"), "{next}");
    assert_eq!(train(&place, &["overwrite_output_dir=true", "-q"]).ok().out, "");
}

#[test]
fn prompts_give_the_same_answers_streamed_or_not_alone_or_together() {
    let place = Place::new();
    train(&place, &["-q"]).ok();
    let base = model(BASE);
    let shared = ["generate", "--model", &base, "--adapter", "adapter", "-n", "20"];
    let prompts = ["Where is the red boat?", "Who has the letter?"];
    let run = |more: &[&str]| place.run(&[&shared[..], more].concat()).ok();
    let both = run(&["--prompt", prompts[0], "--prompt", prompts[1], "--json"]).json();
    let mut answers = Vec::new();
    for (prompt, answer) in prompts.iter().zip(&both) {
        let alone = run(&["--prompt", prompt]);
        assert_eq!(alone.out, format!("{}\n", answer["text"].as_str().unwrap()));
        assert!(alone.err.contains("tokens/s"), "{}", alone.err);
        answers.push(alone.out);
    }
    let lines: String = prompts.iter().map(|p| format!("{}\n", json!({"question": p}))).collect();
    place.write("prompts.jsonl", lines);
    assert_eq!(run(&["--prompts", "prompts.jsonl", "--json"]).json(), both);
    // In parts, drawn ones too.
    assert_eq!(run(&["--prompts", "prompts.jsonl", "--json", "--batch-size", "1"]).json(), both);
    place.write("same.jsonl", format!("{}\n", json!(prompts[0])).repeat(5));
    let drawn = |size: &str| {
        run(&["--prompts", "same.jsonl", "--json", "--temperature", "1", "--batch-size", size]).json()
    };
    let whole = drawn("5");
    assert_eq!(whole.iter().map(|a| a["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3, 4]);
    assert!(whole.iter().any(|a| a["tokens"] != whole[0]["tokens"]), "each prompt has draws of its own");
    assert_eq!(drawn("2"), whole);
    let text = both[0]["prompt"].as_str().unwrap();
    assert!(text.starts_with("<|im_start|>user\n"), "the template was used: {text}");
    let raw = run(&["--prompt", text, "--raw", "--json"]).json();
    assert_eq!(raw[0]["tokens"], both[0]["tokens"], "a rendered prompt is a raw one");

    let sampled =
        |seed: &str| run(&["--prompt", "Who?", "--temperature", "1.5", "--seed", seed, "--json"]).out;
    assert_eq!(sampled("1"), sampled("1"));
    assert_ne!(sampled("1"), sampled("2"));
}

#[test]
fn a_conversation_with_its_cache_answers_as_one_that_is_read_anew() {
    let place = Place::new();
    let base = model(BASE);
    train(&place, &["-q"]).ok();
    let args = ["--model", &base, "--adapter", "adapter", "-n", "6", "-q"];
    let ask = ["Where is the red boat?", "Who has the letter?", "Where is the red boat?"];
    let chat = place
        .run_with(&[&["chat"], &args[..]].concat(), &format!("{}\n/clear\n\n{}\n", ask.join("\n"), ask[1]))
        .ok();
    let answers: Vec<&str> = chat.out.lines().collect();
    assert_eq!(answers.len(), 4, "{}", chat.out);
    let mut messages = Vec::new();
    for (i, (question, answer)) in ask.iter().chain([&ask[1]]).zip(&answers).enumerate() {
        if i == 3 {
            // After /clear the cache is cut back to what the new conversation has in common with the old one.
            messages.clear();
        }
        messages.push(json!({"role": "user", "content": question}));
        place.write("conversation.jsonl", json!({"messages": messages}).to_string());
        let generated =
            place.run(&[&["generate", "--prompts", "conversation.jsonl"], &args[..]].concat()).ok().out;
        assert_eq!(generated.trim_end_matches('\n'), *answer);
        messages.push(json!({"role": "assistant", "content": answer}));
    }
}

#[test]
fn a_gguf_file_becomes_a_folder_with_the_same_logits() {
    let place = Place::new();
    let gguf = model("gqa-untied.gguf");
    let ran = place.run(&["merge", "--model", &gguf, "--output", "folder", "--verify", "--json"]).ok();
    assert_eq!(ran.json()[0]["max_logit_difference"], 0.0);
    let ask = |m: &str| place.run(&["generate", "-m", m, "-p", "hello", "-n", "8", "--json"]).ok().json();
    assert_eq!(ask("folder"), ask(&gguf));
}

#[test]
fn full_training_ends_with_a_model() {
    let place = Place::new();
    train(&place, &["finetuning_type=full", "output_dir=full", "learning_rate=0.003", "-q"]).ok();
    let result = eval(&place, "full", &["--dataset", &rows("eval")]);
    let before = eval(&place, &model(BASE), &["--dataset", &rows("eval")]);
    assert!(result["loss"].as_f64() < before["loss"].as_f64(), "{result} {before}");
}

#[test]
fn inspection_tells_models_adapters_and_datasets_apart() {
    let place = Place::new();
    train(&place, &["-q", "max_steps=1", "lora_target=q_proj,v_proj"]).ok();
    let base = model(BASE);
    let inspect = |args: &[&str]| place.run(&[&["inspect"], args].concat()).ok();
    let seen = inspect(&[&base]).out;
    for part in
        ["LlamaForCausalLM", "2 layers", "parameters   16 176", "BF16 (20 tensors)", "BOS <|im_start|> (1)"]
    {
        assert!(seen.contains(part), "{part}:\n{seen}");
    }
    assert_eq!(inspect(&[&base, "--json"]).json()[0]["parameters"], 16176);
    let seen = inspect(&["adapter", "--model", &base]).out;
    for part in ["LoRA", "rank         16, alpha 32", "q_proj, v_proj (4 modules)", "fits "] {
        assert!(seen.contains(part), "{part}:\n{seen}");
    }
    let seen = inspect(&[&rows("train"), "--model", &base, "--row", "3"]).out;
    assert!(seen.contains("train.jsonl:3: 31 tokens") && seen.contains('⟦'), "{seen}");
    place.run(&["inspect", &rows("train")]).fails(2, &["--model"]);
    place
        .run(&["inspect", &rows("train"), "-m", &base, "--row", "49"])
        .fails(2, &["there is no row 49", "48"]);
}

#[test]
fn a_reader_that_goes_away_ends_the_command_in_silence() {
    use std::process::Stdio;
    let place = Place::new();
    let mut command = place.command(&["train", "--help"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert!(ran.err.is_empty(), "{ran:?}");
    let (m, d) = (model(BASE), rows("train"));
    let mut command = place.command(&["inspect", &d, "--model", &m]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let ran = Ran::of(child.wait_with_output().unwrap());
    assert!(ran.err.is_empty() && ran.code == Some(0), "{ran:?}");
}
