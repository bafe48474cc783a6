//! Names that are no paths: models and adapters from the hub.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::Result;
use loratune_hub::{Fetched, Hub, HubError, Part, RepoName, Settings, Token};
use loratune_model::files::{ModelFiles, peft};
use loratune_train::config::RunConfig;
use loratune_train::located::{Located, OnHub};

use crate::transfer::Transfer;

static QUIET: OnceLock<bool> = OnceLock::new();

/// Whether downloads are shown; to be said once, before anything is looked for.
pub fn set_quiet(quiet: bool) {
    let _ = QUIET.set(quiet);
}

/// The hub of this machine's environment; `token` wins over the environment's.
///
/// # Errors
/// When an environment variable or the token has a value that cannot be used.
pub fn open(token: Option<Token>) -> Result<Hub> {
    let mut settings = Settings::from_env()?;
    settings.token = token.or(settings.token);
    Ok(Hub::new(settings).watched_by(Arc::new(Transfer::new(*QUIET.get().unwrap_or(&false)))))
}

/// Where a model lies that a command line names: the path itself if there is something, else a repository of that name.
///
/// # Errors
/// When there is neither, telling both.
pub fn model(named: &Path) -> Result<PathBuf> {
    let fetch = |hub: &Hub, name: &RepoName| hub.model(name, Part::Whole);
    Ok(find(named, "model", || missing_model(named), fetch)?.map_or_else(|| named.to_path_buf(), |f| f.path))
}

/// As [`model`], for an adapter.
///
/// # Errors
/// As [`model`].
pub fn adapter(named: &Path) -> Result<PathBuf> {
    let found = find(named, "adapter", || missing_adapter(named), |hub, name| hub.adapter(name))?;
    Ok(found.map_or_else(|| named.to_path_buf(), |f| f.path))
}

/// As [`model`], for a model or an adapter.
///
/// # Errors
/// As [`model`].
pub fn model_or_adapter(named: &Path) -> Result<PathBuf> {
    let found =
        find(named, "model or adapter", || missing_model(named), |hub, name| hub.model_or_adapter(name))?;
    Ok(found.map_or_else(|| named.to_path_buf(), |f| f.path))
}

/// Finds what a run's configuration names.
///
/// # Errors
/// As [`model`].
pub fn locate(config: &RunConfig) -> Result<Located> {
    let part = if config.train_from_scratch { Part::WithoutWeights } else { Part::Whole };
    let named = Path::new(&config.model_name_or_path);
    let base = |hub: &Hub, name: &RepoName| hub.model(name, part);
    let on_hub = |named: &Path, found: Option<Fetched>| -> Result<Option<OnHub>> {
        let Some(found) = found else { return Ok(None) };
        let name = RepoName::parse(&named.to_string_lossy())?;
        Ok(Some(OnHub { path: found.path, id: name.id, revision: name.revision }))
    };
    let mut located = Located {
        model: on_hub(named, find(named, "model", || missing_model(named), base)?)?,
        adapter: None,
    };
    if let Some(named) = config.adapter_name_or_path.as_deref().map(Path::new) {
        let found = find(named, "adapter", || missing_adapter(named), |hub, name| hub.adapter(name))?;
        located.adapter = on_hub(named, found)?;
    }
    Ok(located)
}

fn missing_model(path: &Path) -> anyhow::Error {
    ModelFiles::open(path).err().map_or_else(|| anyhow::anyhow!("{}", path.display()), Into::into)
}

fn missing_adapter(path: &Path) -> anyhow::Error {
    peft::read_adapter(path).err().map_or_else(|| anyhow::anyhow!("{}", path.display()), Into::into)
}

/// What a name stands for on the hub; `None` if there is something at it as a path.
fn find(
    named: &Path,
    what: &str,
    missing: impl Fn() -> anyhow::Error,
    fetch: impl Fn(&Hub, &RepoName) -> loratune_hub::Result<Fetched>,
) -> Result<Option<Fetched>> {
    // What cannot be looked at is left to whoever opens it, who says why.
    if named.try_exists().unwrap_or(true) {
        return Ok(None);
    }
    let Some(name) = named.to_str().and_then(|text| RepoName::parse(text).ok()) else {
        return Err(missing());
    };
    match fetch(&open(None)?, &name) {
        Ok(found) => Ok(Some(found)),
        Err(e) if e.is_unknown_name() => Err(both(missing(), what, e)),
        Err(e) => Err(e.into()),
    }
}

/// One error for two places at which there is nothing.
fn both(missing: anyhow::Error, what: &str, e: HubError) -> anyhow::Error {
    anyhow::anyhow!("{missing}. Nor was a {what} of that name found on the hub: {e}")
}
