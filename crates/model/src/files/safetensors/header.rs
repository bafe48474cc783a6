//! The header of a safetensors file, checked down to the last byte.
//!
//! The safetensors crate parses it as well, but lets duplicate names pass and cannot say which tensor is wrong.

use std::path::Path;

use serde::Deserialize;

use super::super::unique::Pairs;
use super::super::{Error, FileDType, Result};

/// As the reference implementation: larger headers are refused.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor's entry, with offsets from the start of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub name: String,
    pub dtype: std::result::Result<FileDType, String>,
    pub shape: Vec<usize>,
    pub start: usize,
    pub end: usize,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// The object's values: tensors, or under `__metadata__` a map of strings.
#[derive(Deserialize)]
#[serde(untagged)]
enum Item {
    Tensor(RawEntry),
    Metadata(#[allow(dead_code)] std::collections::BTreeMap<String, String>),
}

/// Reads and checks the header of a whole file's bytes.
pub(crate) fn parse(path: &Path, bytes: &[u8]) -> Result<Vec<Entry>> {
    let damaged = |detail: String| Error::damaged(path, detail);
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(damaged(format!("a safetensors file has at least 8 bytes, this one {}", bytes.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(damaged(format!("it claims a header of {length} bytes, more than safetensors allows")));
    }
    let header_len = usize::try_from(length).unwrap_or(usize::MAX);
    let Some((header, data)) = rest.split_at_checked(header_len) else {
        return Err(damaged(format!("it claims a header of {length} bytes, but only {} follow", rest.len())));
    };
    let items: Pairs<Item> = serde_json::from_slice(header)
        .map_err(|e| damaged(format!("its header is not as it must be: {e}")))?;
    if let Some(name) = items.duplicate() {
        return Err(damaged(format!("its header names `{name}` twice")));
    }
    let base = 8 + header_len;
    let mut entries = Vec::with_capacity(items.0.len());
    for (name, item) in items.0 {
        match item {
            Item::Tensor(raw) => entries.push(entry(path, name, raw, base, data.len())?),
            Item::Metadata(_) if name == "__metadata__" => {}
            Item::Metadata(_) => return Err(damaged(format!("its header's entry `{name}` is no tensor"))),
        }
    }
    check_coverage(path, &mut entries, base, data.len())?;
    Ok(entries)
}

fn entry(path: &Path, name: String, raw: RawEntry, base: usize, data_len: usize) -> Result<Entry> {
    let (start, end) = raw.data_offsets;
    if start > end || end > data_len {
        let detail = format!("lies at bytes {start}..{end} of {data_len}; the file is truncated or damaged");
        return Err(Error::tensor(path, &name, detail));
    }
    let expected = size_of(&raw.dtype, &raw.shape).ok_or_else(|| {
        let detail = format!("has the type `{}` and shape {:?}, which make no size", raw.dtype, raw.shape);
        Error::tensor(path, &name, detail)
    })?;
    if expected != end - start {
        let detail = format!(
            "of type {} and shape {:?} takes {expected} bytes, but the file gives it {}; the file is damaged",
            raw.dtype,
            raw.shape,
            end - start
        );
        return Err(Error::tensor(path, &name, detail));
    }
    let dtype = FileDType::from_safetensors(&raw.dtype).ok_or(raw.dtype);
    Ok(Entry { name, dtype, shape: raw.shape, start: base + start, end: base + end })
}

/// Bytes of a tensor, also of the types that are only skipped. `None` on overflow or an unknown type.
fn size_of(dtype: &str, shape: &[usize]) -> Option<usize> {
    let bits: usize = match dtype {
        "F4" => 4,
        "F6_E2M3" | "F6_E3M2" => 6,
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" | "F8_E4M3FNUZ" | "F8_E5M2FNUZ" => 8,
        "U16" | "I16" | "F16" | "BF16" => 16,
        "U32" | "I32" | "F32" => 32,
        "U64" | "I64" | "F64" | "C64" => 64,
        _ => return None,
    };
    let bits = shape.iter().try_fold(bits, |n, &d| n.checked_mul(d))?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// The tensors must cover the data exactly: no overlap, no hole, nothing behind.
fn check_coverage(path: &Path, entries: &mut [Entry], base: usize, data_len: usize) -> Result<()> {
    entries.sort_by_key(|e| (e.start, e.end));
    let mut covered = base;
    for e in entries.iter() {
        if e.start != covered {
            let what = if e.start < covered { "overlaps the one before it" } else { "comes after a hole" };
            return Err(Error::tensor(path, &e.name, format!("{what} in the file; the file is damaged")));
        }
        covered = e.end;
    }
    if covered != base + data_len {
        let detail = format!("{} bytes follow its last tensor", base + data_len - covered);
        return Err(Error::damaged(path, detail));
    }
    Ok(())
}
