//! The header of a GGUF file.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::super::mapped::MappedFile;
use super::super::{Error, FileDType, RawTensor, Result};
use super::reader::Reader;
use super::value::MetaValue;

/// GGUF tensors have at most this many dimensions.
const MAX_DIMS: u32 = 4;
/// What tensors are aligned to when the file does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// One tensor, with checked offsets from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// llama.cpp's name.
    pub name: String,
    /// The format of its numbers.
    pub dtype: FileDType,
    /// Outermost dimension first (the file has them the other way round).
    pub shape: Vec<usize>,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A mapped GGUF file whose header has been checked.
#[derive(Debug)]
pub struct GgufFile {
    pub(crate) file: MappedFile,
    /// The key-value pairs.
    pub metadata: BTreeMap<String, MetaValue>,
    /// The tensors, in the order of the file.
    pub tensors: Vec<GgufTensor>,
}

impl GgufFile {
    /// Opens the file and checks its header against its size.
    ///
    /// # Errors
    /// When it isn't GGUF, of another version, contradicts itself, or holds a tensor of a type that isn't read.
    pub fn open(path: &Path) -> Result<Self> {
        let file = MappedFile::open(path)?;
        let length = file.bytes().len() as u64;
        Self::parse(file, length)
    }

    /// A file that is to be written at `path`, by its beginning and its whole length: what [`GgufFile::open`] will find. Only
    /// tensors that lie in `bytes` can be read.
    ///
    /// # Errors
    /// As [`GgufFile::open`].
    pub(crate) fn planned(path: &Path, bytes: Vec<u8>, length: u64) -> Result<Self> {
        Self::parse(MappedFile::held(path, bytes), length)
    }

    fn parse(file: MappedFile, length: u64) -> Result<Self> {
        let path = file.path.as_path();
        let mut reader = Reader { bytes: file.bytes(), at: 0, path };
        let tensor_count = preamble(&mut reader)?;
        let metadata = metadata(&mut reader)?;
        refuse_splits(path, &metadata)?;
        let tensors = tensors(&mut reader, tensor_count, &metadata, length)?;
        Ok(GgufFile { file, metadata, tensors })
    }

    /// A tensor's bytes as they are in the file, rows in llama.cpp's order.
    ///
    /// # Errors
    /// When the tensor is not one of this file's.
    pub fn read(&self, tensor: &GgufTensor) -> Result<RawTensor<'_>> {
        let bytes = Cow::Borrowed(self.file.range(tensor.start, tensor.end)?);
        Ok(RawTensor { dtype: tensor.dtype, shape: tensor.shape.clone(), bytes })
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Magic, version and the count of tensors.
fn preamble(reader: &mut Reader<'_>) -> Result<u64> {
    if reader.take(4).ok() != Some(b"GGUF".as_slice()) {
        return Err(Error::unsupported(reader.path, "is not a GGUF file (it does not begin with `GGUF`)"));
    }
    match reader.u32()? {
        2 | 3 => {}
        version if matches!(version.swap_bytes(), 1..=3) => {
            return Err(Error::unsupported(reader.path, "is a big-endian GGUF file, which is not read"));
        }
        version => {
            let what =
                format!("is GGUF version {version}; versions 2 and 3 are read. Convert the model again");
            return Err(Error::unsupported(reader.path, what));
        }
    }
    reader.u64()
}

fn metadata(reader: &mut Reader<'_>) -> Result<BTreeMap<String, MetaValue>> {
    // A key's length, a type and one byte.
    let count = reader.count("metadata entries", 13)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..count {
        let key = reader.string("a key")?;
        let kind = reader.u32()?;
        let value = reader.value(kind, 0)?;
        if metadata.contains_key(&key) {
            return Err(Error::damaged(reader.path, format!("its metadata has the key `{key}` twice")));
        }
        metadata.insert(key, value);
    }
    Ok(metadata)
}

fn refuse_splits(path: &Path, metadata: &BTreeMap<String, MetaValue>) -> Result<()> {
    match metadata.get("split.count").and_then(MetaValue::as_u64) {
        Some(n) if n > 1 => Err(Error::unsupported(
            path,
            format!("is one of {n} parts; join them with llama.cpp's `llama-gguf-split --merge` first"),
        )),
        _ => Ok(()),
    }
}

fn tensors(
    reader: &mut Reader<'_>,
    count: u64,
    metadata: &BTreeMap<String, MetaValue>,
    length: u64,
) -> Result<Vec<GgufTensor>> {
    let path = reader.path;
    // A name's length, dimensions' count, type and offset.
    let left = reader.bytes.len().saturating_sub(reader.at);
    if count > (left / 24) as u64 {
        return Err(Error::damaged(
            path,
            format!("it claims {count} tensors, but only {left} bytes are left"),
        ));
    }
    let alignment = match metadata.get("general.alignment") {
        None => DEFAULT_ALIGNMENT,
        Some(value) => value.as_u64().filter(|a| a.is_power_of_two() && *a <= 1 << 20).ok_or_else(|| {
            Error::field(path, "general.alignment", "must be a power of two up to 2^20; the file is damaged")
        })?,
    };
    let mut tensors = Vec::new();
    let mut names = HashSet::new();
    for _ in 0..count {
        let tensor = description(reader, alignment)?;
        if !names.insert(tensor.0.name.clone()) {
            return Err(Error::tensor(path, &tensor.0.name, "is described twice; the file is damaged"));
        }
        tensors.push(tensor);
    }
    let base = (reader.at as u64).next_multiple_of(alignment);
    let mut placed = Vec::with_capacity(tensors.len());
    for (mut tensor, offset, size) in tensors {
        let start = base.checked_add(offset);
        let end = start.and_then(|s| s.checked_add(size)).filter(|&e| e <= length);
        let (Some(start), Some(end)) = (start, end) else {
            let detail = format!(
                "should lie {size} bytes long at {offset} behind the header, beyond the file's end at {length}; the file is \
                 truncated or damaged"
            );
            return Err(Error::tensor(path, &tensor.name, detail));
        };
        (tensor.start, tensor.end) = (start as usize, end as usize);
        placed.push(tensor);
    }
    refuse_overlaps(path, &placed)?;
    Ok(placed)
}

/// One tensor's description, its offset behind the header and its size in bytes.
fn description(reader: &mut Reader<'_>, alignment: u64) -> Result<(GgufTensor, u64, u64)> {
    let path = reader.path;
    let name = reader.string("a tensor's name")?;
    let wrong = |detail: String| Error::tensor(path, &name, detail);
    let dims = reader.u32()?;
    if dims > MAX_DIMS {
        return Err(wrong(format!("has {dims} dimensions; the file is damaged")));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        let dim = reader.u64()?;
        let dim = usize::try_from(dim).ok().filter(|&d| d > 0);
        shape.push(dim.ok_or_else(|| wrong("has an impossible dimension; the file is damaged".to_owned()))?);
    }
    shape.reverse();
    let kind = reader.u32()?;
    let dtype = FileDType::from_gguf(kind).map_err(|found| {
        wrong(format!(
            "is stored as {found}, which is not read; use a file quantised as Q8_0, Q4_K_M, Q5_K_M, Q6_K, BF16 or F16"
        ))
    })?;
    let offset = reader.u64()?;
    if !offset.is_multiple_of(alignment) {
        return Err(wrong(format!("starts at {offset}, not a multiple of {alignment}; the file is damaged")));
    }
    let size = dtype
        .bytes_of(&shape)
        .ok_or_else(|| wrong(format!("has the shape {shape:?}, impossible for {}", dtype.name())))?;
    Ok((GgufTensor { name, dtype, shape, start: 0, end: 0 }, offset, size as u64))
}

fn refuse_overlaps(path: &Path, tensors: &[GgufTensor]) -> Result<()> {
    let mut order: Vec<&GgufTensor> = tensors.iter().collect();
    order.sort_by_key(|t| t.start);
    match order.windows(2).find(|w| w[1].start < w[0].end) {
        Some(w) => {
            Err(Error::tensor(path, &w[1].name, format!("overlaps `{}`; the file is damaged", w[0].name)))
        }
        None => Ok(()),
    }
}
