//! `{% generation %}` blocks: transformers' tag for what the model writes.
//!
//! minijinja has no custom tags, so the tag is rewritten to a `{% with %}` block with a mark at each end. It has the scope of
//! transformers' own (which compiles the tag to a call block): what is set inside stays inside, and attributes of a namespace
//! can be set. A real call block would not do: minijinja's macros see only the outer variables that they read.

use std::ops::Range;

/// Variables with the marks; undefined when spans are not wanted.
pub(super) const OPEN: &str = "__generation_open";
/// See [`OPEN`].
pub(super) const CLOSE: &str = "__generation_close";

/// Rewrites the tags; `true` when there is at least one.
pub(super) fn replace_tags(source: &str) -> (String, bool) {
    let mut out = String::with_capacity(source.len() + 32);
    let mut rest = source;
    let mut found = false;
    while let Some(at) = rest.find('{') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let length = match tail.as_bytes().get(1) {
            Some(b'#') => tail.find("#}").map_or(tail.len(), |i| i + 2),
            Some(b'%') => tag_end(tail, "%}"),
            Some(b'{') => tag_end(tail, "}}"),
            _ => 1,
        };
        let (tag, next) = tail.split_at(length);
        match replaced(tag) {
            Some(new) => {
                out.push_str(&new);
                found = true;
            }
            None => out.push_str(tag),
        }
        rest = next;
    }
    out.push_str(rest);
    (out, found)
}

/// Length of a tag, ends inside of string literals not counted.
fn tag_end(tail: &str, close: &str) -> usize {
    let bytes = tail.as_bytes();
    let mut quote = None;
    let mut i = 2;
    while let Some(&b) = bytes.get(i) {
        match quote {
            Some(_) if b == b'\\' => i += 1,
            Some(q) if b == q => quote = None,
            Some(_) => {}
            None if b == b'"' || b == b'\'' => quote = Some(b),
            None if bytes[i..].starts_with(close.as_bytes()) => return i + close.len(),
            None => {}
        }
        i += 1;
    }
    tail.len()
}

/// `{%- generation -%}` → `{%- with %}{% if … %}{{ … }}{% endif -%}`; `None` for other tags. The control of white space
/// stays at the outer ends, and the last tag is no `{{ }}`, because only a block's end swallows a line break.
fn replaced(tag: &str) -> Option<String> {
    let inner = tag.strip_prefix("{%")?.strip_suffix("%}")?;
    let control = |c: char| c == '-' || c == '+';
    let word = inner.trim_matches(control).trim();
    let open = inner.chars().next().filter(|&c| control(c)).map(String::from).unwrap_or_default();
    let close = inner.chars().next_back().filter(|&c| control(c)).map(String::from).unwrap_or_default();
    let mark = |name: &str| format!("{{{{ {name} }}}}");
    match word {
        "generation" => {
            let mark = mark(OPEN);
            Some(format!("{{%{open} with %}}{{% if {OPEN} %}}{mark}{{% endif {close}%}}"))
        }
        "endgeneration" => {
            let mark = mark(CLOSE);
            Some(format!("{{%{open} if {CLOSE} %}}{mark}{{% endif %}}{{% endwith {close}%}}"))
        }
        _ => None,
    }
}

/// Removes the marks from a rendering and gives the spans between them; `None` when they do not pair up.
pub(super) fn split_marks(marked: &str, (open, close): (char, char)) -> Option<(String, Vec<Range<usize>>)> {
    let mut text = String::with_capacity(marked.len());
    let mut spans = Vec::new();
    let mut start = None;
    for piece in marked.split_inclusive([open, close]) {
        let last = piece.chars().next_back().filter(|&c| c == open || c == close);
        text.push_str(piece.trim_end_matches([open, close]));
        match last {
            Some(c) if c == open && start.is_none() => start = Some(text.len()),
            Some(c) if c == close => spans.push(start.take()?..text.len()),
            Some(_) => return None,
            None => {}
        }
    }
    start.is_none().then_some((text, spans))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_rewritten_with_their_whitespace_control_and_nothing_else_is() {
        let source = "{#{% generation %}#}{%- generation -%}a{%endgeneration+%}{{ '{% generation %}' }}{ x";
        let (out, found) = replace_tags(source);
        assert!(found);
        let open = "{%- with %}{% if __generation_open %}{{ __generation_open }}{% endif -%}";
        let close = "{% if __generation_close %}{{ __generation_close }}{% endif %}{% endwith +%}";
        let rest = "{{ '{% generation %}' }}{ x";
        assert_eq!(out, format!("{{#{{% generation %}}#}}{open}a{close}{rest}"));
        assert!(!replace_tags("{% if generation %}{% endif %}").1);
    }

    #[test]
    fn marks_give_spans_in_bytes_of_the_text_without_them() {
        let (text, spans) = split_marks("é<ab>c<>", ('<', '>')).unwrap();
        assert_eq!(text, "éabc");
        assert_eq!(spans, vec![2..4, 5..5]);
        assert!(split_marks("<a", ('<', '>')).is_none());
        assert!(split_marks("<<a>>", ('<', '>')).is_none());
    }
}
