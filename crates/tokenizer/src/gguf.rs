//! Rebuilding a tokenizer from GGUF metadata, as llama.cpp would use it.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use crate::config::{self, ConfigParts};
use crate::{Result, SpecialToken, TokenizerBundle, TokenizerError, pre_tokenizers};

/// What the `tokenizer.*` keys of a GGUF file say.
#[derive(Debug, Clone, Default)]
pub struct GgufVocabulary {
    /// `tokenizer.ggml.model`: "gpt2" (byte-level BPE) or "llama" (SentencePiece BPE).
    pub model: String,
    /// `tokenizer.ggml.pre`: how text is split; only for "gpt2".
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, by id.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`; only for "llama".
    pub scores: Option<Vec<f32>>,
    /// `tokenizer.ggml.token_type`: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub token_types: Option<Vec<i32>>,
    /// `tokenizer.ggml.merges`: "left right".
    pub merges: Option<Vec<String>>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos_id: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos_id: Option<u32>,
    /// `tokenizer.ggml.padding_token_id`.
    pub pad_id: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unk_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`; only for "llama".
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

impl GgufVocabulary {
    /// How many of the last tokens stand for rows without a token: llama.cpp's converter calls them `[PAD<id>]`. Hugging
    /// Face's tokenizer has none there, and tokens that are added take these ids.
    fn padding(&self) -> usize {
        let roles = [self.bos_id, self.eos_id, self.pad_id, self.unk_id];
        let named = |id: usize| roles.iter().flatten().any(|&role| role as usize == id);
        let unused =
            |id: usize| self.token_types.as_ref().and_then(|t| t.get(id)) == Some(&token_type::UNUSED);
        let ids = (0..self.tokens.len()).rev();
        ids.take_while(|&id| unused(id) && !named(id) && self.tokens[id] == format!("[PAD{id}]")).count()
    }
}

/// The numbers of a token's kind.
pub(crate) mod token_type {
    pub const NORMAL: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const CONTROL: i32 = 3;
    pub const USER_DEFINED: i32 = 4;
    pub const UNUSED: i32 = 5;
    pub const BYTE: i32 = 6;
}

impl TokenizerBundle {
    /// Rebuilds the tokenizer that a GGUF file describes.
    ///
    /// # Errors
    /// When the tokenizer's model or pre-tokenizer isn't known, or its lists don't fit together.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Self> {
        let padding = vocabulary.padding();
        if padding == 0 {
            return build(vocabulary);
        }
        // Lists that do not fit together still do not: all lose as much.
        let mut vocabulary = vocabulary.clone();
        let cut = |len: usize| len.saturating_sub(padding);
        vocabulary.tokens.truncate(cut(vocabulary.tokens.len()));
        if let Some(types) = &mut vocabulary.token_types {
            types.truncate(cut(types.len()));
        }
        if let Some(scores) = &mut vocabulary.scores {
            scores.truncate(cut(scores.len()));
        }
        build(&vocabulary)
    }
}

fn build(vocabulary: &GgufVocabulary) -> Result<TokenizerBundle> {
    let (tokenizer, parts) = parts(vocabulary)?;
    TokenizerBundle::assemble(Value::Object(tokenizer).to_string().as_bytes(), parts, ORIGIN)
}

/// What tokenizer.json and tokenizer_config.json would say.
pub(crate) fn parts(vocabulary: &GgufVocabulary) -> Result<(Map<String, Value>, ConfigParts)> {
    Builder::new(vocabulary)?.build()
}

struct Builder<'a> {
    gguf: &'a GgufVocabulary,
    ids: HashMap<&'a str, u32>,
}

impl<'a> Builder<'a> {
    fn new(gguf: &'a GgufVocabulary) -> Result<Self> {
        let count = gguf.tokens.len();
        if count == 0 {
            return Err(field("tokens", "is empty or missing; the file holds no tokenizer"));
        }
        if u32::try_from(count).is_err() {
            return Err(field("tokens", "has more entries than ids can count"));
        }
        let lengths = [
            ("scores", gguf.scores.as_ref().map(Vec::len)),
            ("token_type", gguf.token_types.as_ref().map(Vec::len)),
        ];
        for (name, length) in lengths {
            if let Some(length) = length.filter(|&l| l != count) {
                return Err(field(name, &format!("has {length} entries, but there are {count} tokens")));
            }
        }
        let roles =
            [("bos", gguf.bos_id), ("eos", gguf.eos_id), ("padding", gguf.pad_id), ("unknown", gguf.unk_id)];
        for (name, id) in roles {
            if let Some(id) = id.filter(|&id| id as usize >= count) {
                let name = format!("{name}_token_id");
                return Err(field(&name, &format!("is {id}, but there are only {count} tokens")));
            }
        }
        let mut ids = HashMap::with_capacity(count);
        for (id, token) in (0u32..).zip(&gguf.tokens) {
            if let Some(first) = ids.insert(token.as_str(), id) {
                return Err(field("tokens", &format!("has `{token}` twice, as ids {first} and {id}")));
            }
        }
        Ok(Builder { gguf, ids })
    }

    fn build(&self) -> Result<(Map<String, Value>, ConfigParts)> {
        let (mut tokenizer, add_bos) = match self.gguf.model.as_str() {
            "gpt2" => self.byte_level()?,
            "llama" => (self.sentencepiece()?, true),
            other => return Err(TokenizerError::UnknownGgufModel(other.to_owned())),
        };
        tokenizer.insert("version".into(), json!("1.0"));
        tokenizer.insert("added_tokens".into(), self.added_tokens());
        let sentencepiece = self.gguf.model == "llama";
        // llama.cpp's defaults for SentencePiece vocabularies whose file doesn't name them.
        let role = |id: Option<u32>, usual: u32, kind: i32| {
            id.or_else(|| (sentencepiece && self.kind(usual) == kind).then_some(usual))
        };
        let bos = self.special(role(self.gguf.bos_id, 1, token_type::CONTROL));
        let eos = self.special(role(self.gguf.eos_id, 2, token_type::CONTROL));
        // Files put an ordinary token (often id 0) where there is no padding or unknown token; as a special token it
        // would be torn out of plain text.
        let ordinary = |id: u32| self.gguf.token_types.is_some() && self.kind(id) == token_type::NORMAL;
        let unk = role(self.gguf.unk_id, 0, token_type::UNKNOWN).filter(|&id| !ordinary(id));
        let (unk, pad) = (self.special(unk), self.special(self.gguf.pad_id.filter(|&id| !ordinary(id))));
        let add_bos = self.gguf.add_bos.unwrap_or(add_bos) && bos.is_some();
        let add_eos = self.gguf.add_eos.unwrap_or(false) && eos.is_some();
        let post = config::template_post_processor(
            bos.as_ref().filter(|_| add_bos),
            eos.as_ref().filter(|_| add_eos),
        )
        .and_then(|p| serde_json::to_value(p).map_err(|e| e.to_string()))
        .map_err(|detail| TokenizerError::Build { origin: ORIGIN.to_owned(), detail })?;
        tokenizer.insert("post_processor".into(), post);
        let content = |token: Option<SpecialToken>| token.map(|t| t.content);
        let mut parts =
            ConfigParts::from_value(json!({"add_bos_token": add_bos, "add_eos_token": add_eos}), ORIGIN)?;
        (parts.bos, parts.eos) = (content(bos), content(eos));
        (parts.pad, parts.unk) = (content(pad), content(unk));
        parts.chat_template = self.gguf.chat_template.clone();
        Ok((tokenizer, parts))
    }

    fn kind(&self, id: u32) -> i32 {
        let types = self.gguf.token_types.as_ref();
        types.and_then(|t| t.get(id as usize).copied()).unwrap_or(token_type::NORMAL)
    }

    fn special(&self, id: Option<u32>) -> Option<SpecialToken> {
        let id = id?;
        Some(SpecialToken { id, content: self.gguf.tokens.get(id as usize)?.clone() })
    }

    /// Tokens that are recognised in text as a whole: control and unknown ones are special, user-defined ones not.
    fn added_tokens(&self) -> Value {
        (0u32..)
            .zip(&self.gguf.tokens)
            .filter_map(|(id, content)| {
                let special = match self.kind(id) {
                    token_type::CONTROL | token_type::UNKNOWN => true,
                    token_type::USER_DEFINED => false,
                    _ => return None,
                };
                (!content.is_empty()).then(|| {
                    json!({
                        "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": special,
                    })
                })
            })
            .collect()
    }

    /// Byte-level BPE, and whether it adds BOS by default.
    fn byte_level(&self) -> Result<(Map<String, Value>, bool)> {
        let name = self.gguf.pre.as_deref().unwrap_or("default");
        let splitting = pre_tokenizers::find(name).ok_or_else(|| TokenizerError::UnknownPreTokenizer {
            name: name.to_owned(),
            supported: pre_tokenizers::supported_pre_tokenizers().join(", "),
        })?;
        let Some(merges) = &self.gguf.merges else {
            return Err(field("merges", "is missing, but byte-level BPE needs it"));
        };
        let merges = merges.iter().map(|m| self.split_merge(m)).collect::<Result<Vec<_>>>()?;
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
        let tokenizer = object(json!({
            "normalizer": null, "pre_tokenizer": splitting.to_json(), "decoder": byte_level,
            "model": self.bpe(&merges, splitting.ignore_merges, None),
        }));
        Ok((tokenizer, splitting.add_bos))
    }

    /// SentencePiece BPE: spaces become ▁ and one is put in front of every stretch of plain text, as llama.cpp
    /// does, also after a special token.
    fn sentencepiece(&self) -> Result<Map<String, Value>> {
        let prefix = self.gguf.add_space_prefix.unwrap_or(true);
        let merges = match (&self.gguf.merges, &self.gguf.scores) {
            (Some(merges), _) => merges.iter().map(|m| self.split_merge(m)).collect::<Result<_>>()?,
            (None, Some(scores)) => self.merges_from_scores(scores),
            (None, None) => {
                return Err(field("scores", "is missing, but a SentencePiece vocabulary needs it"));
            }
        };
        let escape = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let mut normalizers = vec![json!({"type": "Prepend", "prepend": "▁"})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
            json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}),
        ];
        if !prefix {
            normalizers.clear();
            decoders.pop();
        }
        normalizers.push(escape);
        let unk = (0u32..).zip(&self.gguf.tokens).find(|(id, _)| self.kind(*id) == token_type::UNKNOWN);
        let unk = self.special(self.gguf.unk_id.or(unk.map(|(id, _)| id)));
        Ok(object(json!({
            "normalizer": {"type": "Sequence", "normalizers": normalizers},
            "pre_tokenizer": null,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": self.bpe(&merges, false, Some(unk.map(|t| t.content))),
        })))
    }

    /// The BPE model; `unk` is given for SentencePiece (with its unknown token, if any), which falls back to bytes.
    fn bpe(&self, merges: &[(&str, &str)], ignore_merges: bool, unk: Option<Option<String>>) -> Value {
        let vocab: Map<String, Value> =
            (0u32..).zip(&self.gguf.tokens).map(|(id, token)| (token.clone(), json!(id))).collect();
        let sentencepiece = unk.is_some();
        json!({
            "type": "BPE", "dropout": null, "unk_token": unk.flatten(), "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": sentencepiece,
            "byte_fallback": sentencepiece && self.ids.contains_key("<0x00>"),
            "ignore_merges": ignore_merges, "vocab": vocab, "merges": merges,
        })
    }

    /// "left right": the separator is the first space that isn't the first character (llama.cpp).
    fn split_merge<'m>(&self, merge: &'m str) -> Result<(&'m str, &'m str)> {
        let first = merge.chars().next().map_or(0, char::len_utf8);
        let pair = merge
            .get(first..)
            .and_then(|rest| rest.find(' '))
            .and_then(|at| Some((merge.get(..first + at)?, merge.get(first + at + 1..)?)))
            .filter(|(_, right)| !right.is_empty());
        pair.ok_or_else(|| field("merges", &format!("has the entry `{merge}`, which is not two pieces")))
    }

    /// SentencePiece merges two neighbours whenever their union is a token, the best score first. As a merge list:
    /// every way of cutting a token into two tokens, ordered by the token's score.
    fn merges_from_scores(&self, scores: &[f32]) -> Vec<(&'a str, &'a str)> {
        let mut found: Vec<(f32, u32, &str, &str)> = Vec::new();
        for ((id, token), &score) in (0u32..).zip(&self.gguf.tokens).zip(scores) {
            // Control, byte and user-defined tokens are never the result of merging.
            if self.kind(id) > token_type::NORMAL {
                continue;
            }
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if self.ids.contains_key(left) && self.ids.contains_key(right) {
                    found.push((score, id, left, right));
                }
            }
        }
        // Equal scores: lower id first, then the longer left piece; any fixed order would do.
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)).then(b.2.len().cmp(&a.2.len())));
        found.into_iter().map(|(_, _, left, right)| (left, right)).collect()
    }
}

const ORIGIN: &str = "GGUF metadata";

fn field(name: &str, detail: &str) -> TokenizerError {
    TokenizerError::Field {
        origin: ORIGIN.to_owned(),
        field: format!("tokenizer.ggml.{name}"),
        detail: detail.to_owned(),
    }
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
