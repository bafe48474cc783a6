//! What a run leaves behind for people and other tools: logs, TensorBoard events, plots, the model card.
//!
//! Everything here takes plain numbers; nothing knows of models or tensors. Files that are written whole are written
//! aside and renamed, so that a reader never sees half of one.

pub mod card;
pub mod history;
mod json;
pub mod plot;
pub mod results;
pub mod state;
pub mod tensorboard;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// A report could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ReportError {
    /// The file system refused (no space, no permission, no such folder).
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file could not be written.
    #[error(transparent)]
    Files(#[from] loratune_model::files::Error),
    /// A file does not hold what its name promises.
    #[error("{}: {message}; it is damaged or was written by another program", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The PNG encoder failed (an internal error).
    #[error("cannot draw the loss plot: {0}")]
    Draw(String),
}

impl ReportError {
    fn io(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> ReportError {
        let path = path.to_path_buf();
        move |source| ReportError::Io { path, action, source }
    }
}

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LogEntry {
    /// Finished optimiser steps.
    pub step: u64,
    /// Passes over the data so far; the decimal part is the share of the current one.
    pub epoch: f64,
    /// What was measured.
    #[serde(flatten)]
    pub kind: LogKind,
}

/// What a log entry holds. Non-finite values are kept as they are and survive every file format here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum LogKind {
    /// During training.
    Train {
        /// Mean loss per trained token since the last entry, in nats.
        #[serde(with = "json::any_float")]
        loss: f64,
        /// Norm of the gradient before clipping.
        #[serde(with = "json::any_float")]
        grad_norm: f64,
        /// Learning rate of the step.
        #[serde(with = "json::any_float")]
        learning_rate: f64,
    },
    /// After an evaluation.
    Eval {
        /// Mean loss per trained token of the evaluation rows, in nats.
        #[serde(with = "json::any_float")]
        loss: f64,
        /// Further metrics without the prefix `eval_`: `accuracy`, `perplexity`.
        #[serde(with = "json::any_float_map")]
        metrics: BTreeMap<String, f64>,
    },
    /// At the end of training.
    Summary {
        /// Mean of the training loss over the whole run, in nats.
        #[serde(with = "json::any_float")]
        train_loss: f64,
    },
}

/// What an evaluation measured, as [`LogEntry::eval`] takes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EvalMetrics {
    /// Mean loss per trained token, in nats.
    pub loss: f64,
    /// Further metrics without the prefix `eval_`.
    pub metrics: BTreeMap<String, f64>,
}

impl LogEntry {
    /// An entry of training.
    pub fn train(step: u64, epoch: f64, loss: f64, grad_norm: f64, learning_rate: f64) -> Self {
        LogEntry { step, epoch, kind: LogKind::Train { loss, grad_norm, learning_rate } }
    }

    /// An entry of an evaluation.
    pub fn eval(step: u64, epoch: f64, metrics: impl Into<EvalMetrics>) -> Self {
        let EvalMetrics { loss, metrics } = metrics.into();
        LogEntry { step, epoch, kind: LogKind::Eval { loss, metrics } }
    }

    /// The last entry of a run.
    pub fn summary(step: u64, epoch: f64, train_loss: f64) -> Self {
        LogEntry { step, epoch, kind: LogKind::Summary { train_loss } }
    }

    /// Names and values as Hugging Face logs them, without `epoch` and `step`.
    pub fn values(&self) -> Vec<(String, f64)> {
        match &self.kind {
            LogKind::Train { loss, grad_norm, learning_rate } => vec![
                ("loss".into(), *loss),
                ("grad_norm".into(), *grad_norm),
                ("learning_rate".into(), *learning_rate),
            ],
            LogKind::Eval { loss, metrics } => std::iter::once(("eval_loss".into(), *loss))
                .chain(metrics.iter().map(|(name, value)| (format!("eval_{name}"), *value)))
                .collect(),
            LogKind::Summary { train_loss } => vec![("train_loss".into(), *train_loss)],
        }
    }
}

/// Writes a whole file, or nothing.
pub(crate) fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), ReportError> {
    Ok(loratune_model::files::atomic::write_atomically(path, |file| file.write_all(bytes))?)
}
