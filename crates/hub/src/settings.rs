//! Where the hub is, where its cache is, who asks: the environment variables of Hugging Face's own libraries.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{HubError, Result};
use crate::token::Token;

/// The hub of huggingface.co.
pub const ENDPOINT: &str = "https://huggingface.co";

/// How the hub is used.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Address without a slash at its end (`HF_ENDPOINT`).
    pub endpoint: String,
    /// The cache's folder (`HF_HUB_CACHE`, `HF_HOME/hub`).
    pub cache: PathBuf,
    /// Who asks (`HF_TOKEN`, or what `hf auth login` left in `HF_HOME/token`).
    pub token: Option<Token>,
    /// The variable that forbids to use the network, if one does (`HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE`).
    pub offline: Option<&'static str>,
    /// Longest silence of a server (`HF_HUB_DOWNLOAD_TIMEOUT`).
    pub timeout: Duration,
    /// The first pause before something is tried again; later ones double.
    pub pause: Duration,
    /// Files that are transferred at a time.
    pub parallel: usize,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Errors
    /// When a variable has a value that cannot be used.
    pub fn from_env() -> Result<Settings> {
        // An empty variable is as good as none.
        Settings::from_lookup(|name| std::env::var(name).ok().filter(|v| !v.is_empty()))
    }

    /// As [`Settings::from_env`], with the variables from `get`.
    ///
    /// # Errors
    /// As [`Settings::from_env`].
    pub fn from_lookup(get: impl Fn(&str) -> Option<String>) -> Result<Settings> {
        let home = get("HF_HOME").map(|p| expand(&p, &get)).unwrap_or_else(|| {
            let cache = get("XDG_CACHE_HOME").map(|p| expand(&p, &get));
            cache.unwrap_or_else(|| expand("~/.cache", &get)).join("huggingface")
        });
        let cache = get("HF_HUB_CACHE").or_else(|| get("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.map_or_else(|| home.join("hub"), |p| expand(&p, &get));
        let offline = ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"]
            .into_iter()
            .find(|name| get(name).is_some_and(|v| is_true(&v)));
        let timeout = match get("HF_HUB_DOWNLOAD_TIMEOUT") {
            None => 30,
            Some(text) => text.trim().parse().ok().filter(|s| (1..=86_400).contains(s)).ok_or_else(|| {
                let what = format!("is `{text}`; expected seconds, a whole number from 1");
                HubError::Setting { key: "HF_HUB_DOWNLOAD_TIMEOUT", what }
            })?,
        };
        Ok(Settings {
            endpoint: endpoint(get("HF_ENDPOINT").as_deref().unwrap_or(ENDPOINT))?,
            cache,
            token: token(&get, &home)?,
            offline,
            timeout: Duration::from_secs(timeout),
            pause: Duration::from_secs(1),
            parallel: 8,
        })
    }
}

fn endpoint(text: &str) -> Result<String> {
    let text = text.trim().trim_end_matches('/');
    let host = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or_default();
    let plain = !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && !"?#@\\".contains(c));
    match plain {
        true => Ok(text.to_string()),
        // Not shown: it may have a password in it.
        false => Err(HubError::Setting {
            key: "HF_ENDPOINT",
            what:
                "is no address of a hub; expected one such as https://huggingface.co, without user or query"
                    .into(),
        }),
    }
}

fn token(get: &impl Fn(&str) -> Option<String>, home: &Path) -> Result<Option<Token>> {
    for key in ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"] {
        if let Some(text) = get(key)
            && let Some(token) = Token::new(&text, key)?
        {
            return Ok(Some(token));
        }
    }
    if get("HF_HUB_DISABLE_IMPLICIT_TOKEN").is_some_and(|v| is_true(&v)) {
        return Ok(None);
    }
    let path = get("HF_TOKEN_PATH").map_or_else(|| home.join("token"), |p| expand(&p, get));
    match std::fs::read_to_string(&path) {
        Ok(text) => Token::new(&text, "the token file (HF_TOKEN_PATH, HF_HOME/token)"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(HubError::Io { action: "read the token in", path, source }),
    }
}

fn is_true(value: &str) -> bool {
    matches!(value.to_ascii_uppercase().as_str(), "1" | "ON" | "YES" | "TRUE")
}

/// A path with a `~` or `$VARIABLE` at its beginning, as Python's `expanduser` and `expandvars` read it.
fn expand(path: &str, get: &impl Fn(&str) -> Option<String>) -> PathBuf {
    let home = || get("HOME").or_else(|| get("USERPROFILE"));
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    let found = match first.strip_prefix('$') {
        _ if first == "~" => home(),
        Some(name) => get(name.trim_start_matches('{').trim_end_matches('}')),
        None => None,
    };
    match found {
        Some(value) => PathBuf::from(value).join(rest),
        None => PathBuf::from(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(vars: &[(&str, &str)]) -> Result<Settings> {
        Settings::from_lookup(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn the_cache_is_found_where_pythons_is() {
        let cache = |vars: &[(&str, &str)]| settings(vars).unwrap().cache.display().to_string();
        let home = ("HOME", "/home/me");
        assert_eq!(cache(&[home]), "/home/me/.cache/huggingface/hub");
        assert_eq!(cache(&[home, ("XDG_CACHE_HOME", "/xdg")]), "/xdg/huggingface/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "~/hf")]), "/home/me/hf/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "$SCRATCH/hf"), ("SCRATCH", "/s")]), "/s/hf/hub");
        assert_eq!(cache(&[home, ("HF_HOME", "/hf"), ("HUGGINGFACE_HUB_CACHE", "/old")]), "/old");
        assert_eq!(cache(&[home, ("HUGGINGFACE_HUB_CACHE", "/old"), ("HF_HUB_CACHE", "/c")]), "/c");
    }

    #[test]
    fn tokens_come_from_variables_then_from_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().display().to_string();
        std::fs::write(dir.path().join("token"), "hf_file\n").unwrap();
        let token = |vars: &[(&str, &str)]| {
            let vars: Vec<_> = [("HF_HOME", home.as_str())].into_iter().chain(vars.iter().copied()).collect();
            settings(&vars).unwrap().token.map(|t| t.header())
        };
        assert_eq!(token(&[]).unwrap(), "Bearer hf_file");
        assert_eq!(token(&[("HF_TOKEN", "hf_var")]).unwrap(), "Bearer hf_var");
        assert_eq!(token(&[("HUGGING_FACE_HUB_TOKEN", "hf_old")]).unwrap(), "Bearer hf_old");
        assert_eq!(token(&[("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")]), None);
        assert_eq!(token(&[("HF_TOKEN_PATH", "/nowhere")]), None);
    }

    #[test]
    fn offline_endpoint_and_timeout_are_read() {
        let offline = |name, value| settings(&[(name, value)]).unwrap().offline;
        assert_eq!(offline("HF_HUB_OFFLINE", "1"), Some("HF_HUB_OFFLINE"));
        assert_eq!(offline("TRANSFORMERS_OFFLINE", "yes"), Some("TRANSFORMERS_OFFLINE"));
        assert_eq!(offline("HF_HUB_OFFLINE", "0"), None);
        assert_eq!(
            settings(&[("HF_ENDPOINT", "http://mirror:8080/hub/")]).unwrap().endpoint,
            "http://mirror:8080/hub"
        );
        for wrong in ["mirror", "ftp://x", "https://", "https://me:pass@x"] {
            let e = settings(&[("HF_ENDPOINT", wrong)]).unwrap_err().to_string();
            assert!(!e.contains("pass"), "{e}");
        }
        assert!(settings(&[("HF_HUB_DOWNLOAD_TIMEOUT", "soon")]).is_err());
    }
}
