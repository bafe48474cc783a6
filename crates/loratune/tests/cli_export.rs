//! `loratune export`: LLaMA-Factory's keys, shards, GGUF files of the model and of the adapter, Modelfiles.

mod common;

use common::{Place, model, peft_adapter, rows};
use serde_json::Value;

/// Trains an adapter of a few steps on the tiny model with a chat template.
fn adapter(place: &Place) -> String {
    let base = model("tied-bf16");
    let settings = [
        format!("model_name_or_path={base}"),
        format!("dataset={}", rows("train")),
        "output_dir=adapter".into(),
        "max_steps=3".into(),
        "learning_rate=0.03".into(),
    ];
    let mut args = vec!["train"];
    args.extend(settings.iter().map(String::as_str));
    place.run(&args).ok();
    base
}

fn loss(place: &Place, args: &[&str]) -> f64 {
    let data = rows("eval");
    let mut all = vec!["eval", "--json", "--dataset", &data];
    all.extend(args);
    place.run(&all).ok().json()[0]["loss"].as_f64().unwrap()
}

#[test]
fn llama_factorys_configuration_writes_shards_with_an_index_and_a_modelfile() {
    let place = Place::new();
    let base = adapter(&place);
    place.write(
        "merge.yaml",
        format!(
            "### model\nmodel_name_or_path: {base}\nadapter_name_or_path: adapter\ntrust_remote_code: true\n\n\
             ### export\nexport_dir: out\nexport_size: 0.00001\nexport_device: cpu\nexport_legacy_format: false\n"
        ),
    );
    place.run(&["export", "merge.yaml"]).ok();
    let index: Value = serde_json::from_slice(&place.read("out/model.safetensors.index.json")).unwrap();
    let shards = index["weight_map"].as_object().unwrap();
    assert!(shards.values().collect::<std::collections::HashSet<_>>().len() > 2, "{index}");
    let file = String::from_utf8(place.read("out/Modelfile")).unwrap();
    assert!(file.contains("FROM .\n") && file.contains("PARAMETER stop \""), "{file}");
    let merged = loss(&place, &["--model", "out"]);
    let kept = loss(&place, &["--model", &base, "--adapter", "adapter"]);
    assert!((merged / kept - 1.0).abs() < 2e-2, "{merged} {kept}");
    // A second one is asked for, and settings win over the file.
    place.run(&["export", "merge.yaml"]).fails(2, &["--overwrite"]);
    place.run(&["export", "merge.yaml", "--overwrite", "export_size=5", "infer_dtype=float32"]).ok();
    assert!(
        place.path("out/model.safetensors").is_file()
            && !place.path("out/model.safetensors.index.json").exists()
    );
    place.assert_nothing_unfinished();
}

#[test]
fn gguf_files_answer_as_the_model_and_its_adapter() {
    let place = Place::new();
    let base = adapter(&place);
    let kept = loss(&place, &["--model", &base, "--adapter", "adapter"]);
    for (kind, most) in [("f32", 1e-5), ("bf16", 2e-2), ("f16", 5e-3), ("q8_0", 2e-2), ("q4_0", 0.3)] {
        let args = ["export", "-m", &base, "-a", "adapter", "-o", kind, "--gguf", kind, "--verify", "--json"];
        let told = place.run(&args).ok().json().remove(0);
        assert!(told["max_logit_difference"].as_f64().is_some(), "{told}");
        let file = format!("{kind}/{kind}-{}.gguf", kind.to_uppercase());
        let got = loss(&place, &["--model", &file]);
        assert!((got / kept - 1.0).abs() < most, "{kind}: {got} {kept}");
        let text = String::from_utf8(place.read(&format!("{kind}/Modelfile"))).unwrap();
        assert!(text.contains(&format!("FROM ./{kind}-{}.gguf", kind.to_uppercase())), "{text}");
    }
    place.run(&["export", "-m", &base, "-a", "adapter", "-o", "lora", "--gguf-adapter", "f16"]).ok();
    let text = String::from_utf8(place.read("lora/Modelfile")).unwrap();
    assert!(text.contains("ADAPTER ./lora-LoRA-F16.gguf") && text.contains("FROM /"), "{text}");
    place
        .run(&["eval", "--model", "lora/lora-LoRA-F16.gguf", "--dataset", &rows("eval")])
        .fails(1, &["holds an adapter"]);
    place.assert_nothing_unfinished();
}

#[test]
fn what_is_not_exported_is_refused_by_name() {
    let place = Place::new();
    let base = model("tied-bf16");
    let fails = |args: &[&str], parts: &[&str]| {
        let mut all = vec!["export", "-m", &base, "-o", "out"];
        all.extend(args);
        place.run(&all).fails(2, parts);
        assert!(!place.path("out").exists(), "{args:?}");
    };
    fails(&["export_legacy_format=true"], &["export_legacy_format", "safetensors"]);
    fails(&["export_quantization_bit=4"], &["export_quantization_bit", "--gguf"]);
    fails(&["export_siz=4"], &["export_siz", "`export_size`"]);
    fails(&["export_size=none"], &["export_size", "gigabytes"]);
    fails(&["--gguf-adapter", "f16"], &["--adapter"]);
    fails(&["adapter_name_or_path=a,b"], &["loratune combine"]);
    place.run(&["export", "-m", &base]).fails(2, &["--output", "export_dir"]);
    let (dora, untied) = (peft_adapter("dora"), model("gqa-untied"));
    let args = ["export", "-m", &untied, "-a", &dora, "-o", "out", "--gguf-adapter", "f16"];
    place.run(&args).fails(1, &["DoRA", "convert"]);
    assert!(!place.path("out").exists());
}
