//! A whole run: from a configuration to an output folder.

use std::path::{Path, PathBuf};
use std::time::Instant;

use loratune_data::{DatasetHub, DatasetReport};
use loratune_engine::cuda::{CudaDevice, Planned};
use loratune_engine::{Checkpointing, ChosenDevice, Device, DeviceChoice};

use crate::checkpoint::{self, Output, Start};
use crate::config::{EvalStrategy, MicroBatch, RunConfig};
use crate::data;
use crate::error::{Error, Result};
use crate::estimate::{Job, largest_micro_batch, lengths_of_step, limit};
use crate::feed::Feed;
use crate::located::Located;
use crate::model::{Method, TrainedModel};
use crate::output::{self, LiveLogs};
use crate::progress::{Evaluation, StepReport};
use crate::report::{LogEntry, LogKind, ReportError};
use crate::trainer::{Ending, Observer, Trainer};
use crate::vocabulary::{self, Opened, Vocabulary};

/// Everything read and checked; nothing written yet.
#[derive(Debug)]
pub struct Prepared {
    pub config: RunConfig,
    pub model: TrainedModel,
    pub feed: Feed,
    pub report: DatasetReport,
    pub vocabulary: Vocabulary,
    pub start: Start,
    /// Where it computes.
    pub device: ChosenDevice,
    /// What the run does otherwise than the model's configuration asks.
    pub notes: Vec<String>,
    output: Output,
    started: u64,
}

/// What a run came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    pub ending: Ending,
    pub output_dir: PathBuf,
    /// Mean loss of all steps.
    pub train_loss: Option<f64>,
    /// Of the weights that were kept: the best ones with `load_best_model_at_end`, else the last.
    pub evaluation: Option<Evaluation>,
    /// The step whose weights were kept, when it's not the last.
    pub best_step: Option<u64>,
    /// Steps, tokens and seconds of this process (a resumed run counts from where it went on).
    pub steps: u64,
    pub tokens: u64,
    pub seconds: f64,
}

/// Reads and checks everything that a run needs.
///
/// # Errors
/// The first thing that is wrong, before anything is written.
pub fn prepare(config: RunConfig) -> Result<Prepared> {
    prepare_with(config, &Located::default(), None)
}

/// As [`prepare`], where some of what the configuration names lies elsewhere than its name says, and with a hub that datasets
/// may come from.
///
/// # Errors
/// As [`prepare`].
pub fn prepare_with(config: RunConfig, located: &Located, hub: Option<&dyn DatasetHub>) -> Result<Prepared> {
    on_threads(config.threads, || prepare_here(config, located, hub))
}

fn prepare_here(mut config: RunConfig, located: &Located, hub: Option<&dyn DatasetHub>) -> Result<Prepared> {
    located.pin(&mut config);
    let (mut output, start) = Output::inspect(&config)?;
    output.pins = located.pins();
    let mut device = config.device.open()?;
    // Before the model's weights take their part.
    let free = |device: Device| -> Result<Option<u64>> {
        Ok(match device {
            Device::Cpu => available_memory(),
            Device::Cuda(n) => Some(CudaDevice::get(n)?.memory()?.0 as u64),
        })
    };
    let free = [device.device, Device::Cpu].map(|device| Ok((device, free(device)?)));
    let free = free.into_iter().collect::<Result<Vec<_>>>()?;
    let started = match &start {
        Start::Resume(path) => checkpoint::started(path)?,
        Start::Fresh => {
            std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
        }
    };
    let Opened { files, tokenizer, mut vocabulary } = vocabulary::open(&config, located)?;
    // The data first: it is quick, and what is wrong in a run is most often there.
    let (mut feed, report) = data::load(&config, hub, &files, &tokenizer, started)?;
    let checkpoint = match &start {
        Start::Resume(path) => Some(path.as_path()),
        Start::Fresh => None,
    };
    let mut model = TrainedModel::open(&config, located, files, tokenizer, checkpoint, device.device)?;
    model.own_tokenizer = vocabulary.own_tokenizer;
    if let (true, Some(what)) = (device.device != Device::Cpu, model.decoder.card_lacks()) {
        let why = format!("{what} are not on NVIDIA cards yet");
        if config.device != DeviceChoice::Auto {
            return Err(Error::Invalid(format!(
                "device is `{}`: {why}; device: cpu trains them",
                config.device
            )));
        }
        device = ChosenDevice { device: Device::Cpu, why_cpu: Some(why) };
        model.to_device(Device::Cpu)?;
    }
    vocabulary.notes.extend(vocabulary::untrained_note(&config, &vocabulary, &model));
    let mut notes: Vec<String> =
        attention_dropout_note(model.files.config.attention_dropout).into_iter().collect();
    notes.extend(offload_note(&config, device.device));
    notes.extend(set_micro_batch(&config, located, &model, &mut feed, device.device, &free)?);
    Ok(Prepared { config, model, feed, report, vocabulary, start, device, notes, output, started })
}

/// How many rows are computed at a time, if the configuration says something of that; what was chosen, for who watches.
fn set_micro_batch(
    config: &RunConfig,
    located: &Located,
    model: &TrainedModel,
    feed: &mut Feed,
    device: Device,
    free: &[(Device, Option<u64>)],
) -> Result<Option<String>> {
    match config.micro_batch {
        None => return Ok(None),
        Some(MicroBatch::Rows(n)) => {
            feed.set_micro_batch(n as usize);
            return Ok(None);
        }
        Some(MicroBatch::Auto) => {}
    }
    let planned = match device {
        Device::Cuda(n) => Planned::like(&*CudaDevice::get(n)?),
        Device::Cpu => Planned::Processor,
    };
    let Some(free) = free.iter().find(|(of, _)| *of == device).and_then(|(_, free)| *free) else {
        return Err(Error::Invalid(
            "micro_batch is `auto`, but this system does not say how much memory is free; give a number of rows"
                .into(),
        ));
    };
    let spec = model.decoder.spec().clone();
    let job = Job::new(config, located, &spec, Some(&model.tokenizer))?;
    let lengths = lengths_of_step(config, Some(feed), &spec);
    let (micro_batch, plan) = largest_micro_batch(&job, planned, &lengths, limit(planned, free as usize))?;
    feed.set_micro_batch(micro_batch);
    Ok(Some(format!(
        "micro_batch: auto: {micro_batch} of a step's {} rows at a time, which take {} MB at most; {} MB are free",
        lengths.len(),
        plan.peak / 1_000_000,
        free / 1_000_000
    )))
}

fn offload_note(config: &RunConfig, device: Device) -> Option<String> {
    (config.gradient_checkpointing == Checkpointing::Offload && device == Device::Cpu).then(|| {
        "gradient_checkpointing `offload` is `block` on the processor, whose memory is the host's".to_string()
    })
}

fn attention_dropout_note(share: f64) -> Option<String> {
    (share > 0.0).then(|| {
        format!(
            "the model's config.json asks for attention_dropout {share}, which PEFT would apply in training; loratune trains \
             without it"
        )
    })
}

/// Runs `work` on so many threads: on those that it is called from if they are as many.
///
/// # Errors
/// The work's, or if the threads can't be started.
pub(crate) fn on_threads<T: Send>(
    threads: Option<u64>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    match threads {
        Some(n) if n as usize != rayon::current_num_threads() => pool(n as usize)?.install(work),
        _ => work(),
    }
}

fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|e| Error::Invalid(format!("{threads} threads can't be started: {e}")))
}

/// Passes everything on, and writes the live logs.
struct Logging<'a> {
    observer: &'a mut dyn Observer,
    logs: LiveLogs,
    failure: Option<ReportError>,
}

impl Observer for Logging<'_> {
    fn step(&mut self, report: &StepReport) {
        self.observer.step(report);
    }
    fn evaluating(&mut self, batch: usize, batches: usize) {
        self.observer.evaluating(batch, batches);
    }
    fn answering(&mut self, row: usize, rows: usize) {
        self.observer.answering(row, rows);
    }
    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        self.observer.evaluated(step, evaluation);
    }
    fn logged(&mut self, entry: &LogEntry, total_steps: u64) {
        if let Err(e) = self.logs.log(entry, total_steps) {
            self.failure.get_or_insert(e);
        }
        self.observer.logged(entry, total_steps);
    }
    fn saved(&mut self, step: u64, path: &Path) {
        self.observer.saved(step, path);
    }
    fn halved(&mut self, rows: u64, why: &str) {
        self.observer.halved(rows, why);
    }
    fn stop_requested(&mut self) -> bool {
        // A log that can't be written (a full disk) ends the run like a request to stop; the error follows.
        self.failure.is_some() || self.observer.stop_requested()
    }
}

impl Prepared {
    /// Optimiser steps of the whole run.
    pub fn total_steps(&self) -> u64 {
        self.feed.total_steps(&self.config)
    }

    /// Numbers that are trained, and the model's.
    pub fn parameters(&self) -> (usize, usize) {
        let trained = self.model.params.numel();
        let base = self.model.decoder.spec().parameters();
        match self.model.method {
            Method::Lora(_) => (trained, base + trained),
            Method::Whole => (trained, base),
        }
    }

    /// Trains, and writes everything that the run leaves behind.
    pub fn run(mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let threads = self.config.threads;
        on_threads(threads, || self.run_here(observer))
    }

    fn run_here(&mut self, observer: &mut dyn Observer) -> Result<Outcome> {
        let config = &self.config;
        self.model.to_device(self.device.device)?;
        self.output.begin(&self.start)?;
        let mut trainer = Trainer::new(config, &self.feed, &self.output, &mut self.model, self.started)?;
        let resumed_at = match &self.start {
            Start::Resume(path) => {
                checkpoint::resume(&mut trainer, path)?;
                Some(trainer.progress.step)
            }
            Start::Fresh => None,
        };
        crate::model::write_text(&self.output.dir().join("run_config.yaml"), &config.to_yaml())?;
        if let Some(dir) = &config.tokenized_path {
            data::save_tokenised(&self.feed, Path::new(dir))?;
        }
        let logs = LiveLogs::open(config, resumed_at)?;
        let mut logging = Logging { observer, logs, failure: None };
        let (clock, first, seen) = (Instant::now(), trainer.progress.step, trainer.progress.tokens_seen);
        let ending = trainer.run(&mut logging);
        let seconds = clock.elapsed().as_secs_f64();
        if ending.is_err() {
            // What the log holds, a non-finite loss included, is on disk before the error is reported.
            output::write_state(&trainer, false).ok();
        }
        let ending = ending?;
        let (steps, tokens) = (trainer.progress.step - first, trainer.progress.tokens_seen - seen);
        let mut outcome = Outcome {
            ending: ending.clone(),
            output_dir: self.output.dir().to_path_buf(),
            train_loss: output::mean_loss(&trainer.progress),
            evaluation: None,
            best_step: None,
            steps,
            tokens,
            seconds,
        };
        match ending {
            Ending::Interrupted { .. } => output::write_state(&trainer, false)?,
            _ => finish(&mut trainer, &self.output, &mut outcome, &mut logging)?,
        }
        // What was learned is on disk before a log that could not be written is complained about.
        logging.failure.map_or(Ok(outcome), |e| Err(e.into()))
    }
}

/// The end of a run that came to its end: keep the best weights if asked, evaluate what is kept, write everything.
fn finish(
    trainer: &mut Trainer<'_>,
    output: &Output,
    outcome: &mut Outcome,
    observer: &mut dyn Observer,
) -> Result<()> {
    let config = trainer.config().clone();
    let mut lost = None;
    if let (true, Some((_, step))) = (config.load_best_model_at_end, trainer.progress.best)
        && step != trainer.progress.step
    {
        match output.checkpoint(step) {
            Some(path) => {
                trainer.model.load_weights(&path)?;
                outcome.best_step = Some(step);
            }
            None => lost = Some(step),
        }
    }
    let kept = outcome.best_step.unwrap_or(trainer.progress.step);
    if config.eval_strategy != EvalStrategy::No || config.do_eval {
        outcome.evaluation = Some(match trainer.evaluated {
            Some((step, evaluation)) if step == kept => evaluation,
            _ => trainer.measure(observer)?,
        });
    }
    if !matches!(trainer.progress.log.last().map(|e| &e.kind), Some(LogKind::Summary { .. })) {
        let (step, epoch) =
            (trainer.progress.step, trainer.progress.step as f64 / trainer.feed().steps_per_epoch() as f64);
        let loss = output::mean_loss(&trainer.progress).unwrap_or(f64::NAN);
        trainer.progress.log.push(LogEntry::summary(step, epoch, loss));
    }
    trainer.model.save_result(output.dir())?;
    output::write_state(trainer, true)?;
    output::write_card(trainer, outcome.evaluation.map(|e| e.loss))?;
    output::write_results(
        trainer,
        outcome.seconds,
        outcome.steps,
        outcome.tokens,
        outcome.evaluation.as_ref(),
    )?;
    if config.do_predict {
        output::write_predictions(output.dir(), &trainer.predict(observer)?)?;
    }
    match lost {
        None => Ok(()),
        Some(step) => Err(Error::Checkpoint {
            path: output.dir().join(format!("checkpoint-{step}")),
            what: "the best checkpoint is gone, so load_best_model_at_end could not load it; the result holds the last \
                   weights"
                .into(),
        }),
    }
}

/// Peak resident memory of this process in bytes, where the system tells (Linux).
pub fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Bytes that this process could still have without other memory being written to disk, where the system tells (Linux): what is
/// free or can be given up by the system, and within the limit of the control group.
pub fn available_memory() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let free = line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024;
    let number = |file: &str| {
        std::fs::read_to_string(format!("/sys/fs/cgroup/{file}")).ok()?.trim().parse::<u64>().ok()
    };
    let limit = number("memory.max").zip(number("memory.current"));
    Some(limit.map_or(free, |(most, now)| free.min(most.saturating_sub(now))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_as_many_as_the_run_asks_for_and_not_started_twice() {
        let threads = || Ok((rayon::current_num_threads(), std::thread::current().id()));
        let (three, inside) = on_threads(Some(3), || {
            let own = std::thread::current().id();
            on_threads(Some(3), threads).map(|(n, id)| (n, id == own))
        })
        .unwrap();
        assert_eq!((three, inside), (3, true));
        assert_eq!(on_threads(None, threads).unwrap().0, rayon::current_num_threads());
    }
}
