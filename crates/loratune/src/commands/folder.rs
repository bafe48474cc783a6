//! Folders that commands write: checked before anything is read, filled aside, put in place whole.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use loratune_engine::DType;
use loratune_model::adapter::convert::AdapterFiles;
use loratune_model::files::{FileDType, peft};
use loratune_model::{load, vocabulary};
use loratune_tokenizer::TokenizerBundle;

use super::card;
use crate::output::Usage;

/// What a command writes into its folder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Model,
    Adapter,
    /// A model or an adapter for other programs.
    Export,
}

/// The files of a model, besides its shards and its tokenizer.
const MODEL: &[&str] =
    &["config.json", "generation_config.json", "model.safetensors", "model.safetensors.index.json"];
/// The files of a tokenizer.
const TOKENIZER: &[&str] =
    &["chat_template.jinja", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json"];
/// The folder of a tokenizer's further chat templates.
const TEMPLATES: &str = "additional_chat_templates";
/// The files of an adapter.
const ADAPTER: &[&str] = &["adapter_config.json", "adapter_model.safetensors"];
/// For Ollama, beside every export.
pub const MODELFILE: &str = "Modelfile";
/// In an adapter's folder, the model that its factors belong on.
pub const RESIDUAL_MODEL: &str = "residual_model";
/// In an adapter's folder, the factors that the residual model lacks.
pub const INITIAL_ADAPTER: &str = "initial_adapter";

/// An error on the way, from whichever crate.
pub struct Failure(pub anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure(e.into())
    }
}

/// Nothing is replaced that nobody asked to replace, and the sources never.
///
/// # Errors
/// How the command line has to change.
pub fn check(output: &Path, kind: Kind, overwrite: bool, sources: &[&Path]) -> Result<()> {
    let usage = |what: &str| Err(Usage(format!("{}: {what}", output.display())).into());
    if output.is_file() {
        return usage("--output is a file; it has to be a folder");
    }
    let filled = match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(e).with_context(|| format!("{}: --output cannot be used", output.display())),
    };
    if sources.iter().any(|s| real(s).starts_with(real(output))) {
        return usage("--output holds the model or the adapter that is read; name another folder");
    }
    let (sign, what) = match kind {
        Kind::Model => ("config.json", "a model"),
        Kind::Adapter => ("adapter_config.json", "an adapter"),
        Kind::Export => (MODELFILE, "an export"),
    };
    match (filled, overwrite) {
        (true, false) => {
            usage("--output is not empty: name another folder, or add --overwrite to replace it")
        }
        (true, true) if !output.join(sign).is_file() => {
            usage(&format!("--output holds something that is not {what} (no {sign}); it is not replaced"))
        }
        (true, true) => match foreign(output, kind)? {
            Some(name) => usage(&format!(
                "--output holds {name}, which this command does not write; it is not replaced: move that away, or name \
                 another folder"
            )),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The path without links and dots, if it exists.
pub fn real(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| PathBuf::from(path))
}

/// The first entry of a folder, by name, that writing this kind would not have put there.
fn foreign(folder: &Path, kind: Kind) -> Result<Option<String>> {
    for (name, is_dir) in entries(folder)? {
        let inside = match (kind, is_dir, name.as_str()) {
            (_, true, TEMPLATES) => {
                let jinja = |(file, is_dir): &(String, bool)| !is_dir && file.ends_with(".jinja");
                entries(&folder.join(TEMPLATES))?.into_iter().find(|e| !jinja(e)).map(|e| e.0)
            }
            (Kind::Adapter, true, RESIDUAL_MODEL) => foreign(&folder.join(&name), Kind::Model)?,
            (Kind::Adapter, true, INITIAL_ADAPTER) => foreign(&folder.join(&name), Kind::Adapter)?,
            (Kind::Model | Kind::Export, false, file) if MODEL.contains(&file) || is_shard(file) => None,
            (Kind::Export, false, file) if file == MODELFILE || file.ends_with(".gguf") => None,
            (Kind::Model | Kind::Export, false, card::FILE) => None,
            (_, false, file) if TOKENIZER.contains(&file) => None,
            (Kind::Adapter, false, file) if ADAPTER.contains(&file) => None,
            _ => return Ok(Some(name)),
        };
        if let Some(inside) = inside {
            return Ok(Some(format!("{name}/{inside}")));
        }
    }
    Ok(None)
}

/// Names in a folder, sorted, and whether each is a folder.
fn entries(folder: &Path) -> Result<Vec<(String, bool)>> {
    let read = std::fs::read_dir(folder).and_then(|all| {
        all.map(|e| {
            e.and_then(|e| Ok((e.file_name().to_string_lossy().into_owned(), e.file_type()?.is_dir())))
        })
        .collect::<std::io::Result<Vec<_>>>()
    });
    let mut all = read.with_context(|| format!("{}: --output cannot be read", folder.display()))?;
    all.sort();
    Ok(all)
}

/// `model-00001-of-00002.safetensors`
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|n| n.strip_suffix(".safetensors"));
    let digits = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    numbers.and_then(|n| n.split_once("-of-")).is_some_and(|(a, b)| digits(a) && digits(b))
}

/// Writes an adapter's folder; bf16 tensors stay bf16, all others are f32.
///
/// # Errors
/// What the disk refuses.
pub fn write_adapter(dir: &Path, (config, tensors): &AdapterFiles) -> Result<()> {
    let dtype = |d: DType| if d == DType::BF16 { FileDType::BF16 } else { FileDType::F32 };
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, t)| load::encode(t, dtype(t.dtype()))).collect();
    let views: Vec<_> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, t), b)| (name.as_str(), dtype(t.dtype()), t.shape(), b.as_slice()))
        .collect();
    Ok(peft::write_adapter(dir, config, &views)?)
}

/// The tokenizer that the folders of adapters hold, if any does and all agree: what is made of the adapters belongs with it.
///
/// # Errors
/// If one cannot be read.
pub fn common_tokenizer(adapters: &[&Path]) -> Result<Option<TokenizerBundle>> {
    let mut common: Option<TokenizerBundle> = None;
    for folder in adapters {
        match (vocabulary::tokenizer_beside(folder)?, &common) {
            (None, _) => {}
            (Some(own), None) => common = Some(own),
            (Some(own), Some(first)) if own.is_same(first)? => {}
            _ => return Ok(None),
        }
    }
    Ok(common)
}

/// Writes an adapter's tokenizer into its folder, if it has one of its own.
///
/// # Errors
/// What the disk refuses.
pub fn write_tokenizer(dir: &Path, tokenizer: Option<&TokenizerBundle>) -> Result<(), Failure> {
    Ok(tokenizer.map_or(Ok(()), |t| t.save(dir))?)
}
