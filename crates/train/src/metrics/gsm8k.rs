//! The final answer of a GSM8K solution, as lm-evaluation-harness's task `gsm8k` filters and compares it: `strict-match` takes the
//! number behind `####`, `flexible-extract` the last number of all.

use std::sync::OnceLock;

use fancy_regex::Regex;

fn compiled(cell: &'static OnceLock<Option<Regex>>, pattern: &str) -> Option<&'static Regex> {
    cell.get_or_init(|| Regex::new(pattern).ok()).as_ref()
}

/// Whether the first number behind `####` is the expected answer's.
pub fn gsm8k_strict(predicted: &str, label: &str) -> bool {
    static PATTERN: OnceLock<Option<Regex>> = OnceLock::new();
    let found = compiled(&PATTERN, r"#### (-?[0-9.,]+)").and_then(|p| p.captures(predicted).ok().flatten());
    found.and_then(|c| c.get(1)).is_some_and(|number| same(number.as_str(), label))
}

/// Whether the last number is the expected answer's: two or more of digits, points, commas and dollar signs, or digits.
pub fn gsm8k_flexible(predicted: &str, label: &str) -> bool {
    static PATTERN: OnceLock<Option<Regex>> = OnceLock::new();
    let pattern = compiled(&PATTERN, r"-?[$0-9.,]{2,}|-?[0-9]+");
    let last = pattern.and_then(|p| p.find_iter(predicted).filter_map(Result::ok).last());
    last.is_some_and(|number| same(number.as_str(), label))
}

/// Equal without commas, dollar signs, all up to the last `#### `, a full stop at the end, and case.
fn same(predicted: &str, label: &str) -> bool {
    plain(predicted) == plain(label)
}

fn plain(text: &str) -> String {
    let text: String = text.chars().filter(|c| !matches!(c, ',' | '$')).collect();
    let text = text.rsplit_once("#### ").map_or(text.as_str(), |(_, answer)| answer);
    // Python's `\.$` also matches before a line break at the end.
    let (body, end) = text.strip_suffix('\n').map_or((text, ""), |body| (body, "\n"));
    format!("{}{end}", body.strip_suffix('.').unwrap_or(body)).to_lowercase()
}
