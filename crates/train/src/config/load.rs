//! From text to a checked [`Loaded`]: parsing, aliases, overrides, unknown keys.

use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_saphyr::Spanned;

use super::elsewhere::{self, Answer};
use super::error::{ConfigError, Origin};
use super::field::Problem;
use super::keys::{KEYS, Key, RunConfig};
use super::value::Value;
use super::{Loaded, Origins, nearest};

/// One `key: value` as somebody wrote it.
struct Written {
    key: String,
    value: Value,
    origin: Origin,
}

impl RunConfig {
    /// Reads `path` (JSON if it ends in `.json`, else YAML), applies the `key=value` overrides in order and checks the
    /// whole.
    ///
    /// # Errors
    /// The first thing wrong, with file and line; see [`ConfigError`].
    pub fn load(path: &Path, overrides: &[String]) -> Result<Loaded, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => {
                ConfigError::Missing { path: path.to_path_buf(), near: near_files(path) }
            }
            _ => ConfigError::Unreadable { path: path.to_path_buf(), source },
        })?;
        Self::from_text(&text, &path.display().to_string(), overrides)
    }

    /// As [`RunConfig::load`], for text that is already here; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn from_text(text: &str, file: &str, overrides: &[String]) -> Result<Loaded, ConfigError> {
        let is_json = Path::new(file).extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
        let written = if is_json { read_json(text, file)? } else { read_yaml(text, file)? };
        let mut builder = Builder::default();
        builder.apply(written)?;
        builder.finish(file, overrides)
    }

    /// A configuration from `key=value` settings alone.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn from_overrides(overrides: &[String]) -> Result<Loaded, ConfigError> {
        Builder::default().finish("the configuration", overrides)
    }
}

#[derive(Default)]
struct Builder {
    config: RunConfig,
    origins: Origins,
    notes: Vec<String>,
}

impl Builder {
    fn finish(mut self, file: &str, overrides: &[String]) -> Result<Loaded, ConfigError> {
        // One at a time: a later override replaces an earlier one instead of clashing with it.
        for text in overrides {
            self.apply(vec![read_override(text)?])?;
        }
        let mut loaded = Loaded { config: self.config, origins: self.origins, notes: self.notes };
        loaded.resolve_and_check(file)?;
        Ok(loaded)
    }

    /// Sets the keys of one source, in which no setting may stand twice.
    fn apply(&mut self, written: Vec<Written>) -> Result<(), ConfigError> {
        let mut spelt: Vec<(&'static str, String, Origin)> = Vec::new();
        for Written { key: spelling, value, origin } in written {
            let Some(key) = Key::find(&spelling) else {
                if let Some(note) = foreign(&spelling, &value, &origin)? {
                    self.notes.push(note);
                }
                continue;
            };
            if let Some((_, first, first_origin)) = spelt.iter().find(|(name, ..)| *name == key.name) {
                return Err(ConfigError::Twice {
                    first: format!("`{first}` ({first_origin})"),
                    second: format!("`{spelling}` ({origin})"),
                });
            }
            if key.deprecated.contains(&spelling.as_str()) {
                self.notes.push(format!("{origin}: `{spelling}` is the old spelling of `{}`", key.name));
            }
            self.set(key, &spelling, &value, &origin)?;
            spelt.push((key.name, spelling, origin));
        }
        Ok(())
    }

    fn set(
        &mut self,
        key: &'static Key,
        spelling: &str,
        value: &Value,
        origin: &Origin,
    ) -> Result<(), ConfigError> {
        if *value == Value::Null {
            // "Not set", also where an override takes back what the file says.
            (key.reset)(&mut self.config);
            self.origins.remove(key.name);
            return Ok(());
        }
        let name = spelling.to_string();
        (key.set)(&mut self.config, value).map_err(|problem| match problem {
            Problem::Type => bad_value(key, name.clone(), value, origin),
            Problem::Refused(reason) => ConfigError::Refused {
                key: name.clone(),
                value: value.to_yaml(),
                origin: origin.clone(),
                reason,
            },
        })?;
        let now = (key.get)(&self.config);
        if key.rule.is_some_and(|rule| now != Value::Null && !(rule.ok)(&now)) {
            return Err(bad_value(key, name, value, origin));
        }
        self.origins.insert(key.name, origin.clone());
        Ok(())
    }
}

fn bad_value(key: &Key, spelling: String, value: &Value, origin: &Origin) -> ConfigError {
    ConfigError::BadValue {
        key: spelling,
        value: value.to_yaml(),
        origin: origin.clone(),
        expected: key.expectation(),
    }
}

/// Judges a key that is not in the registry: a note where it may stand, else the error.
fn foreign(name: &str, value: &Value, origin: &Origin) -> Result<Option<String>, ConfigError> {
    let Some(key) = elsewhere::find(name) else {
        let here = KEYS.iter().flat_map(Key::spellings);
        let known = here.chain(elsewhere::all().map(|key| key.name));
        let suggestion = nearest(name, known);
        return Err(ConfigError::UnknownKey { key: name.to_string(), origin: origin.clone(), suggestion });
    };
    let advice = match key.answer {
        Answer::Needless(_) | Answer::NotYet | Answer::Use(_) if elsewhere::is_off(value) => return Ok(None),
        Answer::Needless(why) => return Ok(Some(format!("{origin}: `{name}` changes nothing here: {why}"))),
        Answer::Always(only, _) if *value == Value::Null || value.to_yaml().trim_matches('"') == only => {
            return Ok(None);
        }
        Answer::Always(only, why) => format!("here it is always `{only}`: {why}"),
        Answer::NotYet => "loratune does not have it yet; remove the line".to_string(),
        Answer::Use(name) => format!("in loratune the key is `{name}`"),
    };
    Err(ConfigError::NotHere { key: key.name, owner: key.owner, origin: origin.clone(), advice })
}

/// A YAML mapping with the line of every key.
struct Lines(Vec<(Spanned<String>, Value)>);

impl<'de> Deserialize<'de> for Lines {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LinesVisitor;
        impl<'de> Visitor<'de> for LinesVisitor {
            type Value = Lines;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a mapping")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Lines, A::Error> {
                let mut lines = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    lines.push(entry);
                }
                Ok(Lines(lines))
            }
        }
        deserializer.deserialize_map(LinesVisitor)
    }
}

fn read_yaml(text: &str, file: &str) -> Result<Vec<Written>, ConfigError> {
    let syntax = |e: serde_saphyr::Error| ConfigError::Syntax {
        file: file.to_string(),
        format: "YAML",
        message: saphyr_message(&e),
    };
    let text = text.trim_start_matches('\u{feff}');
    check_top(&serde_saphyr::from_str::<Value>(text).map_err(syntax)?, file)?;
    let Lines(lines) = serde_saphyr::from_str(text).map_err(syntax)?;
    let written = lines.into_iter().map(|(key, value)| Written {
        origin: Origin::File { file: file.to_string(), line: Some(key.referenced.line()) },
        key: key.value,
        value,
    });
    Ok(written.collect())
}

fn read_json(text: &str, file: &str) -> Result<Vec<Written>, ConfigError> {
    let text = text.trim_start_matches('\u{feff}');
    if text.trim().is_empty() {
        return Err(ConfigError::Empty { file: file.to_string() });
    }
    let value: Value = serde_json::from_str(text).map_err(|e| ConfigError::Syntax {
        file: file.to_string(),
        format: "JSON",
        message: e.to_string(),
    })?;
    check_top(&value, file)?;
    let Value::Map(entries) = value else { return Ok(Vec::new()) };
    let origin = Origin::File { file: file.to_string(), line: None };
    Ok(entries.into_iter().map(|(key, value)| Written { key, value, origin: origin.clone() }).collect())
}

fn check_top(value: &Value, file: &str) -> Result<(), ConfigError> {
    match value {
        Value::Null => Err(ConfigError::Empty { file: file.to_string() }),
        Value::Map(entries) if entries.is_empty() => Err(ConfigError::Empty { file: file.to_string() }),
        Value::Map(_) => Ok(()),
        other => Err(ConfigError::NotMapping { file: file.to_string(), found: other.kind() }),
    }
}

/// The parser's message without the excerpt that it prints below.
fn saphyr_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    // Advice to programmers, not to whoever wrote the file.
    line.replace(", set DuplicateKeyPolicy in Options if acceptable", "")
}

/// `key=value`. The value of a text key is taken as it stands, unless it is quoted, a flow list or empty; any other
/// value is parsed as YAML.
fn read_override(text: &str) -> Result<Written, ConfigError> {
    let bad = || ConfigError::BadOverride { text: text.to_string() };
    let (key, value) = text.split_once('=').ok_or_else(bad)?;
    let (key, value) = (key.trim().trim_start_matches("--").replace('-', "_"), value.trim());
    if key.is_empty() {
        return Err(bad());
    }
    let origin = Origin::Override(text.to_string());
    let is_text = Key::find(&key).is_some_and(|k| k.is_text);
    let as_is = is_text && !value.starts_with(['"', '\'', '[', '{']);
    let value = match value {
        "" | "null" | "~" => Value::Null,
        _ if as_is => Value::Str(value.to_string()),
        _ => serde_saphyr::from_str(value).map_err(|e| ConfigError::Syntax {
            file: origin.to_string(),
            format: "YAML",
            message: saphyr_message(&e),
        })?,
    };
    Ok(Written { key, value, origin })
}

/// Files beside `path` with a similar name.
fn near_files(path: &Path) -> Vec<String> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let (Some(name), Ok(entries)) =
        (path.file_name().map(|n| n.to_string_lossy()), std::fs::read_dir(folder))
    else {
        return Vec::new();
    };
    let mut near: Vec<(f64, String)> = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| !t.is_dir()))
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .map(|other| (strsim::normalized_damerau_levenshtein(&name, &other), other))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .collect();
    near.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
    near.into_iter().take(3).map(|(_, other)| other).collect()
}
