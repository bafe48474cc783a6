//! JSON as Python's `json` module writes and reads it: `NaN` and `Infinity` as bare words, floats spelt like `repr`,
//! non-ASCII escaped. transformers' own files have this form, so ours can be read by it and theirs by us.

use std::fmt::Write as _;

use crate::config::Value;

/// `json.dumps(value, indent=indent, sort_keys=True)`.
pub fn to_python(value: &Value, indent: usize) -> String {
    let mut out = String::new();
    write_value(&mut out, value, indent, 0);
    out
}

fn write_value(out: &mut String, value: &Value, indent: usize, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Int(i) => out.push_str(&i.to_string()),
        Value::Float(x) => out.push_str(&float(*x)),
        Value::Str(s) => write_str(out, s),
        Value::List(items) => write_block(out, ['[', ']'], indent, depth, items, |out, item| {
            write_value(out, item, indent, depth + 1)
        }),
        Value::Map(entries) => {
            let mut sorted: Vec<_> = entries.iter().collect();
            sorted.sort_by(|a, b| a.0.cmp(&b.0));
            write_block(out, ['{', '}'], indent, depth, &sorted, |out, (key, value)| {
                write_str(out, key);
                out.push_str(": ");
                write_value(out, value, indent, depth + 1);
            });
        }
    }
}

fn write_block<T>(
    out: &mut String,
    brackets: [char; 2],
    indent: usize,
    depth: usize,
    items: &[T],
    mut write: impl FnMut(&mut String, &T),
) {
    out.push(brackets[0]);
    for (i, item) in items.iter().enumerate() {
        out.push_str(if i == 0 { "\n" } else { ",\n" });
        out.extend(std::iter::repeat_n(' ', indent * (depth + 1)));
        write(out, item);
    }
    if !items.is_empty() {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', indent * depth));
    }
    out.push(brackets[1]);
}

fn write_str(out: &mut String, s: &str) {
    out.push('"');
    for unit in s.encode_utf16() {
        match unit {
            0x22 => out.push_str("\\\""),
            0x5c => out.push_str("\\\\"),
            0x0a => out.push_str("\\n"),
            0x0d => out.push_str("\\r"),
            0x09 => out.push_str("\\t"),
            0x08 => out.push_str("\\b"),
            0x0c => out.push_str("\\f"),
            0x20..=0x7e => out.push(unit as u8 as char),
            _ => {
                let _ = write!(out, "\\u{unit:04x}");
            }
        }
    }
    out.push('"');
}

/// Python's `repr(float)`: the shortest digits, an exponent below 1e-4 and from 1e16, `NaN`, `Infinity`.
pub fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { "Infinity".into() } else { "-Infinity".into() };
    }
    let scientific = format!("{x:e}");
    let Some((mantissa, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if x != 0.0 && !(-4..16).contains(&exponent) {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{mantissa}e{sign}{:02}", exponent.unsigned_abs());
    }
    let plain = format!("{x}");
    if plain.contains('.') { plain } else { format!("{plain}.0") }
}

/// `json.loads`: as JSON, with the bare words for non-finite numbers, which become those floats.
///
/// # Errors
/// The parser's message.
pub fn from_python(text: &str) -> Result<Value, String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    let mut in_string = false;
    while let Some(c) = rest.chars().next() {
        let word = if in_string { None } else { NON_FINITE.iter().find(|(word, _)| rest.starts_with(word)) };
        if let Some((word, _)) = word {
            let _ = write!(plain, "\"{MARK}{word}\"");
            rest = &rest[word.len()..];
            continue;
        }
        let len = match c {
            '\\' if in_string => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
            _ => c.len_utf8(),
        };
        in_string ^= c == '"';
        plain.push_str(&rest[..len]);
        rest = &rest[len..];
    }
    let value = serde_json::from_str(&plain).map_err(|e| e.to_string())?;
    Ok(restore(value))
}

const NON_FINITE: [(&str, f64); 3] =
    [("NaN", f64::NAN), ("-Infinity", f64::NEG_INFINITY), ("Infinity", f64::INFINITY)];
/// Marks a word that stood outside of quotes; U+FFFF is no character, so no honest text begins with it.
const MARK: char = '\u{ffff}';

fn restore(value: Value) -> Value {
    match value {
        Value::Str(s) => {
            match s.strip_prefix(MARK).and_then(|w| NON_FINITE.iter().find(|(word, _)| *word == w)) {
                Some((_, x)) => Value::Float(*x),
                None => Value::Str(s),
            }
        }
        Value::List(items) => Value::List(items.into_iter().map(restore).collect()),
        Value::Map(entries) => Value::Map(entries.into_iter().map(|(k, v)| (k, restore(v))).collect()),
        other => other,
    }
}

/// serde for an f64 that may be non-finite in strict JSON: a number, else the text `NaN`, `Infinity`, `-Infinity`.
pub mod any_float {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    use super::{NON_FINITE, float};

    pub fn serialize<S: Serializer>(x: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        if x.is_finite() { serializer.serialize_f64(*x) } else { serializer.serialize_str(&float(*x)) }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        let value = crate::config::Value::deserialize(deserializer)?;
        let word = match &value {
            crate::config::Value::Str(s) => NON_FINITE.iter().find(|(word, _)| word == s).map(|(_, x)| *x),
            _ => None,
        };
        word.or_else(|| value.as_f64())
            .ok_or_else(|| D::Error::custom(format!("expected a number, found {value}")))
    }
}

/// The same for a map of them.
pub mod any_float_map {
    use std::collections::BTreeMap;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    struct Float(#[serde(with = "super::any_float")] f64);

    pub fn serialize<S: Serializer>(map: &BTreeMap<String, f64>, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(map.iter().map(|(k, v)| (k, Float(*v))))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, f64>, D::Error> {
        let map = BTreeMap::<String, Float>::deserialize(deserializer)?;
        Ok(map.into_iter().map(|(k, v)| (k, v.0)).collect())
    }
}
