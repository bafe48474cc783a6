//! `loratune merge`.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use loratune_engine::{DType, Params};
use loratune_model::adapter;
use loratune_model::files::FileDType;
use loratune_model::files::atomic::replace_dir_atomically;
use loratune_model::{Batch, Decoder, load};
use serde_json::json;

use crate::cli::{Global, MergeArgs};
use crate::load::{LoadedModel, start_threads};
use crate::output::{self, Usage, field};

/// Sequences that `--verify` compares, and tokens in each.
const SEQUENCES: usize = 4;
const LENGTH: usize = 64;

/// The files of a merged model, besides its shards.
const WRITTEN: &[&str] = &[
    "chat_template.jinja",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
];
/// The folder of a tokenizer's further chat templates.
const TEMPLATES: &str = "additional_chat_templates";

pub fn run(args: &MergeArgs, global: &Global) -> Result<()> {
    start_threads(global)?;
    check_output(args)?;
    // Merging reads the weights from the files in f32; only verifying runs the decoder, which otherwise can be small.
    let model = LoadedModel::open(&args.model, if args.verify { DType::F32 } else { DType::BF16 })?;
    let dtype = args.dtype.map_or_else(|| load::file_dtype(&model.files), FileDType::from);
    let sequences = sequences(model.files.config.vocab_size, model.files.config.max_position_embeddings);
    let before = args.verify.then(|| logits(&model.decoder, &model.params, &sequences)).transpose()?;
    let mut difference = None;
    replace_dir_atomically(&args.output, |dir| -> Result<(), Failure> {
        adapter::merge(dir, &model.files, &model.decoder, &model.params, model.attached.as_ref(), dtype)?;
        model.tokenizer.save(dir).map_err(anyhow::Error::from)?;
        if let Some(before) = &before {
            // Verified before it is put in place: what is not finite never appears under its name.
            difference = Some(verify(dir, before, &sequences)?);
        }
        Ok(())
    })
    .map_err(|f| f.0)?;
    if args.json {
        output::json(&json!({
            "output": args.output.display().to_string(),
            "dtype": dtype.name(),
            "parameters": model.decoder.spec().parameters(),
            "max_logit_difference": difference,
        }))?;
    } else if !global.quiet {
        let mut out = field("wrote", format!("{} ({})", args.output.display(), dtype.name()));
        if let Some(d) = difference {
            let tokens = sequences.iter().map(Vec::len).sum::<usize>();
            out += &field("verified", format!("largest difference in a logit {d:.3e} over {tokens} tokens"));
        }
        output::print(&out)?;
    }
    Ok(())
}

/// An error on the way, from whichever crate.
struct Failure(anyhow::Error);

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(e: E) -> Failure {
        Failure(e.into())
    }
}

/// Nothing is replaced that nobody asked to replace, and the sources never.
fn check_output(args: &MergeArgs) -> Result<()> {
    let output = &args.output;
    let usage = |what: &str| Err(Usage(format!("{}: {what}", output.display())).into());
    if output.is_file() {
        return usage("--output is a file; it has to be a folder");
    }
    let filled = match std::fs::read_dir(output) {
        Ok(mut entries) => entries.next().is_some(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => false,
        Err(e) => return Err(e).with_context(|| format!("{}: --output cannot be used", output.display())),
    };
    let sources = [Some(&args.model.model), args.model.adapter.as_ref()];
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| PathBuf::from(p));
    if sources.into_iter().flatten().any(|s| real(s).starts_with(real(output))) {
        return usage("--output holds the model or the adapter that is read; name another folder");
    }
    match (filled, args.overwrite) {
        (true, false) => {
            usage("--output is not empty: name another folder, or add --overwrite to replace it")
        }
        (true, true) if !output.join("config.json").is_file() => {
            usage("--output holds something that is not a model (no config.json); it is not replaced")
        }
        (true, true) => match foreign(output)? {
            Some(name) => usage(&format!(
                "--output holds {name}, which merging does not write; it is not replaced: move that away, or name \
                 another folder"
            )),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// The first entry of a folder, by name, that merging would not have written there.
fn foreign(folder: &Path) -> Result<Option<String>> {
    let entries = |folder: &Path| -> Result<Vec<(String, bool)>> {
        let read = std::fs::read_dir(folder).and_then(|all| {
            all.map(|e| {
                e.and_then(|e| Ok((e.file_name().to_string_lossy().into_owned(), e.file_type()?.is_dir())))
            })
            .collect::<std::io::Result<Vec<_>>>()
        });
        let mut all = read.with_context(|| format!("{}: --output cannot be read", folder.display()))?;
        all.sort();
        Ok(all)
    };
    for (name, is_dir) in entries(folder)? {
        if is_dir && name == TEMPLATES {
            let jinja = |(file, is_dir): &(String, bool)| !is_dir && file.ends_with(".jinja");
            if let Some((file, _)) = entries(&folder.join(TEMPLATES))?.into_iter().find(|e| !jinja(e)) {
                return Ok(Some(format!("{TEMPLATES}/{file}")));
            }
        } else if is_dir || !(WRITTEN.contains(&name.as_str()) || is_shard(&name)) {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// `model-00001-of-00002.safetensors`
fn is_shard(name: &str) -> bool {
    let numbers = name.strip_prefix("model-").and_then(|n| n.strip_suffix(".safetensors"));
    let digits = |n: &str| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit());
    numbers.and_then(|n| n.split_once("-of-")).is_some_and(|(a, b)| digits(a) && digits(b))
}

/// Always the same token ids for a vocabulary: a fixed walk through it.
fn sequences(vocabulary: usize, context: usize) -> Vec<Vec<u32>> {
    let length = LENGTH.min(context);
    let mut state = 1u64;
    let mut next = || {
        // Knuth's MMIX generator; any would do, as long as it stays the same.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % vocabulary.max(1) as u64) as u32
    };
    (0..SEQUENCES).map(|_| (0..length).map(|_| next()).collect()).collect()
}

/// Logits of all sequences, one after the other.
fn logits(decoder: &Decoder, params: &Params, sequences: &[Vec<u32>]) -> Result<Vec<f32>> {
    let mut out = Vec::new();
    for ids in sequences {
        let logits = decoder.logits(params, &Batch::from_ids([ids.as_slice()]))?;
        out.extend_from_slice(logits.slice::<f32>()?);
    }
    Ok(out)
}

/// The largest absolute difference between `before` and the logits of the model in `dir`.
fn verify(dir: &Path, before: &[f32], sequences: &[Vec<u32>]) -> Result<f64> {
    let merged = LoadedModel::from_paths(dir, None, DType::F32).context("the result cannot be read back")?;
    let after = logits(&merged.decoder, &merged.params, sequences)?;
    ensure!(before.len() == after.len(), "the result has other sizes than the model");
    let differences = before.iter().zip(&after).map(|(a, b)| f64::from(*a) - f64::from(*b));
    // `max` would pass over NaN.
    let largest = differences.map(f64::abs).fold(0.0, |m: f64, d| if d > m || d.is_nan() { d } else { m });
    ensure!(
        largest.is_finite(),
        "the logits of the result differ by {largest}: a merged weight is too large for its type (try --dtype bf16 or \
         f32), or the adapter is damaged; nothing was written"
    );
    Ok(largest)
}
