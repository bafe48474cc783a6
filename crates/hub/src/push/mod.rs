//! Folders to the hub: a repository that is made if it is missing, large files to its storage, and one commit.
//!
//! The protocol is that of Hugging Face's Python library without Xet: `POST /api/repos/create`, `…/preupload/REVISION` (which
//! files are large), git LFS's batch request and uploads, `…/commit/REVISION` (lines of JSON).

mod commit;
mod files;
mod lfs;
mod repo;

use std::path::PathBuf;

use crate::error::{HubError, Result};
use crate::hub::Hub;
use crate::name::check_revision;

pub use files::{folder, is_pushed};

/// What is pushed, and where to.
#[derive(Debug, Clone)]
pub struct Push {
    /// `org/name` (see [`Hub::full_id`]).
    pub repo: String,
    /// Whether a repository that is made for it is private. One that exists stays as it is.
    pub private: bool,
    /// Branch; made if missing. `main` if `None`.
    pub revision: Option<String>,
    /// The commit's first line.
    pub message: String,
    pub files: Vec<Upload>,
}

/// One file of a push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    pub from: PathBuf,
    /// Its path in the repository, with slashes.
    pub to: String,
}

/// What a push came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    pub repo: String,
    /// The page of the repository.
    pub url: String,
    pub commit: String,
    /// Files that were new or changed.
    pub changed: usize,
    /// Files that the repository had already as they are.
    pub unchanged: usize,
    /// Whether others can see it, where the hub says so.
    pub private: Option<bool>,
}

impl Hub {
    /// Sees to it that there is a repository that can be pushed to. What is wrong with the token is found here, before
    /// anything long begins.
    ///
    /// # Errors
    /// Without a token, in offline mode, or when the hub refuses.
    pub fn ensure_repo(&self, push: &Push) -> Result<()> {
        repo::ensure(self, push).map(|_| ())
    }

    /// Pushes files as one commit.
    ///
    /// # Errors
    /// When a file cannot be read or holds the token, without a token, in offline mode, or when the hub refuses. The
    /// repository then has no new commit.
    pub fn push(&self, push: &Push) -> Result<Pushed> {
        let client = self.client();
        if push.files.is_empty() {
            return Err(HubError::Upload { path: PathBuf::from(&push.repo), what: "nothing to push".into() });
        }
        if let Some(revision) = &push.revision {
            let bad = |why: &str| HubError::Name { name: revision.clone(), why: why.into() };
            check_revision(revision).map_err(bad)?;
        }
        files::check(push, self.settings().token.as_ref())?;
        let private = repo::ensure(self, push)?;
        let mut planned = commit::plan(client, push)?;
        lfs::hash(&mut planned, self.settings().parallel)?;
        let unchanged = planned.iter().filter(|f| f.is_unchanged()).count();
        planned.retain(|f| !f.is_unchanged());
        let commit = match planned.is_empty() {
            true => repo::head(client, push)?,
            false => {
                let bytes = planned.iter().map(|f| f.size).sum();
                self.progress().begin(&push.repo, planned.len(), bytes);
                let sent =
                    lfs::upload(self, push, &planned).and_then(|()| commit::send(client, push, &planned));
                self.progress().end();
                sent?
            }
        };
        Ok(Pushed {
            repo: push.repo.clone(),
            url: format!("{}/{}", client.endpoint, push.repo),
            commit,
            changed: planned.len(),
            unchanged,
            private,
        })
    }
}
