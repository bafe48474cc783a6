//! Vocabularies that are not the files': rows of embedding and head for added tokens, and the rows that an adapter was
//! made with.
//!
//! A model whose files are [`resized`](ModelFiles::resized) is in every other respect a model like any: it is built, adapted,
//! trained, merged and written with the vocabulary that it has now.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use loratune_engine::Params;
use loratune_engine::rng::Key;
use loratune_tokenizer::TokenizerBundle;
use rayon::prelude::*;

use crate::adapter::{Attached, PREFIX, stored_name};
use crate::error::{Error, Result};
use crate::files::peft::{AdapterConfig, TokenIndices};
use crate::files::{FileDType, ModelFiles, RawTensor, Result as FileResult, TensorInfo, TensorSource};
use crate::load;
use crate::spec::{EMBEDDING, HEAD};

/// LLaMA-Factory makes the number of rows a multiple of this.
const MULTIPLE: usize = 64;

/// Rows for a tokenizer of `tokens` tokens that a model has no room for: LLaMA-Factory's next multiple of 64.
pub fn rows_for(tokens: usize) -> usize {
    tokens.div_ceil(MULTIPLE).saturating_mul(MULTIPLE)
}

/// How new rows start: LLaMA-Factory's `init_special_tokens`, with its formulas (`model_utils/embedding.py`, 0.9.5).
///
/// The mean is taken in f64 in a fixed order. The noise is normal with standard deviation 1/√hidden and a pure function of
/// the seed, the table's name, the row and the column: rows do not depend on how many there are, nor on the threads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewRows {
    pub seed: u64,
    /// By token id, the tokens of its description: its rows start as the mean of their rows in the *embedding*, also in the
    /// head, as in LLaMA-Factory. Tokens that are new themselves do not count. Every other row, and one whose description
    /// has no token left, starts as the mean of all old rows of its own table.
    pub described: BTreeMap<u32, Vec<u32>>,
    /// Whether noise is added to rows with a description; the others always have it.
    pub noise: bool,
}

impl NewRows {
    /// LLaMA-Factory's `noise_init`: the mean of the old rows, and noise.
    pub fn noisy_mean(seed: u64) -> NewRows {
        NewRows { seed, described: BTreeMap::new(), noise: true }
    }

    /// Rows `old..rows` of a table, in f32. `table` and `embedding` hold the old rows `[old, hidden]`.
    fn draw(&self, name: &str, rows: usize, hidden: usize, table: &[f32], embedding: &[f32]) -> Vec<f32> {
        let old = table.len() / hidden.max(1);
        let all = mean(table.chunks_exact(hidden.max(1)), hidden);
        let key = Key::new(self.seed).named("vocabulary").named(name);
        let std = 1.0 / (hidden as f64).sqrt();
        let mut out = Vec::with_capacity(rows.saturating_sub(old).saturating_mul(hidden));
        for row in old..rows {
            let described = u32::try_from(row).ok().and_then(|id| self.described.get(&id));
            let own = described.and_then(|ids| {
                let rows: Vec<&[f32]> = ids
                    .iter()
                    .filter_map(|&id| embedding.get((id as usize).checked_mul(hidden)?..)?.get(..hidden))
                    .collect();
                (!rows.is_empty()).then(|| mean(rows.into_iter(), hidden))
            });
            let noise = self.noise || described.is_none();
            let start = own.as_ref().unwrap_or(&all);
            out.extend(start.iter().enumerate().map(|(col, x)| {
                let z = if noise { key.normal((row * hidden + col) as u64) * std } else { 0.0 };
                (x + z) as f32
            }));
        }
        out
    }
}

/// The mean row. Sums of 1024 rows each are added in order, so that the result does not depend on the threads.
fn mean<'a>(rows: impl Iterator<Item = &'a [f32]>, hidden: usize) -> Vec<f64> {
    let rows: Vec<&[f32]> = rows.collect();
    let sum = |rows: &[&[f32]]| {
        let mut sum = vec![0.0f64; hidden];
        for row in rows {
            sum.iter_mut().zip(*row).for_each(|(s, &x)| *s += f64::from(x));
        }
        sum
    };
    let parts: Vec<Vec<f64>> = rows.par_chunks(1024).map(sum).collect();
    let mut total = vec![0.0f64; hidden];
    for part in &parts {
        total.iter_mut().zip(part).for_each(|(t, x)| *t += x);
    }
    total.iter_mut().for_each(|t| *t /= rows.len().max(1) as f64);
    total
}

/// A model's tensors, in which those of the vocabulary have another number of rows.
struct Resized {
    base: Arc<dyn TensorSource>,
    rows: usize,
    /// The tables by name, with the rows that are added to each (none where rows are left out).
    tables: HashMap<String, Vec<f32>>,
}

impl TensorSource for Resized {
    fn names(&self) -> Vec<&str> {
        self.base.names()
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        let mut info = self.base.info(name)?;
        if let (true, Some(rows)) = (self.tables.contains_key(name), info.shape.first_mut()) {
            *rows = self.rows;
        }
        Some(info)
    }

    fn read(&self, name: &str) -> FileResult<RawTensor<'_>> {
        let raw = self.base.read(name)?;
        let (Some(added), &[old, hidden]) = (self.tables.get(name), raw.shape.as_slice()) else {
            return Ok(raw);
        };
        let shape = vec![self.rows, hidden];
        if self.rows <= old {
            let bytes = raw.dtype.bytes_of(&shape).unwrap_or(0).min(raw.bytes.len());
            let bytes = match raw.bytes {
                Cow::Borrowed(all) => Cow::Borrowed(&all[..bytes]),
                Cow::Owned(mut all) => {
                    all.truncate(bytes);
                    Cow::Owned(all)
                }
            };
            return Ok(RawTensor { dtype: raw.dtype, shape, bytes });
        }
        // New rows in a block format would be far from what was drawn; such a table becomes f32.
        let plain = matches!(raw.dtype, FileDType::F32 | FileDType::F16 | FileDType::BF16 | FileDType::F64);
        let (dtype, mut bytes) = match plain {
            true => (raw.dtype, raw.bytes.into_owned()),
            false => (FileDType::F32, raw.to_f32().iter().flat_map(|x| x.to_le_bytes()).collect()),
        };
        match dtype {
            FileDType::F16 => bytes.extend(added.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes())),
            FileDType::BF16 => {
                bytes.extend(added.iter().flat_map(|&x| half::bf16::from_f32(x).to_le_bytes()))
            }
            FileDType::F64 => bytes.extend(added.iter().flat_map(|&x| f64::from(x).to_le_bytes())),
            _ => bytes.extend(added.iter().flat_map(|x| x.to_le_bytes())),
        }
        Ok(RawTensor { dtype, shape, bytes: Cow::Owned(bytes) })
    }
}

/// Whether the model was opened with its weights.
fn has_weights(files: &ModelFiles) -> bool {
    !files.tensors.names().is_empty()
}

/// The tensors of a model that have a row for each token.
fn tables(files: &ModelFiles) -> Vec<String> {
    let head = (!files.config.spec.tied_head).then_some(HEAD);
    [EMBEDDING].into_iter().chain(head).map(|path| format!("{path}.weight")).collect()
}

/// A model whose embedding and head have `rows` rows, of which the first are the files'. The files are not touched.
///
/// # Errors
/// If so many rows are impossible, or a table cannot be read.
pub fn resized(files: &ModelFiles, rows: usize, start: &NewRows) -> Result<ModelFiles> {
    let names = tables(files);
    if rows <= files.config.spec.vocab_size || !has_weights(files) {
        return with_rows(files, rows, |_| Ok(Vec::new()));
    }
    let embedding = load::read_f32(files, &names[0])?;
    with_rows(files, rows, |name| {
        let table = match name == names[0] {
            true => embedding.clone(),
            false => load::read_f32(files, name)?,
        };
        let hidden = table.cols();
        Ok(start.draw(name, rows, hidden, table.slice::<f32>()?, embedding.slice::<f32>()?))
    })
}

/// As [`resized`], with the added rows as they are given: by tensor name `[added, hidden]`.
///
/// # Errors
/// As [`resized`]; if the number of rows is not what the model needs.
pub fn with_rows(
    files: &ModelFiles,
    rows: usize,
    added: impl Fn(&str) -> Result<Vec<f32>>,
) -> Result<ModelFiles> {
    let (old, hidden) = (files.config.spec.vocab_size, files.config.spec.hidden_size);
    let mut tables = HashMap::new();
    for name in self::tables(files) {
        let new = added(&name)?;
        let needed = if has_weights(files) { rows.saturating_sub(old).saturating_mul(hidden) } else { 0 };
        if new.len() != needed {
            return Err(Error::Invalid(format!(
                "{name}: {} numbers were given for the new rows, but {rows} rows need {needed}",
                new.len()
            )));
        }
        tables.insert(name, new);
    }
    let tensors = Resized { base: files.tensors.clone(), rows, tables };
    Ok(files.with_vocabulary(rows, Arc::new(tensors))?)
}

type Tensors = BTreeMap<String, RawTensor<'static>>;

/// What an adapter's files say of a table.
struct SavedTable {
    rows: usize,
    /// The file holds the table itself, not only factors for it.
    whole: bool,
}

/// What the tensors at a module path say of its table. Trained copies stand under `modules_to_save`, tables below factors or
/// trained rows under `base_layer`; what a module was before it was trained (`original_module`) says the same.
fn saved_table(tensors: &Tensors, path: &str, hidden: usize) -> Result<Option<SavedTable>> {
    let prefix = format!("{PREFIX}{path}.");
    let mut found: Option<(&str, SavedTable)> = None;
    for (key, raw) in tensors {
        let Some(rest) = key.strip_prefix(&prefix) else { continue };
        let side = |n: usize| raw.shape.get(n).copied();
        let (rows, whole) = match rest {
            "lora_embedding_A" => (side(1), false),
            "lora_B.weight" => (side(0), false),
            _ if rest.ends_with("weight") && !rest.starts_with("lora_") => (side(0), true),
            _ => continue,
        };
        let Some(rows) = rows else { continue };
        if whole && side(1) != Some(hidden) {
            return Err(Error::Invalid(format!(
                "tensor '{key}' has the shape {:?} in the adapter's file, but the model's vectors have {hidden} numbers: is \
                 it an adapter of another model?",
                raw.shape
            )));
        }
        match &mut found {
            None => found = Some((key, SavedTable { rows, whole })),
            Some((_, table)) if table.rows == rows => table.whole |= whole,
            Some((first, table)) => {
                return Err(Error::Invalid(format!(
                    "the adapter's file is damaged: '{first}' has {} rows and '{key}' has {rows}, but both are of one \
                     vocabulary",
                    table.rows
                )));
            }
        }
    }
    Ok(found.map(|(_, table)| table))
}

/// The model with the vocabulary that an adapter's files were made with; `None` where that is the model's own. PEFT's users
/// call `resize_token_embeddings` for this. Rows beyond the model's are zeros here: the adapter brings the whole table.
///
/// # Errors
/// If the adapter's files contradict themselves, or need rows that neither they nor the model hold.
pub fn fitted(files: &ModelFiles, config: &AdapterConfig, tensors: &Tensors) -> Result<Option<ModelFiles>> {
    let (old, hidden) = (files.config.spec.vocab_size, files.config.spec.hidden_size);
    let (embedding, head) = (saved_table(tensors, EMBEDDING, hidden)?, saved_table(tensors, HEAD, hidden)?);
    let rows = match (&embedding, &head) {
        (Some(e), Some(h)) if e.rows != h.rows => {
            return Err(Error::Invalid(format!(
                "the adapter's file is damaged: its embedding has {} rows, its head {}",
                e.rows, h.rows
            )));
        }
        (Some(table), _) | (None, Some(table)) => table.rows,
        (None, None) => return without_tables(config, old),
    };
    if rows == old {
        return Ok(None);
    }
    let whole = |table: &Option<SavedTable>| table.as_ref().is_some_and(|t| t.whole);
    // A trained copy is no longer the other's table, though the model shares one.
    let copied = config.modules_to_save.iter().flatten().next().is_some();
    let shared = files.config.spec.tied_head && !copied && (whole(&embedding) || whole(&head));
    let missing = [(EMBEDDING, &embedding), (HEAD, &head)].into_iter().find(|(_, t)| !whole(t) && !shared);
    if let (true, Some((path, _))) = (rows > old, missing) {
        return Err(Error::Invalid(format!(
            "the adapter was made with a vocabulary of {rows} rows, the model has {old}, and the adapter's file does not \
             hold the new rows of {path}: save it with PEFT's save_embedding_layers=True, or give the model that it was \
             trained on"
        )));
    }
    let added = rows.saturating_sub(old).saturating_mul(hidden);
    with_rows(files, rows, |_| Ok(vec![0.0; added])).map(Some)
}

/// The vocabulary of an adapter's files without an embedding and a head: the model's own.
///
/// # Errors
/// If rows of tokens are trained that the model does not have.
fn without_tables(config: &AdapterConfig, rows: usize) -> Result<Option<ModelFiles>> {
    let ids = match &config.trainable_token_indices {
        None => Vec::new(),
        Some(TokenIndices::OfEmbedding(ids)) => ids.clone(),
        Some(TokenIndices::ByModule(modules)) => modules.values().flatten().copied().collect(),
    };
    match ids.iter().find(|&&id| usize::try_from(id).is_ok_and(|id| id >= rows)) {
        None => Ok(None),
        Some(id) => Err(Error::Invalid(format!(
            "the adapter has a trained row for the token {id} (trainable_token_indices), but the model has {rows} rows, and the \
             adapter's file does not hold the others: save it with PEFT's save_embedding_layers=True, or give the model that \
             it was trained on"
        ))),
    }
}

/// The rows of the embedding or head that an adapter's files bring or adapt; `None` if they do neither.
///
/// # Errors
/// As [`fitted`].
pub fn rows_of(files: &ModelFiles, tensors: &Tensors) -> Result<Option<usize>> {
    let hidden = files.config.spec.hidden_size;
    let table = match saved_table(tensors, EMBEDDING, hidden)? {
        Some(table) => Some(table),
        None => saved_table(tensors, HEAD, hidden)?,
    };
    Ok(table.map(|t| t.rows))
}

/// The tokenizer that an adapter was trained with: the one in its folder, if there is one. PEFT's own readers
/// (`AutoPeftModel`) do the same; it has the tokens that were added, and the chat template.
///
/// # Errors
/// When there is a tokenizer.json that cannot be understood.
pub fn tokenizer_beside(adapter: &Path) -> Result<Option<TokenizerBundle>> {
    if !adapter.join("tokenizer.json").is_file() {
        return Ok(None);
    }
    TokenizerBundle::from_folder(adapter).map(Some).map_err(|e| crate::files::Error::from(e).into())
}

/// Saves embedding and head along with an adapter where they are not trained, as PEFT does
/// (`save_embedding_layers="auto"`) when the vocabulary was resized: nobody else has the new rows. Nothing is to be done where
/// it was not.
///
/// # Errors
/// If a table cannot be read.
pub fn bring_tables(attached: &mut Attached, params: &Params, files: &ModelFiles) -> Result<()> {
    if files.resized_from.is_none() {
        return Ok(());
    }
    for path in [EMBEDDING, HEAD] {
        let name = format!("{path}.weight");
        if params.find(&name).is_none() && !attached.replaced.contains_key(&name) {
            let stored = stored_name(&name, files.config.spec.tied_head);
            let table = match attached.replaced.get(&stored) {
                Some(table) => table.clone(),
                None => load::read_f32(files, &stored)?,
            };
            attached.replaced.insert(name, table);
        }
    }
    Ok(())
}
