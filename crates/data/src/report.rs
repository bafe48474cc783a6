//! What a run shows of its data before it starts.

use std::fmt::{self, Write};

use serde::Serialize;

use crate::encode::{EncodeOptions, Encoded, IGNORE};
use crate::error::RowRef;
use crate::examples::Examples;
use crate::pack::pack;
use crate::page::{Page, paragraph, visible};
use crate::text::Text;

/// Characters of one stretch of the sample (trained or not) shown at its head and at its tail.
const STRETCH: usize = 400;
/// Tokens shown at the head and at the tail.
const ENDS: usize = 6;

/// Counts over the examples of one set.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct SetStats {
    /// Rows read.
    pub rows: usize,
    /// Rows left out because no trained token was left.
    pub dropped: usize,
    /// Of these, rows that LLaMA-Factory leaves out: without a response, or whose turns do not alternate.
    #[serde(skip_serializing_if = "is_zero")]
    pub unusable: usize,
    /// Rows cut to `cutoff_len`.
    pub truncated_rows: usize,
    /// Tokens of the examples.
    pub tokens: usize,
    /// Of these, trained.
    pub trained_tokens: usize,
    /// Tokens of the shortest example.
    pub min_length: usize,
    /// Mean tokens an example.
    pub mean_length: f64,
    /// Tokens of the longest example.
    pub max_length: usize,
    /// Examples that begin with two BOS.
    pub doubled_bos: usize,
    /// Examples whose last trained token (before truncation) is neither EOS nor another special token.
    pub unclosed: usize,
}

impl SetStats {
    /// Rows that became examples.
    pub fn examples(&self) -> usize {
        self.rows - self.dropped
    }
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// How full packed rows are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PackStats {
    /// Tokens a row can hold.
    pub capacity: usize,
    /// Rows in every epoch.
    pub rows: usize,
    /// Filled share of all rows, in per cent.
    pub fill_percent: f64,
}

/// One token of the sample.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TokenView {
    /// Its id.
    pub id: u32,
    /// Its piece as the vocabulary writes it.
    pub piece: String,
    /// Whether it is trained.
    pub trained: bool,
}

/// A stretch of text that is trained, or is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The text.
    pub text: String,
    /// Whether its tokens are trained.
    pub trained: bool,
}

/// One example with its mask.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The row it came from.
    pub source: String,
    /// Its text in stretches.
    pub segments: Vec<Segment>,
    /// All its tokens.
    pub tokens: Vec<TokenView>,
}

/// Everything there is to say about a run's data.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DatasetReport {
    /// Name of the chat template.
    pub template: String,
    /// `cutoff_len`.
    pub cutoff_len: Option<usize>,
    /// Rows of the training set by format.
    pub formats: Vec<(String, usize)>,
    /// Rows of the evaluation set by format.
    pub eval_formats: Vec<(String, usize)>,
    /// The training set.
    pub train: SetStats,
    /// The evaluation set.
    pub eval: Option<SetStats>,
    /// Packing, when it is on.
    pub packing: Option<PackStats>,
    /// The first example.
    pub sample: Option<Sample>,
    /// What should be looked at.
    pub warnings: Vec<String>,
}

impl Sample {
    pub(crate) fn new(encoded: &Encoded, row: &RowRef, text: &dyn Text) -> Self {
        let mut tokens = Vec::with_capacity(encoded.input_ids.len());
        let mut segments: Vec<Segment> = Vec::new();
        let mut written = 0;
        for (i, ((&id, &label), &(start, end))) in
            encoded.input_ids.iter().zip(&encoded.labels).zip(&encoded.offsets).enumerate()
        {
            // Nothing stands before the first token to predict it from.
            let trained = i > 0 && label != IGNORE;
            let piece = text.piece(id).unwrap_or_else(|| format!("#{id}"));
            let shown = if start == end {
                // Added tokens and rows that came as ids have no text of their own.
                if encoded.text.is_empty() {
                    text.decode(&[id]).unwrap_or_else(|_| piece.clone())
                } else {
                    piece.clone()
                }
            } else {
                // Truncation leaves gaps in the text; pieces of one character repeat its range.
                let from = if start > written { start } else { written.min(end) };
                written = end;
                encoded.text.get(from..end).unwrap_or_default().to_string()
            };
            match segments.last_mut() {
                Some(last) if last.trained == trained => last.text.push_str(&shown),
                _ => segments.push(Segment { text: shown, trained }),
            }
            tokens.push(TokenView { id, piece, trained });
        }
        Self { source: row.to_string(), segments, tokens }
    }
}

impl DatasetReport {
    pub(crate) fn new(
        template: &str,
        options: &EncodeOptions,
        train: &SetStats,
        examples: &Examples,
    ) -> Self {
        let packing = options.packing.filter(|&c| c > 0).map(|capacity| {
            let lengths: Vec<usize> = (0..examples.len()).map(|i| examples.length(i)).collect();
            let rows = pack(&lengths, capacity).len();
            let fill_percent = 100.0 * train.tokens as f64 / (rows.max(1) * capacity) as f64;
            PackStats { capacity, rows, fill_percent }
        });
        Self {
            template: template.into(),
            cutoff_len: options.cutoff_len,
            formats: Vec::new(),
            eval_formats: Vec::new(),
            train: train.clone(),
            eval: None,
            packing,
            sample: None,
            warnings: warnings(train, options),
        }
    }

    /// The report as text, at most 100 columns wide. With `color`, trained text is green on a terminal; without, it
    /// stands between ⟦ and ⟧.
    pub fn render(&self, color: bool) -> String {
        let mut out = String::new();
        let mut line = |name: &str, value: String| {
            let _ = writeln!(out, "{name:<10} {value}");
        };
        line("rows", format!("{} ({})", counts(&self.train), by_format(&self.formats)));
        line("tokens", tokens(&self.train));
        if let Some(eval) = &self.eval {
            line("eval rows", format!("{} ({})", counts(eval), by_format(&self.eval_formats)));
            line("tokens", tokens(eval));
        }
        let cutoff = self.cutoff_len.map(|c| format!(", cut at {} tokens", thousands(c))).unwrap_or_default();
        line("template", format!("{}{cutoff}", self.template));
        if let Some(p) = &self.packing {
            let (rows, capacity) = (rows(p.rows), thousands(p.capacity));
            line("packing", format!("{rows} of {capacity} tokens, {:.1} % full", p.fill_percent));
        }
        for warning in &self.warnings {
            out.push_str(&paragraph("warning", warning));
        }
        if let Some(sample) = &self.sample {
            sample.render(&mut out, color);
        }
        out
    }
}

impl fmt::Display for DatasetReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

fn by_format(formats: &[(String, usize)]) -> String {
    let parts: Vec<String> = formats.iter().map(|(f, n)| format!("{} {f}", thousands(*n))).collect();
    parts.join(", ")
}

fn warnings(train: &SetStats, options: &EncodeOptions) -> Vec<String> {
    let mut out = Vec::new();
    let dropped = train.dropped - train.unusable;
    if dropped > 0 {
        let cutoff = options.cutoff_len.map(|c| format!(" after cutting at {c} tokens")).unwrap_or_default();
        out.push(format!("{} left out: no trained token{cutoff}", rows(dropped)));
    }
    if train.doubled_bos > 0 {
        out.push(format!(
            "{} with a doubled BOS; does the text or the template bring its own?",
            rows(train.doubled_bos)
        ));
    }
    if train.unclosed > 0 {
        let n = rows(train.unclosed);
        out.push(format!("{n} whose training does not end in an end token; the model may not learn to stop"));
    }
    out
}

/// `1 row`, `2 rows`.
fn rows(n: usize) -> String {
    if n == 1 { "1 row".to_string() } else { format!("{} rows", thousands(n)) }
}

fn counts(s: &SetStats) -> String {
    let mut out = thousands(s.rows);
    if s.dropped > 0 {
        let _ = write!(out, ", {} left out", thousands(s.dropped));
    }
    if s.truncated_rows > 0 {
        let _ = write!(out, ", {} truncated", thousands(s.truncated_rows));
    }
    out
}

fn tokens(s: &SetStats) -> String {
    let share = 100.0 * s.trained_tokens as f64 / s.tokens.max(1) as f64;
    format!(
        "{}, {} trained ({share:.1} %), {} to {} a row, {:.1} on average",
        thousands(s.tokens),
        thousands(s.trained_tokens),
        thousands(s.min_length),
        thousands(s.max_length),
        s.mean_length
    )
}

/// `1234567` → `1 234 567`, from five digits on.
fn thousands(n: usize) -> String {
    let digits = n.to_string();
    if digits.len() < 5 {
        return digits;
    }
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

impl Sample {
    fn render(&self, out: &mut String, color: bool) {
        let trained = self.tokens.iter().filter(|t| t.trained).count();
        let key = if color { "trained in green" } else { "trained in ⟦ ⟧" };
        let n = self.tokens.len();
        let _ = writeln!(out, "\nsample     {}: {n} tokens, {trained} trained ({key})", self.source);
        let mut page = Page::new(color);
        for segment in &self.segments {
            page.set(segment.trained);
            page.write(&elided(&segment.text));
        }
        page.set(false);
        out.push_str(&page.end());
        let head = self.tokens.iter().take(ENDS);
        let tail = self.tokens.iter().skip(n.saturating_sub(ENDS).max(ENDS.min(n)));
        self.ends(out, "first", head);
        self.ends(out, "last", tail);
    }

    fn ends<'t>(&self, out: &mut String, name: &str, tokens: impl Iterator<Item = &'t TokenView>) {
        let views: Vec<String> = tokens
            .map(|t| {
                let mut piece: String = t.piece.chars().map(visible).take(24).collect();
                if t.trained {
                    piece = format!("⟦{piece}⟧");
                }
                format!("{} {piece}", t.id)
            })
            .collect();
        if !views.is_empty() {
            out.push_str(&paragraph(name, &views.join("  ")));
        }
    }
}

/// Long stretches keep their head and tail.
fn elided(text: &str) -> String {
    let n = text.chars().count();
    if n <= 2 * STRETCH {
        return text.to_string();
    }
    let head: String = text.chars().take(STRETCH).collect();
    let tail: String = text.chars().skip(n - STRETCH).collect();
    format!("{head}\n… {} characters …\n{tail}", thousands(n - 2 * STRETCH))
}
