//! Names of a configuration that are no paths: where their files lie, and what they are called elsewhere.

use std::path::{Path, PathBuf};

use crate::config::RunConfig;

/// A repository whose files lie in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OnHub {
    /// What can be opened: a folder or a GGUF file.
    pub path: PathBuf,
    /// `org/name`, by which others know it.
    pub id: String,
    /// Branch, tag or commit, if one was asked for.
    pub revision: Option<String>,
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
