//! The tokenizer as the rest of the program sees it.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{PostProcessor, Tokenizer};

use crate::config::{self, ConfigParts};
use crate::fast::ByteLevelBpe;
use crate::{Result, StreamDecoder, TokenizerError};

/// The key of tokenizer_config.json.
const SPLIT: &str = "split_special_tokens";

/// Start and end, in bytes, of what a token covers in its text.
pub type ByteRange = (usize, usize);

/// A token with a role (BOS, EOS, padding, unknown).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    /// Its id in the vocabulary.
    pub id: u32,
    /// Its text, for instance `<|im_end|>`.
    pub content: String,
}

/// A tokenizer, its special tokens and its chat template.
#[derive(Debug, Clone)]
pub struct TokenizerBundle {
    /// Without its post-processor, which would trim spaces from offsets; [`Self::encode`] applies it itself.
    pub(crate) tokenizer: Tokenizer,
    /// A shorter way to the same ids, where there is one.
    fast: Option<Arc<ByteLevelBpe>>,
    pub(crate) post_processor: Option<PostProcessorWrapper>,
    /// tokenizer_config.json as it was read, less the chat template.
    pub(crate) config: Map<String, Value>,
    /// Templates with other names than "default", in the order of the file.
    pub(crate) named_templates: Vec<(String, String)>,
    vocab_size: usize,
    /// The default chat template (Jinja), if the model has one.
    pub chat_template: Option<String>,
    /// Beginning of sequence.
    pub bos: Option<SpecialToken>,
    /// End of sequence.
    pub eos: Option<SpecialToken>,
    /// Padding.
    pub pad: Option<SpecialToken>,
    /// Unknown text.
    pub unk: Option<SpecialToken>,
    /// Does `encode(text, true)` put BOS in front?
    pub add_bos: bool,
    /// Does `encode(text, true)` put EOS at the end?
    pub add_eos: bool,
    /// The longest input in tokens that the tokenizer's configuration declares; absent or absurdly large values
    /// (transformers writes 1e30 for "no limit") are `None`.
    pub model_max_length: Option<usize>,
}

impl TokenizerBundle {
    /// Builds from the text of tokenizer.json and the value of tokenizer_config.json (`null` or `{}` when there is
    /// none; it may hold `chat_template`).
    ///
    /// # Errors
    /// When either cannot be understood.
    pub fn from_parts(tokenizer_json: &str, tokenizer_config: Value) -> Result<Self> {
        let parts = ConfigParts::from_value(tokenizer_config, "tokenizer_config.json")?;
        Self::assemble(tokenizer_json.as_bytes(), parts, "tokenizer.json")
    }

    /// Builds from tokenizer.json's bytes and a configuration; `origin` names the source in errors.
    pub(crate) fn assemble(tokenizer_json: &[u8], parts: ConfigParts, origin: &str) -> Result<Self> {
        let build = |detail: String| TokenizerError::Build { origin: origin.to_owned(), detail };
        let mut tokenizer = Tokenizer::from_bytes(tokenizer_json).map_err(|e| build(e.to_string()))?;
        // Truncation and padding are decided by whoever builds the batches, never in silence by the tokenizer.
        tokenizer.with_truncation(None).map_err(|e| build(e.to_string()))?;
        tokenizer.with_padding(None);
        config::add_missing_tokens(&mut tokenizer, &parts, origin)?;
        let special = |content: &Option<String>| {
            content
                .as_ref()
                .and_then(|c| tokenizer.token_to_id(c).map(|id| SpecialToken { id, content: c.clone() }))
        };
        let (bos, eos, pad, unk) =
            (special(&parts.bos), special(&parts.eos), special(&parts.pad), special(&parts.unk));
        // tokenizer.json decides. transformers 5 leaves `add_bos_token` and `add_eos_token` unread beside it; here they count
        // where it says nothing.
        let post_processor = match (tokenizer.get_post_processor(), parts.adds) {
            (None, Some((add_bos, add_eos))) => {
                let bos = bos.as_ref().filter(|_| add_bos);
                let eos = eos.as_ref().filter(|_| add_eos);
                config::template_post_processor(bos, eos).map_err(build)?
            }
            (post_processor, _) => post_processor.cloned(),
        };
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        let mut bundle = TokenizerBundle {
            tokenizer,
            fast: None,
            post_processor,
            config: parts.config,
            named_templates: parts.named_templates,
            vocab_size: 0,
            chat_template: parts.chat_template,
            bos,
            eos,
            pad,
            unk,
            add_bos: false,
            add_eos: false,
            model_max_length: parts.model_max_length,
        };
        match bundle.config.get(SPLIT).and_then(Value::as_bool) {
            Some(true) => bundle.split_special_tokens(),
            _ => bundle.measure(),
        }
        // Asking is surer than interpreting the many kinds of post-processor.
        let probe = bundle.encode("a", true)?;
        let bare = bundle.encode("a", false)?;
        if probe.len() > bare.len() {
            bundle.add_bos = bundle.bos.as_ref().is_some_and(|t| probe.first() == Some(&t.id));
            bundle.add_eos = bundle.eos.as_ref().is_some_and(|t| probe.last() == Some(&t.id));
        }
        Ok(bundle)
    }

    /// Token ids of `text`. Special tokens that occur in the text are recognised; `add_special` also adds what the
    /// tokenizer puts around a sequence (BOS, EOS).
    ///
    /// # Errors
    /// When the tokenizers library fails, for instance on a character that the vocabulary cannot express.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let fail = |e: tokenizers::Error| TokenizerError::Run { action: "tokenise", detail: e.to_string() };
        let encoding = self.tokenizer.encode_fast(text, false).map_err(fail)?;
        match (&self.post_processor, add_special) {
            (Some(post), true) => Ok(post.process(encoding, None, true).map_err(fail)?.get_ids().to_vec()),
            _ => Ok(encoding.get_ids().to_vec()),
        }
    }

    /// Token ids of `text` with the byte range that each covers, as `(start, end)` into `text`. Nothing is added;
    /// special tokens in the text are recognised. Ranges keep their leading space (unlike transformers' trimmed
    /// offsets); tokens that share one multi-byte character all carry that character's range.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_with_offsets(&self, text: &str) -> Result<(Vec<u32>, Vec<ByteRange>)> {
        let fail = |e: tokenizers::Error| TokenizerError::Run { action: "tokenise", detail: e.to_string() };
        if let Some(encoded) = self.fast.as_ref().and_then(|fast| fast.encode(&self.tokenizer, text)) {
            return encoded.map_err(fail);
        }
        self.encode_by_library(text)
    }

    /// As [`Self::encode_with_offsets`], the long way.
    pub(crate) fn encode_by_library(&self, text: &str) -> Result<(Vec<u32>, Vec<ByteRange>)> {
        let encoding = self
            .tokenizer
            .encode(text, false)
            .map_err(|e| TokenizerError::Run { action: "tokenise", detail: e.to_string() })?;
        Ok((encoding.get_ids().to_vec(), encoding.get_offsets().to_vec()))
    }

    /// Text of `ids`; `skip_special` leaves special tokens out. Ids without a token (a model's vocabulary is often
    /// padded beyond the tokenizer's) give no text. Incomplete UTF-8 becomes U+FFFD.
    ///
    /// # Errors
    /// When the tokenizers library fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.tokenizer
            .decode(ids, skip_special)
            .map_err(|e| TokenizerError::Run { action: "decode token ids", detail: e.to_string() })
    }

    /// A decoder for ids that arrive one by one.
    pub fn stream_decoder(&self, skip_special: bool) -> StreamDecoder<'_> {
        StreamDecoder::new(self, skip_special)
    }

    /// The vocabulary's spelling of an id, `None` when the id has no token.
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The id of a token by the vocabulary's spelling, `None` when there is no such token.
    pub fn id_of(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// Is this id a special token (left out by `decode(.., true)`)?
    pub fn is_special(&self, id: u32) -> bool {
        self.tokenizer
            .id_to_token(id)
            .is_some_and(|token| self.tokenizer.get_added_vocabulary().is_special_token(&token))
    }

    /// The largest id plus one: how many embedding rows the tokenizer needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Finds anew what follows from the tokenizer: [`Self::vocab_size`], and the shorter way.
    pub(crate) fn measure(&mut self) {
        self.fast = ByteLevelBpe::of(&self.tokenizer);
        self.vocab_size = self.tokenizer.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
    }

    /// From now on special tokens that stand in texts are split like other text (transformers' `split_special_tokens`), and
    /// [`Self::save`] writes that down.
    pub fn split_special_tokens(&mut self) {
        self.tokenizer.set_encode_special_tokens(true);
        self.config.insert(SPLIT.into(), true.into());
        self.measure();
    }

    /// Whether special tokens that stand in texts are split.
    pub fn splits_special_tokens(&self) -> bool {
        self.tokenizer.get_encode_special_tokens()
    }

    /// Whether another tokenizer makes the same ids and texts, and has the same roles and templates.
    ///
    /// # Errors
    /// When the tokenizers library cannot serialise itself.
    pub fn is_same(&self, other: &TokenizerBundle) -> Result<bool> {
        let own = |t: &TokenizerBundle| {
            (
                t.chat_template.clone(),
                t.named_templates.clone(),
                [t.bos.clone(), t.eos.clone(), t.pad.clone(), t.unk.clone()],
                t.splits_special_tokens(),
            )
        };
        Ok(own(self) == own(other) && self.tokenizer_json()? == other.tokenizer_json()?)
    }

    /// A chat template by name: "default" is [`Self::chat_template`], others as tokenizer_config.json lists them
    /// (for instance "tool_use").
    pub fn named_chat_template(&self, name: &str) -> Option<&str> {
        if name == "default" {
            return self.chat_template.as_deref();
        }
        self.named_templates.iter().find(|(n, _)| n == name).map(|(_, t)| t.as_str())
    }
}
