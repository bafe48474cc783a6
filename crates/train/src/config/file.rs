//! Configuration files: YAML and JSON, with the line of every key.

use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_saphyr::Spanned;

use super::error::{ConfigError, Origin};
use super::value::Value;
use super::words::Written;

/// The text of a file.
///
/// # Errors
/// If there is no such file, or it cannot be read.
pub(super) fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            ConfigError::Missing { path: path.to_path_buf(), near: near_files(path) }
        }
        _ => ConfigError::Unreadable { path: path.to_path_buf(), source },
    })
}

/// The settings of a file: JSON if it ends in `.json`, else YAML.
///
/// # Errors
/// If it is neither, or no mapping.
pub(super) fn read(text: &str, file: &str) -> Result<Vec<Written>, ConfigError> {
    let is_json = Path::new(file).extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    if is_json { read_json(text, file) } else { read_yaml(text, file) }
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
pub(super) fn saphyr_message(error: &serde_saphyr::Error) -> String {
    let text = error.without_snippet().to_string();
    let line = text.lines().next().unwrap_or_default();
    // Advice to programmers, not to whoever wrote the file.
    line.replace(", set DuplicateKeyPolicy in Options if acceptable", "")
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
