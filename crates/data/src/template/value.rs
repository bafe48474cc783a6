//! JSON and messages as template values.

use minijinja::Value;
use serde_json::Value as Json;

use crate::record::{Message, REASONING};

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

/// A list of mappings with `role`, `content` and the messages' other fields. Thinking given under any of its names is
/// there as `reasoning_content` and `thinking`, as transformers arranges it. With `asks_null`, a message without content
/// has the content none.
pub(super) fn of_messages(messages: &[Message], asks_null: bool) -> Value {
    let one = |m: &Message| -> Value {
        let null = asks_null && m.null_content && m.content.is_empty();
        let content = if null { Value::from(()) } else { Value::from(m.content.as_str()) };
        let fixed = [("role", Value::from(m.role.as_str())), ("content", content)];
        let extra = m.extra.iter().map(|(k, v)| (k.as_str(), of_json(v)));
        let reasoning = REASONING.iter().find_map(|k| m.extra.get(*k));
        let aliases = REASONING[..2].iter().filter(|k| !m.extra.contains_key(**k));
        let aliases = aliases.filter_map(|k| reasoning.map(|r| (*k, of_json(r))));
        Value::from_pairs(fixed.into_iter().chain(extra).chain(aliases))
    };
    Value::from(messages.iter().map(one).collect::<Vec<_>>())
}

/// Whether a template asks if a message's content is none, as some do to recognise a message that only calls tools. The
/// others print "None" or fail on a null, so that they are given an empty content instead.
pub(super) fn asks_for_null(source: &str) -> bool {
    source.match_indices("content").any(|(at, word)| {
        let rest = source[at + word.len()..].trim_start_matches(['\'', '"', ']']);
        let mut words = rest.split_whitespace().map(|w| w.trim_matches(|c: char| !c.is_alphanumeric()));
        rest.starts_with(char::is_whitespace)
            && words.next() == Some("is")
            && matches!(
                (words.next(), words.next()),
                (Some("none" | "None"), _) | (Some("not"), Some("none" | "None"))
            )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_that_ask_for_null_are_recognised() {
        for yes in [
            "{% if message['content'] is none %}",
            "{{ m.content is not none and x }}",
            "(m.content is none)",
        ] {
            assert!(asks_for_null(yes), "{yes}");
        }
        for no in ["{% if m.content is string %}", "{{ content }} is none", "{% if contents is none %}"] {
            assert!(!asks_for_null(no), "{no}");
        }
    }
}
