//! Adding tokens to a tokenizer, as transformers does.

use serde_json::json;
use tokenizers::AddedToken;

use crate::{Result, SpecialToken, TokenizerBundle, TokenizerError};

impl TokenizerBundle {
    /// Adds tokens as transformers' `tokenizer.add_tokens(tokens, special_tokens=special)` does. A token that the
    /// vocabulary has keeps its id, but is from now on found in a text before the text is split; any other gets the next
    /// free id. Special tokens are found as they are written and left out by `decode(.., true)`; others are found after
    /// the text was normalised. Empty texts are passed over.
    ///
    /// Returns the tokens that are new to the vocabulary, by id.
    ///
    /// # Errors
    /// When the tokenizers library refuses a token.
    pub fn add_tokens(&mut self, tokens: &[String], special: bool) -> Result<Vec<SpecialToken>> {
        let before = self.vocab_size();
        let fail = |e: tokenizers::Error| TokenizerError::Run { action: "add tokens", detail: e.to_string() };
        let added = tokens.iter().map(|t| AddedToken::from(t.as_str(), special));
        match special {
            true => self.tokenizer.add_special_tokens(added),
            false => self.tokenizer.add_tokens(added),
        }
        .map_err(fail)?;
        // The library keeps the normalised text of an ordinary token that became special, until it is read back from a
        // file; setting the normaliser makes it look anew.
        let normalizer = self.tokenizer.get_normalizer().cloned();
        self.tokenizer.with_normalizer(normalizer).map_err(fail)?;
        self.measure();
        self.list_added(tokens);
        // By the texts as they were given: the library's `id_to_token` has them normalised.
        let known = self.tokenizer.get_added_tokens_decoder();
        let mut new: Vec<_> = known.into_iter().filter(|(id, _)| *id as usize >= before).collect();
        new.sort_by_key(|(id, _)| *id);
        Ok(new.into_iter().map(|(id, token)| SpecialToken { id, content: token.content }).collect())
    }

    /// Keeps `added_tokens_decoder` complete, which transformers 4 writes beside tokenizer.json.
    fn list_added(&mut self, tokens: &[String]) {
        let known = self.tokenizer.get_added_tokens_decoder();
        let ids: Vec<_> = tokens.iter().filter_map(|t| self.tokenizer.token_to_id(t)).collect();
        let Some(listed) = self.config.get_mut("added_tokens_decoder").and_then(|v| v.as_object_mut()) else {
            return;
        };
        for (id, token) in ids.into_iter().filter_map(|id| Some((id, known.get(&id)?))) {
            let entry = json!({
                "content": token.content, "lstrip": token.lstrip, "normalized": token.normalized,
                "rstrip": token.rstrip, "single_word": token.single_word, "special": token.special,
            });
            listed.insert(id.to_string(), entry);
        }
    }
}
