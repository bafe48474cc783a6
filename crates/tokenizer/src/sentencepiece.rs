//! SentencePiece's `tokenizer.model`, which folders of Llama 1 and 2, Mistral 7B, Vicuna and others have, some of them alone.
//!
//! Its pieces are put together as SentencePiece does, the best score first. (transformers takes them in the order of
//! their ids, which for Mistral's v2 and v3 says something else about runs of spaces.) Where a space is put in front is
//! said by `legacy` and `add_prefix_space` of tokenizer_config.json, as in transformers 5: in front of the text, or with
//! `legacy: true` in front of every stretch between special tokens.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::config::ConfigParts;
use crate::gguf::{self, GgufVocabulary};
use crate::{Result, TokenizerBundle, TokenizerError};

/// `ModelType::BPE` of sentencepiece_model.proto.
const BPE: u64 = 2;

impl TokenizerBundle {
    /// Builds from the bytes of a SentencePiece model; `origin` names it in errors.
    pub(crate) fn from_sentencepiece(bytes: &[u8], mut parts: ConfigParts, origin: &str) -> Result<Self> {
        let model = Model::parse(bytes).and_then(Model::check);
        let vocabulary =
            model.map_err(|detail| TokenizerError::Build { origin: origin.to_owned(), detail })?;
        let flag = |key: &str| parts.config.get(key).and_then(Value::as_bool);
        let prefix = flag("add_prefix_space").or(vocabulary.add_space_prefix).unwrap_or(true);
        let vocabulary = GgufVocabulary { add_space_prefix: Some(prefix), ..vocabulary };
        let (mut tokenizer, own) = gguf::parts(&vocabulary)?;
        if prefix && flag("legacy") != Some(true) {
            tokenizer.insert("normalizer".into(), Value::Null);
            let first =
                json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": false});
            tokenizer.insert("pre_tokenizer".into(), first);
        }
        // Decided below by tokenizer_config.json, whose missing fields mean Llama's.
        tokenizer.insert("post_processor".into(), Value::Null);
        parts.adds = Some((flag("add_bos_token").unwrap_or(true), flag("add_eos_token").unwrap_or(false)));
        for (key, role, own) in [
            ("bos_token", &mut parts.bos, own.bos),
            ("eos_token", &mut parts.eos, own.eos),
            ("unk_token", &mut parts.unk, own.unk),
            ("pad_token", &mut parts.pad, own.pad),
        ] {
            if role.is_none() && !parts.config.contains_key(key) {
                *role = own;
            }
        }
        TokenizerBundle::assemble(Value::Object(tokenizer).to_string().as_bytes(), parts, origin)
    }
}

const TIKTOKEN: &str = "it is a vocabulary of tiktoken, as Meta's own files of Llama 3 have it, and no SentencePiece model; take \
    tokenizer.json from the model's folder in Hugging Face's format, or make that folder with transformers' \
    convert_llama_weights_to_hf.py";

/// Whether the first line is a token in Base64 and its rank, as in tiktoken's vocabularies.
fn is_tiktoken(bytes: &[u8]) -> bool {
    let line = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let base64 = |b: &u8| b.is_ascii_alphanumeric() || b"+/=".contains(b);
    match line.trim_ascii_end().split(|&b| b == b' ').collect::<Vec<_>>()[..] {
        [token, rank] => {
            let filled = !token.is_empty() && !rank.is_empty();
            filled && token.iter().all(base64) && rank.iter().all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

/// What is read of a `ModelProto` (sentencepiece_model.proto).
struct Model {
    pieces: Vec<String>,
    scores: Vec<f32>,
    /// As GGUF numbers them, which took the numbers from here.
    types: Vec<i32>,
    model_type: u64,
    /// Unknown, beginning, end, padding; negative is none.
    roles: [i64; 4],
    changes_characters: bool,
    removes_spaces: bool,
    prefix: bool,
    /// Spaces become ▁.
    escapes: bool,
    /// A word's ▁ is behind it.
    suffix: bool,
}

impl Model {
    fn parse(bytes: &[u8]) -> std::result::Result<Model, String> {
        let mut model = Model {
            pieces: Vec::new(),
            scores: Vec::new(),
            types: Vec::new(),
            model_type: 1,
            roles: [0, 1, 2, -1],
            changes_characters: false,
            removes_spaces: true,
            prefix: true,
            escapes: true,
            suffix: false,
        };
        if is_tiktoken(bytes) {
            return Err(TIKTOKEN.to_owned());
        }
        let damaged = || "it is no SentencePiece model, or a damaged one; download it again".to_owned();
        Message(bytes)
            .each(|field, value| match (field, value) {
                (1, Field::Bytes(piece)) => model.piece(piece),
                (2, Field::Bytes(spec)) => Message(spec).each(|field, value| {
                    match (field, value) {
                        (3, Field::Int(kind)) => model.model_type = kind,
                        (24, Field::Int(on)) => model.suffix = on != 0,
                        // int32: negative numbers are written as 64 bits.
                        (40..=43, Field::Int(id)) => model.roles[field as usize - 40] = id as i64,
                        _ => {}
                    }
                    Some(())
                }),
                (3, Field::Bytes(spec)) => Message(spec).each(|field, value| {
                    match (field, value) {
                        (2, Field::Bytes(map)) => model.changes_characters = !map.is_empty(),
                        (3, Field::Int(on)) => model.prefix = on != 0,
                        (4, Field::Int(on)) => model.removes_spaces = on != 0,
                        (5, Field::Int(on)) => model.escapes = on != 0,
                        _ => {}
                    }
                    Some(())
                }),
                _ => Some(()),
            })
            .ok_or_else(damaged)?;
        if model.pieces.is_empty() { Err(damaged()) } else { Ok(model) }
    }

    fn piece(&mut self, bytes: &[u8]) -> Option<()> {
        let (mut text, mut score, mut kind) = (String::new(), 0.0, gguf::token_type::NORMAL);
        Message(bytes).each(|field, value| {
            match (field, value) {
                (1, Field::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok()?.to_owned(),
                (2, Field::Float(x)) => score = x,
                (3, Field::Int(n)) => kind = i32::try_from(n).ok()?,
                _ => {}
            }
            Some(())
        })?;
        self.pieces.push(text);
        self.scores.push(score);
        self.types.push(kind);
        Some(())
    }

    /// The vocabulary, if it is one that is read.
    fn check(self) -> std::result::Result<GgufVocabulary, String> {
        let convert = "; convert it once with transformers: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)";
        if self.model_type != BPE {
            return Err(format!("it is not one of byte-pair encoding, which alone is read{convert}"));
        }
        let asks = [
            (self.changes_characters, "normalises characters"),
            (self.removes_spaces, "removes spaces"),
            (!self.escapes, "keeps spaces as they are (escape_whitespaces is false)"),
            (self.suffix, "puts a word's space behind it (treat_whitespace_as_suffix is true)"),
        ];
        if let Some((_, what)) = asks.iter().find(|(asked, _)| *asked) {
            return Err(format!("it {what}, which is not implemented{convert}"));
        }
        // SentencePiece finds such a piece where the text has spaces; an added token would be looked for as it is written.
        let spaced =
            |(piece, kind): &(&String, &i32)| **kind == gguf::token_type::USER_DEFINED && piece.contains('▁');
        if let Some((piece, _)) = self.pieces.iter().zip(&self.types).find(spaced) {
            return Err(format!(
                "its user-defined piece `{piece}` stands for a text with spaces, which is not implemented; expected \
                 user-defined pieces without `▁`. Put the model's tokenizer.json beside it, which says how they are found"
            ));
        }
        let mut seen = HashSet::new();
        if let Some(twice) = self.pieces.iter().find(|piece| !seen.insert(piece.as_str())) {
            return Err(format!("it has the piece `{twice}` twice; download it again"));
        }
        let role = |id: i64| -> std::result::Result<Option<u32>, String> {
            match u32::try_from(id) {
                Ok(id) if (id as usize) < self.pieces.len() => Ok(Some(id)),
                Ok(id) => Err(format!("it names the piece {id} of {}; download it again", self.pieces.len())),
                Err(_) => Ok(None),
            }
        };
        let [unk_id, bos_id, eos_id, pad_id] = self.roles;
        Ok(GgufVocabulary {
            model: "llama".to_owned(),
            unk_id: role(unk_id)?,
            bos_id: role(bos_id)?,
            eos_id: role(eos_id)?,
            pad_id: role(pad_id)?,
            add_space_prefix: Some(self.prefix),
            tokens: self.pieces,
            scores: Some(self.scores),
            token_types: Some(self.types),
            ..GgufVocabulary::default()
        })
    }
}

/// A message of protocol buffers.
struct Message<'a>(&'a [u8]);

enum Field<'a> {
    Int(u64),
    Float(f32),
    Bytes(&'a [u8]),
}

impl<'a> Message<'a> {
    /// Calls `see` with the fields in their order; `None` when the bytes are no message, or `see` says so.
    fn each(mut self, mut see: impl FnMut(u64, Field<'a>) -> Option<()>) -> Option<()> {
        while !self.0.is_empty() {
            let tag = self.varint()?;
            let value = match tag & 7 {
                0 => Field::Int(self.varint()?),
                1 => {
                    self.take(8)?;
                    continue;
                }
                2 => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    Field::Bytes(self.take(length)?)
                }
                5 => Field::Float(f32::from_le_bytes(self.take(4)?.try_into().ok()?)),
                _ => return None,
            };
            see(tag >> 3, value)?;
        }
        Some(())
    }

    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}
