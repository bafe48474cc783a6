//! loratune's tokenizer as this crate's [`Text`].

use loratune_tokenizer::{SpecialToken, TokenizerBundle};

use crate::text::{Encoding, Special, Text};

fn special(token: &Option<SpecialToken>) -> Option<Special> {
    token.as_ref().map(|t| Special { id: t.id, content: t.content.clone() })
}

impl Text for TokenizerBundle {
    fn encode(&self, text: &str) -> Result<Encoding, String> {
        let (ids, offsets) = self.encode_with_offsets(text).map_err(|e| e.to_string())?;
        Ok(Encoding { ids, offsets })
    }

    fn decode(&self, ids: &[u32]) -> Result<String, String> {
        TokenizerBundle::decode(self, ids, false).map_err(|e| e.to_string())
    }

    fn piece(&self, id: u32) -> Option<String> {
        self.token(id)
    }

    fn is_special(&self, id: u32) -> bool {
        TokenizerBundle::is_special(self, id)
    }

    fn vocab_size(&self) -> usize {
        TokenizerBundle::vocab_size(self)
    }

    fn bos(&self) -> Option<Special> {
        special(&self.bos)
    }

    fn eos(&self) -> Option<Special> {
        special(&self.eos)
    }

    fn pad(&self) -> Option<Special> {
        special(&self.pad)
    }

    fn unk(&self) -> Option<Special> {
        special(&self.unk)
    }

    fn add_bos(&self) -> bool {
        self.add_bos
    }

    fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    fn special_contents(&self) -> Vec<String> {
        let ids = 0..u32::try_from(Text::vocab_size(self)).unwrap_or(u32::MAX);
        ids.filter(|&id| TokenizerBundle::is_special(self, id)).filter_map(|id| self.token(id)).collect()
    }

    fn fingerprint(&self) -> Option<u128> {
        let mut sum = xxhash_rust::xxh3::Xxh3::new();
        sum.update(self.tokenizer_json().ok()?.as_bytes());
        let roles = (&self.bos, &self.eos, &self.pad, &self.unk, self.add_bos, self.splits_special_tokens());
        sum.update(format!("{roles:?}").as_bytes());
        Some(sum.digest128())
    }
}
