//! `loratune estimate`: against the memory that steps take here, and what it says.

mod common;

use common::{Place, model, rows};
use serde_json::{Value, json};

/// A shape whose activations and weights are much larger than the program.
fn shape(layers: usize) -> String {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 768,
        "intermediate_size": 2048, "num_hidden_layers": layers, "num_attention_heads": 12, "num_key_value_heads": 4,
        "vocab_size": 1024, "tie_word_embeddings": true, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "initializer_range": 0.02, "torch_dtype": "float32", "eos_token_id": 2
    })
    .to_string()
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no {path} in {value}"))
}

fn last(place: &Place, args: &[&str]) -> Value {
    place.run(args).ok().json().pop().expect("a line")
}

/// Peak of a process that runs two steps of a model of so many layers.
fn measured(place: &Place, shape: &str, more: &[&str]) -> f64 {
    let args =
        [&["bench", "step", "--shape", shape, "--steps", "1", "--device", "cpu", "--json"], more].concat();
    number(&last(place, &args), "/peak_memory_bytes")
}

/// How far the plan may be from what a process grew to, as a share.
const TOLERANCE: f64 = 0.05;
/// What the allocator and the products keep besides, in bytes.
const BESIDES: f64 = 64e6;

/// `besides` is what is not planned.
#[track_caller]
fn assert_near(what: &str, plan: &Value, measured: f64, program: f64, besides: f64) {
    let (peak, taken) = (number(plan, "/estimate/memory/peak"), number(plan, "/estimate/memory/taken"));
    let grown = measured - program;
    println!(
        "{what}: {:.0} MB planned ({:.0} taken), {:.0} MB measured",
        peak / 1e6,
        taken / 1e6,
        grown / 1e6
    );
    assert!(
        grown > peak * (1.0 - TOLERANCE) && grown < taken * (1.0 + TOLERANCE) + besides,
        "{what}: planned {peak} to {taken}, measured {grown}"
    );
}

#[test]
fn a_step_on_the_processor_takes_what_was_planned() {
    if !cfg!(target_os = "linux") {
        return println!("skipped: the system does not tell the peak");
    }
    let place = Place::new();
    place.write("one.json", shape(1));
    place.write("six.json", shape(6));
    let program = measured(&place, "one.json", &["--batch", "1", "--seq", "8", "--dtype", "bf16"]);
    // Of which the small model is a part.
    let small =
        &["estimate", "--shape", "one.json", "--device", "cpu", "--json", "cutoff_len=8", "bf16=true"];
    let program = program - number(&last(&place, small), "/estimate/memory/peak");
    for (dtype, bench, settings) in [
        ("bf16", &[][..], &[][..]),
        ("f32", &[][..], &[][..]),
        ("bf16", &["--method", "dora"][..], &["use_dora=true"][..]),
        ("bf16", &["--gradient-checkpointing"][..], &["gradient_checkpointing=true"][..]),
    ] {
        let bench = [&["--batch", "2", "--seq", "512", "--rank", "16", "--dtype", dtype], bench].concat();
        let measured = measured(&place, "six.json", &bench);
        let bf16 = if dtype == "bf16" { "bf16=true" } else { "bf16=false" };
        let common = ["estimate", "--shape", "six.json", "--device", "cpu", "--json", "cutoff_len=512", bf16];
        let rows = ["per_device_train_batch_size=2", "lora_rank=16"];
        let plan = last(&place, &[&common[..], &rows, settings].concat());
        assert_near(&format!("{dtype} {settings:?}"), &plan, measured, program, BESIDES);
    }
}

#[test]
fn full_training_takes_what_was_planned() {
    if !cfg!(target_os = "linux") {
        return println!("skipped: the system does not tell the peak");
    }
    let place = Place::new();
    let assets = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/quickstart");
    std::fs::create_dir(place.path("model")).unwrap();
    for file in ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"]
    {
        std::fs::copy(format!("{assets}/model/{file}"), place.path("model").join(file)).unwrap();
    }
    let data = format!("dataset={assets}/train.jsonl");
    let run = |layers: usize| {
        place.write("model/config.json", shape(layers));
        let common = [
            "model_name_or_path=model",
            "train_from_scratch=true",
            &data,
            "packing=true",
            "cutoff_len=256",
            "per_device_train_batch_size=2",
            "gradient_accumulation_steps=2",
            "device=cpu",
            "finetuning_type=full",
            "max_steps=1",
        ];
        let plan = last(&place, &[&["estimate", "--json"], &common[..]].concat());
        assert_eq!(number(&plan, "/estimate/data/total_steps"), 1.0);
        let output = format!("output_dir=run{layers}");
        let ran = last(&place, &[&["train", "--json", "save_strategy=no", &output], &common[..]].concat());
        (plan, number(&ran, "/peak_memory_bytes"))
    };
    // The program, tokenizer and data: what the small model leaves of its peak.
    let ((small, program), (plan, measured)) = (run(1), run(6));
    // A run is more than its steps: it draws and writes its weights, too.
    let more = 0.1 * number(&plan, "/estimate/memory/taken");
    let program = program - number(&small, "/estimate/memory/taken");
    assert_near("full", &plan, measured, program, BESIDES + more);
}

#[test]
fn a_card_is_planned_with_where_there_is_none_and_nothing_has_to_exist() {
    let place = Place::new();
    let args = "estimate --shape llama2-7b --device cuda --bf16 --lora_rank 16 --cutoff_len 1024";
    let out = place.run(&args.split(' ').collect::<Vec<_>>()).ok().out;
    for part in ["39 GB", "8 rows of 1024 tokens", "bf16 activations on bf16 weights", "none is here", "peak"]
    {
        assert!(out.contains(part), "no {part} in:\n{out}");
    }
    let auto =
        place.run(&[&args.split(' ').collect::<Vec<_>>()[..], &["micro_batch=auto"]].concat()).ok().out;
    assert!(auto.contains("depends on what is free there"), "{auto}");
    place
        .run(&["estimate", "--shape", "nonesuch"])
        .fails(2, &["--shape nonesuch", "llama2-7b", "quickstart"]);
    place
        .run(&["estimate", "--shape", "quickstart", "model_name_or_path=x"])
        .fails(2, &["which of the two is meant"]);
    place.run(&["estimate"]).fails(2, &["model_name_or_path"]);
}

#[test]
fn the_data_is_looked_at_where_it_is_at_hand() {
    let place = Place::new();
    let (model, data) =
        (format!("model_name_or_path={}", model("gqa-untied")), format!("dataset={}", rows("train")));
    let common = ["estimate", &model, "device=cpu", "per_device_train_batch_size=2"];
    let with = place.run(&[&common[..], &[&data]].concat()).ok().out;
    assert!(with.contains("the 2 longest rows") && with.contains(" steps"), "{with}");
    for more in [&[][..], &[&data, "--no-data"][..], &["dataset=some/where"][..]] {
        let without = place.run(&[&common[..], more].concat()).ok().out;
        assert!(without.contains("not read: ") && without.contains("2 rows of "), "{without}");
    }
}
