//! The access token, which nothing here ever shows.

use std::fmt;

use crate::error::{HubError, Result};

/// An access token. It has no way to be printed: `Debug` hides it, and it is not `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl Token {
    /// Takes a token as somebody wrote it; `None` if there is nothing but blanks.
    ///
    /// # Errors
    /// If it holds what no token holds. `key` is where it stood; the message does not repeat the token.
    pub fn new(text: &str, key: &'static str) -> Result<Option<Token>> {
        let text = text.trim();
        if text.is_empty() {
            return Ok(None);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            let what = "is no token: tokens are letters, digits and `_` in one word, such as hf_…".into();
            return Err(HubError::Setting { key, what });
        }
        Ok(Some(Token(text.to_string())))
    }

    /// For the `Authorization` header, and nothing else.
    pub(crate) fn header(&self) -> String {
        format!("Bearer {}", self.0)
    }

    /// Text from elsewhere (a server's message) without the token, should it hold it.
    pub(crate) fn hide_in(&self, text: &str) -> String {
        text.replace(&self.0, "(token)")
    }

    /// Whether bytes that are about to leave this machine, or to be kept, hold the token.
    pub(crate) fn is_in(&self, bytes: &[u8]) -> bool {
        // A very short token would be found everywhere.
        self.0.len() >= 8 && bytes.windows(self.0.len()).any(|w| w == self.0.as_bytes())
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(hidden)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_never_shown() {
        let token = Token::new(" hf_secretsecret\n", "HF_TOKEN").unwrap().unwrap();
        assert_eq!(format!("{token:?}"), "Token(hidden)");
        assert_eq!(token.hide_in("no hf_secretsecret here"), "no (token) here");
        assert!(token.is_in(b"x hf_secretsecret y") && !token.is_in(b"hf_secret"));
        let wrong = Token::new("hf_a b\u{e9}secret", "HF_TOKEN").unwrap_err().to_string();
        assert!(!wrong.contains("secret"), "{wrong}");
        assert_eq!(Token::new("  ", "HF_TOKEN").unwrap(), None);
    }
}
