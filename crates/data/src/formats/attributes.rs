//! Rows whose columns an entry of `dataset_info.json` explains, as LLaMA-Factory's converters read them.

use serde_json::Value;

use super::{Fields, chat, string};
use crate::error::{Result, kind_of};
use crate::info::{Attributes, Formatting};
use crate::record::{Conversation, Message, Record};

/// What a row means; the error is a sentence about a field.
pub(super) fn convert(fields: &Fields, attributes: &Attributes) -> Result<Record, String> {
    match attributes.formatting {
        Formatting::Alpaca => alpaca(fields, attributes),
        Formatting::Sharegpt | Formatting::Openai => turns(fields, attributes),
    }
}

/// The value of a column that may be absent.
fn column<'f>(fields: &'f Fields, name: &Option<String>) -> Option<&'f Value> {
    name.as_ref().and_then(|n| fields.get(n)).filter(|v| !v.is_null())
}

fn text(fields: &Fields, name: &Option<String>) -> Result<String, String> {
    match (column(fields, name), name) {
        (Some(_), Some(name)) => string(fields, name),
        _ => Ok(String::new()),
    }
}

fn alpaca(fields: &Fields, attributes: &Attributes) -> Result<Record, String> {
    let columns = &attributes.columns;
    let parts = [text(fields, &columns.prompt)?, text(fields, &columns.query)?];
    let parts: Vec<&str> = parts.iter().map(String::as_str).filter(|p| !p.is_empty()).collect();
    let prompt = parts.join("\n");
    if columns.response.is_none() {
        // A column of plain texts, as for pre-training.
        return Ok(Record::Text(prompt));
    }
    let Some(Value::String(response)) = column(fields, &columns.response) else {
        return Ok(Record::Unusable("there is no response"));
    };
    let mut messages = Vec::new();
    let system = text(fields, &columns.system)?;
    if !system.is_empty() {
        messages.push(Message::system(system));
    }
    if let Some(history) = column(fields, &columns.history) {
        chat::history(history, &mut messages)?;
    }
    messages.push(Message::user(prompt));
    messages.push(Message::assistant(response));
    let tools = chat::tools(column(fields, &columns.tools))?;
    Ok(Record::Chat(Conversation { tools, ..Conversation::new(messages) }))
}

fn turns(fields: &Fields, attributes: &Attributes) -> Result<Record, String> {
    let (columns, tags) = (&attributes.columns, &attributes.tags);
    let name = columns.messages.as_deref().unwrap_or("conversations");
    let items = chat::list(fields, name)?;
    let mut messages = Vec::with_capacity(items.len() + 1);
    let mut items = items.iter().enumerate().peekable();
    let system = match items.peek() {
        Some((_, first))
            if tags.system.is_some()
                && first.get(&tags.role).and_then(Value::as_str) == tags.system.as_deref() =>
        {
            let system = items.next().and_then(|(_, m)| m.get(&tags.content));
            system.and_then(Value::as_str).unwrap_or_default().to_string()
        }
        _ => text(fields, &columns.system)?,
    };
    if !system.is_empty() {
        messages.push(Message::system(system));
    }
    // Whether a response is due; results of tools that follow each other are one turn.
    let mut responds = false;
    for (i, item) in items {
        let Some(message) = turn(item, attributes).map_err(|e| format!("`{name}`[{i}]: {e}"))? else {
            return Ok(Record::Unusable("a turn has a role that its dataset's tags do not name"));
        };
        let again = attributes.formatting == Formatting::Openai
            && message.role == "tool"
            && messages.last().is_some_and(|m: &Message| m.role == "tool");
        if !again {
            if message.is_response() != responds {
                return Ok(Record::Unusable("its turns do not alternate"));
            }
            responds = !responds;
        }
        messages.push(message);
    }
    if responds || !messages.last().is_some_and(Message::is_response) {
        return Ok(Record::Unusable("its last turn is not a response"));
    }
    let tools = chat::tools(column(fields, &columns.tools))?;
    Ok(Record::Chat(Conversation { tools, ..Conversation::new(messages) }))
}

/// One turn; `None` for a role that no tag names.
fn turn(item: &Value, attributes: &Attributes) -> Result<Option<Message>, String> {
    let tags = &attributes.tags;
    let Value::Object(fields) = item else {
        return Err(format!("a message should be an object, found {}", kind_of(item)));
    };
    let role = match fields.get(&tags.role) {
        Some(Value::String(role)) => role,
        Some(other) => return Err(format!("`{}` should be a string, found {}", tags.role, kind_of(other))),
        None => {
            return Err(format!("`{}` is missing; `tags.role_tag` names the field of the role", tags.role));
        }
    };
    if !fields.contains_key(&tags.content) && !fields.contains_key("tool_calls") {
        return Err(format!("`{}` is missing; `tags.content_tag` names the field of the text", tags.content));
    }
    let is = |tag: &Option<String>| tag.as_ref() == Some(role);
    let content = chat::text(fields.get(&tags.content), &tags.content)?;
    let openai = attributes.formatting == Formatting::Openai;
    if openai && (is(&tags.assistant) || is(&tags.function)) {
        let calls = fields.get("tool_calls").filter(|c| c.as_array().is_some_and(|c| !c.is_empty()));
        if let Some(calls) = calls {
            return chat::with_calls(calls.clone()).map(Some);
        }
    }
    if is(&tags.function) {
        return chat::function_call(&content).map(Some);
    }
    let role = if is(&tags.user) {
        "user"
    } else if is(&tags.assistant) {
        "assistant"
    } else if is(&tags.observation) {
        "tool"
    } else {
        return Ok(None);
    };
    Ok(Some(Message::new(role, content)))
}
