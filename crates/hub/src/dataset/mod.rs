//! The files of a dataset, by subset and split, found as the `datasets` library finds them: from the `configs` that the
//! repository's README declares, else from the names of files and folders, else from the Parquet files that the hub makes
//! of every dataset it can read.

mod layout;
mod pattern;

use std::path::PathBuf;

use crate::error::{HubError, Result};
use crate::hub::{Hub, Repo};
use crate::name::{Kind, RepoName};
use layout::{Layout, is_data};

/// Where the hub keeps its Parquet files of a dataset.
const CONVERTED: &str = "refs/convert/parquet";
const README: &str = "README.md";

/// Which part of a dataset is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct DatasetPart<'a> {
    /// Its configuration, as `datasets` calls it; the default one if `None`.
    pub subset: Option<&'a str>,
    /// `train` if `None`.
    pub split: Option<&'a str>,
    /// Look only at this folder of the repository (`data_dir`).
    pub folder: Option<&'a str>,
}

/// A dataset's files in the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatasetFiles {
    /// In the order of their rows.
    pub files: Vec<PathBuf>,
    /// The same by their names in the repository.
    pub names: Vec<String>,
    pub commit: String,
}

impl Hub {
    /// Sees to it that the files of one split lie in the cache. With `org/name:path/file.jsonl` it is that one file.
    ///
    /// Files are of any kind that holds rows (`.parquet`, `.arrow`, `.json`, `.jsonl`, `.csv`, `.tsv`, `.txt`, compressed or
    /// not); who reads them says which kinds it reads.
    ///
    /// # Errors
    /// When there is no such dataset, subset or split (with those that there are), or it cannot be had.
    pub fn dataset(&self, name: &RepoName, part: DatasetPart<'_>) -> Result<DatasetFiles> {
        let repo = self.repo(Kind::Dataset, name)?;
        if let Some(file) = &name.file {
            return take(&repo, vec![file.clone()]);
        }
        let names = repo.names();
        let readme = match names.iter().any(|n| n == README) {
            true => repo.fetch(&[README.to_string()])?.pop(),
            false => None,
        };
        let readme = match readme {
            Some(path) => std::fs::read_to_string(&path).map_err(HubError::io("read", &path))?,
            None => String::new(),
        };
        if part.folder.is_none() && !names.iter().any(|n| is_data(n)) && name.revision.is_none() {
            return self.converted(&repo, part);
        }
        let layout = Layout::of(&readme, &names, part.folder);
        let files = layout.files(part).map_err(|what| repo.unsuitable(what))?;
        take(&repo, files)
    }

    /// Of a dataset that is made by a script: what the hub has made of it.
    fn converted(&self, origin: &Repo<'_>, part: DatasetPart<'_>) -> Result<DatasetFiles> {
        let name = RepoName { revision: Some(CONVERTED.into()), ..origin.name.clone() };
        let repo = match self.repo(Kind::Dataset, &name) {
            Ok(repo) => repo,
            Err(HubError::NoRevision { .. }) => {
                let what = "holds no files of rows that are known (.parquet, .jsonl, .json, .csv, .txt, .arrow), and the \
                            hub has made none of it";
                return Err(origin.unsuitable(what.into()));
            }
            Err(e) => return Err(e),
        };
        let layout = Layout::converted(&repo.names());
        let files = layout.files(part).map_err(|what| repo.unsuitable(what))?;
        take(&repo, files)
    }
}

fn take(repo: &Repo<'_>, names: Vec<String>) -> Result<DatasetFiles> {
    let files = repo.fetch(&names)?;
    Ok(DatasetFiles { files, names, commit: repo.commit.clone() })
}
