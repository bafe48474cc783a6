//! Values that must not be shown: access tokens.

use std::fmt;

use super::field::{Field, Problem};
use super::value::Value;

/// A token. It is read from a configuration and never written: not into a resolved configuration, a message or a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The token itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Field for Secret {
    const TEXT: bool = true;
    const SECRET: bool = true;
    fn expected() -> String {
        "a token".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        String::parse(value).map(|token| Secret(token.trim().to_string()))
    }
    fn to_value(&self) -> Value {
        // What is written out is read by others.
        Value::Null
    }
}

/// The text with everything in it that looks like one of Hugging Face's tokens cut short.
pub fn hidden(text: &str) -> String {
    const MARK: &str = "hf_";
    const SHORTEST: usize = 10;
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let (before, found) = rest.split_at(at + MARK.len());
        let length = found.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(found.len());
        out.push_str(before);
        out.push_str(if length >= SHORTEST { "…" } else { &found[..length] });
        rest = &found[length..];
    }
    out + rest
}
