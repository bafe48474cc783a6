//! Added tokens through every command: an adapter with new rows on its untouched base.

mod common;

use common::{Place, Ran, model, peft_adapter};
use serde_json::{Value, json};

/// Rows of text with two tokens that the tiny models do not know.
fn write_data(place: &Place) {
    let rows = ["<sum>1 plus 2<is>3", "<sum>2 plus 2<is>4", "<sum>3 plus 2<is>5", "<sum>4 plus 2<is>6"];
    let lines = rows.iter().map(|r| json!({"text": r}).to_string() + "\n");
    place.write("data.jsonl", lines.collect::<String>());
}

fn train(place: &Place, base: &str, more: &[&str]) -> Ran {
    let base = format!("model_name_or_path={base}");
    let settings = ["dataset=data.jsonl", "output_dir=adapter", "max_steps=30", "learning_rate=0.02"];
    place.run(&[&["train", &base][..], &settings, &["lora_rank=4"], more].concat())
}

/// What greedy decoding makes of a prompt that needs the added tokens.
fn answer(place: &Place, args: &[&str]) -> Value {
    let common = ["--prompt", "<sum>3 plus 2<is>", "--raw", "--json", "--max-new-tokens", "4", "--quiet"];
    place.run(&[&["generate"][..], args, &common].concat()).ok().json().remove(0)
}

fn vocabulary_size(place: &Place, folder: &str) -> Value {
    let config: Value = serde_json::from_slice(&place.read(&format!("{folder}/config.json"))).unwrap();
    config["vocab_size"].clone()
}

#[test]
fn an_adapter_with_new_rows_works_on_its_base_in_every_command() {
    for (name, rows) in [("tied-bf16", 320), ("gqa-untied", 320), ("gqa-untied.gguf", 320)] {
        let place = Place::new();
        write_data(&place);
        let base = model(name);
        let ran = train(&place, &base, &["add_special_tokens=<sum>,<is>", "resize_vocab=true"]).ok();
        for part in ["2 added: <sum> (301), <is> (302)", "resized from 301 to 320 rows"] {
            assert!(ran.out.contains(part), "{part} is not in {}", ran.out);
        }
        assert!(ran.err.contains("resize_vocab trains embed_tokens and lm_head whole"), "{}", ran.err);
        let asked = ["--model", &base, "--adapter", "adapter"];
        let tuned = answer(&place, &asked);
        assert!(tuned["text"].as_str().unwrap().starts_with('5'), "{name}: {tuned}");

        let eval = |args: &[&str]| {
            let args = [&["eval", "--dataset", "data.jsonl", "--json", "--quiet"][..], args].concat();
            place.run(&args).ok().json().remove(0)["loss"].as_f64().unwrap()
        };
        assert!(eval(&asked) < 1.0, "{name}");
        let inspected = place.run(&["inspect", "adapter", "--model", &base, "--json"]).ok().json().remove(0);
        assert_eq!(inspected["fits_model"], true, "{name}");
        let input = "<sum>3 plus 2<is>\n";
        place.run_with(&[&["chat", "--max-new-tokens", "2"][..], &asked].concat(), input).ok();

        let dtype = ["--dtype", "f32", "--verify", "--quiet"];
        place.run(&[&["merge", "--output", "merged"][..], &asked, &dtype].concat()).ok();
        assert_eq!(vocabulary_size(&place, "merged"), rows, "{name}");
        let merged = answer(&place, &["--model", "merged"]);
        assert_eq!(merged["tokens"], tuned["tokens"], "{name}");
        assert!((eval(&["--model", "merged"]) - eval(&asked)).abs() < 1e-3, "{name}");
    }
}

#[test]
fn adapters_of_different_vocabularies_stand_on_one_base() {
    let place = Place::new();
    write_data(&place);
    let base = model("gqa-untied");
    train(&place, &base, &["add_special_tokens=<sum>,<is>", "resize_vocab=true"]).ok();
    let plain = format!("plain={}", peft_adapter("gaussian"));
    let args =
        ["generate", "--model", &base, "--adapter", "adapter", "--adapter", &plain, "--json", "--quiet"];
    let answers = place.run(&[&args[..], &["--raw", "--prompt", "1 plus"]].concat()).ok().json();
    assert_eq!(answers.len(), 2);
    for (name, args) in [("adapter", ["--adapter", "adapter"]), ("plain", ["--adapter", &plain])] {
        let alone = ["generate", "--model", &base, "--json", "--quiet", "--raw", "--prompt", "1 plus"];
        let alone = place.run(&[&alone[..], &args].concat()).ok().json().remove(0);
        let shared = answers.iter().find(|a| a["adapter"] == name).unwrap();
        assert_eq!(shared["tokens"], alone["tokens"], "{name}");
    }
}

#[test]
fn what_is_made_of_an_adapter_keeps_its_tokens() {
    let place = Place::new();
    write_data(&place);
    let base = model("gqa-untied");
    let settings = ["add_special_tokens=<sum>,<is>", "resize_vocab=true", "init_lora_weights=olora"];
    train(&place, &base, &settings).ok();
    let tuned = answer(&place, &["--model", &base, "--adapter", "adapter"]);
    place
        .run(&["combine", "--adapter", "adapter", "--method", "linear", "--output", "combined", "--quiet"])
        .ok();
    assert_eq!(answer(&place, &["--model", &base, "--adapter", "combined"])["tokens"], tuned["tokens"]);
    let convert = ["convert", "--adapter", "adapter", "--model", &base, "--quiet", "--output"];
    for (to, more) in [("low", &["--rank", "12"][..]), ("raw", &["--to", "raw", "--dtype", "f32"])] {
        place.run(&[&convert[..], &[to], more].concat()).ok();
        // Once more in its place: the tokenizer in it is nothing foreign.
        place.run(&[&convert[..], &[to], more, &["--overwrite"]].concat()).ok();
    }
    assert_eq!(answer(&place, &["--model", &base, "--adapter", "low"])["tokens"], tuned["tokens"]);
    assert_eq!(vocabulary_size(&place, "raw/residual_model"), 320);
    let raw = answer(&place, &["--model", "raw/residual_model", "--adapter", "raw"]);
    assert_eq!(raw["tokens"], tuned["tokens"]);
}

#[test]
fn without_room_or_permission_a_token_is_refused() {
    let place = Place::new();
    write_data(&place);
    let base = model("gqa-untied");
    let parts = ["`<sum>`", "301 rows", "resize_vocab: true"];
    train(&place, &base, &["add_tokens=<sum>,<is>"]).fails(1, &parts);
    assert!(!place.path("adapter").exists());
    let parts = ["init_special_tokens", "new_special_tokens_config"];
    train(&place, &base, &["resize_vocab=true", "init_special_tokens=desc_init"]).fails(2, &parts);
}
