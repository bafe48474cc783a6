//! Lists and mappings that stand in a table's cell as text: JSON, or as Python prints them (`[{'role': 'user', …}]`), which is
//! what `pandas.DataFrame.to_csv` leaves of them and what AutoTrain reads with `ast.literal_eval`.

use serde_json::{Map, Number, Value};

/// Nesting that no conversation has; deeper text is not read.
const DEEPEST: usize = 64;

/// The value that a text spells, `None` if it spells none.
pub(super) fn value(text: &str) -> Option<Value> {
    serde_json::from_str(text).ok().or_else(|| {
        let mut reader = Reader { rest: text.trim(), depth: 0 };
        let value = reader.value()?;
        reader.rest.is_empty().then_some(value)
    })
}

struct Reader<'t> {
    rest: &'t str,
    depth: usize,
}

impl Reader<'_> {
    /// Takes a text and the space after it.
    fn take(&mut self, text: &str) -> Option<()> {
        self.rest = self.rest.strip_prefix(text)?.trim_start();
        Some(())
    }

    fn value(&mut self) -> Option<Value> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return None;
        }
        let value = match self.rest.chars().next()? {
            '[' => self.items("[", "]")?.into(),
            '(' => self.items("(", ")")?.into(),
            '{' => self.mapping()?,
            '\'' | '"' => self.text()?.into(),
            _ => self.word()?,
        };
        self.depth -= 1;
        Some(value)
    }

    fn items(&mut self, open: &str, close: &str) -> Option<Vec<Value>> {
        self.take(open)?;
        let mut items = Vec::new();
        while self.take(close).is_none() {
            if !items.is_empty() {
                self.take(",")?;
                // Python allows a comma after the last one.
                if self.take(close).is_some() {
                    break;
                }
            }
            items.push(self.value()?);
        }
        Some(items)
    }

    fn mapping(&mut self) -> Option<Value> {
        self.take("{")?;
        let mut map = Map::new();
        while self.take("}").is_none() {
            if !map.is_empty() {
                self.take(",")?;
                if self.take("}").is_some() {
                    break;
                }
            }
            let key = self.text()?;
            self.take(":")?;
            map.insert(key, self.value()?);
        }
        Some(Value::Object(map))
    }

    /// A text in either kind of quotes.
    fn text(&mut self) -> Option<String> {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let mut out = String::new();
        let mut chars = self.rest[1..].char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                _ if c == quote => {
                    self.rest = self.rest[1 + at + 1..].trim_start();
                    return Some(out);
                }
                '\\' => {
                    let digits = match chars.next()?.1 {
                        'n' => {
                            out.push('\n');
                            continue;
                        }
                        't' => {
                            out.push('\t');
                            continue;
                        }
                        'r' => {
                            out.push('\r');
                            continue;
                        }
                        'x' => 2,
                        'u' => 4,
                        'U' => 8,
                        c @ ('\\' | '\'' | '"') => {
                            out.push(c);
                            continue;
                        }
                        _ => return None,
                    };
                    let code = (0..digits).try_fold(0u32, |code, _| {
                        Some(code.checked_mul(16)? + chars.next()?.1.to_digit(16)?)
                    })?;
                    out.push(char::from_u32(code)?);
                }
                c => out.push(c),
            }
        }
        None
    }

    fn word(&mut self) -> Option<Value> {
        let ends = |c: char| matches!(c, ',' | ']' | ')' | '}' | ':') || c.is_whitespace();
        let end = self.rest.find(ends).unwrap_or(self.rest.len());
        let word = &self.rest[..end];
        let value = match word {
            "None" => Value::Null,
            "True" => true.into(),
            "False" => false.into(),
            number => match number.parse::<i64>() {
                Ok(whole) => whole.into(),
                Err(_) if number.starts_with(|c: char| c.is_ascii_digit() || matches!(c, '-' | '.')) => {
                    Number::from_f64(number.parse().ok()?)?.into()
                }
                Err(_) => return None,
            },
        };
        self.rest = self.rest[end..].trim_start();
        Some(value)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_python_prints_is_read_back() {
        // Each as CPython's `repr` writes it.
        for (text, want) in [
            (
                r#"[{'role': 'user', 'content': "it's"}, {'role': 'assistant', 'content': 'say "hi"\n\\ \'x\' \x07 \u200b \U0001f1e6'}]"#,
                json!([{"role": "user", "content": "it's"},
                       {"role": "assistant", "content": "say \"hi\"\n\\ 'x' \u{7} \u{200b} \u{1f1e6}"}]),
            ),
            ("[1, -2, 3.5, 1e-05, None, True, False, ()]", json!([1, -2, 3.5, 1e-5, null, true, false, []])),
            ("{'a': ('b',), 'Zürich': {}}", json!({"a": ["b"], "Zürich": {}})),
            (r#"[{"role": "user"}]"#, json!([{"role": "user"}])),
            ("  [ ]  ", json!([])),
        ] {
            assert_eq!(value(text), Some(want), "{text}");
        }
    }

    #[test]
    fn what_is_no_literal_is_not_read() {
        let deep = "[".repeat(100_000);
        for text in [
            "",
            "hello",
            "[1, 2",
            "['a' 'b']",
            "[print()]",
            "{'a'}",
            "'a",
            "[1,,2]",
            "[1] 2",
            "{1: 2}",
            "'\\q'",
            &deep,
        ] {
            assert_eq!(value(text), None, "{}", text.get(..20).unwrap_or(text));
        }
    }
}
