//! What this crate needs of a tokenizer.

/// A special token by id and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Special {
    /// Its id.
    pub id: u32,
    /// Its text, as it appears in rendered templates.
    pub content: String,
}

/// Token ids of a text, each with the bytes it came from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Encoding {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Byte range `[start, end)` in the text of each id; same length as `ids`.
    pub offsets: Vec<(usize, usize)>,
}

/// A tokenizer as this crate sees it. Implemented for `loratune_tokenizer::TokenizerBundle`; tests use a toy.
pub trait Text: Send + Sync {
    /// Encodes without adding special tokens; special tokens that stand in the text become their ids.
    ///
    /// # Errors
    /// The tokenizer's own message.
    fn encode(&self, text: &str) -> Result<Encoding, String>;
    /// Text of the ids, special tokens included.
    ///
    /// # Errors
    /// The tokenizer's own message.
    fn decode(&self, ids: &[u32]) -> Result<String, String>;
    /// The piece of one id as the vocabulary writes it.
    fn piece(&self, id: u32) -> Option<String>;
    /// Whether an id is a special (control) token.
    fn is_special(&self, id: u32) -> bool;
    /// Number of token ids.
    fn vocab_size(&self) -> usize;
    /// Token that begins a text.
    fn bos(&self) -> Option<Special>;
    /// Token that ends a text.
    fn eos(&self) -> Option<Special>;
    /// Token that fills up batches.
    fn pad(&self) -> Option<Special>;
    /// Token for what is unknown.
    fn unk(&self) -> Option<Special>;
    /// Whether the tokenizer puts BOS before a text by itself.
    fn add_bos(&self) -> bool;
    /// The model's chat template.
    fn chat_template(&self) -> Option<&str>;
    /// Texts of all tokens marked as special (control) tokens, such as `<|im_end|>`.
    fn special_contents(&self) -> Vec<String>;
    /// A digest of everything that decides which ids a text has; `None` where nobody can tell, so that nothing that was
    /// tokenised is kept.
    fn fingerprint(&self) -> Option<u128> {
        None
    }
}
