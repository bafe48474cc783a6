//! Which bytes of a rendered conversation the model is trained to write.
//!
//! The trained span of a response is what the model has to produce after the prompt: from the end of the header that
//! the template writes for a response (the generation prompt), through its content and tool calls, to the token that
//! closes it, inclusive. White space after that token is not trained.
//!
//! The spans come from the template's structure:
//! * a template with `{% generation %}` blocks says itself what is trained, and is taken at its word, as transformers does
//!   (`return_assistant_tokens_mask`);
//! * any other template is rendered a second time with marks inside of the responses. When removing the marks gives the
//!   plain rendering back, the marks' places are exact. A start that the marks do not show (a template that cuts the
//!   thinking out of earlier turns, or calls tools without content) comes from the rendering of the conversation before
//!   the response, with the generation prompt, which must be a prefix of the whole; an end, from the rendering that
//!   stops after the response. Where neither can be shown, the row is an error, never a guess.

mod markers;
mod probe;
mod row;
mod specials;

use std::ops::Range;

use markers::Marks;
use probe::Probe;
use row::Row;

pub use specials::Specials;

use crate::record::{Conversation, Message};
use crate::template::{JinjaTemplate, RenderInput, TemplateError};

/// A rendered conversation and what is trained in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The text to tokenise.
    pub text: String,
    /// Byte ranges of the trained responses, ascending, disjoint.
    pub spans: Vec<Range<usize>>,
    /// Whether EOS has to follow the text, because the template closes the last response by no special token.
    pub append_eos: bool,
}

/// Why a conversation cannot be rendered with its mask.
#[derive(Debug, Clone, thiserror::Error)]
pub enum MaskError {
    /// The template raised.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// No exact mask exists.
    #[error("{0}")]
    Inexact(String),
    /// There is no response to train.
    #[error("no response to train on")]
    NoResponse,
}

/// A template for models without tools leaves the calls out in silence; what is left would teach the model to say nothing.
const NO_CALLS: &str = "the template does not write its tool calls; take the rows with tool calls out, or choose a template that knows tools";

/// A template ready to render with masks.
#[derive(Debug)]
pub struct Masker<'a> {
    template: &'a JinjaTemplate,
    specials: Specials,
    variables: serde_json::Map<String, serde_json::Value>,
    probe: Probe,
}

impl<'a> Masker<'a> {
    /// `variables` are those of the run (`enable_thinking` …); a row's own win over them.
    pub fn new(
        template: &'a JinjaTemplate,
        specials: Specials,
        variables: serde_json::Map<String, serde_json::Value>,
    ) -> Self {
        let probe = if template.has_generation() {
            Probe::default()
        } else {
            Probe::of(template, &specials, &variables)
        };
        Self { template, specials, variables, probe }
    }

    /// The template.
    pub fn template(&self) -> &JinjaTemplate {
        self.template
    }

    /// Renders without a mask (for `train_on_prompt`): EOS is still asked for when the template does not close the text.
    pub fn render_plain(&self, conversation: &Conversation) -> Result<Rendered, MaskError> {
        let variables = self.merged(conversation);
        let text =
            self.template.render(input(conversation, conversation.messages.len(), false, &variables))?;
        let closed = self.specials.ends(text.trim_end());
        let end = if closed { text.len() } else { text.trim_end().len() };
        let text = text[..end].to_string();
        Ok(Rendered { spans: vec![0..text.len(); 1], text, append_eos: !closed })
    }

    /// Renders a conversation with the spans of its trained responses: all of them from
    /// [`Conversation::first_response`] on, or only the last with `mask_history`.
    ///
    /// # Errors
    /// When the template raises, when there is nothing to train, or when the spans cannot be shown to be exact.
    pub fn render(&self, conversation: &Conversation, mask_history: bool) -> Result<Rendered, MaskError> {
        let responses: Vec<usize> = (0..conversation.messages.len())
            .filter(|&i| i >= conversation.first_response && conversation.messages[i].is_response())
            .collect();
        let Some(&last) = responses.last() else {
            return Err(MaskError::NoResponse);
        };
        let variables = self.merged(conversation);
        let marks = Marks::choose(&conversation.messages).ok_or_else(|| {
            MaskError::Inexact(
                "the row uses both private-use planes of Unicode, or has over 20000 messages".into(),
            )
        })?;
        if self.template.has_generation() {
            let from = if mask_history { last } else { conversation.first_response };
            return self.render_blocks(conversation, &variables, marks, from);
        }
        let wanted: &[usize] = if mask_history { std::slice::from_ref(&last) } else { &responses };
        Row::new(self, conversation, &variables, marks, wanted)?.rendered(wanted)
    }

    /// Whether a message calls a tool and the template writes it nowhere.
    fn leaves_calls_out(
        &self,
        conversation: &Conversation,
        variables: &serde_json::Map<String, serde_json::Value>,
        marks: Marks,
        turn: usize,
    ) -> bool {
        let mut messages = conversation.messages.clone();
        let Some(mark) = marks.insert_in_call(&mut messages, turn) else {
            return false;
        };
        let all = input(conversation, conversation.messages.len(), false, variables);
        let rendering = self.template.render(RenderInput { messages: &messages, ..all });
        rendering.is_ok_and(|text| !text.contains(mark))
    }

    fn merged(&self, conversation: &Conversation) -> serde_json::Map<String, serde_json::Value> {
        let mut variables = self.variables.clone();
        variables.extend(conversation.variables.clone());
        variables
    }

    /// A template that marks its responses itself; blocks of messages before `from` are not trained.
    fn render_blocks(
        &self,
        conversation: &Conversation,
        variables: &serde_json::Map<String, serde_json::Value>,
        marks: Marks,
        from: usize,
    ) -> Result<Rendered, MaskError> {
        let all = input(conversation, conversation.messages.len(), false, variables);
        let (text, mut spans) = self.template.render_generation(all, marks.pair())?;
        if text != self.template.render(all)? {
            let message = "what it does with its generation blocks depends on their text";
            return Err(MaskError::Inexact(message.into()));
        }
        if conversation.messages.iter().take(from).any(Message::is_response) {
            let before = input(conversation, from, false, variables);
            let skipped = self.template.render_generation(before, marks.pair())?.1.len();
            spans.drain(..skipped.min(spans.len()));
        }
        spans.retain(|s| !s.is_empty());
        let Some(end) = spans.last().map(|s| s.end) else {
            return Err(MaskError::Inexact("its generation blocks hold nothing for this row".into()));
        };
        let responses = conversation.messages.iter().enumerate().skip(from).filter(|(_, m)| m.is_response());
        for (turn, _) in responses {
            if self.leaves_calls_out(conversation, variables, marks, turn) {
                return Err(row::inexact(turn, NO_CALLS));
            }
        }
        // Only white space after the last response, and no token that closes it: EOS takes the place of that white space.
        let append_eos = text[end..].trim().is_empty() && !self.specials.ends(text[..end].trim_end());
        let text = if append_eos { text[..end].to_string() } else { text };
        Ok(Rendered { text, spans, append_eos })
    }
}

/// The first `count` messages of a conversation as a template's input.
fn input<'r>(
    conversation: &'r Conversation,
    count: usize,
    add_generation_prompt: bool,
    variables: &'r serde_json::Map<String, serde_json::Value>,
) -> RenderInput<'r> {
    RenderInput {
        messages: conversation.messages.get(..count).unwrap_or(&conversation.messages),
        // An empty list is no tools to transformers' templates.
        tools: conversation.tools.as_ref().filter(|t| t.as_array().is_none_or(|t| !t.is_empty())),
        add_generation_prompt,
        variables: Some(variables),
    }
}
