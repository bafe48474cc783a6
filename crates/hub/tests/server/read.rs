//! What is asked of the hub.

use serde_json::{Value, json};

use super::{Answer, Asked, Repo, State, git_sha1, is_large, sha256};

/// `models/org/name` and what follows the id, of an API's path or a file's.
pub fn split(path: &str, kind: &str) -> Option<(String, Vec<String>)> {
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let verbs = ["revision", "resolve", "tree", "branch", "preupload", "commit", "refs"];
    let at = parts.iter().position(|p| verbs.contains(p)).unwrap_or(parts.len());
    let id = parts.get(..at).filter(|p| (1..=2).contains(&p.len()))?.join("/");
    Some((format!("{kind}/{id}"), parts[at..].iter().map(|p| p.to_string()).collect()))
}

/// Refuses what the token may not see, as the hub does.
pub fn seen<'a>(state: &'a State, asked: &Asked, repo: &str) -> Result<&'a Repo, Answer> {
    let knows = state.token.is_none() || asked.token() == state.token.as_deref();
    if asked.token().is_some() && !knows {
        return Err(Answer::refusal(401, "", "Invalid credentials in Authorization header"));
    }
    let known = knows && asked.token().is_some();
    match state.repos.get(repo) {
        Some(repo) if repo.gated && !known => {
            Err(Answer::refusal(401, "GatedRepo", "Access to this model is restricted."))
        }
        Some(repo) if !repo.private || known => Ok(repo),
        _ if known => Err(Answer::refusal(404, "RepoNotFound", "Repository not found")),
        _ => Err(Answer::refusal(401, "RepoNotFound", "Invalid username or password.")),
    }
}

pub fn commit_of<'a>(repo: &'a Repo, revision: &'a str) -> Result<&'a String, Answer> {
    let found = repo.branches.get(revision).or_else(|| repo.commits.get_key_value(revision).map(|(k, _)| k));
    found.ok_or_else(|| Answer::refusal(404, "RevisionNotFound", &format!("Invalid rev id: {revision}")))
}

pub fn answer(state: &mut State, asked: &Asked) -> Option<Answer> {
    if !["GET", "HEAD"].contains(&asked.method.as_str()) {
        return None;
    }
    if asked.path == "/api/whoami-v2" {
        let known = asked.token().is_some() && asked.token() == state.token.as_deref();
        return Some(match known {
            true => Answer::json(json!({"type": "user", "name": "me", "orgs": []})),
            false => Answer::refusal(401, "", "Invalid username or password."),
        });
    }
    let result = match asked.path.strip_prefix("/api/") {
        Some(rest) => {
            let (kind, rest) = rest.split_once('/')?;
            let (repo, verb) = split(rest, kind)?;
            match verb.first().map(String::as_str) {
                None => info(state, asked, &repo, "main"),
                Some("revision") => info(state, asked, &repo, &verb[1..].join("/")),
                Some("tree") => tree(state, asked, &repo, &verb[1..].join("/")),
                _ => return None,
            }
        }
        None => {
            let (kind, path) = match asked.path.strip_prefix("/datasets/") {
                Some(rest) => ("datasets", rest),
                None => ("models", asked.path.as_str()),
            };
            let (repo, verb) = split(path, kind)?;
            match verb.as_slice() {
                [word, revision, file @ ..] if word == "resolve" => {
                    resolve(state, asked, &repo, revision, &file.join("/"))
                }
                _ => return None,
            }
        }
    };
    Some(result.unwrap_or_else(|refusal| refusal))
}

fn info(state: &State, asked: &Asked, name: &str, revision: &str) -> Result<Answer, Answer> {
    let repo = seen(state, asked, name)?;
    let commit = commit_of(repo, revision)?;
    let with_blobs = asked.query.contains("blobs=") && !state.bare_listing;
    let siblings: Vec<Value> = repo.commits[commit]
        .iter()
        .map(|(path, content)| match (with_blobs, is_large(path)) {
            (false, _) => json!({"rfilename": path}),
            (true, false) => json!({"rfilename": path, "blobId": git_sha1(content), "size": content.len()}),
            (true, true) => json!({"rfilename": path, "blobId": git_sha1(b"pointer"), "size": content.len(),
                "lfs": {"sha256": sha256(content), "size": content.len(), "pointerSize": 134}}),
        })
        .collect();
    let id = name.split_once('/').map_or(name, |(_, id)| id);
    Ok(Answer::json(json!({"_id": "1", "id": id, "sha": commit, "private": repo.private, "gated": false,
        "disabled": false, "tags": [], "downloads": 0, "likes": 0, "siblings": siblings})))
}

fn tree(state: &State, asked: &Asked, name: &str, revision: &str) -> Result<Answer, Answer> {
    let repo = seen(state, asked, name)?;
    let files: Vec<Value> = repo.commits[commit_of(repo, revision)?]
        .iter()
        .map(|(path, content)| match is_large(path) {
            false => json!({"type": "file", "path": path, "oid": git_sha1(content), "size": content.len()}),
            true => json!({"type": "file", "path": path, "oid": git_sha1(b"pointer"), "size": content.len(),
                "lfs": {"oid": sha256(content), "size": content.len(), "pointerSize": 134}}),
        })
        .collect();
    Ok(Answer::json(Value::Array(files)))
}

fn resolve(state: &State, asked: &Asked, name: &str, revision: &str, file: &str) -> Result<Answer, Answer> {
    let repo = seen(state, asked, name)?;
    let commit = commit_of(repo, revision)?;
    let content = repo.commits[commit].get(file).ok_or_else(|| {
        Answer::refusal(404, "EntryNotFound", "Entry not found").with("x-repo-commit", commit)
    })?;
    if is_large(file) {
        let (etag, size) = (sha256(content), content.len());
        let to = format!("{}/{etag}?signature=secret", state.storage_url);
        return Ok(Answer::new(302)
            .with("location", &to)
            .with("x-repo-commit", commit)
            .with("x-linked-etag", &format!("\"{etag}\""))
            .with("x-linked-size", &size.to_string()));
    }
    let answer = Answer { body: content.clone(), ..Answer::new(200) };
    Ok(answer.with("x-repo-commit", commit).with("etag", &format!("\"{}\"", git_sha1(content))))
}
