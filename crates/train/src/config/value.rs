//! An untyped configuration value, and its spelling as YAML.
//!
//! serde_json's `Value` cannot hold NaN or infinity and YAML can, so the configuration has its own small type.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};

/// One YAML or JSON value. Mappings keep the order of the file: the first matching entry of a `rank_pattern` counts.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~`, or nothing after the colon.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number, `.nan` and `.inf` included.
    Float(f64),
    /// Text.
    Str(String),
    /// A sequence.
    List(Vec<Value>),
    /// A mapping with text keys, in file order and without duplicates.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// The value as a number: an int, a float, or text that spells one (`"5e-5"`, as YAML 1.1 writers leave it).
    pub fn as_f64(&self) -> Option<f64> {
        match self {
            Value::Int(i) => Some(*i as f64),
            Value::Float(x) => Some(*x),
            Value::Str(s) if s.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) => {
                s.trim().parse().ok()
            }
            _ => None,
        }
    }

    /// The value as a whole number; `3.0` and `"3"` count, `3.5` does not.
    pub fn as_i64(&self) -> Option<i64> {
        // 2^53: beyond it an f64 no longer names one integer.
        const EXACT: f64 = 9_007_199_254_740_992.0;
        match self {
            Value::Int(i) => Some(*i),
            Value::Float(x) if x.fract() == 0.0 && x.abs() <= EXACT => Some(*x as i64),
            Value::Str(s) => s.trim().parse().ok(),
            _ => None,
        }
    }

    /// What kind of thing this is, for "found a list".
    pub fn kind(&self) -> &'static str {
        match self {
            Value::Null => "nothing",
            Value::Bool(_) => "true or false",
            Value::Int(_) | Value::Float(_) => "a number",
            Value::Str(_) => "text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }

    /// One line of YAML that both YAML 1.1 (PyYAML) and 1.2 readers take for this value.
    pub fn to_yaml(&self) -> String {
        match self {
            Value::Null => "null".into(),
            Value::Bool(b) => b.to_string(),
            Value::Int(i) => i.to_string(),
            Value::Float(x) => float_to_yaml(*x),
            Value::Str(s) => str_to_yaml(s),
            Value::List(items) => {
                format!("[{}]", items.iter().map(Value::to_yaml).collect::<Vec<_>>().join(", "))
            }
            Value::Map(entries) => {
                let entries: Vec<_> =
                    entries.iter().map(|(k, v)| format!("{}: {}", str_to_yaml(k), v.to_yaml())).collect();
                format!("{{{}}}", entries.join(", "))
            }
        }
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_yaml())
    }
}

/// `5e-5` becomes `5.0e-5`: without the dot YAML 1.1 readers take it for text.
fn float_to_yaml(x: f64) -> String {
    if x.is_nan() {
        return ".nan".into();
    }
    if x.is_infinite() {
        return if x > 0.0 { ".inf".into() } else { "-.inf".into() };
    }
    let text = format!("{x:?}");
    match text.split_once('e') {
        Some((mantissa, exponent)) => {
            let dot = if mantissa.contains('.') { "" } else { ".0" };
            let sign = if exponent.starts_with('-') { "" } else { "+" };
            format!("{mantissa}{dot}e{sign}{exponent}")
        }
        None => text,
    }
}

fn str_to_yaml(s: &str) -> String {
    const RESERVED: [&str; 10] = ["true", "false", "null", "yes", "no", "on", "off", "y", "n", "nan"];
    let plain = s.starts_with(|c: char| c.is_ascii_alphabetic() || "_/".contains(c))
        && s.chars().all(|c| c.is_ascii_alphanumeric() || "_/.-".contains(c))
        && !RESERVED.contains(&s.to_ascii_lowercase().as_str());
    // A JSON string is a YAML double-quoted string.
    if plain { s.to_string() } else { serde_json::Value::from(s).to_string() }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ValueVisitor)
    }
}

struct ValueVisitor;

impl<'de> Visitor<'de> for ValueVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value")
    }
    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, d: D) -> Result<Value, D::Error> {
        d.deserialize_any(ValueVisitor)
    }
    fn visit_bool<E>(self, b: bool) -> Result<Value, E> {
        Ok(Value::Bool(b))
    }
    fn visit_i64<E>(self, i: i64) -> Result<Value, E> {
        Ok(Value::Int(i))
    }
    fn visit_u64<E>(self, i: u64) -> Result<Value, E> {
        // Beyond i64 no key has a use for the number; as a float it fails as "not a whole number" with its key named.
        Ok(i64::try_from(i).map_or(Value::Float(i as f64), Value::Int))
    }
    fn visit_f64<E>(self, x: f64) -> Result<Value, E> {
        Ok(Value::Float(x))
    }
    fn visit_str<E>(self, s: &str) -> Result<Value, E> {
        Ok(Value::Str(s.to_string()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries: Vec<(String, Value)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if entries.iter().any(|(k, _)| *k == key) {
                return Err(de::Error::custom(format!("the key `{key}` stands twice")));
            }
            entries.push((key, value));
        }
        Ok(Value::Map(entries))
    }
}
