//! Files mapped into memory, which the system reads as they are walked and drops again: they may be larger than memory.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use super::{Body, FileRows, LazyRow, io, name_of};
use crate::error::{DataError, Result, RowRef};

/// A part of a mapped file.
#[derive(Debug, Clone)]
pub(super) struct Piece {
    file: Arc<Mmap>,
    range: Range<usize>,
}

impl Piece {
    pub fn new(file: &Arc<Mmap>, range: Range<usize>) -> Self {
        Self { file: file.clone(), range }
    }

    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn bytes(&self) -> &[u8] {
        self.file.get(self.range.clone()).unwrap_or_default()
    }

    /// Its text; `name` is the file's in errors.
    pub fn text(&self, name: &str) -> Result<&str> {
        std::str::from_utf8(self.bytes()).map_err(|e| {
            let offset = self.range.start + e.valid_up_to();
            DataError::NotUtf8 { file: name.to_string(), offset, line: self.line_at(offset).0 }
        })
    }

    /// Line (from 1) and column (from 0, in bytes) of a place in the file.
    pub fn line_at(&self, offset: usize) -> (usize, usize) {
        let before = self.file.get(..offset).unwrap_or_default();
        let line = memchr::memchr_iter(b'\n', before).count() + 1;
        (line, offset - memchr::memrchr(b'\n', before).map_or(0, |at| at + 1))
    }

    /// Line and column of where it begins.
    pub fn start(&self) -> (usize, usize) {
        self.line_at(self.range.start)
    }

    /// The text of a line (from 1), as far as it is UTF-8.
    pub fn line_text(&self, line: usize) -> String {
        let all: &[u8] = &self.file;
        let text = all.split(|&b| b == b'\n').nth(line.saturating_sub(1)).unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }
}

/// A mapped file and where its text begins, after a byte order mark. `None` for an empty file.
pub(super) fn map(file: &File, path: &Path) -> Result<Option<(Arc<Mmap>, usize)>> {
    if file.metadata().map_err(io(path))?.len() == 0 {
        return Ok(None);
    }
    // SAFETY: the mapping is only read. Another process that shortens the file meanwhile ends this one by a signal, as with
    // every mapped file; bytes that change are caught as broken rows.
    let map = unsafe { Mmap::map(file) }.map_err(io(path))?;
    #[cfg(unix)]
    map.advise(memmap2::Advice::Sequential).ok();
    let start = if map.starts_with(b"\xef\xbb\xbf") { 3 } else { 0 };
    Ok(Some((Arc::new(map), start)))
}

/// Lines that are not blank.
pub(super) struct Lines {
    file: Arc<Mmap>,
    at: usize,
    line: usize,
    row: usize,
    name: Arc<str>,
    body: fn(Piece) -> Body,
}

impl Lines {
    pub fn new(file: Arc<Mmap>, start: usize, name: Arc<str>, body: fn(Piece) -> Body) -> Self {
        Self { file, at: start, line: 0, row: 0, name, body }
    }
}

impl Iterator for Lines {
    type Item = Result<LazyRow>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(rest) = self.file.get(self.at..).filter(|r| !r.is_empty()) {
            let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
            let line = &rest[..end];
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            let range = self.at..self.at + line.len();
            let is_blank = line.iter().all(u8::is_ascii_whitespace);
            (self.at, self.line) = (self.at + end + 1, self.line + 1);
            if !is_blank {
                self.row += 1;
                let source = RowRef { file: self.name.clone(), row: self.row, line: Some(self.line) };
                return Some(Ok(LazyRow { source, body: (self.body)(Piece::new(&self.file, range)) }));
            }
        }
        None
    }
}

/// The lines of a text file.
pub(super) fn lines(file: File, path: &Path) -> Result<FileRows> {
    Ok(match map(&file, path)? {
        Some((file, start)) => Box::new(Lines::new(file, start, name_of(path), Body::Text)),
        None => Box::new(std::iter::empty()),
    })
}
