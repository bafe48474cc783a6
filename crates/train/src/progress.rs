//! How far a run is: everything, beside weights and optimiser state, that the rest of the run depends on.

use serde::{Deserialize, Serialize};

use crate::metrics::Scores;
use crate::report::{EvalMetrics, LogEntry};
use crate::schedule::Rates;

/// Saved in every checkpoint; a run that continues from it ends with the same bytes as one that was never stopped.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Finished optimiser steps.
    pub step: u64,
    /// Sum of the losses of the steps since the last line of the log, and their number.
    pub loss_sum: f64,
    pub loss_steps: u64,
    /// Sum of the losses of all steps.
    pub total_loss: f64,
    /// Tokens that went through the model in training so far.
    pub tokens_seen: u64,
    /// The log so far.
    pub log: Vec<LogEntry>,
    /// Best value of the metric, and the step it was reached at.
    pub best: Option<(f64, u64)>,
    /// Evaluations in a row without a better metric.
    pub evaluations_without_gain: u64,
    /// How often batches were halved to fit a card's memory.
    #[serde(default)]
    pub halvings: u32,
    /// The learning rates, where they follow a metric.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rates: Option<Rates>,
}

/// What a step reports.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Number of the step, from 1.
    pub step: u64,
    pub total: u64,
    /// Mean loss of the step's trained tokens before the update.
    pub loss: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Tokens in the step, and those trained on.
    pub tokens: usize,
    pub trained_tokens: usize,
    pub seconds: f64,
}

/// Metrics of an evaluation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Mean loss over all trained tokens.
    pub loss: f64,
    /// Share of trained tokens whose most probable prediction was right.
    pub accuracy: f64,
    pub tokens: usize,
    /// Of the model's answers, with `predict_with_generate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generated: Option<Scores>,
}

impl Evaluation {
    pub fn perplexity(&self) -> f64 {
        self.loss.exp()
    }
}

impl From<&Evaluation> for EvalMetrics {
    fn from(e: &Evaluation) -> EvalMetrics {
        let metrics = [("accuracy", e.accuracy), ("perplexity", e.perplexity())];
        let mut metrics: std::collections::BTreeMap<String, f64> =
            metrics.map(|(k, v)| (k.to_string(), v)).into();
        metrics.extend(e.generated.iter().flat_map(Scores::values));
        EvalMetrics { loss: e.loss, metrics }
    }
}
