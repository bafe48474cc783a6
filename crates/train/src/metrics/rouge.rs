//! ROUGE-1, -2 and -L of one pair (Lin, 2004), as rouge_chinese gives them over the words that jieba cuts a text into: n-grams as
//! sets, the longest common subsequence over the whole text.

use std::collections::HashSet;
use std::sync::OnceLock;

use fancy_regex::Regex;
use jieba_rs::Jieba;

/// F1 scores, from 0 to 1.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rouge {
    pub one: f64,
    pub two: f64,
    pub longest: f64,
}

/// What keeps precision + recall above 0.
const EPSILON: f64 = 1e-8;

/// ROUGE of a generated text; all 0 if one of them has no words.
pub fn rouge(predicted: &str, label: &str) -> Rouge {
    let (hypothesis, reference) = (cut(predicted), cut(label));
    let empty = |text: &str| text.split_whitespace().next().is_none();
    if empty(&hypothesis) || empty(&reference) {
        return Rouge::default();
    }
    let (hypothesis, reference) = (words(&hypothesis), words(&reference));
    let grams = |n: usize| {
        let set =
            |words: &[String]| -> HashSet<Vec<String>> { words.windows(n).map(<[String]>::to_vec).collect() };
        let (ours, theirs) = (set(&hypothesis), set(&reference));
        f1(ours.intersection(&theirs).count(), ours.len(), theirs.len())
    };
    let common = common_subsequence(&hypothesis, &reference);
    Rouge { one: grams(1), two: grams(2), longest: f1(common, hypothesis.len(), reference.len()) }
}

fn f1(common: usize, ours: usize, theirs: usize) -> f64 {
    let share = |all: usize| if all == 0 { 0.0 } else { common as f64 / all as f64 };
    let (precision, recall) = (share(ours), share(theirs));
    2.0 * ((precision * recall) / (precision + recall + EPSILON))
}

/// jieba's words with spaces between them.
///
/// jieba cuts blocks of Chinese characters, Latin letters and digits, and takes everything else letter by letter. The crate cuts
/// Chinese as jieba does, but keeps Latin runs whole where jieba goes on: into letters and digits (with a fraction, a percent sign)
/// and what stands between them. (The dictionary's few words of both, as T恤, are cut between them here.)
fn cut(text: &str) -> String {
    static JIEBA: OnceLock<Jieba> = OnceLock::new();
    let jieba = JIEBA.get_or_init(Jieba::new);
    let mut words: Vec<&str> = Vec::new();
    for piece in pieces(text) {
        match piece.chars().next().map(kind) {
            Some(Kind::Chinese) => words.extend(jieba.cut(piece, true).into_iter().map(|t| t.word)),
            Some(Kind::Latin) => latin(piece, &mut words),
            _ => words.push(piece),
        }
    }
    words.join(" ")
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Chinese,
    Latin,
    Other,
}

fn kind(c: char) -> Kind {
    match c {
        '\u{4e00}'..='\u{9fd5}' => Kind::Chinese,
        'a'..='z' | 'A'..='Z' | '0'..='9' | '+' | '#' | '&' | '.' | '_' | '%' | '-' => Kind::Latin,
        _ => Kind::Other,
    }
}

/// Runs of Chinese characters, runs of Latin ones, and all others one by one.
fn pieces(text: &str) -> Vec<&str> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let end = match kind(first) {
            Kind::Other => first.len_utf8(),
            run => rest.find(|c| kind(c) != run).unwrap_or(rest.len()),
        };
        let (piece, after) = rest.split_at(end);
        out.push(piece);
        rest = after;
    }
    out
}

/// Letters and digits with a fraction and a percent sign, and what is between them.
fn latin<'a>(run: &'a str, words: &mut Vec<&'a str>) {
    static WORD: OnceLock<Option<Regex>> = OnceLock::new();
    // The dictionary's Latin words, wherever they stand in a run.
    let word = WORD.get_or_init(|| {
        const KNOWN: &str = r"AT&T|[cC]\+\+|[cC]#";
        Regex::new(&format!(r"{KNOWN}|(?:(?!{KNOWN})[a-zA-Z0-9])+(?:\.[0-9]+)?%?")).ok()
    });
    let mut at = 0;
    for found in word.iter().flat_map(|w| w.find_iter(run)).filter_map(Result::ok) {
        words.extend([&run[at..found.start()], found.as_str()].into_iter().filter(|w| !w.is_empty()));
        at = found.end();
    }
    words.extend(Some(&run[at..]).filter(|w| !w.is_empty()));
}

/// The words of all sentences. A sentence of white space alone counts as one empty word, as it does there.
fn words(text: &str) -> Vec<String> {
    let mut text = text.to_owned();
    for (pattern, replacement) in sentence_ends() {
        text = pattern.replace_all(&text, *replacement).into_owned();
    }
    let sentences = text.trim_end().split('\n').filter(|s| !s.is_empty());
    let joined = sentences.map(|s| s.split_whitespace().collect::<Vec<_>>().join(" "));
    joined.flat_map(|s| s.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect()
}

/// Where rouge_chinese begins a new sentence: behind Chinese full stops and the like, and any question mark.
fn sentence_ends() -> &'static [(Regex, &'static str)] {
    static ENDS: OnceLock<Vec<(Regex, &'static str)>> = OnceLock::new();
    ENDS.get_or_init(|| {
        [
            (r"([。！？?])([^”’])", "$1\n$2"),
            (r"(\.{6})([^”’])", "$1\n$2"),
            (r"(…{2})([^”’])", "$1\n$2"),
            (r"([。！？?][”’])([^，。！？?])", "$1\n$2"),
        ]
        .into_iter()
        .filter_map(|(pattern, replacement)| Some((Regex::new(pattern).ok()?, replacement)))
        .collect()
    })
}

/// Length of the longest common subsequence.
fn common_subsequence(a: &[String], b: &[String]) -> usize {
    let mut row = vec![0usize; b.len() + 1];
    for x in a {
        let mut diagonal = 0;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = if x == y { diagonal + 1 } else { above.max(row[j]) };
            diagonal = above;
        }
    }
    row[b.len()]
}
