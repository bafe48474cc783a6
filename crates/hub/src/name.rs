//! Names of repositories: `org/name`, `org/name@revision`, `org/name:file.gguf`.

use std::fmt;

use crate::error::{HubError, Result};

/// What a repository holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Model,
    Dataset,
}

impl Kind {
    /// The word in paths of the API and in the cache: `models`, `datasets`.
    pub fn plural(self) -> &'static str {
        match self {
            Kind::Model => "models",
            Kind::Dataset => "datasets",
        }
    }

    /// What stands before a repository's id in addresses that are not the API's.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Kind::Model => "",
            Kind::Dataset => "datasets/",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Model => "model",
            Kind::Dataset => "dataset",
        })
    }
}

/// The branch that is meant where none is named.
pub const MAIN: &str = "main";

/// A repository, at a revision, and perhaps one GGUF file of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RepoName {
    /// `org/name`, or `name` alone.
    pub id: String,
    /// Branch, tag or commit; `main` if `None`.
    pub revision: Option<String>,
    /// What follows a colon: a file's name, or a quantisation such as `Q8_0`.
    pub file: Option<String>,
}

impl RepoName {
    /// Reads `[hf.co/]org/name[@revision][:file]`.
    ///
    /// # Errors
    /// When the text breaks the hub's rules for names; a path usually does.
    pub fn parse(text: &str) -> Result<RepoName> {
        let bad = |why: &str| HubError::Name { name: text.to_string(), why: why.to_string() };
        let mut rest = text;
        for prefix in ["https://huggingface.co/", "https://hf.co/", "huggingface.co/", "hf.co/", "hf://"] {
            rest = rest.strip_prefix(prefix).unwrap_or(rest);
        }
        let (rest, file) = match rest.split_once(':') {
            Some((_, "")) => return Err(bad("nothing follows the colon")),
            Some((rest, file)) => (rest, Some(file)),
            None => (rest, None),
        };
        let (id, revision) = match rest.split_once('@') {
            Some((_, "")) => return Err(bad("nothing follows the @")),
            Some((id, revision)) => (id, Some(revision)),
            None => (rest, None),
        };
        check_id(id).map_err(bad)?;
        if let Some(revision) = revision {
            check_revision(revision).map_err(bad)?;
        }
        if let Some(file) = file {
            check_path(file).map_err(bad)?;
        }
        Ok(RepoName {
            id: id.to_string(),
            revision: revision.map(str::to_string),
            file: file.map(str::to_string),
        })
    }

    /// The same at another revision; one that the name itself gives may only be repeated.
    ///
    /// # Errors
    /// If the two differ, or the revision is not one.
    pub fn at(mut self, revision: Option<&str>) -> Result<RepoName> {
        let Some(revision) = revision else { return Ok(self) };
        let bad = |why: String| HubError::Name { name: self.to_string(), why };
        check_revision(revision).map_err(|why| bad(why.to_string()))?;
        match &self.revision {
            Some(own) if own != revision => {
                Err(bad(format!("it names the revision `{own}`, and model_revision says `{revision}`")))
            }
            _ => {
                self.revision = Some(revision.to_string());
                Ok(self)
            }
        }
    }

    /// The revision, `main` where none is named.
    pub fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or(MAIN)
    }
}

impl fmt::Display for RepoName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        if let Some(file) = &self.file {
            write!(f, ":{file}")?;
        }
        Ok(())
    }
}

/// Endings of files that people name by path; a repository is hardly called so.
const FILE_ENDINGS: [&str; 10] =
    [".gguf", ".safetensors", ".bin", ".json", ".jsonl", ".yaml", ".yml", ".csv", ".parquet", ".txt"];

/// The hub's rules: one or two parts of letters, digits, `-`, `_`, `.`, at most 96 characters each.
pub(crate) fn check_id(id: &str) -> Result<(), &'static str> {
    let parts: Vec<&str> = id.split('/').collect();
    if parts.len() > 2 {
        return Err("names are `org/name` or `name`, with one slash at most");
    }
    for part in parts {
        let letters = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if part.is_empty() || part.len() > 96 || !part.chars().all(letters) {
            return Err("each part of a name is made of 1 to 96 letters, digits, `-`, `_` and `.`");
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            return Err("no part of a name begins or ends with `-` or `.`");
        }
    }
    if id.contains("--") || id.contains("..") || id.ends_with(".git") {
        return Err("names hold no `--` or `..` and do not end in `.git`");
    }
    if FILE_ENDINGS.iter().any(|ending| id.to_ascii_lowercase().ends_with(ending)) {
        return Err("it ends as a file does (a file of a repository is written `org/name:file.gguf`)");
    }
    Ok(())
}

/// Branches, tags, `refs/pr/1`, commits: what git allows and a path can hold.
pub(crate) fn check_revision(revision: &str) -> Result<(), &'static str> {
    let letters = |c: char| c.is_ascii_alphanumeric() || "-_./+".contains(c);
    let fine = !revision.is_empty()
        && revision.len() <= 200
        && revision.chars().all(letters)
        && revision.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && !part.ends_with('.'))
        && !revision.contains("..");
    if fine { Ok(()) } else { Err("a revision is a branch, a tag or a commit") }
}

/// A file's path inside a repository, safe to be joined to a folder here.
pub(crate) fn check_path(path: &str) -> Result<(), &'static str> {
    let part = |p: &str| !p.is_empty() && p != "." && p != ".." && !p.contains(['\\', '\0', ':']);
    if path.split('/').all(part) { Ok(()) } else { Err("it does not name a file inside a repository") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_revisions_and_files_are_read() {
        let all = RepoName::parse("hf.co/org/name@refs/pr/1:sub/x.gguf").unwrap();
        let expected = RepoName {
            id: "org/name".into(),
            revision: Some("refs/pr/1".into()),
            file: Some("sub/x.gguf".into()),
        };
        assert_eq!(all, expected);
        assert_eq!(all.to_string(), "org/name@refs/pr/1:sub/x.gguf");
        assert_eq!(RepoName::parse("gpt2").unwrap().revision(), "main");
        let at = RepoName::parse("a/b").unwrap().at(Some("v1")).unwrap();
        assert_eq!(at.to_string(), "a/b@v1");
        assert!(RepoName::parse("a/b@v2").unwrap().at(Some("v1")).is_err());
    }

    #[test]
    fn paths_are_not_names() {
        for path in [
            "./model",
            "/models/x",
            "a/b/c",
            "../x",
            "models/x.gguf",
            "data/train.jsonl",
            "C:\\x",
            "~/x",
            "",
            "a//b",
            "a/b/",
            "a/..",
            "a/b@",
            "a/b:",
            "a/b:../x",
            "a/b@../x",
            "org/x--y",
            "org/na me",
            "org/x.git",
        ] {
            assert!(RepoName::parse(path).is_err(), "{path}");
        }
    }
}
