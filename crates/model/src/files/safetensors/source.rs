//! Tensors of one safetensors file or of the shards that an index names.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Component, Path};

use serde::Deserialize;

use super::super::mapped::MappedFile;
use super::super::suggest::nearest;
use super::super::unique::Pairs;
use super::super::{Error, RawTensor, Result, TensorInfo, TensorSource};
use super::header::{self, Entry};

/// One or many mapped safetensors files as one set of tensors.
#[derive(Debug)]
pub struct SafetensorsSource {
    files: Vec<MappedFile>,
    /// Where each tensor is: index into `files`, and its entry there.
    tensors: BTreeMap<String, (usize, Entry)>,
}

#[derive(Deserialize)]
struct Index {
    weight_map: Pairs<String>,
}

impl SafetensorsSource {
    /// Opens one file and checks its header.
    ///
    /// # Errors
    /// When the file cannot be read or contradicts itself in any way.
    pub fn open_file(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let entries = header::parse(path, file.bytes())?;
        let tensors = entries.into_iter().map(|e| (e.name.clone(), (0, e))).collect();
        Ok(SafetensorsSource { files: vec![file], tensors })
    }

    /// Opens the shards that a `model.safetensors.index.json` names, which lie beside it.
    ///
    /// # Errors
    /// When the index is broken, a shard is missing or broken, or a tensor is not in the shard that should hold it.
    pub fn open_index(path: &Path) -> Result<Self> {
        let text = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let index: Index = serde_json::from_slice(&text)
            .map_err(|e| Error::damaged(path, format!("it is not an index of safetensors files: {e}")))?;
        if let Some(name) = index.weight_map.duplicate() {
            return Err(Error::damaged(path, format!("it names the tensor `{name}` twice")));
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let mut source = SafetensorsSource { files: Vec::new(), tensors: BTreeMap::new() };
        let mut opened: BTreeMap<&str, (usize, BTreeMap<String, Entry>)> = BTreeMap::new();
        for (name, shard) in &index.weight_map.0 {
            if !opened.contains_key(shard.as_str()) {
                let (file, entries) = open_shard(path, folder, shard)?;
                opened.insert(shard, (source.files.len(), entries));
                source.files.push(file);
            }
            let entry =
                opened.get_mut(shard.as_str()).and_then(|(n, entries)| Some((*n, entries.remove(name)?)));
            let Some(entry) = entry else {
                let detail =
                    format!("should be in {shard}, but is not; download the shards and the index again");
                return Err(Error::tensor(path, name, detail));
            };
            source.tensors.insert(name.clone(), entry);
        }
        Ok(source)
    }
}

fn open_shard(index: &Path, folder: &Path, shard: &str) -> Result<(MappedFile, BTreeMap<String, Entry>)> {
    // A name that leads out of the folder is not a shard but an attack.
    let mut parts = Path::new(shard).components();
    if !matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None)) {
        return Err(Error::damaged(
            index,
            format!("it names the shard `{shard}`, which is not a plain file name"),
        ));
    }
    let path = folder.join(shard);
    if !path.exists() {
        let detail = format!("the shard {shard} that it names is missing");
        return Err(Error::damaged(index, detail));
    }
    let file = MappedFile::open(&path)?;
    let entries = header::parse(&path, file.bytes())?;
    Ok((file, entries.into_iter().map(|e| (e.name.clone(), e)).collect()))
}

impl TensorSource for SafetensorsSource {
    fn names(&self) -> Vec<&str> {
        // Integer and boolean buffers that old checkpoints carry along are no weights.
        self.tensors.iter().filter(|(_, (_, e))| e.dtype.is_ok()).map(|(n, _)| n.as_str()).collect()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let (file, entry) = self.tensors.get(name)?;
        let file = self.files.get(*file)?.path.clone();
        Some(TensorInfo { shape: entry.shape.clone(), dtype: entry.dtype.as_ref().ok().copied()?, file })
    }

    fn read(&self, name: &str) -> Result<RawTensor<'_>> {
        let found = self.tensors.get(name).and_then(|(n, e)| Some((self.files.get(*n)?, e)));
        let Some((file, entry)) = found else {
            let path = self.files.first().map(|f| f.path.as_path()).unwrap_or(Path::new("(no file)"));
            return Err(missing(path, name, self.tensors.keys().map(String::as_str)));
        };
        let dtype = entry.dtype.as_ref().copied().map_err(|found| {
            let detail = format!("is stored as {found}; only F64, F32, F16 and BF16 are read");
            Error::tensor(&file.path, name, detail)
        })?;
        let bytes = Cow::Borrowed(file.range(entry.start, entry.end)?);
        Ok(RawTensor { dtype, shape: entry.shape.clone(), bytes })
    }
}

/// The error for a tensor that isn't there.
pub(crate) fn missing<'a>(path: &Path, name: &str, names: impl Iterator<Item = &'a str>) -> Error {
    let near = nearest(name, names);
    let near = if near.is_empty() { String::new() } else { format!("; near it: `{}`", near.join("`, `")) };
    Error::tensor(path, name, format!("is missing{near}"))
}
