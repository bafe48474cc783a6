//! The data of a run: from the configuration's names to a [`Feed`].

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loratune_data::{
    CacheOptions, DatasetHub, DatasetReport, DatasetSource, DatasetSpec, EncodeOptions, Example,
    ExampleStream, Examples, Finder, Truncation, load_examples, saved,
};
use loratune_model::files::ModelFiles;
use loratune_model::files::atomic::replace_dir_atomically;
use loratune_tokenizer::TokenizerBundle;
use serde_json::{Map, Value};

use crate::config::{EvalStrategy, RunConfig, Stage};
use crate::error::{Error, Result};
use crate::feed::{Feed, Streamed};
use crate::{pretrain, vocabulary};

/// Reads, tokenises and checks everything that a run trains and evaluates on; of a stream the first rows. `started` is when
/// the run was first started, in seconds since 1970.
///
/// # Errors
/// The first thing that is wrong with a dataset or a row, with its place.
pub fn load(
    config: &RunConfig,
    hub: Option<&dyn DatasetHub>,
    files: &ModelFiles,
    tokenizer: &TokenizerBundle,
    started: u64,
) -> Result<(Feed, DatasetReport)> {
    crate::run::on_threads(config.preprocessing_num_workers, || {
        load_here(config, hub, files, tokenizer, started)
    })
}

fn load_here(
    config: &RunConfig,
    hub: Option<&dyn DatasetHub>,
    files: &ModelFiles,
    tokenizer: &TokenizerBundle,
    started: u64,
) -> Result<(Feed, DatasetReport)> {
    if let Some(dir) = config.tokenized_path.as_deref().map(Path::new) {
        if let Some(splits) = saved::splits(dir)? {
            return tokenised(config, dir, &splits, files, tokenizer);
        }
        if config.dataset.is_empty() {
            return Err(Error::Invalid(format!(
                "tokenized_path: {} holds no rows, and no dataset is named to make some of",
                dir.display()
            )));
        }
    }
    let mut finder = Finder::new(&config.dataset_dir, hub)?;
    let spec = spec(config, &mut finder)?;
    let options = options(config, started);
    let (feed, mut report) = if config.streaming {
        streamed(config, spec, options, files, tokenizer)?
    } else {
        let data = load_examples(&spec, tokenizer, &options)?;
        let data = if config.cuts_blocks() { pretrain::cut(config, data, files, tokenizer)? } else { data };
        check_fits(&data.train, files, tokenizer)?;
        check_fits(&data.eval, files, tokenizer)?;
        let mut feed = Feed::new(data.train, data.eval, config);
        feed.eval_sets = data.eval_sets;
        (feed, data.report)
    };
    report.warnings.extend(finder.notes().iter().cloned());
    if let Some(dir) = &config.tokenized_path {
        report
            .warnings
            .push(format!("tokenized_path: the tokenised rows are written to {dir} when the run starts"));
    }
    Ok((feed, report))
}

/// Rows that an earlier run, or LLaMA-Factory, left in `tokenized_path`.
fn tokenised(
    config: &RunConfig,
    dir: &Path,
    splits: &[String],
    files: &ModelFiles,
    tokenizer: &TokenizerBundle,
) -> Result<(Feed, DatasetReport)> {
    let eval: Vec<DatasetSource> = splits
        .iter()
        .filter_map(|split| {
            let name = split.strip_prefix(EVALUATION)?;
            let source = saved::source(dir, split);
            Some(match name.strip_prefix('_') {
                Some(name) => DatasetSource { name: name.into(), ..source },
                None => source,
            })
        })
        .collect();
    let spec = DatasetSpec {
        eval_apart: splits.iter().any(|s| s.starts_with(&format!("{EVALUATION}_"))),
        train: vec![saved::source(dir, TRAINING)],
        eval,
        seed: config.data_seed.unwrap_or(config.seed),
        cache: cache(config),
        ..DatasetSpec::default()
    };
    let packing = (config.packing && !config.cuts_blocks()).then_some(config.cutoff_len as usize);
    let options = EncodeOptions { packing, ..EncodeOptions::default() };
    let data = load_examples(&spec, tokenizer, &options)?;
    let asks = config.eval_strategy != EvalStrategy::No || config.do_eval || config.do_predict;
    if asks && data.eval.is_empty() {
        return Err(Error::Invalid(format!(
            "tokenized_path: {} holds no rows to evaluate on (a split `{EVALUATION}`); set eval_strategy: no, or have the rows \
             tokenised anew with val_size or eval_dataset in another folder",
            dir.display()
        )));
    }
    check_fits(&data.train, files, tokenizer)?;
    check_fits(&data.eval, files, tokenizer)?;
    let mut report = data.report;
    report.template = "as the rows were saved".into();
    report.warnings.push(format!(
        "tokenized_path: the rows are those in {}; dataset, template, cutoff_len and whatever else says how rows are read \
         change nothing",
        dir.display()
    ));
    let mut feed = Feed::new(data.train, data.eval, config);
    feed.eval_sets = data.eval_sets;
    Ok((feed, report))
}

/// The splits of saved rows, in LLaMA-Factory's names; evaluation sets by themselves are `validation_NAME`.
const TRAINING: &str = "train";
const EVALUATION: &str = "validation";

/// Writes the rows of a run into a folder, if nothing is there.
///
/// # Errors
/// If it holds something else, or can't be written.
pub(crate) fn save_tokenised(feed: &Feed, dir: &Path) -> Result<()> {
    let Some(train) = feed.training_rows().filter(|_| saved::splits(dir).is_ok_and(|s| s.is_none())) else {
        return saved::splits(dir).map(|_| ()).map_err(Into::into);
    };
    let mut splits = vec![(TRAINING.to_string(), train, 0..train.len())];
    for (name, range) in &feed.eval_sets {
        let name = format!("{EVALUATION}_{}", saved::split_name(name));
        splits.push((name, &feed.eval, range.clone()));
    }
    if feed.eval_sets.is_empty() && !feed.eval.is_empty() {
        splits.push((EVALUATION.to_string(), &feed.eval, 0..feed.eval.len()));
    }
    if let Some(parent) = dir.parent().filter(|p| !p.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|source| Error::OutputIo { path: parent.into(), source })?;
    }
    replace_dir_atomically(dir, |aside| -> Result<()> { Ok(saved::save(aside, &splits)?) })
}

fn cache(config: &RunConfig) -> Option<CacheOptions> {
    let dir = CacheOptions::default_dir()?;
    Some(CacheOptions { overwrite: config.overwrite_cache, ..CacheOptions::new(dir) })
}

/// The path that a dataset's name leads to, for a run that must not write over its own data; the name itself where it leads
/// to none.
pub(crate) fn place(name: &str, dataset_dir: &str) -> PathBuf {
    let found = Finder::new(dataset_dir, None).and_then(|mut finder| finder.find(name));
    match found {
        Ok(source) => source.files.first().cloned().unwrap_or(source.path),
        Err(_) => PathBuf::from(name),
    }
}

/// The datasets that a configuration names.
fn spec(config: &RunConfig, finder: &mut Finder<'_>) -> Result<DatasetSpec> {
    let mut sources = |names: &[String]| -> Result<Vec<DatasetSource>> {
        names
            .iter()
            .map(|name| {
                let source = finder.find(name)?;
                Ok(DatasetSource { max_samples: config.max_samples.map(|n| n as usize), ..source })
            })
            .collect()
    };
    Ok(DatasetSpec {
        train: sources(&config.dataset)?,
        eval: sources(&config.eval_dataset)?,
        mix: config.mix_strategy.mix(),
        weights: (!config.interleave_probs.is_empty()).then(|| config.interleave_probs.clone()),
        eval_apart: config.eval_on_each_dataset,
        val_size: config.val_size,
        seed: config.data_seed.unwrap_or(config.seed),
        cache: cache(config),
    })
}

/// How rows become examples.
fn options(config: &RunConfig, started: u64) -> EncodeOptions {
    let mut template_variables = Map::new();
    if let Some(thinking) = config.enable_thinking {
        template_variables.insert("enable_thinking".into(), thinking.0.map_or(Value::Null, Value::Bool));
    }
    if config.preserve_thinking {
        template_variables.insert("preserve_thinking".into(), Value::Bool(true));
    }
    EncodeOptions {
        template: config.template.clone(),
        default_system: config.default_system.clone(),
        tool_format: config.tool_format.clone(),
        // Documents that are cut into blocks stay whole until then.
        cutoff_len: (!config.cuts_blocks()).then_some(config.cutoff_len as usize),
        text_column: config.text_column.clone(),
        messages_column: config.messages_column.clone(),
        pretrain: pretrain::documents(config),
        truncation: match config.reserved_label_len {
            Some(n) => Truncation::Proportional(n as usize),
            None => Truncation::Balanced,
        },
        train_on_prompt: config.train_on_prompt || config.stage == Stage::Pt,
        mask_history: config.mask_history,
        packing: (config.packing && !config.cuts_blocks()).then_some(config.cutoff_len as usize),
        template_variables,
        now: Some(started),
        ..EncodeOptions::default()
    }
}

fn streamed(
    config: &RunConfig,
    spec: DatasetSpec,
    options: EncodeOptions,
    files: &ModelFiles,
    tokenizer: &TokenizerBundle,
) -> Result<(Feed, DatasetReport)> {
    let eval_spec = DatasetSpec {
        train: spec.eval.clone(),
        val_size: 0.0,
        eval: Vec::new(),
        mix: if spec.eval_apart { loratune_data::Mix::Concat } else { spec.mix },
        weights: spec.weights.clone().filter(|_| !spec.eval_apart),
        ..spec.clone()
    };
    let (apart, has_eval) = (spec.eval_apart, !spec.eval.is_empty());
    let buffer = (!config.disable_shuffling).then_some(config.buffer_size as usize);
    let shared: Arc<TokenizerBundle> = Arc::new(tokenizer.clone());
    let stream = ExampleStream::new(spec, shared, options.clone(), buffer)?;
    let (head, mut report) = stream.head()?;
    let (mut eval, mut eval_sets): (Examples, _) = (head.into_iter().collect(), Vec::new());
    if has_eval {
        // As the evaluation of the same training set: only the counts are its own.
        let spec = DatasetSpec { eval: eval_spec.train.clone(), eval_apart: apart, ..eval_spec };
        let data = load_examples(&spec, tokenizer, &options)?;
        (report.eval, report.eval_formats) = (data.report.eval, data.report.eval_formats);
        (eval, eval_sets) = (data.eval, data.eval_sets);
    }
    check_fits(&eval, files, tokenizer)?;
    let digest = stream.digest()?;
    let capacity = config.packing.then_some(config.cutoff_len as usize);
    let streamed = Streamed::new(stream, capacity, Fits::of(files));
    let mut feed = Feed::streamed(streamed, digest, eval, config);
    feed.eval_sets = eval_sets;
    Ok((feed, report))
}

/// Every row must fit the model: its context and its vocabulary.
///
/// # Errors
/// The first row that does not, with its place.
pub fn check_fits(examples: &Examples, files: &ModelFiles, tokenizer: &TokenizerBundle) -> Result<()> {
    let (context, vocabulary) = (files.config.spec.max_positions, files.config.spec.vocab_size);
    for i in 0..examples.len() {
        let tokens = examples.tokens(i);
        let labels = tokens.labels().filter(|&l| l >= 0).map(|l| l as u32);
        let beyond = tokens.ids().chain(labels).any(|id| id as usize >= vocabulary);
        if tokens.len() > context || beyond {
            return fits(&examples.get(i), files, tokenizer);
        }
    }
    Ok(())
}

fn fits(example: &Example, files: &ModelFiles, tokenizer: &TokenizerBundle) -> Result<()> {
    let fits = Fits::of(files);
    fits.length(example)?;
    match fits.beyond(example) {
        Some(id) => Err(vocabulary::no_row(&example.source.to_string(), id, files, tokenizer)),
        None => Ok(()),
    }
}

/// What a model can take: asked of the examples of a stream as they come.
#[derive(Debug, Clone, Copy)]
pub struct Fits {
    context: usize,
    vocabulary: usize,
}

impl Fits {
    fn of(files: &ModelFiles) -> Fits {
        let spec = &files.config.spec;
        Fits { context: spec.max_positions, vocabulary: spec.vocab_size }
    }

    /// As [`check_fits`].
    ///
    /// # Errors
    /// That the example does not fit, with its place.
    pub fn check(&self, example: &Example) -> Result<()> {
        self.length(example)?;
        match self.beyond(example) {
            None => Ok(()),
            Some(id) => Err(Error::Misfit(format!(
                "{}: token id {id} has no row in the model's embedding of {} rows (vocab_size): set resize_vocab: true if \
                 tokens were added, or use the tokenizer that belongs to the model",
                example.source, self.vocabulary
            ))),
        }
    }

    fn length(&self, example: &Example) -> Result<()> {
        if example.input_ids.len() <= self.context {
            return Ok(());
        }
        Err(Error::Misfit(format!(
            "{}: the row has {} tokens, more than the model's context of {} (max_position_embeddings): set cutoff_len to {} \
             or less",
            example.source,
            example.input_ids.len(),
            self.context,
            self.context
        )))
    }

    /// The first id that the model's vocabulary has no row for.
    fn beyond(&self, example: &Example) -> Option<u32> {
        let labels = example.labels.iter().filter(|&&l| l >= 0).map(|&l| l as u32);
        example.input_ids.iter().copied().chain(labels).find(|&id| id as usize >= self.vocabulary)
    }
}
