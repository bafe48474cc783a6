//! Named templates at work, as LLaMA-Factory encodes them: piece by piece.

mod align;
mod build;
mod jinja;
mod tools;

use std::ops::Range;

use serde_json::{Map, Value};

use self::align::align;
use self::build::{Element, Thinking};
use super::named::{CONTENT, NamedTemplate, Piece};
use super::{RenderInput, TemplateError};
use crate::error::{DataError, Result};
use crate::record::Conversation;
use crate::text::{Special, Text};

pub use tools::ToolFormat;

/// The end token of tokenizers that name none.
const END_OF_TEXT: &str = "<|endoftext|>";

/// A named template bound to a tokenizer.
#[derive(Debug, Clone)]
pub struct TurnTemplate {
    named: NamedTemplate,
    default_system: String,
    bos: Option<Special>,
    eos: Option<Special>,
    /// The tokens that its pieces name.
    tokens: Vec<Special>,
    /// Stop words that the tokenizer knows as words but does not split off.
    split: Vec<Special>,
    stop_ids: Vec<u32>,
    now: Option<u64>,
}

/// A conversation as token ids.
#[derive(Debug, Clone, Default)]
pub(crate) struct TurnEncoding {
    pub text: String,
    pub ids: Vec<u32>,
    /// Bytes of `text` that each token covers.
    pub offsets: Vec<(usize, usize)>,
    /// Each response with the prompt before it.
    pub pairs: Vec<Pair>,
}

/// Token ranges of a prompt and of its response, which follow each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Pair {
    pub source: Range<usize>,
    pub target: Range<usize>,
    /// Index of the response's message.
    pub message: usize,
}

impl TurnTemplate {
    /// Binds a template to a tokenizer. `now` is the date of Llama 3's tools in seconds since 1970 (UTC); `None` = the
    /// clock.
    ///
    /// # Errors
    /// When the tokenizer lacks a token that the template ends its turns with or names. (LLaMA-Factory adds such tokens
    /// to the vocabulary, where the model has no row for them.)
    pub fn new(named: &NamedTemplate, text: &dyn Text, now: Option<u64>) -> Result<Self> {
        let named = *named;
        let mut wanted: Vec<&str> = named.stop_words.to_vec();
        wanted.extend(
            named.pieces().filter_map(|p| if let Piece::Token(token) = p { Some(token) } else { None }),
        );
        wanted.push(END_OF_TEXT);
        let found = find(text, &wanted);
        let get = |token: &str| found.iter().find(|s| s.content == token).cloned();
        let missing =
            |token: &str| DataError::TemplateToken { template: named.name.into(), token: token.into() };

        let mut tokens = Vec::new();
        let (mut writes_eos, mut written) = (named.efficient_eos, String::new());
        for piece in named.pieces() {
            match piece {
                Piece::Token(token) => tokens.push(get(token).ok_or_else(|| missing(token))?),
                Piece::Text(text) => written.push_str(text),
                Piece::Eos => writes_eos = true,
                Piece::Bos => {}
            }
        }
        let replaced = if named.replace_eos { named.stop_words.first() } else { None };
        let eos = match replaced {
            Some(token) => Some(get(token).ok_or_else(|| missing(token))?),
            None => text.eos().or_else(|| get(END_OF_TEXT)),
        };
        if eos.is_none() && writes_eos {
            return Err(missing(END_OF_TEXT));
        }
        let mut stop_ids: Vec<u32> = eos.iter().map(|e| e.id).collect();
        let mut split = Vec::new();
        for word in named.stop_words {
            match get(word) {
                Some(special) => {
                    stop_ids.push(special.id);
                    if !text.is_special(special.id) {
                        split.push(special);
                    }
                }
                // A stop word that the template never writes is one of a later model's.
                None if written.contains(word) => return Err(missing(word)),
                None => {}
            }
        }
        stop_ids.dedup();
        let default_system = named.default_system.to_string();
        Ok(Self { named, default_system, bos: text.bos(), eos, tokens, split, stop_ids, now })
    }

    /// Another system text for conversations without one (`default_system`).
    #[must_use]
    pub fn with_default_system(mut self, system: impl Into<String>) -> Self {
        self.default_system = system.into();
        self
    }

    /// Another convention for tools (`tool_format`). Calls are then followed by EOS alone, as in LLaMA-Factory.
    #[must_use]
    pub fn with_tool_format(mut self, format: ToolFormat) -> Self {
        const CALL: [Piece; 2] = [Piece::Text(CONTENT), Piece::Eos];
        self.named.tools = format;
        self.named.function = Some(if self.named.efficient_eos { &[Piece::Text(CONTENT)] } else { &CALL });
        self
    }

    /// Its data.
    pub fn named(&self) -> &NamedTemplate {
        &self.named
    }

    /// The system text of conversations without one; may be empty.
    pub fn default_system(&self) -> &str {
        &self.default_system
    }

    /// The token that ends a response: the tokenizer's EOS, unless the template has its own.
    pub fn eos(&self) -> Option<&Special> {
        self.eos.as_ref()
    }

    /// Everything that decides what it writes, but the conversation and the clock.
    pub(in super::super) fn identity(&self) -> String {
        format!("{:?}", Self { now: None, ..self.clone() })
    }

    /// Every token that ends a response.
    pub fn stop_ids(&self) -> &[u32] {
        &self.stop_ids
    }

    /// The text of a conversation.
    pub(super) fn render(&self, input: RenderInput<'_>) -> Result<String, TemplateError> {
        let thinking = Thinking::of(&[input.variables]);
        let messages = if input.add_generation_prompt {
            self.prompt(&input, thinking)?
        } else {
            self.elements(&input, thinking, false)?.into_iter().flat_map(|m| m.elements).collect()
        };
        let text = |element: Element| match element {
            Element::Text(text) => text,
            Element::Special(special) => special.content,
        };
        Ok(messages.into_iter().map(text).collect())
    }

    /// The ids of a prompt, up to where the response begins.
    pub(super) fn prompt_ids(
        &self,
        text: &dyn Text,
        input: RenderInput<'_>,
    ) -> Result<Vec<u32>, TemplateError> {
        let elements = self.prompt(&input, Thinking::of(&[input.variables]))?;
        let mut out = TurnEncoding::default();
        for element in elements {
            self.push(&mut out, element, text).map_err(|e| self.error(e))?;
        }
        Ok(out.ids)
    }

    /// The ids of a conversation to train on. `variables` are the run's; the row's own win. With `last_only`, thoughts are
    /// kept in the last response alone. What follows the last response is left out.
    pub(crate) fn encode(
        &self,
        text: &dyn Text,
        conversation: &Conversation,
        variables: &Map<String, Value>,
        last_only: bool,
    ) -> Result<TurnEncoding, TemplateError> {
        let input = RenderInput {
            messages: &conversation.messages,
            tools: conversation.tools.as_ref(),
            add_generation_prompt: false,
            variables: None,
        };
        let thinking = Thinking::of(&[Some(variables), Some(&conversation.variables)]);
        let mut messages = self.elements(&input, thinking, last_only)?;
        messages.truncate(messages.len() / 2 * 2);
        let mut out = TurnEncoding::default();
        let mut source = 0..0;
        for message in messages {
            let start = out.ids.len();
            for element in message.elements {
                self.push(&mut out, element, text).map_err(|e| self.error(e))?;
            }
            let range = start..out.ids.len();
            if message.is_response {
                out.pairs.push(Pair { source: source.clone(), target: range, message: message.index });
            } else {
                source = range;
            }
        }
        Ok(out)
    }

    fn push(&self, out: &mut TurnEncoding, element: Element, text: &dyn Text) -> Result<(), String> {
        let mut rest = match element {
            Element::Special(special) => {
                out.push_special(&special);
                return Ok(());
            }
            Element::Text(text) => text,
        };
        while let Some((at, special)) = self.first_split(&rest) {
            out.push_text(&rest[..at], text)?;
            out.push_special(special);
            rest.drain(..at + special.content.len());
        }
        out.push_text(&rest, text)
    }

    /// The stop word to split off that begins first, the longest of those that begin there.
    fn first_split(&self, text: &str) -> Option<(usize, &Special)> {
        let places = self.split.iter().filter_map(|s| Some((text.find(s.content.as_str())?, s)));
        places.min_by_key(|(at, s)| (*at, std::cmp::Reverse(s.content.len())))
    }

    fn error(&self, message: impl Into<String>) -> TemplateError {
        TemplateError::new(self.named.name, message)
    }

    fn elements(
        &self,
        input: &RenderInput<'_>,
        thinking: Thinking,
        last_only: bool,
    ) -> Result<Vec<build::MessageElements>, TemplateError> {
        let aligned = align(input.messages).map_err(|e| self.error(e))?;
        let turns = self.think(aligned.turns, thinking, last_only);
        self.build(&aligned.system, turns, input.tools).map_err(|e| self.error(e))
    }

    fn prompt(&self, input: &RenderInput<'_>, thinking: Thinking) -> Result<Vec<Element>, TemplateError> {
        let aligned = align(input.messages).map_err(|e| self.error(e))?;
        if aligned.turns.last().is_none_or(|t| t.role.is_response()) {
            return Err(self.error("a prompt should end with a message of the user or a tool's result"));
        }
        let turns = self.think_in_prompt(aligned.turns, thinking);
        let built = self.build(&aligned.system, turns, input.tools).map_err(|e| self.error(e))?;
        Ok(built.into_iter().flat_map(|m| m.elements).collect())
    }
}

impl TurnEncoding {
    fn push_special(&mut self, special: &Special) {
        let start = self.text.len();
        self.text.push_str(&special.content);
        self.ids.push(special.id);
        self.offsets.push((start, self.text.len()));
    }

    fn push_text(&mut self, piece: &str, text: &dyn Text) -> Result<(), String> {
        if piece.is_empty() {
            return Ok(());
        }
        let encoding = text.encode(piece)?;
        let start = self.text.len();
        self.ids.extend(encoding.ids);
        self.offsets.extend(encoding.offsets.into_iter().map(|(a, b)| (start + a, start + b)));
        self.text.push_str(piece);
        Ok(())
    }
}

/// Tokens of the vocabulary by their spelling; those that it has.
fn find(text: &dyn Text, wanted: &[&str]) -> Vec<Special> {
    let ids = 0..u32::try_from(text.vocab_size()).unwrap_or(u32::MAX);
    let token =
        |id| text.piece(id).filter(|p| wanted.contains(&p.as_str())).map(|content| Special { id, content });
    ids.filter_map(token).collect()
}
