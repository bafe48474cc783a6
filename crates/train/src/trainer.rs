//! The loop: steps, logs, evaluations, checkpoints, and when to stop.

use std::ops::Range;
use std::time::Instant;

use loratune_engine::rng::Key;
use loratune_engine::{Gradients, Mode, Tape};
use loratune_model::Batch;
use loratune_model::generate::Sampling;

use crate::checkpoint::Output;
use crate::config::{EvalStrategy, LogStrategy, MicroBatch, RunConfig, SaveStrategy};
use crate::error::{Error, Result};
use crate::evaluate::evaluate;
use crate::feed::Feed;
use crate::model::TrainedModel;
use crate::optimizer::Optimizer;
use crate::predict::{self, Prediction};
use crate::progress::{Evaluation, Progress, StepReport};
use crate::report::{EvalMetrics, LogEntry};
use crate::schedule::{Rates, Schedule};

/// What watches a run and may end it.
pub trait Observer: Send {
    fn step(&mut self, report: &StepReport);
    fn evaluating(&mut self, _batch: usize, _batches: usize) {}
    fn answering(&mut self, _row: usize, _rows: usize) {}
    fn evaluated(&mut self, step: u64, evaluation: &Evaluation);
    fn logged(&mut self, entry: &LogEntry, total_steps: u64);
    fn saved(&mut self, step: u64, path: &std::path::Path);
    /// Batches are computed in parts of so many rows from now on, for this reason.
    fn halved(&mut self, _rows: u64, _why: &str) {}
    /// Asked after every step; true saves a checkpoint and ends the run.
    fn stop_requested(&mut self) -> bool {
        false
    }
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ending {
    Finished,
    /// No better metric for as many evaluations as were allowed.
    EarlyStopped {
        step: u64,
    },
    /// Stopped by request; the checkpoint holds everything.
    Interrupted {
        step: u64,
    },
}

/// What turned out not to be finite.
enum Wrong {
    Loss(f64),
    Gradient { loss: f64, norm: f64 },
    Evaluation(Evaluation),
}

/// What a step's micro-batches come to.
struct Gradient {
    grads: Gradients,
    /// Mean over the trained tokens.
    loss: f64,
    tokens: usize,
    trained: usize,
}

/// Step numbers at which something happens, every `interval` steps or at the ends of epochs.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    Never,
    Every(u64),
    Epochs(u64),
}

impl When {
    fn is(self, step: u64, total: u64) -> bool {
        match self {
            When::Never => false,
            When::Every(n) => step.is_multiple_of(n.max(1)),
            When::Epochs(steps) => step.is_multiple_of(steps) || step == total,
        }
    }
}

/// A run under way.
pub struct Trainer<'a> {
    config: &'a RunConfig,
    feed: &'a Feed,
    output: &'a Output,
    pub model: &'a mut TrainedModel,
    pub optimizer: Optimizer,
    pub progress: Progress,
    /// The latest evaluation of this process, and its step.
    pub evaluated: Option<(u64, Evaluation)>,
    /// When the run was first started, in seconds since 1970: what templates that print the date were given.
    pub started: u64,
    schedule: Schedule,
    total: u64,
    warmup: u64,
    log_when: When,
    eval_when: When,
    save_when: When,
}

impl<'a> Trainer<'a> {
    pub fn new(
        config: &'a RunConfig,
        feed: &'a Feed,
        output: &'a Output,
        model: &'a mut TrainedModel,
        started: u64,
    ) -> Result<Trainer<'a>> {
        let total = feed.total_steps(config);
        let epoch = feed.steps_per_epoch();
        let logging = config.logging_steps.resolve(total, feed.batches_to_log_by());
        let optimizer = Optimizer::new(&model.params, config)?;
        let schedule = config.schedule().map_err(|e| Error::Invalid(e.to_string()))?;
        let rates = schedule.plateau().map(|p| Rates::new(p, config.learning_rate, &optimizer.lr_factors()));
        Ok(Trainer {
            optimizer,
            progress: Progress { rates, ..Progress::default() },
            schedule,
            total,
            warmup: config.warmup(total),
            log_when: match config.logging_strategy {
                LogStrategy::No => When::Never,
                LogStrategy::Steps => When::Every(logging),
                LogStrategy::Epoch => When::Epochs(epoch),
            },
            eval_when: match config.eval_strategy {
                EvalStrategy::No => When::Never,
                EvalStrategy::Steps => When::Every(config.eval_steps.map_or(logging, |s| s.resolve(total))),
                EvalStrategy::Epoch => When::Epochs(epoch),
            },
            save_when: match config.save_strategy {
                SaveStrategy::No | SaveStrategy::Best => When::Never,
                SaveStrategy::Steps => When::Every(config.save_steps.resolve(total)),
                SaveStrategy::Epoch => When::Epochs(epoch),
            },
            config,
            feed,
            output,
            model,
            started,
            evaluated: None,
        })
    }

    pub fn total_steps(&self) -> u64 {
        self.total
    }

    /// Runs to the end, or until the observer or early stopping ends it.
    pub fn run(&mut self, observer: &mut dyn Observer) -> Result<Ending> {
        if self.progress.step > 0 && self.patience_is_over() {
            // Resumed from the checkpoint that early stopping wrote: the run had ended there.
            return Ok(Ending::EarlyStopped { step: self.progress.step });
        }
        if self.config.eval_on_start && self.progress.step == 0 && self.eval_when != When::Never {
            self.evaluate(observer)?;
        }
        while self.progress.step < self.total {
            let report = self.step(observer)?;
            observer.step(&report);
            let step = report.step;
            let mut saved = false;
            if self.must_log(step) {
                self.log(&report, observer);
            }
            let mut early = false;
            if self.must_evaluate(step) {
                early = self.evaluate(observer)?;
            }
            let stops = step < self.total && !early && observer.stop_requested();
            if self.save_when.is(step, self.total) || self.must_save_best(step) {
                self.save(stops, observer)?;
                saved = true;
            }
            if early {
                if !saved {
                    self.save(false, observer)?;
                }
                return Ok(Ending::EarlyStopped { step });
            }
            if stops {
                if !saved {
                    self.save(true, observer)?;
                }
                return Ok(Ending::Interrupted { step });
            }
        }
        Ok(Ending::Finished)
    }

    fn must_log(&self, step: u64) -> bool {
        let left_over = step == self.total && self.progress.loss_steps > 0 && self.log_when != When::Never;
        let first = step == 1 && self.config.logging_first_step;
        self.log_when.is(step, self.total) || left_over || first
    }

    /// `eval_delay` counts what `eval_strategy` does: steps, or epochs.
    fn must_evaluate(&self, step: u64) -> bool {
        let passed = match self.eval_when {
            When::Epochs(_) => self.epoch(),
            _ => step as f64,
        };
        self.eval_when.is(step, self.total) && passed >= self.config.eval_delay
    }

    /// With `load_best_model_at_end` the best weights must be on disk whatever `save_steps` says.
    fn must_save_best(&self, step: u64) -> bool {
        let wanted = self.config.load_best_model_at_end || self.config.save_strategy == SaveStrategy::Best;
        wanted && self.progress.best.is_some_and(|(_, at)| at == step)
    }

    /// The learning rate of the parameters whose group has this multiple of `learning_rate`.
    fn learning_rate(&self, lr_factor: f64) -> f64 {
        match &self.progress.rates {
            Some(rates) => rates.of(lr_factor),
            None => {
                let factor = self.schedule.lr_factor(self.progress.step, self.warmup, self.total);
                self.config.learning_rate * factor * lr_factor
            }
        }
    }

    fn epoch(&self) -> f64 {
        self.progress.step as f64 / self.feed.steps_per_epoch() as f64
    }

    /// One optimiser step: all micro-batches of its window, then the update.
    fn step(&mut self, observer: &mut dyn Observer) -> Result<StepReport> {
        let start = Instant::now();
        let learning_rate = self.learning_rate(1.0);
        let Gradient { grads, loss, tokens, trained } = self.gradient(learning_rate, observer)?;
        let grad_norm = grads.norm()?;
        if !grad_norm.is_finite() {
            let place = grads.first_non_finite(&self.model.params);
            let place = place.map_or_else(
                || "each gradient is finite, but not the sum of their squares".into(),
                |p| format!("the first such gradient is that of {p}"),
            );
            return Err(self.non_finite(
                Wrong::Gradient { loss, norm: grad_norm },
                place,
                learning_rate,
                observer,
            ));
        }
        let max = self.config.max_grad_norm;
        let clip = if max > 0.0 { (max / (grad_norm + 1e-6)).min(1.0) } else { 1.0 };
        let rates: Vec<f64> = self.optimizer.lr_factors().iter().map(|f| self.learning_rate(*f)).collect();
        self.optimizer.step(&mut self.model.params, &grads, clip, &rates)?;
        self.progress.step += 1;
        self.progress.loss_sum += loss;
        self.progress.loss_steps += 1;
        self.progress.total_loss += loss;
        self.progress.tokens_seen += tokens as u64;
        Ok(StepReport {
            step: self.progress.step,
            total: self.total,
            loss,
            grad_norm,
            learning_rate,
            tokens,
            trained_tokens: trained,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    fn may_halve(&self) -> bool {
        self.config.auto_find_batch_size || self.config.micro_batch == Some(MicroBatch::Auto)
    }

    /// The gradient of the next step. With `auto_find_batch_size` or `micro_batch: auto`, batches that a card has no room for are
    /// halved until it has.
    fn gradient(&mut self, learning_rate: f64, observer: &mut dyn Observer) -> Result<Gradient> {
        loop {
            let window = self.feed.window(self.progress.step, self.progress.halvings)?;
            match self.accumulate(&window, learning_rate, observer) {
                Err(e) if e.is_out_of_memory() && self.may_halve() => {
                    let size = self.feed.micro_batch() as u64 >> self.progress.halvings;
                    if size <= 1 {
                        return Err(e);
                    }
                    self.progress.halvings += 1;
                    observer.halved(size / 2, &e.to_string());
                }
                done => return done,
            }
        }
    }

    fn accumulate(
        &mut self,
        window: &[Batch],
        learning_rate: f64,
        observer: &mut dyn Observer,
    ) -> Result<Gradient> {
        let trained: usize = window.iter().map(Batch::trained_tokens).sum();
        let tokens: usize = window.iter().map(Batch::tokens).sum();
        // Dividing the sum by the whole window's count makes 8 × 1 rows the same step as 1 × 8.
        let per_token = 1.0 / trained.max(1) as f64;
        let mut grads = Gradients::new(&self.model.params);
        let mut loss = 0.0;
        for (micro, batch) in window.iter().enumerate() {
            let key = Key::new(self.config.seed).named("train").with(self.progress.step).with(micro as u64);
            let mut tape = Tape::new(&self.model.params, Mode::Train(key));
            let out = self.model.decoder.loss(&mut tape, batch)?;
            let value = out.loss.value().item();
            if !value.is_finite() {
                let place = self.first_non_finite(batch)?;
                return Err(self.non_finite(Wrong::Loss(value), place, learning_rate, observer));
            }
            loss += value;
            tape.backward(&out.loss, per_token, &mut grads)?;
        }
        Ok(Gradient { grads, loss: loss * per_token, tokens, trained })
    }

    /// In which layer's output the first value that is not finite stands.
    fn first_non_finite(&self, batch: &loratune_model::Batch) -> Result<String> {
        let place = self.model.decoder.first_non_finite(&self.model.params, batch)?;
        Ok(match place {
            Some(p) => format!("the first such value is in the output of {p}"),
            None => "all layers' outputs are finite, the overflow is in the head".into(),
        })
    }

    /// Logs what is wrong, after what is still to be logged, and makes the error that ends the run.
    fn non_finite(
        &mut self,
        wrong: Wrong,
        place: String,
        learning_rate: f64,
        observer: &mut dyn Observer,
    ) -> Error {
        let epochs = self.feed.steps_per_epoch() as f64;
        if self.progress.loss_steps > 0 {
            let loss = self.progress.loss_sum / self.progress.loss_steps as f64;
            let entry = LogEntry::train(self.progress.step, self.epoch(), loss, f64::NAN, learning_rate);
            (self.progress.loss_sum, self.progress.loss_steps) = (0.0, 0);
            self.record(entry, observer);
        }
        let step = self.progress.step + 1;
        let epoch = step as f64 / epochs;
        let (entry, what) = match wrong {
            Wrong::Loss(loss) => {
                (LogEntry::train(step, epoch, loss, f64::NAN, learning_rate), format!("the loss ({loss})"))
            }
            Wrong::Gradient { loss, norm } => (
                LogEntry::train(step, epoch, loss, norm, learning_rate),
                format!("the gradient's norm ({norm})"),
            ),
            Wrong::Evaluation(e) => {
                (LogEntry::eval(step - 1, self.epoch(), &e), format!("the evaluation's loss ({})", e.loss))
            }
        };
        let step = entry.step;
        self.record(entry, observer);
        Error::NonFinite { step, what, place, last: self.output.last_state(), learning_rate }
    }

    fn record(&mut self, entry: LogEntry, observer: &mut dyn Observer) {
        observer.logged(&entry, self.total);
        self.progress.log.push(entry);
    }

    fn log(&mut self, report: &StepReport, observer: &mut dyn Observer) {
        let loss = self.progress.loss_sum / self.progress.loss_steps as f64;
        let entry = LogEntry::train(report.step, self.epoch(), loss, report.grad_norm, report.learning_rate);
        (self.progress.loss_sum, self.progress.loss_steps) = (0.0, 0);
        self.record(entry, observer);
    }

    /// Returns whether the run should stop early.
    fn evaluate(&mut self, observer: &mut dyn Observer) -> Result<bool> {
        let batches = self.feed.eval.len().div_ceil(self.config.per_device_eval_batch_size as usize);
        let watched = self.feed.eval_batches().enumerate().map(|(i, b)| {
            observer.evaluating(i, batches);
            b
        });
        let (mut evaluation, by_set) = match self.feed.eval_sets.as_slice() {
            [] => (evaluate(&self.model.decoder, &self.model.params, watched)?, Vec::new()),
            sets => self.evaluate_each(sets, observer)?,
        };
        if self.config.predict_with_generate && evaluation.loss.is_finite() {
            evaluation.generated = Some(predict::scores(&self.predict(observer)?));
        }
        if !evaluation.loss.is_finite() {
            return Err(self.non_finite_evaluation(evaluation, observer)?);
        }
        let step = self.progress.step;
        self.evaluated = Some((step, evaluation));
        observer.evaluated(step, &evaluation);
        let mut metrics = EvalMetrics::from(&evaluation);
        for (name, of) in by_set {
            metrics.metrics.insert(format!("{name}_loss"), of.loss);
            metrics.metrics.insert(format!("{name}_accuracy"), of.accuracy);
        }
        self.record(LogEntry::eval(step, self.epoch(), metrics), observer);
        if step == 0 {
            // There is no checkpoint of the start that could be kept.
            return Ok(false);
        }
        let metric = self.config.metric_for_best_model;
        let value = metric.of(&evaluation).unwrap_or(f64::NAN);
        let greater = self.config.greater_is_better.unwrap_or_else(|| metric.greater_is_better());
        if let (Some(plateau), Some(rates)) = (self.schedule.plateau(), &mut self.progress.rates) {
            rates.evaluated(plateau, value, plateau.greater.unwrap_or(greater));
        }
        let better =
            self.progress.best.is_none_or(|(best, _)| if greater { value > best } else { value < best });
        if better {
            self.progress.best = Some((value, step));
            self.progress.evaluations_without_gain = 0;
        } else {
            self.progress.evaluations_without_gain += 1;
        }
        Ok(self.patience_is_over())
    }

    /// The evaluation of all sets together, and each by itself.
    fn evaluate_each(
        &self,
        sets: &[(String, Range<usize>)],
        observer: &mut dyn Observer,
    ) -> Result<(Evaluation, Vec<(String, Evaluation)>)> {
        let size = self.config.per_device_eval_batch_size as usize;
        let batches = sets.iter().map(|(_, part)| part.len().div_ceil(size)).sum();
        let mut done = 0;
        let mut by_set = Vec::with_capacity(sets.len());
        for (name, part) in sets {
            let watched = self.feed.eval_batches_of(part.clone()).inspect(|_| {
                observer.evaluating(done, batches);
                done += 1;
            });
            by_set.push((name.clone(), evaluate(&self.model.decoder, &self.model.params, watched)?));
        }
        let tokens: usize = by_set.iter().map(|(_, e)| e.tokens).sum();
        let mean = |of: fn(&Evaluation) -> f64| {
            by_set.iter().map(|(_, e)| of(e) * e.tokens as f64).sum::<f64>() / tokens.max(1) as f64
        };
        Ok((
            Evaluation { loss: mean(|e| e.loss), accuracy: mean(|e| e.accuracy), tokens, generated: None },
            by_set,
        ))
    }

    /// The model's answers to the evaluation rows. Equal weights give equal answers, whenever they are asked.
    pub fn predict(&self, observer: &mut dyn Observer) -> Result<Vec<Prediction>> {
        let (config, model) = (self.config, &*self.model);
        let sampling = Sampling {
            temperature: if config.do_sample { config.temperature } else { 0.0 },
            top_p: config.top_p,
            top_k: config.top_k as usize,
            seed: config.seed,
            first: 0,
            max_new_tokens: config.max_new_tokens as usize,
            stop: predict::stop_ids(&model.files, &model.tokenizer),
        };
        let rows = self.feed.eval.len();
        let mut answered = 0;
        predict::predict(
            (&model.decoder, &model.params, &model.tokenizer),
            &self.feed.eval.to_vec(),
            &sampling,
            config.per_device_eval_batch_size as usize,
            config.skip_special_tokens,
            |n| {
                answered += n as usize;
                observer.answering(answered, rows);
            },
        )
    }

    /// Loss and, if asked, answers of the weights as they are.
    pub fn measure(&self, observer: &mut dyn Observer) -> Result<Evaluation> {
        let mut evaluation = evaluate(&self.model.decoder, &self.model.params, self.feed.eval_batches())?;
        if self.config.predict_with_generate {
            evaluation.generated = Some(predict::scores(&self.predict(observer)?));
        }
        Ok(evaluation)
    }

    fn patience_is_over(&self) -> bool {
        self.config.early_stopping_steps.is_some_and(|p| self.progress.evaluations_without_gain >= p)
    }

    fn non_finite_evaluation(
        &mut self,
        evaluation: Evaluation,
        observer: &mut dyn Observer,
    ) -> Result<Error> {
        let mut place = String::new();
        for batch in self.feed.eval_batches() {
            if self.model.decoder.first_non_finite(&self.model.params, &batch)?.is_some() || place.is_empty()
            {
                place = self.first_non_finite(&batch)?;
            }
        }
        let learning_rate = self.learning_rate(1.0);
        Ok(self.non_finite(Wrong::Evaluation(evaluation), place, learning_rate, observer))
    }

    /// Writes a checkpoint. An interrupted run goes on from its last one, so that holds everything.
    fn save(&mut self, interrupted: bool, observer: &mut dyn Observer) -> Result<()> {
        let whole = interrupted || !self.config.save_only_model;
        let path = self.output.save_checkpoint(self, whole)?;
        observer.saved(self.progress.step, &path);
        Ok(())
    }
}

impl Trainer<'_> {
    pub fn config(&self) -> &RunConfig {
        self.config
    }
    pub fn feed(&self) -> &Feed {
        self.feed
    }
}
