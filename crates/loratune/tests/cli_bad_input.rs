//! What is wrong with a command, a configuration, a model, an adapter or the data is said in one message, with the
//! place and the way out, and leaves nothing behind.

mod common;

use std::path::Path;

use common::{Place, Ran, model, rows};
use serde_json::{Value, json};

const BASE: &str = "tied-bf16";

/// `train` with a model and data; nothing may be written.
fn train(place: &Place, model: &str, dataset: &str, more: &[&str]) -> Ran {
    let settings = [
        format!("model_name_or_path={model}"),
        format!("dataset={dataset}"),
        "output_dir=out".into(),
        "max_steps=2".into(),
    ];
    let mut args = vec!["train"];
    args.extend(settings.iter().map(String::as_str));
    args.extend(more);
    let ran = place.run(&args);
    if ran.code != Some(0) {
        assert!(!place.path("out").exists(), "a run that cannot start writes nothing");
    }
    place.assert_nothing_unfinished();
    ran
}

/// Changes a safetensors file's header and keeps its data.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Value)) {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let text = header.to_string();
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    out.extend(&bytes[8 + length..]);
    std::fs::write(path, out).unwrap();
}

fn edit_json(path: &Path, edit: impl FnOnce(&mut Value)) {
    let mut value: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    edit(&mut value);
    std::fs::write(path, value.to_string()).unwrap();
}

const Q0: &str = "model.layers.0.self_attn.q_proj.weight";

#[test]
fn misspelt_paths_name_what_is_near() {
    let place = Place::new();
    let (base, data) = (model(BASE), rows("train"));
    train(&place, &model("tied-bf61"), &data, &[]).fails(1, &["does not exist", "did you mean `tied-bf16`"]);
    let misspelt = data.replace("train.jsonl", "trian.jsonl");
    train(&place, &base, &misspelt, &[]).fails(1, &["trian.jsonl", "did you mean ", "/train.jsonl"]);
    place.write("lora.yaml", "lora_rank: 8\n");
    place.run(&["train", "lroa.yaml"]).fails(2, &["lroa.yaml", "lora.yaml"]);
    let adapter = ["generate", "-p", "x", "-m", &base, "-a"];
    place.run(&[&adapter[..], &["adaptr"]].concat()).fails(1, &["adaptr does not exist"]);
    place.run(&["inspect", "nothing"]).fails(1, &["nothing does not exist"]);
    place.run(&["generate", "-m", &base, "--prompts", "no.jsonl"]).fails(1, &["no.jsonl", "cannot be read"]);
}

#[test]
fn misspelt_keys_flags_fields_and_values_name_the_right_ones() {
    let place = Place::new();
    let (base, data) = (model(BASE), rows("train"));
    place.write("lora.yaml", "model_name_or_path: m\nlora_rnak: 8\n");
    place.run(&["train", "lora.yaml"]).fails(2, &["lora.yaml:2", "`lora_rnak`", "did you mean `lora_rank`"]);
    train(&place, &base, &data, &["learning_rat=1"]).fails(2, &["did you mean `learning_rate`"]);
    train(&place, &base, &data, &["learning_rate=fast"]).fails(2, &["learning_rate is `fast`", "a number"]);
    train(&place, &base, &data, &["learning_rate"]).fails(2, &["key=value"]);
    train(&place, &base, &data, &["template=alpacca"]).fails(2, &["alpacca", "did you mean `alpaca`"]);
    train(&place, &base, &data, &["lora_target=q_porj"]).fails(1, &["q_porj", "did you mean 'q_proj'"]);
    place.run(&["train", "--dry-rum"]).fails(2, &["--dry-rum", "--dry-run"]);
    place.run(&["train", "--learning-rat", "1"]).fails(2, &["did you mean `--learning-rate`"]);
    place.run(&["generat"]).fails(2, &["generat", "generate"]);
    place.run(&["train"]).fails(2, &["model_name_or_path is missing"]);
    place.write("rows.jsonl", r#"{"instruction": "a", "ouptut": "b"}"#);
    train(&place, &base, "rows.jsonl", &[]).fails(1, &["rows.jsonl:1", "`output` for `ouptut`"]);
    for flags in [["--temperature", "-1"], ["--top-p", "0"], ["--dtype", "f8"], ["--threads", "0"]] {
        place.run(&[&["generate", "-m", &base, "-p", "x"], &flags[..]].concat()).fails(2, &[flags[0]]);
    }
}

#[test]
fn truncated_and_lying_safetensors_are_refused() {
    let data = rows("train");
    let check = |damage: &dyn Fn(&Path), parts: &[&str]| {
        let place = Place::new();
        place.copy_model(BASE, "m");
        damage(&place.path("m/model.safetensors"));
        train(&place, "m", &data, &[]).fails(1, &[&["m/model.safetensors"], parts].concat());
    };
    let cut = |n: usize| {
        move |p: &Path| {
            let bytes = std::fs::read(p).unwrap();
            std::fs::write(p, &bytes[..n.min(bytes.len() - 1)]).unwrap();
        }
    };
    for n in [0, 4, 8, 100, usize::MAX] {
        check(&cut(n), &["damaged"]);
    }
    let length = |n: u64| {
        move |p: &Path| {
            let mut bytes = std::fs::read(p).unwrap();
            bytes[..8].copy_from_slice(&n.to_le_bytes());
            std::fs::write(p, bytes).unwrap();
        }
    };
    check(&length(u64::MAX), &["is damaged"]);
    check(&length(1 << 40), &["is damaged"]);
    let header = |edit: fn(&mut Value)| move |p: &Path| edit_header(p, edit);
    check(&header(|h| h[Q0]["data_offsets"] = json!([0, u64::MAX])), &[]);
    check(&header(|h| h[Q0]["data_offsets"] = json!([0, 1152])), &[]);
    check(&header(|h| h[Q0]["shape"] = json!([1u64 << 62, 1u64 << 62])), &[Q0]);
    check(&header(|h| h[Q0]["dtype"] = json!("F32")), &[Q0]);
    check(&header(|h| h[Q0]["dtype"] = json!("I8")), &[Q0]);
    check(&header(|h| h[Q0]["dtype"] = json!("nonsense")), &[]);
    check(&header(|h| *h = json!([1])), &["is damaged"]);
}

#[test]
fn truncated_and_lying_gguf_files_are_refused() {
    let (good, data) = (std::fs::read(model("gqa-untied.gguf")).unwrap(), rows("train"));
    let check = |bytes: &[u8]| {
        let place = Place::new();
        place.write("m.gguf", bytes);
        train(&place, "m.gguf", &data, &[]).fails(1, &["m.gguf"]);
    };
    for n in [0, 3, 10, 24, 1000, good.len() / 2, good.len() - 1] {
        check(&good[..n]);
    }
    // The counts of tensors and of metadata, and the length of the first key.
    for at in [8, 16, 24] {
        for lie in [u64::MAX, 1 << 40, 1 << 20] {
            let mut bytes = good.clone();
            bytes[at..at + 8].copy_from_slice(&lie.to_le_bytes());
            check(&bytes);
        }
    }
    let mut bytes = good;
    bytes[0] = b'X';
    check(&bytes);
}

#[test]
fn weights_that_do_not_fit_or_are_not_numbers_are_named() {
    let data = rows("train");
    let place = Place::new();
    place.copy_model(BASE, "m");
    edit_json(&place.path("m/config.json"), |c| c["intermediate_size"] = json!(48));
    train(&place, "m", &data, &[]).fails(1, &["mlp.gate_proj.weight", "[40, 24]", "[48, 24]"]);

    place.copy_model(BASE, "m");
    edit_header(&place.path("m/model.safetensors"), |h| {
        let tensor = h.as_object_mut().unwrap().remove(Q0).unwrap();
        h["model.layers.0.self_attn.q_porj.weight"] = tensor;
    });
    train(&place, "m", &data, &[]).fails(1, &["q_porj.weight"]);

    place.copy_model(BASE, "m");
    let path = place.path("m/model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 2..].copy_from_slice(&[0xc0, 0x7f]);
    std::fs::write(&path, bytes).unwrap();
    train(&place, "m", &data, &[]).fails(1, &["tensor 'model.norm.weight'", "not finite"]);
    place.run(&["generate", "-m", "m", "-p", "x"]).fails(1, &["model.norm.weight", "not finite"]);
    place.run(&["merge", "-m", "m", "-o", "merged"]).fails(1, &["model.norm.weight", "not finite"]);
    assert!(!place.path("merged").exists());
}

#[test]
fn a_configuration_that_is_not_a_model_s_is_named_with_its_field() {
    let place = Place::new();
    let data = rows("train");
    for (field, value) in [
        ("architectures", json!(["GPT2LMHeadModel"])),
        ("hidden_size", json!("many")),
        ("num_attention_heads", json!(0)),
        ("num_key_value_heads", json!(2)),
        ("hidden_act", json!("relu")),
        ("vocab_size", json!(u64::MAX)),
    ] {
        place.copy_model(BASE, "m");
        edit_json(&place.path("m/config.json"), |c| c[field] = value);
        let named = if field == "num_key_value_heads" { "num_attention_heads" } else { field };
        train(&place, "m", &data, &[]).fails(1, &["m/config.json", named]);
    }
    place.write("m/config.json", "{\"hidden_size\":");
    train(&place, "m", &data, &[]).fails(1, &["m/config.json", "not valid JSON"]);
}

#[test]
fn ids_outside_of_the_vocabulary_are_refused() {
    let place = Place::new();
    let base = model(BASE);
    place.write("rows.jsonl", "{\"input_ids\": [1, 2, 3]}\n{\"input_ids\": [1, 5000, 3]}\n");
    train(&place, &base, "rows.jsonl", &[]).fails(1, &["rows.jsonl:2", "5000", "301"]);
    // A tokenizer with a token more than the model has rows.
    place.copy_model(BASE, "m");
    edit_json(&place.path("m/tokenizer.json"), |t| {
        let token = json!({"id": 301, "content": "<|more|>", "single_word": false, "lstrip": false, "rstrip": false,
                           "normalized": false, "special": true});
        t["added_tokens"].as_array_mut().unwrap().push(token);
    });
    place.write("rows.jsonl", "{\"prompt\": \"a\", \"completion\": \"b<|more|>\"}");
    train(&place, "m", "rows.jsonl", &[]).fails(1, &["rows.jsonl:1", "301", "vocab"]);
    place.run(&["generate", "-m", "m", "-p", "x<|more|>"]).fails(1, &["301", "vocab"]);
}

#[test]
fn data_that_cannot_be_used_is_named_by_file_and_line() {
    let base = model(BASE);
    let check = |name: &str, text: &[u8], parts: &[&str]| {
        let place = Place::new();
        place.write(name, text);
        train(&place, &base, name, &[]).fails(1, parts);
        place.run(&["eval", "-m", &base, "-d", name]).fails(1, parts);
        place.run(&["inspect", name, "-m", &base]).fails(1, parts);
    };
    check("d.jsonl", b"", &["d.jsonl", "empty"]);
    check("d.json", b"[]", &["d.json", "empty"]);
    check("d.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"b\"\n", &["d.jsonl:2", "broken JSON"]);
    check("d.jsonl", b"{\"text\": \"a\"}\n[1]\n", &["d.jsonl:2", "an object"]);
    check("d.jsonl", b"{\"text\": \"\xff\"}\n", &["d.jsonl", "UTF-8"]);
    check("d.jsonl", b"{\"text\": 7}\n", &["d.jsonl:1", "`text` should be a string"]);
    check("d.jsonl", b"{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"a\": 1}", &["d.jsonl:2", "`a`"]);
    check("d.jsonl", b"{\"input_ids\": [1, 2], \"labels\": [-100, -100]}", &["nothing to train on"]);
}

#[test]
fn a_template_that_raises_is_quoted_with_the_row() {
    let place = Place::new();
    let base = model(BASE);
    place.write(
        "strict.jinja",
        "{% if messages[0].role != 'system' %}{{ raise_exception('a system message first') }}{% endif %}",
    );
    place.write("broken.jinja", "{% for m in messages %}");
    place.write("rows.jsonl", "{\"prompt\": \"a\", \"completion\": \"b\"}");
    let parts = ["rows.jsonl:1", "strict.jinja", "a system message first"];
    train(&place, &base, "rows.jsonl", &["template=strict.jinja"]).fails(1, &parts);
    train(&place, &base, "rows.jsonl", &["template=broken.jinja"]).fails(1, &["broken.jinja", "line 1"]);
    let ask = ["generate", "-m", &base, "-p", "x", "--template"];
    place.run(&[&ask[..], &["strict.jinja"]].concat()).fails(1, &["a system message first"]);
}

#[test]
fn sequences_longer_than_the_context_are_refused() {
    let place = Place::new();
    let base = model(BASE);
    let ids = vec!["5"; 129].join(",");
    place.write("rows.jsonl", format!("{{\"input_ids\": [1, 2]}}\n{{\"input_ids\": [{ids}]}}\n"));
    train(&place, &base, "rows.jsonl", &[]).fails(1, &["rows.jsonl:2", "129", "128", "cutoff_len"]);
    train(&place, &base, "rows.jsonl", &["cutoff_len=128", "-q"]).ok();
    let long = "word ".repeat(200);
    place.run(&["generate", "-m", &base, "-p", &long]).fails(1, &["context of 128", "shorten the prompt"]);
    place.run_with(&["chat", "-m", &base], &long).fails(1, &["context of 128"]);
}

#[test]
fn adapters_of_other_models_and_broken_ones_are_refused() {
    let place = Place::new();
    let (base, data) = (model(BASE), rows("train"));
    train(&place, &base, &data, &["-q"]).ok();
    let ask = |m: &str, a: &str| place.run(&["generate", "-m", m, "-p", "x", "-n", "1", "-a", a]);
    ask(&base, "out").ok();
    ask(&model("gqa-untied"), "out").fails(1, &["lora_A", "has no tensor"]);
    ask(&base, &base).fails(1, &["is a model, not an adapter"]);
    ask("out", "out").fails(1, &["is an adapter, not a model"]);
    let weights = place.path("out/adapter_model.safetensors");
    let good = std::fs::read(&weights).unwrap();
    let mut bad = good.clone();
    let end = bad.len();
    bad[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&weights, &bad).unwrap();
    ask(&base, "out").fails(1, &["not finite"]);
    std::fs::write(&weights, &good[..good.len() - 1]).unwrap();
    ask(&base, "out").fails(1, &["adapter_model.safetensors", "damaged"]);
    std::fs::write(&weights, &good).unwrap();
    edit_json(&place.path("out/adapter_config.json"), |c| c["peft_type"] = json!("LOHA"));
    ask(&base, "out").fails(1, &["peft_type", "LOHA"]);
}

#[test]
fn a_loss_that_is_not_finite_stops_with_step_and_place_and_stays_in_the_log() {
    let place = Place::new();
    let (m, d) = (format!("model_name_or_path={}", model(BASE)), format!("dataset={}", rows("train")));
    let more = [
        "output_dir=out",
        "learning_rate=1e30",
        "max_grad_norm=0",
        "lr_scheduler_type=constant",
        "logging_steps=1",
    ];
    let ran = place.run(&[&["train", &m, &d], &more[..]].concat());
    let ran = ran.fails(1, &["step ", "not a finite number", "model.layers.", "learning rate"]);
    let state = String::from_utf8(place.read("out/trainer_state.json")).unwrap();
    assert!(state.contains("NaN") || state.contains("Infinity"), "{}\n{state}", ran.err);
}

#[cfg(unix)]
mod disk {
    use super::*;
    use std::process::Command;

    /// Everything that a full disk leaves in the output folder is whole.
    fn assert_whole(place: &Place) {
        place.assert_nothing_unfinished();
        let out = place.path("out");
        for entry in std::fs::read_dir(&out).into_iter().flatten().flatten().filter(|e| e.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let state = entry.path().join("loratune_state.json");
            assert!(!name.starts_with("checkpoint-") || state.is_file(), "{name} is not whole");
        }
    }

    fn train_in(place: &Place, wrapper: &str) -> Ran {
        let exe = env!("CARGO_BIN_EXE_loratune");
        let (m, d) = (model(BASE), rows("train"));
        let script = format!(
            "{wrapper}; exec '{exe}' train model_name_or_path='{m}' dataset='{d}' output_dir=out max_steps=40 save_steps=1 \
             logging_steps=1 -q"
        );
        Ran::of(Command::new("sh").args(["-c", &script]).current_dir(place.path("")).output().unwrap())
    }

    #[test]
    fn a_write_that_the_system_refuses_ends_the_run_with_a_message() {
        let place = Place::new();
        // Files may grow to 16 blocks of 512 bytes: smaller than an adapter. The refusal is like a full disk's.
        let ran = train_in(&place, "trap '' XFSZ; ulimit -f 16").fails(1, &["checkpoint-1", "too large"]);
        assert!(!ran.err.contains("Broken pipe"));
        assert_whole(&place);
    }

    #[test]
    fn a_full_disk_ends_the_run_with_a_message_and_whole_files() {
        let place = Place::new();
        std::fs::create_dir(place.path("out")).unwrap();
        let out = place.path("out").display().to_string();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=600k", "tmpfs", &out])
            .output()
            .is_ok_and(|o| o.status.success());
        if !mounted {
            eprintln!("skipped: a small file system cannot be mounted here");
            return;
        }
        let ran = train_in(&place, "true");
        let check = std::panic::catch_unwind(|| {
            ran.fails(1, &["No space left on device", "out"]);
            assert_whole(&place);
        });
        assert!(Command::new("umount").arg(&out).status().unwrap().success());
        check.unwrap();
    }

    #[test]
    fn output_to_a_full_device_is_an_error_not_a_panic() {
        if !Path::new("/dev/full").exists() {
            eprintln!("skipped: there is no /dev/full");
            return;
        }
        let place = Place::new();
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ran = place.command(&["inspect", &model(BASE)]).stdout(full).output().unwrap();
        Ran::of(ran).fails(1, &["No space left on device"]);
    }
}

#[test]
fn an_instruction_set_that_the_processor_does_not_have_is_refused() {
    let place = Place::new();
    let asked = |isa: &str| {
        let mut command = place.command(&["inspect", &model(BASE)]);
        Ran::of(command.env("LORATUNE_ISA", isa).output().unwrap())
    };
    asked("amd").fails(2, &["LORATUNE_ISA=amd", "expected", "portable"]);
    asked("portable").ok();
}
