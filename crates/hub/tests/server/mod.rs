//! A server on loopback that behaves like the hub, and another beside it that behaves like its storage (another port, which is
//! another host to whoever guards a token). Faults can be put into its answers. Python's huggingface_hub talks with it, too
//! (`tests/python.rs`), which is what keeps the imitation honest.

#![allow(dead_code)]

mod http;
mod read;
mod write;

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::{Arc, Mutex, MutexGuard};

use sha1::{Digest, Sha1};
use sha2::Sha256;

pub use http::{Answer, Asked};

/// A hub with its storage. Threads end with the process.
pub struct Server {
    pub url: String,
    pub storage: String,
    state: Arc<Mutex<State>>,
}

/// What the hub holds, and how it is to misbehave.
#[derive(Default)]
pub struct State {
    /// By `models/org/name`.
    pub repos: BTreeMap<String, Repo>,
    /// Large contents by sha256.
    pub stored: BTreeMap<String, Vec<u8>>,
    /// Parts of large contents on their way, by sha256 and number.
    pub parts: BTreeMap<(String, usize), Vec<u8>>,
    /// Who may write and see what is private: `name` is `me`.
    pub token: Option<String>,
    /// Organisations that the token may not write to.
    pub forbidden: Vec<String>,
    /// Large files go up in parts of this size.
    pub part_size: Option<usize>,
    /// The listing tells neither checksums nor sizes, as some mirrors' does not.
    pub bare_listing: bool,
    pub faults: Vec<Fault>,
    pub log: Vec<Asked>,
    pub storage_url: String,
    pub url: String,
}

#[derive(Default, Clone)]
pub struct Repo {
    pub private: bool,
    pub gated: bool,
    /// Commit by branch.
    pub branches: BTreeMap<String, String>,
    /// Files by commit.
    pub commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
    pub messages: Vec<String>,
}

/// A fault in answers to requests whose `METHOD PATH` holds a text.
pub struct Fault {
    pub at: String,
    pub times: usize,
    pub what: What,
}

#[derive(Clone)]
pub enum What {
    /// This status with these headers, and a message.
    Status(u16, Vec<(String, String)>),
    /// The connection ends after so many bytes of the content.
    Drop(usize),
    /// One byte of the content is another.
    Corrupt,
    /// The whole content, whatever range was asked for.
    NoRange,
    /// Somewhere else.
    Redirect(String),
    /// No answer for so many milliseconds.
    Silence(u64),
}

impl Server {
    pub fn start() -> Server {
        let state = Arc::new(Mutex::new(State::default()));
        let url = serve(state.clone(), "hub", |state, asked| {
            read::answer(state, asked).or_else(|| write::answer(state, asked))
        });
        let storage = serve(state.clone(), "storage", write::storage);
        {
            let mut state = state.lock().unwrap();
            state.storage_url = storage.clone();
            state.url = url.clone();
        }
        Server { url, storage, state }
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Adds a commit with these files to `main` of a repository, such as `models/org/name`. Returns its hash.
    pub fn commit(&self, repo: &str, files: &[(&str, &[u8])]) -> String {
        let files = files.iter().map(|(name, content)| (name.to_string(), content.to_vec())).collect();
        self.commit_to(repo, "main", files)
    }

    pub fn commit_to(&self, repo: &str, branch: &str, files: BTreeMap<String, Vec<u8>>) -> String {
        self.state().commit(repo, branch, files, "test")
    }

    pub fn fault(&self, at: &str, times: usize, what: What) {
        self.state().faults.push(Fault { at: at.into(), times, what });
    }

    /// `METHOD PATH` of everything that was asked since the last time.
    pub fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().log)
    }
}

impl State {
    pub fn commit(
        &mut self,
        repo: &str,
        branch: &str,
        files: BTreeMap<String, Vec<u8>>,
        message: &str,
    ) -> String {
        for content in files.iter().filter(|(name, _)| is_large(name)).map(|(_, c)| c) {
            self.stored.insert(sha256(content), content.clone());
        }
        let repo = self.repos.entry(repo.to_string()).or_default();
        repo.messages.push(message.to_string());
        let all = format!("{branch}{:?}{}", files.keys(), repo.messages.len());
        let commit = sha1(all.as_bytes());
        repo.branches.insert(branch.into(), commit.clone());
        repo.commits.insert(commit.clone(), files);
        commit
    }

    /// The fault that a request meets, if there is one left.
    fn fault(&mut self, line: &str) -> Option<What> {
        let fault = self.faults.iter_mut().find(|f| f.times > 0 && line.contains(&f.at))?;
        fault.times -= 1;
        Some(fault.what.clone())
    }
}

/// Whether the hub keeps such a file in its storage.
pub fn is_large(name: &str) -> bool {
    [".safetensors", ".gguf", ".parquet", ".bin", ".png"].iter().any(|ending| name.ends_with(ending))
}

pub fn sha256(content: &[u8]) -> String {
    hex(&Sha256::digest(content))
}

pub fn sha1(content: &[u8]) -> String {
    hex(&Sha1::digest(content))
}

pub fn git_sha1(content: &[u8]) -> String {
    sha1(&[format!("blob {}\0", content.len()).as_bytes(), content].concat())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

type Handler = fn(&mut State, &Asked) -> Option<Answer>;

fn serve(state: Arc<Mutex<State>>, host: &'static str, handler: Handler) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let state = state.clone();
            std::thread::spawn(move || http::converse(stream, host, &state, handler));
        }
    });
    url
}
