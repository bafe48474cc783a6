//! Writing safetensors: deterministic bytes, one tensor in memory at a time, each file whole or not at all.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::super::atomic::write_atomically;
use super::super::stream::{Placed, write_tensors};
use super::super::{Error, FileDType, Result};

/// A tensor to be written, before its bytes are known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorPlan {
    /// Its name in the file.
    pub name: String,
    /// One of the plain formats (safetensors has no block formats).
    pub dtype: FileDType,
    /// Outermost dimension first.
    pub shape: Vec<usize>,
}

/// A tensor to be written: name, format, shape and little-endian bytes.
pub type TensorView<'a> = (&'a str, FileDType, &'a [usize], &'a [u8]);

/// Writes one file with the metadata `{"format": "pt"}`, atomically. The bytes depend only on the tensors, not on
/// their order here; they equal what the safetensors library writes.
///
/// # Errors
/// When a tensor's bytes don't fit its shape, a name occurs twice, or the disk refuses.
pub fn write_safetensors(path: &Path, tensors: &[TensorView<'_>]) -> Result<()> {
    let plan: Vec<TensorPlan> = tensors
        .iter()
        .map(|&(name, dtype, shape, _)| TensorPlan { name: name.to_owned(), dtype, shape: shape.to_vec() })
        .collect();
    let bytes: BTreeMap<&str, &[u8]> = tensors.iter().map(|t| (t.0, t.3)).collect();
    write_safetensors_streaming(path, &plan, |t| Ok(bytes.get(t.name.as_str()).copied().unwrap_or_default()))
}

/// As [`write_safetensors`], asking `provide` for each tensor's bytes when its turn comes, in the file's order.
///
/// # Errors
/// As [`write_safetensors`], and whatever `provide` fails with.
pub fn write_safetensors_streaming<B: AsRef<[u8]>, E: From<Error>>(
    path: &Path,
    plan: &[TensorPlan],
    provide: impl FnMut(&TensorPlan) -> Result<B, E>,
) -> Result<(), E> {
    let ordered = file_order(path, plan)?;
    let header = header(&ordered);
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    let mut offset = 0;
    let placed: Vec<Placed<'_>> = ordered
        .into_iter()
        .map(|(tensor, size)| {
            let placed = Placed { tensor, offset, size };
            offset += size as u64;
            placed
        })
        .collect();
    write_tensors(path, &bytes, &placed, provide)
}

/// Writes a model's weights into `folder`: `model.safetensors` if they fit into `max_shard_bytes`, otherwise
/// `model-00001-of-000NN.safetensors` … with `model.safetensors.index.json`, filled in the plan's order. Returns the
/// names of the files. Each file is atomic; for the folder as a whole use
/// [`replace_dir_atomically`](super::super::atomic::replace_dir_atomically).
///
/// # Errors
/// As [`write_safetensors_streaming`].
pub fn write_model<B: AsRef<[u8]>, E: From<Error>>(
    folder: &Path,
    plan: &[TensorPlan],
    max_shard_bytes: u64,
    mut provide: impl FnMut(&TensorPlan) -> Result<B, E>,
) -> Result<Vec<PathBuf>, E> {
    let index_path = folder.join("model.safetensors.index.json");
    file_order(&index_path, plan)?;
    let shards = split(plan, max_shard_bytes);
    if shards.len() <= 1 {
        let path = folder.join("model.safetensors");
        write_safetensors_streaming(&path, plan, provide)?;
        return Ok(vec![path]);
    }
    let mut paths = Vec::with_capacity(shards.len() + 1);
    let mut weight_map = BTreeMap::new();
    for (n, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", n + 1, shards.len());
        let path = folder.join(&name);
        write_safetensors_streaming(&path, shard, &mut provide)?;
        weight_map.extend(shard.iter().map(|t| (t.name.clone(), json!(name))));
        paths.push(path);
    }
    let total: u64 = plan.iter().map(size).sum();
    let parameters: u64 = plan.iter().map(|t| t.shape.iter().product::<usize>() as u64).sum();
    let index = json!({
        "metadata": {"total_parameters": parameters, "total_size": total},
        "weight_map": weight_map.into_iter().collect::<Map<String, Value>>(),
    });
    write_atomically(&index_path, |out| out.write_all(format!("{index:#}\n").as_bytes()))?;
    paths.push(index_path);
    Ok(paths)
}

fn size(tensor: &TensorPlan) -> u64 {
    tensor.dtype.bytes_of(&tensor.shape).unwrap_or(0) as u64
}

/// Fills shards one after the other; a tensor larger than the limit gets one of its own.
fn split(plan: &[TensorPlan], max_shard_bytes: u64) -> Vec<&[TensorPlan]> {
    let mut shards = Vec::new();
    let (mut first, mut filled) = (0, 0u64);
    for (n, tensor) in plan.iter().enumerate() {
        if n > first && filled.saturating_add(size(tensor)) > max_shard_bytes {
            shards.push(&plan[first..n]);
            (first, filled) = (n, 0);
        }
        filled = filled.saturating_add(size(tensor));
    }
    shards.push(&plan[first..]);
    shards
}

/// Checks the plan and puts it in the library's order: wider formats first, so that all stay aligned, then by name.
fn file_order<'a>(path: &Path, plan: &'a [TensorPlan]) -> Result<Vec<(&'a TensorPlan, usize)>> {
    let mut ordered = Vec::with_capacity(plan.len());
    for tensor in plan {
        let size = tensor.dtype.bytes_of(&tensor.shape).filter(|_| !tensor.dtype.is_quantised());
        let size = size.ok_or_else(|| {
            let detail = format!(
                "of type {} and shape {:?} cannot be written as safetensors",
                tensor.dtype.name(),
                tensor.shape
            );
            Error::tensor(path, &tensor.name, detail)
        })?;
        ordered.push((tensor, size));
    }
    ordered.sort_by(|(a, _), (b, _)| {
        // The library's order among formats: F64, F32, then BF16 before F16.
        let rank = |t: &TensorPlan| match t.dtype {
            FileDType::F64 => 0,
            FileDType::F32 => 1,
            FileDType::BF16 => 2,
            _ => 3,
        };
        rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name))
    });
    let mut names: Vec<&str> = plan.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        return Err(Error::tensor(path, twice[0], "is to be written twice"));
    }
    if names.contains(&"__metadata__") {
        return Err(Error::tensor(path, "__metadata__", "has a name that safetensors reserves"));
    }
    Ok(ordered)
}

/// The JSON header, padded with spaces so that the data starts at a multiple of 8.
fn header(ordered: &[(&TensorPlan, usize)]) -> Vec<u8> {
    let mut map = Map::new();
    map.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut start = 0usize;
    for (tensor, size) in ordered {
        let end = start + size;
        let entry =
            json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [start, end]});
        map.insert(tensor.name.clone(), entry);
        start = end;
    }
    let mut header = Value::Object(map).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    header
}
