//! What a repository holds at a revision.

use std::fs;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use ureq::http::Method;

use crate::cache::{RepoCache, beside, clean_etag, is_commit, make_dir, safe_path};
use crate::error::{HubError, Result};
use crate::http::{Client, Refusal, Request};
use crate::name::{Kind, RepoName};
use crate::url;

/// A repository at one commit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Listing {
    pub commit: String,
    pub files: Vec<Remote>,
}

/// One of its files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Remote {
    pub path: String,
    /// What the content is named by, and its length, if the listing says so.
    pub content: Option<Content>,
}

/// A file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    pub etag: String,
    pub size: u64,
}

#[derive(Deserialize)]
struct Info {
    sha: Option<String>,
    #[serde(default)]
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Sibling {
    rfilename: String,
    blob_id: Option<String>,
    size: Option<u64>,
    lfs: Option<Lfs>,
}

#[derive(Deserialize)]
struct Lfs {
    sha256: Option<String>,
    size: Option<u64>,
}

impl Listing {
    /// Asks the hub.
    ///
    /// # Errors
    /// When there is no such repository or revision, or no answer.
    pub fn fetch(client: &Client, kind: Kind, name: &RepoName) -> Result<Listing> {
        let (endpoint, id) = (&client.endpoint, &name.id);
        let revision = url::segment(name.revision());
        let address = format!("{endpoint}/api/{}/{id}/revision/{revision}?blobs=true", kind.plural());
        let request = Request::get(address.clone(), format!("looking up {kind} `{id}`"));
        let answer = client.ask(&request, |refusal| explain(client, refusal, kind, name, None))?;
        let bytes = answer
            .into_body()
            .with_config()
            .limit(256 << 20)
            .read_to_vec()
            .map_err(|e| client.unreachable(&request.action, &address, &e))?;
        let info: Info = serde_json::from_slice(&bytes)
            .map_err(|e| HubError::answer(&address, format!("its list of files cannot be read: {e}")))?;
        let commit = info.sha.filter(|sha| is_commit(sha));
        let commit = commit.ok_or_else(|| HubError::answer(&address, "it names no commit"))?;
        let files = info.siblings.into_iter().map(Remote::from).collect::<Vec<_>>();
        if let Some(bad) = files.iter().find(|f| !safe_path(&f.path)) {
            return Err(HubError::answer(&address, format!("it lists the file {:?}", bad.path)));
        }
        Ok(Listing { commit, files })
    }

    /// Leaves the list in the cache, so that without the hub nothing incomplete is taken for the whole.
    pub fn keep(&self, cache: &RepoCache) -> Result<()> {
        let path = kept_path(cache, &self.commit);
        if path.is_file() {
            return Ok(());
        }
        if let Some(folder) = path.parent() {
            make_dir(folder)?;
        }
        let aside = beside(&path, "tmp");
        let json = serde_json::to_vec(self).unwrap_or_default();
        fs::write(&aside, json).map_err(HubError::io("write", &aside))?;
        fs::rename(&aside, &path).map_err(HubError::io("write", &path))
    }

    /// The list that [`Listing::keep`] left.
    pub fn kept(cache: &RepoCache, commit: &str) -> Option<Listing> {
        let listing: Listing = serde_json::from_slice(&fs::read(kept_path(cache, commit)).ok()?).ok()?;
        (listing.commit == commit && listing.files.iter().all(|f| safe_path(&f.path))).then_some(listing)
    }

    pub fn find(&self, path: &str) -> Option<&Remote> {
        self.files.iter().find(|f| f.path == path)
    }

    pub fn names(&self) -> Vec<String> {
        self.files.iter().map(|f| f.path.clone()).collect()
    }
}

fn kept_path(cache: &RepoCache, commit: &str) -> PathBuf {
    cache.folder().join(".loratune").join(format!("{commit}.json"))
}

impl From<Sibling> for Remote {
    fn from(s: Sibling) -> Remote {
        let (etag, size) = match s.lfs {
            Some(lfs) => (lfs.sha256, lfs.size.or(s.size)),
            None => (s.blob_id, s.size),
        };
        let content = etag.and_then(|e| clean_etag(&e)).zip(size).map(|(etag, size)| Content { etag, size });
        Remote { path: s.rfilename, content }
    }
}

/// Where a file of a repository is downloaded from.
pub(crate) fn file_url(client: &Client, kind: Kind, id: &str, commit: &str, file: &str) -> String {
    let (endpoint, prefix) = (&client.endpoint, kind.prefix());
    format!("{endpoint}/{prefix}{id}/resolve/{}/{}", url::segment(commit), url::path(file))
}

/// What a listing without contents does not say: asks for the file's head, whose redirect off the hub has the answers.
pub(crate) fn head(
    client: &Client,
    kind: Kind,
    name: &RepoName,
    commit: &str,
    file: &str,
) -> Result<Content> {
    let address = file_url(client, kind, &name.id, commit, file);
    let mut request = Request::get(address.clone(), format!("looking up {file} of `{}`", name.id));
    request.method = Method::HEAD;
    request.headers.push(("accept-encoding", "identity".into()));
    let answer = client.ask(&request, |refusal| explain(client, refusal, kind, name, Some(file)))?;
    let header = |name: &str| answer.headers().get(name).and_then(|v| v.to_str().ok());
    let etag = header("x-linked-etag").or(header("etag")).and_then(clean_etag);
    let size = header("x-linked-size").or(header("content-length")).and_then(|v| v.parse().ok());
    match etag.zip(size) {
        Some((etag, size)) => Ok(Content { etag, size }),
        None => Err(HubError::answer(&address, "it tells neither an ETag nor a length of the file")),
    }
}

/// The hub's refusals in words. It answers 401 for a repository that is not there, unless the token may know.
pub(crate) fn explain(
    client: &Client,
    refusal: &Refusal,
    kind: Kind,
    name: &RepoName,
    file: Option<&str>,
) -> Option<HubError> {
    let (repo, revision) = (name.id.clone(), name.revision().to_string());
    let (endpoint, had_token) = (client.endpoint.clone(), client.has_token());
    match (refusal.status, refusal.code.as_str()) {
        (_, "GatedRepo") => Some(HubError::Gated { endpoint, kind, repo, had_token }),
        (404, "RevisionNotFound") => Some(HubError::NoRevision { kind, repo, revision }),
        (404, "EntryNotFound") => {
            Some(HubError::NoFile { kind, repo, revision, file: file.unwrap_or_default().to_string() })
        }
        // With a token the hub says 404 for what the token may not see, and 401 for the token itself.
        (401, _) if had_token => None,
        (401, _) | (404, "RepoNotFound") => Some(HubError::NoRepo { endpoint, kind, repo, had_token }),
        (404, _) => Some(match file {
            Some(file) => HubError::NoFile { kind, repo, revision, file: file.to_string() },
            None => HubError::NoRepo { endpoint, kind, repo, had_token },
        }),
        _ => None,
    }
}
