//! Writes that happen whole or not at all, also when the disk is full or the process is killed.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};

use super::{Error, Result};

/// What is being written.
const UNFINISHED: &str = ".loratune-tmp";
/// A folder that is being replaced, for the moment between two renames.
const REPLACED: &str = ".loratune-old";

/// Writes a file aside, forces it to disk and renames it to `path`: whoever looks sees the old file or the new one.
/// On any error the unfinished file is removed and `path` is as it was.
///
/// # Errors
/// What the disk or `write` refused, naming the path.
pub fn write_atomically(
    path: &Path,
    write: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let aside = aside(path, UNFINISHED)?;
    let result = File::create(&aside)
        .map(BufWriter::new)
        .and_then(|mut out| {
            write(&mut out)?;
            out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
        })
        .and_then(|()| fs::rename(&aside, path))
        .and_then(|()| sync_dir(parent(path)));
    result.map_err(|e| {
        // The first error is the one worth reporting.
        let _ = fs::remove_file(&aside);
        Error::io("write", path, e)
    })
}

/// Fills a new folder aside, forces it to disk and renames it to `dir`, replacing what was there. On any error the
/// unfinished folder is removed and `dir` is as it was. If the process is killed at the one moment when the old folder
/// is already aside and the new one not yet in place, the next call for `dir`, or [`sweep_unfinished`] on its parent,
/// puts the old one back.
///
/// # Errors
/// What the disk or `fill` refused.
pub fn replace_dir_atomically<E: From<Error>>(
    dir: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let (new, old) = (aside(dir, UNFINISHED)?, aside(dir, REPLACED)?);
    restore(dir, &old)?;
    remove_tree(&new)?;
    fs::create_dir_all(&new).map_err(|e| Error::io("create the folder", &new, e))?;
    let filled = fill(&new).and_then(|()| {
        sync_tree(&new).map_err(|e| Error::io("write", dir, e))?;
        Ok(swap(dir, &new, &old)?)
    });
    if filled.is_err() {
        let _ = fs::remove_dir_all(&new);
    }
    filled
}

/// Removes a folder so that nobody ever sees half of it: it's renamed to an unfinished one first, which
/// [`sweep_unfinished`] ends if this process is killed.
///
/// # Errors
/// What the disk refused.
pub fn remove_dir_atomically(dir: &Path) -> Result<()> {
    let aside = aside(dir, UNFINISHED)?;
    remove_tree(&aside)?;
    fs::rename(dir, &aside).map_err(|e| Error::io("remove", dir, e))?;
    remove_tree(&aside)
}

/// Removes what killed processes left unfinished in `dir`, and puts back folders that they were replacing. Returns what
/// was removed or put back.
///
/// # Errors
/// When the folder cannot be read or something in it cannot be removed.
pub fn sweep_unfinished(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut swept = Vec::new();
    let entries = fs::read_dir(dir).map_err(|e| Error::io("read the folder", dir, e))?;
    for entry in entries.flatten() {
        let path = entry.path();
        let Some(name) = entry.file_name().to_str().map(str::to_owned) else { continue };
        if name.starts_with('.') && name.ends_with(UNFINISHED) {
            remove_tree(&path)?;
            swept.push(path);
        } else if let Some(original) = name.strip_prefix('.').and_then(|n| n.strip_suffix(REPLACED)) {
            restore(&dir.join(original), &path)?;
            swept.push(path);
        }
    }
    swept.sort();
    Ok(swept)
}

fn swap(dir: &Path, new: &Path, old: &Path) -> Result<()> {
    let fail = |e| Error::io("put in place", dir, e);
    let existed = dir.exists();
    if existed {
        fs::rename(dir, old).map_err(fail)?;
    }
    if let Err(e) = fs::rename(new, dir) {
        if existed {
            let _ = fs::rename(old, dir);
        }
        return Err(fail(e));
    }
    sync_dir(parent(dir)).map_err(fail)?;
    remove_tree(old)
}

/// Ends a replacement that was cut off: the old folder comes back if nothing took its place.
fn restore(dir: &Path, old: &Path) -> Result<()> {
    if !old.exists() {
        return Ok(());
    }
    if dir.exists() {
        return remove_tree(old);
    }
    fs::rename(old, dir).map_err(|e| Error::io("put back", dir, e))
}

/// `.NAME.suffix` beside the target.
fn aside(path: &Path, suffix: &str) -> Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| Error::unsupported(path, "is not the path of a file or folder to write"))?;
    let mut hidden = OsString::from(".");
    hidden.push(name);
    hidden.push(suffix);
    Ok(path.with_file_name(hidden))
}

fn parent(path: &Path) -> &Path {
    path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => Err(e),
        Ok(info) if info.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
    };
    removed.map_err(|e| Error::io("remove", path, e))
}

fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// A rename is on disk only when its folder is. Elsewhere than on Unix folders cannot be opened as files.
#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}
