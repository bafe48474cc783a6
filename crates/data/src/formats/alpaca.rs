//! Alpaca: an instruction, optionally with an input, and its output.

use super::{Fields, Format, chat, optional_string, string};
use crate::error::Result;
use crate::record::{Conversation, Message, Record};

pub(super) const FORMAT: Format = Format {
    name: "alpaca",
    required: &["instruction", "output"],
    optional: &["input", "system", "history", "tools"],
    about: "user = instruction and input on the next line (empty ones skipped); history = earlier [user, answer] pairs",
    example: r#"{"instruction": "Add the numbers.", "input": "2 and 3", "output": "5"}"#,
    convert,
};

fn convert(fields: &Fields) -> Result<Record, String> {
    let mut messages = Vec::new();
    let system = optional_string(fields, "system")?;
    if !system.is_empty() {
        messages.push(Message::system(system));
    }
    if let Some(pairs) = fields.get("history").filter(|h| !h.is_null()) {
        chat::history(pairs, &mut messages)?;
    }
    let parts = [string(fields, "instruction")?, optional_string(fields, "input")?];
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
    messages.push(Message::user(parts.join("\n")));
    messages.push(Message::assistant(string(fields, "output")?));
    let tools = chat::tools(fields.get("tools"))?;
    Ok(Record::Chat(Conversation {
        tools,
        variables: chat::variables(fields)?,
        ..Conversation::new(messages)
    }))
}
