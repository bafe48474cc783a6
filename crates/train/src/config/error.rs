//! What can be wrong with a run's configuration. Every message names the key, where it was set, and what to do.

use std::fmt;
use std::path::PathBuf;

/// Where a key's value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody set it.
    Default,
    /// Follows from other keys; the text says how (`2 × lora_rank`).
    Derived(&'static str),
    /// A line of the configuration file (JSON files have no line).
    File {
        /// The file as it was named on the command line.
        file: String,
        /// Line, counted from 1.
        line: Option<u64>,
    },
    /// A `key=value` after the file, as typed.
    Override(String),
    /// A flag with its values, as typed; a secret's value is left out.
    Flag(String),
    /// A default of the tool whose command line this is.
    Preset(&'static str),
}

impl Origin {
    /// Whether a person wrote this value down.
    pub fn is_explicit(&self) -> bool {
        matches!(self, Origin::File { .. } | Origin::Override(_) | Origin::Flag(_))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => f.write_str("default"),
            Origin::Derived(how) => f.write_str(how),
            Origin::File { file, line: Some(line) } => write!(f, "{file}:{line}"),
            Origin::File { file, line: None } => f.write_str(file),
            Origin::Override(text) => write!(f, "override {text}"),
            Origin::Flag(text) => write!(f, "flag {text}"),
            Origin::Preset(whose) => write!(f, "preset {whose}"),
        }
    }
}

/// One `key: value (origin)` of a contradiction.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key's own name (never an alias).
    pub key: &'static str,
    /// Its value as YAML.
    pub value: String,
    /// Where the value came from.
    pub origin: Origin,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}: {}` ({})", self.key, self.value, self.origin)
    }
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file is not there.
    #[error("{}: there is no such file{}", path.display(), near_names(near))]
    Missing {
        /// The path as given.
        path: PathBuf,
        /// Files of the same folder with a similar name, best first.
        near: Vec<String>,
    },
    /// The configuration file cannot be read (a folder, no permission, not UTF-8, a failing disk).
    #[error("{}: cannot read the configuration: {source}", path.display())]
    Unreadable {
        /// The path as given.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The file holds no key at all.
    #[error(
        "{file}: the configuration is empty; it needs at least model_name_or_path, dataset and output_dir"
    )]
    Empty {
        /// The file as given.
        file: String,
    },
    /// The file is neither YAML nor JSON.
    #[error("{file}: not valid {format}: {message}")]
    Syntax {
        /// The file (or override) as given.
        file: String,
        /// `YAML` or `JSON`.
        format: &'static str,
        /// The parser's message, with line and column.
        message: String,
    },
    /// The file is a list or a single value.
    #[error("{file}: expected a mapping of `key: value` lines, found {found}")]
    NotMapping {
        /// The file as given.
        file: String,
        /// What the file holds instead.
        found: &'static str,
    },
    /// An argument after the file is no setting.
    #[error("`{text}`: a setting has the form key=value or --key value, such as learning_rate=1e-4")]
    BadOverride {
        /// The argument as typed.
        text: String,
    },
    /// No peer's key and none of loratune's.
    #[error("{origin}: unknown key `{key}`{}", did_you_mean(suggestion))]
    UnknownKey {
        /// The key as written.
        key: String,
        /// Where it stands.
        origin: Origin,
        /// The nearest right name.
        suggestion: Option<&'static str>,
    },
    /// A flag that is no key's.
    #[error("unknown flag `{flag}`{}", match suggestion {
        Some(name) => format!("; did you mean `--{name}`?"),
        None => "; `loratune train --help` lists the keys".to_string(),
    })]
    UnknownFlag {
        /// The flag as typed.
        flag: String,
        /// The nearest right name.
        suggestion: Option<String>,
    },
    /// A flag stands alone that needs a value.
    #[error("flag {flag}: a value is missing; expected {expected}")]
    NoValue {
        /// The flag as typed.
        flag: String,
        /// Type and range.
        expected: String,
    },
    /// The command line as a whole says too little.
    #[error("{what}")]
    Line {
        /// What, and what to do.
        what: &'static str,
    },
    /// A peer's key, or a value of one, that loratune does not have.
    #[error("{origin}: `{key}` is {owner}'s; {advice}")]
    NotHere {
        /// The key as written.
        key: &'static str,
        /// Whose key it is.
        owner: &'static str,
        /// Where it stands.
        origin: Origin,
        /// What to do instead.
        advice: String,
    },
    /// A value of the wrong type or outside its range.
    #[error("{origin}: {key} is `{value}`; expected {expected}")]
    BadValue {
        /// The key as written.
        key: String,
        /// The value as YAML.
        value: String,
        /// Where it stands.
        origin: Origin,
        /// Type and range, and which of the words that are good values was probably meant.
        expected: String,
    },
    /// A value that is known but refused, with the reason.
    #[error("{origin}: {key} is `{value}`: {reason}")]
    Refused {
        /// The key as written.
        key: String,
        /// The value as YAML.
        value: String,
        /// Where it stands.
        origin: Origin,
        /// Why, and what to do.
        reason: String,
    },
    /// The same setting under two names.
    #[error("{first} and {second} are the same setting; keep one")]
    Twice {
        /// The spelling that came first, and where.
        first: String,
        /// The other, and where.
        second: String,
    },
    /// A key without which nothing can run.
    #[error("{file}: {key} is missing; add for example `{example}`")]
    Required {
        /// The file, or `the configuration` where there is none.
        file: String,
        /// The key.
        key: &'static str,
        /// A line to copy.
        example: &'static str,
    },
    /// Values that contradict each other.
    #[error("{} {why}", list_entries(entries))]
    Conflict {
        /// The values that do not go together.
        entries: Vec<Entry>,
        /// Why not, and what to do.
        why: String,
    },
}

impl ConfigError {
    /// True when the person who wrote the command or the file can mend it there; false when reading failed.
    /// The binary turns this into its exit code.
    pub fn is_usage(&self) -> bool {
        !matches!(self, ConfigError::Unreadable { .. })
    }
}

fn near_names(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; similar names there: {}", near.join(", ")) }
}

fn did_you_mean(suggestion: &Option<&'static str>) -> String {
    match suggestion {
        Some(name) => format!("; did you mean `{name}`?"),
        None => "; `loratune train --help` lists the keys".to_string(),
    }
}

/// Of `choices`, the one that a word was probably meant to be, as the end of an expectation.
pub(super) fn meant(word: &str, choices: &[&'static str]) -> String {
    super::nearest(word, choices.iter().copied())
        .map(|n| format!("; did you mean `{n}`?"))
        .unwrap_or_default()
}

fn list_entries(entries: &[Entry]) -> String {
    let texts: Vec<String> = entries.iter().map(Entry::to_string).collect();
    match texts.as_slice() {
        [one] => format!("{one}:"),
        many => format!("{} do not go together:", many.join(" and ")),
    }
}
