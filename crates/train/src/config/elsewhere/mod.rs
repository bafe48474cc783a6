//! Keys that people's files and command lines hold and that are no keys here: another way to write one, one value only, not there
//! yet, or not for text models. One file for each peer; within it, names with the same answer stand together.

mod huggingface;
mod llamafactory;
mod others;

use super::value::Value;

/// What loratune says to a peer's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not built yet. `false`, `null`, `none` and empty values ask for nothing and are accepted.
    NotYet,
    /// Not built yet, with what is missing or what to do.
    Lacking(&'static str),
    /// Nothing for loratune, for this reason; like [`Answer::NotYet`] otherwise.
    Never(&'static str),
    /// The same thing has this name here.
    Use(&'static str),
    /// Sets that switch, if it is true.
    Sets(&'static str),
    /// Sets that switch to the opposite.
    Inverse(&'static str),
    /// Accepted with these values (as YAML), which is how loratune always behaves; the text says why or what to do.
    Only(&'static [&'static str], &'static str),
    /// Accepted with any value and a note: it has nothing to act on here, for this reason.
    Needless(&'static str),
}

/// A key of a peer.
#[derive(Debug, Clone, Copy)]
pub struct Elsewhere {
    /// The key.
    pub name: &'static str,
    /// Whose key it is.
    pub owner: &'static str,
    /// What loratune does with it.
    pub answer: Answer,
}

/// Keys of one peer with one answer.
type Group = (Answer, &'static [&'static str]);

/// Every known key of a peer. LLaMA-Factory understands Hugging Face's too.
pub fn all() -> impl Iterator<Item = Elsewhere> {
    let peers: [(&'static str, &'static [Group]); 5] = [
        ("LLaMA-Factory", llamafactory::KEYS),
        ("Hugging Face", huggingface::KEYS),
        ("TRL", others::TRL),
        ("PEFT", others::PEFT),
        ("AutoTrain", others::AUTOTRAIN),
    ];
    peers.into_iter().flat_map(|(owner, groups)| {
        groups
            .iter()
            .flat_map(move |&(answer, names)| names.iter().map(move |name| Elsewhere { name, owner, answer }))
    })
}

/// The peers' key of that name.
pub fn find(name: &str) -> Option<Elsewhere> {
    all().find(|key| key.name == name)
}

/// A value that asks for nothing: the feature is off.
pub fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Str(s) => {
            matches!(s.to_ascii_lowercase().as_str(), "" | "none" | "null" | "no" | "false" | "off")
        }
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        _ => false,
    }
}
