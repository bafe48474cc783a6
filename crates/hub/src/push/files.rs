//! Which files of a folder are pushed.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Push, Upload};
use crate::error::{HubError, Result};
use crate::name::check_path;
use crate::token::Token;

/// Files up to this size are searched for the token. Weights are larger, and nobody writes tokens there.
const SEARCHED: u64 = 4 << 20;

/// Whether a file or folder of a result belongs to what is pushed: not checkpoints, nor what is hidden or half-written.
pub fn is_pushed(name: &str) -> bool {
    let checkpoint = name
        .strip_prefix("checkpoint-")
        .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    !(checkpoint || name.starts_with('.') || name == "__pycache__" || name.contains(".loratune-"))
}

/// The files of a folder, in the order of their paths, under `prefix` in the repository.
///
/// # Errors
/// When the folder or a file in it cannot be read.
pub fn folder(root: &Path, prefix: &str) -> Result<Vec<Upload>> {
    let mut found = Vec::new();
    let mut folders: Vec<(PathBuf, String)> =
        vec![(root.to_path_buf(), prefix.trim_matches('/').to_string())];
    while let Some((folder, prefix)) = folders.pop() {
        let entries = fs::read_dir(&folder).map_err(HubError::io("read the folder", &folder))?;
        for entry in entries {
            let path = entry.map_err(HubError::io("read the folder", &folder))?.path();
            let name = path.file_name().and_then(|n| n.to_str()).map(str::to_string);
            let Some(name) = name else {
                let what = "its name is not UTF-8, which the hub needs; rename it".into();
                return Err(HubError::Upload { path, what });
            };
            if !is_pushed(&name) {
                continue;
            }
            let to = if prefix.is_empty() { name } else { format!("{prefix}/{name}") };
            // A link to a file is pushed as the file; a link to a folder could lead anywhere.
            let is_link = path.symlink_metadata().map_err(HubError::io("read", &path))?.is_symlink();
            match fs::metadata(&path) {
                Ok(m) if m.is_dir() && !is_link => folders.push((path, to)),
                Ok(m) if m.is_file() => found.push(Upload { from: path, to }),
                Ok(_) => {}
                Err(source) => return Err(HubError::Io { action: "read", path, source }),
            }
        }
    }
    found.sort_by(|a, b| a.to.cmp(&b.to));
    Ok(found)
}

/// Paths that the repository can hold, and no token in any small file.
pub(super) fn check(push: &Push, token: Option<&Token>) -> Result<()> {
    for Upload { from, to } in &push.files {
        let bad = |what: String| HubError::Upload { path: from.clone(), what };
        check_path(to).map_err(|_| bad(format!("it cannot be called {to:?} in a repository")))?;
        let size = fs::metadata(from).map_err(HubError::io("read", from))?.len();
        if let Some(token) = token.filter(|_| size <= SEARCHED) {
            let content = fs::read(from).map_err(HubError::io("read", from))?;
            if token.is_in(&content) {
                return Err(bad("it holds your token, and whoever may read the repository would have it; nothing was pushed. \
                                Take it out, and better make a new token"
                    .into()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_pushed_and_checkpoints_are_not() {
        let dir = tempfile::tempdir().unwrap();
        for file in [
            "README.md",
            "runs/events",
            "checkpoint-10/x",
            "checkpoint-last/x",
            ".loratune.lock",
            ".git/config",
            "checkpoint-20.loratune-tmp/x",
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let names = |prefix: &str| -> Vec<String> {
            folder(dir.path(), prefix).unwrap().into_iter().map(|u| u.to).collect()
        };
        assert_eq!(names(""), ["README.md", "checkpoint-last/x", "runs/events"]);
        assert_eq!(names("sub")[0], "sub/README.md");
    }
}
