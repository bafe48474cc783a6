//! Prompts and the files that hold them.

use std::path::Path;

use anyhow::{Context, Result};
use loratune_data::Message;
use serde_json::Value;

/// A prompt as it was given: text, or a conversation.
pub enum Prompt {
    Text(String),
    Messages(Vec<Message>),
}

/// A prompt, and who answers it.
pub struct Line {
    pub prompt: Prompt,
    /// The adapter that answers it alone.
    pub adapter: Option<String>,
    /// File and line.
    pub place: Option<String>,
}

impl Line {
    pub fn text(text: &str) -> Line {
        Line { prompt: Prompt::Text(text.to_string()), adapter: None, place: None }
    }
}

/// Prompts of a JSONL file: a string a line, or an object.
///
/// # Errors
/// What is wrong, by line.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).with_context(|| format!("{shown}: the prompts cannot be read"))?;
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let prompts = lines
        .map(|(i, line)| {
            let value: Value =
                serde_json::from_str(line).with_context(|| format!("{shown}:{}: broken JSON", i + 1))?;
            let place = format!("{shown}:{}", i + 1);
            let prompt = prompt_of(&value).with_context(|| place.clone())?;
            let adapter = match value.get("adapter") {
                None | Some(Value::Null) => None,
                Some(Value::String(name)) => Some(name.clone()),
                Some(_) => anyhow::bail!("{place}: `adapter` should be a string"),
            };
            Ok(Line { prompt, adapter, place: Some(place) })
        })
        .collect::<Result<Vec<_>>>()?;
    anyhow::ensure!(!prompts.is_empty(), "{shown}: the file holds no prompt");
    Ok(prompts)
}

fn prompt_of(value: &Value) -> Result<Prompt> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).filter(|s| !s.is_empty());
    if let Some(s) = value.as_str().or_else(|| text("prompt")).or_else(|| text("question")) {
        return Ok(Prompt::Text(s.to_string()));
    }
    if let Some(instruction) = text("instruction") {
        let input = text("input").map_or(String::new(), |i| format!("\n{i}"));
        return Ok(Prompt::Text(format!("{instruction}{input}")));
    }
    let messages = value.get("messages").or_else(|| value.get("prompt")).and_then(Value::as_array);
    let message = |m: &Value| {
        let get = |k: &str| m.get(k).and_then(Value::as_str).map(str::to_string);
        Some(Message::new(get("role")?, get("content")?))
    };
    let messages = messages.map(|list| list.iter().map(message).collect::<Option<Vec<_>>>());
    match messages {
        Some(Some(list)) if !list.is_empty() => Ok(Prompt::Messages(list)),
        Some(_) => anyhow::bail!("every message needs a `role` and a `content` that are strings"),
        None => anyhow::bail!(
            "expected a string, or an object with `prompt`, `question`, `instruction` (and `input`) or `messages`"
        ),
    }
}
