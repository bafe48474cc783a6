//! `trainer_state.json` as transformers 5 writes it (`TrainerState.save_to_json`), byte for byte.
//!
//! It holds no wall-clock times: a run that was killed and resumed ends with the same bytes. Times are in
//! [`results`](super::results). transformers' last log entry has run times too; ours has the mean loss only.

use std::collections::BTreeMap;
use std::path::Path;

use super::{LogEntry, LogKind, ReportError, json, write_whole};
use crate::config::Value;

/// The state of a run, in transformers' terms.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerState {
    /// Passes over the data so far.
    pub epoch: f64,
    /// Finished optimiser steps.
    pub global_step: u64,
    /// Optimiser steps of the whole run.
    pub max_steps: u64,
    /// Steps between log entries.
    pub logging_steps: u64,
    /// Steps between evaluations.
    pub eval_steps: u64,
    /// Steps between checkpoints.
    pub save_steps: u64,
    /// Rows per batch.
    pub train_batch_size: u64,
    /// Epochs of the whole run, rounded up.
    pub num_train_epochs: u64,
    /// Tokens that went through the model in training.
    pub num_input_tokens_seen: u64,
    /// Floating-point operations so far.
    pub total_flos: f64,
    /// The log, oldest first.
    pub log_history: Vec<LogEntry>,
    /// Best value of the metric.
    pub best_metric: Option<f64>,
    /// The step that reached it.
    pub best_global_step: Option<u64>,
    /// The checkpoint that holds it.
    pub best_model_checkpoint: Option<String>,
    /// Whether the run is over.
    pub should_training_stop: bool,
    /// Where early stopping stands, if it is on.
    pub early_stopping: Option<EarlyStopping>,
}

/// The state of transformers' `EarlyStoppingCallback`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyStopping {
    /// Evaluations without improvement that end the run.
    pub patience: u64,
    /// How many there were in a row.
    pub counter: u64,
}

impl Default for TrainerState {
    /// transformers' defaults.
    fn default() -> Self {
        TrainerState {
            epoch: 0.0,
            global_step: 0,
            max_steps: 0,
            logging_steps: 500,
            eval_steps: 500,
            save_steps: 500,
            train_batch_size: 8,
            num_train_epochs: 0,
            num_input_tokens_seen: 0,
            total_flos: 0.0,
            log_history: Vec::new(),
            best_metric: None,
            best_global_step: None,
            best_model_checkpoint: None,
            should_training_stop: false,
            early_stopping: None,
        }
    }
}

fn map<const N: usize>(entries: [(&str, Value); N]) -> Value {
    Value::Map(entries.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
}

fn int(n: u64) -> Value {
    i64::try_from(n).map_or(Value::Float(n as f64), Value::Int)
}

impl TrainerState {
    /// The text of `trainer_state.json`.
    pub fn to_json(&self) -> String {
        let history = self.log_history.iter().map(entry_to_value).collect();
        let value = map([
            ("best_global_step", self.best_global_step.map_or(Value::Null, int)),
            ("best_metric", self.best_metric.map_or(Value::Null, Value::Float)),
            ("best_model_checkpoint", self.best_model_checkpoint.clone().map_or(Value::Null, Value::Str)),
            ("epoch", Value::Float(self.epoch)),
            ("eval_steps", int(self.eval_steps)),
            ("global_step", int(self.global_step)),
            ("is_hyper_param_search", Value::Bool(false)),
            ("is_local_process_zero", Value::Bool(true)),
            ("is_world_process_zero", Value::Bool(true)),
            ("log_history", Value::List(history)),
            ("logging_steps", int(self.logging_steps)),
            ("max_steps", int(self.max_steps)),
            ("num_input_tokens_seen", int(self.num_input_tokens_seen)),
            ("num_train_epochs", int(self.num_train_epochs)),
            ("save_steps", int(self.save_steps)),
            ("stateful_callbacks", self.callbacks()),
            ("total_flos", Value::Float(self.total_flos)),
            ("train_batch_size", int(self.train_batch_size)),
            ("trial_name", Value::Null),
            ("trial_params", Value::Null),
        ]);
        json::to_python(&value, 2) + "\n"
    }

    fn callbacks(&self) -> Value {
        let mut callbacks = Vec::new();
        if let Some(stopping) = self.early_stopping {
            let args = [
                ("early_stopping_patience", int(stopping.patience)),
                ("early_stopping_threshold", Value::Float(0.0)),
            ];
            let attributes = [("early_stopping_patience_counter", int(stopping.counter))];
            let state = map([("args", map(args)), ("attributes", map(attributes))]);
            callbacks.push(("EarlyStoppingCallback".to_string(), state));
        }
        let control = map([
            ("should_epoch_stop", Value::Bool(false)),
            ("should_evaluate", Value::Bool(false)),
            ("should_log", Value::Bool(false)),
            ("should_save", Value::Bool(true)),
            ("should_training_stop", Value::Bool(self.should_training_stop)),
        ]);
        callbacks.push(("TrainerControl".to_string(), map([("args", control), ("attributes", map([]))])));
        Value::Map(callbacks)
    }

    /// Writes `path` whole.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, path: &Path) -> Result<(), ReportError> {
        write_whole(path, self.to_json().as_bytes())
    }

    /// Reads a state that loratune or transformers wrote. Log entries of other kinds than [`LogKind`] are left out.
    ///
    /// # Errors
    /// The file system's, or a file that is not such a state.
    pub fn load(path: &Path) -> Result<Self, ReportError> {
        let text = std::fs::read_to_string(path).map_err(ReportError::io(path, "read"))?;
        Self::from_json(&text).map_err(|message| ReportError::Damaged { path: path.to_path_buf(), message })
    }

    /// As [`TrainerState::load`], from text.
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn from_json(text: &str) -> Result<Self, String> {
        let Value::Map(entries) = json::from_python(text)? else {
            return Err("expected a JSON object".into());
        };
        let fields = Fields(&entries);
        let history = match fields.get("log_history") {
            Some(Value::List(items)) => items.iter().filter_map(|item| entry_from_value(item).transpose()),
            _ => return Err("log_history is missing".into()),
        };
        Ok(TrainerState {
            epoch: fields.float("epoch")?.unwrap_or(0.0),
            global_step: fields.count("global_step")?.ok_or("global_step is missing")?,
            max_steps: fields.count("max_steps")?.unwrap_or(0),
            logging_steps: fields.count("logging_steps")?.unwrap_or(500),
            eval_steps: fields.count("eval_steps")?.unwrap_or(500),
            save_steps: fields.count("save_steps")?.unwrap_or(500),
            train_batch_size: fields.count("train_batch_size")?.unwrap_or(8),
            num_train_epochs: fields.count("num_train_epochs")?.unwrap_or(0),
            num_input_tokens_seen: fields.count("num_input_tokens_seen")?.unwrap_or(0),
            total_flos: fields.float("total_flos")?.unwrap_or(0.0),
            log_history: history.collect::<Result<_, _>>()?,
            best_metric: fields.float("best_metric")?,
            best_global_step: fields.count("best_global_step")?,
            best_model_checkpoint: match fields.get("best_model_checkpoint") {
                Some(Value::Str(s)) => Some(s.clone()),
                _ => None,
            },
            should_training_stop: fields.path(&[
                "stateful_callbacks",
                "TrainerControl",
                "args",
                "should_training_stop",
            ]) == Some(&Value::Bool(true)),
            early_stopping: fields.early_stopping(),
        })
    }
}

/// A log entry as transformers logs it: its values, `epoch` and `step`.
fn entry_to_value(entry: &LogEntry) -> Value {
    let mut fields: Vec<(String, Value)> =
        entry.values().into_iter().map(|(name, x)| (name, Value::Float(x))).collect();
    fields.push(("epoch".into(), Value::Float(entry.epoch)));
    fields.push(("step".into(), int(entry.step)));
    Value::Map(fields)
}

fn entry_from_value(value: &Value) -> Result<Option<LogEntry>, String> {
    let Value::Map(entries) = value else { return Err("a log entry is not an object".into()) };
    let fields = Fields(entries);
    let kind = if let Some(loss) = fields.float("loss")? {
        let or_nan = |x: Option<f64>| x.unwrap_or(f64::NAN);
        LogKind::Train {
            loss,
            grad_norm: or_nan(fields.float("grad_norm")?),
            learning_rate: or_nan(fields.float("learning_rate")?),
        }
    } else if let Some(loss) = fields.float("eval_loss")? {
        let mut metrics = BTreeMap::new();
        for (name, value) in entries {
            if let (Some(name), Some(x)) =
                (name.strip_prefix("eval_").filter(|n| *n != "loss"), value.as_f64())
            {
                metrics.insert(name.to_string(), x);
            }
        }
        LogKind::Eval { loss, metrics }
    } else if let Some(train_loss) = fields.float("train_loss")? {
        LogKind::Summary { train_loss }
    } else {
        return Ok(None);
    };
    let step = fields.count("step")?.ok_or("a log entry has no step")?;
    Ok(Some(LogEntry { step, epoch: fields.float("epoch")?.unwrap_or(0.0), kind }))
}

struct Fields<'a>(&'a [(String, Value)]);

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.iter().find(|(key, value)| key == name && *value != Value::Null).map(|(_, value)| value)
    }

    fn path(&self, names: &[&str]) -> Option<&'a Value> {
        let (first, rest) = names.split_first()?;
        rest.iter().try_fold(self.get(first)?, |value, name| match value {
            Value::Map(entries) => Fields(entries).get(name),
            _ => None,
        })
    }

    fn float(&self, name: &str) -> Result<Option<f64>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or_else(|| format!("{name} is {value}, not a number")),
        }
    }

    fn count(&self, name: &str) -> Result<Option<u64>, String> {
        match self.get(name) {
            None => Ok(None),
            Some(value) => {
                let n = value.as_i64().and_then(|i| u64::try_from(i).ok());
                n.map(Some).ok_or_else(|| format!("{name} is {value}, not a whole number"))
            }
        }
    }

    fn early_stopping(&self) -> Option<EarlyStopping> {
        let at = |names: &[&str]| {
            let path: Vec<&str> =
                ["stateful_callbacks", "EarlyStoppingCallback"].iter().chain(names).copied().collect();
            self.path(&path).and_then(Value::as_i64).and_then(|i| u64::try_from(i).ok())
        };
        Some(EarlyStopping {
            patience: at(&["args", "early_stopping_patience"])?,
            counter: at(&["attributes", "early_stopping_patience_counter"])?,
        })
    }
}
