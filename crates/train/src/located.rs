//! Names of a configuration that are no paths: where their files lie, and what they are called elsewhere.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::config::RunConfig;

/// A repository whose files lie in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnHub {
    /// What can be opened: a folder or a GGUF file.
    pub path: PathBuf,
    /// `org/name`, by which others know it.
    pub id: String,
    /// What was asked for: its name, with a revision and a file where the configuration gives them.
    pub asked: String,
    /// The same name at the commit that was found.
    pub pinned: String,
    pub commit: String,
}

/// The commit that a run took of a repository; it goes on with no other.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// The key that names it.
    pub key: String,
    /// As [`OnHub::asked`].
    pub asked: String,
    pub commit: String,
}

/// Where what a configuration names lies. What is absent here is a path, as it stands in the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Located {
    /// `model_name_or_path`.
    pub model: Option<OnHub>,
    /// `adapter_name_or_path`.
    pub adapter: Option<OnHub>,
}

impl Located {
    const MODEL: &'static str = "model_name_or_path";
    const ADAPTER: &'static str = "adapter_name_or_path";

    /// The commits of what lies on the hub.
    pub(crate) fn pins(&self) -> Vec<Pin> {
        let of = |key: &str, found: &Option<OnHub>| {
            let found = found.as_ref()?;
            Some(Pin { key: key.into(), asked: found.asked.clone(), commit: found.commit.clone() })
        };
        [of(Self::MODEL, &self.model), of(Self::ADAPTER, &self.adapter)].into_iter().flatten().collect()
    }

    /// Names the commits in the configuration, so that what is written of it leads to the same files.
    pub(crate) fn pin(&self, config: &mut RunConfig) {
        if let Some(model) = &self.model {
            config.model_name_or_path = model.pinned.clone();
            config.model_revision = None;
        }
        if let Some(adapter) = &self.adapter {
            config.adapter_name_or_path = Some(adapter.pinned.clone());
        }
    }

    pub(crate) fn model_path<'a>(&'a self, config: &'a RunConfig) -> &'a Path {
        self.model.as_ref().map_or(Path::new(&config.model_name_or_path), |m| &m.path)
    }

    pub(crate) fn adapter_path<'a>(&'a self, config: &'a RunConfig) -> Option<&'a Path> {
        match (&self.adapter, &config.adapter_name_or_path) {
            (Some(adapter), _) => Some(&adapter.path),
            (None, named) => named.as_deref().map(Path::new),
        }
    }
}
