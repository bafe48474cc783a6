//! The dataset formats. A format is one file here and one line in [`FORMATS`]; the tables in `--help` and README
//! are printed from that list.

mod alpaca;
mod attributes;
mod chat;
mod conversations;
mod literal;
mod messages;
mod prompt_completion;
mod question_answer;
mod text;
mod tokens;

use std::borrow::Cow;
use std::fmt::Write;

use serde_json::{Map, Value};

use crate::encode::EncodeOptions;
use crate::error::{DataError, Result, kind_of, nearest};
use crate::info::{Attributes, Formatting};
use crate::page::paragraph;
use crate::read::RawRow;
use crate::record::Record;

/// The fields of a row.
pub type Fields = Map<String, Value>;

/// One way to write a row.
#[derive(Debug)]
pub struct Format {
    /// Name in reports.
    pub name: &'static str,
    /// A row is of this format when it has all of these.
    pub required: &'static [&'static str],
    /// What is read besides.
    pub optional: &'static [&'static str],
    /// One line on its meaning.
    pub about: &'static str,
    /// A row, as an example.
    pub example: &'static str,
    /// The fields' meaning; the error is a sentence about the field.
    pub convert: fn(&Fields) -> Result<Record, String>,
}

/// All formats, the more telling fields first: a row is of the first format whose required fields it has.
pub const FORMATS: &[&Format] = &[
    &tokens::FORMAT,
    &messages::FORMAT,
    &conversations::FORMAT,
    &alpaca::FORMAT,
    &prompt_completion::FORMAT,
    &question_answer::FORMAT,
    &text::FORMAT,
];

impl Format {
    /// `instruction, output [input, system]`.
    pub fn signature(&self) -> String {
        let mut s = self.required.join(", ");
        if !self.optional.is_empty() {
            let _ = write!(s, " [{}]", self.optional.join(", "));
        }
        s
    }
}

/// The table of formats for `--help` and README, at most 100 columns wide: name, fields, meaning, an example.
pub fn format_table() -> String {
    let mut out = String::new();
    for f in FORMATS {
        let _ = writeln!(out, "{}: {}", f.name, f.signature());
        out.push_str(&paragraph("", f.about));
        out.push_str(&paragraph("", f.example));
    }
    out
}

/// The names of everything that a row may be: the formats, and what `dataset_info.json` calls otherwise.
pub(crate) fn format_names() -> impl Iterator<Item = &'static str> {
    let more = [Formatting::Sharegpt.name(), Formatting::Openai.name()];
    FORMATS.iter().map(|f| f.name).chain(more)
}

/// Converts a row, by what its dataset's entry says of it, or recognised by its fields.
///
/// # Errors
/// As [`recognise`].
pub fn convert(row: &RawRow, attributes: Option<&Attributes>) -> Result<(&'static str, Record)> {
    let by_entry = attributes.filter(|a| {
        let prompt = a.columns.prompt.as_deref().unwrap_or_default();
        !a.is_silent || row.fields.contains_key(prompt)
    });
    let Some(attributes) = by_entry else {
        return recognise(row).map(|(format, record)| (format.name, record));
    };
    let format = attributes.formatting.name();
    let record = attributes::convert(&row.fields, attributes);
    let record = record.map_err(|message| DataError::Field { row: row.source.clone(), format, message })?;
    Ok((format, record))
}

/// Recognises a row by its fields and converts it.
///
/// # Errors
/// Names the row, its fields and the nearest right name when no format fits, or the field that holds the wrong thing.
pub fn recognise(row: &RawRow) -> Result<(&'static Format, Record)> {
    let present = |name: &&str| row.fields.get(*name).is_some_and(|v| !v.is_null());
    let Some(&format) = FORMATS.iter().find(|f| f.required.iter().all(present)) else {
        return Err(unknown(row));
    };
    if let Some(message) = misspelt_optional(format, &row.fields) {
        return Err(DataError::Field { row: row.source.clone(), format: format.name, message });
    }
    let record = (format.convert)(&row.fields).map_err(|message| DataError::Field {
        row: row.source.clone(),
        format: format.name,
        message,
    })?;
    Ok((format, record))
}

/// As [`convert`], of the columns that the options name, if they name some; those of the dataset's entry do not count then.
///
/// # Errors
/// As [`convert`]; or that the row has no such column.
pub(crate) fn convert_columns(
    row: &RawRow,
    attributes: Option<&Attributes>,
    options: &EncodeOptions,
) -> Result<(&'static str, Record)> {
    match with_columns(row, options)? {
        Cow::Borrowed(row) => convert(row, attributes),
        Cow::Owned(row) => convert(&row, None),
    }
}

/// The row with the columns that the options name under the names that formats know.
///
/// # Errors
/// That the row has no such column.
fn with_columns<'a>(row: &'a RawRow, options: &EncodeOptions) -> Result<Cow<'a, RawRow>> {
    let (column, key) = match (&options.messages_column, &options.text_column) {
        (Some(column), _) => (column, "messages"),
        (None, Some(column)) => (column, "text"),
        (None, None) => return Ok(Cow::Borrowed(row)),
    };
    let Some(value) = row.fields.get(column) else {
        let names: Vec<&str> = row.fields.keys().map(String::as_str).collect();
        let hint = nearest(column, names.iter().copied());
        let hint = hint.map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
        let message = format!("there is no column `{column}`{hint} (it has {})", names.join(", "));
        return Err(DataError::Field { row: row.source.clone(), format: key, message });
    };
    // AutoTrain's cells hold conversations as text.
    let value = match value {
        Value::String(text) if key == "messages" => literal::value(text).unwrap_or_else(|| value.clone()),
        other => other.clone(),
    };
    let fields = Fields::from_iter([(key.to_string(), value)]);
    Ok(Cow::Owned(RawRow { source: row.source.clone(), fields }))
}

/// A field one keystroke from an optional field that is absent would be dropped in silence; say so instead.
fn misspelt_optional(format: &Format, fields: &Fields) -> Option<String> {
    let known = |k: &str| format.required.contains(&k) || format.optional.contains(&k);
    for optional in format.optional.iter().filter(|o| !fields.contains_key(**o)) {
        let slip = |k: &&String| !known(k) && strsim::damerau_levenshtein(k, optional) == 1;
        if let Some(field) = fields.keys().find(slip) {
            return Some(format!(
                "the field `{field}` is unknown; did you mean `{optional}`? (rename or remove it)"
            ));
        }
    }
    None
}

fn unknown(row: &RawRow) -> DataError {
    let names: Vec<&str> = row.fields.keys().map(String::as_str).collect();
    let fields = match names.as_slice() {
        [] => "(none)".to_string(),
        names => names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "),
    };
    let expected: Vec<String> =
        FORMATS.iter().map(|f| format!("  {:18} {}", f.name, f.signature())).collect();
    DataError::UnknownFormat {
        row: row.source.clone(),
        fields,
        hint: hint(row),
        expected: expected.join("\n"),
    }
}

/// The format with the most required fields present or nearly so, and what to rename.
fn hint(row: &RawRow) -> String {
    let mut best: Option<(usize, usize, String)> = None;
    for format in FORMATS {
        let mut right = 0;
        let mut slips = Vec::new();
        let mut missing = Vec::new();
        for &required in format.required {
            match row.fields.get(required) {
                Some(Value::Null) => missing.push(format!("`{required}` is null")),
                Some(_) => right += 1,
                None => {
                    let others = row.fields.keys().map(String::as_str);
                    let others =
                        others.filter(|k| !format.required.contains(k) && !format.optional.contains(k));
                    match nearest(required, others) {
                        Some(field) => slips.push(format!("`{required}` for `{field}`")),
                        None => missing.push(format!("`{required}` is missing")),
                    }
                }
            }
        }
        let near = right + slips.len();
        if near == 0 || best.as_ref().is_some_and(|(n, r, _)| (*n, *r) >= (near, right)) {
            continue;
        }
        let mut text = String::new();
        if !slips.is_empty() {
            let _ = write!(text, "; did you mean {} ({})?", slips.join(" and "), format.name);
        }
        if !missing.is_empty() {
            let _ = write!(text, "; for {}, {}", format.name, missing.join(" and "));
        }
        best = Some((near, right, text));
    }
    best.map(|(_, _, text)| text).unwrap_or_default()
}

/// A field that must be a string.
fn string(fields: &Fields, name: &str) -> Result<String, String> {
    match fields.get(name) {
        Some(Value::String(s)) => Ok(s.clone()),
        Some(other) => Err(format!("`{name}` should be a string, found {}", kind_of(other))),
        None => Err(format!("`{name}` is missing")),
    }
}

/// A field that may be absent or null, and is a string otherwise.
fn optional_string(fields: &Fields, name: &str) -> Result<String, String> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(_) => string(fields, name),
    }
}
