//! From a dataset's rows to a store of tokens, by all threads and in bounded memory.

use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use crate::cache::{self, CacheOptions, Found, Key, Writer};
use crate::encode::{Encoded, Encoder};
use crate::error::{DataError, Result, RowRef, nearest};
use crate::examples::{Entry, Store};
use crate::formats::convert_columns;
use crate::info::Attributes;
use crate::read::{DatasetSource, LazyRow, RawRow, Rows};
use crate::rng::{keyed, permutation};

/// Rows that are worked on at once, and their bytes.
const CHUNK_ROWS: usize = 4096;
const CHUNK_BYTES: usize = 16 << 20;

/// Separates the draws of `num_samples` from the other randomness of a seed.
const SAMPLES: u64 = 0x73_61_6d_70;

/// A tokenised dataset.
pub(crate) struct Tokenised {
    pub store: Arc<Store>,
    pub rows: usize,
    /// What should be said.
    pub note: Option<String>,
}

/// What a dataset's cache key is made of besides its files.
pub(crate) type Base<'a> = dyn Fn() -> Option<Key> + Sync + 'a;

/// Tokenises a dataset, or finds it tokenised. `base` begins the key of its cache; `None` where nothing can be kept.
pub(crate) fn tokenise(
    encoder: &Encoder<'_>,
    source: &DatasetSource,
    seed: u64,
    cache: Option<&CacheOptions>,
    base: &Base<'_>,
) -> Result<Tokenised> {
    source.check()?;
    let files = source.resolve()?;
    let names: Vec<Arc<str>> = files.iter().map(|f| f.display().to_string().into()).collect();
    let mut note = None;
    let place = match cache {
        Some(cache) => {
            key(source, seed, &files, cache, base)?.map(|key| cache.dir.join(format!("{key}.tokens")))
        }
        None => None,
    };
    if let (Some(place), Some(CacheOptions { overwrite: false, .. })) = (&place, cache) {
        match cache::open(place, &names) {
            Found::Whole(store) => {
                return Ok(Tokenised { rows: store.entries().len(), store: Arc::new(store), note });
            }
            Found::Nothing => {}
            Found::Damaged => {
                note = Some(format!(
                    "{}: the tokenised rows kept there are damaged; they are made anew",
                    place.display()
                ));
            }
        }
    }
    let mut writer = Writer::new(names, place.as_deref());
    let count = match source.num_samples {
        None => {
            let limit = source.max_samples.unwrap_or(usize::MAX);
            encode_all(encoder, source, source.rows(files).take(limit), |e, entry, row| {
                writer.push(e, entry, row)
            })?
        }
        Some(n) => {
            let rows = drawn(source, files, n, seed)?;
            encode_all(encoder, source, rows.into_iter(), |e, entry, row| writer.push(e, entry, row))?
        }
    };
    if count == 0 {
        return Err(DataError::EmptyDataset { path: source.shown() });
    }
    let store = writer.finish()?;
    Ok(Tokenised { rows: store.entries().len(), store: Arc::new(store), note })
}

/// The name of a dataset in the cache; `None` when it is too small to be kept.
fn key(
    source: &DatasetSource,
    seed: u64,
    files: &[PathBuf],
    cache: &CacheOptions,
    base: &Base<'_>,
) -> Result<Option<String>> {
    let sizes = files.iter().map(|f| std::fs::metadata(f).map_or(0, |m| m.len()));
    if sizes.sum::<u64>() < cache.min_bytes {
        return Ok(None);
    }
    let Some(mut key) = base() else { return Ok(None) };
    let drawn = source.num_samples.map(|n| (n, seed));
    key.add("rows", format!("{:?} {drawn:?} {:?}", source.max_samples, source.attributes).as_bytes());
    for file in files {
        // The ending says how the content is read.
        let ending = file.extension().unwrap_or_default().to_string_lossy();
        key.add("ending", ending.as_bytes());
        key.add_file(file)?;
    }
    Ok(Some(key.name()))
}

/// `num_samples` rows: a random permutation, and with too few rows, random rows once more; of these the first
/// `max_samples`.
fn drawn(source: &DatasetSource, files: Vec<PathBuf>, n: usize, seed: u64) -> Result<Vec<Result<LazyRow>>> {
    let total = source.rows(files.clone()).try_fold(0usize, |n, row| row.map(|_| n + 1))?;
    if total == 0 {
        return Ok(Vec::new());
    }
    let mut wanted: Vec<usize> = permutation(total, &[seed, SAMPLES]).into_iter().take(n).collect();
    let more = n.saturating_sub(wanted.len()) as u64;
    wanted.extend((0..more).map(|i| {
        let r = keyed(&[seed, SAMPLES, 1, i]);
        ((u128::from(r) * total as u128) >> 64) as usize
    }));
    wanted.truncate(source.max_samples.unwrap_or(usize::MAX));
    let mut places: Vec<(usize, usize)> = wanted.into_iter().enumerate().map(|(at, row)| (row, at)).collect();
    places.sort_unstable();
    let mut out: Vec<(usize, LazyRow)> = Vec::with_capacity(places.len());
    let mut places = places.into_iter().peekable();
    for (index, row) in source.rows(files).enumerate() {
        if places.peek().is_none() {
            break;
        }
        let row = row?;
        while let Some((_, at)) = places.next_if(|(wanted, _)| *wanted == index) {
            out.push((at, row.clone()));
        }
    }
    out.sort_unstable_by_key(|(at, _)| *at);
    Ok(out.into_iter().map(|(_, row)| Ok(row)).collect())
}

/// Encodes rows, by all threads of the current pool, and gives them on in their order. Returns how many there were.
pub(crate) fn encode_all(
    encoder: &Encoder<'_>,
    source: &DatasetSource,
    rows: impl Iterator<Item = Result<LazyRow>> + Send,
    mut take: impl FnMut(&Encoded, Entry, &RowRef) -> Result<()>,
) -> Result<usize> {
    let mut rows = Chunks { rows, failed: None };
    let bos = encoder.text.bos().map(|b| b.id);
    let (mut chunk, mut count, mut is_first) = (rows.next_chunk(), 0, true);
    while !chunk.is_empty() {
        if is_first && let Some(attributes) = &source.attributes {
            check_columns(source, attributes, &chunk)?;
        }
        is_first = false;
        let current = std::mem::take(&mut chunk);
        let work = || -> Vec<Result<(Encoded, Entry, RowRef)>> {
            let one = |row: LazyRow| encode_one(encoder, source, row.parse()?, bos);
            current.into_par_iter().map(one).collect()
        };
        // The next rows are found while these are encoded.
        let (encoded, next) = rayon::join(work, || rows.next_chunk());
        chunk = next;
        for row in encoded {
            let (encoded, entry, row) = row?;
            take(&encoded, entry, &row)?;
            count += 1;
        }
    }
    match rows.failed {
        Some(e) => Err(e),
        None => Ok(count),
    }
}

pub(crate) fn encode_one(
    encoder: &Encoder<'_>,
    source: &DatasetSource,
    row: RawRow,
    bos: Option<u32>,
) -> Result<(Encoded, Entry, RowRef)> {
    let (format, record) = convert_columns(&row, source.attributes.as_ref(), encoder.options)?;
    let mut encoded = encoder.encode(&record, &row.source)?;
    let entry = Entry::new(&encoded, format, &row.source, bos);
    // Only the sample's text is shown; the others' would fill memory.
    encoded.text = String::new();
    encoded.offsets = Vec::new();
    Ok((encoded, entry, row.source))
}

/// The columns that the dataset's entry names must be there, in one of the first rows at least.
fn check_columns(source: &DatasetSource, attributes: &Attributes, rows: &[LazyRow]) -> Result<()> {
    let mut missing = attributes.named_columns();
    let mut seen: Vec<String> = Vec::new();
    for row in rows {
        if missing.is_empty() {
            return Ok(());
        }
        let row = row.clone().parse()?;
        missing.retain(|column| !row.fields.contains_key(*column));
        if seen.is_empty() {
            seen = row.fields.keys().cloned().collect();
        }
    }
    let Some(column) = missing.first() else { return Ok(()) };
    let hint = match nearest(column, seen.iter().map(String::as_str)) {
        Some(near) => format!("; did you mean `{near}`?"),
        None => format!("; it has {}", seen.join(", ")),
    };
    Err(DataError::NoColumn { dataset: source.shown(), column: (*column).into(), hint })
}

/// Rows in pieces that fit into memory. An error ends them, after the rows before it.
struct Chunks<I> {
    rows: I,
    failed: Option<DataError>,
}

impl<I: Iterator<Item = Result<LazyRow>>> Chunks<I> {
    fn next_chunk(&mut self) -> Vec<LazyRow> {
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        while self.failed.is_none() && chunk.len() < CHUNK_ROWS && bytes < CHUNK_BYTES {
            match self.rows.next() {
                None => break,
                Some(Ok(row)) => {
                    bytes += row.bytes();
                    chunk.push(row);
                }
                Some(Err(e)) => self.failed = Some(e),
            }
        }
        chunk
    }
}

/// The row that stands at a place, read once more.
pub(crate) fn find(source: &DatasetSource, place: &RowRef) -> Result<Option<RawRow>> {
    let files = source.resolve()?.into_iter().filter(|f| f.display().to_string() == *place.file);
    let mut rows: Rows = source.rows(files.collect());
    let found = rows.find(|row| row.as_ref().map_or(true, |r| r.source.row == place.row));
    found.map(|row| row?.parse()).transpose()
}
