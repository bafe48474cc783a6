//! Large files by git LFS's batch request (<https://github.com/git-lfs/git-lfs/blob/main/docs/api/batch.md>), with the hub's own
//! transfer in parts for the largest.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Deserialize;
use serde_json::{Map, Value, json};
use ureq::http::Method;

use super::Push;
use super::commit::{Planned, Way};
use super::repo::json_of;
use crate::digest::sha256_of;
use crate::error::{HubError, Result};
use crate::http::{Client, Payload, Request};
use crate::hub::Hub;
use crate::progress::Progress;
use crate::settings::ENDPOINT;

const MEDIA_TYPE: &str = "application/vnd.git-lfs+json";
/// Files that are asked about at a time.
const BATCH: usize = 256;

/// Finds the sha256 of large files.
pub(super) fn hash(files: &mut [Planned], parallel: usize) -> Result<()> {
    let large: Vec<Mutex<&mut Planned>> =
        files.iter_mut().filter(|f| f.way == Way::Lfs(None)).map(Mutex::new).collect();
    each(&large, parallel, |file| {
        let mut file = file.lock().unwrap_or_else(|p| p.into_inner());
        file.way = Way::Lfs(Some(sha256_of(&file.from)?));
        Ok(())
    })
}

/// Uploads the large files that the storage does not have yet.
pub(super) fn upload(hub: &Hub, push: &Push, files: &[Planned]) -> Result<()> {
    let large: Vec<(&Planned, &str)> = files
        .iter()
        .filter_map(|f| match &f.way {
            Way::Lfs(Some(oid)) => Some((f, oid.as_str())),
            _ => None,
        })
        .collect();
    let mut jobs = Vec::new();
    for batch in large.chunks(BATCH) {
        let objects = ask(hub.client(), push, batch)?;
        for &(file, oid) in batch {
            let object = objects.iter().find(|o| o.oid == oid);
            let object =
                object.ok_or_else(|| wrong(push, format!("it does not say where {} goes", file.to)))?;
            if let Some(error) = &object.error {
                let message = error.message.clone();
                let action = format!("uploading {} to `{}`", file.to, push.repo);
                return Err(HubError::Status { action, status: error.code, message });
            }
            match &object.actions {
                Some(actions) => jobs.push((file, oid, actions.clone())),
                // The storage has it already.
                None => hub.progress().advance(file.size as i64),
            }
        }
    }
    each(&jobs, hub.settings().parallel, |(file, oid, actions)| {
        let sending = Sending { hub, push, file, oid };
        sending.run(actions)
    })
}

/// Does several things at a time, until the first error.
fn each<T: Sync>(items: &[T], parallel: usize, work: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let (next, first) = (AtomicUsize::new(0), Mutex::new(None));
    let run = || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(e) = work(item) {
                next.store(items.len(), Ordering::Relaxed);
                first.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(e);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..parallel.min(items.len()) {
            scope.spawn(run);
        }
        run();
    });
    first.into_inner().unwrap_or_else(|p| p.into_inner()).map_or(Ok(()), Err)
}

#[derive(Debug, Deserialize)]
struct Object {
    oid: String,
    actions: Option<Actions>,
    error: Option<ObjectError>,
}

#[derive(Debug, Clone, Deserialize)]
struct Actions {
    upload: Option<Action>,
    verify: Option<Action>,
}

#[derive(Debug, Clone, Deserialize)]
struct Action {
    href: String,
    /// Headers to send, or, for a transfer in parts, `chunk_size` and the parts' addresses by number.
    #[serde(default)]
    header: Map<String, Value>,
}

#[derive(Debug, Deserialize)]
struct ObjectError {
    code: u16,
    message: String,
}

fn ask(client: &Client, push: &Push, batch: &[(&Planned, &str)]) -> Result<Vec<Object>> {
    let address = format!("{}/{}.git/info/lfs/objects/batch", client.endpoint, push.repo);
    let objects: Vec<Value> = batch.iter().map(|(f, oid)| json!({"oid": oid, "size": f.size})).collect();
    let mut body = json!({
        "operation": "upload",
        "transfers": ["basic", "multipart"],
        "objects": objects,
        "hash_algo": "sha256",
    });
    if let (Some(revision), Some(map)) = (&push.revision, body.as_object_mut()) {
        map.insert("ref".into(), json!({"name": revision}));
    }
    let body = body.to_string();
    let mut request = Request::post(address.clone(), b"", format!("pushing to `{}`", push.repo));
    request.payload = Payload::Bytes(MEDIA_TYPE, body.as_bytes());
    request.headers.push(("accept", MEDIA_TYPE.into()));
    request.repeatable = true;
    let told = json_of(client.ask(&request, |_| None)?, &address)?;
    let objects = told.get("objects").cloned().unwrap_or_default();
    serde_json::from_value(objects)
        .map_err(|e| HubError::answer(&address, format!("its objects cannot be read: {e}")))
}

fn wrong(push: &Push, what: String) -> HubError {
    HubError::Answer { url: format!("{}.git/info/lfs", push.repo), what }
}

/// One large file on its way.
struct Sending<'a> {
    hub: &'a Hub,
    push: &'a Push,
    file: &'a Planned,
    oid: &'a str,
}

impl Sending<'_> {
    fn run(&self, actions: &Actions) -> Result<()> {
        let size = self.file.size;
        match &actions.upload {
            None => self.hub.progress().advance(size as i64),
            Some(action) => match action.header.get("chunk_size") {
                None => {
                    let headers = action.header.iter().filter_map(|(k, v)| Some((k.as_str(), v.as_str()?)));
                    self.put(&action.href, headers.collect(), 0, size)?;
                }
                Some(chunk) => self.in_parts(action, chunk)?,
            },
        }
        if let Some(verify) = &actions.verify {
            let body = json!({"oid": self.oid, "size": size}).to_string();
            let mut request = Request::post(self.at_endpoint(&verify.href), body.as_bytes(), self.action());
            request.repeatable = true;
            self.hub.client().ask(&request, |_| None)?;
        }
        Ok(())
    }

    fn action(&self) -> String {
        format!("uploading {} to `{}`", self.file.to, self.push.repo)
    }

    /// The hub names its own address even to those who reach it through a mirror.
    fn at_endpoint(&self, href: &str) -> String {
        match href.strip_prefix(ENDPOINT) {
            Some(rest) if rest.starts_with('/') => format!("{}{rest}", self.hub.client().endpoint),
            _ => href.to_string(),
        }
    }

    fn in_parts(&self, action: &Action, chunk: &Value) -> Result<()> {
        let chunk = chunk.as_u64().or_else(|| chunk.as_str()?.parse().ok()).filter(|&c| c > 0);
        let chunk = chunk.ok_or_else(|| wrong(self.push, "its chunk_size is no number".into()))?;
        let number = |name: &String| name.parse::<u64>().ok();
        let mut parts: Vec<(u64, &str)> =
            action.header.iter().filter_map(|(name, href)| Some((number(name)?, href.as_str()?))).collect();
        parts.sort_unstable();
        let (size, count) = (self.file.size, parts.len() as u64);
        if count != size.div_ceil(chunk) || parts.iter().zip(1..).any(|(part, n)| part.0 != n) {
            let what =
                format!("it wants {} in {count} parts of {chunk} bytes, of {size} in all", self.file.to);
            return Err(wrong(self.push, what));
        }
        let mut done = Vec::new();
        for (number, href) in parts {
            let from = (number - 1) * chunk;
            let etag = self.put(href, Vec::new(), from, chunk.min(size - from))?;
            let etag = etag.ok_or_else(|| wrong(self.push, format!("part {number} was given no ETag")))?;
            done.push(json!({"partNumber": number, "etag": etag}));
        }
        let body = json!({"oid": self.oid, "parts": done}).to_string();
        let mut request = Request::post(self.at_endpoint(&action.href), b"", self.action());
        request.payload = Payload::Bytes(MEDIA_TYPE, body.as_bytes());
        request.headers.push(("accept", MEDIA_TYPE.into()));
        // The address is signed.
        request.anonymous = true;
        request.repeatable = true;
        self.hub.client().ask(&request, |_| None).map(|_| ())
    }

    /// Sends a part of the file. Returns the ETag that it was given.
    fn put(&self, href: &str, headers: Vec<(&str, &str)>, from: u64, len: u64) -> Result<Option<String>> {
        let sent = AtomicUsize::new(0);
        let open = || -> Result<Box<dyn Read + '_>> {
            // What an earlier try has sent does not count.
            self.hub.progress().advance(-(sent.swap(0, Ordering::Relaxed) as i64));
            Part::open(&self.file.from, from, self.hub.progress(), &sent)
        };
        let mut request = Request::get(self.at_endpoint(href), self.action());
        request.method = Method::PUT;
        request.payload = Payload::Stream(len, &open);
        request.headers = headers.into_iter().map(|(name, value)| (name, value.to_string())).collect();
        request.anonymous = true;
        let answer = self.hub.client().ask(&request, |_| None)?;
        Ok(answer.headers().get("etag").and_then(|v| v.to_str().ok()).map(str::to_string))
    }
}

/// Reads a file from somewhere on, and tells how far it is.
struct Part<'a> {
    file: File,
    progress: &'a dyn Progress,
    sent: &'a AtomicUsize,
}

impl<'a> Part<'a> {
    fn open(
        path: &Path,
        from: u64,
        progress: &'a dyn Progress,
        sent: &'a AtomicUsize,
    ) -> Result<Box<dyn Read + 'a>> {
        let mut file = File::open(path).map_err(HubError::io("read", path))?;
        file.seek(SeekFrom::Start(from)).map_err(HubError::io("read", path))?;
        Ok(Box::new(Part { file, progress, sent }))
    }
}

impl Read for Part<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer)?;
        self.sent.fetch_add(n, Ordering::Relaxed);
        self.progress.advance(n as i64);
        Ok(n)
    }
}
