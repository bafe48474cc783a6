//! "Did you mean …" for paths and names.

use std::path::Path;

use super::{Error, Result};

/// Names nearer than this are worth offering (Jaro-Winkler, 1 is equal).
const NEAR: f64 = 0.75;

/// Up to three of `candidates` that resemble `name`, the best first.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let lower = name.to_lowercase();
    let mut scored: Vec<_> = candidates
        .into_iter()
        .map(|c| (strsim::jaro_winkler(&lower, &c.to_lowercase()), c))
        .filter(|(score, _)| *score >= NEAR)
        .collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.into_iter().take(3).map(|(_, c)| c).collect()
}

/// Fails with near names when there is nothing at `path`.
pub(crate) fn must_exist(path: &Path) -> Result<()> {
    match path.try_exists() {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(Error::NotFound { path: path.to_owned(), suggestion: near_paths(path).unwrap_or_default() })
        }
        Err(source) => Err(Error::io("look at", path, source)),
    }
}

/// Text to go after "PATH does not exist".
fn near_paths(path: &Path) -> Option<String> {
    let mut missing = path;
    // Climb to the first folder that exists: the wrong part of the path is what stands right below it.
    let parent = loop {
        let parent = missing.parent()?;
        let folder = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        if folder.is_dir() {
            break folder;
        }
        missing = parent;
    };
    let wrong = missing.file_name()?.to_str()?;
    let names: Vec<String> =
        std::fs::read_dir(parent).ok()?.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    let near = nearest(wrong, names.iter().map(String::as_str));
    let shown =
        if parent == Path::new(".") { "the current folder".to_owned() } else { parent.display().to_string() };
    Some(if near.is_empty() {
        format!(": {shown} has no `{wrong}`")
    } else {
        format!(": {shown} has no `{wrong}`; did you mean `{}`?", near.join("`, `"))
    })
}
