//! Pushes to a server that behaves like the hub.

mod server;

use std::fs;
use std::path::Path;
use std::time::Duration;

use loratune_hub::{Hub, Push, Pushed, Settings, Upload, folder};
use server::{Server, What};

const TOKEN: &str = "hf_rightrightright";

fn hub(server: &Server, vars: &[(&str, &str)]) -> Hub {
    let fixed = [("HF_ENDPOINT", server.url.as_str()), ("HF_HOME", "/nowhere")];
    let get = |name: &str| vars.iter().chain(&fixed).find(|(n, _)| *n == name).map(|(_, v)| v.to_string());
    let mut settings = Settings::from_lookup(get).unwrap();
    settings.pause = Duration::from_millis(1);
    Hub::new(settings)
}

fn start() -> (Server, tempfile::TempDir) {
    let server = Server::start();
    server.state().token = Some(TOKEN.into());
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("README.md", b"# card".as_slice()),
        ("adapter_model.safetensors", &[7; 5000]),
        ("runs/events", b"e"),
        ("empty.safetensors", b""),
        ("x.ignored", b"x"),
        ("checkpoint-5/optimizer.safetensors", b"no"),
    ] {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
    (server, dir)
}

fn push(repo: &str, dir: &Path) -> Push {
    let files = folder(dir, "").unwrap();
    Push { repo: repo.into(), private: true, revision: None, message: "End of training".into(), files }
}

fn pushed(server: &Server, repo: &str, dir: &Path) -> Result<Pushed, String> {
    let result = hub(server, &[("HF_TOKEN", TOKEN)]).push(&push(repo, dir));
    result.map_err(|e| e.to_string())
}

#[test]
fn a_folder_becomes_one_commit_of_a_private_repository() {
    let (server, dir) = start();
    let pushed = pushed(&server, "me/first", dir.path()).unwrap();
    assert_eq!((pushed.changed, pushed.unchanged, pushed.private), (4, 0, Some(true)));
    assert_eq!(pushed.url, format!("{}/me/first", server.url));
    let state = server.state();
    let repo = &state.repos["models/me/first"];
    assert!(repo.private);
    assert_eq!(repo.messages, ["initial commit", "End of training"]);
    assert_eq!(repo.branches["main"], pushed.commit);
    let files = &repo.commits[&pushed.commit];
    let names: Vec<&String> = files.keys().collect();
    assert_eq!(
        names,
        [".gitattributes", "README.md", "adapter_model.safetensors", "empty.safetensors", "runs/events"]
    );
    assert_eq!(files["adapter_model.safetensors"], [7; 5000]);
    assert_eq!(files["README.md"], b"# card");
    assert!(state.log.iter().all(|a| a.host == "hub" || a.token().is_none()));
    assert!(state.log.iter().any(|a| a.line() == "POST /verify"));
}

#[test]
fn what_is_there_already_is_not_sent_again() {
    let (server, dir) = start();
    let first = pushed(&server, "me/x", dir.path()).unwrap();
    server.asked();
    let again = pushed(&server, "me/x", dir.path()).unwrap();
    assert_eq!((again.changed, again.unchanged, again.commit), (0, 4, first.commit));
    assert!(!server.asked().iter().any(|a| a.path.contains("/commit/") || a.host == "storage"));
    fs::write(dir.path().join("README.md"), "# other").unwrap();
    let third = pushed(&server, "me/x", dir.path()).unwrap();
    assert_eq!((third.changed, third.unchanged), (1, 3));
    // Weights that the storage has from another repository are committed without being sent.
    let other = pushed(&server, "me/y", dir.path()).unwrap();
    assert_eq!(other.changed, 4);
    assert!(!server.asked().iter().any(|a| a.host == "storage"));
}

#[test]
fn large_files_go_in_parts() {
    let (server, dir) = start();
    server.state().part_size = Some(1024);
    let content: Vec<u8> = (0..5000u32).map(|i| (i * 7 / 3) as u8).collect();
    fs::write(dir.path().join("adapter_model.safetensors"), &content).unwrap();
    // One part meets a storage that is busy, another a connection that breaks.
    server.fault("/3", 1, What::Status(503, Vec::new()));
    server.fault("PUT /part/", 1, What::Drop(0));
    let pushed = pushed(&server, "me/pieces", dir.path()).unwrap();
    assert_eq!(
        server.state().repos["models/me/pieces"].commits[&pushed.commit]["adapter_model.safetensors"],
        content
    );
    let parts = server
        .asked()
        .iter()
        .filter(|a| a.path.starts_with("/part/"))
        .map(|a| a.body.len())
        .collect::<Vec<_>>();
    assert_eq!(*parts.last().unwrap(), 5000 - 4 * 1024);
}

#[test]
fn branches_are_made_and_public_repositories_stay_so() {
    let (server, dir) = start();
    server.commit("models/me/old", &[("README.md", b"old")]);
    let mut push = push("me/old", dir.path());
    push.revision = Some("feature/x".into());
    let hub = hub(&server, &[("HF_TOKEN", TOKEN)]);
    let pushed = hub.push(&push).unwrap();
    assert_eq!(pushed.private, Some(false));
    let repo = server.state().repos["models/me/old"].clone();
    assert_eq!(repo.branches["feature/x"], pushed.commit);
    assert_ne!(repo.branches["main"], pushed.commit);
    assert_eq!(repo.commits[&repo.branches["main"]]["README.md"], b"old");
    hub.push(&push).unwrap();
}

#[test]
fn a_repository_that_turns_out_public_gets_nothing() {
    let (server, dir) = start();
    // A server that does not understand what it was asked for.
    server.fault("POST /api/repos/create", 1, What::Redirect("/api/repos/create".into()));
    server.commit("models/me/leak", &[("README.md", b"x")]);
    let push = push("me/leak", dir.path());
    server.fault("POST /api/repos/create", 1, What::Status(200, Vec::new()));
    let e = hub(&server, &[("HF_TOKEN", TOKEN)]).push(&push).unwrap_err().to_string();
    assert!(e.contains("was made public although a private repository was asked for"), "{e}");
    assert_eq!(server.state().repos["models/me/leak"].commits.len(), 1);
}

#[test]
fn refusals_are_told_before_anything_is_sent() {
    let (server, dir) = start();
    server.state().forbidden.push("others".into());
    let e = pushed(&server, "others/x", dir.path()).unwrap_err();
    assert!(e.contains("403") && e.contains("rights") && e.contains("write access"), "{e}");
    let e = hub(&server, &[]).push(&push("me/x", dir.path())).unwrap_err().to_string();
    assert!(e.contains("needs a token with write access: set HF_TOKEN"), "{e}");
    let e = hub(&server, &[("HF_TOKEN", "hf_wrongwrong")])
        .push(&push("me/x", dir.path()))
        .unwrap_err()
        .to_string();
    assert!(e.contains("the token is not valid") && !e.contains("wrongwrong"), "{e}");
    let e = hub(&server, &[("HF_TOKEN", TOKEN), ("HF_HUB_OFFLINE", "1")]).push(&push("me/x", dir.path()));
    assert!(e.unwrap_err().to_string().contains("HF_HUB_OFFLINE forbids to use the network"));
    assert!(!server.asked().iter().any(|a| a.path.contains("/commit/") || a.host == "storage"));
}

#[test]
fn no_file_with_the_token_leaves_the_machine() {
    let (server, dir) = start();
    fs::write(dir.path().join("run_config.yaml"), format!("hub_token: {TOKEN}\n")).unwrap();
    let e = pushed(&server, "me/x", dir.path()).unwrap_err();
    assert!(e.contains("run_config.yaml: it holds your token") && !e.contains(TOKEN), "{e}");
    assert!(server.asked().is_empty());
}

#[test]
fn a_commit_whose_fate_is_unknown_is_not_made_twice() {
    let (server, dir) = start();
    server.fault("/commit/", 1, What::Status(502, Vec::new()));
    let e = pushed(&server, "me/x", dir.path()).unwrap_err();
    assert!(e.contains("502"), "{e}");
    assert_eq!(server.asked().iter().filter(|a| a.path.contains("/commit/")).count(), 1);
    // A rate limit says that nothing was done.
    server.fault("/commit/", 1, What::Status(429, vec![("retry-after".into(), "0".into())]));
    fs::write(dir.path().join("README.md"), "# new").unwrap();
    pushed(&server, "me/x", dir.path()).unwrap();
}

#[test]
fn a_name_without_an_owner_is_the_users() {
    let (server, _dir) = start();
    assert_eq!(hub(&server, &[("HF_TOKEN", TOKEN)]).full_id("model").unwrap(), "me/model");
    assert_eq!(hub(&server, &[]).full_id("org/model").unwrap(), "org/model");
    assert!(hub(&server, &[]).full_id("a/b/c").is_err());
}

#[test]
fn files_can_be_put_under_other_names() {
    let (server, dir) = start();
    let upload = Upload { from: dir.path().join("README.md"), to: "last-checkpoint/README.md".into() };
    let push = Push { files: vec![upload], ..push("me/x", dir.path()) };
    let pushed = hub(&server, &[("HF_TOKEN", TOKEN)]).push(&push).unwrap();
    assert!(
        server.state().repos["models/me/x"].commits[&pushed.commit].contains_key("last-checkpoint/README.md")
    );
}
