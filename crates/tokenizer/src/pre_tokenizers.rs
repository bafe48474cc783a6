//! How a GGUF file's `tokenizer.ggml.pre` splits text before BPE.
//!
//! The names are llama.cpp's (`src/llama-vocab.cpp`); the patterns are those of the models' own tokenizer.json files.
//! Where the two disagree, what llama.cpp does with the name wins, since the file was made for it.

use serde_json::{Value, json};

/// How a byte-level pre-tokenizer splits by itself.
pub(crate) const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN35: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
const CJK_KANA: &str = r"[一-龥぀-ゟ゠-ヿ]+";
const CJK_HANGUL: &str = r"[一-龥ࠀ-一가-퟿]+";
const WORDS: &str = r" ?[^(\s|.,!?…。，、।۔،)]+";

/// A way of splitting: patterns applied one after the other, each isolating its matches within the pieces so far.
pub(crate) struct Splitting {
    names: &'static [&'static str],
    patterns: &'static [&'static str],
    /// A piece that is in the vocabulary as a whole is not merged up from bytes.
    pub ignore_merges: bool,
    /// Encoding adds BOS when the file doesn't say.
    pub add_bos: bool,
}

const fn splitting(names: &'static [&'static str], patterns: &'static [&'static str]) -> Splitting {
    Splitting { names, patterns, ignore_merges: false, add_bos: false }
}

const fn whole_words(names: &'static [&'static str], patterns: &'static [&'static str]) -> Splitting {
    Splitting { names, patterns, ignore_merges: true, add_bos: true }
}

/// To support a further name: one line here.
static SPLITTINGS: &[Splitting] = &[
    splitting(
        &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"],
        &[r"\p{N}", GPT2],
    ),
    splitting(
        &["gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling", "gigachat", "exaone4"],
        &[GPT2],
    ),
    splitting(&["a.x-4.0", "mellum", "modern-bert", "jina-v2-code"], &[GPT2]),
    whole_words(
        &["llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"],
        &[LLAMA3],
    ),
    splitting(&["dbrx", "smaug-bpe", "glm4", "chatglm-bpe"], &[LLAMA3]),
    splitting(
        &[
            "qwen2",
            "stablelm2",
            "deepseek-r1-qwen",
            "kormo",
            "f2llmv2",
            "megrez",
            "hunyuan",
            "solar-open",
            "grok-2",
        ],
        &[QWEN2],
    ),
    splitting(&["qwen35"], &[QWEN35]),
    whole_words(&["tekken"], &[TEKKEN]),
    splitting(&["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], &[GPT4O]),
    splitting(&["deepseek-v3", "hunyuan-dense", "joyai-llm"], &[r"\p{N}{1,3}", CJK_KANA, DEEPSEEK3]),
    splitting(&["deepseek-coder"], &[r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK_HANGUL, r"\p{N}"]),
    splitting(&["falcon"], &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"]),
    splitting(&["poro-chat", "bloom", "gpt3-finnish"], &[WORDS]),
    splitting(&["viking"], &[WORDS, r"\p{N}"]),
    splitting(&["default"], &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"]),
];

/// The splitting that goes with a name.
pub(crate) fn find(name: &str) -> Option<&'static Splitting> {
    SPLITTINGS.iter().find(|s| s.names.contains(&name))
}

/// The first name of a splitting by these patterns.
pub(crate) fn named(patterns: &[String], ignore_merges: bool) -> Option<&'static str> {
    let found = SPLITTINGS.iter().find(|s| s.patterns == patterns && s.ignore_merges == ignore_merges);
    found.and_then(|s| s.names.first().copied())
}

/// The names that [`crate::GgufVocabulary::pre`] may have.
pub fn supported_pre_tokenizers() -> Vec<&'static str> {
    let mut names: Vec<_> = SPLITTINGS.iter().flat_map(|s| s.names.iter().copied()).collect();
    names.sort_unstable();
    names
}

impl Splitting {
    /// As tokenizer.json has it.
    pub fn to_json(&self) -> Value {
        let mut steps: Vec<Value> = self
            .patterns
            .iter()
            .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}))
            .collect();
        steps.push(
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}),
        );
        json!({"type": "Sequence", "pretokenizers": steps})
    }
}
