//! AutoTrain's command line: `autotrain llm --train --model … --data-path …`.
//!
//! It has names, defaults and a few meanings of its own. They are translated here, and nowhere else does loratune know of them:
//! what comes out are keys. What is not AutoTrain's name is a key or a peer's flag as on any command line, so that everything
//! can be set here too.

mod file;
mod flags;
mod translate;

use std::fmt::Write as _;

use super::error::{ConfigError, Origin};
use super::field::Arity;
use super::words::{self, Flag, Words, Written};

pub use flags::{FLAGS, To};

/// Whose defaults they are, for `print-config`.
pub(super) const WHOSE: &str = "AutoTrain";

/// What an AutoTrain command line says, in keys.
pub(super) struct Line {
    /// Defaults that are AutoTrain's.
    pub presets: Vec<Written>,
    /// What was written, in order.
    pub settings: Vec<Written>,
    pub notes: Vec<String>,
}

/// One of AutoTrain's flags as somebody set it.
#[derive(Debug, Clone)]
struct Given {
    flag: &'static flags::Flag,
    /// Empty for a bare switch.
    text: String,
    origin: Origin,
}

/// Every spelling of AutoTrain's, to suggest.
pub(super) fn names() -> Vec<&'static str> {
    let flags = FLAGS.iter().flat_map(|f| [f.name].into_iter().chain(f.also.iter().copied()));
    flags.chain(super::load::options()).collect()
}

/// Reads the words after `llm`.
///
/// # Errors
/// A flag without its value, a value that AutoTrain's flag cannot have, a feature that is not here.
pub(super) fn read(all: &[String]) -> Result<Line, ConfigError> {
    let mut words = Words::new(all);
    let (mut given, mut others): (Vec<Given>, Vec<Written>) = (Vec::new(), Vec::new());
    while let Some(word) = words.next() {
        let Some(flag) = Flag::of(word) else {
            others.push(words::read_setting(word)?);
            continue;
        };
        let positive = flag.name.strip_prefix("no_").and_then(flags::find).filter(|f| f.is_switch);
        if let Some(known) = positive {
            let origin = flag.origin(&[], false);
            given.push(Given { flag: known, text: "false".into(), origin });
            continue;
        }
        let Some(known) = flags::find(&flag.name) else {
            others.push(words::read_flag(flag, &mut words)?);
            continue;
        };
        let arity = if known.is_switch { Arity::Switch } else { Arity::One };
        let values = words.values(&flag, arity, "one")?;
        let text = values.first().map(|v| v.to_string()).unwrap_or_default();
        given.push(Given { flag: known, text, origin: flag.origin(&values, known.name == "token") });
    }
    let file = given.iter().rev().find(|g| g.flag.name == "config").map(|g| g.text.clone());
    if let Some(path) = file {
        // What the file says stands before the flags, which win.
        given.splice(..0, file::read(std::path::Path::new(&path))?);
    }
    let mut line = translate::translate(&given)?;
    line.settings.extend(others);
    Ok(line)
}

/// AutoTrain's flags, each with what it is here.
pub fn help() -> impl Iterator<Item = (String, String)> {
    FLAGS.iter().map(|flag| {
        let mut names = format!("--{}", flag.name.replace('_', "-"));
        for also in flag.also {
            let _ = write!(names, ", --{}", also.replace('_', "-"));
        }
        let meaning = match flag.to {
            To::Key(key) => format!("`{key}`"),
            To::Together(words) => words.to_string(),
            To::Needless(why) => format!("accepted with a note: {why}"),
            To::Refused(why) => format!("refused: {why}"),
        };
        (names, meaning)
    })
}

/// The table of AutoTrain's flags in Markdown.
pub fn markdown() -> String {
    let mut out = String::from("| flag | here |\n|---|---|\n");
    for (names, meaning) in help() {
        let _ = writeln!(out, "| `{}` | {meaning} |", names.replace(", ", "`, `"));
    }
    let defaults: Vec<String> =
        flags::DEFAULTS.iter().map(|(key, value)| format!("`{key}: {value}`")).collect();
    let _ =
        write!(out, "\nAutoTrain's defaults where they differ from those above: {}.\n", defaults.join(", "));
    out
}
