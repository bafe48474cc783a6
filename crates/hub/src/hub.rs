//! Repositories by name.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use crate::cache::RepoCache;
use crate::download::Downloads;
use crate::error::{HubError, Result};
use crate::http::Client;
use crate::listing::Listing;
use crate::name::{Kind, RepoName};
use crate::progress::{Progress, Silent};
use crate::select::{self, INDEX, Part, Plan};
use crate::settings::Settings;

/// A hub with its cache.
pub struct Hub {
    settings: Settings,
    progress: Arc<dyn Progress>,
    /// Made when it is first needed: what is on this machine needs no certificates.
    client: OnceLock<Client>,
}

/// What was asked for, as it lies in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetched {
    /// The snapshot's folder, or the one file that was named.
    pub path: PathBuf,
    /// The files that were asked for, in order.
    pub files: Vec<PathBuf>,
    /// The commit that they are of.
    pub commit: String,
}

/// Files of a repository, and what is needed to fetch more of them.
pub(crate) struct Repo<'a> {
    pub hub: &'a Hub,
    pub kind: Kind,
    pub name: &'a RepoName,
    pub cache: RepoCache,
    pub commit: String,
    /// Absent where only the cache can be asked, and it was filled by others.
    listing: Option<Listing>,
    source: Source,
}

/// Where files come from.
enum Source {
    Hub,
    /// The cache alone, because this variable says so.
    Offline(&'static str),
    /// The cache alone, because the hub could not be asked.
    Absent(HubError),
}

impl Hub {
    pub fn new(settings: Settings) -> Hub {
        Hub { settings, progress: Arc::new(Silent), client: OnceLock::new() }
    }

    /// The same with somebody who watches.
    pub fn watched_by(self, progress: Arc<dyn Progress>) -> Hub {
        Hub { progress, ..self }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(crate) fn client(&self) -> &Client {
        self.client.get_or_init(|| Client::new(&self.settings))
    }

    pub(crate) fn progress(&self) -> &dyn Progress {
        &*self.progress
    }

    /// A model's files. Its `path` can be opened as a model: the snapshot's folder, or a GGUF file.
    ///
    /// # Errors
    /// When there is no such repository, revision or file, it holds no model, or it cannot be had.
    pub fn model(&self, name: &RepoName, part: Part) -> Result<Fetched> {
        self.planned(name, |all| select::model(name, all, part))
    }

    /// An adapter's files in PEFT's format.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn adapter(&self, name: &RepoName) -> Result<Fetched> {
        self.planned(name, |all| select::adapter(name, all))
    }

    /// The files of a repository that may be either.
    ///
    /// # Errors
    /// As [`Hub::model`].
    pub fn model_or_adapter(&self, name: &RepoName) -> Result<Fetched> {
        self.planned(name, |all| match all.iter().any(|f| f == "adapter_config.json") {
            true => select::adapter(name, all),
            false => select::model(name, all, Part::Whole),
        })
    }

    fn planned(&self, name: &RepoName, choose: impl Fn(&[String]) -> Result<Plan>) -> Result<Fetched> {
        let repo = self.repo(Kind::Model, name)?;
        let plan = repo.choose(choose)?;
        let mut files = repo.fetch(&plan.files)?;
        let path = match &plan.gguf {
            Some(file) => repo.cache.snapshot(&repo.commit).join(file),
            None => repo.cache.snapshot(&repo.commit),
        };
        if plan.index {
            files.extend(repo.fetch(&select::shards(&path.join(INDEX))?)?);
        }
        Ok(Fetched { path, files, commit: repo.commit })
    }

    /// Looks a repository up: on the hub, or in the cache if the hub may not or cannot be asked.
    pub(crate) fn repo<'a>(&'a self, kind: Kind, name: &'a RepoName) -> Result<Repo<'a>> {
        let cache = RepoCache::new(&self.settings.cache, kind, &name.id);
        if let Some(by) = self.settings.offline {
            return self.cached(cache, kind, name, Source::Offline(by)).ok_or_else(|| HubError::Offline {
                what: format!("{kind} `{name}`"),
                by,
                cache: self.settings.cache.clone(),
            });
        }
        match Listing::fetch(self.client(), kind, name) {
            Ok(listing) => {
                cache.write_ref(name.revision(), &listing.commit)?;
                listing.keep(&cache)?;
                let commit = listing.commit.clone();
                Ok(Repo { hub: self, kind, name, cache, commit, listing: Some(listing), source: Source::Hub })
            }
            Err(e) if e.is_absence() && self.has_cached(&cache, name) => {
                self.progress.note(&format!("{e}; what the cache has of `{name}` is taken"));
                self.cached(cache, kind, name, Source::Absent(e)).ok_or(HubError::Stopped)
            }
            Err(e) => Err(e),
        }
    }

    fn has_cached(&self, cache: &RepoCache, name: &RepoName) -> bool {
        cache.commit_of(name.revision()).is_some_and(|commit| !cache.files(&commit).is_empty())
    }

    /// What the cache knows of a repository.
    fn cached<'a>(
        &'a self,
        cache: RepoCache,
        kind: Kind,
        name: &'a RepoName,
        source: Source,
    ) -> Option<Repo<'a>> {
        let commit = cache.commit_of(name.revision()).filter(|commit| !cache.files(commit).is_empty())?;
        let listing = Listing::kept(&cache, &commit);
        Some(Repo { hub: self, kind, name, cache, commit, listing, source })
    }
}

impl Repo<'_> {
    /// The names of all files that are there, or in the cache.
    pub fn names(&self) -> Vec<String> {
        match &self.listing {
            Some(listing) => listing.names(),
            None => self.cache.files(&self.commit),
        }
    }

    /// Chooses among the files. What is only not in the cache is not said to be absent from the repository.
    pub fn choose<T>(&self, choose: impl Fn(&[String]) -> Result<T>) -> Result<T> {
        choose(&self.names()).map_err(|e| match (&self.listing, &e) {
            (None, HubError::Unsuitable { .. }) => {
                self.lacking(format!("all of {} `{}`", self.kind, self.name))
            }
            _ => e,
        })
    }

    /// The error about a repository that does not hold what was looked for.
    pub fn unsuitable(&self, what: String) -> HubError {
        HubError::Unsuitable { kind: self.kind, repo: self.name.id.clone(), what }
    }

    /// Sees to it that files are in the cache.
    ///
    /// # Errors
    /// When one cannot be had.
    pub fn fetch(&self, files: &[String]) -> Result<Vec<PathBuf>> {
        let snapshot = self.cache.snapshot(&self.commit);
        if let (Source::Hub, Some(listing)) = (&self.source, &self.listing) {
            let downloads = Downloads {
                client: self.hub.client(),
                progress: self.hub.progress(),
                cache: &self.cache,
                kind: self.kind,
                name: self.name,
                commit: &self.commit,
                parallel: self.hub.settings.parallel,
                pause: self.hub.settings.pause,
            };
            return downloads.fetch(listing, files);
        }
        match files.iter().find(|f| !snapshot.join(f).is_file()) {
            Some(file) => Err(self.lacking(format!("{file} of {} `{}`", self.kind, self.name))),
            None => Ok(files.iter().map(|f| snapshot.join(f)).collect()),
        }
    }

    fn lacking(&self, what: String) -> HubError {
        let cache = self.hub.settings.cache.clone();
        match &self.source {
            Source::Offline(by) => HubError::Offline { what, by, cache },
            Source::Absent(e) => HubError::Incomplete { what, cache, why: e.to_string() },
            Source::Hub => HubError::Incomplete { what, cache, why: String::new() },
        }
    }
}
