//! Training on more data than fits on a disk cache or in memory: rows are read, tokenised and shuffled as they are asked
//! for, pass after pass.
//!
//! What comes out is a pure function of the files, the options and the seed, so that a resumed run reads its way to where it
//! was.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use crate::cache::Writer;
use crate::encode::{EncodeOptions, Example};
use crate::error::{DataError, Result};
use crate::examples::Place;
use crate::load::{DatasetSpec, Prepared};
use crate::mix::{Mix, Turns};
use crate::read::{DatasetSource, LazyRow, Rows};
use crate::report::DatasetReport;
use crate::rng::keyed;
use crate::set::Set;
use crate::text::Text;
use crate::tokenise::{encode_all, encode_one};

/// Rows that are tokenised at once.
const CHUNK: usize = 1024;

/// Separates the buffer's draws from the other randomness of a seed.
const BUFFER: u64 = 0x62_75_66;

/// Examples without an end.
pub struct ExampleStream {
    text: Arc<dyn Text>,
    prepared: Prepared,
    options: EncodeOptions,
    spec: DatasetSpec,
    /// Rows among which the next one is drawn; `None` keeps the order.
    buffer_size: Option<usize>,
    /// Rows at the head that are set aside for evaluation.
    held_out: usize,
    pass: u64,
    merged: Option<Merged>,
    /// Tokenised rows that are not in the buffer yet.
    ready: VecDeque<Example>,
    buffer: Vec<Example>,
    drawn: u64,
    in_pass: u64,
}

impl fmt::Debug for ExampleStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExampleStream")
            .field("pass", &self.pass)
            .field("drawn", &self.drawn)
            .finish_non_exhaustive()
    }
}

impl ExampleStream {
    /// Over the datasets of `spec.train`; `spec.val_size` whole rows from the head are left to evaluation. Nothing is read
    /// yet.
    ///
    /// # Errors
    /// Options and template as for [`crate::load_examples`], a share as `val_size`, and `num_samples`.
    pub fn new(
        spec: DatasetSpec,
        text: Arc<dyn Text>,
        options: EncodeOptions,
        buffer_size: Option<usize>,
    ) -> Result<Self> {
        let prepared = Prepared::new(&*text, &options)?;
        if spec.train.is_empty() {
            return Err(DataError::NoDataset);
        }
        if spec.val_size != 0.0 && spec.val_size.fract() != 0.0 {
            let message =
                "a stream has no length, so that no share of it can be held out; give a number of rows"
                    .into();
            return Err(DataError::ValSize { val_size: spec.val_size, message });
        }
        if let Some(drawn) = spec.train.iter().find(|s| s.num_samples.is_some()) {
            return Err(DataError::Options(format!(
                "{}: num_samples does not go with streaming, which does not know how many rows there are",
                drawn.shown()
            )));
        }
        let held_out = spec.val_size as usize;
        Ok(Self {
            text,
            prepared,
            options,
            spec,
            buffer_size: buffer_size.filter(|n| *n > 1),
            held_out,
            pass: 0,
            merged: None,
            ready: VecDeque::new(),
            buffer: Vec::new(),
            drawn: 0,
            in_pass: 0,
        })
    }

    /// Back to the first example of the first pass.
    pub fn restart(&mut self) {
        (self.pass, self.drawn, self.in_pass) = (0, 0, 0);
        self.merged = None;
        self.ready.clear();
        self.buffer.clear();
    }

    /// The rows that are held out, as a dataset of their own, and what to show of the first rows before training.
    ///
    /// # Errors
    /// As [`crate::load_examples`], for these rows.
    pub fn head(&self) -> Result<(Vec<Example>, DatasetReport)> {
        let encoder = self.prepared.encoder(&*self.text, &self.options);
        let mut merged = Merged::open(&self.spec)?;
        let mut set = |wanted: usize| -> Result<Set> {
            let mut writer = Writer::new(Vec::new(), None);
            let mut n = 0;
            for row in merged.by_ref().take(wanted) {
                let (dataset, row) = row?;
                let bos = self.text.bos().map(|b| b.id);
                let (encoded, entry, row) =
                    encode_one(&encoder, &self.spec.train[dataset], row.parse()?, bos)?;
                writer.push(&encoded, entry, &row)?;
                n += 1;
            }
            let places = (0..n).map(|row| Place { store: 0, row }).collect();
            Ok(Set::new(vec![Arc::new(writer.finish()?)], places))
        };
        let (eval, train) = (set(self.held_out)?, set(CHUNK)?);
        train.require_trained(&self.options)?;
        if self.held_out > 0 {
            eval.require_trained(&self.options)?;
        }
        let options = EncodeOptions { packing: None, ..self.options.clone() };
        let mut report =
            DatasetReport::new(self.prepared.template.name(), &options, &train.stats, &train.examples());
        (report.formats, report.eval_formats) = (train.formats(), eval.formats());
        report.warnings.extend(self.prepared.note(&*self.text, &report));
        report
            .warnings
            .push(format!("streaming: rows and tokens are those of the first {} rows", train.stats.rows));
        report.eval = (self.held_out > 0).then(|| eval.stats.clone());
        Ok((eval.examples().to_vec(), report))
    }

    /// A digest of the files' names and sizes and of the options, by which a resumed run tells that its data changed.
    ///
    /// # Errors
    /// Files that are not there.
    pub fn digest(&self) -> Result<String> {
        let mut sum = xxhash_rust::xxh3::Xxh3::new();
        for source in &self.spec.train {
            for file in source.resolve()? {
                let size = std::fs::metadata(&file).map_or(0, |m| m.len());
                sum.update(format!("{}:{size};", file.display()).as_bytes());
            }
            sum.update(format!("{:?}{:?}", source.max_samples, source.attributes).as_bytes());
        }
        let options = EncodeOptions { now: None, sample_row: None, ..self.options.clone() };
        let spec = (self.spec.mix, &self.spec.weights, self.held_out, self.spec.seed, self.buffer_size);
        sum.update(format!("{options:?}{spec:?}").as_bytes());
        Ok(format!("{:016x}", sum.digest()))
    }

    /// The next example. Passes follow each other; each is shuffled anew.
    ///
    /// # Errors
    /// A row that cannot be used, with its place, or a pass in which nothing is trained.
    pub fn next_example(&mut self) -> Result<Example> {
        loop {
            let size = self.buffer_size.unwrap_or(1);
            while self.buffer.len() < size {
                match self.next_tokenised()? {
                    Some(example) => self.buffer.push(example),
                    None => break,
                }
            }
            if !self.buffer.is_empty() {
                return self.draw();
            }
            if self.in_pass == 0 {
                let message = "no row of a whole pass over the data has a trained token".into();
                return Err(DataError::NothingTrained { message });
            }
            self.pass += 1;
            self.in_pass = 0;
            self.merged = None;
        }
    }

    /// Takes one out of the buffer, in whose place the next row comes.
    fn draw(&mut self) -> Result<Example> {
        let key = keyed(&[self.spec.seed, BUFFER, self.drawn]);
        let at = ((u128::from(key) * self.buffer.len() as u128) >> 64) as usize;
        self.drawn += 1;
        self.in_pass += 1;
        Ok(match self.next_tokenised()? {
            Some(next) => std::mem::replace(&mut self.buffer[at], next),
            None => self.buffer.swap_remove(at),
        })
    }

    /// The next row of this pass that has something to train on.
    fn next_tokenised(&mut self) -> Result<Option<Example>> {
        while self.ready.is_empty() {
            if self.merged.is_none() {
                if self.in_pass > 0 || !self.buffer.is_empty() {
                    return Ok(None);
                }
                let mut merged = Merged::open(&self.spec)?;
                for row in merged.by_ref().take(self.held_out) {
                    row?;
                }
                self.merged = Some(merged);
            }
            if !self.tokenise_chunk()? {
                self.merged = None;
                if self.ready.is_empty() {
                    return Ok(None);
                }
            }
        }
        Ok(self.ready.pop_front())
    }

    /// Tokenises the next rows; false when they are over.
    fn tokenise_chunk(&mut self) -> Result<bool> {
        let Some(merged) = &mut self.merged else { return Ok(false) };
        let rows = merged.take(CHUNK).collect::<Result<Vec<_>>>()?;
        let encoder = self.prepared.encoder(&*self.text, &self.options);
        // Rows of one dataset after another, for what its entry says of its columns.
        for group in rows.chunk_by(|a, b| a.0 == b.0) {
            let Some((dataset, _)) = group.first() else { continue };
            let source = &self.spec.train[*dataset];
            let ready = &mut self.ready;
            encode_all(
                &encoder,
                source,
                group.iter().map(|(_, row)| Ok(row.clone())),
                |encoded, entry, row| {
                    if entry.trained > 0 {
                        let (input_ids, labels) = (encoded.input_ids.clone(), encoded.labels.clone());
                        ready.push_back(Example { input_ids, labels, source: row.clone() });
                    }
                    Ok(())
                },
            )?;
        }
        Ok(!rows.is_empty())
    }
}

/// The rows of all datasets of one pass, merged.
struct Merged {
    sources: Vec<DatasetSource>,
    rows: Vec<Box<dyn Iterator<Item = Result<LazyRow>> + Send>>,
    /// A row read ahead of each dataset, which tells whether it is over.
    ahead: Vec<Option<Result<LazyRow>>>,
    over: Vec<bool>,
    mix: Mix,
    turns: Turns,
    at: usize,
    done: bool,
}

fn open_rows(source: &DatasetSource) -> Result<Box<dyn Iterator<Item = Result<LazyRow>> + Send>> {
    let rows: Rows = source.rows(source.resolve()?);
    Ok(Box::new(rows.take(source.max_samples.unwrap_or(usize::MAX))))
}

impl Merged {
    fn open(spec: &DatasetSpec) -> Result<Self> {
        let n = spec.train.len();
        let mix = if n == 1 { Mix::Concat } else { spec.mix };
        let weights = spec.weights.as_deref().filter(|_| mix != Mix::Concat);
        let turns = Turns::new(n, weights, spec.seed)?;
        let mut rows = spec.train.iter().map(open_rows).collect::<Result<Vec<_>>>()?;
        let ahead: Vec<_> = rows.iter_mut().map(Iterator::next).collect();
        if let Some(empty) = ahead.iter().position(Option::is_none) {
            return Err(DataError::EmptyDataset { path: spec.train[empty].shown() });
        }
        let over = (0..n).map(|d| !turns.draws(d)).collect();
        Ok(Self { sources: spec.train.clone(), rows, ahead, over, mix, turns, at: 0, done: false })
    }

    /// Takes a dataset's row and reads the next; begins it again where the mix wants that.
    fn take_from(&mut self, dataset: usize) -> Option<Result<LazyRow>> {
        let row = self.ahead[dataset].take()?;
        self.ahead[dataset] = self.rows[dataset].next();
        if self.ahead[dataset].is_none() {
            self.over[dataset] = true;
            if self.mix == Mix::InterleaveOver {
                match open_rows(&self.sources[dataset]) {
                    Ok(rows) => self.rows[dataset] = rows,
                    Err(e) => return Some(Err(e)),
                }
                self.ahead[dataset] = self.rows[dataset].next();
            }
        }
        Some(row)
    }

    /// Whether the pass is over, asked before a draw.
    fn is_over(&self) -> bool {
        // By turns, a round is finished.
        let due = self.turns.is_weighted() || self.turns.is_round();
        due && match self.mix {
            Mix::Concat => false,
            Mix::InterleaveUnder => (0..self.over.len()).any(|d| self.over[d] && self.turns.draws(d)),
            Mix::InterleaveOver | Mix::InterleaveOnce => !self.over.contains(&false),
        }
    }
}

impl Iterator for Merged {
    /// A row and the dataset that it is of.
    type Item = Result<(usize, LazyRow)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.mix == Mix::Concat {
            while self.at < self.rows.len() {
                if let Some(row) = self.take_from(self.at) {
                    return Some(row.map(|r| (self.at, r)));
                }
                self.at += 1;
            }
            return None;
        }
        while !self.done {
            if self.is_over() {
                self.done = true;
                break;
            }
            let dataset = self.turns.draw();
            if let Some(row) = self.take_from(dataset) {
                return Some(row.map(|r| (dataset, r)));
            }
        }
        None
    }
}
