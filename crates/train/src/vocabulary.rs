//! The vocabulary of a run: the tokens that it adds, and rows for them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use loratune_model::EMBEDDING;
use loratune_model::files::{ModelFiles, peft};
use loratune_model::vocabulary::{self, NewRows};
use loratune_tokenizer::{SpecialToken, TokenizerBundle};
use serde::Serialize;

use crate::config::{Finetuning, NewTokens, RunConfig, Value};
use crate::error::{Error, Result};
use crate::located::Located;
use crate::model::TrainedModel;

/// A token that the run added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Added {
    pub id: u32,
    pub token: String,
}

/// What a run does to its vocabulary, for who watches.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Vocabulary {
    /// Tokens that are new to the tokenizer, by id.
    pub added: Vec<Added>,
    /// Rows of embedding and head.
    pub rows: usize,
    /// Their number in the files, where it is another.
    pub resized_from: Option<usize>,
    /// What the tokens' rows start from, where that is not what one would think.
    pub notes: Vec<String>,
    /// The tokenizer is no longer the model's own.
    #[serde(skip)]
    pub(crate) own_tokenizer: bool,
}

/// What a run reads its text with and builds its model from.
pub(crate) struct Opened {
    pub files: ModelFiles,
    pub tokenizer: TokenizerBundle,
    pub vocabulary: Vocabulary,
}

/// The model's files and tokenizer, with the tokens and rows that the configuration asks for.
///
/// # Errors
/// If a file is missing or broken; if a token that is to be added has no row, and no rows may be made.
pub(crate) fn open(config: &RunConfig, located: &Located) -> Result<Opened> {
    let path = located.model_path(config);
    let mut files = match config.train_from_scratch {
        true => ModelFiles::open_without_weights(path)?,
        false => ModelFiles::open(path)?,
    };
    let mut notes = Vec::new();
    if let Some(kind) = config.rope_scaling {
        let length = config.cutoff_len as usize;
        let context = files.config.spec.max_positions;
        match files.stretched(kind.name(), length)? {
            None => notes.push(format!(
                "rope_scaling: cutoff_len {length} fits the model's context, nothing is scaled"
            )),
            Some(stretched) => {
                files = stretched;
                notes.push(stretched_note(config, context, files.config.spec.max_positions));
            }
        }
    }
    let (mut beside, mut adapter_rows) = (None, None);
    if let (Finetuning::Lora, Some(adapter)) = (config.finetuning_type, located.adapter_path(config)) {
        let (saved, tensors) = peft::read_adapter(adapter)?;
        if let Some(fitted) = vocabulary::fitted(&files, &saved, &tensors)? {
            files = fitted;
        }
        adapter_rows = vocabulary::rows_of(&files, &tensors)?;
        beside = vocabulary::tokenizer_beside(adapter)?;
    }
    let own_tokenizer = beside.is_some();
    let mut tokenizer = beside.map_or_else(|| files.tokenizer(), Ok)?;
    let described = match &config.new_special_tokens_config {
        Some(path) => descriptions(Path::new(path))?,
        None => Vec::new(),
    };
    let known = tokenizer.vocab_size();
    let added = add(config, &described, &mut tokenizer)?;
    if config.split_special_tokens {
        tokenizer.split_special_tokens();
    }
    let rows = files.config.spec.vocab_size;
    if tokenizer.vocab_size() > rows {
        if let (false, Some(token)) = (config.resize_vocab, added.iter().find(|t| t.id as usize >= rows)) {
            return Err(no_room(token, &files));
        }
        if let (true, Some(rows)) = (config.resize_vocab, adapter_rows) {
            return Err(Error::Misfit(format!(
                "the adapter in adapter_name_or_path brings an embedding or head of {rows} rows, which cannot be resized for \
                 {} tokens: merge it into the model first, and start a new adapter on that",
                tokenizer.vocab_size()
            )));
        }
        if config.resize_vocab {
            let start = new_rows(config, &described, &tokenizer, known)?;
            files = vocabulary::resized(&files, vocabulary::rows_for(tokenizer.vocab_size()), &start)?;
        }
    } else if config.resize_vocab {
        notes.push(match added.is_empty() {
            true => format!("resize_vocab: every token has one of the {rows} rows already; none are added"),
            false => format!(
                "resize_vocab: the added tokens take free ones of the {rows} rows, and start as these are in the files"
            ),
        });
    }
    let added = added.into_iter().map(|t| Added { id: t.id, token: t.content }).collect::<Vec<_>>();
    let vocabulary = Vocabulary {
        own_tokenizer: own_tokenizer || config.adds_tokens() || config.split_special_tokens,
        added,
        rows: files.config.spec.vocab_size,
        resized_from: files.resized_from,
        notes,
    };
    Ok(Opened { files, tokenizer, vocabulary })
}

fn stretched_note(config: &RunConfig, from: usize, to: usize) -> String {
    let adapter = config.finetuning_type == Finetuning::Lora && !config.merge_adapter;
    let hint = match adapter {
        true => ". The adapter is for the model so scaled, which merge_adapter: true would write",
        false => "",
    };
    format!("rope_scaling: positions are for {to} tokens instead of {from}{hint}")
}

impl RunConfig {
    /// Whether tokens are asked for, new ones or ones that become special.
    fn adds_tokens(&self) -> bool {
        !self.add_tokens.is_empty()
            || !self.add_special_tokens.is_empty()
            || self.new_special_tokens_config.is_some()
    }
}

/// Adds the tokens, ordinary ones first as LLaMA-Factory does; returns the new ones.
fn add(
    config: &RunConfig,
    described: &[(String, String)],
    tokenizer: &mut TokenizerBundle,
) -> Result<Vec<SpecialToken>> {
    let mut added = tokenizer.add_tokens(&config.add_tokens, false)?;
    let names: Vec<String> = described.iter().map(|(token, _)| token.clone()).collect();
    let special = if described.is_empty() { &config.add_special_tokens } else { &names };
    added.extend(tokenizer.add_tokens(special, true)?);
    Ok(added)
}

fn no_room(token: &SpecialToken, files: &ModelFiles) -> Error {
    Error::Misfit(format!(
        "the added token `{}` gets the id {}, but the embedding of {} has {} rows (vocab_size), all of them taken: set \
         resize_vocab: true to give embedding and head more rows",
        token.content,
        token.id,
        files.path.display(),
        files.config.spec.vocab_size
    ))
}

/// A file of tokens and their descriptions, in its order.
fn descriptions(path: &Path) -> Result<Vec<(String, String)>> {
    let wrong = |what: String| Error::Misfit(format!("{}: new_special_tokens_config {what}", path.display()));
    let text = std::fs::read_to_string(path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let is_json = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("json"));
    let value: Value = match is_json {
        true => serde_json::from_str(&text).map_err(|e| wrong(format!("is not valid JSON: {e}")))?,
        false => serde_saphyr::from_str(&text)
            .map_err(|e| wrong(format!("is not valid YAML: {}", e.without_snippet())))?,
    };
    let Value::Map(entries) = value else {
        return Err(wrong("must hold a mapping from tokens to their descriptions".into()));
    };
    if entries.is_empty() {
        return Err(wrong("names no token".into()));
    }
    let described = entries.into_iter().map(|(token, value)| match value {
        Value::Str(text) if !token.is_empty() => Ok((token, text)),
        other => Err(wrong(format!("describes `{token}` by {}; a text is needed", other.kind()))),
    });
    described.collect()
}

/// How new rows start. `known` is the size of the vocabulary before tokens were added: a description's own tokens count
/// where they are older.
fn new_rows(
    config: &RunConfig,
    described: &[(String, String)],
    tokenizer: &TokenizerBundle,
    known: usize,
) -> Result<NewRows> {
    let mut start = NewRows::noisy_mean(config.seed);
    if config.init_special_tokens == NewTokens::Noise {
        return Ok(start);
    }
    start.noise = config.init_special_tokens == NewTokens::NoisyDescription;
    let mut by_id = BTreeMap::new();
    for (token, text) in described {
        let Some(id) = tokenizer.id_of(token) else { continue };
        let ids = tokenizer.encode(text, false)?;
        by_id.insert(id, ids.into_iter().filter(|&id| (id as usize) < known).collect());
    }
    start.described = by_id;
    Ok(start)
}

/// What should be said of added tokens whose rows nobody trains.
pub(crate) fn untrained_note(
    config: &RunConfig,
    vocabulary: &Vocabulary,
    model: &TrainedModel,
) -> Option<String> {
    let names: BTreeSet<&str> = model.params.ids().map(|id| model.params.name(id)).collect();
    let trained = names.iter().any(|name| name.starts_with(EMBEDDING));
    let rows = model.decoder.matrices().find(|m| m.path == EMBEDDING).and_then(|m| m.rows.as_ref());
    let untrained = |token: &Added| !trained || rows.is_some_and(|rows| !rows.ids().contains(&token.id));
    let mut untrained = vocabulary.added.iter().filter(|token| untrained(token));
    let first = untrained.next()?;
    let which = match untrained.count() + 1 {
        all if all == vocabulary.added.len() => "the rows of the added tokens are".to_string(),
        1 => format!("the row of the added token `{}` is", first.token),
        n => format!("the rows of {n} added tokens (`{}` …) are", first.token),
    };
    let remedy = match (config.finetuning_type, &config.adapter_name_or_path) {
        (Finetuning::Lora, None) => {
            "train the embedding and the head too (modules_to_save: [embed_tokens, lm_head]), or rows of them \
             (trainable_token_indices)"
        }
        (Finetuning::Lora, Some(_)) => {
            "the adapter in adapter_name_or_path does not train them; to train them, merge it into the model first, and \
             start a new adapter on that"
        }
        (Finetuning::Freeze, _) => {
            "train the embedding and the head too (freeze_extra_modules: [embed_tokens, lm_head])"
        }
        (Finetuning::Full, _) => "let unfrozen_parameters match the embedding and the head too",
    };
    Some(format!("{which} not trained and stay as in the model: {remedy}"))
}

/// The error of a row with a token that the model has no row for.
pub(crate) fn no_row(place: &str, id: u32, files: &ModelFiles, tokenizer: &TokenizerBundle) -> Error {
    let rows = files.config.spec.vocab_size;
    let token = tokenizer.token(id).filter(|_| tokenizer.vocab_size() > rows);
    Error::Misfit(match token {
        Some(token) => format!(
            "{place}: the token `{token}` has the id {id}, but the model's embedding has {rows} rows (vocab_size) for a \
             tokenizer of {} tokens: set resize_vocab: true to give it more rows, or use the tokenizer that belongs to the \
             model",
            tokenizer.vocab_size()
        ),
        None => format!(
            "{place}: token id {id} is not in the model's vocabulary of {rows} rows (vocab_size): the tokenizer or the \
             tokenised data belongs to another model"
        ),
    })
}
