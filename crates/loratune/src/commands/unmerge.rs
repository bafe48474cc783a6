//! `loratune unmerge`.

use anyhow::Result;
use loratune_engine::DType;
use loratune_model::adapter::convert::is_plain;
use loratune_model::files::FileDType;
use loratune_model::files::atomic::replace_dir_atomically;
use loratune_model::{adapter, load};
use serde_json::json;

use super::folder::{self, Failure, Kind};
use super::{norms, verify};
use crate::cli::{Global, UnmergeArgs};
use crate::load::{Base, read_adapter};
use crate::output::{self, Usage, field};

pub fn run(args: &UnmergeArgs, global: &Global) -> Result<()> {
    let sources = [Some(&args.model), Some(&args.adapter), args.norms.as_ref()];
    let sources: Vec<_> = sources.into_iter().flatten().map(|p| p.as_path()).collect();
    folder::check(&args.output, Kind::Model, args.overwrite, &sources)?;
    let adapter = read_adapter(&args.adapter)?;
    let saved = &adapter.saved;
    match (saved.config.use_dora, &args.norms) {
        (true, None) => {
            let what = "merging DoRA replaced the lengths of rows: name the file that `loratune merge --norms` wrote";
            return Err(Usage(format!("--norms is missing; {what}")).into());
        }
        (false, Some(_)) => {
            let what = "--norms is for DoRA, which replaces the lengths of rows; this adapter is taken out without them";
            return Err(Usage(what.into()).into());
        }
        _ => {}
    }
    anyhow::ensure!(
        is_plain(&saved.config),
        "{}: what this adapter's start took out of its base can't be found in the merged model; make it plain first \
         (loratune convert)",
        saved.name
    );
    let lengths = args.norms.as_deref().map(norms::read).transpose()?.unwrap_or_default();
    let base = Base::open(&args.model, if args.verify { DType::F32 } else { DType::BF16 })?;
    let (merged, model) = (base.alone(), base.with(&adapter)?);
    let Some(attached) = &model.attached else { anyhow::bail!("{}: nothing to take out", saved.name) };
    let dtype = args.dtype.map_or_else(|| load::file_dtype(&model.files), FileDType::from);
    let sequences = verify::sequences(&model.files.config);
    let before =
        args.verify.then(|| verify::logits(&merged.decoder, &merged.params, &sequences)).transpose()?;
    let mut difference = None;
    replace_dir_atomically(&args.output, |dir| -> Result<(), Failure> {
        adapter::unmerge(dir, &model.files, &model.decoder, &model.params, attached, &lengths, dtype)?;
        merged.tokenizer.save(dir)?;
        if let Some(before) = &before {
            difference = Some(verify::verify(dir, Some(&adapter.folder), before, &sequences)?);
        }
        Ok(())
    })
    .map_err(|f| f.0)?;
    if args.json {
        output::json(&json!({
            "output": args.output.display().to_string(),
            "dtype": dtype.name(),
            "max_logit_difference": difference,
        }))?;
    } else if !global.quiet {
        let mut out = field("wrote", format!("{} ({})", args.output.display(), dtype.name()));
        if let Some(d) = difference {
            out += &verify::line(d, &sequences);
        }
        output::print(&out)?;
    }
    Ok(())
}
