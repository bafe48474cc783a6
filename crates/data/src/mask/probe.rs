//! What a template does around a response, learned once from a small conversation of its own.

use super::markers::{Marked, Marks, Placement};
use super::specials::Specials;
use crate::record::Message;
use crate::template::{JinjaTemplate, RenderInput};

/// The template's habits; each is `None`/`false` when the probe conversation does not show it.
#[derive(Debug, Default)]
pub(super) struct Probe {
    /// The generation prompt: what `add_generation_prompt` adds.
    pub header: Option<String>,
    /// What closes a response, both at the end and inside of a conversation: from the end of its content through the
    /// first special token.
    pub closing: Option<String>,
    /// White space that stands between a request and the content of its response, in a template without a generation
    /// prompt: the model goes on where the request ends, so that it is the model's to write.
    pub lead: String,
    /// The template ends every conversation with the header of a response, asked for or not.
    pub always_header: bool,
}

const PLACEMENT: Placement = Placement { start_inside: false, end_inside: false, tools: false };

impl Probe {
    pub fn of(
        template: &JinjaTemplate,
        specials: &Specials,
        variables: &serde_json::Map<String, serde_json::Value>,
    ) -> Self {
        let messages =
            [Message::user("q"), Message::assistant("a"), Message::user("r"), Message::assistant("b")];
        let Some(marks) = Marks::choose(&messages) else {
            return Self::default();
        };
        let render = |messages: &[Message], add_generation_prompt| {
            let input =
                RenderInput { messages, tools: None, add_generation_prompt, variables: Some(variables) };
            template.render(input).ok()
        };
        let mut probe = Self::default();
        let (Some(prompt), Some(prompted)) = (render(&messages[..1], false), render(&messages[..1], true))
        else {
            return probe;
        };
        probe.header = prompted.strip_prefix(prompt.as_str()).filter(|h| !h.is_empty()).map(str::to_string);

        // The first response's end in conversations of two and of four messages.
        let tail = |count: usize| {
            let plain = render(&messages[..count], false)?;
            let marked = marks.insert(&messages[..count], PLACEMENT, |i| i == 1);
            let marked = Marked::of(&render(&marked, false)?, marks, count, &plain)?;
            let found = marked.found.get(&1).copied()?;
            let start = found.start?;
            Some((plain.get(found.end?..)?.to_string(), start, plain.get(..start)?.to_string()))
        };
        let (Some((at_end, start, at_start)), Some((inside, ..))) = (tail(2), tail(4)) else {
            return probe;
        };
        probe.closing = specials
            .first(&at_end)
            .map(|special| at_end[..special.end].to_string())
            .filter(|closing| inside.starts_with(closing.as_str()));
        let lead = at_start.strip_prefix(&prompt).filter(|gap| prompt == prompted && gap.trim().is_empty());
        probe.lead = lead.unwrap_or_default().to_string();
        // Without a generation prompt of its own, a prompt that leads straight into the content and returns after it.
        let straight = probe.header.is_none() && start == prompt.len();
        probe.always_header = straight && !at_end.trim().is_empty() && prompt.ends_with(at_end.as_str());
        probe
    }
}
