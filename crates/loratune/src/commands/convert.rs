//! `loratune convert`.

use anyhow::Result;
use loratune_model::adapter::combine::SavedAdapter;
use loratune_model::adapter::convert::{self, AdapterFiles, Decomposition, Loss, is_plain};
use loratune_model::files::atomic::replace_dir_atomically;
use loratune_model::files::{FileDType, ModelFiles};
use loratune_model::{load, vocabulary};
use loratune_tokenizer::TokenizerBundle;
use serde_json::json;

use super::folder::{self, Failure, INITIAL_ADAPTER, Kind, RESIDUAL_MODEL};
use crate::cli::{ConvertArgs, ConvertTo, Global, SvdKind};
use crate::load::{Adapter, model_files, read_adapter};
use crate::output::{self, Usage, field, number};

/// What was made.
struct Converted {
    rank: usize,
    /// In words.
    how: String,
    loss: Option<Loss>,
    residual: Option<FileDType>,
}

pub fn run(args: &ConvertArgs, global: &Global) -> Result<()> {
    check_options(args)?;
    let sources = [Some(&args.adapter), args.model.as_ref(), args.initial.as_ref()];
    let sources: Vec<_> = sources.into_iter().flatten().map(|p| p.as_path()).collect();
    folder::check(&args.output, Kind::Adapter, args.overwrite, &sources)?;
    let Adapter { folder, saved: adapter } = read_adapter(&args.adapter)?;
    let own = folder::common_tokenizer(&[&folder])?;
    check_use(args, &adapter)?;
    let initial = args.initial.as_deref().map(read_adapter).transpose()?.map(|a| a.saved);
    let mut files = args.model.as_deref().map(model_files).transpose()?;
    let fitted =
        files.as_ref().map(|f| vocabulary::fitted(f, &adapter.config, &adapter.tensors)).transpose()?;
    files = fitted.flatten().or(files);
    let converted = match (&files, args.to) {
        (Some(files), ConvertTo::Raw) => to_raw(args, &adapter, files, own)?,
        _ => to_lora(args, adapter, initial.as_ref(), files.as_ref(), own)?,
    };
    report(args, global, &converted)
}

/// What is wrong with the options alone.
fn check_options(args: &ConvertArgs) -> Result<()> {
    let usage = |what: &str| Err(Usage(what.into()).into());
    match args.to {
        ConvertTo::Raw if args.rank.is_some() || args.initial.is_some() => {
            usage("--to raw divides the adapter as it is: --rank and --initial don't go with it")
        }
        ConvertTo::Raw if args.model.is_none() => {
            usage("--to raw writes a residual model: add --model, which it is made of")
        }
        ConvertTo::Lora if args.dtype.is_some() => usage("--dtype is for the residual model of --to raw"),
        _ if args.rank.is_some() && args.model.is_none() => {
            usage("--rank looks at what the adapter makes of a model: add --model")
        }
        _ if args.initial.is_some() && args.rank.is_none() && args.model.is_some() => {
            usage("--initial tells all that is needed: --model has no effect, leave it out")
        }
        _ => Ok(()),
    }
}

/// What is wrong with the options for this adapter.
fn check_use(args: &ConvertArgs, adapter: &SavedAdapter) -> Result<()> {
    if args.to == ConvertTo::Raw || args.rank.is_some() || args.initial.is_some() {
        return Ok(());
    }
    let usage = |what: &str| Err(Usage(format!("{}: {what}", adapter.name)).into());
    match (is_plain(&adapter.config), &args.model) {
        (true, _) => usage(
            "there is nothing to convert: its factors belong on the untouched model already. --rank N makes plain LoRA of \
             another rank (and of DoRA), --to raw a residual model; factors on a residual model need --initial",
        ),
        (false, None) => usage(
            "its start changed the model it was trained on: add --model, or --initial with the adapter as it was before \
             training",
        ),
        (false, Some(_)) => Ok(()),
    }
}

fn to_lora(
    args: &ConvertArgs,
    mut adapter: SavedAdapter,
    initial: Option<&SavedAdapter>,
    files: Option<&ModelFiles>,
    tokenizer: Option<TokenizerBundle>,
) -> Result<Converted> {
    let mut made: Option<AdapterFiles> = None;
    let mut how = "";
    if let Some(initial) = initial {
        made = Some(convert::subtract_initial(&adapter, initial)?);
        how = "exactly: the factors and, with a minus, those before training";
    }
    let mut loss = None;
    if let (Some(rank), Some(files)) = (args.rank, files) {
        if let Some(plain) = made.take() {
            adapter = SavedAdapter::of_files(adapter.name, plain);
        }
        let kind = match args.svd {
            None => Decomposition::Auto,
            Some(SvdKind::Exact) => Decomposition::Exact,
            Some(SvdKind::Fast) => Decomposition::Fast,
        };
        let (low, lost) = convert::lowrank(&adapter, files, rank, kind)?;
        (made, loss, how) = (Some(low), Some(lost), "the nearest of this rank to what the adapter changes");
    } else if let (None, Some(files)) = (&made, files) {
        made = Some(convert::plain(&adapter, files)?);
        how = "exactly, but for rounding: the model was decomposed again as before training";
    }
    let Some(made) = made else { anyhow::bail!("{}: nothing was converted", adapter.name) };
    replace_dir_atomically(&args.output, |dir| -> Result<(), Failure> {
        folder::write_adapter(dir, &made)?;
        folder::write_tokenizer(dir, tokenizer.as_ref())
    })
    .map_err(|f| f.0)?;
    Ok(Converted { rank: made.0.r, how: how.into(), loss, residual: None })
}

fn to_raw(
    args: &ConvertArgs,
    adapter: &SavedAdapter,
    files: &ModelFiles,
    own: Option<TokenizerBundle>,
) -> Result<Converted> {
    let dtype = args.dtype.map_or_else(|| load::file_dtype(files), FileDType::from);
    let tokenizer = own.as_ref().map_or_else(|| files.tokenizer(), |own| Ok(own.clone()))?;
    let base = args.output.join(RESIDUAL_MODEL).display().to_string();
    let mut rank = 0;
    replace_dir_atomically(&args.output, |dir| -> Result<(), Failure> {
        let residual = dir.join(RESIDUAL_MODEL);
        std::fs::create_dir(&residual)?;
        let raw = convert::raw(&residual, adapter, files, &base, dtype)?;
        tokenizer.save(&residual)?;
        folder::write_adapter(dir, &raw.adapter)?;
        folder::write_tokenizer(dir, own.as_ref())?;
        folder::write_adapter(&dir.join(INITIAL_ADAPTER), &raw.initial)?;
        rank = raw.adapter.0.r;
        Ok(())
    })
    .map_err(|f| f.0)?;
    let how = format!("exactly, but for the rounding of {base} to {}", dtype.name());
    Ok(Converted { rank, how, loss: None, residual: Some(dtype) })
}

fn report(args: &ConvertArgs, global: &Global, made: &Converted) -> Result<()> {
    let form = if args.to == ConvertTo::Raw { "raw" } else { "lora" };
    if args.json {
        let loss = made.loss.as_ref().map(|l| {
            let worst = l.worst.as_ref().map(|(module, error)| json!({"module": module, "error": error}));
            json!({"error": l.error, "energy_kept": l.energy_kept(), "worst": worst, "modules": l.modules})
        });
        output::json(&json!({
            "output": args.output.display().to_string(), "form": form, "rank": made.rank, "loss": loss,
            "residual_dtype": made.residual.map(FileDType::name),
        }))?;
        return Ok(());
    }
    if global.quiet {
        return Ok(());
    }
    let what = if form == "raw" { "factors on a residual model" } else { "plain LoRA" };
    let mut out = field("wrote", format!("{} ({what}, rank {})", args.output.display(), made.rank));
    out += &field("converted", &made.how);
    if let Some(loss) = &made.loss {
        out += &field(
            "error",
            format!("{} of what the adapter changes, over {} modules", number(loss.error), loss.modules),
        );
        if let Some((module, error)) = &loss.worst {
            out += &field("worst", format!("{} in {module}", number(*error)));
        }
        out += &field("kept", format!("{:.3} % of its energy", 100.0 * loss.energy_kept()));
    }
    output::print(&out)?;
    Ok(())
}
