//! The Python side of templates: methods, filters and functions that real templates use.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};

use super::json;
use super::text::str as python_str;

/// Marks the detail of an error that the template itself raised.
pub(super) const RAISED: &str = "\u{1}raised:";

/// An environment that behaves as transformers' does.
pub(super) fn environment(now: Option<u64>) -> Environment<'static> {
    let mut env = Environment::new();
    // The builder fails only for contradicting delimiters, which are left at their defaults here.
    if let Ok(syntax) = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build() {
        env.set_syntax(syntax);
    }
    env.set_unknown_method_callback(methods);
    env.add_filter("tojson", json::tojson);
    env.add_filter("string", |value: &Value| python_str(value).into_owned());
    env.add_filter("join", join);
    env.add_filter("trim", |value: &Value, chars: Option<&str>| {
        strip(&python_str(value), chars, true, true).to_string()
    });
    env.set_formatter(|out, _, value| Ok(out.write_str(&python_str(value))?));
    env.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    env.add_function("strftime_now", move |format: &str| strftime(format, now.unwrap_or_else(clock)));
    // Jinja asks for Python's protocols: strings and dicts are sequences, too, none is not iterable, undefined is both.
    env.add_test("sequence", |v: &Value| {
        matches!(v.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map | ValueKind::Undefined)
    });
    env.add_test("iterable", |v: &Value| {
        v.kind() != ValueKind::None && (v.as_str().is_some() || v.try_iter().is_ok())
    });
    env
}

/// `value|join(separator, attribute)`, each item as Python writes it.
fn join(
    value: &Value,
    separator: Option<&str>,
    attribute: Option<&str>,
    kwargs: Kwargs,
) -> Result<String, Error> {
    let attribute = match attribute {
        Some(name) => Some(name),
        None => kwargs.get::<Option<&str>>("attribute")?,
    };
    let separator = match separator {
        Some(separator) => separator,
        None => kwargs.get::<Option<&str>>("d")?.unwrap_or_default(),
    };
    kwargs.assert_all_used()?;
    let mut parts = Vec::new();
    for item in value.try_iter()? {
        let item = match attribute {
            Some(name) => item.get_attr(name)?,
            None => item,
        };
        parts.push(python_str(&item).into_owned());
    }
    Ok(parts.join(separator))
}

/// Python's white space: Unicode's and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

/// `str.strip(chars)` and its one-sided forms.
fn strip<'t>(text: &'t str, chars: Option<&str>, left: bool, right: bool) -> &'t str {
    let gone = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if left { text.trim_start_matches(gone) } else { text };
    if right { text.trim_end_matches(gone) } else { text }
}

/// Methods beyond minijinja-contrib's, then those.
fn methods(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    if let Some(text) = value.as_str() {
        match method {
            "strip" | "lstrip" | "rstrip" => {
                let (chars,): (Option<&str>,) = from_args(args)?;
                return Ok(Value::from(strip(text, chars, method != "rstrip", method != "lstrip")));
            }
            "join" => {
                let (items,): (&Value,) = from_args(args)?;
                let parts: Vec<String> = items.try_iter()?.map(|v| python_str(&v).into_owned()).collect();
                return Ok(Value::from(parts.join(text)));
            }
            "removeprefix" => {
                let (prefix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_prefix(prefix).unwrap_or(text)));
            }
            "removesuffix" => {
                let (suffix,): (&str,) = from_args(args)?;
                return Ok(Value::from(text.strip_suffix(suffix).unwrap_or(text)));
            }
            "partition" | "rpartition" => {
                let (separator,): (&str,) = from_args(args)?;
                let last = method == "rpartition";
                let parts = if last { text.rsplit_once(separator) } else { text.split_once(separator) };
                let parts = match parts {
                    Some((a, b)) => [a, separator, b],
                    None if last => ["", "", text],
                    None => [text, "", ""],
                };
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            "rsplit" => {
                let (separator, most): (&str, Option<i64>) = from_args(args)?;
                let most = most.and_then(|m| usize::try_from(m).ok());
                let mut parts: Vec<&str> = match most {
                    Some(most) => text.rsplitn(most + 1, separator).collect(),
                    None => text.rsplit(separator).collect(),
                };
                parts.reverse();
                return Ok(parts.into_iter().map(Value::from).collect());
            }
            _ => {}
        }
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, method, args)
}

pub(super) fn clock() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map(|d| d.as_secs()).unwrap_or(0)
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// C's strftime for a moment in UTC, the directives that dates in templates use.
pub(super) fn strftime(format: &str, seconds: u64) -> Result<String, Error> {
    let days = (seconds / 86_400) as i64;
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let (year, month, day) = civil(days);
    let weekday = ((days + 4) % 7) as usize;
    let (month_name, day_name) = (MONTHS[(month - 1) as usize], DAYS[weekday]);
    let year_start = days_from_civil(year, 1, 1);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut directive = chars.next();
        let plain = directive == Some('-');
        if plain {
            directive = chars.next();
        }
        let two = |n: u64| if plain { n.to_string() } else { format!("{n:02}") };
        out.push_str(&match directive {
            Some('Y') => year.to_string(),
            Some('y') => two((year % 100) as u64),
            Some('m') => two(month as u64),
            Some('d') => two(day as u64),
            Some('e') => format!("{day:>2}"),
            Some('H') => two(hour),
            Some('I') => two((hour + 11) % 12 + 1),
            Some('M') => two(minute),
            Some('S') => two(second),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).into(),
            Some('B') => month_name.into(),
            Some('b' | 'h') => month_name[..3].into(),
            Some('A') => day_name.into(),
            Some('a') => day_name[..3].into(),
            Some('w') => weekday.to_string(),
            Some('j') if plain => (days - year_start + 1).to_string(),
            Some('j') => format!("{:03}", days - year_start + 1),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('D') => format!("{month:02}/{day:02}/{:02}", year % 100),
            Some('R') => format!("{hour:02}:{minute:02}"),
            Some('s') => seconds.to_string(),
            Some('z') => "+0000".into(),
            Some('Z') => "UTC".into(),
            Some('n') => "\n".into(),
            Some('t') => "\t".into(),
            Some('%') => "%".into(),
            other => {
                let shown = other.map(String::from).unwrap_or_default();
                let message = format!("strftime_now: the directive %{shown} is not known here");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(out)
}

/// Year, month and day of a day count since 1970-01-01 (H. Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let z = days + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (yoe + era * 400 + i64::from(month <= 2), month, day)
}

/// The inverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let y = if month <= 2 { year - 1 } else { year };
    let era = y.div_euclid(400);
    let yoe = y.rem_euclid(400);
    let mp = (month + 9) % 12;
    let doy = (153 * mp + 2) / 5 + day - 1;
    era * 146_097 + yoe * 365 + yoe / 4 - yoe / 100 + doy - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_print_as_cpython_prints_them() {
        // datetime.fromtimestamp(s, timezone.utc).strftime(f) in CPython 3.11.
        let cases = [
            (0, "%d %b %Y %A %j", "01 Jan 1970 Thursday 001"),
            (1_709_210_096, "%Y-%m-%d %H:%M:%S %p %I %a", "2024-02-29 12:34:56 PM 12 Thu"),
            (1_735_689_599, "%B %-d, %y %j %w", "December 31, 24 366 2"),
            (951_782_400, "%F %T %%", "2000-02-29 00:00:00 %"),
        ];
        for (seconds, format, expected) in cases {
            assert_eq!(strftime(format, seconds).unwrap(), expected);
        }
        assert!(strftime("%Q", 0).is_err());
    }
}
