//! Names that are no paths: models and adapters from the hub.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use loratune_data::{DatasetHub, DatasetSource, HubDataset};
use loratune_hub::{DatasetPart, Fetched, Hub, HubError, Part, RepoName, Settings, Token};
use loratune_model::files::{ModelFiles, peft};
use loratune_train::checkpoint;
use loratune_train::config::RunConfig;
use loratune_train::located::{Located, OnHub, Pin};

use crate::output::{self, Usage};
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
    Access { token, cache: None }.open()
}

/// What a configuration says of the hub, and wins over the environment.
#[derive(Clone, Default)]
struct Access {
    token: Option<Token>,
    /// `cache_dir`.
    cache: Option<PathBuf>,
}

impl Access {
    /// # Errors
    /// If the token cannot be one.
    fn of(config: &RunConfig) -> Result<Access> {
        Ok(Access { token: token(config)?, cache: config.cache_dir.as_ref().map(PathBuf::from) })
    }

    fn open(&self) -> Result<Hub> {
        let mut settings = Settings::from_env()?;
        settings.token = self.token.clone().or(settings.token);
        settings.cache = self.cache.clone().unwrap_or(settings.cache);
        Ok(Hub::new(settings).watched_by(Arc::new(Transfer::new(*QUIET.get().unwrap_or(&false)))))
    }
}

/// Where a model lies that a command line names: the path itself if there is something, else a repository of that name.
///
/// # Errors
/// When there is neither, telling both.
pub fn model(named: &Path) -> Result<PathBuf> {
    let fetch = |hub: &Hub, name: &RepoName| hub.model(name, Part::Whole);
    path(named, find(named, &Asking::default(), "model", || missing_model(named), fetch)?)
}

/// As [`model`], for an adapter.
///
/// # Errors
/// As [`model`].
pub fn adapter(named: &Path) -> Result<PathBuf> {
    let fetch = |hub: &Hub, name: &RepoName| hub.adapter(name);
    path(named, find(named, &Asking::default(), "adapter", || missing_adapter(named), fetch)?)
}

/// As [`model`], for a model or an adapter.
///
/// # Errors
/// As [`model`].
pub fn model_or_adapter(named: &Path) -> Result<PathBuf> {
    let fetch = |hub: &Hub, name: &RepoName| hub.model_or_adapter(name);
    path(named, find(named, &Asking::default(), "model or adapter", || missing_model(named), fetch)?)
}

fn path(named: &Path, found: Option<(Fetched, RepoName)>) -> Result<PathBuf> {
    Ok(found.map_or_else(|| named.to_path_buf(), |(fetched, _)| fetched.path))
}

/// The dataset that a command line names: a path, or the training split of one on the hub.
///
/// # Errors
/// As [`model`], for names; what is wrong with a path is told by whoever reads it.
pub fn dataset(named: &Path) -> Result<DatasetSource> {
    let name = named.to_str().filter(|text| text.contains('/')).and_then(|text| RepoName::parse(text).ok());
    let Some(name) = name.filter(|_| !named.try_exists().unwrap_or(true)) else {
        return Ok(DatasetSource::new(named));
    };
    match open(None)?.dataset(&name, DatasetPart::default()) {
        Ok(found) => {
            Ok(DatasetSource { name: name.to_string(), files: found.files, ..DatasetSource::default() })
        }
        Err(e) if e.is_unknown_name() => {
            let missing = anyhow::anyhow!("{} does not exist", named.display());
            Err(both(missing, "dataset", e))
        }
        Err(e) => Err(e.into()),
    }
}

/// Finds what a run's configuration names.
///
/// # Errors
/// As [`model`].
pub fn locate(config: &RunConfig) -> Result<Located> {
    let part = if config.train_from_scratch { Part::WithoutWeights } else { Part::Whole };
    let pins = checkpoint::pins(config);
    let named = Path::new(&config.model_name_or_path);
    let asking = Asking {
        access: Access::of(config)?,
        revision: config.model_revision.clone(),
        pins: of_key(&pins, "model_name_or_path"),
    };
    let fetch = |hub: &Hub, name: &RepoName| hub.model(name, part);
    let model = find(named, &asking, "model", || missing_model(named), fetch)?.map(on_hub);
    if let (None, Some(revision)) = (&model, &config.model_revision) {
        let what = format!(
            "model_revision is `{revision}`, but {} is a path, which has no revisions",
            named.display()
        );
        return Err(Usage(what).into());
    }
    let adapter = match config.adapter_name_or_path.as_deref().map(Path::new) {
        None => None,
        Some(named) => {
            let asking = Asking { revision: None, pins: of_key(&pins, "adapter_name_or_path"), ..asking };
            let fetch = |hub: &Hub, name: &RepoName| hub.adapter(name);
            find(named, &asking, "adapter", || missing_adapter(named), fetch)?.map(on_hub)
        }
    };
    Ok(Located { model, adapter })
}

fn of_key(pins: &[Pin], key: &str) -> Vec<Pin> {
    pins.iter().filter(|pin| pin.key == key).cloned().collect()
}

fn on_hub((found, name): (Fetched, RepoName)) -> OnHub {
    let pinned = RepoName { revision: Some(found.commit.clone()), ..name.clone() };
    OnHub {
        path: found.path,
        id: name.id.clone(),
        asked: name.to_string(),
        pinned: pinned.to_string(),
        commit: found.commit,
    }
}

/// The token that a configuration gives.
///
/// # Errors
/// If it cannot be one.
pub fn token(config: &RunConfig) -> Result<Option<Token>> {
    let Some(token) = &config.hub_token else { return Ok(None) };
    Token::new(token.reveal(), "hub_token").map_err(|e| Usage(e.to_string()).into())
}

/// Datasets from the hub.
#[derive(Default)]
pub struct Datasets {
    access: Access,
}

impl Datasets {
    /// With the token of a configuration.
    ///
    /// # Errors
    /// If it cannot be one.
    pub fn of(config: &RunConfig) -> Result<Datasets> {
        Ok(Datasets { access: Access::of(config)? })
    }

    fn get(&self, name: &RepoName, part: DatasetPart<'_>) -> Result<Vec<PathBuf>, String> {
        let hub = self.access.open().map_err(|e| output::message(&e))?;
        hub.dataset(name, part).map(|found| found.files).map_err(|e| e.to_string())
    }
}

impl DatasetHub for Datasets {
    fn fetch(&self, wanted: &HubDataset) -> Result<Vec<PathBuf>, String> {
        let name = RepoName::parse(&wanted.repository).map_err(|e| e.to_string())?;
        let HubDataset { subset, split, folder, .. } = wanted;
        let part =
            DatasetPart { subset: subset.as_deref(), split: split.as_deref(), folder: folder.as_deref() };
        self.get(&name, part)
    }

    fn file(&self, repository: &str, name: &str) -> Result<PathBuf, String> {
        let repository = RepoName::parse(repository).map_err(|e| e.to_string())?;
        let name = RepoName { file: Some(name.to_string()), ..repository };
        let mut files = self.get(&name, DatasetPart::default())?;
        files.pop().ok_or_else(|| format!("`{name}` is not there"))
    }
}

/// Who asks the hub, and for which revision.
#[derive(Default)]
struct Asking {
    access: Access,
    revision: Option<String>,
    /// Commits that a run has taken and goes on with.
    pins: Vec<Pin>,
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
    asking: &Asking,
    what: &str,
    missing: impl Fn() -> anyhow::Error,
    fetch: impl Fn(&Hub, &RepoName) -> loratune_hub::Result<Fetched>,
) -> Result<Option<(Fetched, RepoName)>> {
    // What cannot be looked at is left to whoever opens it, who says why.
    if named.try_exists().unwrap_or(true) {
        return Ok(None);
    }
    let Some(name) = named.to_str().and_then(|text| RepoName::parse(text).ok()) else {
        return Err(missing());
    };
    let name = name.at(asking.revision.as_deref()).map_err(|e| Usage(e.to_string()))?;
    let hub = asking.access.open()?;
    if let Some(pin) = asking.pins.iter().find(|pin| pin.asked == name.to_string()) {
        let pinned = RepoName { revision: Some(pin.commit.clone()), ..name.clone() };
        let found = fetch(&hub, &pinned).with_context(|| {
            format!(
                "the run to go on with began on commit {} of `{name}` and can't go on with another",
                pin.commit
            )
        })?;
        return Ok(Some((found, name)));
    }
    match fetch(&hub, &name) {
        Ok(found) => Ok(Some((found, name))),
        Err(e) if e.is_unknown_name() => Err(both(missing(), what, e)),
        Err(e) => Err(e.into()),
    }
}

/// One error for two places at which there is nothing.
fn both(missing: anyhow::Error, what: &str, e: HubError) -> anyhow::Error {
    anyhow::anyhow!("{missing}. Nor was a {what} of that name found on the hub: {e}")
}
