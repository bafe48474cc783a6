//! Which files are large, which are new, and the commit that joins them.

use std::fs::{self, File};
use std::io::Read;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::Push;
use super::repo::json_of;
use crate::digest::git_sha1;
use crate::error::{HubError, Result};
use crate::http::{Client, Payload, Request};
use crate::name::MAIN;
use crate::url;

/// Files that are asked about at a time.
const CHUNK: usize = 256;
/// Bytes of a file by which the hub tells text from what is not.
const SAMPLE: u64 = 512;

/// How a file gets there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// Within the commit.
    Regular(Vec<u8>),
    /// To the large storage first; its sha256 once that is known.
    Lfs(Option<String>),
}

/// A file that is about to be pushed.
#[derive(Debug)]
pub(super) struct Planned {
    pub from: PathBuf,
    pub to: String,
    pub size: u64,
    pub way: Way,
    /// What the repository has under this path: git's sha1, or the sha256 of a large file.
    remote: Option<String>,
}

impl Planned {
    pub fn is_unchanged(&self) -> bool {
        let local = match &self.way {
            Way::Regular(content) => Some(git_sha1(content)),
            Way::Lfs(sha256) => sha256.clone(),
        };
        local.is_some() && local == self.remote
    }
}

/// Asks the hub how each file is to be sent. What its `.gitignore` names is left out.
pub(super) fn plan(client: &Client, push: &Push) -> Result<Vec<Planned>> {
    let revision = url::segment(push.revision.as_deref().unwrap_or(MAIN));
    let address = format!("{}/api/models/{}/preupload/{revision}", client.endpoint, push.repo);
    let mut planned = Vec::new();
    for chunk in push.files.chunks(CHUNK) {
        let mut asked = Vec::new();
        let mut sizes = Vec::new();
        for file in chunk {
            let io = || HubError::io("read", &file.from);
            let open = File::open(&file.from).map_err(io())?;
            let size = open.metadata().map_err(io())?.len();
            let mut sample = Vec::new();
            open.take(SAMPLE).read_to_end(&mut sample).map_err(io())?;
            asked.push(json!({"path": file.to, "sample": BASE64.encode(&sample), "size": size}));
            sizes.push(size);
        }
        let body = json!({"files": asked}).to_string();
        let mut request =
            Request::post(address.clone(), body.as_bytes(), format!("pushing to `{}`", push.repo));
        request.repeatable = true;
        let told = json_of(client.ask(&request, |_| None)?, &address)?;
        let told = told.get("files").and_then(Value::as_array).cloned().unwrap_or_default();
        for (file, size) in chunk.iter().zip(sizes) {
            let about = told.iter().find(|t| t.get("path").and_then(Value::as_str) == Some(&file.to));
            let mode = about.and_then(|t| t.get("uploadMode")).and_then(Value::as_str);
            if about.and_then(|t| t.get("shouldIgnore")).and_then(Value::as_bool) == Some(true) {
                continue;
            }
            let way = match mode {
                // The large storage takes no empty files.
                Some("lfs") if size > 0 => Way::Lfs(None),
                Some("lfs" | "regular") => {
                    Way::Regular(fs::read(&file.from).map_err(HubError::io("read", &file.from))?)
                }
                _ => {
                    return Err(HubError::answer(
                        &address,
                        format!("it does not say how to send {}", file.to),
                    ));
                }
            };
            let remote = about.and_then(|t| t.get("oid")).and_then(Value::as_str).map(str::to_string);
            planned.push(Planned { from: file.from.clone(), to: file.to.clone(), size, way, remote });
        }
    }
    Ok(planned)
}

/// Makes the commit. Returns its hash.
pub(super) fn send(client: &Client, push: &Push, files: &[Planned]) -> Result<String> {
    let revision = url::segment(push.revision.as_deref().unwrap_or(MAIN));
    let address = format!("{}/api/models/{}/commit/{revision}", client.endpoint, push.repo);
    let header = json!({"key": "header", "value": {"summary": push.message, "description": ""}});
    let mut body = format!("{header}\n");
    for file in files {
        let line = match &file.way {
            Way::Regular(content) => json!({"key": "file", "value": {
                "content": BASE64.encode(content), "path": file.to, "encoding": "base64",
            }}),
            Way::Lfs(sha256) => json!({"key": "lfsFile", "value": {
                "path": file.to, "algo": "sha256", "oid": sha256, "size": file.size,
            }}),
        };
        body.push_str(&format!("{line}\n"));
    }
    let mut request = Request::get(address.clone(), format!("pushing to `{}`", push.repo));
    request.method = ureq::http::Method::POST;
    request.payload = Payload::Bytes("application/x-ndjson", body.as_bytes());
    // A commit whose answer got lost may have been made; another would follow it.
    request.repeatable = false;
    let told = json_of(client.ask(&request, |_| None)?, &address)?;
    let commit = told.get("commitOid").and_then(Value::as_str).map(str::to_string);
    commit.ok_or_else(|| HubError::answer(&address, "it names no commit"))
}
