//! A cursor over a file's bytes that never believes a length before checking it.

use std::path::Path;

use super::super::{Error, Result};
use super::value::{MetaValue, ScalarKind};

/// Arrays of arrays deeper than this are nonsense.
const MAX_DEPTH: usize = 4;

pub(crate) struct Reader<'a> {
    pub bytes: &'a [u8],
    pub at: usize,
    pub path: &'a Path,
}

impl<'a> Reader<'a> {
    fn damaged(&self, detail: String) -> Error {
        Error::damaged(self.path, detail)
    }

    fn remaining(&self) -> usize {
        self.bytes.len().saturating_sub(self.at)
    }

    pub fn take(&mut self, n: usize) -> Result<&'a [u8]> {
        let end = self.at.checked_add(n).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else {
            let detail = format!(
                "it ends at byte {} in the middle of its header ({n} bytes wanted at {})",
                self.bytes.len(),
                self.at
            );
            return Err(self.damaged(detail));
        };
        let taken = self.bytes.get(self.at..end).unwrap_or_default();
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N)?);
        Ok(out)
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things that take at least `least` bytes each: must fit into what is left.
    pub fn count(&mut self, what: &str, least: usize) -> Result<usize> {
        let given = self.u64()?;
        let most = self.remaining() / least.max(1);
        usize::try_from(given).ok().filter(|&n| n <= most).ok_or_else(|| {
            self.damaged(format!("it claims {given} {what}, but only {} bytes are left", self.remaining()))
        })
    }

    pub fn string(&mut self, what: &str) -> Result<String> {
        let length = self.count(&format!("bytes of {what}"), 1)?;
        let bytes = self.take(length)?;
        // llama.cpp treats strings as bytes; a vocabulary may hold pieces that are not valid UTF-8 by themselves.
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    /// A value of a type given by number.
    pub fn value(&mut self, kind: u32, depth: usize) -> Result<MetaValue> {
        if let Some(scalar) = ScalarKind::from_number(kind) {
            let bytes = self.take(scalar.size())?;
            return Ok(scalar.read(bytes));
        }
        match kind {
            8 => Ok(MetaValue::String(self.string("a string")?)),
            9 if depth >= MAX_DEPTH => Err(self.damaged("its metadata nests arrays too deeply".to_owned())),
            9 => self.array_value(depth + 1),
            other => Err(self.damaged(format!("its metadata has a value of the unknown type {other}"))),
        }
    }

    fn array_value(&mut self, depth: usize) -> Result<MetaValue> {
        let kind = self.u32()?;
        if let Some(scalar) = ScalarKind::from_number(kind) {
            let count = self.count("numbers in an array", scalar.size())?;
            // Kept as bytes: a gigabyte of u8 must not become eight of them.
            let bytes = self.take(count.saturating_mul(scalar.size()))?;
            return Ok(MetaValue::Scalars(scalar, bytes.to_vec()));
        }
        // A string takes 8 bytes at least, an array 12.
        let count = self.count("entries in an array", if kind == 8 { 8 } else { 12 })?;
        if kind == 8 {
            let strings = (0..count).map(|_| self.string("an array's string")).collect::<Result<_>>()?;
            return Ok(MetaValue::Strings(strings));
        }
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(self.value(kind, depth)?);
        }
        Ok(MetaValue::Array(values))
    }
}
