//! AutoTrain's command line where it does more than train: merging, pushing, splits on the hub.

mod common;
#[path = "../../hub/tests/server/mod.rs"]
mod server;

use std::fs;
use std::path::PathBuf;

use common::{Place, Ran, holding, model};
use server::Server;

const TOKEN: &str = "hf_rightrightright";

fn llm(place: &Place, server: Option<&Server>, words: &[&str]) -> Ran {
    let base = model("gqa-untied");
    let fixed = ["llm", "--train", "--model", &base, "--trainer", "sft", "--lora-r", "2", "--epochs", "1"];
    let mut command =
        place.command(&[&fixed[..], &["--block-size", "64", "--batch-size", "2"], words].concat());
    if let Some(server) = server {
        command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &server.url);
    }
    Ran::of(command.output().unwrap())
}

fn texts(rows: usize) -> String {
    (0..rows).map(|i| format!("{{\"text\": \"the shop opens at {i}, come and see it\"}}\n")).collect()
}

#[test]
fn merge_adapter_leaves_the_model_that_merging_afterwards_makes() {
    let place = Place::new();
    fs::create_dir(place.path("data")).unwrap();
    place.write("data/train.jsonl", texts(12));
    let data = ["--data-path", "data", "--peft", "--lr", "0.01"];
    llm(&place, None, &[&data[..], &["--project-name", "plain"]].concat()).ok();
    let told =
        llm(&place, None, &[&data[..], &["--project-name", "merged", "--merge-adapter"]].concat()).ok();
    assert!(!told.out.contains("--adapter merged"), "{}", told.out);
    place.run(&["merge", "--model", &model("gqa-untied"), "--adapter", "plain", "--output", "after"]).ok();
    assert!(place.read("merged/model.safetensors") == place.read("after/model.safetensors"));
    assert!(!place.path("merged/adapter_model.safetensors").exists());
    assert!(!place.path("merged/adapter_config.json").exists());
    let card = String::from_utf8(place.read("merged/README.md")).unwrap();
    assert!(card.contains("library_name: transformers") && card.contains("folded in"), "{card}");
    place.run(&["generate", "--model", "merged", "--prompt", "the shop", "--max-new-tokens", "2"]).ok();
    place.assert_nothing_unfinished();
    // Nothing to merge without an adapter.
    let full = llm(&place, None, &["--data-path", "data", "--project-name", "full", "--merge-adapter"]).ok();
    assert!(full.err.contains("`merge_adapter` is not used"), "{}", full.err);
}

#[test]
fn push_to_hub_pushes_to_a_private_repository_and_the_token_stays_here() {
    let (place, server) = (Place::new(), Server::start());
    server.state().token = Some(TOKEN.into());
    fs::create_dir(place.path("data")).unwrap();
    place.write("data/train.jsonl", texts(12));
    let data = ["--data-path", "data/", "--text-column", "text", "--peft", "--push-to-hub", "--token", TOKEN];
    for (project, words, repo) in [
        ("first", vec!["--repo-id", "me/shop"], "me/shop"),
        ("second", vec!["--repo_id", "me"], "me/second"),
        ("third", vec!["--username", "me"], "me/third"),
    ] {
        let told =
            llm(&place, Some(&server), &[&data[..], &["--project-name", project], &words].concat()).ok();
        assert!(told.out.contains(&format!("{}/{repo} (private)", server.url)), "{}", told.out);
        assert!(!told.out.contains("rightright") && !told.err.contains("rightright"));
        let state = server.state();
        let pushed = &state.repos[&format!("models/{repo}")];
        let files = &pushed.commits[&pushed.branches["main"]];
        assert!(files.contains_key("adapter_model.safetensors") && files.contains_key("README.md"));
        assert!(!files.values().any(|f| String::from_utf8_lossy(f).contains("rightright")));
    }
    assert_eq!(holding(&place.path("."), "rightright"), Vec::<PathBuf>::new());
    let wrong =
        [&data[..6], &["--project-name", "x", "--repo-id", "me/x", "--token", "hf_wrongwrongwrong"]].concat();
    let told = llm(&place, Some(&server), &wrong).fails(1, &["the token is not valid"]);
    assert!(!told.err.contains("wrongwrong") && !place.path("x/adapter_model.safetensors").exists());
}

#[test]
fn splits_and_configurations_of_a_dataset_on_the_hub_are_what_they_say() {
    let (place, server) = (Place::new(), Server::start());
    let (a, b, c) = (texts(4), texts(6), texts(10));
    let readme = "---\nconfigs:\n- config_name: small\n  data_files:\n  - split: train\n    path: small/train.jsonl\n  \
                  - split: held\n    path: small/held.jsonl\n- config_name: large\n  default: true\n  data_files: large.jsonl\n---\n";
    let files: &[(&str, &[u8])] = &[
        ("README.md", readme.as_bytes()),
        ("small/train.jsonl", a.as_bytes()),
        ("small/held.jsonl", b.as_bytes()),
        ("large.jsonl", c.as_bytes()),
    ];
    server.commit("datasets/org/texts", files);
    let plan = |words: &[&str]| {
        let fixed = ["--data-path", "org/texts", "--project-name", "p", "--peft", "--dry-run", "--json"];
        let ran = llm(&place, Some(&server), &[&fixed[..], words].concat()).ok();
        let events = ran.json();
        let plan = &events.iter().find(|e| e["event"] == "plan").unwrap()["plan"];
        (plan["examples"].as_u64().unwrap(), plan["eval_examples"].as_u64().unwrap())
    };
    assert_eq!(plan(&[]), (10, 0));
    assert_eq!(plan(&["--train-split", "small:train"]), (4, 0));
    assert_eq!(plan(&["--train-split", "small:train", "--valid-split", "small:held"]), (4, 6));
    llm(
        &place,
        Some(&server),
        &["--data-path", "org/texts", "--project-name", "p", "--train-split", "small:hold"],
    )
    .fails(1, &["held"]);
}
