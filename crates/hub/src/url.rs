//! As much of addresses as is needed: escaping, joining, and who is who.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

/// What may stand in one segment of a path.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// One segment, slashes escaped.
pub(crate) fn segment(text: &str) -> String {
    utf8_percent_encode(text, SEGMENT).to_string()
}

/// A path, its slashes kept.
pub(crate) fn path(text: &str) -> String {
    text.split('/').map(segment).collect::<Vec<_>>().join("/")
}

/// Scheme, host and port: what a token is bound to.
pub(crate) fn origin(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    let authority = authority.rsplit('@').next()?.to_ascii_lowercase();
    let scheme = scheme.to_ascii_lowercase();
    let port = match scheme.as_str() {
        "https" => 443,
        "http" => 80,
        _ => return None,
    };
    // The port of an IPv6 address stands behind its bracket.
    let has_port = authority.rsplit(']').next().is_some_and(|tail| tail.contains(':'));
    match (authority.is_empty(), has_port) {
        (true, _) => None,
        (_, true) => Some(format!("{scheme}://{authority}")),
        (_, false) => Some(format!("{scheme}://{authority}:{port}")),
    }
}

/// The host of an address, for messages.
pub(crate) fn host(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or(rest);
    authority.rsplit('@').next().unwrap_or(authority).to_string()
}

/// Where a `Location` leads from `base`.
pub(crate) fn join(base: &str, location: &str) -> Option<String> {
    if location.contains("://") && !location.starts_with('/') {
        return origin(location).map(|_| location.to_string());
    }
    let (scheme, rest) = base.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?;
    if let Some(rest) = location.strip_prefix("//") {
        return Some(format!("{scheme}://{rest}"));
    }
    if location.starts_with('/') {
        return Some(format!("{scheme}://{authority}{location}"));
    }
    let path = rest[authority.len()..].split(['?', '#']).next().unwrap_or("");
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(format!("{scheme}://{authority}{folder}/{location}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_tell_hosts_ports_and_schemes_apart() {
        assert_eq!(origin("https://HF.co/x"), origin("https://hf.co:443/y?z"));
        assert_ne!(origin("https://hf.co/"), origin("http://hf.co/"));
        assert_ne!(origin("http://h:1/"), origin("http://h:2/"));
        assert_ne!(origin("https://hf.co/"), origin("https://hf.co.evil/"));
        assert_eq!(origin("https://hf.co@evil/"), origin("https://evil/"));
        assert_eq!(origin("http://[::1]/").as_deref(), Some("http://[::1]:80"));
        assert_eq!(origin("file:///etc"), None);
    }

    #[test]
    fn redirects_are_joined() {
        assert_eq!(join("http://h:1/a/b?c", "/d").as_deref(), Some("http://h:1/d"));
        assert_eq!(join("http://h:1/a/b?c", "d?e").as_deref(), Some("http://h:1/a/d?e"));
        assert_eq!(join("https://h/a", "//i/j").as_deref(), Some("https://i/j"));
        assert_eq!(join("https://h/a", "https://i/j?k=http://l").as_deref(), Some("https://i/j?k=http://l"));
        assert_eq!(join("https://h/a", "ftp://i/j"), None);
    }

    #[test]
    fn revisions_and_files_are_escaped() {
        assert_eq!(segment("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(path("a b/c#d.json"), "a%20b/c%23d.json");
    }
}
