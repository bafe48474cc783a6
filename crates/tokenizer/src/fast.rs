//! Byte-level BPE (GPT-2's family: Llama 3, Qwen, SmolLM, Phi 4, …) without the bookkeeping of the tokenizers library.
//!
//! The library keeps, for every byte of a text, where it came from, through every step; for tokenizers whose steps only cut the
//! text apart, the place of a piece is all there is to know. So pieces are cut here, by the library's own regular
//! expressions, and what a piece becomes is asked of the library's model once and remembered: a text is some thousand
//! different words. Tokenizers with any other step, and texts that their normalizer would change, take the library's way.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ahash::AHashMap;
use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::models::ModelWrapper;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::tokenizer::pattern::Pattern;
use tokenizers::utils::SysRegex;
use tokenizers::{Model, SplitDelimiterBehavior, Tokenizer};
use unicode_normalization::{IsNormalized, is_nfc_quick};

use crate::bundle::ByteRange;

/// GPT-2's splitting, which `ByteLevel` does by itself unless told not to (tokenizers' `byte_level.rs`).
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

/// Pieces that a thread remembers, and their bytes at most.
const REMEMBERED: usize = 1 << 16;
const REMEMBERED_BYTES: usize = 64;

/// One way in which a text is cut apart.
#[derive(Debug)]
enum Cut {
    /// At the ends of what matches.
    Regex(SysRegex),
    /// Around digits, each by itself or all that stand together.
    Digits { each: bool },
}

/// Tokens that are found in the text before anything else is done with it.
#[derive(Debug)]
struct Added {
    finder: AhoCorasick,
    /// By pattern.
    ids: Vec<u32>,
}

/// A tokenizer of which only the cuts and the model matter.
#[derive(Debug)]
pub(crate) struct ByteLevelBpe {
    /// Tells the pieces that a thread remembers from another tokenizer's.
    number: u64,
    /// Those that are looked for first, and those that are looked for in what is left.
    added: [Option<Added>; 2],
    cuts: Vec<Cut>,
    wants_nfc: bool,
}

/// Tokens of a piece: their ids and the bytes of it that they cover.
type Pieces = AHashMap<Box<str>, Box<[(u32, u16, u16)]>>;

thread_local! {
    /// Of the tokenizer that this thread used last.
    static PIECES: RefCell<(u64, Pieces)> = RefCell::default();
}

impl ByteLevelBpe {
    /// `None` for a tokenizer that does something else, or more.
    pub fn of(tokenizer: &Tokenizer) -> Option<Arc<ByteLevelBpe>> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let ModelWrapper::BPE(bpe) = tokenizer.get_model() else { return None };
        if bpe.dropout.is_some_and(|p| p > 0.0) || tokenizer.get_encode_special_tokens() {
            return None;
        }
        let wants_nfc = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let mut cuts = Vec::new();
        if !cuts_of(tokenizer.get_pre_tokenizer()?, &mut cuts)? {
            return None;
        }
        Some(Arc::new(ByteLevelBpe {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            added: added_of(tokenizer, wants_nfc)?,
            cuts,
            wants_nfc,
        }))
    }

    /// Ids, and the bytes of the text that each covers; tokens that share a character all carry its range. `None` for a text that
    /// the normalizer might change.
    ///
    /// # Errors
    /// The library's.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        text: &str,
    ) -> Option<tokenizers::Result<(Vec<u32>, Vec<ByteRange>)>> {
        if self.wants_nfc && !text.is_ascii() && is_nfc_quick(text.chars()) != IsNormalized::Yes {
            return None;
        }
        Some(PIECES.with(|pieces| {
            let (number, pieces) = &mut *pieces.borrow_mut();
            if *number != self.number {
                *number = self.number;
                pieces.clear();
            }
            let capacity = text.len() / 3;
            let mut out = Out {
                tokenizer,
                pieces,
                ids: Vec::with_capacity(capacity),
                offsets: Vec::with_capacity(capacity),
            };
            self.between(0, text, 0, &mut out)?;
            Ok((out.ids, out.offsets))
        }))
    }

    /// Finds added tokens of a kind, and goes on with what stands between them. `at` is where `text` begins.
    fn between(&self, kind: usize, text: &str, at: usize, out: &mut Out<'_>) -> tokenizers::Result<()> {
        let Some(added) = self.added.get(kind) else { return self.cut(&self.cuts, text, at, out) };
        let mut from = 0;
        if let Some(added) = added {
            for found in added.finder.find_iter(text) {
                if found.start() > from {
                    self.between(kind + 1, &text[from..found.start()], at + from, out)?;
                }
                out.push(added.ids[found.pattern().as_usize()], at + found.start(), at + found.end());
                from = found.end();
            }
        }
        if from < text.len() {
            self.between(kind + 1, &text[from..], at + from, out)?;
        }
        Ok(())
    }

    fn cut(&self, cuts: &[Cut], text: &str, at: usize, out: &mut Out<'_>) -> tokenizers::Result<()> {
        let Some((cut, rest)) = cuts.split_first() else { return out.piece(text, at) };
        let mut from = 0;
        let mut piece = |start: usize, end: usize| match start < end {
            true => self.cut(rest, &text[start..end], at + start, out),
            false => Ok(()),
        };
        match cut {
            Cut::Regex(regex) => {
                for (start, end) in regex.find_iter(text) {
                    piece(from, start)?;
                    piece(start, end)?;
                    from = end;
                }
            }
            Cut::Digits { each } => {
                for ((start, end), is_digit) in char::is_numeric.find_matches(text)? {
                    if is_digit && !each {
                        continue;
                    }
                    piece(from, start)?;
                    piece(start, end)?;
                    from = end;
                }
            }
        }
        piece(from, text.len())
    }
}

/// What is done to a text before the model, if it is nothing but cuts and the spelling of bytes. False until bytes are spelt.
fn cuts_of(pre_tokenizer: &PreTokenizerWrapper, cuts: &mut Vec<Cut>) -> Option<bool> {
    match pre_tokenizer {
        PreTokenizerWrapper::Sequence(steps) => {
            let mut spelt = false;
            for step in steps.as_ref() {
                if spelt {
                    return None;
                }
                spelt = cuts_of(step, cuts)?;
            }
            Some(spelt)
        }
        PreTokenizerWrapper::Split(split) => {
            if split.behavior != SplitDelimiterBehavior::Isolated || split.invert {
                return None;
            }
            let SplitPattern::Regex(regex) = &split.pattern else { return None };
            cuts.push(Cut::Regex(SysRegex::new(regex).ok()?));
            Some(false)
        }
        PreTokenizerWrapper::Digits(digits) => {
            cuts.push(Cut::Digits { each: digits.individual_digits });
            Some(false)
        }
        PreTokenizerWrapper::ByteLevel(bytes) if !bytes.add_prefix_space => {
            if bytes.use_regex {
                cuts.push(Cut::Regex(SysRegex::new(GPT2).ok()?));
            }
            Some(true)
        }
        _ => None,
    }
}

/// The added tokens, if they are found as they are written and take no spaces along.
fn added_of(tokenizer: &Tokenizer, wants_nfc: bool) -> Option<[Option<Added>; 2]> {
    let mut kinds: [Vec<(&str, u32)>; 2] = Default::default();
    for (&id, token) in tokenizer.get_added_vocabulary().get_added_tokens_decoder() {
        let changed = token.normalized && wants_nfc && !token.content.is_ascii();
        if token.single_word || token.lstrip || token.rstrip || changed {
            return None;
        }
        kinds[usize::from(token.normalized)].push((&token.content, id));
    }
    let [first, second] = kinds.map(|tokens| match tokens.as_slice() {
        [] => Some(None),
        tokens => {
            let finder = AhoCorasick::builder()
                .match_kind(MatchKind::LeftmostLongest)
                .build(tokens.iter().map(|(content, _)| content))
                .ok()?;
            Some(Some(Added { finder, ids: tokens.iter().map(|(_, id)| *id).collect() }))
        }
    });
    Some([first?, second?])
}

/// A text's tokens so far.
struct Out<'a> {
    tokenizer: &'a Tokenizer,
    pieces: &'a mut Pieces,
    ids: Vec<u32>,
    offsets: Vec<ByteRange>,
}

impl Out<'_> {
    fn push(&mut self, id: u32, start: usize, end: usize) {
        self.ids.push(id);
        self.offsets.push((start, end));
    }

    /// A piece that is cut no further.
    fn piece(&mut self, text: &str, at: usize) -> tokenizers::Result<()> {
        if text.len() > REMEMBERED_BYTES {
            tokens_of(self.tokenizer, text)?.for_each(|(id, start, end)| self.push(id, at + start, at + end));
            return Ok(());
        }
        if !self.pieces.contains_key(text) {
            let tokens = tokens_of(self.tokenizer, text)?;
            let tokens = tokens.map(|(id, start, end)| (id, start as u16, end as u16)).collect();
            if self.pieces.len() >= REMEMBERED {
                self.pieces.clear();
            }
            self.pieces.insert(text.into(), tokens);
        }
        for &(id, start, end) in self.pieces.get(text).into_iter().flatten() {
            self.ids.push(id);
            self.offsets.push((at + usize::from(start), at + usize::from(end)));
        }
        Ok(())
    }
}

/// A piece's tokens: ids and bytes, the latter widened to whole characters.
fn tokens_of<'t>(
    tokenizer: &Tokenizer,
    text: &'t str,
) -> tokenizers::Result<impl Iterator<Item = (u32, usize, usize)> + 't> {
    let mut spelt = String::with_capacity(text.len() * 2);
    // By place in what the model reads: the byte of the text that is spelt there.
    let mut byte_at = Vec::with_capacity(text.len() * 2 + 1);
    for (place, byte) in text.bytes().enumerate() {
        let spelling = spelling(byte);
        byte_at.extend(std::iter::repeat_n(place, spelling.len_utf8()));
        spelt.push(spelling);
    }
    byte_at.push(text.len());
    let tokens = tokenizer.get_model().tokenize(&spelt)?;
    Ok(tokens.into_iter().map(move |token| {
        let (mut start, mut end) = (byte_at[token.offsets.0], byte_at[token.offsets.1]);
        while !text.is_char_boundary(start) {
            start -= 1;
        }
        while !text.is_char_boundary(end) {
            end += 1;
        }
        (token.id, start, end)
    }))
}

/// How byte-level tokenizers spell a byte: printable ones as the character of that number, the others as the characters from
/// 256 on, in order (GPT-2's `bytes_to_unicode`).
fn spelling(byte: u8) -> char {
    let code = match byte {
        b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
        0..=0x20 => 256 + u32::from(byte),
        0x7f..=0xa0 => 256 + 33 + u32::from(byte - 0x7f),
        0xad => 256 + 33 + 34,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use serde_json::{Value, json};

    use super::*;
    use crate::TokenizerBundle;

    /// Texts of words, digits, spaces, marks, combining characters and tokens, in no order.
    fn texts(tokens: &[&str]) -> Vec<String> {
        const PARTS: [&str; 24] = [
            "the",
            " shop",
            "Ab",
            "'ll",
            " 12",
            "345",
            "٣",
            "½",
            "  ",
            "\n",
            "\n\n ",
            "\t",
            "é",
            "e\u{301}",
            "日本",
            "語",
            "👩‍🚀",
            "ß",
            ".",
            "!!",
            " —",
            "\u{a0}",
            "ﬁ",
            "x",
        ];
        let mut state = 7u64;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % n
        };
        let parts: Vec<&str> = PARTS.iter().chain(tokens).copied().collect();
        let mut texts: Vec<String> =
            (0..400).map(|i| (0..i % 40).map(|_| parts[draw(parts.len())]).collect()).collect();
        texts.push("a".repeat(REMEMBERED_BYTES + 40) + "é");
        texts
    }

    /// How many texts went the short way; all must have the library's ids and places.
    fn compare(bundle: &TokenizerBundle, tokens: &[&str]) -> usize {
        let fast = ByteLevelBpe::of(&bundle.tokenizer).expect("the tokenizer only cuts");
        let mut short = 0;
        for text in texts(tokens) {
            let by_library = bundle.encode_by_library(&text).unwrap();
            // Twice: the second time from what is remembered.
            for _ in 0..2 {
                if let Some(encoded) = fast.encode(&bundle.tokenizer, &text) {
                    assert_eq!(encoded.unwrap(), by_library, "{text:?}");
                    short += 1;
                }
            }
            assert_eq!(bundle.encode_with_offsets(&text).unwrap(), by_library);
        }
        short / 2
    }

    fn golden() -> Value {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/folder/tokenizer.json");
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    fn bundle(tokenizer: &Value) -> TokenizerBundle {
        TokenizerBundle::from_parts(&tokenizer.to_string(), Value::Null).unwrap()
    }

    #[test]
    fn ids_and_places_are_the_librarys_under_every_kind_of_cut() {
        let bytes = |regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": regex});
        let split = json!({"type": "Split", "behavior": "Isolated", "invert": false, "pattern": {"Regex":
            "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}});
        let digits = |each: bool| json!({"type": "Digits", "individual_digits": each});
        let sequence = |steps: Vec<Value>| json!({"type": "Sequence", "pretokenizers": steps});
        let ways = [
            bytes(true),
            bytes(false),
            sequence(vec![split.clone(), bytes(false)]),
            sequence(vec![digits(true), bytes(true)]),
            sequence(vec![digits(false), split, bytes(false)]),
        ];
        let tokens = ["<|im_start|>", "<|im_end|>", "shop", "<|im_start|>user"];
        for way in ways {
            for normalizer in [Value::Null, json!({"type": "NFC"})] {
                let mut tokenizer = golden();
                tokenizer["pre_tokenizer"] = way.clone();
                tokenizer["normalizer"] = normalizer.clone();
                let mut bundle = bundle(&tokenizer);
                bundle.add_tokens(&["shop".into(), "<|im_start|>user".into()], false).unwrap();
                let (short, all) = (compare(&bundle, &tokens), texts(&tokens).len());
                // With NFC, texts that hold a combining accent go the long way.
                assert!(
                    if normalizer.is_null() { short == all } else { short > all / 3 },
                    "{short} of {all}"
                );
            }
        }
    }

    #[test]
    fn tokenizers_that_do_more_than_cut_take_the_librarys_way() {
        let has = |change: &dyn Fn(&mut Value)| {
            let mut tokenizer = golden();
            change(&mut tokenizer);
            ByteLevelBpe::of(&bundle(&tokenizer).tokenizer).is_some()
        };
        assert!(has(&|_| ()));
        assert!(!has(&|t| t["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = json!(true)));
        assert!(!has(&|t| t["normalizer"] = json!({"type": "Lowercase"})));
        assert!(!has(&|t| t["pre_tokenizer"] =
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true})));
        assert!(!has(&|t| t["added_tokens"][0]["rstrip"] = json!(true)));
        assert!(!has(&|t| t["added_tokens"][0]["single_word"] = json!(true)));
    }

    #[test]
    fn ids_and_places_of_shipped_tokenizers_are_the_librarys() {
        let Some(families) = std::env::var_os("LORATUNE_FAMILIES").map(PathBuf::from) else {
            eprintln!("SKIPPED: LORATUNE_FAMILIES is not set (see goldens/templates.py)");
            return;
        };
        let mut compared = 0;
        for entry in std::fs::read_dir(families.join("tokenizers")).unwrap().flatten() {
            let bundle = TokenizerBundle::from_folder(&entry.path()).unwrap();
            if ByteLevelBpe::of(&bundle.tokenizer).is_some() {
                let specials = bundle.tokenizer.get_added_tokens_decoder();
                let tokens: Vec<&str> = specials.values().take(8).map(|t| t.content.as_str()).collect();
                compare(&bundle, &tokens);
                compared += 1;
            }
        }
        assert!(compared >= 3, "Llama 3, 3.1 and Qwen 3 are byte-level: {compared}");
    }
}
