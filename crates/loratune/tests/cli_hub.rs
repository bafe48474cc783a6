//! Names on the hub, wherever a model or an adapter is named.

mod common;
#[path = "../../hub/tests/server/mod.rs"]
mod server;

use std::fs;
use std::path::Path;

use common::{Place, Ran, model, peft_adapter, rows};
use server::{Server, What};

const BASE: &str = "gqa-untied";

/// A hub with a model `org/base` and an adapter `org/adapter` for it.
fn hub() -> Server {
    let server = Server::start();
    for (repo, folder) in [("models/org/base", model(BASE)), ("models/org/adapter", peft_adapter("gaussian"))]
    {
        let files: Vec<(String, Vec<u8>)> = fs::read_dir(folder)
            .unwrap()
            .flatten()
            .filter(|e| e.path().is_file())
            .map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap()))
            .collect();
        let files: Vec<(&str, &[u8])> = files.iter().map(|(n, c)| (n.as_str(), c.as_slice())).collect();
        server.commit(repo, &files);
    }
    server
}

fn run(place: &Place, server: &Server, args: &[&str]) -> Ran {
    let mut command = place.command(args);
    command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &server.url).env("HF_HUB_DOWNLOAD_TIMEOUT", "5");
    Ran::of(command.output().unwrap())
}

#[test]
fn a_name_is_as_good_as_a_path() {
    let (place, server) = (Place::new(), hub());
    let generate = |server: Option<&Server>, model: &str, adapter: &str| {
        let args =
            ["generate", "--model", model, "--adapter", adapter, "--prompt", "a b", "--max-new-tokens", "8"];
        match server {
            Some(server) => run(&place, server, &args).ok(),
            None => place.run(&args).ok(),
        }
    };
    let local = generate(None, &model(BASE), &peft_adapter("gaussian"));
    let named = generate(Some(&server), "org/base", "org/adapter");
    assert_eq!(named.out, local.out);
    assert!(named.err.contains("org/base: ") && named.err.contains("org/adapter: 2 files"), "{}", named.err);
    server.asked();
    // What is in the cache is not shown as a download, and does without the hub.
    let again = generate(Some(&server), "org/base", "org/adapter");
    assert_eq!(again.out, local.out);
    assert!(!again.err.contains("org/"), "{}", again.err);
    assert!(server.asked().iter().all(|a| a.path.starts_with("/api/")));
    assert_eq!(generate(None, "org/base", "org/adapter").out, local.out);
    // A path wins over a name.
    fs::create_dir(place.path("org")).unwrap();
    std::os::unix::fs::symlink(model(BASE), place.path("org/base")).unwrap();
    fs::remove_dir_all(place.path(".hf")).unwrap();
    assert_eq!(
        place.run(&["generate", "--model", "org/base", "--prompt", "a b", "--max-new-tokens", "1"]).ok().code,
        Some(0)
    );
}

#[test]
fn every_command_takes_names() {
    let (place, server) = (Place::new(), hub());
    let data = rows("eval");
    for args in [
        &["eval", "--model", "org/base", "--adapter", "mine=org/adapter", "--dataset", &data, "--json"][..],
        &["inspect", "org/base", "--json"],
        &["inspect", "org/adapter", "--model", "org/base", "--json"],
        &["merge", "--model", "org/base", "--adapter", "org/adapter", "--output", "merged", "--verify"],
        &["unmerge", "--model", "merged", "--adapter", "org/adapter", "--output", "back", "--verify"],
        &["convert", "--adapter", "org/adapter", "--model", "org/base", "--rank", "2", "--output", "small"],
        &["combine", "-a", "org/adapter=0.5", "-a", "org/adapter=0.5", "--output", "sum"],
    ] {
        run(&place, &server, args).ok();
    }
    run(&place, &server, &["chat", "--model", "org/nobody"])
        .fails(1, &["org/nobody does not exist", "has no model"]);
}

#[test]
fn a_run_on_a_name_says_where_its_base_is() {
    let (place, server) = (Place::new(), hub());
    server.commit_to("models/org/base", "v2", {
        let state = server.state();
        let repo = &state.repos["models/org/base"];
        repo.commits[&repo.branches["main"]].clone()
    });
    let dataset = format!("dataset={}", rows("train"));
    let train = |model: &str, out: &str, more: &[&str]| {
        let (model, out) = (format!("model_name_or_path={model}"), format!("output_dir={out}"));
        let args = [
            "train",
            &model,
            &dataset,
            &out,
            "max_steps=2",
            "lora_rank=2",
            "save_strategy=no",
            "plot_loss=false",
        ];
        run(&place, &server, &[&args[..], more].concat()).ok()
    };
    train("org/base@v2", "named", &[]);
    let config: serde_json::Value = serde_json::from_slice(&place.read("named/adapter_config.json")).unwrap();
    assert_eq!(config["base_model_name_or_path"], "org/base");
    let commit = config["revision"].as_str().unwrap();
    assert_eq!(commit, server.state().repos["models/org/base"].branches["v2"]);
    let written = String::from_utf8(place.read("named/run_config.yaml")).unwrap();
    assert!(written.contains(&format!("model_name_or_path: \"org/base@{commit}\"\n")), "{written}");
    let card = String::from_utf8(place.read("named/README.md")).unwrap();
    assert!(card.contains("base_model: org/base\n"), "{card}");
    // The same numbers as from the path.
    train(&model(BASE), "path", &[]);
    assert_eq!(place.read("named/adapter_model.safetensors"), place.read("path/adapter_model.safetensors"));
    // An adapter to go on from.
    train("org/base", "more", &["adapter_name_or_path=org/adapter"]);
    // From random weights no weights are downloaded.
    fs::remove_dir_all(place.path(".hf")).unwrap();
    server.asked();
    train("org/base", "scratch", &["train_from_scratch=true", "finetuning_type=full"]);
    assert!(server.asked().iter().all(|a| !a.path.contains("model.safetensors")));
}

#[test]
fn a_run_goes_on_with_the_commit_that_it_began_on() {
    let (place, server) = (Place::new(), hub());
    let dataset = format!("dataset={}", rows("train"));
    let train = |out: &str, more: &[&str]| {
        let out = format!("output_dir={out}");
        let args = [
            "train",
            "model_name_or_path=org/base",
            &dataset,
            &out,
            "lora_rank=2",
            "max_steps=4",
            "cache_dir=kept",
        ];
        let fixed =
            ["save_steps=2", "plot_loss=false", "lr_scheduler_type=constant", "print_param_status=true"];
        run(&place, &server, &[&args[..], &fixed, more].concat())
    };
    let whole = train("whole", &[]).ok();
    assert!(
        whole.out.contains("name: model.embed_tokens.weight, dtype: f32, device: cpu, trainable: false\n")
            && whole.out.contains("lora_A.weight, dtype: f32, device: cpu, trainable: true\n"),
        "{}",
        whole.out
    );
    assert!(place.path("kept/models--org--base").is_dir() && !place.path(".hf/hub").exists());
    fs::rename(place.path("whole"), place.path("stopped")).unwrap();
    fs::remove_dir_all(place.path("stopped/checkpoint-4")).unwrap();
    // Since then the branch has other weights.
    let commit = {
        let mut state = server.state();
        let repo = state.repos.get_mut("models/org/base").unwrap();
        let old = repo.branches["main"].clone();
        let mut files = repo.commits[&old].clone();
        files.insert(
            "model.safetensors".into(),
            fs::read(Path::new(&model("tied-bf16")).join("model.safetensors")).unwrap(),
        );
        drop(state);
        server.commit_to("models/org/base", "main", files);
        old
    };
    let resumed = train("stopped", &["resume_from_checkpoint=true"]).ok();
    assert!(resumed.out.contains("goes on"), "{}", resumed.out);
    train("again", &[&format!("model_revision={commit}")]).ok();
    assert_eq!(
        place.read("stopped/adapter_model.safetensors"),
        place.read("again/adapter_model.safetensors")
    );
    // What has been written leads there as well, and another commit is another run.
    run(&place, &server, &["train", "again/run_config.yaml", "output_dir=third"]).ok();
    assert_eq!(place.read("third/adapter_model.safetensors"), place.read("again/adapter_model.safetensors"));
    fs::remove_dir_all(place.path("kept")).unwrap();
    server.state().repos.get_mut("models/org/base").unwrap().commits.remove(&commit);
    train("stopped", &["resume_from_checkpoint=true"]).fails(
        1,
        &[&format!("began on commit {commit} of `org/base` and can't go on with another"), "has no revision"],
    );
}

#[test]
fn datasets_have_names_too() {
    let (place, server) = (Place::new(), hub());
    let (train, eval) = (fs::read(rows("train")).unwrap(), fs::read(rows("eval")).unwrap());
    let files: &[(&str, &[u8])] = &[("README.md", b"# rows"), ("train.jsonl", &train), ("test.jsonl", &eval)];
    server.commit("datasets/org/rows", files);
    let model = format!("model_name_or_path={}", model(BASE));
    let settings = |dataset: &str, out: &str| -> Vec<String> {
        let rest = [model.clone(), format!("dataset={dataset}"), format!("output_dir={out}")];
        let fixed = ["max_steps=2", "lora_rank=2", "save_strategy=no", "plot_loss=false"].map(String::from);
        ["train".to_string()].into_iter().chain(rest).chain(fixed).collect()
    };
    let train = |dataset: &str, out: &str| {
        let words = settings(dataset, out);
        run(&place, &server, &words.iter().map(String::as_str).collect::<Vec<_>>())
    };
    train("org/rows", "named").ok();
    train(&rows("train"), "path").ok();
    assert_eq!(place.read("named/adapter_model.safetensors"), place.read("path/adapter_model.safetensors"));
    train("org/nothing", "x")
        .fails(1, &["has no dataset `org/nothing`", "there is no such path, here or in data"]);
    run(&place, &server, &["eval", "--model", "org/base", "--dataset", "org/rows", "--json"]).ok();
}

#[test]
fn both_places_are_told_where_nothing_is() {
    let (place, server) = (Place::new(), hub());
    fs::create_dir_all(place.path("models/SmolLM2")).unwrap();
    let told = run(&place, &server, &["inspect", "models/SmolLM"]).fails(
        1,
        &[
            "models/SmolLM does not exist",
            "did you mean `SmolLM2`?",
            "Nor was a model or adapter",
            "has no model `models/SmolLM`",
        ],
    );
    assert!(told.err.lines().count() == 1, "{}", told.err);
    // What cannot be a name is looked for here only.
    server.asked();
    for path in ["./x", "a/b/c", "x.gguf", "../y"] {
        let told = run(&place, &server, &["inspect", path]).fails(1, &["does not exist"]);
        assert!(!told.err.contains("hub"), "{}", told.err);
    }
    assert!(server.asked().is_empty());
    run(&place, &server, &["generate", "--model", "org/adapter", "--prompt", "x"])
        .fails(1, &["model `org/adapter` is an adapter, not a model"]);
    run(&place, &server, &["generate", "--model", "org/base@old", "--prompt", "x"])
        .fails(1, &["model `org/base` has no revision `old`"]);
    place
        .run(&["generate", "--model", "org/base", "--prompt", "x"])
        .fails(1, &["org/base does not exist", "is not in the cache", "HF_HUB_OFFLINE forbids"]);
}

#[test]
fn tokens_are_never_told() {
    let (place, server) = (Place::new(), hub());
    server.state().token = Some("hf_rightrightright".into());
    server.fault("/api/models/org/base", 9, What::Status(403, Vec::new()));
    let mut command = place.command(&["inspect", "org/base"]);
    command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &server.url).env("HF_TOKEN", "hf_rightrightright");
    command.env("RUST_LOG", "trace");
    let told = Ran::of(command.output().unwrap());
    assert_eq!(told.code, Some(1));
    assert!(told.err.contains("fault 403 for (token)"), "{}", told.err);
    assert!(!told.err.contains("rightright") && !told.out.contains("rightright"), "{}", told.err);
    assert!(Path::new(&place.path(".hf")).read_dir().is_err());
}
