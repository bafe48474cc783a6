//! JSON and messages as template values.

use minijinja::Value;
use serde_json::Value as Json;

use crate::record::Message;

/// A JSON value; mappings keep their order.
pub(super) fn of_json(json: &Json) -> Value {
    match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (None, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(s.as_str()),
        Json::Array(items) => Value::from(items.iter().map(of_json).collect::<Vec<_>>()),
        Json::Object(map) => Value::from_pairs(map.iter().map(|(k, v)| (k.as_str(), of_json(v)))),
    }
}

/// A list of mappings with `role`, `content` and the messages' other fields.
pub(super) fn of_messages(messages: &[Message]) -> Value {
    let one = |m: &Message| -> Value {
        let fixed = [("role", Value::from(m.role.as_str())), ("content", Value::from(m.content.as_str()))];
        Value::from_pairs(fixed.into_iter().chain(m.extra.iter().map(|(k, v)| (k.as_str(), of_json(v)))))
    };
    Value::from(messages.iter().map(one).collect::<Vec<_>>())
}
