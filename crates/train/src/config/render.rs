//! The configuration as text: the resolved file, the same with origins, and the table for the README.

use std::fmt::Write as _;

use super::elsewhere::{self, Answer};
use super::error::Origin;
use super::keys::{KEYS, RunConfig};
use super::registry::Key;
use super::value::Value;
use super::{EvalStrategy, Loaded};

impl RunConfig {
    /// Every key that has a value, in the order of the documentation; reading it gives the same configuration.
    pub fn to_yaml(&self) -> String {
        let mut out = String::new();
        for (key, value) in self.entries() {
            let _ = writeln!(out, "{}: {}", key.name, value.to_yaml());
        }
        out
    }

    /// Keys and values without those that are unset.
    pub fn entries(&self) -> Vec<(&'static Key, Value)> {
        let empty = |v: &Value| *v == Value::Null || matches!(v, Value::Map(m) if m.is_empty());
        KEYS.iter().map(|key| (key, (key.get)(self))).filter(|(_, value)| !empty(value)).collect()
    }

    /// The tables of all keys in Markdown, made from the registry.
    pub fn keys_markdown() -> String {
        let mut out = String::new();
        let mut group = "";
        for key in KEYS {
            if key.group != group {
                group = key.group;
                let _ = write!(out, "{}### {group}\n\n", if out.is_empty() { "" } else { "\n" });
                out.push_str("| key | default | meaning | after |\n|---|---|---|---|\n");
            }
            let mut names = format!("`{}`", key.name);
            for alias in key.spellings().skip(1) {
                let _ = write!(names, ", `{alias}`");
            }
            let _ = writeln!(
                out,
                "| {names} | {} | {} | {} |",
                default_cell(key),
                doc_cell(key),
                key.source.name()
            );
        }
        out.push_str("\n### Keys of other tools\n\n| key | whose | accepted |\n|---|---|---|\n");
        let mut refused =
            String::from("\n### Keys that are refused\n\n| key | whose | why |\n|---|---|---|\n");
        for key in elsewhere::all() {
            let (table, cell) = match key.answer {
                Answer::Only(values, why) => (&mut out, format!("only `{}`: {why}", values.join("`, `"))),
                Answer::Needless(why) => (&mut out, format!("any value, with a note: {why}")),
                Answer::Sets(switch) => (&mut out, format!("`true` is `{switch}: true`")),
                Answer::Inverse(switch) => (&mut out, format!("the opposite of `{switch}`")),
                Answer::Lacking(why) | Answer::Never(why) => (&mut refused, why.to_string()),
                Answer::NotYet => (&mut refused, "not there yet".to_string()),
                Answer::Use(name) => (&mut refused, format!("the key is `{name}`")),
            };
            let _ = writeln!(table, "| `{}` | {} | {cell} |", key.name, key.owner);
        }
        out + &refused
    }
}

fn default_cell(key: &Key) -> String {
    if key.required.is_some() {
        return "required".into();
    }
    match (key.default_words, (key.get)(&RunConfig::default())) {
        (Some(words), _) => words.into(),
        (None, Value::Null) => "–".into(),
        (None, value) => format!("`{}`", value.to_yaml().trim_matches('"')),
    }
}

fn doc_cell(key: &Key) -> String {
    key.doc.trim().replace("  ", " ").replace('|', "\\|")
}

impl Loaded {
    /// [`RunConfig::to_yaml`] with each value's origin as a comment, for `print-config`.
    pub fn to_annotated_yaml(&self) -> String {
        let lines: Vec<(String, Origin)> = self
            .config
            .entries()
            .into_iter()
            .map(|(key, value)| (format!("{}: {}", key.name, value.to_yaml()), self.origin(key.name)))
            .collect();
        // Long values (paths, lists) do not push everybody's comment to the right.
        let width =
            lines.iter().map(|(line, _)| line.chars().count()).filter(|n| *n <= 48).max().unwrap_or(0);
        let mut out = String::new();
        for (line, origin) in lines {
            let origin = origin.to_string().replace('\n', " ");
            let _ = writeln!(out, "{line:width$}  # {origin}");
        }
        out
    }

    /// Whether the run evaluates at all.
    pub fn evaluates(&self) -> bool {
        self.config.eval_strategy != EvalStrategy::No
    }
}
