//! `loratune merge`.

use std::path::Path;

use anyhow::Result;
use loratune_engine::DType;
use loratune_model::files::FileDType;
use loratune_model::files::atomic::replace_dir_atomically;
use loratune_model::{adapter, load};
use serde_json::json;

use super::folder::{self, Failure, Kind};
use super::{card, norms, verify};
use crate::cli::{Global, MergeArgs};
use crate::load::{Base, read_adapter};
use crate::output::{self, Usage, field};

pub fn run(args: &MergeArgs, global: &Global) -> Result<()> {
    let sources: Vec<&Path> = [Some(&args.model.model), args.model.adapter.as_ref()]
        .into_iter()
        .flatten()
        .map(|p| p.as_path())
        .collect();
    folder::check(&args.output, Kind::Model, args.overwrite, &sources)?;
    let saved = args.model.adapter.as_deref().map(read_adapter).transpose()?;
    if let Some(path) = &args.norms {
        if !saved.as_ref().is_some_and(|s| s.saved.config.use_dora) {
            let what = "--norms is for DoRA, which replaces the lengths of rows; this adapter is taken out without them";
            return Err(Usage(what.into()).into());
        }
        norms::check(path, args.overwrite, &args.output, &sources)?;
    }
    // Merging reads the weights from the files in f32; only verifying runs the decoder, which otherwise can be small.
    let base = Base::open(&args.model.model, if args.verify { DType::F32 } else { DType::BF16 })?;
    let model = saved.as_ref().map_or_else(|| Ok(base.alone()), |s| base.with(s))?;
    let dtype = args.dtype.map_or_else(|| load::file_dtype(&model.files), FileDType::from);
    let sequences = verify::sequences(&model.files.config);
    let before =
        args.verify.then(|| verify::logits(&model.decoder, &model.params, &sequences)).transpose()?;
    let mut difference = None;
    replace_dir_atomically(&args.output, |dir| -> Result<(), Failure> {
        let attached = model.attached.as_ref();
        let lengths = adapter::merge(dir, &model.files, &model.decoder, &model.params, attached, dtype)?;
        model.tokenizer.save(dir)?;
        let named = args.output.file_name().map_or("merged".into(), |n| n.to_string_lossy().into_owned());
        let (model, adapter) = (&args.model.model, args.model.adapter.as_deref());
        card::write(dir, &named, model, adapter, dtype.name(), card::SAFETENSORS)?;
        if let Some(before) = &before {
            // Verified before it is put in place: what is not finite never appears under its name.
            difference = Some(verify::verify(dir, None, before, &sequences)?);
        }
        if let Some(path) = &args.norms {
            norms::write(path, &lengths)?;
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
        if let Some(path) = &args.norms {
            out += &field("norms", path.display().to_string());
        }
        if let Some(d) = difference {
            out += &verify::line(d, &sequences);
        }
        output::print(&out)?;
    }
    Ok(())
}
