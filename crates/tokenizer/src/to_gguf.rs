//! A tokenizer as GGUF metadata, as llama.cpp's converter writes it: the way back from [`crate::gguf`].

use std::collections::{BTreeMap, HashMap};

use serde_json::Value;

use crate::gguf::token_type;
use crate::{GgufVocabulary, Result, TokenizerBundle, TokenizerError, fingerprint, pre_tokenizers};

/// The converter's score of added tokens, and of rows without a token.
const ADDED: f32 = -1000.0;
const NO_TOKEN: f32 = -10_000.0;

/// The marks of tokens that some models forgot to call special; the converter's list.
const LOOKS_SPECIAL: [&str; 4] = ["<pad>", "<mask>", "<2mass>", "[@BOS@]"];
const BRACKETS: [(&str, &str); 3] = [("<|", "|>"), ("<｜", "｜>"), ("<unused", ">")];

impl TokenizerBundle {
    /// What a GGUF file of a model with `rows` rows in its embedding says of this tokenizer. Rows without a token are called
    /// `[PAD<id>]`. [`TokenizerBundle::from_gguf`] is the way back.
    ///
    /// A SentencePiece vocabulary's scores are the ranks of its merges, which is what its own scores are.
    ///
    /// # Errors
    /// When llama.cpp knows no tokenizer of this kind, or there are more tokens than rows.
    pub fn to_gguf(&self, rows: usize) -> Result<GgufVocabulary> {
        if self.vocab_size() > rows {
            let detail = format!("has {} tokens for a model with {rows} rows", self.vocab_size());
            return Err(unknown(&detail));
        }
        let json = serde_json::to_value(&self.tokenizer)
            .map_err(|e| TokenizerError::Run { action: "serialise the tokenizer", detail: e.to_string() })?;
        let model = &json["model"];
        if model["type"] != "BPE" {
            return Err(unknown(&format!("is of the type {}, not BPE", model["type"])));
        }
        let merges = merges(model)?;
        let id = |token: &Option<crate::SpecialToken>| token.as_ref().map(|t| t.id);
        let mut out = GgufVocabulary {
            bos_id: id(&self.bos),
            eos_id: id(&self.eos),
            pad_id: id(&self.pad),
            unk_id: id(&self.unk),
            add_bos: Some(self.add_bos),
            add_eos: Some(self.add_eos),
            chat_template: self.chat_template.clone(),
            ..GgufVocabulary::default()
        };
        let sentencepiece = match prefix_of_pieces(&json) {
            Some(prefix) => {
                out.add_space_prefix = Some(prefix);
                true
            }
            None => false,
        };
        let (tokens, types) = self.listed(model, rows, sentencepiece);
        if sentencepiece {
            out.model = "llama".into();
            out.pre = Some("default".into());
            out.scores = Some(scores(&tokens, &types, &merges));
        } else {
            out.model = "gpt2".into();
            out.pre = Some(self.pre_tokenizer(&json)?);
            let joined = merges.iter().map(|(a, b)| format!("{} {}", spaced(a), spaced(b)));
            out.merges = Some(joined.collect());
        }
        (out.tokens, out.token_types) = (tokens, Some(types));
        Ok(out)
    }

    /// Every row's token and its kind.
    fn listed(&self, model: &Value, rows: usize, sentencepiece: bool) -> (Vec<String>, Vec<i32>) {
        let unk = model["unk_token"].as_str();
        let bytes = sentencepiece && model["byte_fallback"] == true;
        let added: HashMap<u32, (String, bool)> = self
            .tokenizer
            .get_added_tokens_decoder()
            .into_iter()
            .map(|(id, token)| (id, (token.content, token.special)))
            .collect();
        let row = |id: u32| match (added.get(&id), self.token(id)) {
            (Some((content, special)), _) if *special || looks_special(content) => {
                (content.clone(), token_type::CONTROL)
            }
            // llama.cpp finds these in the plain text, where spaces are spaces.
            (Some((content, _)), _) => (content.replace('▁', " "), token_type::USER_DEFINED),
            (None, Some(token)) if sentencepiece && unk == Some(&token) => (token, token_type::UNKNOWN),
            (None, Some(token)) if bytes && is_byte(&token) => (token, token_type::BYTE),
            (None, Some(token)) => (token, token_type::NORMAL),
            (None, None) => (format!("[PAD{id}]"), token_type::UNUSED),
        };
        (0u32..).take(rows).map(row).unzip()
    }

    /// llama.cpp's name of the pre-tokenizer: by its converter's digests, or by how tokenizer.json splits.
    fn pre_tokenizer(&self, json: &Value) -> Result<String> {
        if let Some(name) = fingerprint::known(self)? {
            return Ok(name.to_owned());
        }
        let ignore_merges = json["model"]["ignore_merges"] == true;
        let splits = splits(&json["pre_tokenizer"]);
        let found = splits.as_deref().and_then(|s| pre_tokenizers::named(s, ignore_merges));
        found.map(str::to_owned).ok_or_else(|| match splits {
            Some(splits) => unknown(&format!("splits text in a way that has no name there ({splits:?})")),
            None => unknown(&format!("splits text by {}", json["pre_tokenizer"])),
        })
    }
}

fn unknown(detail: &str) -> TokenizerError {
    TokenizerError::NoGgufForm(detail.to_owned())
}

fn looks_special(token: &str) -> bool {
    let bracketed = |(open, close): &(&str, &str)| token.starts_with(open) && token.ends_with(close);
    LOOKS_SPECIAL.contains(&token) || BRACKETS.iter().any(bracketed)
}

/// `<0x0A>` and the like.
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && h.chars().all(|c| c.is_ascii_hexdigit()))
}

/// The separator of a merge's two pieces must not occur in them.
fn spaced(piece: &str) -> String {
    piece.replace(' ', "Ġ")
}

fn merges(model: &Value) -> Result<Vec<(String, String)>> {
    let wrong = || unknown("has a list of merges that is not one of pairs");
    let list = model["merges"].as_array().ok_or_else(wrong)?;
    let pair = |merge: &Value| match merge {
        Value::String(text) => text.split_once(' ').map(|(a, b)| (a.to_owned(), b.to_owned())),
        Value::Array(two) => Some((two.first()?.as_str()?.to_owned(), two.get(1)?.as_str()?.to_owned())),
        _ => None,
    };
    list.iter().map(|merge| pair(merge).ok_or_else(wrong)).collect()
}

/// Whether SentencePiece's ▁ is put in front of a text; `None` if spaces do not become ▁ at all.
fn prefix_of_pieces(json: &Value) -> Option<bool> {
    let steps = flat(&json["normalizer"], "normalizers").into_iter();
    let (mut replaces, mut prepends) = (false, false);
    for step in steps {
        match step["type"].as_str() {
            Some("Replace") if step["pattern"]["String"] == " " && step["content"] == "▁" => {
                replaces = true
            }
            Some("Prepend") if step["prepend"] == "▁" => prepends = true,
            _ => {}
        }
    }
    for step in flat(&json["pre_tokenizer"], "pretokenizers") {
        if step["type"] == "Metaspace" {
            (replaces, prepends) = (true, step["prepend_scheme"] != "never");
        }
    }
    replaces.then_some(prepends)
}

/// A step, or the steps of a sequence.
fn flat<'a>(step: &'a Value, list: &str) -> Vec<&'a Value> {
    match step["type"].as_str() {
        Some("Sequence") => step[list].as_array().into_iter().flatten().flat_map(|s| flat(s, list)).collect(),
        Some(_) => vec![step],
        None => Vec::new(),
    }
}

/// The patterns that a byte-level pre-tokenizer splits by, in order; `None` where it is of another kind.
fn splits(pre_tokenizer: &Value) -> Option<Vec<String>> {
    let (mut patterns, mut byte_level) = (Vec::new(), false);
    for step in flat(pre_tokenizer, "pretokenizers") {
        match step["type"].as_str()? {
            "ByteLevel" => {
                byte_level = true;
                match (step["add_prefix_space"] == true, step["use_regex"] == true) {
                    (true, _) => return None,
                    (false, true) => patterns.push(pre_tokenizers::GPT2.to_owned()),
                    (false, false) => {}
                }
            }
            "Split" => match (&step["pattern"], step["behavior"].as_str()?, step["invert"] == true) {
                (pattern, "Isolated", false) | (pattern, "Removed", true) => {
                    patterns.push(pattern["Regex"].as_str()?.to_owned());
                }
                _ => return None,
            },
            "Digits" if step["individual_digits"] == true => patterns.push(r"\p{N}".into()),
            "Digits" => patterns.push(r"\p{N}+".into()),
            _ => return None,
        }
    }
    byte_level.then_some(patterns)
}

/// Ranks: what is merged first has the best score, then come the pieces that no merge makes.
fn scores(tokens: &[String], types: &[i32], merges: &[(String, String)]) -> Vec<f32> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().map(|(id, t)| (t.as_str(), id)).collect();
    let mut ranks: BTreeMap<usize, usize> = BTreeMap::new();
    for (left, right) in merges {
        if let Some(&id) = ids.get(format!("{left}{right}").as_str()) {
            let next = ranks.len();
            ranks.entry(id).or_insert(next);
        }
    }
    let mut next = ranks.len();
    let score = |(id, kind): (usize, &i32)| match *kind {
        token_type::NORMAL => {
            let rank = ranks.get(&id).copied().unwrap_or_else(|| {
                next += 1;
                next - 1
            });
            -(rank as f32)
        }
        token_type::UNUSED => NO_TOKEN,
        token_type::BYTE | token_type::UNKNOWN => 0.0,
        _ => ADDED,
    };
    types.iter().enumerate().map(score).collect()
}
