//! The rows of a set: which became examples, and what was counted of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use crate::encode::EncodeOptions;
use crate::error::{DataError, Result, RowRef};
use crate::examples::{Entry, Examples, Place, Store};
use crate::formats::format_names;
use crate::read::DatasetSource;
use crate::report::SetStats;

/// A set to train or to evaluate on.
pub(crate) struct Set {
    pub stores: Vec<Arc<Store>>,
    /// All rows, and those of them that became examples.
    pub rows: Vec<Place>,
    pub kept: Vec<Place>,
    pub stats: SetStats,
    formats: BTreeMap<&'static str, usize>,
    shortest_prompt: Option<usize>,
    cut_off: usize,
    /// The first row that LLaMA-Factory leaves out.
    unusable: Option<RowRef>,
}

impl Set {
    pub fn new(stores: Vec<Arc<Store>>, rows: Vec<Place>) -> Self {
        let mut set = Self {
            stores,
            rows: Vec::new(),
            kept: Vec::with_capacity(rows.len()),
            stats: SetStats::default(),
            formats: BTreeMap::new(),
            shortest_prompt: None,
            cut_off: 0,
            unusable: None,
        };
        for place in &rows {
            set.count(*place);
        }
        set.rows = rows;
        set.stats.finish();
        set
    }

    fn count(&mut self, place: Place) {
        let store = self.stores[place.store as usize].clone();
        let (row, length) = (place.row as usize, store.len_of(place.row as usize));
        let entry = &store.entries()[row];
        *self.formats.entry(entry.format()).or_default() += 1;
        self.stats.count(entry, length);
        if entry.trained > 0 {
            self.kept.push(place);
        } else if entry.is_unusable() {
            self.unusable.get_or_insert_with(|| store.source(row));
        } else if entry.prompt_len < entry.full_len {
            self.cut_off += 1;
            let prompt = entry.prompt_len as usize;
            self.shortest_prompt = Some(self.shortest_prompt.map_or(prompt, |s| s.min(prompt)));
        }
    }

    /// The rows that are trained.
    pub fn examples(&self) -> Examples {
        Examples::new(self.stores.clone(), self.kept.clone())
    }

    /// The examples of each dataset, which lie one after the other.
    pub fn by_store(&self, sources: &[DatasetSource]) -> Vec<(String, Range<usize>)> {
        let bound = |store: usize| self.kept.partition_point(|p| (p.store as usize) < store);
        sources.iter().enumerate().map(|(i, s)| (s.shown(), bound(i)..bound(i + 1))).collect()
    }

    /// Rows by format.
    pub fn formats(&self) -> Vec<(String, usize)> {
        let count = |name: &str| self.formats.get(name).copied().unwrap_or(0);
        let mut names: Vec<&str> = format_names().collect();
        names.dedup();
        names.into_iter().map(|f| (f.to_string(), count(f))).filter(|(_, n)| *n > 0).collect()
    }

    /// What should be said of rows that cannot be used.
    pub fn unusable_note(&self) -> Option<String> {
        let row = self.unusable.as_ref()?;
        let n = self.stats.unusable;
        let rows = if n == 1 { "1 row is".to_string() } else { format!("{n} rows are") };
        Some(format!(
            "{rows} left out, as LLaMA-Factory does: no response, or turns that do not alternate or have roles without a tag; \
             the first is {row}"
        ))
    }

    pub fn require_trained(&self, options: &EncodeOptions) -> Result<()> {
        if !self.kept.is_empty() {
            return Ok(());
        }
        let rows = self.stats.rows;
        let message = match (options.cutoff_len, self.shortest_prompt) {
            _ if self.stats.unusable == rows => {
                let place = self.unusable.as_ref().map(RowRef::to_string).unwrap_or_default();
                format!(
                    "none of the {rows} rows can be used: no response, or turns that do not alternate or have roles that no tag \
                     of dataset_info.json names; the first is {place}"
                )
            }
            (Some(cutoff), Some(shortest)) if self.cut_off == rows => {
                let all = if rows == 1 { "the only row".into() } else { format!("all {rows} rows") };
                let word = if rows == 1 { "its" } else { "their" };
                format!(
                    "{all} lost {word} response to cutoff_len {cutoff}; the shortest prompt has {shortest} tokens"
                )
            }
            (Some(cutoff), Some(_)) => {
                let empty = rows - self.cut_off;
                format!(
                    "{} of {rows} rows lost their response to cutoff_len {cutoff}, and {empty} have no trained token at all",
                    self.cut_off
                )
            }
            _ => format!(
                "none of the {rows} rows has a trained token; their responses are empty, or their labels are all -100"
            ),
        };
        Err(DataError::NothingTrained { message })
    }
}

impl SetStats {
    /// Counts a row of so many tokens.
    pub(crate) fn count(&mut self, entry: &Entry, length: usize) {
        self.rows += 1;
        self.truncated_rows += usize::from(length < entry.full_len as usize);
        if entry.trained == 0 {
            self.dropped += 1;
            self.unusable += usize::from(entry.is_unusable());
            return;
        }
        self.min_length = if self.tokens == 0 { length } else { self.min_length.min(length) };
        self.max_length = self.max_length.max(length);
        self.tokens += length;
        self.trained_tokens += entry.trained as usize;
        self.doubled_bos += usize::from(entry.has_doubled_bos());
        self.unclosed += usize::from(!entry.is_closed());
    }

    /// The mean, once all rows are counted.
    pub(crate) fn finish(&mut self) {
        let examples = self.examples();
        self.mean_length = if examples == 0 { 0.0 } else { self.tokens as f64 / examples as f64 };
    }
}
