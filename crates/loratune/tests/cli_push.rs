//! Results to the hub: by `loratune push`, and by runs.

mod common;
#[path = "../../hub/tests/server/mod.rs"]
mod server;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{Place, Ran, holding, model, peft_adapter, rows};
use server::{Server, What};

const TOKEN: &str = "hf_rightrightright";

fn hub() -> Server {
    let server = Server::start();
    server.state().token = Some(TOKEN.into());
    server
}

fn command(place: &Place, server: &Server, args: &[&str]) -> Command {
    let mut command = place.command(args);
    command.env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", &server.url);
    command
}

fn run(place: &Place, server: &Server, args: &[&str]) -> Ran {
    Ran::of(command(place, server, args).env("HF_TOKEN", TOKEN).output().unwrap())
}

fn files(server: &Server, repo: &str, branch: &str) -> Vec<String> {
    let state = server.state();
    let repo = &state.repos[repo];
    repo.commits[&repo.branches[branch]].keys().cloned().collect()
}

#[test]
fn a_folder_is_pushed() {
    let (place, server) = (Place::new(), hub());
    let adapter = peft_adapter("gaussian");
    let told = run(&place, &server, &["push", &adapter, "--repo", "first"]).ok();
    assert!(told.out.contains(&format!("{}/me/first (private), ", server.url)), "{}", told.out);
    assert!(files(&server, "models/me/first", "main").contains(&"adapter_model.safetensors".to_string()));
    let again = run(&place, &server, &["push", &adapter, "--repo-id", "me/first"]).ok();
    assert!(again.out.contains("nothing to do"), "{}", again.out);
    let json = run(
        &place,
        &server,
        &["push", &adapter, "--repo", "me/open", "--public", "--revision", "v1", "--json"],
    );
    assert_eq!(json.ok().json()[0]["private"], false);
    assert!(server.state().repos["models/me/open"].branches.contains_key("v1"));

    run(&place, &server, &["push", "nothing", "--repo", "x"]).fails(2, &["nothing does not exist"]);
    run(&place, &server, &["push", &adapter, "--repo", "a/b/c"])
        .fails(2, &["`a/b/c` cannot be a repository"]);
    fs::create_dir(place.path("empty")).unwrap();
    run(&place, &server, &["push", "empty", "--repo", "x"]).fails(1, &["is neither an adapter nor a model"]);
    Ran::of(command(&place, &server, &["push", &adapter, "--repo", "me/x"]).output().unwrap())
        .fails(1, &["needs a token with write access: set HF_TOKEN"]);
    let wrong = ["push", &adapter, "--repo", "me/x", "--token", "hf_wrongwrongwrong"];
    let told = run(&place, &server, &wrong).fails(1, &["the token is not valid"]);
    assert!(!told.err.contains("wrongwrong"));
    place.run(&["push", &adapter, "--repo", "me/x"]).fails(1, &["needs a token"]);
}

fn settings(more: &[&str]) -> Vec<String> {
    let fixed = [
        format!("model_name_or_path={}", model("gqa-untied")),
        format!("dataset={}", rows("train")),
        "max_steps=4".into(),
        "save_steps=2".into(),
        "logging_steps=2".into(),
        "lora_rank=2".into(),
        "push_to_hub=true".into(),
    ];
    ["train".to_string()].into_iter().chain(fixed).chain(more.iter().map(|m| m.to_string())).collect()
}

fn train(place: &Place, server: &Server, more: &[&str]) -> Ran {
    let settings = settings(more);
    let words: Vec<&str> = settings.iter().map(String::as_str).collect();
    Ran::of(command(place, server, &words).output().unwrap())
}

#[test]
fn a_run_pushes_its_result_and_the_token_stays_here() {
    let (place, server) = (Place::new(), hub());
    let token = format!("hub_token={TOKEN}");
    let told = train(&place, &server, &["output_dir=runs/mine", &token, "hub_strategy=end"]).ok();
    assert!(told.out.contains(&format!("pushed       {}/me/mine (private)", server.url)), "{}", told.out);
    let pushed = files(&server, "models/me/mine", "main");
    for file in [
        "README.md",
        "adapter_model.safetensors",
        "adapter_config.json",
        "run_config.yaml",
        "training_loss.png",
    ] {
        assert!(pushed.contains(&file.to_string()), "{file}: {pushed:?}");
    }
    assert!(!pushed.iter().any(|f| f.starts_with("checkpoint-")), "{pushed:?}");
    assert_eq!(server.state().repos["models/me/mine"].messages, ["initial commit", "End of training"]);
    let card = String::from_utf8(place.read("runs/mine/README.md")).unwrap();
    assert!(card.contains("--adapter me/mine --prompt"), "{card}");
    // Nowhere on the disk, in no message, in nothing that was sent but the header.
    assert_eq!(holding(&place.path("runs"), "rightright"), Vec::<PathBuf>::new());
    assert!(!told.out.contains("rightright") && !told.err.contains("rightright"));
    for asked in server.asked() {
        assert!(!String::from_utf8_lossy(&asked.body).contains("rightright"), "{}", asked.line());
    }
    let shown = place
        .run(&["train", "--print-config", "output_dir=x", "dataset=y", "model_name_or_path=z", &token])
        .ok();
    assert!(!shown.out.contains("rightright"), "{}", shown.out);
    place.assert_nothing_unfinished();
}

#[test]
fn checkpoints_are_pushed_as_the_strategy_says() {
    let (place, server) = (Place::new(), hub());
    let token = format!("hub_token={TOKEN}");
    for (strategy, folders) in [
        ("every_save", &[][..]),
        ("checkpoint", &["last-checkpoint"]),
        ("all_checkpoints", &["checkpoint-2", "checkpoint-4"]),
    ] {
        let (out, strategy) = (format!("output_dir=runs/{strategy}"), format!("hub_strategy={strategy}"));
        let repo = out.replace("output_dir=runs/", "models/me/");
        train(&place, &server, &[&out, &token, &strategy, "hub_always_push=true", "save_total_limit=1"]).ok();
        let messages = server.state().repos[&repo].messages.clone();
        let expected = [
            "initial commit",
            "Training in progress, step 2",
            "Training in progress, step 4",
            "End of training",
        ];
        assert_eq!(messages, expected, "{strategy}");
        let pushed = files(&server, &repo, "main");
        let has = |folder: &str| pushed.contains(&format!("{folder}/loratune_state.json"));
        for folder in ["last-checkpoint", "checkpoint-2", "checkpoint-4"] {
            assert_eq!(has(folder), folders.contains(&folder), "{strategy} {folder}: {pushed:?}");
        }
    }
    place.assert_nothing_unfinished();
}

#[test]
fn a_push_that_fails_loses_nothing() {
    let (place, server) = (Place::new(), hub());
    let token = format!("hub_token={TOKEN}");
    // Before the training: nothing is begun.
    server.state().forbidden.push("others".into());
    train(&place, &server, &["output_dir=a", &token, "hub_model_id=others/x"])
        .fails(1, &["push_to_hub", "403", "rights"]);
    assert!(!place.path("a").exists());
    train(&place, &server, &["output_dir=a"]).fails(1, &["push_to_hub", "needs a token"]);
    let told = train(&place, &server, &["output_dir=a", "hub_token=hf_two words"])
        .fails(2, &["hub_token is no token"]);
    assert!(!told.err.contains("two words"), "{}", told.err);
    // On the way: said, and the training goes on.
    server.fault("/commit/", 1, What::Status(500, Vec::new()));
    let told = train(&place, &server, &["output_dir=b", &token, "hub_always_push=true"]).ok();
    assert!(told.err.contains("note: step 2 could not be pushed to `me/b`"), "{}", told.err);
    assert_eq!(server.state().repos["models/me/b"].messages.len(), 3);
    // At the end: the result is there, and how to try again.
    server.fault("/commit/", 1, What::Status(500, Vec::new()));
    train(&place, &server, &["output_dir=c", &token, "hub_strategy=end"])
        .fails(1, &["the result is in c, but it could not be pushed", "loratune push c --repo me/c"]);
    assert!(place.path("c/adapter_model.safetensors").is_file());
    run(&place, &server, &["push", "c", "--repo", "me/c"]).ok();
}

#[test]
fn an_export_is_pushed_with_its_card() {
    let (place, server) = (Place::new(), hub());
    let (base, adapter) = (model("gqa-untied"), peft_adapter("gaussian"));
    let yaml = format!(
        "model_name_or_path: {base}\nadapter_name_or_path: {adapter}\nexport_dir: out\nexport_size: 2\n\
         export_hub_model_id: me/export\nhf_hub_token: {TOKEN}\n"
    );
    place.write("merge.yaml", yaml);
    let told = Ran::of(command(&place, &server, &["export", "merge.yaml"]).output().unwrap()).ok();
    assert!(told.out.contains(&format!("{}/me/export (private)", server.url)), "{}", told.out);
    assert!(!told.out.contains("rightright") && !told.err.contains("rightright"));
    let pushed = files(&server, "models/me/export", "main");
    for file in ["README.md", "model.safetensors", "config.json", "Modelfile"] {
        assert!(pushed.contains(&file.to_string()), "{file}: {pushed:?}");
    }
    let card = String::from_utf8(place.read("out/README.md")).unwrap();
    assert!(card.contains("folded in; weights in F32") && card.contains("- lora"), "{card}");
    assert_eq!(holding(&place.path("out"), "rightright"), Vec::<PathBuf>::new());
    // Whoever may not push learns it before anything is written.
    let refused =
        ["export", "-m", &base, "-o", "never", "export_hub_model_id=me/x", "hub_token=hf_wrongwrongwrong"];
    Ran::of(command(&place, &server, &refused).output().unwrap())
        .fails(1, &["export_hub_model_id", "token is not valid"]);
    assert!(!place.path("never").exists());
    // Replaced with its card when asked.
    place.run(&["export", "-m", &base, "-o", "out", "--overwrite"]).ok();
    place.run(&["merge", "-m", &base, "-a", &adapter, "-o", "merged"]).ok();
    place.run(&["merge", "-m", &base, "-o", "merged", "--overwrite"]).ok();
    place.assert_nothing_unfinished();
}
