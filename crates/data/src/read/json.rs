//! JSON arrays and JSON lines.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use super::mapped::{Lines, Piece, map};
use super::{Body, FileRows, LazyRow, name_of};
use crate::error::{DataError, Result, RowRef, kind_of};

pub(super) fn open(file: File, path: &Path, is_lines: bool) -> Result<FileRows> {
    let Some((file, start)) = map(&file, path)? else { return Ok(Box::new(std::iter::empty())) };
    let name = name_of(path);
    if is_lines || looks_like_lines(&file[start..]) {
        return Ok(Box::new(Lines::new(file, start, name, Body::Json)));
    }
    let items = Items { file, at: start, name, row: 0, state: State::Before };
    Ok(Box::new(items))
}

/// A `.json` file with an object on its first line is JSONL by another name; Hugging Face reads it as such.
fn looks_like_lines(bytes: &[u8]) -> bool {
    let first = bytes.split(|&b| b == b'\n').map(<[u8]>::trim_ascii).find(|l| !l.is_empty());
    first.is_some_and(|l| l.starts_with(b"{") && serde_json::from_slice::<Map<String, Value>>(l).is_ok())
}

/// A row's fields.
pub(super) fn object(piece: &Piece, source: &RowRef) -> Result<Map<String, Value>> {
    let text = piece.text(&source.file)?;
    match serde_json::from_str(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(other) => Err(DataError::NotAnObject { row: source.clone(), found: kind_of(&other).into() }),
        Err(e) => {
            let (line, column) = piece.start();
            let column = if e.line() <= 1 { column + e.column() } else { e.column() };
            let line = line + e.line().saturating_sub(1);
            Err(broken(&source.file, &piece.line_text(line), line, column, &e))
        }
    }
}

/// The error for a broken line, with up to 40 characters around the place.
fn broken(name: &str, line_text: &str, line: usize, column: usize, e: &serde_json::Error) -> DataError {
    let column = column.max(1);
    let mut from = column.saturating_sub(25).min(line_text.len());
    while !line_text.is_char_boundary(from) {
        from -= 1;
    }
    let piece: String = line_text[from..].chars().take(40).collect();
    let lead = if from > 0 { "…" } else { "" };
    let tail = if from + piece.len() < line_text.len() { "…" } else { "" };
    let full = e.to_string();
    let message = full.split(" at line ").next().unwrap_or(&full).to_string();
    let fragment = format!("{lead}{}{tail}", piece.escape_debug());
    DataError::BrokenLine { file: name.to_string(), line, column, message, fragment }
}

enum State {
    Before,
    Inside,
    After,
}

/// The items of an array, cut apart without being parsed.
struct Items {
    file: Arc<Mmap>,
    at: usize,
    name: Arc<str>,
    row: usize,
    state: State,
}

impl Items {
    fn skip_space(&mut self) -> Option<u8> {
        let rest = self.file.get(self.at..)?;
        let skip = rest.iter().position(|b| !b.is_ascii_whitespace())?;
        self.at += skip;
        Some(rest[skip])
    }

    /// The file is no array of values. The library says where.
    fn fail(&mut self) -> DataError {
        self.state = State::After;
        let whole = Piece::new(&self.file, 0..self.file.len());
        let text = match whole.text(&self.name) {
            Ok(text) => text.trim_start_matches('\u{feff}'),
            Err(e) => return e,
        };
        match serde_json::from_str::<IgnoredAny>(text) {
            Err(e) => broken(&self.name, &whole.line_text(e.line()), e.line(), e.column(), &e),
            Ok(_) => {
                let found = match serde_json::from_str::<Value>(text) {
                    Ok(value) => kind_of(&value).into(),
                    Err(e) => e.to_string(),
                };
                DataError::NotAnArray { file: self.name.to_string(), found }
            }
        }
    }

    /// Where the value that begins here ends; the file's end if it does not.
    fn value_end(&self) -> usize {
        let (mut depth, mut in_text, mut at) = (0usize, false, self.at);
        while let Some(&byte) = self.file.get(at) {
            match byte {
                b'\\' if in_text => at += 1,
                b'"' => in_text = !in_text,
                _ if in_text => {}
                b'{' | b'[' => depth += 1,
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    if depth == 0 {
                        return at + 1;
                    }
                }
                b',' | b']' | b'}' if depth == 0 => return at,
                _ => {}
            }
            at += 1;
        }
        self.file.len()
    }

    fn item(&mut self) -> Result<Option<LazyRow>> {
        let first = match self.state {
            State::After => return Ok(None),
            State::Before => {
                match self.skip_space() {
                    None => return Ok(None),
                    Some(b'[') => self.at += 1,
                    Some(_) => return Err(self.fail()),
                }
                self.state = State::Inside;
                self.skip_space()
            }
            State::Inside => match self.skip_space() {
                Some(b',') => {
                    self.at += 1;
                    self.skip_space().filter(|&b| b != b']')
                }
                Some(b']') => Some(b']'),
                _ => None,
            },
        };
        match first {
            None | Some(b',' | b'}') => Err(self.fail()),
            Some(b']') => {
                self.at += 1;
                if self.skip_space().is_some() {
                    return Err(self.fail());
                }
                self.state = State::After;
                Ok(None)
            }
            Some(_) => {
                let end = self.value_end();
                self.row += 1;
                let source = RowRef { file: self.name.clone(), row: self.row, line: None };
                let body = Body::Json(Piece::new(&self.file, self.at..end));
                self.at = end;
                Ok(Some(LazyRow { source, body }))
            }
        }
    }
}

impl Iterator for Items {
    type Item = Result<LazyRow>;

    fn next(&mut self) -> Option<Self::Item> {
        self.item().transpose()
    }
}
