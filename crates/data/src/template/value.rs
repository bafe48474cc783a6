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

/// The names under which a message's thinking is passed; the first is the one that templates read (transformers 5.23).
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A list of mappings with `role`, `content` and the messages' other fields. Thinking given under any of its names is
/// there as `reasoning_content` and `thinking`, as transformers arranges it.
pub(super) fn of_messages(messages: &[Message]) -> Value {
    let one = |m: &Message| -> Value {
        let fixed = [("role", Value::from(m.role.as_str())), ("content", Value::from(m.content.as_str()))];
        let extra = m.extra.iter().map(|(k, v)| (k.as_str(), of_json(v)));
        let reasoning = REASONING.iter().find_map(|k| m.extra.get(*k));
        let aliases = REASONING[..2].iter().filter(|k| !m.extra.contains_key(**k));
        let aliases = aliases.filter_map(|k| reasoning.map(|r| (*k, of_json(r))));
        Value::from_pairs(fixed.into_iter().chain(extra).chain(aliases))
    };
    Value::from(messages.iter().map(one).collect::<Vec<_>>())
}
