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
mod specials;

use std::ops::Range;

use markers::{Found, Marked, Marks, Placement};
use probe::Probe;

pub use specials::Specials;

use crate::record::{Conversation, Message};
use crate::template::{ChatTemplate, RenderInput, TemplateError};

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

/// A template ready to render with masks.
#[derive(Debug)]
pub struct Masker<'a> {
    template: &'a ChatTemplate,
    specials: Specials,
    variables: serde_json::Map<String, serde_json::Value>,
    probe: Probe,
}

/// The state of one row.
struct Row<'r> {
    masker: &'r Masker<'r>,
    conversation: &'r Conversation,
    variables: &'r serde_json::Map<String, serde_json::Value>,
    marks: Marks,
    plain: String,
    found: Vec<(Found, Placement)>,
}

impl<'a> Masker<'a> {
    /// `variables` are those of the run (`enable_thinking` …); a row's own win over them.
    pub fn new(
        template: &'a ChatTemplate,
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
    pub fn template(&self) -> &ChatTemplate {
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
        // Only white space after the last response, and no token that closes it: EOS takes the place of that white space.
        let append_eos = text[end..].trim().is_empty() && !self.specials.ends(&text[..end]);
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
        tools: conversation.tools.as_ref(),
        add_generation_prompt,
        variables: Some(variables),
    }
}

impl<'r> Row<'r> {
    fn new(
        masker: &'r Masker<'r>,
        conversation: &'r Conversation,
        variables: &'r serde_json::Map<String, serde_json::Value>,
        marks: Marks,
        wanted: &[usize],
    ) -> Result<Self, MaskError> {
        let n = conversation.messages.len();
        let plain = masker.template.render(input(conversation, n, false, variables))?;
        let mut row = Self { masker, conversation, variables, marks, plain, found: Vec::new() };
        row.found = row.find(wanted);
        Ok(row)
    }

    /// The marks of the wanted responses: of all at once if one placement suits them all, else of each by itself.
    fn find(&self, wanted: &[usize]) -> Vec<(Found, Placement)> {
        let messages = &self.conversation.messages;
        let placements = Marks::placements(messages);
        for &placement in &placements {
            if let Some(marked) = self.marked(placement, |i| wanted.contains(&i)) {
                let of = |i| (marked.found.get(i).copied().unwrap_or_default(), placement);
                return wanted.iter().map(of).collect();
            }
        }
        let none = Placement { start_inside: false, end_inside: false, tools: false };
        let alone = |&turn: &usize| {
            let found = placements.iter().find_map(|&placement| {
                let marked = self.marked(placement, |i| i == turn)?;
                Some((marked.found.get(&turn).copied().unwrap_or_default(), placement))
            });
            found.unwrap_or((Found::default(), none))
        };
        wanted.iter().map(alone).collect()
    }

    fn marked(&self, placement: Placement, wanted: impl Fn(usize) -> bool) -> Option<Marked> {
        let messages = self.marks.insert(&self.conversation.messages, placement, wanted);
        let n = messages.len();
        let rendering = self.render_messages(&messages, false).ok()?;
        Marked::of(&rendering, self.marks, n, &self.plain)
    }

    fn render_messages(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
    ) -> Result<String, TemplateError> {
        self.masker.template.render(RenderInput {
            messages,
            tools: self.conversation.tools.as_ref(),
            add_generation_prompt,
            variables: Some(self.variables),
        })
    }

    fn rendered(self, wanted: &[usize]) -> Result<Rendered, MaskError> {
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(wanted.len());
        let mut closed = true;
        let mut previous: Option<(usize, usize)> = None;
        for (&turn, &(found, placement)) in wanted.iter().zip(&self.found) {
            let before = previous.filter(|&(t, _)| t + 1 == turn).map(|(_, end)| end);
            let start = self.start(turn, found, before)?;
            let (end, is_closed) = self.end(turn, found, placement, start)?;
            if end < start || spans.last().is_some_and(|s| s.end > start) {
                return Err(inexact(turn, "its start and end contradict each other"));
            }
            closed = is_closed;
            previous = Some((turn, end));
            spans.push(start..end);
        }
        let end = spans.last().map_or(0, |s| s.end);
        let last_message = wanted.last().is_some_and(|&t| t + 1 == self.conversation.messages.len());
        // What follows an unclosed last response is white space, which the model would have to write before EOS.
        let append_eos = last_message && !closed;
        let mut text = self.plain;
        if append_eos {
            text.truncate(end);
        }
        Ok(Rendered { text, spans, append_eos })
    }

    /// Where the model takes over. `previous` is the end of the response just before, if one stands there.
    fn start(&self, turn: usize, found: Found, previous: Option<usize>) -> Result<usize, MaskError> {
        if let (Some(start), Some(header)) = (found.start, &self.masker.probe.header)
            && self.plain[..start].ends_with(header.as_str())
        {
            return Ok(start);
        }
        let before = self.conversation.messages.get(..turn).unwrap_or_default();
        // Some templates refuse a conversation that does not begin with a response, or an empty one.
        let with = self.render_messages(before, true);
        let without = self.render_messages(before, false);
        let (Ok(with), Ok(without)) = (with, without) else {
            return found
                .start
                .ok_or_else(|| inexact(turn, "the template refuses the conversation before it"));
        };
        let has_header = with.len() > without.len() && with.starts_with(&without);
        if has_header && self.plain.starts_with(&with) && found.start.is_none_or(|s| with.len() <= s) {
            return Ok(with.len());
        }
        if let Some(start) = found.start {
            // Two responses in a row: the header begins where the first one was closed.
            let gap = previous.and_then(|end| self.plain.get(end..start)).map(str::trim_start);
            let header = self.masker.probe.header.as_deref();
            let written = gap.zip(header).and_then(|(gap, header)| gap.strip_prefix(header));
            return Ok(start - written.map_or(0, str::len));
        }
        self.probed_start(turn)
    }

    /// For a response that shows no mark: a stand-in takes its place, first in the whole conversation, then in the one
    /// that ends there. What the template writes before the stand-in's content has to be a prefix of the plain text.
    fn probed_start(&self, turn: usize) -> Result<usize, MaskError> {
        let placement = Placement { start_inside: false, end_inside: false, tools: false };
        let mut messages = self.conversation.messages.clone();
        messages[turn] = Message::assistant("x");
        for count in [messages.len(), turn + 1] {
            messages.truncate(count);
            let marked = self.marks.insert(&messages, placement, |i| i == turn);
            let (Ok(plain), Ok(rendering)) =
                (self.render_messages(&messages, false), self.render_messages(&marked, false))
            else {
                continue;
            };
            let start = Marked::of(&rendering, self.marks, count, &plain)
                .and_then(|m| m.found.get(&turn).and_then(|f| f.start));
            let Some(header) = start.and_then(|s| plain.get(..s)) else {
                continue;
            };
            // A space that only stands before content does not stand before a tool call.
            for header in [header, header.trim_end()] {
                if self.plain.starts_with(header) {
                    return Ok(header.len());
                }
            }
        }
        Err(inexact(turn, "no rendering shows where it starts"))
    }

    /// Where the response ends, and whether a special token closes it.
    fn end(
        &self,
        turn: usize,
        found: Found,
        placement: Placement,
        start: usize,
    ) -> Result<(usize, bool), MaskError> {
        match found.end {
            Some(end) if !self.conversation.messages[turn].calls_tools() => {
                self.end_of_content(turn, end, placement)
            }
            _ => self.end_of_region(turn, found, placement, start),
        }
    }

    fn end_of_content(
        &self,
        turn: usize,
        end: usize,
        placement: Placement,
    ) -> Result<(usize, bool), MaskError> {
        let tail = &self.plain[end..];
        let probe = &self.masker.probe;
        if let Some(closing) = &probe.closing
            && tail.starts_with(closing.as_str())
        {
            return Ok((end + closing.len(), true));
        }
        let last = turn + 1 == self.conversation.messages.len();
        let closing = if last { tail.to_string() } else { self.after_content(turn, placement)? };
        if let Some(special) = self.masker.specials.first(&closing) {
            let closing = &closing[..special.end];
            return match tail.starts_with(closing) && !probe.always_header {
                true => Ok((end + closing.len(), true)),
                false => Err(inexact(
                    turn,
                    "it is closed in different ways at the end and inside of a conversation",
                )),
            };
        }
        let trimmed = closing.trim_end();
        if !trimmed.is_empty() && probe.always_header {
            return Err(inexact(turn, "the template writes the header of another response after it"));
        }
        match tail.starts_with(trimmed) {
            true => Ok((end + trimmed.len(), false)),
            false => Err(inexact(turn, "no rendering shows where it ends")),
        }
    }

    /// What follows the content when the conversation stops after this turn.
    fn after_content(&self, turn: usize, placement: Placement) -> Result<String, MaskError> {
        let cut = self.conversation.messages.get(..=turn).unwrap_or_default();
        let (marked, plain) =
            (self.marks.insert(cut, placement, |i| i == turn), self.render_messages(cut, false)?);
        Marked::of(&self.render_messages(&marked, false)?, self.marks, marked.len(), &plain)
            .and_then(|m| m.found.get(&turn).and_then(|f| f.end))
            .and_then(|end| plain.get(end..).map(str::to_string))
            .ok_or_else(|| inexact(turn, "no rendering shows where it ends"))
    }

    /// The end of a response that calls tools or shows no content: the last special token of its region.
    fn end_of_region(
        &self,
        turn: usize,
        found: Found,
        placement: Placement,
        start: usize,
    ) -> Result<(usize, bool), MaskError> {
        let probe = &self.masker.probe;
        let message = &self.conversation.messages[turn];
        if let Some(closing) = &probe.closing
            && !message.calls_tools()
            && message.content.trim().is_empty()
            && self.plain[start..].starts_with(closing.as_str())
        {
            return Ok((start + closing.len(), true));
        }
        if probe.always_header {
            return Err(inexact(turn, "the template writes the header of another response after it"));
        }
        let region_end = self.region_end(turn, found, placement)?;
        let anchor = found.tool.or(found.end).unwrap_or(start).max(start);
        let Some(region) = self.plain.get(anchor..region_end) else {
            return Err(inexact(turn, "its start and end contradict each other"));
        };
        match self.masker.specials.last(region) {
            Some(special) => Ok((anchor + special.end, true)),
            None => Ok((anchor + region.trim_end().len(), false)),
        }
    }

    fn region_end(&self, turn: usize, found: Found, placement: Placement) -> Result<usize, MaskError> {
        let cut = self.conversation.messages.get(..=turn).unwrap_or_default();
        if cut.len() == self.conversation.messages.len() {
            return Ok(self.plain.len());
        }
        let plain = self.render_messages(cut, false)?;
        if self.plain.starts_with(&plain) {
            return Ok(plain.len());
        }
        // The beginning is written differently (a system text that moves, thinking that is cut); the rest may not be.
        let marked = self.marks.insert(cut, placement, |i| i == turn);
        let marked = Marked::of(&self.render_messages(&marked, false)?, self.marks, marked.len(), &plain);
        let there = marked.and_then(|m| m.found.get(&turn).copied()).unwrap_or_default();
        let pair = found.tool.zip(there.tool).or(found.end.zip(there.end));
        if let Some((here, there)) = pair
            && let (Some(rest), Some(tail)) = (plain.get(there..), self.plain.get(here..))
            && tail.starts_with(rest)
        {
            return Ok(here + rest.len());
        }
        Err(inexact(turn, "no rendering shows where it ends"))
    }
}

fn inexact(turn: usize, why: &str) -> MaskError {
    MaskError::Inexact(format!("message {} (a response): {why}", turn + 1))
}
