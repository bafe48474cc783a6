//! What the chat formats share: messages, roles, tool calls, tools.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::{Fields, literal};
use crate::error::{Result, kind_of, nearest};
use crate::record::Message;

/// Role names in datasets and the role that templates know.
const ROLES: &[(&str, &str)] = &[
    ("system", "system"),
    ("developer", "developer"),
    ("user", "user"),
    ("human", "user"),
    ("assistant", "assistant"),
    ("gpt", "assistant"),
    ("model", "assistant"),
    ("chatgpt", "assistant"),
    ("bing", "assistant"),
    ("bard", "assistant"),
    ("function_call", "function_call"),
    ("observation", "tool"),
    ("tool", "tool"),
    ("function", "tool"),
    ("ipython", "ipython"),
];

/// Reads a list of messages from a field; role/content and from/value may be mixed.
pub(super) fn messages(fields: &Fields, name: &str) -> Result<Vec<Message>, String> {
    let items = list(fields, name)?;
    let read = |(i, item): (usize, &Value)| message(item).map_err(|e| format!("`{name}`[{i}]: {e}"));
    items.iter().enumerate().map(read).collect()
}

/// The items of a list of messages. A cell of a table holds such a list as JSON text; `datasets` may hold it as lists by
/// field.
pub(super) fn list<'f>(fields: &'f Fields, name: &str) -> Result<Cow<'f, [Value]>, String> {
    let items = match fields.get(name) {
        Some(Value::Array(items)) => Cow::Borrowed(items.as_slice()),
        Some(Value::String(text)) => match literal::value(text) {
            Some(Value::Array(items)) => Cow::Owned(items),
            _ => {
                return Err(format!(
                    "`{name}` should be a list of messages, found text that is no list, neither JSON's nor Python's"
                ));
            }
        },
        Some(Value::Object(by_field)) => Cow::Owned(transposed(by_field).ok_or_else(|| {
            format!("`{name}` should be a list of messages, found an object whose fields are not lists of one length")
        })?),
        Some(other) => {
            return Err(format!("`{name}` should be a list of messages, found {}", kind_of(other)));
        }
        None => return Err(format!("`{name}` is missing")),
    };
    if items.is_empty() {
        return Err(format!("`{name}` is an empty list"));
    }
    Ok(items)
}

/// `{from: [a, b], value: [c, d]}` as `[{from: a, value: c}, {from: b, value: d}]`.
fn transposed(by_field: &Map<String, Value>) -> Option<Vec<Value>> {
    let columns: Vec<(&String, &Vec<Value>)> =
        by_field.iter().map(|(k, v)| Some((k, v.as_array()?))).collect::<Option<_>>()?;
    let n = columns.first()?.1.len();
    if columns.iter().any(|(_, c)| c.len() != n) {
        return None;
    }
    let row =
        |i: usize| columns.iter().map(|(k, c)| ((*k).clone(), c[i].clone())).collect::<Map<_, _>>().into();
    Some((0..n).map(row).collect())
}

fn message(item: &Value) -> Result<Message, String> {
    let Value::Object(fields) = item else {
        return Err(format!("a message should be an object, found {}", kind_of(item)));
    };
    let pick = |names: [&'static str; 2]| names.into_iter().find(|n| fields.contains_key(*n));
    let (Some(role_key), Some(content_key)) = (pick(["role", "from"]), pick(["content", "value"])) else {
        return without_content(fields);
    };
    let role = role(fields.get(role_key))?;
    let content = text(fields.get(content_key), content_key)?;
    if role == "function_call" {
        return function_call(&content);
    }
    let extra = extra(fields, &[role_key, content_key])?;
    let null_content = fields.get(content_key).is_none_or(Value::is_null);
    Ok(Message { role: role.into(), content, null_content, extra })
}

/// A message that only calls tools may leave its content out; anything else is a slip.
fn without_content(fields: &Map<String, Value>) -> Result<Message, String> {
    let calls = fields.get("tool_calls").is_some_and(|c| !c.is_null());
    if let Some(value) = fields.get("role").or_else(|| fields.get("from"))
        && calls
    {
        return Ok(Message {
            role: role(Some(value))?.into(),
            content: String::new(),
            null_content: true,
            extra: extra(fields, &["role", "from"])?,
        });
    }
    let names: Vec<String> = fields.keys().map(|k| format!("`{k}`")).collect();
    let mut hint = String::new();
    for right in ["role", "content", "from", "value"] {
        if let Some(slip) = nearest(right, fields.keys().map(String::as_str))
            && slip != right
        {
            hint = format!("; did you mean `{right}` for `{slip}`?");
            break;
        }
    }
    Err(format!("expected `role` and `content` (or `from` and `value`), found {}{hint}", names.join(", ")))
}

fn role(value: Option<&Value>) -> Result<&'static str, String> {
    let Some(Value::String(name)) = value else {
        return Err(format!("the role should be a string, found {}", value.map_or("nothing", kind_of)));
    };
    if let Some((_, role)) = ROLES.iter().find(|(n, _)| n == name) {
        return Ok(role);
    }
    let near = nearest(name, ROLES.iter().map(|(n, _)| *n));
    let hint = near.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
    Err(format!("unknown role `{name}`{hint} (known: {})", ROLES.map_names()))
}

trait Names {
    fn map_names(&self) -> String;
}

impl Names for [(&str, &str)] {
    fn map_names(&self) -> String {
        self.iter().map(|(n, _)| *n).collect::<Vec<_>>().join(", ")
    }
}

/// A string, a list of text parts (joined as multimodal templates print them: one after the other), or null.
pub(super) fn text(value: Option<&Value>, name: &str) -> Result<String, String> {
    match value {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(s)) => Ok(s.clone()),
        Some(Value::Array(parts)) => {
            let part = |(i, p): (usize, &Value)| match (p.as_str(), p.get("text").and_then(Value::as_str)) {
                (Some(s), _) | (None, Some(s)) => Ok(s.to_string()),
                _ => {
                    let kind = p.get("type").and_then(Value::as_str).unwrap_or("unknown");
                    Err(format!("`{name}`[{i}] is a part of type `{kind}`; only text parts can be trained"))
                }
            };
            parts.iter().enumerate().map(part).collect()
        }
        Some(other) => {
            Err(format!("`{name}` should be a string or a list of text parts, found {}", kind_of(other)))
        }
    }
}

/// The other fields of a message, without nulls (which templates take for values). Arguments of tool calls that come as
/// a JSON string become objects, as inference servers do before they render, so that `tojson` does not quote them.
fn extra(fields: &Map<String, Value>, taken: &[&str]) -> Result<Map<String, Value>, String> {
    let mut extra = Map::new();
    for (key, value) in fields.iter().filter(|(k, v)| !taken.contains(&k.as_str()) && !v.is_null()) {
        let mut value = value.clone();
        if key == "tool_calls" {
            let Value::Array(calls) = &mut value else {
                return Err(format!("`tool_calls` should be a list, found {}", kind_of(&value)));
            };
            for (i, call) in calls.iter_mut().enumerate() {
                parse_arguments(call).map_err(|e| format!("`tool_calls`[{i}]: {e}"))?;
            }
        }
        extra.insert(key.clone(), value);
    }
    Ok(extra)
}

fn parse_arguments(call: &mut Value) -> Result<(), String> {
    let function = match call.get_mut("function") {
        Some(function) => function,
        None => call,
    };
    if function.get("name").and_then(Value::as_str).is_none() {
        return Err("expected a function with a `name`".into());
    }
    if let Some(arguments) = function.get_mut("arguments")
        && let Some(text) = arguments.as_str()
        && let Ok(parsed @ Value::Object(_)) = serde_json::from_str(text)
    {
        *arguments = parsed;
    }
    Ok(())
}

/// Ends a thought in most models' responses.
const THOUGHT_END: &str = "</think>";

/// ShareGPT's function_call: its value is a call `{"name": …, "arguments": …}` or a list of them, as JSON.
pub(super) fn function_call(content: &str) -> Result<Message, String> {
    // A thought may stand before the call.
    let thought = content.rfind(THOUGHT_END).map_or(0, |at| at + THOUGHT_END.len());
    let json = content[thought..].find(['{', '[']).map_or(0, |at| thought + at);
    let (thought, json) = match serde_json::from_str::<Value>(content) {
        Ok(_) => ("", content),
        Err(_) => content.split_at(json),
    };
    let parsed: Value = serde_json::from_str(json).map_err(|e| {
        format!("a function_call should be JSON such as {{\"name\": …, \"arguments\": …}}: {e}")
    })?;
    let calls = match parsed {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let calls = calls.into_iter().map(|call| json!({"type": "function", "function": call})).collect();
    Ok(Message { content: thought.into(), ..with_calls(Value::Array(calls))? })
}

/// A response that only calls tools.
pub(super) fn with_calls(mut calls: Value) -> Result<Message, String> {
    for call in calls.as_array_mut().into_iter().flatten() {
        parse_arguments(call)?;
    }
    let mut message = Message::assistant("");
    message.extra.insert("tool_calls".into(), calls);
    Ok(message)
}

/// The `tools` field: a list or its JSON text. Bare functions are wrapped as `{"type": "function", "function": …}`,
/// the shape that templates expect. An empty list stays one: named templates write a system turn for it.
pub(super) fn tools(value: Option<&Value>) -> Result<Option<Value>, String> {
    let value = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(s)) if s.trim().is_empty() => return Ok(None),
        Some(Value::String(s)) => match literal::value(s) {
            Some(value) => value,
            None => serde_json::from_str(s).map_err(|e| format!("`tools` is not JSON: {e}"))?,
        },
        Some(value) => value.clone(),
    };
    let Value::Array(items) = value else {
        return Err(format!("`tools` should be a list, found {}", kind_of(&value)));
    };
    let wrap = |tool: Value| {
        let bare = tool.get("name").is_some() && tool.get("function").is_none();
        if bare { json!({"type": "function", "function": tool}) } else { tool }
    };
    Ok(Some(Value::Array(items.into_iter().map(wrap).collect())))
}

/// The `history` of an instruction: pairs of a question and its answer.
pub(super) fn history(value: &Value, messages: &mut Vec<Message>) -> Result<(), String> {
    let parsed: Value;
    let value = match value {
        Value::String(text) => {
            parsed = match literal::value(text) {
                Some(value) => value,
                None => serde_json::from_str(text).map_err(|e| format!("`history` is not JSON: {e}"))?,
            };
            &parsed
        }
        other => other,
    };
    let Value::Array(pairs) = value else {
        return Err(format!("`history` should be a list of pairs, found {}", kind_of(value)));
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

/// The `chat_template_kwargs` field.
pub(super) fn variables(fields: &Fields) -> Result<Map<String, Value>, String> {
    match fields.get("chat_template_kwargs") {
        None | Some(Value::Null) => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map.clone()),
        Some(other) => Err(format!("`chat_template_kwargs` should be an object, found {}", kind_of(other))),
    }
}
