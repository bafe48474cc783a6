//! The way in: from dataset files to examples and their report.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::encode::{EncodeOptions, Encoded, Encoder, Engine, Example};
use crate::error::{DataError, Result, RowRef, nearest};
use crate::formats::{FORMATS, recognise};
use crate::mask::{Masker, Specials};
use crate::read::{DatasetSource, RawRow, read_source};
use crate::record::Message;
use crate::report::{DatasetReport, Sample, SetStats};
use crate::split::split;
use crate::template::{ChatTemplate, RenderInput, TemplateChoice, ToolFormat};
use crate::text::Text;

/// Which rows to train and to evaluate on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DatasetSpec {
    /// Datasets to train on, merged in this order.
    pub train: Vec<DatasetSource>,
    /// Datasets to evaluate on; not together with `val_size`.
    pub eval: Vec<DatasetSource>,
    /// Rows set aside for evaluation after the merge: a fraction below 1, or a number of rows above 1; 0 = none.
    pub val_size: f64,
    /// Seed of the split.
    pub seed: u64,
}

/// Examples ready for training.
#[derive(Debug)]
pub struct Dataset {
    /// To train on, in file order; never empty.
    pub train: Vec<Example>,
    /// To evaluate on.
    pub eval: Vec<Example>,
    /// What to show before training.
    pub report: DatasetReport,
}

/// Reads, renders, masks, tokenises and truncates. Rows are worked on by all threads of the current rayon pool; the
/// result does not depend on their number.
///
/// # Errors
/// The first row in file order that cannot be used, with its place; contradicting options; an unknown template; or that
/// nothing is left to train on, with the reason.
pub fn load_examples(spec: &DatasetSpec, text: &dyn Text, options: &EncodeOptions) -> Result<Dataset> {
    options.check()?;
    if spec.val_size != 0.0 && !spec.eval.is_empty() {
        let message = "val_size and eval_dataset are both set; keep one of them";
        return Err(DataError::Options(message.into()));
    }
    let choice = TemplateChoice::parse(options.template.as_deref());
    let template = load_template(&choice, text, options)?;
    let engine = match &template {
        ChatTemplate::Jinja(jinja) => {
            Engine::Masked(Masker::new(jinja, Specials::of(text), options.template_variables.clone()))
        }
        ChatTemplate::Turns(turns) => Engine::Turns(turns),
    };
    let encoder = Encoder { text, engine, options };

    let rows = read_all(&spec.train)?;
    if rows.is_empty() {
        return Err(DataError::NoDataset);
    }
    let (train_rows, eval_rows) = divide(rows, spec)?;
    let train = Set::encode(&encoder, &train_rows)?;
    train.require_trained(options)?;
    let eval = Set::encode(&encoder, &eval_rows)?;
    if !eval_rows.is_empty() {
        eval.require_trained(options)?;
    }

    let mut report = DatasetReport::new(template.name(), options, &train.stats, &train.examples);
    if choice == TemplateChoice::Model
        && text.chat_template().is_none()
        && train.formats.keys().any(|f| *f != "text" && *f != "tokens")
    {
        let note = "the model has no chat template and none is named: prompt and response are joined as they are (`plain`)";
        report.warnings.insert(0, note.into());
    }
    report.formats = merge(&train.formats, &eval.formats);
    report.eval = (!eval_rows.is_empty()).then(|| eval.stats.clone());
    report.sample = sample(&encoder, &train_rows, &train.kept)?;
    Ok(Dataset { train: train.examples, eval: eval.examples, report })
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

fn read_all(sources: &[DatasetSource]) -> Result<Vec<RawRow>> {
    let mut rows = Vec::new();
    for source in sources {
        rows.extend(read_source(source)?);
    }
    Ok(rows)
}

fn divide(rows: Vec<RawRow>, spec: &DatasetSpec) -> Result<(Vec<RawRow>, Vec<RawRow>)> {
    if spec.val_size == 0.0 {
        return Ok((rows, read_all(&spec.eval)?));
    }
    let (_, held_out) = split(rows.len(), spec.val_size, spec.seed)?;
    let mut is_held_out = vec![false; rows.len()];
    held_out.iter().for_each(|&i| is_held_out[i] = true);
    let (eval, train): (Vec<_>, Vec<_>) =
        rows.into_iter().zip(is_held_out).partition(|(_, held_out)| *held_out);
    let strip = |rows: Vec<(RawRow, bool)>| rows.into_iter().map(|(row, _)| row).collect();
    Ok((strip(train), strip(eval)))
}

/// The examples of one set and what was counted on the way.
struct Set {
    examples: Vec<Example>,
    /// Index of the row of each example.
    kept: Vec<usize>,
    stats: SetStats,
    formats: BTreeMap<&'static str, usize>,
    shortest_prompt: Option<usize>,
    cut_off: usize,
}

impl Set {
    fn encode(encoder: &Encoder<'_>, rows: &[RawRow]) -> Result<Self> {
        let encoded: Vec<Result<(&'static str, Encoded)>> = rows
            .par_iter()
            .map(|row| {
                let (format, record) = recognise(row)?;
                let mut encoded = encoder.encode(&record, &row.source)?;
                // Only the sample's text is shown; the others' would fill memory.
                encoded.text = String::new();
                encoded.offsets = Vec::new();
                Ok((format.name, encoded))
            })
            .collect();
        let mut set = Self {
            examples: Vec::with_capacity(rows.len()),
            kept: Vec::with_capacity(rows.len()),
            stats: SetStats::default(),
            formats: BTreeMap::new(),
            shortest_prompt: None,
            cut_off: 0,
        };
        for (index, (result, row)) in encoded.into_iter().zip(rows).enumerate() {
            let (format, encoded) = result?;
            set.add(index, format, encoded, &row.source, encoder.text);
        }
        set.stats.finish(&set.examples);
        Ok(set)
    }

    fn add(&mut self, index: usize, format: &'static str, encoded: Encoded, row: &RowRef, text: &dyn Text) {
        *self.formats.entry(format).or_default() += 1;
        self.stats.rows += 1;
        self.stats.truncated_rows += usize::from(encoded.truncated());
        if !encoded.is_trained() {
            self.stats.dropped += 1;
            if encoded.prompt_len < encoded.full_len {
                self.cut_off += 1;
                let shortest = self.shortest_prompt.map_or(encoded.prompt_len, |s| s.min(encoded.prompt_len));
                self.shortest_prompt = Some(shortest);
            }
            return;
        }
        let bos = text.bos().map(|b| b.id);
        let doubled =
            bos.is_some() && encoded.input_ids.iter().take(2).filter(|&&id| Some(id) == bos).count() == 2;
        self.stats.doubled_bos += usize::from(doubled);
        self.stats.unclosed += usize::from(!encoded.ends_trained);
        self.kept.push(index);
        self.examples.push(Example {
            input_ids: encoded.input_ids,
            labels: encoded.labels,
            source: row.clone(),
        });
    }

    fn require_trained(&self, options: &EncodeOptions) -> Result<()> {
        if !self.examples.is_empty() {
            return Ok(());
        }
        let rows = self.stats.rows;
        let message = match (options.cutoff_len, self.shortest_prompt) {
            (Some(cutoff), Some(shortest)) if self.cut_off == rows => {
                let all = if rows == 1 { "the only row".into() } else { format!("all {rows} rows") };
                let word = if rows == 1 { "its" } else { "their" };
                format!(
                    "{all} lost {word} response to cutoff_len {cutoff}; the shortest prompt has {shortest} tokens"
                )
            }
            (Some(cutoff), Some(_)) => {
                let empty = rows - self.cut_off;
                format!(
                    "{} of {rows} rows lost their response to cutoff_len {cutoff}, and {empty} have no trained token at all",
                    self.cut_off
                )
            }
            _ => format!(
                "none of the {rows} rows has a trained token; their responses are empty, or their labels are all -100"
            ),
        };
        Err(DataError::NothingTrained { message })
    }
}

fn merge(a: &BTreeMap<&'static str, usize>, b: &BTreeMap<&'static str, usize>) -> Vec<(String, usize)> {
    let count = |name: &str| a.get(name).copied().unwrap_or(0) + b.get(name).copied().unwrap_or(0);
    FORMATS.iter().map(|f| (f.name.to_string(), count(f.name))).filter(|(_, n)| *n > 0).collect()
}

/// The row to show, by default the first example, encoded once more with its text.
fn sample(encoder: &Encoder<'_>, rows: &[RawRow], kept: &[usize]) -> Result<Option<Sample>> {
    let wanted = match encoder.options.sample_row {
        Some(n) if n == 0 || n > rows.len() => {
            let message =
                format!("there is no row {n}: rows are counted from 1, and there are {}", rows.len());
            return Err(DataError::Options(message));
        }
        Some(n) => Some(n - 1),
        None => kept.first().copied(),
    };
    let Some(row) = wanted.and_then(|i| rows.get(i)) else {
        return Ok(None);
    };
    let (_, record) = recognise(row)?;
    let encoded = encoder.encode(&record, &row.source)?;
    Ok(Some(Sample::new(&encoded, &row.source, encoder.text)))
}
