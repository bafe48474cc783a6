//! Marks inside of messages, to see where a template puts what.
//!
//! A mark is one character of a private-use plane that the conversation does not use. A marked rendering proves
//! something only when it equals the plain rendering after its marks are removed; [`Marked::of`] checks just that.

use std::collections::HashMap;

use serde_json::Value;

use crate::record::Message;

/// Which side of a content's outer white space a mark stands on. A template that trims removes white space only up to a
/// mark, so the placement whose rendering equals the plain one is the one that shows what the template does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placement {
    pub start_inside: bool,
    pub end_inside: bool,
    pub tools: bool,
}

/// The marks of one response, as byte positions in the plain rendering.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Where the content starts.
    pub start: Option<usize>,
    /// Where the content ends.
    pub end: Option<usize>,
    /// Where the name of the last called tool starts.
    pub tool: Option<usize>,
}

/// The first of three marks per message.
#[derive(Debug, Clone, Copy)]
pub(super) struct Marks {
    base: u32,
}

impl Marks {
    /// Characters that no message uses; `None` when the conversation uses both private planes or is too long.
    pub fn choose(messages: &[Message]) -> Option<Self> {
        if messages.len() > 20_000 {
            return None;
        }
        // In UTF-8 the planes from U+C0000 and from U+100000 begin with the bytes F3 and F4.
        let mut used = [false; 2];
        for message in messages {
            note(&message.content, &mut used);
            for value in message.extra.values() {
                note_value(value, &mut used);
            }
        }
        match used {
            [false, _] => Some(Self { base: 0xF_0000 }),
            [_, false] => Some(Self { base: 0x10_0000 }),
            _ => None,
        }
    }

    fn mark(self, message: usize, which: u32) -> char {
        let code = self.base + 3 * message as u32 + which;
        char::from_u32(code).unwrap_or('\u{10FFFD}')
    }

    /// Two marks of no message, for `{% generation %}` blocks.
    pub fn pair(self) -> (char, char) {
        (self.mark(20_001, 0), self.mark(20_001, 1))
    }

    /// The messages with marks in the responses for which `wanted` holds. An empty content stays empty, because
    /// templates ask whether there is any.
    pub fn insert(
        self,
        messages: &[Message],
        placement: Placement,
        wanted: impl Fn(usize) -> bool,
    ) -> Vec<Message> {
        let mut out = messages.to_vec();
        for (i, message) in out.iter_mut().enumerate() {
            if !message.is_response() || !wanted(i) {
                continue;
            }
            let content = &message.content;
            let core = content.trim();
            if !core.is_empty() {
                let lead =
                    if placement.start_inside { content.len() - content.trim_start().len() } else { 0 };
                let tail = if placement.end_inside { content.trim_end().len() } else { content.len() };
                let (before, after) = (&content[..lead], &content[tail..]);
                let (s, e) = (self.mark(i, 0), self.mark(i, 1));
                message.content = format!("{before}{s}{}{e}{after}", &content[lead..tail]);
            }
            if placement.tools
                && let Some(name) = last_tool_name(message)
            {
                name.insert(0, self.mark(i, 2));
            }
        }
        out
    }

    /// Puts a mark into the name of the last tool that a message calls, and gives it; `None` when it calls none.
    pub fn insert_in_call(self, messages: &mut [Message], turn: usize) -> Option<char> {
        let mark = self.mark(turn, 2);
        last_tool_name(messages.get_mut(turn)?)?.insert(0, mark);
        Some(mark)
    }

    /// Whether a placement makes a difference for these messages.
    pub fn placements(messages: &[Message]) -> Vec<Placement> {
        let padded =
            |f: fn(&str) -> &str| messages.iter().any(|m| m.is_response() && f(&m.content) != m.content);
        let starts: &[bool] = if padded(str::trim_start) { &[false, true] } else { &[false] };
        let ends: &[bool] = if padded(str::trim_end) { &[false, true] } else { &[false] };
        let tools: &[bool] =
            if messages.iter().any(Message::calls_tools) { &[true, false] } else { &[false] };
        let mut out = Vec::new();
        for &tools in tools {
            for &end_inside in ends {
                for &start_inside in starts {
                    out.push(Placement { start_inside, end_inside, tools });
                }
            }
        }
        out
    }
}

fn note(text: &str, used: &mut [bool; 2]) {
    for b in text.bytes() {
        used[0] |= b == 0xF3;
        used[1] |= b == 0xF4;
    }
}

fn note_value(value: &Value, used: &mut [bool; 2]) {
    match value {
        Value::String(s) => note(s, used),
        Value::Array(items) => items.iter().for_each(|v| note_value(v, used)),
        Value::Object(map) => map.iter().for_each(|(k, v)| {
            note(k, used);
            note_value(v, used);
        }),
        _ => {}
    }
}

fn last_tool_name(message: &mut Message) -> Option<&mut String> {
    let call = message.extra.get_mut("tool_calls")?.as_array_mut()?.last_mut()?;
    let call = if call.get("function").is_some() { call.get_mut("function")? } else { call };
    match call.get_mut("name")? {
        Value::String(name) => Some(name),
        _ => None,
    }
}

/// A rendering with its marks taken out.
#[derive(Debug)]
pub(super) struct Marked {
    pub text: String,
    pub found: HashMap<usize, Found>,
}

impl Marked {
    /// Takes the marks out of a rendering. A mark that stands twice shows nothing and is left out.
    pub fn read(rendering: &str, marks: Marks, messages: usize) -> Self {
        let top = marks.base + 3 * messages as u32;
        let mut text = String::with_capacity(rendering.len());
        let mut positions: HashMap<u32, Option<usize>> = HashMap::new();
        for c in rendering.chars() {
            let code = c as u32;
            if code < marks.base || code >= top {
                text.push(c);
                continue;
            }
            let at = text.len();
            positions.entry(code - marks.base).and_modify(|p| *p = None).or_insert(Some(at));
        }
        let mut found: HashMap<usize, Found> = HashMap::new();
        for (mark, at) in positions {
            let entry = found.entry((mark / 3) as usize).or_default();
            match mark % 3 {
                0 => entry.start = at,
                1 => entry.end = at,
                _ => entry.tool = at,
            }
        }
        Self { text, found }
    }

    /// As [`Self::read`], but only when the text is exactly `plain`.
    pub fn of(rendering: &str, marks: Marks, messages: usize, plain: &str) -> Option<Self> {
        let marked = Self::read(rendering, marks, messages);
        (marked.text == plain).then_some(marked)
    }
}
