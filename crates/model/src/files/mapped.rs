//! A file mapped into memory, or the beginning of one that is not written yet.

use std::fs::File;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{Error, Result};

/// A file's bytes with its path.
#[derive(Debug)]
pub(crate) struct MappedFile {
    pub path: PathBuf,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    /// A read-only mapping.
    Mapped(Mmap),
    Held(Vec<u8>),
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io("open", path, e))?;
        let info = file.metadata().map_err(|e| Error::io("read", path, e))?;
        if !info.is_file() {
            return Err(Error::unsupported(path, "is not a file"));
        }
        if info.len() == 0 {
            return Err(Error::damaged(path, "it is empty"));
        }
        // SAFETY: the mapping is read-only and private to this struct. As with every mapped file, another process that
        // truncates it while it is in use would make reads fault; our own writers never do so, they write a new file
        // beside the old one and rename it.
        let map = unsafe { Mmap::map(&file) }.map_err(|e| Error::io("map", path, e))?;
        Ok(MappedFile { path: path.to_owned(), bytes: Bytes::Mapped(map) })
    }

    /// Bytes that are to become the beginning of a file.
    pub fn held(path: &Path, bytes: Vec<u8>) -> Self {
        MappedFile { path: path.to_owned(), bytes: Bytes::Held(bytes) }
    }

    pub fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }

    /// Bytes that were checked to be there when the file was opened.
    pub fn range(&self, start: usize, end: usize) -> Result<&[u8]> {
        self.bytes().get(start..end).ok_or_else(|| Error::damaged(&self.path, "a tensor lies outside of it"))
    }
}
