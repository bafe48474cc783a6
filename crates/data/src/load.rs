//! The way in: from dataset files to examples and their report.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::cache::{CacheOptions, Key};
use crate::encode::{EncodeOptions, Encoder, Engine};
use crate::error::{DataError, Result, nearest};
use crate::examples::{Examples, Place, Store};
use crate::formats::convert_columns;
use crate::mask::{Masker, Specials};
use crate::mix::{Mix, merge};
use crate::read::DatasetSource;
use crate::record::Message;
use crate::report::{DatasetReport, Sample};
use crate::set::Set;
use crate::split::split;
use crate::template::{ChatTemplate, RenderInput, TemplateChoice, ToolFormat};
use crate::text::Text;
use crate::tokenise::{Tokenised, find, tokenise};

/// Which rows to train and to evaluate on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DatasetSpec {
    /// Datasets to train on.
    pub train: Vec<DatasetSource>,
    /// Datasets to evaluate on; not together with `val_size`.
    pub eval: Vec<DatasetSource>,
    /// How the datasets of each become one.
    pub mix: Mix,
    /// With interleaving: how often each dataset is drawn, in relation to the others.
    pub weights: Option<Vec<f64>>,
    /// Evaluation datasets stay one after the other, so that each can be looked at by itself.
    pub eval_apart: bool,
    /// Rows set aside for evaluation after the merge: a fraction below 1, or a number of rows above 1; 0 = none.
    pub val_size: f64,
    /// Seed of the split and of what is drawn.
    pub seed: u64,
    /// Where tokenised rows are kept for the next run; `None` = nowhere.
    pub cache: Option<CacheOptions>,
}

/// Examples ready for training.
#[derive(Debug)]
pub struct Dataset {
    /// To train on, in file order; never empty.
    pub train: Examples,
    /// To evaluate on.
    pub eval: Examples,
    /// The evaluation datasets by name and the examples of `eval` that are theirs; only with [`DatasetSpec::eval_apart`].
    pub eval_sets: Vec<(String, std::ops::Range<usize>)>,
    /// What to show before training.
    pub report: DatasetReport,
}

/// What encodes rows, from the options of a run.
pub(crate) struct Prepared {
    choice: TemplateChoice,
    pub template: ChatTemplate,
}

impl Prepared {
    pub fn new(text: &dyn Text, options: &EncodeOptions) -> Result<Self> {
        options.check()?;
        let choice = TemplateChoice::parse(options.template.as_deref());
        let template = load_template(&choice, text, options)?;
        Ok(Self { choice, template })
    }

    pub fn encoder<'a>(&'a self, text: &'a dyn Text, options: &'a EncodeOptions) -> Encoder<'a> {
        let engine = match &self.template {
            ChatTemplate::Jinja(jinja) => {
                Engine::Masked(Masker::new(jinja, Specials::of(text), options.template_variables.clone()))
            }
            ChatTemplate::Turns(turns) => Engine::Turns(turns),
        };
        Encoder { text, engine, options }
    }

    /// A note where rows go through no template although they are conversations.
    pub fn note(&self, text: &dyn Text, report: &DatasetReport) -> Option<String> {
        let plain = self.choice == TemplateChoice::Model && text.chat_template().is_none();
        let mut formats = report.formats.iter().chain(&report.eval_formats);
        let chats = formats.any(|(f, _)| f != "text" && f != "tokens");
        let note = "the model has no chat template and none is named: prompt and response are joined as they are (`plain`)";
        (plain && chats).then(|| note.to_string())
    }
}

/// Reads, renders, masks, tokenises and truncates. Rows are worked on by all threads of the current rayon pool; the
/// result does not depend on their number.
///
/// # Errors
/// The first row in file order that cannot be used, with its place; contradicting options; an unknown template; or that
/// nothing is left to train on, with the reason.
pub fn load_examples(spec: &DatasetSpec, text: &dyn Text, options: &EncodeOptions) -> Result<Dataset> {
    let prepared = Prepared::new(text, options)?;
    if spec.val_size != 0.0 && !spec.eval.is_empty() {
        let message = "val_size and eval_dataset are both set; keep one of them";
        return Err(DataError::Options(message.into()));
    }
    if spec.train.is_empty() {
        return Err(DataError::NoDataset);
    }
    let encoder = prepared.encoder(text, options);
    let base = || base_key(text, &prepared.template, options);
    let mut notes = Vec::new();
    let mut read = |sources: &[DatasetSource]| -> Result<Vec<Tokenised>> {
        let one = |source| tokenise(&encoder, source, spec.seed, spec.cache.as_ref(), &base);
        let read = sources.iter().map(one).collect::<Result<Vec<_>>>()?;
        notes.extend(read.iter().filter_map(|t| t.note.clone()));
        Ok(read)
    };
    let (train_parts, eval_parts) = (read(&spec.train)?, read(&spec.eval)?);
    let rows = merged(&train_parts, spec.mix, spec.weights.as_deref(), spec.seed)?;
    let stores = |parts: &[Tokenised]| -> Vec<Arc<Store>> { parts.iter().map(|p| p.store.clone()).collect() };
    let (train, eval) = if spec.val_size == 0.0 {
        let mix = if spec.eval_apart { Mix::Concat } else { spec.mix };
        let weights = if spec.eval_apart { None } else { spec.weights.as_deref() };
        let eval =
            if eval_parts.is_empty() { Vec::new() } else { merged(&eval_parts, mix, weights, spec.seed)? };
        (Set::new(stores(&train_parts), rows), Set::new(stores(&eval_parts), eval))
    } else {
        let (train, eval) = split(rows.len(), spec.val_size, spec.seed)?;
        let pick = |of: Vec<usize>| of.into_iter().map(|i| rows[i]).collect();
        (Set::new(stores(&train_parts), pick(train)), Set::new(stores(&train_parts), pick(eval)))
    };
    train.require_trained(options)?;
    if !eval.rows.is_empty() {
        eval.require_trained(options)?;
    }
    let examples = train.examples();
    let mut report = DatasetReport::new(prepared.template.name(), options, &train.stats, &examples);
    (report.formats, report.eval_formats) = (train.formats(), eval.formats());
    if let Some(note) = prepared.note(text, &report) {
        report.warnings.insert(0, note);
    }
    report.warnings.extend(notes);
    report.warnings.extend(train.unusable_note().or_else(|| eval.unusable_note()));
    report.eval = (!eval.rows.is_empty()).then(|| eval.stats.clone());
    report.sample = sample(&encoder, &spec.train, &train, options.sample_row)?;
    let eval_sets = if spec.eval_apart { eval.by_store(&spec.eval) } else { Vec::new() };
    Ok(Dataset { train: examples, eval: eval.examples(), eval_sets, report })
}

/// The rows of all parts in the order of the merged dataset.
fn merged(parts: &[Tokenised], mix: Mix, weights: Option<&[f64]>, seed: u64) -> Result<Vec<Place>> {
    let lengths: Vec<usize> = parts.iter().map(|p| p.rows).collect();
    let (mix, weights) = if parts.len() == 1 { (Mix::Concat, None) } else { (mix, weights) };
    let rows = merge(mix, &lengths, weights, seed)?;
    Ok(rows.into_iter().map(|(store, row)| Place { store: store as u32, row: row as u32 }).collect())
}

/// The template with what the options change in it.
fn load_template(choice: &TemplateChoice, text: &dyn Text, options: &EncodeOptions) -> Result<ChatTemplate> {
    let format = match options.tool_format.as_deref() {
        None => None,
        Some(name) => Some(ToolFormat::find(name).ok_or_else(|| {
            let names = ToolFormat::NAMES.map(|(n, _)| n);
            let hint = nearest(name, names).map(|n| format!("; did you mean `{n}`?")).unwrap_or_default();
            DataError::Options(format!("tool_format `{name}` is unknown{hint} (known: {})", names.join(", ")))
        })?),
    };
    let template = match choice.load(text, options.now)? {
        ChatTemplate::Turns(turns) => *turns,
        jinja @ ChatTemplate::Jinja(_) => {
            if format.is_some() {
                let message = "tool_format is for templates by name; a Jinja template writes tools itself";
                return Err(DataError::Options(message.into()));
            }
            return Ok(jinja);
        }
    };
    if options.train_on_prompt && template.named().efficient_eos {
        return Err(DataError::Options(format!(
            "train_on_prompt does not go with the template `{}`, which puts no EOS between turns",
            template.named().name
        )));
    }
    let template = match &options.default_system {
        Some(system) => template.with_default_system(system),
        None => template,
    };
    Ok(ChatTemplate::Turns(Box::new(match format {
        Some(format) => template.with_tool_format(format),
        None => template,
    })))
}

/// The part of a cache's key that all datasets of a run share: tokenizer, template and options. `None` for a tokenizer that
/// cannot be told apart from others.
fn base_key(text: &dyn Text, template: &ChatTemplate, options: &EncodeOptions) -> Option<Key> {
    let mut key = Key::new();
    key.add("tokenizer", &text.fingerprint()?.to_le_bytes());
    key.add("template", template.identity().as_bytes());
    // What the report shows and how rows are packed makes no other tokens; the date does only where it is printed.
    let options =
        EncodeOptions { packing: None, sample_row: None, now: template.date(options.now), ..options.clone() };
    key.add("options", serde_json::to_string(&options).ok()?.as_bytes());
    Some(key)
}

/// Renders messages for a prompt; `variables` as in [`EncodeOptions::template_variables`]. Its ids are those of
/// [`ChatTemplate::prompt_ids`].
///
/// # Errors
/// When the template raises.
pub fn render_chat(
    template: &ChatTemplate,
    messages: &[Message],
    tools: Option<&Value>,
    add_generation_prompt: bool,
    variables: &Map<String, Value>,
) -> Result<String> {
    let input = RenderInput { messages, tools, add_generation_prompt, variables: Some(variables) };
    template.render(input).map_err(DataError::Template)
}

/// Token ids of a rendered prompt, with BOS exactly as in training: once, where the tokenizer wants it and the text does not
/// have it already.
///
/// # Errors
/// The tokenizer's own message.
pub fn encode_prompt(text: &dyn Text, prompt: &str) -> Result<Vec<u32>, String> {
    let mut ids = text.encode(prompt)?.ids;
    if let Some(bos) = text.bos()
        && text.add_bos()
        && ids.first() != Some(&bos.id)
    {
        ids.insert(0, bos.id);
    }
    Ok(ids)
}

/// The row to show, by default the first example, read and encoded once more with its text.
fn sample(
    encoder: &Encoder<'_>,
    sources: &[DatasetSource],
    set: &Set,
    wanted: Option<usize>,
) -> Result<Option<Sample>> {
    let total = set.rows.len();
    let place = match wanted {
        Some(n) if n == 0 || n > total => {
            let message = format!("there is no row {n}: rows are counted from 1, and there are {total}");
            return Err(DataError::Options(message));
        }
        Some(n) => Some(set.rows[n - 1]),
        None => set.kept.first().copied(),
    };
    let Some(place) = place else { return Ok(None) };
    let Some(source) = sources.get(place.store as usize) else { return Ok(None) };
    let row = set.stores[place.store as usize].source(place.row as usize);
    let Some(row) = find(source, &row)? else { return Ok(None) };
    let (_, record) = convert_columns(&row, source.attributes.as_ref(), encoder.options)?;
    let encoded = encoder.encode(&record, &row.source)?;
    Ok(Some(Sample::new(&encoded, &row.source, encoder.text)))
}
