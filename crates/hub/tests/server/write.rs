//! What is sent to the hub and to its storage.

use base64::Engine as _;
use serde_json::{Value, json};

use super::read::split;
use super::{Answer, Asked, Repo, State, git_sha1, is_large, sha1, sha256};

pub fn answer(state: &mut State, asked: &Asked) -> Option<Answer> {
    if asked.method != "POST" {
        return None;
    }
    if asked.path == "/api/validate-yaml" {
        return Some(Answer::json(json!({"errors": [], "warnings": []})));
    }
    if asked.path == "/complete" {
        return Some(complete(state, asked));
    }
    if asked.token().is_none() || asked.token() != state.token.as_deref() {
        return Some(Answer::refusal(401, "", "Invalid username or password."));
    }
    if asked.path == "/api/repos/create" {
        return Some(create(state, asked));
    }
    if asked.path == "/verify" {
        let stored = state.stored.contains_key(asked.json()["oid"].as_str()?);
        return Some(Answer::new(if stored { 200 } else { 404 }));
    }
    if let Some(id) = asked.path.strip_suffix(".git/info/lfs/objects/batch") {
        return writable(state, &format!("models{id}")).err().or_else(|| Some(batch(state, asked)));
    }
    let (kind, rest) = asked.path.strip_prefix("/api/")?.split_once('/')?;
    let (name, verb) = split(rest, kind)?;
    if let Err(refusal) = writable(state, &name) {
        return Some(refusal);
    }
    match verb.as_slice() {
        [word, branch @ ..] if word == "branch" => Some(make_branch(state, &name, &branch.join("/"))),
        [word, revision @ ..] if word == "preupload" => preupload(state, asked, &name, &revision.join("/")),
        [word, revision @ ..] if word == "commit" => commit(state, asked, &name, &revision.join("/")),
        _ => None,
    }
}

fn writable(state: &State, name: &str) -> Result<(), Answer> {
    let owner = name.split('/').nth(1).unwrap_or_default();
    if state.forbidden.iter().any(|f| f == owner) {
        let message =
            format!("Forbidden: you don't have the rights to write under the namespace \"{owner}\"");
        return Err(Answer::refusal(403, "", &message));
    }
    match state.repos.contains_key(name) {
        true => Ok(()),
        false => Err(Answer::refusal(404, "RepoNotFound", "Repository not found")),
    }
}

fn create(state: &mut State, asked: &Asked) -> Answer {
    let body = asked.json();
    let owner = body["organization"].as_str().unwrap_or("me");
    let id = format!("{owner}/{}", body["name"].as_str().unwrap_or_default());
    if state.forbidden.iter().any(|f| f == owner) {
        return Answer::refusal(403, "", "You don't have the rights to create a model under this namespace");
    }
    let name = format!("models/{id}");
    if state.repos.contains_key(&name) {
        let error =
            json!({"error": "You already created this model repo", "url": format!("{}/{id}", state.url)});
        return Answer { status: 409, ..Answer::json(error) };
    }
    let private = body["private"] == true || body["visibility"] == "private";
    state.commit(&name, "main", [(".gitattributes".to_string(), b"*.bin".to_vec())].into(), "initial commit");
    state.repos.entry(name).and_modify(|r| r.private = private);
    Answer::json(json!({"url": format!("{}/{id}", state.url), "name": id, "id": "1"}))
}

fn make_branch(state: &mut State, name: &str, branch: &str) -> Answer {
    let Some(repo) = state.repos.get_mut(name) else { return Answer::new(404) };
    if repo.branches.contains_key(branch) {
        return Answer::refusal(409, "", "Reference already exists");
    }
    let main = repo.branches["main"].clone();
    repo.branches.insert(branch.into(), main);
    Answer::json(json!({}))
}

fn files<'a>(repo: &'a Repo, revision: &str) -> Option<&'a std::collections::BTreeMap<String, Vec<u8>>> {
    repo.commits.get(repo.branches.get(revision)?)
}

fn preupload(state: &State, asked: &Asked, name: &str, revision: &str) -> Option<Answer> {
    let Some(there) = files(state.repos.get(name)?, revision) else {
        return Some(Answer::refusal(404, "RevisionNotFound", "Invalid rev id"));
    };
    let body = asked.json();
    let told = body["files"].as_array()?.iter().map(|file| {
        let path = file["path"].as_str().unwrap_or_default();
        let oid =
            there.get(path).map(|c| if is_large(path) && !c.is_empty() { sha256(c) } else { git_sha1(c) });
        let mode = if is_large(path) { "lfs" } else { "regular" };
        json!({"path": path, "uploadMode": mode, "shouldIgnore": path.ends_with(".ignored"), "oid": oid})
    });
    Some(Answer::json(json!({"files": told.collect::<Vec<_>>()})))
}

fn batch(state: &State, asked: &Asked) -> Answer {
    let body = asked.json();
    let objects = body["objects"].as_array().cloned().unwrap_or_default();
    let told = objects.iter().map(|object| {
        let (oid, size) = (object["oid"].as_str().unwrap_or_default(), object["size"].as_u64().unwrap_or(0));
        if state.stored.contains_key(oid) {
            return json!({"oid": oid, "size": size});
        }
        let verify = json!({"href": format!("{}/verify", state.url)});
        let upload = match state.part_size {
            Some(part) if size > part as u64 => {
                let mut header = serde_json::Map::new();
                header.insert("chunk_size".into(), part.to_string().into());
                for n in 1..=(size as usize).div_ceil(part) {
                    header.insert(n.to_string(), format!("{}/part/{oid}/{n}?signature=secret", state.storage_url).into());
                }
                json!({"href": format!("{}/complete?uploadId=1", state.url), "header": header})
            }
            _ => json!({"href": format!("{}/upload/{oid}?signature=secret", state.storage_url)}),
        };
        json!({"oid": oid, "size": size, "authenticated": true, "actions": {"upload": upload, "verify": verify}})
    });
    Answer::json(json!({"transfer": "basic", "objects": told.collect::<Vec<_>>()}))
}

fn complete(state: &mut State, asked: &Asked) -> Answer {
    let body = asked.json();
    let oid = body["oid"].as_str().unwrap_or_default().to_string();
    let mut content = Vec::new();
    for part in body["parts"].as_array().into_iter().flatten() {
        let number = part["partNumber"].as_u64().unwrap_or(0) as usize;
        match state.parts.get(&(oid.clone(), number)) {
            Some(bytes) if part["etag"].as_str() == Some(&format!("\"{}\"", sha1(bytes))) => {
                content.extend(bytes)
            }
            _ => return Answer::refusal(400, "", &format!("part {number} is not there")),
        }
    }
    if sha256(&content) != oid {
        return Answer::refusal(400, "", "the parts are not the content");
    }
    state.stored.insert(oid, content);
    Answer::json(json!({}))
}

fn commit(state: &mut State, asked: &Asked, name: &str, revision: &str) -> Option<Answer> {
    let mut files = files(state.repos.get(name)?, revision)?.clone();
    let mut message = String::new();
    for line in asked.body.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        let line: Value = serde_json::from_slice(line).ok()?;
        let value = &line["value"];
        let path = value["path"].as_str().unwrap_or_default().to_string();
        match line["key"].as_str()? {
            "header" => message = value["summary"].as_str()?.to_string(),
            "file" => {
                let content = base64::engine::general_purpose::STANDARD.decode(value["content"].as_str()?);
                files.insert(path, content.ok()?);
            }
            "lfsFile" => match state.stored.get(value["oid"].as_str()?) {
                Some(content) => {
                    files.insert(path, content.clone());
                }
                None => return Some(Answer::refusal(400, "", "the LFS object is not there")),
            },
            other => return Some(Answer::refusal(400, "", &format!("unknown operation {other}"))),
        }
    }
    let oid = state.commit(name, revision, files, &message);
    let id = name.split_once('/')?.1;
    Some(Answer::json(
        json!({"success": true, "commitOid": oid, "commitUrl": format!("{}/{id}/commit/{oid}", state.url)}),
    ))
}

/// The storage: contents by their sha256, and nothing for whoever shows it a token.
pub fn storage(state: &mut State, asked: &Asked) -> Option<Answer> {
    if asked.header("authorization").is_some() {
        return Some(Answer::refusal(400, "", "Only one auth mechanism allowed"));
    }
    let parts: Vec<&str> = asked.path.trim_start_matches('/').split('/').collect();
    match (asked.method.as_str(), parts.as_slice()) {
        ("GET" | "HEAD", [oid]) => {
            let content = state.stored.get(*oid)?;
            let answer = Answer { body: content.clone(), ..Answer::new(200) };
            Some(answer.with("etag", &format!("\"{}\"", sha1(content))))
        }
        // S3 wants to know the length before.
        ("PUT", _) if asked.header("content-length").is_none() => Some(Answer::new(411)),
        ("PUT", ["upload", oid]) => {
            if sha256(&asked.body) != *oid {
                return Some(Answer::refusal(400, "", "BadDigest"));
            }
            state.stored.insert(oid.to_string(), asked.body.clone());
            Some(Answer::new(200))
        }
        ("PUT", ["part", oid, number]) => {
            let number: usize = number.parse().ok()?;
            state.parts.insert((oid.to_string(), number), asked.body.clone());
            Some(Answer::new(200).with("etag", &format!("\"{}\"", sha1(&asked.body))))
        }
        _ => None,
    }
}
