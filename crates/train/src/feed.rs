//! The data of a run: which rows make up which step.

use loratune_data::{EpochOrder, Example, Plan};
use loratune_model::Batch;

use crate::config::RunConfig;

/// Examples to train and evaluate on, and the steps they are divided into.
///
/// A step is a pure function of its number: (epoch, window of batches). As in Hugging Face's `Trainer`, windows of
/// accumulated batches never span epochs, and an epoch's last batch and last window may be short.
#[derive(Debug)]
pub struct Feed {
    pub train: Vec<Example>,
    pub eval: Vec<Example>,
    plan: Plan,
    batch_size: usize,
    accumulation: usize,
    eval_batch_size: usize,
    batches_per_epoch: usize,
    /// Digest of every token and label, in order.
    digest: String,
    /// The rows of the epoch that was asked for last.
    cached: std::cell::RefCell<Option<(u64, Vec<Vec<usize>>)>>,
}

impl Feed {
    pub fn new(train: Vec<Example>, eval: Vec<Example>, config: &RunConfig) -> Feed {
        let plan = Plan {
            lengths: train.iter().map(|e| e.input_ids.len()).collect(),
            capacity: config.packing.then_some(config.cutoff_len as usize),
            order: EpochOrder {
                seed: config.data_seed.unwrap_or(config.seed),
                shuffle: !config.disable_shuffling,
            },
        };
        let batch_size = config.per_device_train_batch_size as usize;
        Feed {
            batches_per_epoch: plan.batches_per_epoch(batch_size),
            digest: digest(&[&train, &eval]),
            train,
            eval,
            plan,
            batch_size,
            accumulation: config.gradient_accumulation_steps as usize,
            eval_batch_size: config.per_device_eval_batch_size as usize,
            cached: Default::default(),
        }
    }

    /// A digest of every token and label of the run's data, in order.
    pub fn digest(&self) -> &str {
        &self.digest
    }

    /// Rows in an epoch: examples, or packs of them.
    pub fn rows_per_epoch(&self) -> usize {
        self.plan.rows_per_epoch()
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

    /// The micro-batches of step `step` (counted from 0).
    pub fn window(&self, step: u64) -> Vec<Batch> {
        let (epoch, index) = (step / self.steps_per_epoch(), (step % self.steps_per_epoch()) as usize);
        let mut cached = self.cached.borrow_mut();
        if cached.as_ref().is_none_or(|(e, _)| *e != epoch) {
            *cached = Some((epoch, self.plan.rows(epoch)));
        }
        let rows = cached.as_ref().map_or(&[][..], |(_, rows)| rows);
        let window = self.batch_size * self.accumulation;
        rows.iter()
            .skip(index * window)
            .take(window)
            .collect::<Vec<_>>()
            .chunks(self.batch_size)
            .map(|rows| {
                let tokens = |row: &Vec<usize>| row.iter().map(|&i| self.train[i].input_ids.len()).sum();
                let longest_row = rows.iter().map(|row| tokens(row)).max().unwrap_or(0);
                let documents = rows.iter().flat_map(|row| row.iter().map(|&i| &self.train[i]));
                Batch { longest_row, ..batch(documents) }
            })
            .collect()
    }

    /// The batches of an evaluation.
    pub fn eval_batches(&self) -> impl Iterator<Item = Batch> + '_ {
        self.eval.chunks(self.eval_batch_size).map(|c| batch(c.iter()))
    }
}

/// FNV-1a over lengths, tokens and labels.
fn digest(parts: &[&[Example]]) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |x: u64| hash = (hash ^ x).wrapping_mul(0x100_0000_01b3);
    for part in parts {
        eat(part.len() as u64);
        for Example { input_ids, labels, .. } in *part {
            eat(input_ids.len() as u64);
            input_ids.iter().for_each(|&i| eat(i as u64));
            labels.iter().for_each(|&l| eat(l as u32 as u64));
        }
    }
    format!("{hash:016x}")
}

fn batch<'a>(examples: impl Iterator<Item = &'a Example>) -> Batch {
    Batch::from_labelled(examples.map(|e| (e.input_ids.as_slice(), e.labels.as_slice())))
}
