//! Settings as words of a command line: `key=value`, and flags as Hugging Face's parser takes them (`--key value`, `--key=value`,
//! `--switch`, `--switch false`, `--no_switch`; `-` and `_` are the same in a name).

use super::elsewhere;
use super::error::{ConfigError, Origin};
use super::field::Arity;
use super::file::saphyr_message;
use super::registry::Key;
use super::secret::hidden;
use super::value::Value;

/// One setting as somebody wrote it.
#[derive(Debug, Clone)]
pub(super) struct Written {
    /// As it was spelt, dashes in flags as underscores.
    pub key: String,
    pub value: Value,
    pub origin: Origin,
}

/// Words of a command line that are still to be read.
#[derive(Debug)]
pub(super) struct Words<'a> {
    rest: &'a [String],
}

/// A flag whose values are not taken yet.
#[derive(Debug)]
pub(super) struct Flag<'a> {
    /// As typed, without a value: `--lora-r`.
    pub typed: &'a str,
    /// `lora_r`.
    pub name: String,
    /// What stands behind a `=`.
    attached: Option<&'a str>,
}

impl<'a> Words<'a> {
    pub fn new(words: &'a [String]) -> Words<'a> {
        Words { rest: words }
    }

    pub fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        Some(first)
    }

    /// The next word if `ok` says that it belongs to what came before.
    fn next_if(&mut self, ok: impl Fn(&str) -> bool) -> Option<&'a str> {
        self.rest.first().filter(|word| ok(word))?;
        self.next()
    }

    /// The values of a flag.
    ///
    /// # Errors
    /// If it needs one and there is none; `expected` says what it would be.
    pub fn values(
        &mut self,
        flag: &Flag<'a>,
        arity: Arity,
        expected: &str,
    ) -> Result<Vec<&'a str>, ConfigError> {
        if let Some(value) = flag.attached {
            return Ok(vec![value]);
        }
        let mut values = Vec::new();
        match arity {
            Arity::Switch => values.extend(self.next_if(|w| truth(w).is_some())),
            Arity::Maybe => values.extend(self.next_if(|w| is_value(w) && !is_setting(w))),
            Arity::One => values.extend(self.next_if(is_value)),
            Arity::Many => {
                while let Some(word) = self.next_if(|w| is_value(w) && !is_setting(w)) {
                    values.push(word);
                }
            }
        }
        if values.is_empty() && matches!(arity, Arity::One | Arity::Many) {
            return Err(ConfigError::NoValue {
                flag: flag.typed.to_string(),
                expected: expected.to_string(),
            });
        }
        Ok(values)
    }
}

impl<'a> Flag<'a> {
    /// The flag that a word begins with, if it is one.
    pub fn of(word: &'a str) -> Option<Flag<'a>> {
        let bare = word.strip_prefix("--").or_else(|| {
            let letter = |rest: &&str| rest.starts_with(|c: char| c.is_ascii_alphabetic());
            word.strip_prefix('-').filter(letter)
        })?;
        let (name, attached) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (bare, None),
        };
        let typed = &word[..word.len() - attached.map_or(0, |value| value.len() + 1)];
        Some(Flag { typed, name: name.replace('-', "_"), attached })
    }

    /// Where a value of this flag comes from; secrets are left out.
    pub fn origin(&self, values: &[&str], is_secret: bool) -> Origin {
        let values = if is_secret { &[] } else { values };
        let words: Vec<String> = values.iter().map(|value| hidden(value)).collect();
        Origin::Flag([&[self.typed.to_string()], &words[..]].concat().join(" "))
    }
}

/// A word that can be a flag's value: not a flag itself. Negative numbers are values.
fn is_value(word: &str) -> bool {
    Flag::of(word).is_none()
}

/// `key=value` of a known key.
fn is_setting(word: &str) -> bool {
    word.split_once('=').is_some_and(|(key, _)| Key::find(&key.trim().replace('-', "_")).is_some())
}

/// What Hugging Face's parser reads as true and false.
pub(super) fn truth(word: &str) -> Option<bool> {
    match word.to_ascii_lowercase().as_str() {
        "true" | "yes" | "t" | "y" | "1" | "on" => Some(true),
        "false" | "no" | "f" | "n" | "0" | "off" => Some(false),
        _ => None,
    }
}

/// Reads all words.
///
/// # Errors
/// A word that is no setting, or a flag without its value. Whether names are known is judged later.
pub(super) fn read(words: &[String]) -> Result<Vec<Written>, ConfigError> {
    let mut words = Words::new(words);
    let mut written = Vec::new();
    while let Some(word) = words.next() {
        written.push(match Flag::of(word) {
            Some(flag) => read_flag(flag, &mut words)?,
            None => read_setting(word)?,
        });
    }
    Ok(written)
}

/// A flag with its values.
///
/// # Errors
/// As [`read`].
pub(super) fn read_flag<'a>(flag: Flag<'a>, words: &mut Words<'a>) -> Result<Written, ConfigError> {
    if let Some(key) = Key::find(&flag.name) {
        let values = words.values(&flag, key.arity, &key.expectation())?;
        let origin = flag.origin(&values, key.is_secret);
        let value = match (key.arity, values.as_slice()) {
            (Arity::Switch | Arity::Maybe, []) => Value::Bool(true),
            (Arity::Switch, [word]) => truth(word).map_or(Value::Str(word.to_string()), Value::Bool),
            (_, [one]) => value_of(key, one, &origin)?,
            (_, many) => {
                Value::List(many.iter().map(|w| value_of(key, w, &origin)).collect::<Result<_, _>>()?)
            }
        };
        return Ok(Written { key: flag.name, value, origin });
    }
    // `--no_plot_loss`, unless there is a key of that very name.
    let positive = flag.name.strip_prefix("no_").filter(|_| elsewhere::find(&flag.name).is_none());
    if let Some(name) = positive
        && (Key::find(name).is_some_and(|key| matches!(key.arity, Arity::Switch | Arity::Maybe))
            || elsewhere::find(name).is_some())
    {
        let origin = flag.origin(&[], false);
        return Ok(Written { key: name.to_string(), value: Value::Bool(false), origin });
    }
    // A peer's flag: how many values it takes is seen from what follows.
    let values = words.values(&flag, Arity::Maybe, "")?;
    let origin = flag.origin(&values, true);
    let value = match values.first() {
        None => Value::Bool(true),
        Some(word) => {
            truth(word).map_or_else(|| parse_yaml(word).unwrap_or(Value::Str(word.to_string())), Value::Bool)
        }
    };
    Ok(Written { key: flag.name, value, origin })
}

/// `key=value`.
///
/// # Errors
/// If it has another form, or its value is no YAML.
pub(super) fn read_setting(text: &str) -> Result<Written, ConfigError> {
    let bad = || ConfigError::BadOverride { text: hidden(text) };
    let (name, value) = text.split_once('=').ok_or_else(bad)?;
    let (name, value) = (name.trim().replace('-', "_"), value.trim());
    if name.is_empty() {
        return Err(bad());
    }
    let key = Key::find(&name);
    let shown = if key.is_some_and(|k| k.is_secret) { format!("{name}=…") } else { hidden(text) };
    let origin = Origin::Override(shown);
    let value = match key {
        Some(key) => value_of(key, value, &origin)?,
        None => syntax(value, &origin)?,
    };
    Ok(Written { key: name, value, origin })
}

/// The value of a text key is taken as it stands, unless it is quoted, a flow list or empty; any other is parsed as YAML.
fn value_of(key: &Key, text: &str, origin: &Origin) -> Result<Value, ConfigError> {
    let as_is = key.is_text && !text.starts_with(['"', '\'', '[', '{']);
    match text {
        "" | "null" | "~" => Ok(Value::Null),
        _ if as_is => Ok(Value::Str(text.to_string())),
        _ => syntax(text, origin),
    }
}

fn syntax(text: &str, origin: &Origin) -> Result<Value, ConfigError> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    parse_yaml(text).map_err(|message| ConfigError::Syntax {
        file: origin.to_string(),
        format: "YAML",
        message,
    })
}

fn parse_yaml(text: &str) -> Result<Value, String> {
    serde_saphyr::from_str(text).map_err(|e| saphyr_message(&e))
}
