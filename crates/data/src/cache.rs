//! Tokenised datasets on disk, found again by the content of everything that they were made from.
//!
//! A file is written aside while rows are tokenised, so that memory does not grow with the data, and renamed when it is
//! whole; it is mapped, not read, afterwards. Its checksum is compared whenever it is opened: one that is damaged is made
//! anew.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;
use tempfile::NamedTempFile;
use xxhash_rust::xxh3::Xxh3;

use crate::encode::Encoded;
use crate::error::{DataError, Result, RowRef};
use crate::examples::{Entry, Memory, OddLabel, Store, Words};

/// Changes with the layout of the files, and with everything that makes other tokens of the same rows.
const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"LTTOKENS";
/// Words that are kept in memory before they are written.
const BUFFER: usize = 1 << 20;
/// Left-overs of runs that were killed are removed when they are older.
const STALE: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

/// Where tokenised datasets are kept, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// The folder; made when it is needed.
    pub dir: PathBuf,
    /// Tokenise anew and replace what is there (`overwrite_cache`).
    pub overwrite: bool,
    /// Datasets whose files are smaller are tokenised anew each time, which takes no longer than to look them up.
    pub min_bytes: u64,
}

impl CacheOptions {
    /// Kept for datasets of a megabyte and more.
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into(), overwrite: false, min_bytes: 1 << 20 }
    }

    /// The user's folder: `loratune/tokenized` in `HF_HOME`, or else in `XDG_CACHE_HOME`, or else in `~/.cache`. `None` on a
    /// system that names no home.
    pub fn default_dir() -> Option<PathBuf> {
        let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let base =
            set("HF_HOME").or_else(|| set("XDG_CACHE_HOME")).or_else(|| Some(set("HOME")?.join(".cache")))?;
        Some(base.join("loratune").join("tokenized"))
    }
}

/// The digest of everything that a tokenised dataset depends on.
pub(crate) struct Key(Xxh3);

impl Key {
    pub fn new() -> Self {
        let mut key = Self(Xxh3::new());
        key.add("version", &VERSION.to_le_bytes());
        key.add("crate", env!("CARGO_PKG_VERSION").as_bytes());
        key
    }

    /// Adds a named part, told apart from its neighbours by its length.
    pub fn add(&mut self, name: &str, bytes: &[u8]) {
        self.0.update(name.as_bytes());
        self.0.update(&(bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    /// Adds the content of a file.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        let io = |source| DataError::Io { path: path.display().to_string(), source };
        let mut file = File::open(path).map_err(io)?;
        let mut buffer = vec![0; 1 << 18];
        let mut whole = Xxh3::new();
        loop {
            match file.read(&mut buffer).map_err(io)? {
                0 => break,
                n => whole.update(&buffer[..n]),
            }
        }
        self.add("file", &whole.digest128().to_le_bytes());
        Ok(())
    }

    pub fn name(&self) -> String {
        format!("{:032x}", self.0.digest128())
    }
}

/// The head of a file; what follows are the words, the odd labels and the entries, each at a multiple of 8 bytes.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
struct Header {
    magic: [u8; 8],
    version: u32,
    zero: u32,
    words: u64,
    odd: u64,
    entries: u64,
    /// Of everything after the head and of the three numbers.
    checksum: [u64; 2],
}

const HEAD: usize = size_of::<Header>();

impl Header {
    /// Byte ranges of the three parts; `None` if they cannot be those of a file of `len` bytes.
    fn parts(&self, len: u64) -> Option<[std::ops::Range<usize>; 3]> {
        let mut at = HEAD as u64;
        let mut part = |count: u64, size: usize| {
            let start = at;
            let end = start.checked_add(count.checked_mul(size as u64)?)?;
            at = end.checked_next_multiple_of(8)?;
            Some(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
        };
        let parts = [
            part(self.words, size_of::<u32>())?,
            part(self.odd, size_of::<OddLabel>())?,
            part(self.entries, size_of::<Entry>())?,
        ];
        (at == len).then_some(parts)
    }

    /// The checksum, from that of everything after the head.
    fn sum(&self, mut body: Xxh3) -> [u64; 2] {
        [self.words, self.odd, self.entries].iter().for_each(|n| body.update(&n.to_le_bytes()));
        let digest = body.digest128();
        [digest as u64, (digest >> 64) as u64]
    }
}

/// What a look into the cache found.
pub(crate) enum Found {
    Whole(Store),
    Damaged,
    Nothing,
}

/// Opens what is kept under a key. `files` are the dataset's files as they are called now.
pub(crate) fn open(path: &Path, files: &[Arc<str>]) -> Found {
    let Ok(file) = File::open(path) else { return Found::Nothing };
    match mapped(&file, files) {
        Some(store) => Found::Whole(store),
        None => Found::Damaged,
    }
}

fn mapped(file: &File, files: &[Arc<str>]) -> Option<Store> {
    // SAFETY: only read. Files here are written aside and renamed, never changed in place.
    let map = unsafe { Mmap::map(file) }.ok()?;
    let head: Header = bytemuck::pod_read_unaligned(map.get(..HEAD)?);
    let [words, odd, entries] = head.parts(map.len() as u64)?;
    let mut sum = Xxh3::new();
    sum.update(&map[HEAD..]);
    let good = head.magic == MAGIC && head.version == VERSION && head.sum(sum) == head.checksum;
    let store = Store { memory: Memory::Mapped { map, words, odd, entries }, files: files.to_vec() };
    let sizes_fit = |store: &Store| {
        let ends = store.entries().iter().map(|e| e.end);
        ends.is_sorted() && store.entries().last().map_or(0, |e| e.end) == head.words
    };
    (good && sizes_fit(&store)).then_some(store)
}

/// Takes in tokenised rows: in memory, or into a file.
pub(crate) struct Writer {
    words: Words,
    odd: Vec<OddLabel>,
    entries: Vec<Entry>,
    files: Vec<Arc<str>>,
    spill: Option<Spill>,
}

struct Spill {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
    /// Of everything written.
    sum: Xxh3,
}

impl Spill {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.sum.update(bytes);
        self.file.write_all(bytes)
    }
}

impl Writer {
    /// `path` is the file to be, in a folder that is made if it is missing. If it cannot be written there, the rows stay in
    /// memory.
    pub fn new(files: Vec<Arc<str>>, path: Option<&Path>) -> Self {
        let spill = path.and_then(|path| {
            let folder = path.parent()?;
            std::fs::create_dir_all(folder).ok()?;
            remove_stale(folder);
            let mut file = BufWriter::with_capacity(
                1 << 18,
                tempfile::Builder::new().prefix(PREFIX).tempfile_in(folder).ok()?,
            );
            file.write_all(&[0; HEAD]).ok()?;
            Some(Spill { file, path: path.to_path_buf(), sum: Xxh3::new() })
        });
        Self { words: Words::default(), odd: Vec::new(), entries: Vec::new(), files, spill }
    }

    /// Adds a row; its file is one of those given to [`Self::new`].
    pub fn push(&mut self, encoded: &Encoded, mut entry: Entry, source: &RowRef) -> Result<()> {
        self.words.push(&encoded.input_ids, &encoded.labels);
        entry.end = self.words.end();
        // Rows come file by file, so the last one's file is nearly always this one's.
        let near = self.entries.last().map_or(0, |e| e.file as usize);
        let same = |f: &Arc<str>| Arc::ptr_eq(f, &source.file) || **f == *source.file;
        let file = if self.files.get(near).is_some_and(same) {
            Some(near)
        } else {
            self.files.iter().position(same)
        };
        entry.file = file.map_or(u32::MAX, |f| f as u32);
        self.entries.push(entry);
        if let Some(spill) = &mut self.spill
            && self.words.words.len() >= BUFFER
        {
            let done = spill.write(bytemuck::cast_slice(&self.words.words));
            done.map_err(|source| failed(&spill.path, source))?;
            self.words.before += self.words.words.len() as u64;
            self.words.words.clear();
        }
        self.odd.append(&mut self.words.odd);
        Ok(())
    }

    /// The rows; those of a file are there for the next run.
    pub fn finish(mut self) -> Result<Store> {
        let Some(spill) = self.spill.take() else {
            let memory = Memory::Own { words: self.words.words, odd: self.odd, entries: self.entries };
            return Ok(Store { memory, files: self.files });
        };
        let path = spill.path.clone();
        let file = self.write(spill).map_err(|source| failed(&path, source))?;
        mapped(&file, &self.files).ok_or_else(|| {
            failed(&path, std::io::Error::other("it reads back otherwise than it was written"))
        })
    }

    fn write(&self, mut spill: Spill) -> std::io::Result<File> {
        let words = self.words.end();
        spill.write(bytemuck::cast_slice(&self.words.words))?;
        // An even number of words, so that what follows is aligned.
        spill.write(&[0; 4][..4 * (words % 2) as usize])?;
        spill.write(bytemuck::cast_slice(&self.odd))?;
        spill.write(bytemuck::cast_slice(&self.entries))?;
        let mut head = Header {
            magic: MAGIC,
            version: VERSION,
            words,
            odd: self.odd.len() as u64,
            entries: self.entries.len() as u64,
            ..Header::default()
        };
        head.checksum = head.sum(spill.sum);
        let mut file = spill.file.into_inner().map_err(|e| e.into_error())?;
        file.seek(SeekFrom::Start(0))?;
        file.write_all(bytemuck::bytes_of(&head))?;
        file.as_file().sync_all()?;
        file.persist(&spill.path).map_err(|e| e.error)
    }
}

fn failed(path: &Path, source: std::io::Error) -> DataError {
    DataError::Cache { path: path.display().to_string(), source }
}

const PREFIX: &str = ".tokenizing-";

/// Removes what runs that were killed left behind.
fn remove_stale(folder: &Path) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_ours = entry.file_name().to_string_lossy().starts_with(PREFIX);
        let age = entry.metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
        if is_ours && age.is_some_and(|a| a > STALE) {
            std::fs::remove_file(entry.path()).ok();
        }
    }
}
