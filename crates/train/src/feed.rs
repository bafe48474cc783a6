//! The data of a run: which rows make up which step.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;

use loratune_data::{EpochOrder, Example, ExampleStream, Examples, Plan, pack};
use loratune_model::Batch;

use crate::config::RunConfig;
use crate::data::Fits;
use crate::error::Result;

/// Examples to train and evaluate on, and the steps they are divided into.
///
/// A step is a pure function of its number: (epoch, window of batches). As in Hugging Face's `Trainer`, windows of
/// accumulated batches never span epochs, and an epoch's last batch and last window may be short.
#[derive(Debug)]
pub struct Feed {
    train: Train,
    pub eval: Examples,
    /// Parts of `eval` that are also evaluated by themselves.
    pub eval_sets: Vec<(String, Range<usize>)>,
    batch_size: usize,
    accumulation: usize,
    /// Rows that are computed at a time.
    micro_batch: usize,
    eval_batch_size: usize,
    batches_per_epoch: usize,
    /// Digest of every token and label, in order; of a stream, of its files and settings.
    digest: String,
}

#[derive(Debug)]
enum Train {
    Rows {
        examples: Examples,
        plan: Plan,
        /// The rows of the epoch that was asked for last.
        cached: RefCell<Option<(u64, Vec<Vec<usize>>)>>,
    },
    Stream(Box<RefCell<Streamed>>),
}

impl Feed {
    pub fn new(train: Examples, eval: Examples, config: &RunConfig) -> Feed {
        let plan = Plan {
            lengths: (0..train.len()).map(|i| train.length(i)).collect(),
            capacity: (config.packing && !config.cuts_blocks()).then_some(config.cutoff_len as usize),
            order: EpochOrder {
                seed: config.data_seed.unwrap_or(config.seed),
                shuffle: !config.disable_shuffling,
            },
        };
        let batch_size = config.per_device_train_batch_size as usize;
        Feed {
            batches_per_epoch: match config.dataloader_drop_last {
                false => plan.batches_per_epoch(batch_size),
                true => plan.rows_per_epoch() / batch_size,
            },
            digest: digest(&[&train, &eval]),
            train: Train::Rows { examples: train, plan, cached: RefCell::default() },
            eval,
            eval_sets: Vec::new(),
            batch_size,
            micro_batch: batch_size,
            accumulation: config.gradient_accumulation_steps as usize,
            eval_batch_size: config.per_device_eval_batch_size as usize,
        }
    }

    /// Of a stream, whose one epoch is the whole run, as Hugging Face counts it.
    pub fn streamed(stream: Streamed, digest: String, eval: Examples, config: &RunConfig) -> Feed {
        let accumulation = config.gradient_accumulation_steps as usize;
        Feed {
            train: Train::Stream(Box::new(RefCell::new(stream))),
            eval,
            eval_sets: Vec::new(),
            batch_size: config.per_device_train_batch_size as usize,
            micro_batch: config.per_device_train_batch_size as usize,
            accumulation,
            eval_batch_size: config.per_device_eval_batch_size as usize,
            batches_per_epoch: config.max_steps.0.unwrap_or(1) as usize * accumulation,
            digest,
        }
    }

    /// Rows of a step, but for an epoch's last one.
    pub fn rows_per_step(&self) -> usize {
        self.batch_size * self.accumulation
    }

    /// Has so many of a step's rows computed at a time; the steps stay what they are.
    pub fn set_micro_batch(&mut self, rows: usize) {
        self.micro_batch = rows.max(1);
    }

    pub fn micro_batch(&self) -> usize {
        self.micro_batch
    }

    /// Examples to train on; `None` of a stream, which has no end.
    pub fn examples(&self) -> Option<usize> {
        match &self.train {
            Train::Rows { examples, .. } => Some(examples.len()),
            Train::Stream(_) => None,
        }
    }

    /// What is trained on; `None` of a stream.
    pub fn training_rows(&self) -> Option<&Examples> {
        match &self.train {
            Train::Rows { examples, .. } => Some(examples),
            Train::Stream(_) => None,
        }
    }

    /// A digest of every token and label of the run's data, in order.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// The lengths of the `count` longest rows in tokens, the longest first; `None` of a stream. A batch of more rows than that
    /// has none longer.
    pub fn longest_rows(&self, count: usize) -> Option<Vec<usize>> {
        let Train::Rows { examples, plan, .. } = &self.train else { return None };
        let rows = plan.rows(0);
        let length = |row: &Vec<usize>| row.iter().map(|&i| examples.length(i)).sum::<usize>();
        let mut lengths: Vec<usize> = rows.iter().map(length).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.truncate(count);
        Some(lengths)
    }

    /// Tokens in an epoch; `None` of a stream.
    pub fn tokens_per_epoch(&self) -> Option<u64> {
        let Train::Rows { plan, .. } = &self.train else { return None };
        Some(plan.lengths.iter().map(|&n| n as u64).sum())
    }

    /// Rows in an epoch: examples, or packs of them.
    pub fn rows_per_epoch(&self) -> usize {
        match &self.train {
            Train::Rows { plan, .. } => plan.rows_per_epoch(),
            Train::Stream(_) => self.batches_per_epoch * self.batch_size,
        }
    }

    /// Batches of the evaluation, or without one of an epoch, unrounded: what `logging_steps: auto` goes by.
    pub fn batches_to_log_by(&self) -> f64 {
        let rows = if self.eval.is_empty() { self.rows_per_epoch() } else { self.eval.len() };
        rows as f64 / self.batch_size as f64
    }

    /// Optimiser steps in an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.batches_per_epoch.div_ceil(self.accumulation) as u64
    }

    /// Optimiser steps in the run.
    pub fn total_steps(&self, config: &RunConfig) -> u64 {
        match config.max_steps.0 {
            Some(n) => n,
            None => ((config.num_train_epochs * self.steps_per_epoch() as f64).ceil() as u64).max(1),
        }
    }

    /// The micro-batches of step `step` (counted from 0), each halved so often.
    ///
    /// # Errors
    /// A row of a stream that cannot be used.
    pub fn window(&self, step: u64, halvings: u32) -> Result<Vec<Batch>> {
        let window = self.rows_per_step();
        let rows: Vec<Vec<Example>> = match &self.train {
            Train::Stream(stream) => stream.borrow_mut().window(step, window)?,
            Train::Rows { examples, plan, cached } => {
                let (epoch, index) =
                    (step / self.steps_per_epoch(), (step % self.steps_per_epoch()) as usize);
                let mut cached = cached.borrow_mut();
                if cached.as_ref().is_none_or(|(e, _)| *e != epoch) {
                    *cached = Some((epoch, plan.rows(epoch)));
                }
                let rows = cached.as_ref().map_or(&[][..], |(_, rows)| rows);
                // Of an epoch's last batch, if it is short, nothing with dataloader_drop_last.
                let rows = &rows[..rows.len().min(self.batches_per_epoch * self.batch_size)];
                let rows = rows.iter().skip(index * window).take(window);
                rows.map(|row| row.iter().map(|&i| examples.get(i)).collect()).collect()
            }
        };
        let size = (self.micro_batch >> halvings.min(63)).max(1);
        let batches = rows.chunks(self.micro_batch).flat_map(|batch| batch.chunks(size)).map(|rows| {
            let tokens = |row: &Vec<Example>| row.iter().map(|e| e.input_ids.len()).sum();
            let longest_row = rows.iter().map(tokens).max().unwrap_or(0);
            Batch { longest_row, ..batch(rows.iter().flatten()) }
        });
        Ok(batches.collect())
    }

    /// The batches of an evaluation.
    pub fn eval_batches(&self) -> impl Iterator<Item = Batch> + '_ {
        self.eval_batches_of(0..self.eval.len())
    }

    /// The batches of a part of the evaluation.
    pub fn eval_batches_of(&self, part: Range<usize>) -> impl Iterator<Item = Batch> + '_ {
        let size = self.eval_batch_size.max(1);
        part.clone().step_by(size).map(move |start| {
            let rows: Vec<Example> =
                (start..(start + size).min(part.end)).map(|i| self.eval.get(i)).collect();
            batch(rows.iter())
        })
    }
}

/// A stream cut into rows: examples, or packs of them.
#[derive(Debug)]
pub struct Streamed {
    stream: ExampleStream,
    /// Tokens of a pack; packs are made of [`PACKED_AT_ONCE`] examples at a time.
    capacity: Option<usize>,
    fits: Fits,
    packs: VecDeque<Vec<Example>>,
    next_step: u64,
}

/// Examples that are packed together in a stream (LLaMA-Factory's `preprocessing_batch_size`).
const PACKED_AT_ONCE: usize = 1000;

impl Streamed {
    pub fn new(stream: ExampleStream, capacity: Option<usize>, fits: Fits) -> Streamed {
        Streamed { stream, capacity, fits, packs: VecDeque::new(), next_step: 0 }
    }

    /// The rows of a step. One that is not the next is read up to.
    fn window(&mut self, step: u64, rows: usize) -> Result<Vec<Vec<Example>>> {
        if step < self.next_step {
            self.stream.restart();
            self.packs.clear();
            self.next_step = 0;
        }
        loop {
            let window = (0..rows).map(|_| self.row()).collect::<Result<Vec<_>>>()?;
            self.next_step += 1;
            if self.next_step > step {
                return Ok(window);
            }
        }
    }

    fn row(&mut self) -> Result<Vec<Example>> {
        let Some(capacity) = self.capacity else { return Ok(vec![self.example()?]) };
        if self.packs.is_empty() {
            let examples = (0..PACKED_AT_ONCE).map(|_| self.example()).collect::<Result<Vec<_>>>()?;
            let lengths: Vec<usize> = examples.iter().map(|e| e.input_ids.len()).collect();
            let mut examples: Vec<Option<Example>> = examples.into_iter().map(Some).collect();
            for pack in pack(&lengths, capacity) {
                self.packs.push_back(pack.into_iter().filter_map(|i| examples[i].take()).collect());
            }
        }
        Ok(self.packs.pop_front().unwrap_or_default())
    }

    fn example(&mut self) -> Result<Example> {
        let example = self.stream.next_example()?;
        self.fits.check(&example)?;
        Ok(example)
    }
}

/// FNV-1a over lengths, tokens and labels.
fn digest(parts: &[&Examples]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |x: u64| hash = (hash ^ x).wrapping_mul(0x100_0000_01b3);
    for part in parts {
        eat(part.len() as u64);
        for i in 0..part.len() {
            let tokens = part.tokens(i);
            eat(tokens.len() as u64);
            tokens.ids().for_each(|i| eat(i as u64));
            tokens.labels().for_each(|l| eat(l as u32 as u64));
        }
    }
    format!("{hash:016x}")
}

fn batch<'a>(examples: impl Iterator<Item = &'a Example>) -> Batch {
    Batch::from_labelled(examples.map(|e| (e.input_ids.as_slice(), e.labels.as_slice())))
}
