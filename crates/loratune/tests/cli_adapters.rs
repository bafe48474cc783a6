//! Adapters turned into others, taken out again, and several of them on one model.

mod common;

use std::path::Path;

use common::{Place, Ran, converted_by_peft, model, peft_adapter, rows};
use serde_json::{Value, json};

const BASE: &str = "gqa-untied";

/// Losses of a model with each of the adapters on the same rows.
fn losses(place: &Place, model: &str, adapters: &[&str]) -> Vec<f64> {
    let data = rows("eval");
    let mut args = vec!["eval", "--json", "--model", model, "--dataset", &data];
    let named: Vec<String> = adapters.iter().enumerate().map(|(i, a)| format!("a{i}={a}")).collect();
    named.iter().for_each(|a| args.extend(["--adapter", a]));
    let result = place.run(&args).ok().json().remove(0);
    match result["adapters"].as_array() {
        Some(rows) => rows.iter().map(|r| r["loss"].as_f64().unwrap()).collect(),
        None => vec![result["loss"].as_f64().unwrap()],
    }
}

#[track_caller]
fn assert_near(a: f64, b: f64, tolerance: f64) {
    assert!((a / b - 1.0).abs() < tolerance, "{a} {b}");
}

/// The tensors of a safetensors file: header, and bytes by name.
fn tensors(path: &Path) -> Vec<(String, Vec<u64>, Vec<u8>)> {
    let bytes = std::fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let numbers = |v: &Value| v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect::<Vec<_>>();
    let mut out: Vec<_> = header
        .iter()
        .filter(|(name, _)| *name != "__metadata__")
        .map(|(name, info)| {
            let at = numbers(&info["data_offsets"]);
            let data = bytes[8 + length + at[0] as usize..8 + length + at[1] as usize].to_vec();
            (name.clone(), numbers(&info["shape"]), data)
        })
        .collect();
    out.sort();
    out
}

fn config(place: &Place, adapter: &str) -> Value {
    serde_json::from_slice(&place.read(&format!("{adapter}/adapter_config.json"))).unwrap()
}

#[test]
fn conversion_writes_what_peft_writes_and_needs_the_model_or_the_start() {
    let place = Place::new();
    let base = model(BASE);
    for case in ["pissa", "pissa_niter_4", "olora", "pissa-rslora"] {
        let of = |kind: &str| converted_by_peft(&format!("{case}/{kind}"));
        let convert = |output: &str, more: &[&str]| {
            let adapter = of("trained");
            place.run(&[&["convert", "--adapter", &adapter, "--output", output], more].concat())
        };
        let by_initial = convert(&format!("{case}-i"), &["--initial", &of("initial"), "--json"]).ok();
        assert_eq!(by_initial.json()[0]["rank"], 4);
        let file = "adapter_model.safetensors";
        let ours = tensors(&place.path(&format!("{case}-i/{file}")));
        assert_eq!(ours, tensors(&Path::new(&of("converted")).join(file)), "{case}");
        let by_model = convert(&format!("{case}-m"), &["--model", &base]);
        convert("no", &[]).fails(2, &["--model", "--initial"]);
        if case == "pissa_niter_4" {
            by_model.fails(1, &["pissa_niter_4", "loratune convert --initial"]);
            continue;
        }
        assert!(by_model.ok().out.contains("rank 4"));
        let adapters =
            [&of("trained"), &of("converted"), &format!("{case}-i"), &format!("{case}-m")].map(|a| {
                if Path::new(a).is_absolute() { a.clone() } else { place.path(a).display().to_string() }
            });
        let losses = losses(&place, &base, &adapters.each_ref().map(String::as_str));
        losses[1..].iter().for_each(|l| assert_near(*l, losses[0], 1e-5));
    }
    assert!(!place.path("no").exists());
    place.assert_nothing_unfinished();
}

#[test]
fn dora_becomes_plain_lora_of_any_rank_and_the_error_is_told() {
    let place = Place::new();
    let base = model(BASE);
    for case in ["dora", "dora-bias-all", "dora-embedding-head", "everything", "save-head-norms"] {
        let adapter = peft_adapter(case);
        let mut errors = Vec::new();
        for rank in ["1", "4", "32"] {
            let args = ["convert", "-a", &adapter, "-m", &base, "--rank", rank, "-o", "low", "--overwrite"];
            let ran = place.run(&[&args[..], &["--json"]].concat()).ok().json().remove(0);
            errors.push(ran["loss"]["error"].as_f64().unwrap());
            assert_eq!(
                (&ran["rank"], &ran["form"]),
                (&json!(rank.parse::<usize>().unwrap()), &json!("lora"))
            );
        }
        assert!(errors[0] > errors[1] && errors[1] >= errors[2] && errors[2] < 1e-6, "{case}: {errors:?}");
        let config = config(&place, "low");
        assert_eq!((&config["use_dora"], &config["r"]), (&json!(false), &json!(32)));
        let losses = losses(&place, &base, &[&adapter, "low"]);
        assert_near(losses[1], losses[0], 1e-5);
    }
    let args = ["convert", "-a", &peft_adapter("dora"), "-m", &base, "--rank", "4", "-o", "shown"];
    let out = place.run(&args).ok().out;
    for part in ["wrote        shown (plain LoRA, rank 4)", "error  ", "worst  ", "% of its energy"] {
        assert!(out.contains(part), "{part}:\n{out}");
    }
    let [mut exact, mut fast] = ["exact", "fast"].map(|kind| {
        let args = [
            "convert",
            "-a",
            &peft_adapter("dora"),
            "-m",
            &base,
            "--rank",
            "2",
            "--svd",
            kind,
            "--json",
            "-o",
            kind,
        ];
        place.run(&args).ok().json()
    });
    let error = |v: Value| v["loss"]["error"].as_f64().unwrap();
    assert_near(error(fast.remove(0)), error(exact.remove(0)), 1e-3);
}

#[test]
fn an_adapter_becomes_factors_on_a_residual_model_and_comes_back() {
    let place = Place::new();
    for (base, case) in
        [(BASE, "pissa"), (BASE, "everything"), (BASE, "dora-olora"), ("tied-bf16", "head-tied")]
    {
        let (base, adapter) = (model(base), peft_adapter(case));
        let args = [
            "convert",
            "-a",
            &adapter,
            "-m",
            &base,
            "--to",
            "raw",
            "-o",
            "raw",
            "--overwrite",
            "--dtype",
            "f32",
        ];
        let made = place.run(&args).ok().out;
        assert!(made.contains("factors on a residual model"), "{made}");
        assert_eq!(config(&place, "raw")["base_model_name_or_path"], "raw/residual_model");
        let whole = losses(&place, &base, &[&adapter])[0];
        assert_near(losses(&place, "raw/residual_model", &["raw"])[0], whole, 1e-5);
        let args = ["convert", "-a", "raw", "--initial", "raw/initial_adapter", "-o", "back", "--overwrite"];
        place.run(&args).ok();
        assert_near(losses(&place, &base, &["back"])[0], whole, 1e-6);
        // It is a folder of these commands as a whole.
        place
            .run(&["convert", "-a", &adapter, "-m", &base, "--to", "raw", "-o", "raw"])
            .fails(2, &["--overwrite"]);
    }
    place.write("raw/residual_model/notes.txt", "mine");
    let (base, adapter) = (model(BASE), peft_adapter("pissa"));
    place
        .run(&["convert", "-a", &adapter, "-m", &base, "--to", "raw", "-o", "raw", "--overwrite"])
        .fails(2, &["residual_model/notes.txt"]);
    assert_eq!(place.read("raw/residual_model/notes.txt"), b"mine");
    place.assert_nothing_unfinished();
}

#[test]
fn what_cannot_be_converted_is_said_before_anything_is_written() {
    let place = Place::new();
    let (base, dora, lora) = (model(BASE), peft_adapter("dora"), peft_adapter("gaussian"));
    let trained = converted_by_peft("pissa/trained");
    let convert = |adapter: &str, more: &[&str]| {
        let ran = place.run(&[&["convert", "-a", adapter, "-o", "out"], more].concat());
        assert!(!place.path("out").exists());
        ran
    };
    convert(&dora, &[]).fails(2, &["there is nothing to convert", "--rank"]);
    convert(&dora, &["-m", &base]).fails(2, &["there is nothing to convert"]);
    convert(&dora, &["--rank", "4"]).fails(2, &["--rank", "add --model"]);
    convert(&dora, &["--to", "raw"]).fails(2, &["add --model"]);
    convert(&dora, &["--to", "raw", "-m", &base, "--rank", "2"]).fails(2, &["--to raw"]);
    convert(&dora, &["--dtype", "f32"]).fails(2, &["--dtype is for"]);
    convert(&trained, &["--initial", &converted_by_peft("pissa/initial"), "-m", &base])
        .fails(2, &["leave it out"]);
    convert(&dora, &["-m", &base, "--rank", "0"]).fails(2, &["--rank"]);
    convert(&dora, &["-m", &base, "--rank", "100"]).fails(1, &["rank of 100 can't be made", "from 1 to 32"]);
    convert(&lora, &["--initial", &trained]).fails(1, &["gaussian"]);
    convert(&trained, &["--initial", &converted_by_peft("pissa-rslora/initial")])
        .fails(1, &["use_rslora", "one run"]);
    convert(&dora, &["-m", &model("tied-bf16"), "--rank", "2"]).fails(1, &["adapter of another model"]);
    convert("nothing", &["-m", &base, "--rank", "2"]).fails(1, &["nothing does not exist"]);
    convert(&peft_adapter("dora-patterns"), &["--to", "raw", "-m", &base]).fails(1, &["even"]);
    // A source is never replaced.
    std::fs::create_dir(place.path("mine")).unwrap();
    for file in ["adapter_config.json", "adapter_model.safetensors"] {
        std::fs::copy(Path::new(&dora).join(file), place.path("mine").join(file)).unwrap();
    }
    place
        .run(&["convert", "-a", "mine", "-m", &base, "--rank", "2", "-o", "mine", "--overwrite"])
        .fails(2, &["that is read"]);
    place.assert_nothing_unfinished();
}

#[test]
fn cat_is_the_weighted_sum() {
    let place = Place::new();
    let base = model(BASE);
    let (a, b) = (peft_adapter("gaussian"), peft_adapter("loraplus"));
    let combine = |output: &str, more: &[&str]| place.run(&[&["combine", "-o", output], more].concat());
    let one = |path: &str, weight: &str| format!("{path}={weight}");
    combine("one", &["-a", &one(&a, "1")]).ok();
    let ran = combine("halves", &["-a", &one(&a, "0.25"), "-a", &one(&a, "0.75"), "--json"]).ok().json();
    assert_eq!((&ran[0]["exact"], &ran[0]["method"]), (&json!(true), &json!("cat")));
    combine("both", &["-a", &a, "-a", &one(&b, "-2")]).ok();
    // a − 2b, and 2b added again in the merged weights.
    let merge = |model: &str, adapter: &str, output: &str| {
        place.run(&["merge", "-m", model, "-a", adapter, "-o", output, "--dtype", "f32", "-q"]).ok();
    };
    combine("twice-b", &["-a", &one(&b, "2")]).ok();
    merge(&base, "both", "m1");
    merge("m1", "twice-b", "m2");
    let whole = losses(&place, &base, &[&a, "one", "halves"]);
    assert_near(whole[1], whole[0], 1e-6);
    assert_near(whole[2], whole[0], 1e-6);
    assert_near(losses(&place, "m2", &[])[0], whole[0], 1e-6);
    assert!((losses(&place, "m1", &[])[0] / whole[0] - 1.0).abs() > 1e-5, "b does something");
    for method in ["linear", "svd", "ties", "dare_ties", "magnitude_prune_svd", "dare_linear"] {
        let density: &[&str] = if ["linear", "svd"].contains(&method) { &[] } else { &["--density", "0.5"] };
        let args = [&["-a", &a, "-a", &b, "--method", method, "--overwrite"], density].concat();
        combine("method", &args).ok();
        let (first, again) = (place.read("method/adapter_model.safetensors"), combine("method", &args).ok());
        assert_eq!(first, place.read("method/adapter_model.safetensors"), "{again:?}");
        assert!(losses(&place, &base, &["method"])[0].is_finite());
    }
}

#[test]
fn what_cannot_be_combined_is_said_before_anything_is_written() {
    let place = Place::new();
    let (a, b) = (peft_adapter("gaussian"), peft_adapter("loraplus"));
    let combine = |more: &[&str]| {
        let ran = place.run(&[&["combine", "-o", "out", "-a", &a], more].concat());
        assert!(!place.path("out").exists());
        ran
    };
    combine(&["-a", &b, "--method", "ties"]).fails(2, &["--density is missing"]);
    combine(&["-a", &b, "--method", "cat", "--density", "0.5"]).fails(2, &["--density has no effect"]);
    combine(&["-a", &b, "--rank", "3"]).fails(2, &["--rank has no effect"]);
    combine(&["-a", &b, "--method", "dare_linear", "--density", "0"]).fails(2, &["--density is 0"]);
    combine(&["-a", &b, "--density", "1.5"]).fails(2, &["--density"]);
    combine(&["-a", &b, "--majority-sign", "total"]).fails(2, &["--majority-sign is for ties"]);
    combine(&["-a", &b, "--seed", "1"]).fails(2, &["--seed is for dare"]);
    combine(&["-a", &b, "--method", "sum"]).fails(2, &["sum", "cat", "ties_svd"]);
    combine(&["-a", &format!("{b}=inf")]).fails(2, &["finite"]);
    combine(&["-a", &peft_adapter("dora")]).fails(1, &["DoRA", "methods/dora/final_adapter"]);
    combine(&["-a", "gone=0.5"]).fails(1, &["gone does not exist"]);
    place.run(&["combine", "-o", "out"]).fails(2, &["--adapter"]);
}

#[test]
fn a_merged_adapter_is_taken_out_again() {
    let place = Place::new();
    let base = model(BASE);
    for (case, norms) in
        [("gaussian", false), ("pissa", false), ("dora", true), ("dora-embedding-head", true)]
    {
        let adapter = peft_adapter(case);
        let with: &[&str] = if norms { &["--norms", "lengths.safetensors"] } else { &[] };
        let again = ["--overwrite", "--dtype", "f32"];
        let merge = ["merge", "-m", &base, "-a", &adapter, "-o", "merged"];
        place.run(&[&merge, &again[..], with].concat()).ok();
        let unmerge = ["unmerge", "-m", "merged", "-a", &adapter, "-o", "base", "--verify", "--json"];
        let ran = place.run(&[&unmerge, &again[..], with].concat()).ok().json();
        assert!(ran[0]["max_logit_difference"].as_f64().unwrap() < 1e-4, "{case}: {ran:?}");
        let (got, wanted) = (tensors_of(&place.path("base")), tensors_of(Path::new(&base)));
        assert!(got.iter().map(|t| &t.0).eq(wanted.iter().map(|t| &t.0)), "{case}");
        for ((name, _, got), (_, _, wanted)) in got.iter().zip(&wanted) {
            for (a, b) in floats(got).zip(floats(wanted)) {
                assert!((a - b).abs() < 2e-6, "{case}, {name}: {a} {b}");
            }
        }
    }
    // "merged" and its norms are DoRA's on embedding and head by now.
    let (dora, lora) = (peft_adapter("dora-embedding-head"), peft_adapter("gaussian"));
    let unmerge = |more: &[&str]| {
        let ran = place.run(&[&["unmerge", "-m", "merged", "-o", "out"], more].concat());
        assert!(!place.path("out").exists());
        ran
    };
    unmerge(&["-a", &dora]).fails(2, &["--norms is missing", "loratune merge --norms"]);
    unmerge(&["-a", &lora, "--norms", "lengths.safetensors"]).fails(2, &["--norms is for DoRA"]);
    unmerge(&["-a", &dora, "--norms", "merged/model.safetensors"]).fails(1, &["no file of norms"]);
    let other = peft_adapter("dora");
    unmerge(&["-a", &other, "--norms", "lengths.safetensors"]).fails(1, &["was not merged into this model"]);
    unmerge(&["-a", &peft_adapter("bias-all")]).fails(1, &["replaces weights"]);
    unmerge(&["-a", &converted_by_peft("pissa/trained")]).fails(1, &["make it plain first"]);
    let merge = |more: &[&str]| place.run(&[&["merge", "-m", &base, "-o", "new"], more].concat());
    merge(&["-a", &lora, "--norms", "n"]).fails(2, &["--norms is for DoRA"]);
    merge(&["-a", &dora, "--norms", "lengths.safetensors"]).fails(2, &["--norms exists", "--overwrite"]);
    merge(&["-a", &dora, "--norms", "new/n"]).fails(2, &["lies in the output folder"]);
    merge(&["-a", &dora, "--norms", &format!("{base}/n")]).fails(2, &["lies in the model"]);
    assert!(!place.path("new").exists());
    place.assert_nothing_unfinished();
}

/// All tensors of a model's folder, sorted.
fn tensors_of(folder: &Path) -> Vec<(String, Vec<u64>, Vec<u8>)> {
    let files = std::fs::read_dir(folder).unwrap().flatten().map(|e| e.path());
    let mut all: Vec<_> = files
        .filter(|p| p.extension().is_some_and(|e| e == "safetensors") && !p.ends_with("expected.safetensors"))
        .flat_map(|p| tensors(&p))
        .collect();
    all.sort();
    all
}

fn floats(bytes: &[u8]) -> impl Iterator<Item = f32> + '_ {
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()))
}

#[test]
fn several_adapters_answer_on_one_base_as_each_alone() {
    let place = Place::new();
    let base = model(BASE);
    // One that trains modules whole, DoRA with everything, and one that is decomposed again.
    let adapters =
        [peft_adapter("save-head-norms"), peft_adapter("everything"), converted_by_peft("pissa/trained")];
    let names = ["whole", "all", "pissa"];
    let named: Vec<String> = names.iter().zip(&adapters).map(|(n, a)| format!("{n}={a}")).collect();
    let with: Vec<&str> = named.iter().flat_map(|n| ["-a", n]).collect();
    let prompts = ["hello", "Where is the red boat?", "a b c"];
    let ask = |more: &[&str]| -> Ran {
        place.run(&[&["generate", "-m", &base, "-n", "6", "--raw"], more].concat())
    };
    let texts: Vec<&str> = prompts.iter().flat_map(|p| ["-p", p]).collect();
    for sampled in [&["--batch-size", "2"][..], &["--temperature", "1", "--batch-size", "2"]] {
        let together = ask(&[&with, &texts, sampled, &["--json"]].concat()).ok().json();
        assert_eq!(together.len(), 9);
        let alone = |adapter: &[&str]| ask(&[adapter, &texts, sampled, &["--json"]].concat()).ok().json();
        for (i, adapter) in adapters.iter().enumerate() {
            for (prompt, alone) in alone(&["-a", adapter]).iter().enumerate() {
                let mut mine = together[3 * prompt + i].clone();
                assert_eq!(mine["adapter"], names[i]);
                mine.as_object_mut().unwrap().remove("adapter");
                assert_eq!(mine, *alone);
            }
        }
        // Lines choose their adapter, as PEFT's adapter_names do.
        let chosen = ["pissa", "__base__", "whole"];
        let lines =
            prompts.iter().zip(chosen).map(|(p, a)| json!({"prompt": p, "adapter": a}).to_string() + "\n");
        place.write("mixed.jsonl", lines.collect::<String>());
        let mixed = ask(&[&with[..], &["--prompts", "mixed.jsonl", "--json"], sampled].concat()).ok().json();
        assert_eq!(mixed.iter().map(|m| m["adapter"].as_str().unwrap()).collect::<Vec<_>>(), chosen);
        assert_eq!(mixed[0]["tokens"], together[2]["tokens"]);
        assert_eq!(mixed[1]["tokens"], alone(&[])[1]["tokens"]);
        assert_eq!(mixed[2]["tokens"], together[6]["tokens"]);
    }
    let shown = ask(&[&with[..4], &["-p", "hello"]].concat()).ok().out;
    assert!(shown.starts_with("[1] whole\n") && shown.contains("\n\n[1] all\n"), "{shown}");
    place.write("one.jsonl", r#"{"prompt": "hello", "adapter": "gone"}"#);
    ask(&[&with[..], &["--prompts", "one.jsonl"]].concat())
        .fails(1, &["one.jsonl:1", "`gone`", "whole, all, pissa, __base__"]);
    place.write("one.jsonl", r#"{"prompt": "hello", "adapter": 3}"#);
    ask(&["--prompts", "one.jsonl"]).fails(1, &["one.jsonl:1", "`adapter` should be a string"]);
    ask(&["-p", "x", "-a", &adapters[0], "-a", &adapters[1]])
        .fails(2, &["final_adapter", "--adapter first=FOLDER"]);
    ask(&["-p", "x", "-a", &format!("__base__={}", adapters[0])]).fails(2, &["__base__"]);
}

#[test]
fn evaluation_of_several_adapters_is_a_table_of_what_each_is_alone() {
    let place = Place::new();
    let (base, data) = (model(BASE), rows("eval"));
    let adapters = [peft_adapter("save-head-norms"), peft_adapter("dora"), peft_adapter("pissa")];
    let eval = |more: &[&str]| {
        place
            .run(
                &[&["eval", "-m", &base, "-d", &data, "--exact-match", "--max-new-tokens", "3"], more]
                    .concat(),
            )
            .ok()
    };
    let named: Vec<String> = ["x", "y", "z"].iter().zip(&adapters).map(|(n, a)| format!("{n}={a}")).collect();
    let with: Vec<&str> = named.iter().flat_map(|n| ["-a", n]).collect();
    let all = eval(&[&with[..], &["--base", "--json"]].concat()).json().remove(0);
    let measured = all["adapters"].as_array().unwrap();
    assert_eq!(
        measured.iter().map(|m| m["adapter"].as_str().unwrap()).collect::<Vec<_>>(),
        ["__base__", "x", "y", "z"]
    );
    for (i, row) in measured.iter().enumerate() {
        let alone = match i {
            0 => eval(&["--json"]),
            _ => eval(&["--json", "-a", &adapters[i - 1]]),
        };
        let alone = alone.json().remove(0);
        for key in ["loss", "perplexity", "accuracy", "exact_match"] {
            assert_eq!(row[key], alone[key], "{i} {key}");
        }
        assert_eq!((&alone["rows"], &alone["tokens"]), (&all["rows"], &all["tokens"]));
    }
    let table = eval(&[&with[..], &["--base"]].concat()).out;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 8, "{table}");
    assert!(lines[3].starts_with("adapter ") && lines[3].ends_with("exact match"), "{table}");
    assert!(lines[4].starts_with("__base__ ") && lines[7].starts_with("z "), "{table}");
    place.run(&["eval", "-m", &base, "-d", &data, "--base"]).fails(2, &["--adapter"]);
}

#[test]
fn adapters_with_trained_rows_are_told_compared_merged_and_converted() {
    let place = Place::new();
    let base = model(BASE);
    let [one, other] = ["tokens", "tokens-both"].map(peft_adapter);
    let seen = place.run(&["inspect", &one, "--model", &base]).ok().out;
    assert!(seen.contains("rows         274, 0, 261, 200, 2 of the embedding"), "{seen}");
    let seen = place.run(&["inspect", &other]).ok().out;
    assert!(seen.contains("rows         274, 261 of embed_tokens; 16, 274, 0 of lm_head"), "{seen}");
    // Each on the same base, whose own rows stay as they are.
    let each = losses(&place, &base, &[&one, &other, &one]);
    assert_eq!(each[0], each[2]);
    assert!(each[0] != each[1] && each[0] != losses(&place, &base, &[])[0]);

    place.run(&["merge", "-m", &base, "-a", &one, "-o", "merged", "--verify"]).ok();
    assert_near(losses(&place, "merged", &[])[0], each[0], 1e-6);
    place
        .run(&["unmerge", "-m", "merged", "-a", &one, "-o", "no"])
        .fails(1, &["trainable_token_indices", "use the base itself"]);
    place.run(&["convert", "-a", &one, "-m", &base, "--rank", "2", "-o", "low"]).ok();
    assert_near(losses(&place, &base, &["low"])[0], each[0], 1e-5);
    assert_eq!(config(&place, "low")["trainable_token_indices"], json!([274, 0, 261, 200, 2]));
    place.run(&["convert", "-a", &one, "-m", &base, "--to", "raw", "-o", "raw"]).ok();
    assert_near(losses(&place, "raw/residual_model", &["raw"])[0], each[0], 1e-5);

    let with = |adapter: &str, weight: &str| format!("{adapter}={weight}");
    let alone = with(&one, "1");
    place.run(&["combine", "-a", &alone, "-o", "alone"]).ok();
    assert_near(losses(&place, &base, &["alone"])[0], each[0], 1e-6);
    let none = peft_adapter("gaussian");
    place
        .run(&["combine", "-a", &alone, "-a", &with(&none, "1"), "--method", "cat", "-o", "no"])
        .fails(1, &["trainable_token_indices"]);
    place.assert_nothing_unfinished();
}

#[test]
fn a_tied_model_stays_tied_where_both_sides_have_the_rows() {
    let place = Place::new();
    let base = model("tied-bf16");
    for (case, tied) in [("tokens-tied", true), ("tokens-head-tied", false)] {
        let adapter = peft_adapter(case);
        place.run(&["merge", "-m", &base, "-a", &adapter, "-o", case, "--dtype", "f32", "--verify"]).ok();
        let written: Value = serde_json::from_slice(&place.read(&format!("{case}/config.json"))).unwrap();
        assert_eq!(written["tie_word_embeddings"], json!(tied), "{case}");
        let merged = losses(&place, case, &[])[0];
        assert_near(merged, losses(&place, &base, &[&adapter])[0], 1e-2);
    }
}
