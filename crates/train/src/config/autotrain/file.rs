//! AutoTrain's configuration file: the same names, in sections.

use std::path::Path;

use super::super::error::{ConfigError, Origin};
use super::super::file;
use super::super::value::Value;
use super::{Given, flags};

/// Where the file has other names than the command line.
const RENAMED: &[(&str, &str)] = &[
    ("base_model", "model"),
    ("data.path", "data_path"),
    ("data.train_split", "train_split"),
    ("data.valid_split", "valid_split"),
    ("data.chat_template", "chat_template"),
    ("data.column_mapping.text_column", "text_column"),
    ("data.column_mapping.prompt_text_column", "prompt_text_column"),
    ("data.column_mapping.rejected_text_column", "rejected_text_column"),
    ("hub.username", "username"),
    ("hub.token", "token"),
    ("hub.push_to_hub", "push_to_hub"),
];

/// The settings of a file.
///
/// # Errors
/// If it can't be read, or says something that is none of AutoTrain's.
pub(super) fn read(path: &Path) -> Result<Vec<Given>, ConfigError> {
    let shown = path.display().to_string();
    let mut given = Vec::new();
    for written in file::read(&file::read_text(path)?, &shown)? {
        match (written.key.as_str(), &written.value) {
            ("task", Value::Str(task)) => given.extend(task_trainer(task, &written.origin)?),
            ("params", Value::Map(entries)) => {
                for (name, value) in entries {
                    add(&mut given, name, name, value, &written.origin)?;
                }
            }
            (section @ ("data" | "hub"), Value::Map(_)) => {
                flatten(&mut given, section, &written.value, &written.origin)?;
            }
            (name, value) => add(&mut given, name, name, value, &written.origin)?,
        }
    }
    Ok(given)
}

fn flatten(given: &mut Vec<Given>, path: &str, value: &Value, origin: &Origin) -> Result<(), ConfigError> {
    match value {
        Value::Map(entries) => {
            entries.iter().try_for_each(|(name, v)| flatten(given, &format!("{path}.{name}"), v, origin))
        }
        value => add(given, path, path, value, origin),
    }
}

/// `llm-sft` says which trainer; other tasks are other commands.
fn task_trainer(task: &str, origin: &Origin) -> Result<Option<Given>, ConfigError> {
    let trainer = match task {
        "llm" | "llm-generic" | "llm-default" => "default",
        "llm-sft" => "sft",
        other => other.strip_prefix("llm-").unwrap_or(""),
    };
    if trainer.is_empty() {
        return Err(ConfigError::Refused {
            key: "task".into(),
            value: task.into(),
            origin: origin.clone(),
            reason: "loratune trains language models: llm, llm-sft".into(),
        });
    }
    Ok(flags::find("trainer").map(|flag| Given { flag, text: trainer.into(), origin: origin.clone() }))
}

fn add(
    given: &mut Vec<Given>,
    path: &str,
    written: &str,
    value: &Value,
    origin: &Origin,
) -> Result<(), ConfigError> {
    let name = RENAMED.iter().find(|(from, _)| *from == path).map_or(written, |(_, to)| to);
    let Some(flag) = flags::find(name) else {
        let suggestion = super::super::nearest(name, super::names().into_iter());
        return Err(ConfigError::UnknownKey { key: written.to_string(), origin: origin.clone(), suggestion });
    };
    let text = match value {
        // `null`, and `${HF_TOKEN}` as AutoTrain fills it in.
        Value::Null => return Ok(()),
        Value::Str(text) => match text.strip_prefix("${").and_then(|t| t.strip_suffix('}')) {
            Some(variable) => std::env::var(variable).unwrap_or_default(),
            None => text.clone(),
        },
        other => other.to_yaml(),
    };
    if !text.is_empty() {
        given.push(Given { flag, text, origin: origin.clone() });
    }
    Ok(())
}
