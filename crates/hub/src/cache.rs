//! The cache of Hugging Face's own libraries, shared with them:
//!
//! ```text
//! HUB/.locks/models--org--name/ETAG.lock
//! HUB/models--org--name/refs/main                 the commit that `main` was when it was last asked for
//!                      /blobs/ETAG                a file's content: named by sha256, or by git's sha1 if it is small
//!                      /blobs/ETAG.incomplete     what has arrived of it
//!                      /snapshots/COMMIT/FILE     a relative link to the blob
//!                      /.loratune/COMMIT.json     the list of all files (ours alone)
//! ```

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};

use crate::error::{HubError, Result};
use crate::name::{Kind, check_path, check_revision};

/// One repository's part of the cache.
#[derive(Debug, Clone)]
pub(crate) struct RepoCache {
    folder: PathBuf,
    locks: PathBuf,
}

impl RepoCache {
    pub fn new(cache: &Path, kind: Kind, id: &str) -> RepoCache {
        let name = format!("{}--{}", kind.plural(), id.replace('/', "--"));
        RepoCache { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The commit that a revision was when it was last asked for; a commit is itself.
    pub fn commit_of(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_string());
        }
        check_revision(revision).ok()?;
        let commit = fs::read_to_string(self.folder.join("refs").join(revision)).ok()?;
        let commit = commit.trim().to_string();
        is_commit(&commit).then_some(commit)
    }

    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    pub fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    /// Files of a snapshot that are whole, by their paths in the repository.
    pub fn files(&self, commit: &str) -> Vec<String> {
        let mut found = Vec::new();
        let mut folders = vec![(self.snapshot(commit), String::new())];
        while let Some((folder, prefix)) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let Ok(name) = entry.file_name().into_string() else { continue };
                let name = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
                let path = entry.path();
                // A link whose blob was removed is no file.
                match (path.is_dir(), path.is_file()) {
                    (true, _) => folders.push((path, name)),
                    (_, true) => found.push(name),
                    _ => {}
                }
            }
        }
        found.sort();
        found
    }

    /// Notes which commit a revision is, whole or not at all.
    pub fn write_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit || self.commit_of(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        let path = self.folder.join("refs").join(revision);
        let parent = path.parent().unwrap_or(&self.folder);
        make_dir(parent)?;
        let aside = beside(&path, "tmp");
        fs::write(&aside, commit).map_err(HubError::io("write", &aside))?;
        fs::rename(&aside, &path).map_err(HubError::io("write", &path))
    }

    /// Puts a blob into a snapshot under a file's name: a relative link, or a copy where there are no links.
    pub fn link(&self, etag: &str, commit: &str, file: &str) -> Result<PathBuf> {
        let pointer = self.snapshot(commit).join(file);
        if pointer.is_file() {
            return Ok(pointer);
        }
        make_dir(pointer.parent().unwrap_or(&self.folder))?;
        let depth = file.matches('/').count();
        let target = format!("{}blobs/{etag}", "../".repeat(depth + 2));
        // Aside and renamed, so that a broken link is replaced and nobody sees a gap.
        let aside = beside(&pointer, "link");
        let _ = fs::remove_file(&aside);
        if symlink(Path::new(&target), &aside).is_err() {
            fs::copy(self.blob(etag), &aside).map_err(HubError::io("write", &pointer))?;
        }
        fs::rename(&aside, &pointer).map_err(HubError::io("write", &pointer))?;
        Ok(pointer)
    }

    /// Takes the lock of a blob, which Python's `filelock` takes, too. `waiting` is called once if somebody else has it.
    /// `None` where the file system knows no locks.
    pub fn lock(&self, etag: &str, waiting: impl FnOnce()) -> Result<Option<File>> {
        make_dir(&self.locks)?;
        let path = self.locks.join(format!("{etag}.lock"));
        let options = OpenOptions::new().create(true).truncate(false).write(true).clone();
        let file = options.open(&path).map_err(HubError::io("open the lock", &path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(fs::TryLockError::WouldBlock) => {
                waiting();
                file.lock().map_err(HubError::io("take the lock", &path))?;
                Ok(Some(file))
            }
            Err(fs::TryLockError::Error(_)) => Ok(None),
        }
    }
}

/// A name beside a path that no other process uses.
pub(crate) fn beside(path: &Path, what: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.{what}", std::process::id()));
    path.with_file_name(name)
}

pub(crate) fn make_dir(path: &Path) -> Result<()> {
    fs::create_dir_all(path).map_err(HubError::io("create the folder", path))
}

pub(crate) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// An etag without its quotes, if it can name a file.
pub(crate) fn clean_etag(text: &str) -> Option<String> {
    let etag = text.trim().trim_start_matches("W/").trim_matches('"');
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let fine = !etag.is_empty() && etag.len() <= 128 && etag.chars().all(letters) && !etag.starts_with('.');
    fine.then(|| etag.to_string())
}

/// A path that a server sent, if it stays inside the folder that it is joined to.
pub(crate) fn safe_path(path: &str) -> bool {
    check_path(path).is_ok()
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(not(any(unix, windows)))]
fn symlink(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}
