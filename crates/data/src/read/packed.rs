//! Compressed files: unpacked aside, into a file that has no name and goes with the process, so that the rest is as of any file.

use std::fs::File;
use std::io::{BufReader, Read, Seek, copy};
use std::path::{Path, PathBuf};

use super::io;
use crate::error::{DataError, Result};

/// Endings of compressed files.
const ENDINGS: [&str; 2] = ["gz", "zst"];

fn packed_as(path: &Path) -> Option<&'static str> {
    let ending = path.extension()?.to_string_lossy().to_lowercase();
    ENDINGS.into_iter().find(|e| *e == ending)
}

/// The name of what is inside, or the name itself.
pub(super) fn inner(path: &Path) -> PathBuf {
    if packed_as(path).is_some() { path.with_extension("") } else { path.to_path_buf() }
}

/// Opens a file, or what is inside of it.
///
/// # Errors
/// If it cannot be read, or is not compressed as its name says.
pub(super) fn open(path: &Path) -> Result<File> {
    let file = File::open(path).map_err(io(path))?;
    let broken = |e: std::io::Error| DataError::BrokenPacked {
        file: path.display().to_string(),
        message: e.to_string(),
    };
    let mut unpacked: Box<dyn Read> = match packed_as(path) {
        None => return Ok(file),
        Some("gz") => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(file))),
        Some(_) => Box::new(zstd::Decoder::new(file).map_err(broken)?),
    };
    let mut aside = tempfile::tempfile().map_err(io(&std::env::temp_dir()))?;
    copy(&mut unpacked, &mut aside).map_err(broken)?;
    aside.rewind().map_err(io(path))?;
    Ok(aside)
}
