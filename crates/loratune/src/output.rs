//! What people and programs read: standard output that may be closed early, errors, numbers in words.

use std::io::{self, IsTerminal, Write};

use loratune_data::DataError;
use loratune_train::config::ConfigError;
use serde::Serialize;

/// A mistake on the command line that clap cannot see.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Prints text as it is.
///
/// # Errors
/// If nobody reads any more (see [`is_closed`]), or the disk behind a redirection is full.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Prints a line.
///
/// # Errors
/// As [`print`].
pub fn line(text: impl AsRef<str>) -> io::Result<()> {
    print(&format!("{}\n", text.as_ref()))
}

/// Prints one JSON object on a line of its own.
///
/// # Errors
/// As [`print`].
pub fn json(value: &impl Serialize) -> io::Result<()> {
    line(serde_json::to_string(value).map_err(io::Error::other)?)
}

/// A remark on standard error.
pub fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// The one line that says why a command failed.
pub fn error(text: &str) {
    let head = if colors(&io::stderr()) { "\x1b[1;31merror:\x1b[0m" } else { "error:" };
    note(&format!("{head} {text}"));
}

/// Whether text for this stream may be coloured: a terminal, and NO_COLOR is unset (<https://no-color.org>).
pub fn colors(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// An error's message and those of its causes that say something new.
pub fn message(e: &anyhow::Error) -> String {
    let mut text = e.to_string();
    for cause in e.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Did the reader of our output go away (`| head`)?
pub fn is_closed(e: &anyhow::Error) -> bool {
    e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
}

/// Is the command line or the configuration at fault?
pub fn is_usage(e: &anyhow::Error) -> bool {
    e.downcast_ref::<Usage>().is_some()
        || e.downcast_ref::<ConfigError>().is_some_and(ConfigError::is_usage)
        || e.downcast_ref::<DataError>().is_some_and(DataError::is_usage)
        || e.downcast_ref::<loratune_train::Error>().is_some_and(loratune_train::Error::is_usage)
}

/// `1234567` → `1 234 567`.
pub fn thousands(n: impl TryInto<u64>) -> String {
    let digits = n.try_into().unwrap_or(u64::MAX).to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) && digits.len() > 4 {
            out.push(' ');
        }
        out.push(c);
    }
    out
}

/// `0:07`, `12:34`, `1:02:03`.
pub fn duration(seconds: f64) -> String {
    let s = if seconds.is_finite() { seconds.max(0.0).round() as u64 } else { 0 };
    let (h, m, s) = (s / 3600, s / 60 % 60, s % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m}:{s:02}") }
}

/// `812 MB`, `1.4 GB` (powers of ten).
pub fn bytes(n: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(size, _)| n as f64 >= *size) {
        Some((size, unit)) if n as f64 / size < 10.0 => format!("{:.1} {unit}", n as f64 / size),
        Some((size, unit)) => format!("{:.0} {unit}", n as f64 / size),
        None => format!("{n} bytes"),
    }
}

/// A loss or another number of everyday size; whatever it is, NaN included, it is shown.
pub fn number(x: f64) -> String {
    if x != 0.0 && (x.abs() < 1e-3 || x.abs() >= 1e5) { format!("{x:.3e}") } else { format!("{x:.4}") }
}

/// A learning rate.
pub fn rate(x: f64) -> String {
    if x == 0.0 { "0".into() } else { format!("{x:.2e}") }
}

/// Text in lines of at most `width` characters, broken at spaces.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let last = lines.last().map_or(0, |l| l.chars().count());
        match lines.last_mut() {
            Some(line) if last > 0 && last + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            Some(line) if last == 0 => line.push_str(word),
            _ => lines.push(word.to_string()),
        }
    }
    lines
}

/// A line `name       value` of a summary.
pub fn field(name: &str, value: impl AsRef<str>) -> String {
    format!("{name:<12} {}\n", value.as_ref())
}

/// A word as a POSIX shell reads it back.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_easily() {
        assert_eq!(
            [thousands(999u64), thousands(1234u64), thousands(1234567u64)],
            ["999", "1234", "1 234 567"]
        );
        assert_eq!([duration(7.4), duration(754.0), duration(3723.0)], ["0:07", "12:34", "1:02:03"]);
        assert_eq!([bytes(12), bytes(1_400_000_000), bytes(812_000_000)], ["12 bytes", "1.4 GB", "812 MB"]);
        assert_eq!([number(1.5), number(f64::NAN), number(2e-7)], ["1.5000", "NaN", "2.000e-7"]);
    }

    #[test]
    fn causes_are_told_once() {
        let e = anyhow::anyhow!("disk full").context("writing x: disk full").context("no result");
        assert_eq!(message(&e), "no result: writing x: disk full");
    }

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(shell_word("a=b/c.yaml"), "a=b/c.yaml");
        assert_eq!(shell_word("it's [x]"), r"'it'\''s [x]'");
    }
}
