//! Alpaca: an instruction, optionally with an input, and its output.

use serde_json::Value;

use super::{Fields, Format, chat, optional_string, string};
use crate::error::{Result, kind_of};
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
    history(fields, &mut messages)?;
    let parts = [string(fields, "instruction")?, optional_string(fields, "input")?];
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
    messages.push(Message::user(parts.join("\n")));
    messages.push(Message::assistant(string(fields, "output")?));
    let tools = chat::tools(fields)?;
    Ok(Record::Chat(Conversation {
        tools,
        variables: chat::variables(fields)?,
        ..Conversation::new(messages)
    }))
}

fn history(fields: &Fields, messages: &mut Vec<Message>) -> Result<(), String> {
    let pairs = match fields.get("history") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(pairs)) => pairs,
        Some(other) => return Err(format!("`history` should be a list of pairs, found {}", kind_of(other))),
    };
    for (i, pair) in pairs.iter().enumerate() {
        let texts = pair.as_array().map(|p| p.iter().map(Value::as_str).collect::<Vec<_>>());
        let Some([Some(user), Some(answer)]) = texts.as_deref() else {
            return Err(format!("`history`[{i}] should be a pair of strings [user, answer]"));
        };
        messages.push(Message::user(*user));
        messages.push(Message::assistant(*answer));
    }
    Ok(())
}
