//! The types a key can have: how each is read from a [`Value`], written back, and named in messages.

use super::value::Value;

/// Why a value does not fit its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Problem {
    /// Not of the expected type or not one of the choices.
    Type,
    /// Understood but refused, for this reason.
    Refused(String),
}

/// How many words follow a key's flag on a command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Arity {
    /// None, or one that says true or false; `--no_KEY` is false.
    Switch,
    /// None (true), or a value.
    Maybe,
    /// A value.
    One,
    /// One or more.
    Many,
}

/// A type that a configuration key can have.
pub trait Field: Sized {
    /// How many words follow the flag.
    const ARITY: Arity = Arity::One;
    /// True for what must not be shown or written anywhere.
    const SECRET: bool = false;
    /// True when `key=value` on the command line is taken as text, not parsed as YAML (paths such as `1.0`).
    const TEXT: bool = false;
    /// What is expected, as in "expected {}".
    fn expected() -> String;
    /// The words that are good values, where there are few: one of them is what a misspelt value was meant to be.
    fn choices() -> Vec<&'static str> {
        Vec::new()
    }
    /// Reads a value.
    ///
    /// # Errors
    /// A value of another type, or a refused one.
    fn parse(value: &Value) -> Result<Self, Problem>;
    /// Writes it back; `parse(to_value(x)) == x`.
    fn to_value(&self) -> Value;
}

impl Field for bool {
    const ARITY: Arity = Arity::Switch;
    fn expected() -> String {
        "true or false".into()
    }
    fn choices() -> Vec<&'static str> {
        vec!["true", "false"]
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Bool(b) => Ok(*b),
            // What YAML 1.1 calls a boolean.
            Value::Str(s) => match s.to_ascii_lowercase().as_str() {
                "true" | "yes" | "on" => Ok(true),
                "false" | "no" | "off" => Ok(false),
                _ => Err(Problem::Type),
            },
            _ => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        Value::Bool(*self)
    }
}

impl Field for u64 {
    fn expected() -> String {
        "a whole number".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        value.as_i64().and_then(|i| u64::try_from(i).ok()).ok_or(Problem::Type)
    }
    fn to_value(&self) -> Value {
        i64::try_from(*self).map_or(Value::Float(*self as f64), Value::Int)
    }
}

/// A whole number that may be negative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signed(pub i64);

impl Field for Signed {
    fn expected() -> String {
        "a whole number".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        value.as_i64().map(Signed).ok_or(Problem::Type)
    }
    fn to_value(&self) -> Value {
        Value::Int(self.0)
    }
}

/// Iterations of a fast decomposition, or `None` (-1) for the exact one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Iterations(pub Option<u64>);

impl Field for Iterations {
    fn expected() -> String {
        "a number of iterations up to 1000, or -1 for the exact decomposition".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value.as_i64() {
            Some(-1) => Ok(Iterations(None)),
            Some(n) => match u64::try_from(n) {
                Ok(n) if n <= 1000 => Ok(Iterations(Some(n))),
                _ => Err(Problem::Type),
            },
            None => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        self.0.map_or(Value::Int(-1), |n| n.to_value())
    }
}

impl Field for f64 {
    fn expected() -> String {
        "a number".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        value.as_f64().filter(|x| x.is_finite()).ok_or(Problem::Type)
    }
    fn to_value(&self) -> Value {
        // 16 reads better than 16.0, and both are read back as the same number.
        let whole = self.fract() == 0.0 && self.abs() < 1e15;
        if whole { Value::Int(*self as i64) } else { Value::Float(*self) }
    }
}

impl Field for String {
    const TEXT: bool = true;
    fn expected() -> String {
        "text (in quotes if it looks like a number)".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Str(s) if !s.trim().is_empty() => Ok(s.clone()),
            _ => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        // An empty string is a required key that nobody set yet.
        if self.is_empty() { Value::Null } else { Value::Str(self.clone()) }
    }
}

impl<T: Field> Field for Option<T> {
    const ARITY: Arity = T::ARITY;
    const SECRET: bool = T::SECRET;
    const TEXT: bool = T::TEXT;
    fn expected() -> String {
        T::expected()
    }
    fn choices() -> Vec<&'static str> {
        T::choices()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        if *value == Value::Null { Ok(None) } else { T::parse(value).map(Some) }
    }
    fn to_value(&self) -> Value {
        self.as_ref().map_or(Value::Null, Field::to_value)
    }
}

/// The items of a list of text or of a comma list.
fn words(value: &Value) -> Option<Vec<String>> {
    let items: Vec<String> = match value {
        Value::Str(s) => s.split(',').map(|w| w.trim().to_string()).collect(),
        Value::List(items) => items
            .iter()
            .map(|item| match item {
                Value::Str(s) => Some(s.trim().to_string()),
                _ => None,
            })
            .collect::<Option<_>>()?,
        _ => return None,
    };
    (!items.iter().any(String::is_empty)).then_some(items)
}

fn word_list(items: &[String]) -> Value {
    Value::List(items.iter().cloned().map(Value::Str).collect())
}

impl Field for Vec<String> {
    const ARITY: Arity = Arity::Many;
    const TEXT: bool = true;
    fn expected() -> String {
        "a name, a list of names, or names with commas between them".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        words(value).ok_or(Problem::Type)
    }
    fn to_value(&self) -> Value {
        if self.is_empty() { Value::Null } else { word_list(self) }
    }
}

impl Field for Vec<f64> {
    const TEXT: bool = true;
    fn expected() -> String {
        "a list of numbers, or numbers with commas between them".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::List(items) if !items.is_empty() => items.iter().map(f64::parse).collect(),
            Value::Str(s) => s.split(',').map(|w| f64::parse(&Value::Str(w.trim().into()))).collect(),
            single => Ok(vec![f64::parse(single)?]),
        }
    }
    fn to_value(&self) -> Value {
        if self.is_empty() { Value::Null } else { Value::List(self.iter().map(Field::to_value).collect()) }
    }
}

impl Field for Vec<u64> {
    const ARITY: Arity = Arity::Many;
    fn expected() -> String {
        "a layer index or a list of them".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::List(items) if !items.is_empty() => items.iter().map(u64::parse).collect(),
            single => Ok(vec![u64::parse(single)?]),
        }
    }
    fn to_value(&self) -> Value {
        Value::List(self.iter().map(Field::to_value).collect())
    }
}

/// A mapping from module names (or regular expressions) to numbers. Its order means nothing: of several keys that match, the
/// first in alphabetical order counts, as in PEFT's files.
impl<T: Field> Field for Vec<(String, T)> {
    fn expected() -> String {
        "a mapping such as {q_proj: 16}".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        let Value::Map(entries) = value else { return Err(Problem::Type) };
        entries.iter().map(|(name, v)| Ok((name.clone(), T::parse(v)?))).collect()
    }
    fn to_value(&self) -> Value {
        Value::Map(self.iter().map(|(name, x)| (name.clone(), x.to_value())).collect())
    }
}

/// `lr_scheduler_kwargs`: names and values, whose meaning the schedule knows.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Kwargs(pub Vec<(String, Value)>);

impl Field for Kwargs {
    fn expected() -> String {
        "a mapping such as {num_cycles: 2}".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Null => Ok(Kwargs::default()),
            Value::Map(entries) => Ok(Kwargs(entries.clone())),
            // Hugging Face also takes the mapping as JSON text.
            Value::Str(text) => match serde_json::from_str(text) {
                Ok(Value::Map(entries)) => Ok(Kwargs(entries)),
                _ => Err(Problem::Type),
            },
            _ => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        Value::Map(self.0.clone())
    }
}

/// A number of optimiser steps, or a share of all steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Steps {
    /// So many steps.
    Count(u64),
    /// A share of the run, above 0 and below 1.
    Ratio(f64),
}

impl Steps {
    /// The number of steps in a run of `total`: a ratio is rounded up, as transformers does.
    pub fn resolve(self, total: u64) -> u64 {
        match self {
            Steps::Count(n) => n,
            Steps::Ratio(share) => (total as f64 * share).ceil() as u64,
        }
    }
}

/// Steps between lines of the log: as [`Steps`], or a choice by the size of the data.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LogSteps {
    /// So many, or a share.
    Steps(Steps),
    /// AutoTrain's choice: a fifth of the batches of an epoch (of the evaluation's, where there is one), from 1 to 25.
    Auto,
}

impl LogSteps {
    /// The number of steps in a run of `total`, with so many `batches` to go by.
    pub fn resolve(self, total: u64, batches: f64) -> u64 {
        match self {
            LogSteps::Steps(steps) => steps.resolve(total),
            LogSteps::Auto => ((0.2 * batches) as u64).clamp(1, 25),
        }
    }
}

impl Field for LogSteps {
    fn expected() -> String {
        format!("{}, or auto", Steps::expected())
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Str(text) if text.trim() == "auto" => Ok(LogSteps::Auto),
            other => Steps::parse(other).map(LogSteps::Steps),
        }
    }
    fn to_value(&self) -> Value {
        match self {
            LogSteps::Steps(steps) => steps.to_value(),
            LogSteps::Auto => Value::Str("auto".into()),
        }
    }
}

/// Rows that are computed at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MicroBatch {
    Rows(u64),
    /// As many as memory has room for.
    Auto,
}

impl Field for MicroBatch {
    fn expected() -> String {
        format!("{}, or auto", u64::expected())
    }
    fn choices() -> Vec<&'static str> {
        vec!["auto"]
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Str(text) if text.trim() == "auto" => Ok(MicroBatch::Auto),
            other => u64::parse(other).map(MicroBatch::Rows),
        }
    }
    fn to_value(&self) -> Value {
        match self {
            MicroBatch::Rows(n) => n.to_value(),
            MicroBatch::Auto => Value::Str("auto".into()),
        }
    }
}

impl Field for Steps {
    fn expected() -> String {
        "a whole number of steps, or a share of all steps below 1".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value.as_f64() {
            Some(x) if x > 0.0 && x < 1.0 => Ok(Steps::Ratio(x)),
            Some(_) => u64::parse(value).map(Steps::Count),
            None => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        match self {
            Steps::Count(n) => n.to_value(),
            Steps::Ratio(x) => Value::Float(*x),
        }
    }
}

/// Which modules are meant: `lora_target`, `exclude_modules`.
///
/// A list is always names. A text is `all` (LLaMA-Factory) or `all-linear` (PEFT); else, if it consists of letters,
/// digits, `_`, `.`, `-`, commas and spaces only, names with commas between them; else a regular expression, matched
/// against the whole module path as PEFT's `re.fullmatch` does. A name matches a module whose path is the name or ends
/// with `.name`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer but the output head.
    AllLinear,
    /// Modules by the end of their path.
    Names(Vec<String>),
    /// Modules whose whole path matches.
    Regex(String),
}

impl Field for Targets {
    const ARITY: Arity = Arity::Many;
    const TEXT: bool = true;
    fn expected() -> String {
        "all, names (a list or with commas), or a regular expression".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        if let Value::Str(text) = value {
            let text = text.trim();
            if text == "all" || text == "all-linear" {
                return Ok(Targets::AllLinear);
            }
            if !text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-, ".contains(c)) {
                return Ok(Targets::Regex(text.to_string()));
            }
        }
        match words(value) {
            Some(names) if names.iter().any(|n| n == "all" || n == "all-linear") && names.len() == 1 => {
                Ok(Targets::AllLinear)
            }
            Some(names) if !names.is_empty() => Ok(Targets::Names(names)),
            _ => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        match self {
            Targets::AllLinear => Value::Str("all".into()),
            Targets::Names(names) => word_list(names),
            Targets::Regex(text) => Value::Str(text.clone()),
        }
    }
}

/// Where a run goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Start anew.
    No,
    /// The newest checkpoint in `output_dir`.
    Latest,
    /// This checkpoint folder.
    From(String),
}

impl Field for Resume {
    const ARITY: Arity = Arity::Maybe;
    const TEXT: bool = true;
    fn expected() -> String {
        "true (the newest checkpoint in output_dir), false, or a checkpoint folder".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match (bool::parse(value), value) {
            (Ok(true), _) => Ok(Resume::Latest),
            (Ok(false), _) | (_, Value::Null) => Ok(Resume::No),
            (_, other) => String::parse(other).map(Resume::From),
        }
    }
    fn to_value(&self) -> Value {
        match self {
            Resume::No => Value::Bool(false),
            Resume::Latest => Value::Bool(true),
            Resume::From(path) => Value::Str(path.clone()),
        }
    }
}

/// A number of steps that overrides another limit; Hugging Face writes "no such limit" as -1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(pub Option<u64>);

impl Field for Limit {
    fn expected() -> String {
        "a whole number of at least 1, or -1 for no limit".into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value.as_i64() {
            Some(-1) => Ok(Limit(None)),
            Some(n) if n >= 1 => u64::parse(value).map(|n| Limit(Some(n))),
            _ => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        self.0.map_or(Value::Int(-1), |n| n.to_value())
    }
}
