//! What an etag says about a file's content.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use sha1::{Digest, Sha1};
use sha2::Sha256;

use crate::error::{HubError, Result};

/// How many bytes are read at a time.
pub(crate) const CHUNK: usize = 1 << 18;

/// A running checksum that can be compared with an etag.
pub(crate) enum Check {
    /// Large files: sha256 of the content.
    Sha256(Sha256),
    /// Small files: git's sha1 of a blob, whose length comes first.
    Git(Sha1),
    /// Other servers' etags say nothing about the content.
    Nothing,
}

impl Check {
    /// For an etag and the length that the file has when it is whole.
    pub fn new(etag: &str, size: u64) -> Check {
        let hex = etag.bytes().all(|b| b.is_ascii_hexdigit());
        match etag.len() {
            64 if hex => Check::Sha256(Sha256::new()),
            40 if hex => {
                let mut sha = Sha1::new();
                sha.update(format!("blob {size}\0").as_bytes());
                Check::Git(sha)
            }
            _ => Check::Nothing,
        }
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Check::Sha256(sha) => sha.update(bytes),
            Check::Git(sha) => sha.update(bytes),
            Check::Nothing => {}
        }
    }

    pub fn name(&self) -> &'static str {
        match self {
            Check::Sha256(_) => "sha256",
            Check::Git(_) => "git sha1",
            Check::Nothing => "checksum",
        }
    }

    /// The checksum, where there is one.
    pub fn finish(self) -> Option<String> {
        match self {
            Check::Sha256(sha) => Some(hex(&sha.finalize())),
            Check::Git(sha) => Some(hex(&sha.finalize())),
            Check::Nothing => None,
        }
    }
}

/// The sha256 of a file, in hexadecimal.
pub(crate) fn sha256_of(path: &Path) -> Result<String> {
    let mut sha = Sha256::new();
    read_through(path, |bytes| sha.update(bytes))?;
    Ok(hex(&sha.finalize()))
}

/// The name that git gives to some content.
pub(crate) fn git_sha1(content: &[u8]) -> String {
    let mut check = Check::new(&"0".repeat(40), content.len() as u64);
    check.update(content);
    check.finish().unwrap_or_default()
}

/// Calls `each` with a file's bytes, in order.
pub(crate) fn read_through(path: &Path, mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut file = File::open(path).map_err(HubError::io("read", path))?;
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).map_err(HubError::io("read", path))? {
            0 => return Ok(()),
            n => each(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_blobs_are_named_as_git_names_them() {
        // `printf 'hello\n' | git hash-object --stdin`
        assert_eq!(git_sha1(b"hello\n"), "ce013625030ba8dba906f756967f9e9ca394464a");
    }
}
