//! Decoding ids as they arrive.

use crate::{Result, TokenizerBundle};

/// Turns ids that arrive one by one into text, never emitting half a UTF-8 character.
///
/// Tokens may decode differently at the start of a text than inside it (SentencePiece drops the first space), so each
/// step decodes a short window that begins with tokens already emitted, and returns what the new ones add.
#[derive(Debug)]
pub struct StreamDecoder<'a> {
    bundle: &'a TokenizerBundle,
    skip_special: bool,
    /// Tokens of the window: `..emitted` are out already, the rest wait for the end of a character.
    window: Vec<u32>,
    emitted: usize,
}

impl<'a> StreamDecoder<'a> {
    pub(crate) fn new(bundle: &'a TokenizerBundle, skip_special: bool) -> Self {
        StreamDecoder { bundle, skip_special, window: Vec::new(), emitted: 0 }
    }

    /// Takes the next id and returns the text that is certain now (empty while a character is incomplete).
    ///
    /// # Errors
    /// As [`TokenizerBundle::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(id);
        self.advance(false)
    }

    /// The rest at the end of the stream; an incomplete character comes out as U+FFFD.
    ///
    /// # Errors
    /// As [`TokenizerBundle::decode`].
    pub fn finish(mut self) -> Result<String> {
        self.advance(true)
    }

    fn advance(&mut self, last: bool) -> Result<String> {
        let old = self.bundle.decode(&self.window[..self.emitted], self.skip_special)?;
        let all = self.bundle.decode(&self.window, self.skip_special)?;
        if all.len() <= old.len() || (all.ends_with('\u{FFFD}') && !last) {
            return Ok(String::new());
        }
        let new = all.get(old.len()..).unwrap_or_default().to_owned();
        // The tokens just emitted become the next window's context.
        self.window.drain(..self.emitted);
        self.emitted = self.window.len();
        Ok(new)
    }
}
