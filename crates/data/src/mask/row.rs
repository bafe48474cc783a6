//! The spans of one conversation under a template without `{% generation %}` blocks.

use std::ops::Range;

use super::markers::{Found, Marked, Marks, Placement};
use super::{MaskError, Masker, NO_CALLS, Rendered, input};
use crate::record::{Conversation, Message};
use crate::template::{RenderInput, TemplateError};

/// The state of one row.
pub(super) struct Row<'r> {
    masker: &'r Masker<'r>,
    conversation: &'r Conversation,
    variables: &'r serde_json::Map<String, serde_json::Value>,
    marks: Marks,
    plain: String,
    found: Vec<(Found, Placement)>,
}

impl<'r> Row<'r> {
    /// Renders the conversation and looks for the marks of the `wanted` responses.
    pub fn new(
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

    /// The spans of the wanted responses.
    pub fn rendered(self, wanted: &[usize]) -> Result<Rendered, MaskError> {
        let mut spans: Vec<Range<usize>> = Vec::with_capacity(wanted.len());
        let mut closed = true;
        let mut previous: Option<(usize, usize)> = None;
        for (&turn, &(found, placement)) in wanted.iter().zip(&self.found) {
            let before = previous.filter(|&(t, _)| t + 1 == turn).map(|(_, end)| end);
            if found.tool.is_none()
                && self.masker.leaves_calls_out(self.conversation, self.variables, self.marks, turn)
            {
                return Err(inexact(turn, NO_CALLS));
            }
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
                .map(|start| self.with_lead(start, previous))
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
            let start = start - written.map_or(0, str::len);
            return Ok(self.with_lead(start, previous));
        }
        let start = self.probed_start(turn).or_else(|e| self.start_by_call(turn, found, &with).ok_or(e))?;
        Ok(self.with_lead(start, previous))
    }

    /// A response of calls alone, in a conversation whose beginning is written differently when it stops there (tools stand
    /// before the last request): what leads from the prompt to the call's name is the same in both.
    fn start_by_call(&self, turn: usize, found: Found, prompt: &str) -> Option<usize> {
        let cut = self.conversation.messages.get(..=turn)?;
        let placement = Placement { start_inside: false, end_inside: false, tools: true };
        let plain = self.render_messages(cut, false).ok()?;
        let rendering =
            self.render_messages(&self.marks.insert(cut, placement, |i| i == turn), false).ok()?;
        let marked = Marked::of(&rendering, self.marks, cut.len(), &plain)?;
        let opening = plain.get(..marked.found.get(&turn)?.tool?)?.strip_prefix(prompt)?;
        let here = found.tool?;
        self.plain.get(..here)?.ends_with(opening).then(|| here - opening.len())
    }

    /// A response begins with the white space that its template puts before the content and not into the prompt.
    fn with_lead(&self, start: usize, previous: Option<usize>) -> usize {
        let before = self.plain.get(previous.unwrap_or(0)..start).unwrap_or_default();
        let lead = self.masker.probe.lead.as_str();
        if before.ends_with(lead) { start - lead.len() } else { start }
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

pub(super) fn inexact(turn: usize, why: &str) -> MaskError {
    MaskError::Inexact(format!("message {} (a response): {why}", turn + 1))
}
