//! Rows of embedding and head that are trained by themselves: PEFT's `trainable_token_indices`
//! (`peft/utils/other.py` `set_additional_trainable_modules`, `peft/tuners/trainable_tokens`, 0.21).

use std::collections::BTreeSet;
use std::sync::Arc;

use loratune_engine::ops::{self, TableAdapter, TrainedRows};
use loratune_engine::{DType, Mode, Params, Tape, Tensor, Weight};

use super::AdapterSpec;
use super::plan::Site;
use crate::decoder::{Decoder, Matrix};
use crate::error::{Error, Result};
use crate::files::peft::TokenIndices;
use crate::spec::{DecoderSpec, EMBEDDING, HEAD, MatrixKind};

/// The name of a module's trained rows after its path: PEFT's.
pub(crate) const ROWS: &str = "token_adapter.trainable_tokens_delta";

const KEY: &str = "trainable_token_indices";

/// Which rows are trained where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TokenRows {
    pub embedding: Option<Vec<u32>>,
    pub head: Option<Vec<u32>>,
    /// Embedding and head are one table, and their rows the same parameter.
    pub shared: bool,
}

impl TokenRows {
    fn of(&self, path: &str) -> bool {
        let rows = if path == EMBEDDING { &self.embedding } else { &self.head };
        [EMBEDDING, HEAD].contains(&path) && rows.is_some()
    }
}

impl AdapterSpec {
    /// The rows that are trained by themselves. A list is of the embedding; a head that is tied to it then has the same rows
    /// (PEFT's rule: unless embedding and head are given different lists).
    ///
    /// # Errors
    /// If an id is no token, stands twice, or there are none; if a module is no table of tokens, or is adapted or trained
    /// whole as well.
    pub(crate) fn token_rows(&self, model: &DecoderSpec) -> Result<TokenRows> {
        let Some(indices) = &self.token_indices else { return Ok(TokenRows::default()) };
        let mut rows = TokenRows::default();
        match indices {
            TokenIndices::OfEmbedding(ids) => rows.embedding = Some(checked(ids, "", model)?),
            TokenIndices::ByModule(modules) => {
                for (name, ids) in modules {
                    let table = [EMBEDDING, HEAD].into_iter().find(|t| !name.is_empty() && t.ends_with(name));
                    let place = match table {
                        Some(EMBEDDING) => &mut rows.embedding,
                        Some(_) => &mut rows.head,
                        None => return Err(unknown(name)),
                    };
                    if place.replace(checked(ids, &format!(" of {name}"), model)?).is_some() {
                        return Err(Error::Invalid(format!(
                            "{KEY} names one module twice, the last time as '{name}'; keep one"
                        )));
                    }
                }
                if modules.is_empty() {
                    return Err(Error::Invalid(format!("{KEY} names no module: leave it out")));
                }
            }
        }
        if model.tied_head && rows.embedding.is_some() {
            rows.shared = rows.head.is_none() || rows.head == rows.embedding;
            if rows.shared {
                rows.head = rows.embedding.clone();
            } else if self.ensure_weight_tying {
                return Err(Error::Invalid(format!(
                    "ensure_weight_tying: embedding and head share one table in this model, but {KEY} gives them different \
                     ids (the order counts)"
                )));
            }
        }
        self.check_tables(&rows, model)?;
        Ok(rows)
    }

    /// # Errors
    /// If a table whose rows are trained is trained whole too.
    fn check_tables(&self, rows: &TokenRows, model: &DecoderSpec) -> Result<()> {
        let saved: BTreeSet<String> = self.saved_tensors(model)?;
        let both =
            [EMBEDDING, HEAD].into_iter().find(|t| rows.of(t) && saved.contains(&format!("{t}.weight")));
        match both {
            None => Ok(()),
            Some(table) => Err(Error::Invalid(format!(
                "{table} is trained whole (modules_to_save), and rows of it by themselves ({KEY}{}); keep one",
                through_the_tie(table, rows)
            ))),
        }
    }

    /// # Errors
    /// If a table whose rows are trained is adapted too. A head may have LoRA on the rows that it has from the embedding, as in
    /// PEFT, whose LoRA is put on first.
    pub(super) fn check_rows(&self, sites: &[Site], model: &DecoderSpec) -> Result<()> {
        let rows = self.token_rows(model)?;
        let Some(site) = sites.iter().find(|s| rows.of(&s.matrix.path)) else { return Ok(()) };
        let path = &site.matrix.path;
        if !(rows.shared && site.matrix.kind == MatrixKind::Head) {
            return Err(Error::Invalid(format!(
                "{path} is adapted (target_modules), and rows of it are trained by themselves ({KEY}); keep one"
            )));
        }
        let why = match (self.use_dora, self.init.changes_base()) {
            (true, _) => "DoRA needs the lengths of its rows, which are trained by themselves",
            (_, true) => "its start takes something out of rows that are trained by themselves",
            _ => return Ok(()),
        };
        Err(Error::Invalid(format!(
            "{path} is adapted (target_modules), but {why} ({KEY}{}); keep one",
            through_the_tie(path, &rows)
        )))
    }
}

fn through_the_tie(table: &str, rows: &TokenRows) -> &'static str {
    if table == HEAD && rows.shared { ", through the embedding that it shares its table with" } else { "" }
}

fn unknown(name: &str) -> Error {
    let near = super::target::nearest(name, ["embed_tokens", "lm_head"]);
    Error::Invalid(format!(
        "{KEY}: '{name}' is no table of tokens{near} Rows can be trained of embed_tokens and lm_head"
    ))
}

/// Ids as a table's rows.
fn checked(ids: &[i64], of: &str, model: &DecoderSpec) -> Result<Vec<u32>> {
    let wrong = |what: String| Err(Error::Invalid(format!("{KEY}{of} {what}")));
    if ids.is_empty() {
        return wrong("names no token: leave it out".into());
    }
    let mut seen = BTreeSet::new();
    let mut rows = Vec::with_capacity(ids.len());
    for &id in ids {
        let row = u32::try_from(id).ok().filter(|&row| (row as usize) < model.vocab_size);
        let Some(row) = row else {
            return wrong(format!(
                "holds {id}; the model's tokens are from 0 to {}",
                model.vocab_size.saturating_sub(1)
            ));
        };
        if !seen.insert(row) {
            return wrong(format!("holds the token {id} twice"));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Makes the rows of a decoder's tables parameters, which start as they are in the tables.
pub(super) fn put(decoder: &mut Decoder, params: &mut Params, rows: &TokenRows) -> Result<()> {
    let compute = decoder.dtype().compute();
    let mut shared = None;
    for matrix in decoder.matrices_mut().filter(|m| rows.of(&m.path)) {
        let ids = if matrix.kind == MatrixKind::Embedding { &rows.embedding } else { &rows.head };
        matrix.rows = match (&shared, ids) {
            (Some(embedding), _) if rows.shared => Some(TrainedRows::clone(embedding)),
            (_, Some(ids)) => {
                let ids: Arc<[u32]> = ids.as_slice().into();
                let start = rows_of(&matrix.weight, params, &ids, compute)?;
                let param = params.add(format!("{}.{ROWS}", matrix.path), start)?;
                Some(TrainedRows::new(ids, param)?)
            }
            (_, None) => None,
        };
        shared = shared.or_else(|| matrix.rows.clone());
    }
    Ok(())
}

/// Some rows of a table, in whatever form it is stored.
fn rows_of(table: &Weight, params: &Params, ids: &Arc<[u32]>, dtype: DType) -> Result<Tensor> {
    let mut tape = Tape::new(params, Mode::Infer);
    let rows = ops::embedding(&mut tape, ids, table, TableAdapter::default(), 1.0, None, dtype)?;
    Ok(rows.value().clone())
}

/// Puts a matrix's trained rows in the place of those of its weight `[vocabulary, hidden]`, which is f32.
pub(super) fn put_into(weight: &mut Tensor, matrix: &Matrix, params: &Params) -> Result<()> {
    let Some(rows) = &matrix.rows else { return Ok(()) };
    let (cols, values) = (weight.cols(), params.value(rows.param()).to_dtype(DType::F32));
    let data = weight.slice_mut::<f32>()?;
    for (&id, row) in rows.ids().iter().zip(values.slice::<f32>()?.chunks_exact(cols.max(1))) {
        if let Some(to) = data.get_mut(id as usize * cols..).and_then(|to| to.get_mut(..cols)) {
            to.copy_from_slice(row);
        }
    }
    Ok(())
}
