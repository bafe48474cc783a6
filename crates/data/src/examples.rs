//! Tokenised rows: kept in one piece, in memory or mapped from the cache, and listed in the order of a set.
//!
//! A token is one word: its id, and a bit that says whether it is trained. A row of text takes four bytes a token and
//! forty bytes besides, in memory or on disk.

use std::sync::Arc;

use bytemuck::{Pod, Zeroable};
use memmap2::Mmap;

use crate::encode::{Encoded, Example, IGNORE};
use crate::error::RowRef;
use crate::formats::format_names;

/// Set in a word whose token is trained to be predicted.
pub(crate) const TRAINED: u32 = 1 << 31;

/// What is kept of a row besides its tokens.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct Entry {
    /// Where its words end; they begin where those of the row before end.
    pub end: u64,
    /// Tokens before truncation, and of those the ones before the first trained token.
    pub full_len: u32,
    pub prompt_len: u32,
    /// Trained tokens that are a target.
    pub trained: u32,
    /// Its place: which file, which row (from 1), and which line (0 = none).
    pub file: u32,
    pub row: u32,
    pub line: u32,
    /// Index of its format, and bits.
    pub flags: u32,
    pub zero: u32,
}

/// Bits of [`Entry::flags`] above the format.
const FORMAT: u32 = 0xff;
const CLOSED: u32 = 1 << 8;
const DOUBLED_BOS: u32 = 1 << 9;
const UNUSABLE: u32 = 1 << 10;

impl Entry {
    /// Of an encoded row; `end` and `file` are still to be set.
    pub fn new(encoded: &Encoded, format: &str, row: &RowRef, bos: Option<u32>) -> Self {
        let small = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let doubled =
            bos.is_some() && encoded.input_ids.iter().take(2).filter(|&&id| Some(id) == bos).count() == 2;
        let format = format_names().position(|f| f == format).map_or(FORMAT, small);
        let bit = |on: bool, bit: u32| if on { bit } else { 0 };
        Self {
            full_len: small(encoded.full_len),
            prompt_len: small(encoded.prompt_len),
            trained: small(encoded.labels.iter().skip(1).filter(|&&l| l != IGNORE).count()),
            row: small(row.row),
            line: row.line.map_or(0, small),
            flags: format
                | bit(encoded.ends_trained, CLOSED)
                | bit(doubled, DOUBLED_BOS)
                | bit(encoded.unusable.is_some(), UNUSABLE),
            ..Self::default()
        }
    }

    pub fn format(&self) -> &'static str {
        format_names().nth((self.flags & FORMAT) as usize).unwrap_or("unknown")
    }
    pub fn is_closed(&self) -> bool {
        self.flags & CLOSED != 0
    }
    pub fn has_doubled_bos(&self) -> bool {
        self.flags & DOUBLED_BOS != 0
    }
    /// LLaMA-Factory leaves the row out.
    pub fn is_unusable(&self) -> bool {
        self.flags & UNUSABLE != 0
    }
}

/// A label that is neither its token nor [`IGNORE`], and the word it belongs to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
pub(crate) struct OddLabel {
    pub word: u64,
    pub label: i32,
    pub zero: u32,
}

/// Where the numbers of a store are.
#[derive(Debug)]
pub(crate) enum Memory {
    Own {
        words: Vec<u32>,
        odd: Vec<OddLabel>,
        entries: Vec<Entry>,
    },
    /// Byte ranges in a mapped file that was checked when it was opened.
    Mapped {
        map: Mmap,
        words: std::ops::Range<usize>,
        odd: std::ops::Range<usize>,
        entries: std::ops::Range<usize>,
    },
}

/// All rows of one dataset, also those from which nothing is trained.
#[derive(Debug)]
pub(crate) struct Store {
    pub memory: Memory,
    /// The files that the rows came from.
    pub files: Vec<Arc<str>>,
}

impl Store {
    pub fn words(&self) -> &[u32] {
        match &self.memory {
            Memory::Own { words, .. } => words,
            Memory::Mapped { map, words, .. } => bytemuck::cast_slice(&map[words.clone()]),
        }
    }

    pub fn entries(&self) -> &[Entry] {
        match &self.memory {
            Memory::Own { entries, .. } => entries,
            Memory::Mapped { map, entries, .. } => bytemuck::cast_slice(&map[entries.clone()]),
        }
    }

    fn odd(&self) -> &[OddLabel] {
        match &self.memory {
            Memory::Own { odd, .. } => odd,
            Memory::Mapped { map, odd, .. } => bytemuck::cast_slice(&map[odd.clone()]),
        }
    }

    fn range(&self, row: usize) -> std::ops::Range<usize> {
        let entries = self.entries();
        let start = if row == 0 { 0 } else { entries[row - 1].end };
        start as usize..entries[row].end as usize
    }

    /// Tokens that are kept of a row.
    pub fn len_of(&self, row: usize) -> usize {
        self.range(row).len()
    }

    pub fn source(&self, row: usize) -> RowRef {
        let entry = self.entries()[row];
        RowRef {
            file: self.files.get(entry.file as usize).cloned().unwrap_or_else(|| "".into()),
            row: entry.row as usize,
            line: (entry.line > 0).then_some(entry.line as usize),
        }
    }

    fn tokens(&self, row: usize) -> Tokens<'_> {
        let range = self.range(row);
        let odd = self.odd();
        let from = odd.partition_point(|o| (o.word as usize) < range.start);
        let to = odd.partition_point(|o| (o.word as usize) < range.end);
        Tokens { words: &self.words()[range.clone()], odd: &odd[from..to], start: range.start as u64 }
    }
}

/// Adds rows to numbers in memory.
#[derive(Debug, Default)]
pub(crate) struct Words {
    pub words: Vec<u32>,
    pub odd: Vec<OddLabel>,
    /// Words that are not in `words` any more.
    pub before: u64,
}

impl Words {
    /// Adds a row's tokens.
    pub fn push(&mut self, input_ids: &[u32], labels: &[i32]) {
        for (&id, &label) in input_ids.iter().zip(labels) {
            let is_id = label == id as i32;
            if !is_id && label != IGNORE {
                self.odd.push(OddLabel { word: self.end(), label, zero: 0 });
            }
            self.words.push(if is_id { id | TRAINED } else { id });
        }
    }

    /// Words so far.
    pub fn end(&self) -> u64 {
        self.before + self.words.len() as u64
    }
}

/// The tokens of one row where they are kept.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    words: &'a [u32],
    odd: &'a [OddLabel],
    start: u64,
}

impl<'a> Tokens<'a> {
    /// How many.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// Their ids.
    pub fn ids(&self) -> impl ExactSizeIterator<Item = u32> + 'a {
        self.words.iter().map(|w| w & !TRAINED)
    }

    /// Their labels, unshifted: the id itself, [`IGNORE`], or what a template wants instead.
    pub fn labels(&self) -> impl Iterator<Item = i32> + 'a {
        let (start, mut odd) = (self.start, self.odd.iter().peekable());
        self.words.iter().enumerate().map(move |(i, &w)| {
            if let Some(o) = odd.next_if(|o| o.word == start + i as u64) {
                return o.label;
            }
            if w & TRAINED != 0 { (w & !TRAINED) as i32 } else { IGNORE }
        })
    }
}

/// Which row of which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub store: u32,
    pub row: u32,
}

/// A set of examples in its order. Cloning shares them.
#[derive(Debug, Clone, Default)]
pub struct Examples {
    stores: Vec<Arc<Store>>,
    places: Arc<[Place]>,
}

impl Examples {
    pub(crate) fn new(stores: Vec<Arc<Store>>, places: Vec<Place>) -> Self {
        Self { stores, places: places.into() }
    }

    /// How many examples.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    fn at(&self, index: usize) -> (&Store, usize) {
        let place = self.places[index];
        (&self.stores[place.store as usize], place.row as usize)
    }

    /// Tokens of an example. Panics if there is none of that index, as indexing does.
    pub fn length(&self, index: usize) -> usize {
        let (store, row) = self.at(index);
        store.len_of(row)
    }

    /// The row that an example was made of. Panics if there is none of that index.
    pub fn source(&self, index: usize) -> RowRef {
        let (store, row) = self.at(index);
        store.source(row)
    }

    /// The tokens of an example. Panics if there is none of that index.
    pub fn tokens(&self, index: usize) -> Tokens<'_> {
        let (store, row) = self.at(index);
        store.tokens(row)
    }

    /// An example by itself. Panics if there is none of that index.
    pub fn get(&self, index: usize) -> Example {
        let tokens = self.tokens(index);
        Example {
            input_ids: tokens.ids().collect(),
            labels: tokens.labels().collect(),
            source: self.source(index),
        }
    }

    /// All of them, one after the other.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Example> + '_ {
        (0..self.len()).map(|i| self.get(i))
    }

    /// All of them in memory.
    pub fn to_vec(&self) -> Vec<Example> {
        self.iter().collect()
    }
}

impl PartialEq for Examples {
    /// Whether they hold the same tokens, labels and places in the same order.
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl FromIterator<Example> for Examples {
    fn from_iter<I: IntoIterator<Item = Example>>(examples: I) -> Self {
        let (mut words, mut entries, mut files) = (Words::default(), Vec::new(), Vec::<Arc<str>>::new());
        for example in examples {
            words.push(&example.input_ids, &example.labels);
            let file = files.iter().position(|f| *f == example.source.file).unwrap_or_else(|| {
                files.push(example.source.file.clone());
                files.len() - 1
            });
            let encoded =
                Encoded { input_ids: example.input_ids, labels: example.labels, ..Encoded::default() };
            let entry = Entry::new(&encoded, "", &example.source, None);
            entries.push(Entry { end: words.end(), file: file as u32, ..entry });
        }
        let places = (0..entries.len()).map(|row| Place { store: 0, row: row as u32 }).collect();
        let memory = Memory::Own { words: words.words, odd: words.odd, entries };
        Self::new(vec![Arc::new(Store { memory, files })], places)
    }
}
