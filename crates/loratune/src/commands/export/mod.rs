//! `loratune export`.

mod modelfile;
mod settings;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use loratune_data::{ChatTemplate, TemplateChoice};
use loratune_engine::DType;
use loratune_hub::{Hub, Push, Pushed};
use loratune_model::adapter::Merged;
use loratune_model::export::{adapter_to_gguf, model_to_gguf};
use loratune_model::files::FileDType;
use loratune_model::files::atomic::replace_dir_atomically;
use loratune_model::load;
use loratune_tokenizer::TokenizerBundle;
use serde_json::json;

use self::settings::{Form, Settings};
use super::folder::{self, Failure, Kind};
use super::{card, verify};
use crate::cli::{ExportArgs, Global};
use crate::hub;
use crate::load::{Base, LoadedModel, read_adapter};
use crate::output::{self, Usage, field};

/// What came out.
#[derive(Default)]
struct Written {
    dtype: &'static str,
    notes: Vec<String>,
    difference: Option<f64>,
}

pub fn run(args: &ExportArgs, global: &Global) -> Result<()> {
    let settings = settings::read(args)?;
    let sources: Vec<&Path> = [Some(&settings.model), settings.adapter.as_ref()]
        .into_iter()
        .flatten()
        .map(PathBuf::as_path)
        .collect();
    folder::check(&settings.output, Kind::Export, args.overwrite, &sources)?;
    let push = settings.push.as_ref().map(Upload::begin).transpose()?;
    if matches!(settings.form, Form::GgufAdapter(_)) && settings.adapter.is_none() {
        return Err(Usage("--gguf-adapter needs an adapter: name it with --adapter".into()).into());
    }
    let saved = settings.adapter.as_deref().map(read_adapter).transpose()?;
    // Merging reads the weights from the files in f32; only verifying runs the decoder, which otherwise can be small.
    let base = Base::open(&settings.model, if args.verify { DType::F32 } else { DType::BF16 })?;
    let model = saved.as_ref().map_or_else(|| Ok(base.alone()), |s| base.with(s))?;
    let mut tokenizer = TokenizerBundle::clone(&model.tokenizer);
    let template = chosen_template(&settings, &mut tokenizer)?;
    let sequences = verify::sequences(&model.files.config);
    let before =
        args.verify.then(|| verify::logits(&model.decoder, &model.params, &sequences)).transpose()?;
    let mut written = Written::default();
    replace_dir_atomically(&settings.output, |dir| -> Result<(), Failure> {
        let (weights, from) = write(dir, &settings, &model, &tokenizer, &mut written)?;
        let file = modelfile::text(&from, template.as_ref(), &tokenizer, &model, &mut written.notes);
        std::fs::write(dir.join(folder::MODELFILE), file)?;
        let used = match settings.form {
            Form::Safetensors { .. } => card::SAFETENSORS,
            Form::Gguf(_) | Form::GgufAdapter(_) => card::MODELFILE,
        };
        let adapter = settings.adapter.as_deref();
        card::write(dir, &name(&settings), &settings.model, adapter, written.dtype, used)?;
        if let Some(before) = &before {
            written.difference = Some(verify::verify(&weights, None, before, &sequences)?);
        }
        Ok(())
    })
    .map_err(|f| f.0)?;
    let pushed = push.map(|push| push.folder(&settings.output)).transpose()?;
    report(&settings, &written, &sequences, pushed.as_ref(), args, global)
}

/// A repository that the result goes to; made before anything is written, so that whoever may not learns it at once.
struct Upload {
    hub: Hub,
    push: Push,
}

impl Upload {
    fn begin(asked: &settings::Push) -> Result<Upload> {
        let hub = hub::open(asked.token.clone())?;
        let push = Push {
            repo: hub.full_id(&asked.repo).context("export_hub_model_id")?,
            private: true,
            revision: None,
            message: "Upload of an export".into(),
            files: Vec::new(),
        };
        hub.ensure_repo(&push).context("export_hub_model_id")?;
        Ok(Upload { hub, push })
    }

    fn folder(self, folder: &Path) -> Result<Pushed> {
        let push = Push { files: loratune_hub::folder(folder, "")?, ..self.push };
        self.hub
            .push(&push)
            .with_context(|| format!("the export is in {}, but it could not be pushed", folder.display()))
    }
}

/// Writes the weights; gives their path, and the lines of the Modelfile that say where they are.
fn write(
    dir: &Path,
    settings: &Settings,
    model: &LoadedModel,
    tokenizer: &TokenizerBundle,
    written: &mut Written,
) -> Result<(PathBuf, String), Failure> {
    let LoadedModel { files, decoder, params, attached, .. } = model;
    let name = name(settings);
    match settings.form {
        Form::Safetensors { dtype, shard_bytes } => {
            let dtype = dtype.map_or_else(|| load::file_dtype(files), FileDType::from);
            let mut merged = Merged::new(files, decoder, params, attached.as_ref());
            let most = shard_bytes.unwrap_or(load::MAX_SHARD_BYTES);
            load::write_shards(dir, files, dtype, most, decoder.is_untied(), |name| merged.tensor(name))?;
            tokenizer.save(dir)?;
            written.dtype = dtype.name();
            Ok((dir.to_owned(), "FROM .\n".into()))
        }
        Form::Gguf(kind) => {
            written.dtype = loratune_model::export::GgufType::from(kind).dtype().name();
            let file = format!("{name}-{}.gguf", written.dtype);
            let path = dir.join(&file);
            let attached = attached.as_ref();
            written.notes =
                model_to_gguf(&path, files, decoder, params, attached, tokenizer, &name, kind.into())?;
            Ok((path, format!("FROM ./{file}\n")))
        }
        Form::GgufAdapter(kind) => {
            written.dtype = loratune_model::export::GgufType::from(kind).dtype().name();
            let file = format!("{name}-LoRA-{}.gguf", written.dtype);
            let path = dir.join(&file);
            let Some(attached) = attached else {
                return Err(Usage("--gguf-adapter needs an adapter".into()).into());
            };
            adapter_to_gguf(&path, files, decoder, params, attached, &name, kind.into())?;
            let base = folder::real(&files.path);
            Ok((path, format!("FROM {}\nADAPTER ./{file}\n", base.display())))
        }
    }
}

/// The model's name in its files: the output folder's.
fn name(settings: &Settings) -> String {
    let last = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    let whole = std::path::absolute(&settings.output).ok();
    last(&settings.output).or_else(|| last(&whole?)).unwrap_or_else(|| "model".into())
}

/// The template that goes with the model; a named one becomes the tokenizer's own.
fn chosen_template(settings: &Settings, tokenizer: &mut TokenizerBundle) -> Result<Option<ChatTemplate>> {
    let choice = TemplateChoice::parse(settings.template.as_deref());
    if choice == TemplateChoice::Model && tokenizer.chat_template.is_none() {
        return Ok(None);
    }
    let template = choice.load(&*tokenizer, None)?;
    match (&choice, &template) {
        (TemplateChoice::Model, _) => {}
        (_, ChatTemplate::Turns(turns)) => tokenizer.chat_template = Some(turns.to_jinja()),
        (TemplateChoice::Named(path), ChatTemplate::Jinja(_)) if Path::new(path).is_file() => {
            tokenizer.chat_template = Some(std::fs::read_to_string(path)?);
        }
        // `plain` is what a model without a template has.
        _ => tokenizer.chat_template = None,
    }
    Ok(Some(template))
}

fn report(
    settings: &Settings,
    written: &Written,
    sequences: &[Vec<u32>],
    pushed: Option<&Pushed>,
    args: &ExportArgs,
    global: &Global,
) -> Result<()> {
    for note in &written.notes {
        output::note(&format!("note: {note}"));
    }
    if args.json {
        output::json(&json!({
            "output": settings.output.display().to_string(),
            "dtype": written.dtype,
            "notes": written.notes,
            "max_logit_difference": written.difference,
            "push": pushed.map(super::push::as_json),
        }))?;
    } else if !global.quiet {
        let mut out = field("wrote", format!("{} ({})", settings.output.display(), written.dtype));
        if let Some(d) = written.difference {
            out += &verify::line(d, sequences);
        }
        out += &field(
            "then",
            format!("ollama create {} -f {}/Modelfile", name(settings), settings.output.display()),
        );
        if let Some(pushed) = pushed {
            out += &super::push::lines(pushed);
        }
        output::print(&out)?;
    }
    Ok(())
}
