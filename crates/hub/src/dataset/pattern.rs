//! Patterns of files: `data/train-*.parquet`, `**/*.jsonl`.

/// Whether a path fits a pattern: `*` and `?` stay within one folder, `**` crosses them, `[0-9]` is one of some.
pub(crate) fn fits(pattern: &str, path: &str) -> bool {
    let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
    matches(pattern.as_bytes(), path.as_bytes())
}

fn matches(pattern: &[u8], path: &[u8]) -> bool {
    match pattern {
        [] => path.is_empty(),
        // `a/**/b` is also `a/b`.
        [b'*', b'*', b'/', rest @ ..] => {
            matches(rest, path) || (0..path.len()).any(|i| path[i] == b'/' && matches(rest, &path[i + 1..]))
        }
        [b'*', b'*', rest @ ..] => (0..=path.len()).any(|i| matches(rest, &path[i..])),
        [b'*', rest @ ..] => {
            let end = path.iter().position(|&c| c == b'/').unwrap_or(path.len());
            (0..=end).any(|i| matches(rest, &path[i..]))
        }
        [b'?', rest @ ..] => path.first().is_some_and(|&c| c != b'/') && matches(rest, &path[1..]),
        [b'[', rest @ ..] => match (rest.iter().position(|&c| c == b']'), path.first()) {
            (Some(end), Some(&c)) => one_of(&rest[..end], c) && matches(&rest[end + 1..], &path[1..]),
            _ => false,
        },
        [c, rest @ ..] => path.first() == Some(c) && matches(rest, &path[1..]),
    }
}

fn one_of(set: &[u8], c: u8) -> bool {
    let (negated, set) = match set {
        [b'!' | b'^', rest @ ..] => (true, rest),
        _ => (false, set),
    };
    let mut found = false;
    let mut i = 0;
    while i < set.len() {
        if i + 2 < set.len() && set[i + 1] == b'-' {
            found |= (set[i]..=set[i + 2]).contains(&c);
            i += 3;
        } else {
            found |= set[i] == c;
            i += 1;
        }
    }
    found != negated
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns_fit_as_in_a_shell() {
        for (pattern, path, expected) in [
            ("data/train-*", "data/train-00000-of-00001.parquet", true),
            ("data/train-*", "data/test-00000-of-00001.parquet", false),
            ("*.csv", "a.csv", true),
            ("*.csv", "b/a.csv", false),
            ("**/*.csv", "a.csv", true),
            ("**/*.csv", "b/c/a.csv", true),
            ("b/**", "b/c/a.csv", true),
            ("[0-9]?.txt", "1a.txt", true),
            ("[!0-9]?.txt", "1a.txt", false),
            ("./x.json", "x.json", true),
        ] {
            assert_eq!(fits(pattern, path), expected, "{pattern} {path}");
        }
    }
}
