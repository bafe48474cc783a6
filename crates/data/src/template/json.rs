//! The `tojson` filter in the format of Python's `json.dumps`, as transformers defines it for templates.

use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, Value};

struct Style {
    ensure_ascii: bool,
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    sort_keys: bool,
}

/// `value|tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
pub(super) fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let argument = |position: usize, name: &str| -> Result<Option<Value>, Error> {
        let named: Option<Value> = kwargs.get(name)?;
        let given = named.or_else(|| args.get(position).cloned());
        Ok(given.filter(|v| !v.is_none() && !v.is_undefined()))
    };
    let ensure_ascii = argument(0, "ensure_ascii")?.is_some_and(|v| v.is_true());
    let indent = match argument(1, "indent")? {
        None => None,
        Some(v) => match v.as_str() {
            Some(s) => Some(s.to_string()),
            None => Some(" ".repeat(v.as_usize().unwrap_or(0).min(64))),
        },
    };
    let separators = argument(2, "separators")?;
    let sort_keys = argument(3, "sort_keys")?.is_some_and(|v| v.is_true());
    kwargs.assert_all_used()?;
    let (item_separator, key_separator) = match separators {
        Some(pair) => (pair.get_item_by_index(0)?.to_string(), pair.get_item_by_index(1)?.to_string()),
        None if indent.is_some() => (",".into(), ": ".into()),
        None => (", ".into(), ": ".into()),
    };
    let style = Style { ensure_ascii, indent, item_separator, key_separator, sort_keys };
    let mut out = String::new();
    write(&mut out, value, &style, 0)?;
    Ok(Value::from(out))
}

/// `json.dumps(value, ensure_ascii=False)`, with `indent` spaces a level unless it is 0.
pub(super) fn dumps(value: &serde_json::Value, indent: usize) -> String {
    let indent = (indent > 0).then(|| " ".repeat(indent));
    let item_separator = if indent.is_some() { "," } else { ", " }.into();
    let style =
        Style { ensure_ascii: false, indent, item_separator, key_separator: ": ".into(), sort_keys: false };
    let mut out = String::new();
    // JSON that was read from a file is never so deep that it fails.
    let _ = write(&mut out, &super::value::of_json(value), &style, 0);
    out
}

fn write(out: &mut String, value: &Value, style: &Style, depth: usize) -> Result<(), Error> {
    if depth > 200 {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson: nested more than 200 levels deep"));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(&float(f64::try_from(value.clone())?)),
        ValueKind::String => string(out, value.as_str().unwrap_or_default(), style.ensure_ascii),
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if style.sort_keys {
                keys.sort();
            }
            let n = keys.len();
            out.push('{');
            for (i, key) in keys.into_iter().enumerate() {
                separate(out, style, depth, i);
                string(out, &key_text(&key), style.ensure_ascii);
                out.push_str(&style.key_separator);
                write(out, &value.get_item(&key)?, style, depth + 1)?;
            }
            finish(out, style, depth, n);
            out.push('}');
        }
        ValueKind::Seq | ValueKind::Iterable => {
            let mut n = 0;
            out.push('[');
            for (i, item) in value.try_iter()?.enumerate() {
                separate(out, style, depth, i);
                write(out, &item, style, depth + 1)?;
                n = i + 1;
            }
            finish(out, style, depth, n);
            out.push(']');
        }
        kind => {
            let message = format!("tojson: {kind} cannot be written as JSON");
            return Err(Error::new(ErrorKind::InvalidOperation, message));
        }
    }
    Ok(())
}

/// Keys that are no strings are written as Python does: `true`, `null`, `1`.
fn key_text(key: &Value) -> String {
    match key.kind() {
        ValueKind::Bool => (if key.is_true() { "true" } else { "false" }).into(),
        ValueKind::None => "null".into(),
        _ => key.to_string(),
    }
}

fn separate(out: &mut String, style: &Style, depth: usize, index: usize) {
    if index > 0 {
        out.push_str(&style.item_separator);
    }
    line(out, style, depth + 1);
}

fn finish(out: &mut String, style: &Style, depth: usize, items: usize) {
    if items > 0 {
        line(out, style, depth);
    }
}

fn line(out: &mut String, style: &Style, depth: usize) {
    if let Some(indent) = &style.indent {
        out.push('\n');
        for _ in 0..depth {
            out.push_str(indent);
        }
    }
}

fn string(out: &mut String, text: &str, ensure_ascii: bool) {
    use std::fmt::Write;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ensure_ascii && (c as u32) >= 0x7f) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// Python's `float.__repr__`: the shortest digits, in scientific form below 1e-4 and from 1e16 on.
pub(super) fn float(x: f64) -> String {
    if x.is_nan() {
        return "NaN".into();
    }
    if x.is_infinite() {
        return (if x > 0.0 { "Infinity" } else { "-Infinity" }).into();
    }
    let magnitude = x.abs();
    if magnitude != 0.0 && !(1e-4..1e16).contains(&magnitude) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, power) = match exponent.strip_prefix('-') {
            Some(power) => ('-', power),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{power:0>2}");
    }
    format!("{x:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        // The right column is `repr(x)` in CPython 3.11.
        let cases = [
            (0.0, "0.0"),
            (1.0, "1.0"),
            (-0.1, "-0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (2.5e-7, "2.5e-07"),
            (123456.789, "123456.789"),
        ];
        for (x, repr) in cases {
            assert_eq!(float(x), repr);
        }
    }
}
