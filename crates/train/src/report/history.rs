//! `trainer_log.jsonl`: one line per log entry while the run goes on, with LLaMA-Factory's fields, for dashboards.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::json::float;
use super::{LogEntry, LogKind, ReportError};

/// The open log file.
#[derive(Debug)]
pub struct History {
    path: PathBuf,
    file: File,
    /// The step that this process began after: the time so far is that of the steps since.
    first: u64,
}

impl History {
    /// Starts `trainer_log.jsonl` in `folder`. A resumed run gives the step it goes on from: the lines up to it stay, later
    /// ones (of steps that will be repeated) and a line cut off by a crash go.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(folder: &Path, resume_step: Option<u64>) -> Result<Self, ReportError> {
        let path = folder.join("trainer_log.jsonl");
        let mut kept = String::new();
        if let Some(step) = resume_step {
            let old = match std::fs::read(&path) {
                Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
                Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
                Err(e) => return Err(ReportError::io(&path, "read")(e)),
            };
            for line in old.lines() {
                let line_step =
                    serde_json::from_str::<Json>(line).ok().and_then(|v| v.get("current_steps")?.as_u64());
                if line_step.is_some_and(|s| s <= step) {
                    kept.push_str(line);
                    kept.push('\n');
                }
            }
        }
        super::write_whole(&path, kept.as_bytes())?;
        let file = OpenOptions::new().append(true).open(&path).map_err(ReportError::io(&path, "open"))?;
        Ok(History { path, file, first: resume_step.unwrap_or(0) })
    }

    /// Appends one line. `elapsed` is this process's time so far in seconds; the time left is estimated from it.
    ///
    /// # Errors
    /// The file system's.
    pub fn log(&mut self, entry: &LogEntry, total_steps: u64, elapsed: f64) -> Result<(), ReportError> {
        let line = line(entry, total_steps, elapsed, self.first);
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.flush());
        written.map_err(ReportError::io(&self.path, "write"))
    }
}

/// The line with its line break, as LLaMA-Factory's callback and Python write it: of an evaluation its loss, of the end nothing but
/// the time. Non-finite numbers are text (`"NaN"`), so that every line is strict JSON.
fn line(entry: &LogEntry, total_steps: u64, elapsed: f64, first: u64) -> String {
    let number = |x: f64| if x.is_finite() { float(x) } else { format!("\"{}\"", float(x)) };
    let mut fields =
        vec![("current_steps", entry.step.to_string()), ("total_steps", total_steps.to_string())];
    match &entry.kind {
        LogKind::Train { loss, learning_rate, .. } => {
            fields.extend([("loss", number(*loss)), ("lr", number(*learning_rate))]);
        }
        LogKind::Eval { loss, .. } => fields.push(("eval_loss", number(*loss))),
        LogKind::Summary { .. } => {}
    }
    fields.push(("epoch", number(entry.epoch)));
    let share = if total_steps == 0 { 1.0 } else { entry.step as f64 / total_steps as f64 };
    fields.push(("percentage", number((share * 1e4).round() / 100.0)));
    fields.push(("elapsed_time", format!("\"{}\"", duration(elapsed))));
    let done = entry.step.saturating_sub(first);
    let left =
        if done > 0 { elapsed / done as f64 * total_steps.saturating_sub(entry.step) as f64 } else { 0.0 };
    fields.push(("remaining_time", format!("\"{}\"", duration(left))));
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}\n", fields.join(", "))
}

/// Seconds as Python prints a `timedelta` of whole seconds: `0:01:05`, `2 days, 3:00:00`.
fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0) as u64;
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let clock = format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        n => format!("{n} days, {clock}"),
    }
}
