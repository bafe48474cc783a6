//! Finding special tokens in rendered text.

use std::ops::Range;

use crate::text::Text;

/// The texts of a tokenizer's special tokens.
#[derive(Debug, Clone, Default)]
pub struct Specials(Vec<String>);

impl Specials {
    /// All special tokens of a tokenizer; EOS counts even when the file forgot to mark it.
    pub fn of(text: &dyn Text) -> Self {
        let mut contents = text.special_contents();
        contents.extend(text.eos().map(|e| e.content));
        Self::new(contents)
    }

    /// From their texts.
    pub fn new(mut contents: Vec<String>) -> Self {
        contents.retain(|c| !c.is_empty());
        // Longer first, so that of two tokens at one place the longer is found.
        contents.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        contents.dedup();
        Self(contents)
    }

    /// The special token that begins first.
    pub(crate) fn first(&self, text: &str) -> Option<Range<usize>> {
        let mut best: Option<Range<usize>> = None;
        for special in &self.0 {
            if let Some(at) = text.find(special.as_str())
                && best.as_ref().is_none_or(|b| at < b.start)
            {
                best = Some(at..at + special.len());
            }
        }
        best
    }

    /// The special token that ends last.
    pub(crate) fn last(&self, text: &str) -> Option<Range<usize>> {
        let mut best: Option<Range<usize>> = None;
        for special in &self.0 {
            if let Some(at) = text.rfind(special.as_str())
                && best.as_ref().is_none_or(|b| at + special.len() > b.end)
            {
                best = Some(at..at + special.len());
            }
        }
        best
    }

    /// Whether the text ends with a special token.
    pub(crate) fn ends(&self, text: &str) -> bool {
        self.0.iter().any(|s| text.ends_with(s.as_str()))
    }
}
