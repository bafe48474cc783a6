//! What can go wrong between here and the hub. No message ever holds a token.

use std::path::{Path, PathBuf};

use crate::name::Kind;

/// Result of this crate.
pub type Result<T, E = HubError> = std::result::Result<T, E>;

/// An error about the hub or its cache.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// The text cannot name a repository.
    #[error("`{name}` cannot be a repository on the hub: {why}")]
    Name { name: String, why: String },
    /// An environment variable or setting has a value that cannot be used.
    #[error("{key} {what}")]
    Setting { key: &'static str, what: String },
    /// There is no such repository, or it is somebody's private one.
    #[error("{endpoint} has no {kind} `{repo}`{}", no_repo_hint(*had_token))]
    NoRepo { endpoint: String, kind: Kind, repo: String, had_token: bool },
    /// The repository has no such branch, tag or commit.
    #[error("{kind} `{repo}` has no revision `{revision}`; give a branch, a tag or a commit")]
    NoRevision { kind: Kind, repo: String, revision: String },
    /// The repository has no such file.
    #[error("{kind} `{repo}` has no file `{file}` at revision `{revision}`")]
    NoFile { kind: Kind, repo: String, revision: String, file: String },
    /// The owner gives access on request.
    #[error(
        "{kind} `{repo}` is gated: ask for access on {endpoint}/{repo}, then {}",
        if *had_token { "use the token of the account that was granted it" } else { "set HF_TOKEN" }
    )]
    Gated { endpoint: String, kind: Kind, repo: String, had_token: bool },
    /// The token is missing, wrong, or may not do this.
    #[error("{action}: the hub refused ({status}{}){}", colon(message), token_hint(*status, *had_token))]
    Refused { action: String, status: u16, message: String, had_token: bool },
    /// Any other answer that is not a success.
    #[error("{action}: the hub answered {status}{}", colon(message))]
    Status { action: String, status: u16, message: String },
    /// Too many requests, and the pause that was asked for is long.
    #[error("{action}: the hub's rate limit is reached; it asks to wait {seconds} s. Try again then{}",
        if *had_token { "" } else { ", or set HF_TOKEN: the limits of accounts are higher" })]
    RateLimited { action: String, seconds: u64, had_token: bool },
    /// Offline mode is on, and the cache does not have it.
    #[error("{what} is not in the cache ({}), and {by} forbids to ask the hub", cache.display())]
    Offline { what: String, by: &'static str, cache: PathBuf },
    /// The hub cannot be asked, and the cache lacks something.
    #[error("{what} is not in the cache ({}){}", cache.display(), colon(why))]
    Incomplete { what: String, cache: PathBuf, why: String },
    /// Nothing may be sent in offline mode.
    #[error("{action}: {by} forbids to use the network")]
    OfflineWrite { action: String, by: &'static str },
    /// The connection could not be made, or broke again and again.
    #[error("{action}: {host} cannot be reached ({what}); check the connection, HTTPS_PROXY and HF_ENDPOINT")]
    Unreachable { action: String, host: String, what: String },
    /// The answer is not what a hub answers.
    #[error("{url} does not answer as a hub does: {what}; check HF_ENDPOINT, proxies and firewalls")]
    Answer { url: String, what: String },
    /// A file that was downloaded twice is not what the hub says it is.
    #[error(
        "{file} of `{repo}` arrived damaged twice: its {algorithm} is {found}, the hub says {expected}; nothing was kept. \
         Try again, without a proxy or mirror in between if there is one"
    )]
    Checksum { repo: String, file: String, algorithm: &'static str, expected: String, found: String },
    /// The repository does not hold what was looked for.
    #[error("{kind} `{repo}` {what}")]
    Unsuitable { kind: Kind, repo: String, what: String },
    /// Something about what is to be uploaded.
    #[error("{}: {what}", path.display())]
    Upload { path: PathBuf, what: String },
    /// A token is needed and there is none.
    #[error(
        "{action} needs a token with write access: set HF_TOKEN (or hub_token, or --token); make one at {endpoint}/settings/tokens"
    )]
    NoToken { action: String, endpoint: String },
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    /// Somebody asked to stop.
    #[error("stopped")]
    Stopped,
}

impl HubError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> HubError {
        move |source| HubError::Io { action, path: path.to_owned(), source }
    }

    pub(crate) fn answer(url: &str, what: impl Into<String>) -> HubError {
        // What stands behind the `?` may be a signature.
        let url = url.split('?').next().unwrap_or(url).to_string();
        HubError::Answer { url, what: what.into() }
    }

    /// The hub said, or could not be asked, that the name means nothing there; a path may have been meant.
    pub fn is_unknown_name(&self) -> bool {
        matches!(
            self,
            HubError::Name { .. }
                | HubError::NoRepo { .. }
                | HubError::Offline { .. }
                | HubError::Unreachable { .. }
        )
    }

    /// The hub cannot be asked at present; what the cache has may do.
    pub(crate) fn is_absence(&self) -> bool {
        match self {
            HubError::Unreachable { .. } | HubError::RateLimited { .. } | HubError::Answer { .. } => true,
            HubError::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

fn colon(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}

fn no_repo_hint(had_token: bool) -> &'static str {
    if had_token { ", or the token has no access to it" } else { ", or it is private: then set HF_TOKEN" }
}

fn token_hint(status: u16, had_token: bool) -> &'static str {
    match (status, had_token) {
        (401, true) => "; the token is not valid (any more)",
        (401, false) => "; a token is needed: set HF_TOKEN",
        (_, true) => "; the token needs write access to this repository or organisation",
        (_, false) => "; a token with access is needed: set HF_TOKEN",
    }
}
