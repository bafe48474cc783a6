//! From a record to token ids and labels.

mod turns;

use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{DataError, Result, RowRef};
use crate::mask::{MaskError, Masker, Rendered};
use crate::pretrain::Pretrain;
use crate::record::{Conversation, Message, Record};
use crate::template::TurnTemplate;
use crate::text::Text;
use crate::truncate::{Truncation, keep, truncate_turns};

/// Label of a token that is not trained (PyTorch's and Hugging Face's `ignore_index`).
pub const IGNORE: i32 = -100;

/// One training example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Example {
    /// Token ids.
    pub input_ids: Vec<u32>,
    /// Unshifted labels, as many as `input_ids`: the id itself, or [`IGNORE`].
    pub labels: Vec<i32>,
    /// The row that it was made of.
    pub source: RowRef,
}

impl Example {
    /// Number of trained tokens: labels that are a target of the token before them. The first label has none before it
    /// and is never predicted.
    pub fn trained(&self) -> usize {
        targets(&self.labels).filter(|&t| t).count()
    }
}

/// For each token after the first, whether it is a target.
fn targets(labels: &[i32]) -> impl Iterator<Item = bool> {
    labels.iter().skip(1).map(|&l| l != IGNORE)
}

/// How rows become examples.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EncodeOptions {
    /// `template` key: a name, a path of a .jinja file, or `None` for the model's own.
    pub template: Option<String>,
    /// The system text of conversations without one, in place of the template's own.
    pub default_system: Option<String>,
    /// How a named template describes and calls tools, in place of its own way; one of [`ToolFormat::NAMES`].
    ///
    /// [`ToolFormat::NAMES`]: crate::template::ToolFormat::NAMES
    pub tool_format: Option<String>,
    /// At most this many tokens an example; `None` = no limit.
    pub cutoff_len: Option<usize>,
    /// What `cutoff_len` cuts off.
    pub truncation: Truncation,
    /// Train prompts as well as responses.
    pub train_on_prompt: bool,
    /// Train the last response of a conversation only.
    pub mask_history: bool,
    /// Tokens of a packed row, for the report; the packing itself is [`crate::Plan`]'s.
    pub packing: Option<usize>,
    /// The column that holds a row's text; the row is plain text then, whatever else it has.
    pub text_column: Option<String>,
    /// The column that holds a row's messages, as a list or as JSON text; the row is a conversation then.
    pub messages_column: Option<String>,
    /// Rows are documents to be trained whole; see [`crate::pretrain`].
    pub pretrain: Option<Pretrain>,
    /// More variables for the template. Named templates know `enable_thinking` (true unless given, null is the third
    /// choice) and `preserve_thinking`, as LLaMA-Factory does.
    pub template_variables: Map<String, Value>,
    /// What `strftime_now` prints in templates, in seconds since 1970 (UTC); `None` = the clock. A run that may be resumed
    /// on another day should fix it.
    pub now: Option<u64>,
    /// The row that the report shows, counted from 1 over all training rows; `None` = the first example.
    pub sample_row: Option<usize>,
}

impl EncodeOptions {
    /// # Errors
    /// Options that contradict each other.
    pub fn check(&self) -> Result<()> {
        if self.train_on_prompt && self.mask_history {
            let message = "train_on_prompt and mask_history contradict each other: the first trains everything, the second only the last response";
            return Err(DataError::Options(message.into()));
        }
        if self.cutoff_len == Some(0) {
            return Err(DataError::Options(
                "cutoff_len is 0; it should be the number of tokens an example may have".into(),
            ));
        }
        Ok(())
    }
}

/// An example with what the report shows of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Encoded {
    pub input_ids: Vec<u32>,
    pub labels: Vec<i32>,
    /// Bytes of `text` that each token covers; empty for tokens that were added or came as ids.
    pub offsets: Vec<(usize, usize)>,
    pub text: String,
    /// Tokens before truncation, and of those the ones before the first trained token.
    pub full_len: usize,
    pub prompt_len: usize,
    /// Whether the response was closed by the tokenizer's or the template's end token before truncation.
    pub ends_trained: bool,
    /// Why LLaMA-Factory leaves the row out; it has no tokens then.
    pub unusable: Option<&'static str>,
}

/// What conversations go through.
pub(crate) enum Engine<'a> {
    /// A Jinja template and the search for what is trained in its text.
    Masked(Masker<'a>),
    /// A named template.
    Turns(&'a TurnTemplate),
}

/// Everything that encoding a row needs; shared by all threads.
pub(crate) struct Encoder<'a> {
    pub text: &'a dyn Text,
    pub engine: Engine<'a>,
    pub options: &'a EncodeOptions,
}

/// A sequence before truncation.
#[derive(Default)]
struct Sequence {
    ids: Vec<u32>,
    offsets: Vec<(usize, usize)>,
    labels: Vec<i32>,
    /// Token ranges of the responses; empty where there are no turns.
    turns: Vec<Range<usize>>,
    text: String,
}

impl Encoder<'_> {
    /// Encodes one record.
    pub fn encode(&self, record: &Record, row: &RowRef) -> Result<Encoded> {
        match (self.options.pretrain, record) {
            (Some(pretrain), Record::Text(text)) => Ok(self.truncate(self.document(text, pretrain, row)?)),
            (Some(_), _) => {
                let mut encoded = self.supervised(record, row)?;
                encoded.labels = encoded.input_ids.iter().map(|&id| id as i32).collect();
                Ok(encoded)
            }
            (None, _) => self.supervised(record, row),
        }
    }

    /// Plain text, all of it, with the special tokens that were asked for.
    fn document(&self, text: &str, pretrain: Pretrain, row: &RowRef) -> Result<Sequence> {
        let mut sequence = self.sequence(text.to_string(), row)?;
        if pretrain.bos {
            self.add_bos(&mut sequence);
        }
        if let Some(end) = self.document_end().filter(|_| pretrain.eos)
            && sequence.ids.last() != Some(&end)
        {
            sequence.push(end);
        }
        sequence.labels = sequence.ids.iter().map(|&id| id as i32).collect();
        Ok(sequence)
    }

    /// EOS; Llama 3's chat models have one that ends turns, and another token for texts, which LLaMA-Factory takes with the
    /// template `llama3`.
    fn document_end(&self) -> Option<u32> {
        const OF_LLAMA3: &str = "<|end_of_text|>";
        let own = match self.options.template.as_deref() {
            Some("llama3") => self.text.encode(OF_LLAMA3).ok().filter(|e| e.ids.len() == 1).map(|e| e.ids[0]),
            _ => None,
        };
        own.filter(|&id| self.text.is_special(id)).or_else(|| self.text.eos().map(|e| e.id))
    }

    fn supervised(&self, record: &Record, row: &RowRef) -> Result<Encoded> {
        let sequence = match record {
            Record::Chat(conversation) => match &self.engine {
                Engine::Masked(masker) => self.chat(masker, conversation, row)?,
                Engine::Turns(template) => return self.turns(template, conversation, row),
            },
            Record::Text(text) => self.text(text, row)?,
            Record::Tokens { input_ids, labels } => self.tokens(input_ids, labels.as_deref(), row)?,
            Record::Unusable(why) => return Ok(Encoded { unusable: Some(why), ..Encoded::default() }),
        };
        Ok(self.truncate(sequence))
    }

    fn chat(&self, masker: &Masker<'_>, conversation: &Conversation, row: &RowRef) -> Result<Sequence> {
        let with_system = self.options.default_system.as_ref().and_then(|s| with_system(conversation, s));
        let conversation = with_system.as_ref().unwrap_or(conversation);
        let rendered = if self.options.train_on_prompt {
            masker.render_plain(conversation)
        } else {
            masker.render(conversation, self.options.mask_history)
        };
        let rendered = rendered.map_err(|e| match e {
            MaskError::Template(source) => DataError::TemplateRow { row: row.clone(), source },
            MaskError::NoResponse => DataError::NoResponse { row: row.clone() },
            MaskError::Inexact(message) => {
                let template = masker.template().name().to_string();
                DataError::Mask { row: row.clone(), template, message }
            }
        })?;
        self.rendered(rendered, row)
    }

    fn rendered(&self, rendered: Rendered, row: &RowRef) -> Result<Sequence> {
        let mut sequence = self.sequence(rendered.text, row)?;
        for span in &rendered.spans {
            let tokens = tokens_of(&sequence.offsets, span);
            if !tokens.is_empty() {
                sequence.turns.push(tokens);
            }
        }
        let eos = self.text.eos().filter(|_| rendered.append_eos);
        if let Some(eos) = eos {
            let n = sequence.ids.len();
            sequence.push(eos.id);
            match sequence.turns.last_mut() {
                Some(last) if last.end == n => last.end += 1,
                _ => sequence.turns.push(n..n + 1),
            }
        }
        self.add_bos(&mut sequence);
        sequence.labels = vec![IGNORE; sequence.ids.len()];
        for token in sequence.turns.iter().cloned().flatten() {
            sequence.labels[token] = sequence.ids[token] as i32;
        }
        self.mask_bos(&mut sequence);
        if self.options.train_on_prompt {
            sequence.turns.clear();
        }
        Ok(sequence)
    }

    fn text(&self, text: &str, row: &RowRef) -> Result<Sequence> {
        let mut sequence = self.sequence(text.to_string(), row)?;
        self.add_bos(&mut sequence);
        if let Some(eos) = self.text.eos()
            && sequence.ids.last() != Some(&eos.id)
        {
            sequence.push(eos.id);
        }
        sequence.labels = sequence.ids.iter().map(|&id| id as i32).collect();
        self.mask_bos(&mut sequence);
        Ok(sequence)
    }

    fn tokens(&self, input_ids: &[i64], labels: Option<&[i64]>, row: &RowRef) -> Result<Sequence> {
        let vocab_size = self.text.vocab_size();
        let checked = |field: &'static str, ids: &[i64], ignore: bool| -> Result<Vec<i32>> {
            let one = |(position, &id): (usize, &i64)| match i32::try_from(id) {
                Ok(small) if ignore && small == IGNORE => Ok(small),
                Ok(small) if small >= 0 && (small as usize) < vocab_size => Ok(small),
                _ => Err(DataError::TokenOutOfRange { row: row.clone(), field, position, id, vocab_size }),
            };
            ids.iter().enumerate().map(one).collect()
        };
        let ids = checked("input_ids", input_ids, false)?;
        let labels = match labels {
            Some(labels) => checked("labels", labels, true)?,
            None => ids.clone(),
        };
        let offsets = vec![(0, 0); ids.len()];
        let ids = ids.into_iter().map(|id| id as u32).collect();
        Ok(Sequence { ids, offsets, labels, ..Sequence::default() })
    }

    fn sequence(&self, text: String, row: &RowRef) -> Result<Sequence> {
        let encoding = self.text.encode(&text).map_err(|e| DataError::Tokenize {
            row: row.clone(),
            message: format!("the tokenizer failed: {e}"),
        })?;
        Ok(Sequence { ids: encoding.ids, offsets: encoding.offsets, text, ..Sequence::default() })
    }

    /// One BOS in front where the tokenizer wants it and the text does not have it already.
    fn add_bos(&self, sequence: &mut Sequence) {
        let Some(bos) = self.text.bos().filter(|_| self.text.add_bos()) else {
            return;
        };
        if sequence.ids.first() == Some(&bos.id) {
            return;
        }
        sequence.ids.insert(0, bos.id);
        sequence.offsets.insert(0, (0, 0));
        for turn in &mut sequence.turns {
            *turn = turn.start + 1..turn.end + 1;
        }
    }

    /// BOS is given, never predicted. A tokenizer whose BOS is also an ordinary marker (`<|im_start|>`) keeps that one
    /// trained elsewhere.
    fn mask_bos(&self, sequence: &mut Sequence) {
        let bos = self.text.bos().map(|b| b.id);
        if bos.is_some()
            && sequence.ids.first().copied() == bos
            && let Some(label) = sequence.labels.first_mut()
        {
            *label = IGNORE;
        }
    }

    fn truncate(&self, sequence: Sequence) -> Encoded {
        let n = sequence.ids.len();
        let cutoff = self.options.cutoff_len.unwrap_or(usize::MAX);
        let kept = match sequence.turns.as_slice() {
            [] => std::iter::once(0..n.min(cutoff)).collect(),
            turns => truncate_turns(self.options.truncation, n, turns, cutoff, self.options.mask_history),
        };
        let trained = |&l: &i32| l != IGNORE;
        let last_trained = sequence.labels.iter().rposition(trained);
        let ends_trained = last_trained.is_some_and(|i| self.is_end(sequence.ids[i]));
        Encoded {
            input_ids: keep(&sequence.ids, &kept),
            labels: keep(&sequence.labels, &kept),
            offsets: keep(&sequence.offsets, &kept),
            text: sequence.text,
            full_len: n,
            prompt_len: targets(&sequence.labels).position(|t| t).map_or(n, |i| i + 1),
            ends_trained,
            unusable: None,
        }
    }

    /// EOS, or a special token that the template closes its turns with.
    fn is_end(&self, id: u32) -> bool {
        self.text.eos().is_some_and(|e| e.id == id) || self.text.is_special(id)
    }
}

impl Sequence {
    /// Adds a token that stands for no text.
    fn push(&mut self, id: u32) {
        self.ids.push(id);
        self.offsets.push((self.text.len(), self.text.len()));
    }
}

/// The conversation with a system text, unless it has one.
fn with_system(conversation: &Conversation, system: &str) -> Option<Conversation> {
    if system.is_empty() || matches!(conversation.messages.first()?.role.as_str(), "system" | "developer") {
        return None;
    }
    let mut out = conversation.clone();
    out.messages.insert(0, Message::system(system));
    out.first_response += usize::from(out.first_response > 0);
    Some(out)
}

/// The tokens that a byte range covers: from the token that holds its first byte to the token that holds its last one, as
/// transformers attributes tokens (`char_to_token`). A token that straddles the start of a response is trained: a
/// tokenizer that joins the prompt's space to the first word has the model produce just that token.
fn tokens_of(offsets: &[(usize, usize)], span: &Range<usize>) -> Range<usize> {
    let start = offsets.partition_point(|o| o.1 <= span.start);
    let end = offsets.partition_point(|o| o.0 < span.end);
    start..end.max(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_belong_to_a_span_when_they_overlap_it() {
        let offsets = [(0, 2), (2, 5), (5, 5), (5, 9), (5, 9), (9, 10)];
        assert_eq!(tokens_of(&offsets, &(2..5)), 1..2);
        assert_eq!(tokens_of(&offsets, &(3..6)), 1..5);
        assert_eq!(tokens_of(&offsets, &(6..10)), 3..6);
        assert_eq!(tokens_of(&offsets, &(0..0)), 0..0);
    }
}
