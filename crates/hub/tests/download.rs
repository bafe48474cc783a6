//! Downloads from a server that behaves like the hub, and misbehaves like it.

mod server;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use loratune_hub::{DatasetPart, Hub, Part, Progress, RepoName, Settings};
use server::{Server, What, git_sha1, sha256};

const CONFIG: &[u8] = b"{\"model_type\": \"llama\"}";

fn settings(server: &Server, cache: &Path, more: &[(&str, &str)]) -> Settings {
    let cache = cache.display().to_string();
    let fixed = [("HF_ENDPOINT", server.url.as_str()), ("HF_HUB_CACHE", &cache), ("HF_HOME", &cache)];
    let mut settings = Settings::from_lookup(|name| {
        let all = more.iter().chain(&fixed);
        all.clone().find(|(n, _)| *n == name).map(|(_, v)| v.to_string())
    })
    .unwrap();
    settings.pause = Duration::from_millis(1);
    settings.timeout = Duration::from_millis(500);
    settings
}

fn hub(server: &Server, cache: &Path) -> Hub {
    Hub::new(settings(server, cache, &[]))
}

fn name(text: &str) -> RepoName {
    RepoName::parse(text).unwrap()
}

/// Weights that compress badly and differ everywhere.
fn weights(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect()
}

fn model(server: &Server, repo: &str, weights: &[u8]) -> String {
    server.commit(
        repo,
        &[
            ("README.md", b"# card"),
            ("config.json", CONFIG),
            ("tokenizer.json", b"{}"),
            ("model.safetensors", weights),
            ("pytorch_model.bin", b"pickle"),
        ],
    )
}

struct Watch {
    bytes: AtomicI64,
    notes: Mutex<Vec<String>>,
}

impl Progress for Watch {
    fn advance(&self, bytes: i64) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }
    fn note(&self, text: &str) {
        self.notes.lock().unwrap().push(text.to_string());
    }
}

fn watch() -> Arc<Watch> {
    Arc::new(Watch { bytes: AtomicI64::new(0), notes: Mutex::new(Vec::new()) })
}

fn lines(server: &Server) -> Vec<String> {
    server.asked().iter().map(|a| format!("{} {}", a.host, a.line())).collect()
}

#[test]
fn a_model_is_downloaded_once_into_pythons_cache() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = weights(700_000);
    let commit = model(&server, "models/org/name", &content);
    let watch = watch();
    let fetched =
        hub(&server, dir.path()).watched_by(watch.clone()).model(&name("org/name"), Part::Whole).unwrap();

    let repo = dir.path().join("models--org--name");
    assert_eq!(fetched.path, repo.join("snapshots").join(&commit));
    assert_eq!(fetched.commit, commit);
    assert_eq!(fs::read(fetched.path.join("model.safetensors")).unwrap(), content);
    assert_eq!(fs::read(fetched.path.join("config.json")).unwrap(), CONFIG);
    assert_eq!(fs::read_to_string(repo.join("refs/main")).unwrap(), commit);
    let link = |file: &str| fs::read_link(fetched.path.join(file)).unwrap();
    assert_eq!(link("model.safetensors"), PathBuf::from(format!("../../blobs/{}", sha256(&content))));
    assert_eq!(link("config.json"), PathBuf::from(format!("../../blobs/{}", git_sha1(CONFIG))));
    assert!(!fetched.path.join("pytorch_model.bin").exists() && !fetched.path.join("README.md").exists());
    assert_eq!(watch.bytes.load(Ordering::SeqCst), (content.len() + CONFIG.len() + 2) as i64);
    server.asked();

    // Another time the hub is only asked whether there is something new.
    hub(&server, dir.path()).model(&name("org/name"), Part::Whole).unwrap();
    assert_eq!(lines(&server), ["hub GET /api/models/org/name/revision/main"]);

    // What a later commit shares is not downloaded again.
    server.commit("models/org/name", &[("config.json", b"{}"), ("model.safetensors", &content)]);
    server.asked();
    let newer = hub(&server, dir.path()).model(&name("org/name"), Part::Whole).unwrap();
    assert_eq!(fs::read(newer.path.join("config.json")).unwrap(), b"{}");
    assert!(!lines(&server).iter().any(|l| l.contains("safetensors")));
    // The older one is there still, by its commit.
    let old = hub(&server, dir.path()).model(&name(&format!("org/name@{commit}")), Part::Whole).unwrap();
    assert_eq!(old, fetched);
}

#[test]
fn a_token_goes_to_the_hub_and_to_nobody_else() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    model(&server, "models/org/secret", &weights(1000));
    {
        let mut state = server.state();
        state.token = Some("hf_rightrightright".into());
        state.repos.get_mut("models/org/secret").unwrap().private = true;
    }
    let get = |token: Option<&str>| {
        let settings = settings(&server, dir.path(), &[("HF_TOKEN", token.unwrap_or(""))]);
        Hub::new(settings).model(&name("org/secret"), Part::Whole).map_err(|e| e.to_string())
    };
    let e = get(None).unwrap_err();
    assert!(e.contains("has no model `org/secret`") && e.contains("set HF_TOKEN"), "{e}");
    let e = get(Some("hf_wrongwrongwrong")).unwrap_err();
    assert!(e.contains("the token is not valid") && !e.contains("wrongwrong"), "{e}");
    server.asked();
    get(Some("hf_rightrightright")).unwrap();
    let asked = server.asked();
    assert!(asked.iter().any(|a| a.host == "storage"));
    for a in asked {
        assert_eq!(a.token().is_some(), a.host == "hub", "{}", a.line());
    }
}

#[test]
fn a_redirect_to_another_host_leaves_the_token_behind() {
    let (server, thief, dir) = (Server::start(), Server::start(), tempfile::tempdir().unwrap());
    model(&thief, "models/org/name", &weights(10));
    server.state().token = Some("hf_rightrightright".into());
    server.fault(
        "/api/models/org/name",
        1,
        What::Redirect(format!("{}/api/models/org/name/revision/main?blobs=true", thief.url)),
    );
    let hub = Hub::new(settings(&server, dir.path(), &[("HF_TOKEN", "hf_rightrightright")]));
    let _ = hub.model(&name("org/name"), Part::Whole);
    let asked = thief.asked();
    assert!(!asked.is_empty() && asked.iter().all(|a| a.header("authorization").is_none()));
    assert!(server.asked().iter().all(|a| a.token().is_some()));
}

#[test]
fn a_renamed_repository_is_found() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    model(&server, "models/org/new", &weights(10));
    server.fault(
        "/api/models/old/",
        1,
        What::Redirect("/api/models/org/new/revision/main?blobs=true".into()),
    );
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        let commit = server.state().repos["models/org/new"].branches["main"].clone();
        server.fault(&format!("/{file}"), 1, What::Redirect(format!("/org/new/resolve/{commit}/{file}")));
    }
    let fetched = hub(&server, dir.path()).model(&name("old/old"), Part::Whole).unwrap();
    assert!(fetched.path.join("model.safetensors").is_file());
}

#[test]
fn a_broken_connection_is_gone_on_with() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = weights(900_000);
    model(&server, "models/org/name", &content);
    server.fault(&format!("GET /{}", sha256(&content)), 1, What::Drop(400_000));
    server.fault(&format!("GET /{}", sha256(&content)), 1, What::Drop(100_000));
    let watch = watch();
    let fetched =
        hub(&server, dir.path()).watched_by(watch.clone()).model(&name("org/name"), Part::Whole).unwrap();
    assert_eq!(fs::read(fetched.path.join("model.safetensors")).unwrap(), content);
    let ranges: Vec<String> = server
        .asked()
        .iter()
        .filter(|a| a.host == "storage")
        .map(|a| a.header("range").unwrap_or("whole").to_string())
        .collect();
    assert_eq!(ranges, ["whole", "bytes=400000-", "bytes=500000-"]);
    assert_eq!(watch.bytes.load(Ordering::SeqCst), (content.len() + CONFIG.len() + 2) as i64);
}

#[test]
fn another_process_goes_on_where_the_last_one_ended() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = weights(300_000);
    model(&server, "models/org/name", &content);
    let blobs = dir.path().join("models--org--name/blobs");
    fs::create_dir_all(&blobs).unwrap();
    let partial = blobs.join(format!("{}.incomplete", sha256(&content)));
    fs::write(&partial, &content[..123_456]).unwrap();
    let fetched = hub(&server, dir.path()).model(&name("org/name"), Part::Whole).unwrap();
    assert_eq!(fs::read(fetched.path.join("model.safetensors")).unwrap(), content);
    assert!(server.asked().iter().any(|a| a.header("range") == Some("bytes=123456-")));
    assert!(!partial.exists());
}

#[test]
fn a_damaged_beginning_is_thrown_away_and_a_server_without_ranges_is_no_trouble() {
    for (what, there) in
        [(None, weights(200_000)), (Some(What::NoRange), b"right".to_vec()), (None, vec![7; 400_000])]
    {
        let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
        let mut content = weights(300_000);
        content[0] ^= 1;
        if what.is_some() {
            content[..5].copy_from_slice(b"right");
        }
        model(&server, "models/org/name", &content);
        let blobs = dir.path().join("models--org--name/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{}.incomplete", sha256(&content))), there).unwrap();
        if let Some(what) = what {
            server.fault(&format!("GET /{}", sha256(&content)), 1, what);
        }
        let fetched = hub(&server, dir.path()).model(&name("org/name"), Part::Whole).unwrap();
        assert_eq!(fs::read(fetched.path.join("model.safetensors")).unwrap(), content);
    }
}

#[test]
fn what_arrives_damaged_is_not_kept() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = weights(1000);
    model(&server, "models/org/name", &content);
    // Once: it is downloaded again.
    server.fault(&format!("GET /{}", sha256(&content)), 1, What::Corrupt);
    let watch = watch();
    hub(&server, dir.path()).watched_by(watch.clone()).model(&name("org/name"), Part::Whole).unwrap();
    assert!(watch.notes.lock().unwrap()[0].contains("arrived damaged"));
    // Twice, of a small file: an error, and nothing stays.
    server.commit("models/org/other", &[("config.json", b"{}\n"), ("model.safetensors", &content)]);
    server.fault("org/other/resolve", 9, What::Corrupt);
    let e = hub(&server, dir.path()).model(&name("org/other"), Part::Whole).unwrap_err().to_string();
    assert!(e.contains("config.json") && e.contains("git sha1") && e.contains(&git_sha1(b"{}\n")), "{e}");
    let blobs = dir.path().join("models--org--other/blobs");
    let left: Vec<_> = fs::read_dir(blobs).unwrap().flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|n| n.to_str() != Some(&git_sha1(b"{}\n"))), "{left:?}");
}

#[test]
fn busy_and_broken_servers_are_asked_again() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    model(&server, "models/org/name", &weights(10));
    server.fault("/api/models", 1, What::Status(503, Vec::new()));
    server.fault("/api/models", 1, What::Status(429, vec![("retry-after".into(), "0".into())]));
    server.fault("/api/models", 1, What::Silence(700));
    server.fault("config.json", 2, What::Status(500, Vec::new()));
    hub(&server, dir.path()).model(&name("org/name"), Part::Whole).unwrap();
    // A limit that lasts is told, not slept through.
    let dir = tempfile::tempdir().unwrap();
    server.fault("/api/models", 1, What::Status(429, vec![("retry-after".into(), "3600".into())]));
    let e = hub(&server, dir.path()).model(&name("org/name"), Part::Whole).unwrap_err().to_string();
    assert!(e.contains("wait 3600 s") && e.contains("set HF_TOKEN"), "{e}");
    // A server that stays broken is an error, with what it says but without the token that it repeats.
    server.fault("/api/models", 6, What::Status(500, Vec::new()));
    let hub = Hub::new(settings(&server, dir.path(), &[("HF_TOKEN", "hf_secretsecret")]));
    let e = hub.model(&name("org/name"), Part::Whole).unwrap_err().to_string();
    assert!(e.contains("500") && e.contains("fault 500 for (token)"), "{e}");
}

#[test]
fn what_is_not_there_is_said() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    model(&server, "models/org/name", &weights(10));
    server.commit("models/org/pickled", &[("config.json", CONFIG), ("pytorch_model.bin", b"x")]);
    server.commit("models/org/ggufs", &[("a-Q4_0.gguf", b"x"), ("a-Q8_0.gguf", b"y")]);
    server.commit("models/org/gated", &[("config.json", CONFIG)]);
    server.state().repos.get_mut("models/org/gated").unwrap().gated = true;
    let hub = hub(&server, dir.path());
    let error = |text: &str| hub.model(&name(text), Part::Whole).unwrap_err().to_string();
    assert!(error("org/nothing").contains("has no model `org/nothing`"));
    assert!(error("org/name@v9").contains("has no revision `v9`"));
    assert!(error("org/pickled").contains("a pickle, which is not read"));
    assert!(error("org/gated").contains("is gated: ask for access on"));
    assert!(error("org/ggufs").contains("name one: org/ggufs:a-Q4_0.gguf, org/ggufs:a-Q8_0.gguf"));
    assert_eq!(fs::read(hub.model(&name("org/ggufs:q8_0"), Part::Whole).unwrap().path).unwrap(), b"y");
    let e =
        Hub::new(Settings { endpoint: "http://127.0.0.1:1".into(), ..settings(&server, dir.path(), &[]) });
    let e = e.model(&name("org/new"), Part::Whole).unwrap_err().to_string();
    assert!(e.contains("127.0.0.1:1 cannot be reached"), "{e}");
}

#[test]
fn without_the_hub_the_cache_is_enough() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let commit = model(&server, "models/org/name", &weights(10));
    let online = hub(&server, dir.path()).model(&name("org/name"), Part::Whole).unwrap();
    hub(&server, dir.path()).model(&name(&format!("org/name@{commit}")), Part::Whole).unwrap();
    server.asked();
    for variable in ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"] {
        let offline = Hub::new(settings(&server, dir.path(), &[(variable, "1")]));
        assert_eq!(offline.model(&name("org/name"), Part::Whole).unwrap(), online);
        assert_eq!(offline.model(&name(&format!("org/name@{commit}")), Part::Whole).unwrap(), online);
        let e = offline.model(&name("org/other"), Part::Whole).unwrap_err().to_string();
        assert!(e.contains("model `org/other` is not in the cache") && e.contains(variable), "{e}");
        let e = offline.adapter(&name("org/name")).unwrap_err().to_string();
        assert!(e.contains("is a model, not an adapter"), "{e}");
    }
    assert!(server.asked().is_empty());
    // The same when the hub is not there; that is said.
    let watch = watch();
    let gone = Settings { endpoint: "http://127.0.0.1:1".into(), ..settings(&server, dir.path(), &[]) };
    assert_eq!(
        Hub::new(gone).watched_by(watch.clone()).model(&name("org/name"), Part::Whole).unwrap(),
        online
    );
    assert!(watch.notes.lock().unwrap()[0].contains("what the cache has of `org/name` is taken"));
    // A file that is missing is not overlooked.
    fs::remove_file(online.path.join("model.safetensors")).unwrap();
    let offline = Hub::new(settings(&server, dir.path(), &[("HF_HUB_OFFLINE", "1")]));
    let e = offline.model(&name("org/name"), Part::Whole).unwrap_err().to_string();
    assert!(e.contains("model.safetensors of model `org/name` is not in the cache"), "{e}");
}

#[test]
fn shards_and_bare_listings() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let index = br#"{"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    server.commit(
        "models/org/big",
        &[
            ("config.json", CONFIG),
            ("model.safetensors.index.json", index),
            ("model-00001-of-00002.safetensors", &weights(500)),
            ("model-00002-of-00002.safetensors", &weights(600)),
            ("other.safetensors", b"no"),
        ],
    );
    // A mirror that lists names only: each file's head is asked for.
    server.state().bare_listing = true;
    let fetched = hub(&server, dir.path()).model(&name("org/big"), Part::Whole).unwrap();
    assert_eq!(fs::read(fetched.path.join("model-00002-of-00002.safetensors")).unwrap(), weights(600));
    assert!(!fetched.path.join("other.safetensors").exists());
    assert!(server.asked().iter().any(|a| a.method == "HEAD"));
    let described = hub(&server, dir.path()).model(&name("org/big"), Part::WithoutWeights).unwrap();
    assert_eq!(described.files.len(), 1);
}

#[test]
fn a_listing_cannot_lead_out_of_the_cache() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    server.commit("models/org/evil", &[("config.json", CONFIG), ("../../../../evil.gguf", b"x")]);
    let e = hub(&server, dir.path()).model(&name("org/evil"), Part::Whole).unwrap_err().to_string();
    assert!(e.contains("does not answer as a hub does"), "{e}");
}

#[test]
fn many_at_once_download_each_file_once() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let content = weights(400_000);
    model(&server, "models/org/name", &content);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| hub(&server, dir.path()).model(&name("org/name"), Part::Whole).unwrap());
        }
    });
    let downloads = server.asked().iter().filter(|a| a.host == "storage").count();
    assert_eq!(downloads, 1);
}

#[test]
fn datasets_are_found_by_subset_and_split() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    let readme = b"---\nconfigs:\n- config_name: main\n  default: true\n  data_files:\n  - split: train\n    path: main/train-*\n---\n";
    server.commit(
        "datasets/openai/gsm8k",
        &[
            ("README.md", readme),
            ("main/train-00000-of-00002.parquet", b"one"),
            ("main/train-00001-of-00002.parquet", b"two"),
            ("main/test-00000-of-00001.parquet", b"three"),
        ],
    );
    let hub = hub(&server, dir.path());
    let train = hub.dataset(&name("openai/gsm8k"), DatasetPart::default()).unwrap();
    assert_eq!(train.names, ["main/train-00000-of-00002.parquet", "main/train-00001-of-00002.parquet"]);
    assert_eq!(fs::read(&train.files[1]).unwrap(), b"two");
    assert!(train.files[0].starts_with(dir.path().join("datasets--openai--gsm8k/snapshots")));
    let one =
        hub.dataset(&name("openai/gsm8k:main/test-00000-of-00001.parquet"), DatasetPart::default()).unwrap();
    assert_eq!(fs::read(&one.files[0]).unwrap(), b"three");
    let e = hub.dataset(&name("openai/gsm8k"), DatasetPart { split: Some("dev"), ..DatasetPart::default() });
    assert!(e.unwrap_err().to_string().contains("dataset `openai/gsm8k` has no split `dev`"));
    // Without the hub, a part that was never downloaded is not taken for empty.
    let offline = Hub::new(settings(&server, dir.path(), &[("HF_HUB_OFFLINE", "1")]));
    assert_eq!(offline.dataset(&name("openai/gsm8k"), DatasetPart::default()).unwrap(), train);
    fs::remove_file(&train.files[1]).unwrap();
    let e = offline.dataset(&name("openai/gsm8k"), DatasetPart::default()).unwrap_err().to_string();
    assert!(e.contains("main/train-00001-of-00002.parquet of dataset"), "{e}");
}

#[test]
fn datasets_of_scripts_are_taken_from_the_hubs_parquet() {
    let (server, dir) = (Server::start(), tempfile::tempdir().unwrap());
    server.commit("datasets/org/script", &[("README.md", b"# x"), ("script.py", b"import os")]);
    let e = hub(&server, dir.path())
        .dataset(&name("org/script"), DatasetPart::default())
        .unwrap_err()
        .to_string();
    assert!(e.contains("holds no files of rows that are known"), "{e}");
    let files: BTreeMap<String, Vec<u8>> =
        [("default/train/0000.parquet".to_string(), b"rows".to_vec())].into();
    server.commit_to("datasets/org/script", "refs/convert/parquet", files);
    let found = hub(&server, dir.path()).dataset(&name("org/script"), DatasetPart::default()).unwrap();
    assert_eq!(fs::read(&found.files[0]).unwrap(), b"rows");
    let offline = Hub::new(settings(&server, dir.path(), &[("HF_HUB_OFFLINE", "1")]));
    assert_eq!(offline.dataset(&name("org/script"), DatasetPart::default()).unwrap(), found);
}
