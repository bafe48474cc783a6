//! From the name of a dataset to its files.

use std::path::{Path, PathBuf};

use crate::error::{DataError, Result, nearest};
use crate::info::{DatasetInfo, Entry, INDEX, Location};
use crate::read::DatasetSource;

/// A dataset of the Hugging Face hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HubDataset {
    /// `owner/name`, with `@revision` if one was asked for.
    pub repository: String,
    /// Name of a configuration.
    pub subset: Option<String>,
    /// `train` when absent.
    pub split: Option<String>,
    /// Folder inside of the repository.
    pub folder: Option<String>,
}

/// What fetches datasets from the hub.
pub trait DatasetHub: Sync {
    /// The dataset's files on this machine, in order.
    ///
    /// # Errors
    /// Why they could not be had, as one sentence for the user.
    fn fetch(&self, wanted: &HubDataset) -> Result<Vec<PathBuf>, String>;

    /// One file of a dataset's repository.
    ///
    /// # Errors
    /// As [`Self::fetch`].
    fn file(&self, repository: &str, name: &str) -> Result<PathBuf, String>;
}

/// `dataset_dir` that makes every name one of the hub's.
const ONLINE: &str = "ONLINE";
/// Before the repository whose `dataset_info.json` is to be used.
const REMOTE: &str = "REMOTE:";

/// Datasets that later versions of LLaMA-Factory's index call otherwise.
const RENAMED: [(&str, &str); 1] = [("glaive_toolcall", "glaive_toolcall_en")];

/// Where datasets are looked for.
pub struct Finder<'a> {
    dataset_dir: String,
    info: Option<DatasetInfo>,
    hub: Option<&'a dyn DatasetHub>,
    notes: Vec<String>,
}

impl<'a> Finder<'a> {
    /// Looks in a `dataset_dir` (a folder, `ONLINE`, or `REMOTE:owner/name`), and on the hub if there is one.
    ///
    /// # Errors
    /// A `dataset_info.json` that is no JSON object, or that cannot be had.
    pub fn new(dataset_dir: &str, hub: Option<&'a dyn DatasetHub>) -> Result<Self> {
        let info = match dataset_dir.strip_prefix(REMOTE) {
            Some(repository) => {
                let asked = HubDataset { repository: repository.into(), ..HubDataset::default() };
                let path = reach(hub, &asked)?.file(repository, INDEX);
                let path = path.map_err(|message| unreachable(&asked, message))?;
                let folder = path.parent().unwrap_or(Path::new("."));
                DatasetInfo::read(folder)?
            }
            None if dataset_dir == ONLINE => None,
            None => DatasetInfo::read(Path::new(dataset_dir))?,
        };
        Ok(Self { dataset_dir: dataset_dir.into(), info, hub, notes: Vec::new() })
    }

    /// What should be said of the names that were found.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Finds a dataset: an entry of `dataset_info.json`, a path, a file of that name in `dataset_dir` (its ending may be
    /// left out), or `owner/name` on the hub, with `#split` or `#subset:split` behind it if not its training split is meant.
    ///
    /// # Errors
    /// Nothing of that name, an entry that cannot be used, or a hub that does not give it.
    pub fn find(&mut self, name: &str) -> Result<DatasetSource> {
        if self.dataset_dir == ONLINE {
            return self.online(name);
        }
        if let Some(source) = self.entry(name)? {
            return Ok(source);
        }
        let path = self.locate(name);
        if path.exists() {
            return Ok(DatasetSource { name: name.into(), ..DatasetSource::new(path) });
        }
        let (place, part) = parted(name);
        if let Some(part) = part
            && Path::new(place).is_dir()
        {
            let split = part.rsplit(':').next().map(str::to_string);
            return Ok(DatasetSource { name: name.into(), split, ..DatasetSource::new(place) });
        }
        if let Some((_, new)) = RENAMED.iter().find(|(old, _)| *old == name)
            && let Some(source) = self.entry(new)?
        {
            self.notes.push(format!(
                "the dataset `{name}` is now called `{new}` in {INDEX}, and that is what is read"
            ));
            return Ok(source);
        }
        if self.hub.is_some() && is_repository(name) {
            return self.online(name).map_err(|e| self.nowhere(e));
        }
        Err(self.unknown(name))
    }

    /// The path that a name without an entry stands for.
    pub fn locate(&self, name: &str) -> PathBuf {
        let direct = PathBuf::from(name);
        if direct.exists() {
            return direct;
        }
        let folder = Path::new(&self.dataset_dir);
        let endings =
            ["", ".jsonl", ".json", ".csv", ".parquet", ".arrow", ".txt", ".jsonl.gz", ".json.gz", ".csv.gz"];
        let candidates = endings.map(|ending| folder.join(format!("{name}{ending}")));
        candidates.into_iter().find(|p| p.exists()).unwrap_or(direct)
    }

    fn entry(&self, name: &str) -> Result<Option<DatasetSource>> {
        let Some(Entry { location, subset, split, folder, num_samples, attributes }) =
            self.info.as_ref().map(|i| i.entry(name)).transpose()?.flatten()
        else {
            return Ok(None);
        };
        let source = DatasetSource {
            name: name.into(),
            num_samples,
            split: split.clone(),
            attributes: Some(attributes),
            ..DatasetSource::default()
        };
        Ok(Some(match location {
            Location::File(file) => DatasetSource { path: Path::new(&self.dataset_dir).join(file), ..source },
            Location::Hub(repository) => {
                let wanted = HubDataset { repository, subset, split, folder };
                DatasetSource { files: fetch(self.hub, &wanted)?, ..source }
            }
        }))
    }

    fn online(&self, name: &str) -> Result<DatasetSource> {
        let (repository, part) = parted(name);
        let (subset, split) = match part.map(|part| part.split_once(':').ok_or(part)) {
            None => (None, None),
            Some(Ok((subset, split))) => (Some(subset.to_string()), Some(split.to_string())),
            Some(Err(split)) => (None, Some(split.to_string())),
        };
        let wanted = HubDataset { repository: repository.into(), subset, split, folder: None };
        let files = fetch(self.hub, &wanted)?;
        Ok(DatasetSource { name: name.into(), files, ..DatasetSource::default() })
    }

    /// The hub's error about a name that was looked for here first.
    fn nowhere(&self, e: DataError) -> DataError {
        match e {
            DataError::Hub { repository, message } => {
                let here = format!("there is no such path, here or in {}", self.dataset_dir);
                DataError::Hub { repository, message: format!("{message} ({here})") }
            }
            other => other,
        }
    }

    fn unknown(&self, name: &str) -> DataError {
        let mut hint = String::new();
        if let Some(info) = &self.info {
            hint = match nearest(name, info.names()) {
                Some(near) => format!("; did you mean `{near}`?"),
                None => String::new(),
            };
        }
        if hint.is_empty() {
            let files =
                std::fs::read_dir(&self.dataset_dir).into_iter().flatten().flatten().map(|e| e.path());
            let names: Vec<String> = files
                .filter(|path| path.is_dir() || crate::read::is_data_file(path))
                .filter_map(|path| Some(path.file_stem()?.to_string_lossy().into_owned()))
                .collect();
            if let Some(near) = nearest(name, names.iter().map(String::as_str)) {
                hint = format!("; did you mean `{near}`?");
            }
        }
        if hint.is_empty() && Path::new(name).components().count() > 1 {
            // A path: reading it says what is there instead.
            if let Err(e @ DataError::Missing { .. }) = DatasetSource::new(name).resolve() {
                return e;
            }
        }
        DataError::UnknownDataset { name: name.into(), dataset_dir: self.dataset_dir.clone(), hint }
    }
}

/// A name, and which part of it is meant.
fn parted(name: &str) -> (&str, Option<&str>) {
    name.split_once('#').map_or((name, None), |(name, part)| (name, Some(part).filter(|p| !p.is_empty())))
}

/// `owner/name`, and no path's ending.
fn is_repository(name: &str) -> bool {
    let (name, _) = parted(name);
    let (name, _) = name.split_once('@').unwrap_or((name, ""));
    let good = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c))
    };
    let is_file = crate::read::is_data_file(Path::new(name));
    name.split_once('/').is_some_and(|(owner, name)| good(owner) && good(name)) && !is_file
}

fn reach<'h>(hub: Option<&'h dyn DatasetHub>, wanted: &HubDataset) -> Result<&'h dyn DatasetHub> {
    hub.ok_or_else(|| {
        unreachable(
            wanted,
            "this build cannot fetch datasets; download it and name its folder or files instead".into(),
        )
    })
}

fn fetch(hub: Option<&dyn DatasetHub>, wanted: &HubDataset) -> Result<Vec<PathBuf>> {
    let files = reach(hub, wanted)?.fetch(wanted).map_err(|message| unreachable(wanted, message))?;
    if files.is_empty() {
        return Err(unreachable(wanted, "it has no files of that subset and split that can be read".into()));
    }
    Ok(files)
}

fn unreachable(wanted: &HubDataset, message: String) -> DataError {
    DataError::Hub { repository: wanted.repository.clone(), message }
}
