//! The same server and the same cache with Python's huggingface_hub: what it does with our imitation is what it does with the
//! hub, and each finds without the network what the other has downloaded. `LORATUNE_PYTHON` names a Python that has it.

mod server;

use std::fs;
use std::path::Path;
use std::process::Command;

use loratune_hub::{DatasetPart, Hub, Part, Push, RepoName, Settings, folder};
use server::Server;

const TOKEN: &str = "hf_rightrightright";

fn python(server: &Server, cache: &Path, offline: bool, code: &str) -> Option<String> {
    let Some(python) = std::env::var_os("LORATUNE_PYTHON") else {
        eprintln!("skipped: LORATUNE_PYTHON is not set");
        return None;
    };
    let output = Command::new(python)
        .args(["-c", code])
        .env("HF_ENDPOINT", &server.url)
        .env("HF_HOME", cache.join("home"))
        .env("HF_HUB_CACHE", cache)
        .env("HF_HUB_DISABLE_XET", "1")
        .env("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        .env("HF_HUB_DISABLE_TELEMETRY", "1")
        .env("HF_TOKEN", TOKEN)
        .env("HF_HUB_OFFLINE", if offline { "1" } else { "0" })
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    Some(String::from_utf8(output.stdout).unwrap())
}

fn hub(server: &Server, cache: &Path, offline: &str) -> Hub {
    let cache = cache.display().to_string();
    let vars = [
        ("HF_ENDPOINT", server.url.as_str()),
        ("HF_HUB_CACHE", &cache),
        ("HF_HOME", &cache),
        ("HF_TOKEN", TOKEN),
        ("HF_HUB_OFFLINE", offline),
    ];
    Hub::new(
        Settings::from_lookup(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
            .unwrap(),
    )
}

fn start() -> Server {
    let server = Server::start();
    server.commit(
        "models/org/name",
        &[
            ("config.json", b"{\"a\": 1}"),
            ("tokenizer.json", b"{}"),
            ("model.safetensors", &[5; 3000]),
            ("README.md", b"#"),
        ],
    );
    server
        .commit("datasets/org/data", &[("data/train-00000-of-00001.parquet", b"rows"), ("README.md", b"#")]);
    let mut state = server.state();
    state.token = Some(TOKEN.into());
    state.repos.get_mut("models/org/name").unwrap().private = true;
    drop(state);
    server
}

#[test]
fn python_finds_what_we_download() {
    let (server, dir) = (start(), tempfile::tempdir().unwrap());
    let name = RepoName::parse("org/name").unwrap();
    let fetched = hub(&server, dir.path(), "0").model(&name, Part::Whole).unwrap();
    hub(&server, dir.path(), "0")
        .dataset(&RepoName::parse("org/data").unwrap(), DatasetPart::default())
        .unwrap();
    server.asked();
    let code = "
from huggingface_hub import hf_hub_download, snapshot_download, try_to_load_from_cache, scan_cache_dir
print(hf_hub_download('org/name', 'model.safetensors'))
print(snapshot_download('org/name'))
print(try_to_load_from_cache('org/name', 'config.json'))
print(hf_hub_download('org/data', 'data/train-00000-of-00001.parquet', repo_type='dataset'))
info = scan_cache_dir()
assert not info.warnings, info.warnings
print(sorted((r.repo_type, r.repo_id, r.nb_files, [list(v.refs) for v in r.revisions]) for r in info.repos))";
    let Some(found) = python(&server, dir.path(), true, code) else { return };
    let lines: Vec<&str> = found.lines().collect();
    assert_eq!(lines[0], fetched.path.join("model.safetensors").display().to_string());
    assert_eq!(lines[1], fetched.path.display().to_string());
    assert_eq!(lines[2], fetched.path.join("config.json").display().to_string());
    assert!(lines[3].ends_with("data/train-00000-of-00001.parquet"));
    assert_eq!(lines[4], "[('dataset', 'org/data', 2, [['main']]), ('model', 'org/name', 3, [['main']])]");
    assert!(server.asked().is_empty());
}

#[test]
fn we_find_what_python_downloads() {
    let (server, dir) = (start(), tempfile::tempdir().unwrap());
    let code = "
from huggingface_hub import hf_hub_download, snapshot_download
for name in ['config.json', 'tokenizer.json', 'model.safetensors']:
    print(hf_hub_download('org/name', name))
print(snapshot_download('org/data', repo_type='dataset'))";
    let Some(found) = python(&server, dir.path(), false, code) else { return };
    server.asked();
    let name = RepoName::parse("org/name").unwrap();
    let fetched = hub(&server, dir.path(), "1").model(&name, Part::Whole).unwrap();
    assert_eq!(fetched.path.join("config.json").display().to_string(), found.lines().next().unwrap());
    let data = RepoName::parse("org/data").unwrap();
    let data = hub(&server, dir.path(), "1").dataset(&data, DatasetPart::default()).unwrap();
    assert_eq!(fs::read(&data.files[0]).unwrap(), b"rows");
    assert!(server.asked().is_empty());
    // Nor is anything downloaded again with the hub.
    hub(&server, dir.path(), "0").model(&name, Part::Whole).unwrap();
    assert!(server.asked().iter().all(|a| a.path.starts_with("/api/")));
}

#[test]
fn python_pushes_to_the_server_what_we_push() {
    let (server, dir, cache) = (start(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    server.state().part_size = Some(2048);
    fs::create_dir(dir.path().join("runs")).unwrap();
    for (name, content) in
        [("README.md", b"# x".as_slice()), ("runs/e", b"e"), ("adapter_model.safetensors", &[9; 5000])]
    {
        fs::write(dir.path().join(name), content).unwrap();
    }
    let code = format!(
        "
from huggingface_hub import HfApi
api = HfApi()
assert api.whoami()['name'] == 'me'
print(api.create_repo('me/python', private=True, exist_ok=True))
api.create_repo('me/python', private=True, exist_ok=True)
api.create_branch('me/python', branch='dev', exist_ok=True)
print(api.upload_folder(repo_id='me/python', folder_path={:?}, revision='dev').oid)
print(api.upload_folder(repo_id='me/python', folder_path={:?}, revision='dev').oid)
print([s.rfilename for s in api.model_info('me/python', revision='dev', files_metadata=True).siblings])",
        dir.path(),
        dir.path()
    );
    let Some(said) = python(&server, cache.path(), false, &code) else { return };
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[1], lines[2]);
    let files = folder(dir.path(), "").unwrap();
    let (repo, message, revision) = ("me/ours".to_string(), "x".to_string(), Some("dev".to_string()));
    let ours = hub(&server, cache.path(), "0")
        .push(&Push { repo, private: true, revision, message, files })
        .unwrap();
    let state = server.state();
    let theirs = &state.repos["models/me/python"];
    assert!(theirs.private);
    assert_eq!(theirs.commits[lines[1]], state.repos["models/me/ours"].commits[&ours.commit]);
}
