//! What a run leaves in its folder when it ends, well or badly.

use std::path::Path;

use loratune_model::adapter::{AdapterSpec, Init};

use crate::config::{Finetuning, Reporter, RunConfig, Value};
use crate::error::Result;
use crate::model::Method;
use crate::predict::{self, Prediction};
use crate::progress::{Evaluation, Progress};
use crate::report::card::{Card, Kind};
use crate::report::history::History;
use crate::report::state::{EarlyStopping, TrainerState};
use crate::report::tensorboard::EventWriter;
use crate::report::{LogEntry, ReportError, plot, results};
use crate::trainer::Trainer;

/// `trainer_state.json` of a trainer.
pub(crate) fn trainer_state(trainer: &Trainer<'_>, finished: bool) -> TrainerState {
    let (config, progress, total) = (trainer.config(), &trainer.progress, trainer.total_steps());
    let epoch = trainer.feed().steps_per_epoch() as f64;
    let logging = config.logging_steps.resolve(total, trainer.feed().batches_to_log_by());
    let best =
        |step: u64| Path::new(&config.output_dir).join(format!("checkpoint-{step}")).display().to_string();
    TrainerState {
        epoch: progress.step as f64 / epoch,
        global_step: progress.step,
        max_steps: total,
        logging_steps: logging,
        eval_steps: config.eval_steps.map_or(logging, |steps| steps.resolve(total)),
        save_steps: config.save_steps.resolve(total),
        train_batch_size: config.per_device_train_batch_size,
        num_train_epochs: (total as f64 / epoch).ceil() as u64,
        num_input_tokens_seen: progress.tokens_seen,
        total_flos: 0.0,
        log_history: progress.log.clone(),
        best_metric: progress.best.map(|b| b.0),
        best_global_step: progress.best.map(|b| b.1),
        best_model_checkpoint: progress.best.filter(|_| config.load_best_model_at_end).map(|b| best(b.1)),
        should_training_stop: finished,
        early_stopping: config
            .early_stopping_steps
            .map(|patience| EarlyStopping { patience, counter: progress.evaluations_without_gain }),
    }
}

/// The logs that grow while a run goes on.
pub(crate) struct LiveLogs {
    history: History,
    events: Option<EventWriter>,
    start: std::time::Instant,
}

impl LiveLogs {
    pub fn open(config: &RunConfig, resumed_at: Option<u64>) -> Result<LiveLogs, ReportError> {
        let dir = Path::new(&config.output_dir);
        let events = match config.report_to.contains(&Reporter::TensorBoard) {
            true => {
                let events = config.logging_dir.as_ref().map_or_else(|| dir.join("runs"), Into::into);
                Some(EventWriter::create(&events, resumed_at)?)
            }
            false => None,
        };
        Ok(LiveLogs { history: History::open(dir, resumed_at)?, events, start: std::time::Instant::now() })
    }

    pub fn log(&mut self, entry: &LogEntry, total_steps: u64) -> Result<(), ReportError> {
        self.history.log(entry, total_steps, self.start.elapsed().as_secs_f64())?;
        match &mut self.events {
            Some(events) => events.log(entry),
            None => Ok(()),
        }
    }
}

/// The state and the plot, as far as the run came; also after an error, so that nothing about it is hidden.
pub(crate) fn write_state(trainer: &Trainer<'_>, finished: bool) -> Result<()> {
    let (config, dir) = (trainer.config(), Path::new(&trainer.config().output_dir));
    trainer_state(trainer, finished).save(&dir.join("trainer_state.json"))?;
    if config.plot_loss {
        plot::save(dir, &trainer.progress.log, &title(trainer))?;
    }
    Ok(())
}

/// What a run with adapters is called: `DoRA + PiSSA + LoRA+`.
pub fn method_name(config: &RunConfig, spec: &AdapterSpec) -> String {
    let mut parts = vec![if spec.use_dora { "DoRA" } else { "LoRA" }];
    let fresh = config.adapter_name_or_path.is_none();
    match spec.init {
        Init::Pissa | Init::PissaNiter(_) if fresh => parts.push("PiSSA"),
        Init::Olora if fresh => parts.push("OLoRA"),
        _ => {}
    }
    if spec.use_rslora {
        parts.push("rsLoRA");
    }
    if config.lora_plus() {
        parts.push("LoRA+");
    }
    if config.neftune_noise_alpha.is_some_and(|a| a > 0.0) {
        parts.push("NEFTune");
    }
    parts.join(" + ")
}

/// What the run's result is.
fn kind(trainer: &Trainer<'_>) -> Kind {
    let config = trainer.config();
    match &trainer.model.method {
        Method::Lora(_) if trainer.model.merged().is_some() => Kind::Merged,
        Method::Lora(_) if trainer.model.raw().is_some() => Kind::RawAdapter,
        Method::Lora(_) => Kind::Adapter,
        Method::Whole
            if config.finetuning_type == Finetuning::Full && config.unfrozen_parameters.is_empty() =>
        {
            Kind::Whole
        }
        Method::Whole => Kind::Part,
    }
}

fn title(trainer: &Trainer<'_>) -> String {
    let name = |path: &str| {
        Path::new(path).file_name().map_or(path.to_string(), |n| n.to_string_lossy().into_owned())
    };
    let config = trainer.config();
    let method = match (&trainer.model.method, kind(trainer)) {
        (Method::Lora(attached), _) => {
            format!("{}, rank {}", method_name(config, &attached.spec), attached.spec.r)
        }
        (Method::Whole, Kind::Part) => "partial fine-tuning".into(),
        (Method::Whole, _) => "full fine-tuning".into(),
    };
    format!("{} · {method}", name(&config.model_name_or_path))
}

/// How fast the run was; the one place with wall-clock times.
pub(crate) fn write_results(
    trainer: &Trainer<'_>,
    seconds: f64,
    steps: u64,
    tokens: u64,
    evaluation: Option<&Evaluation>,
) -> Result<()> {
    let (config, dir) = (trainer.config(), Path::new(&trainer.config().output_dir));
    let rows = steps * config.per_device_train_batch_size * config.gradient_accumulation_steps;
    let mut metrics = results::speed("train", seconds, rows, steps, tokens);
    metrics.extend(mean_loss(&trainer.progress).map(|loss| ("train_loss".to_string(), loss)));
    metrics.extend(crate::run::peak_memory().map(|b| ("peak_memory_bytes".to_string(), b as f64)));
    results::save(dir, "train", &metrics)?;
    if let Some(e) = evaluation {
        results::save(dir, "eval", &LogEntry::eval(0, 0.0, e).values())?;
    }
    Ok(())
}

/// The answers at the end of the run, and what they are worth.
pub(crate) fn write_predictions(dir: &Path, predictions: &[Prediction]) -> Result<()> {
    predict::write(&dir.join("generated_predictions.jsonl"), predictions)?;
    let scores = predict::scores(predictions).values();
    let metrics = scores.into_iter().map(|(name, x)| (format!("predict_{name}"), x)).collect();
    Ok(results::save(dir, "predict", &metrics)?)
}

/// Mean training loss over the run, each step the same weight.
pub(crate) fn mean_loss(progress: &Progress) -> Option<f64> {
    (progress.step > 0).then(|| progress.total_loss / progress.step as f64)
}

/// The model card.
pub(crate) fn write_card(trainer: &Trainer<'_>, eval_loss: Option<f64>) -> Result<()> {
    let config = trainer.config();
    let dir = Path::new(&config.output_dir);
    let shown = [
        "model_name_or_path",
        "dataset",
        "eval_dataset",
        "output_dir",
        "overwrite_output_dir",
        "resume_from_checkpoint",
        "push_to_hub",
        "hub_model_id",
        "hub_token",
        "hub_strategy",
        "hub_private_repo",
        "hub_revision",
        "hub_always_push",
    ];
    // An adapter that was given has its own shape; what the configuration says of one was not used.
    let shape = [
        "lora_rank",
        "lora_alpha",
        "lora_dropout",
        "lora_target",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
    ];
    let lora = match &trainer.model.method {
        Method::Lora(attached) => Some(&attached.spec),
        Method::Whole => None,
    };
    let described = lora.into_iter().flat_map(|spec| {
        [
            ("lora_rank".to_string(), spec.r.to_string()),
            ("lora_alpha".to_string(), spec.alpha.to_string()),
            ("lora_dropout".to_string(), spec.dropout.to_string()),
            ("lora_target".to_string(), spec.targets.to_string()),
            ("use_rslora".to_string(), spec.use_rslora.to_string()),
        ]
    });
    let others = config
        .entries()
        .into_iter()
        .filter(|(key, _)| !shown.contains(&key.name) && !shape.contains(&key.name))
        .filter(|(key, value)| *value != (key.get)(&RunConfig::default()))
        .map(|(key, value)| (key.name.to_string(), words(&value)));
    let hyperparameters = described.chain(others).collect();
    let card = Card {
        name: dir.file_name().map_or_else(|| "model".into(), |n| n.to_string_lossy().into_owned()),
        base_model: trainer.model.base.name.clone(),
        base_is_on_hub: trainer.model.base.on_hub,
        kind: kind(trainer),
        from_scratch: config.train_from_scratch,
        datasets: config.dataset.clone(),
        hub_datasets: Vec::new(),
        repository: config.hub_model_id.clone().filter(|id| config.push_to_hub && id.contains('/')),
        hyperparameters,
        steps: trainer.progress.step,
        epochs: trainer.progress.step as f64 / trainer.feed().steps_per_epoch() as f64,
        train_loss: mean_loss(&trainer.progress),
        eval_loss,
        versions: vec![("loratune".into(), env!("CARGO_PKG_VERSION").into())],
        has_plot: config.plot_loss,
        rows: trainer.model.files.resized_from.map(|_| trainer.model.files.config.spec.vocab_size),
    };
    Ok(card.save(dir)?)
}

fn words(value: &Value) -> String {
    match value {
        Value::Str(s) => s.clone(),
        Value::List(items) => items.iter().map(words).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
