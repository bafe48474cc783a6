//! What a run shows while it goes on: a bar on a terminal, plain lines in a pipe, or events for programs.

use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use loratune_train::progress::{Evaluation, StepReport};
use loratune_train::report::{LogEntry, LogKind};
use loratune_train::trainer::Observer;
use serde_json::json;

use crate::output::{self, duration, number, rate, thousands};

/// How progress is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    Quiet,
    Lines,
    Json,
}

/// Watches a run.
pub struct Progress {
    style: Style,
    bar: Option<ProgressBar>,
    stop: Arc<AtomicBool>,
    /// Nobody reads any more: end as if interrupted, and say nothing.
    closed: bool,
    start: Instant,
    first_step: Option<u64>,
    /// Tokens and seconds of training since the last line.
    tokens: usize,
    seconds: f64,
    width: usize,
    /// What the bar says between evaluations.
    message: String,
    pub last_loss: Option<f64>,
}

impl Progress {
    /// `stop` is asked after every step. A bar is drawn when both outputs are terminals.
    pub fn new(style: Style, total: u64, stop: Arc<AtomicBool>) -> Progress {
        let terminal = io::stdout().is_terminal() && io::stderr().is_terminal();
        let bar = (style == Style::Lines && terminal).then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            // The message is what gets cut on a narrow terminal, not the line wrapped.
            let template = "{pos}/{len} {bar:16} {wide_msg}";
            let style = ProgressStyle::with_template(template);
            let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message("first step");
            bar
        });
        Progress {
            style,
            bar,
            stop,
            closed: false,
            start: Instant::now(),
            first_step: None,
            tokens: 0,
            seconds: 0.0,
            width: total.to_string().len(),
            message: String::new(),
            last_loss: None,
        }
    }

    /// Takes the bar away. Returns whether the reader of standard output went away during the run.
    pub fn finish(&self) -> bool {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        self.closed
    }

    fn say(&mut self, text: &str) {
        if self.style != Style::Lines || self.closed {
            return;
        }
        let said = match &self.bar {
            Some(bar) => bar.suspend(|| output::line(text)),
            None => output::line(text),
        };
        self.closed |= said.is_err();
    }

    fn event(&mut self, value: &serde_json::Value) {
        if self.style == Style::Json && !self.closed {
            self.closed |= output::json(value).is_err();
        }
    }

    fn at(&self, step: u64, total: u64) -> String {
        format!("step {step:>width$}/{total}", width = self.width)
    }

    /// Seconds until the end at the pace so far, evaluations and checkpoints included.
    fn left(&self, step: u64, total: u64) -> f64 {
        let done = step.saturating_sub(self.first_step.unwrap_or(step).saturating_sub(1)).max(1);
        self.start.elapsed().as_secs_f64() / done as f64 * total.saturating_sub(step) as f64
    }

    fn train_line(&mut self, entry: &LogEntry, total: u64) {
        let LogKind::Train { loss, grad_norm, learning_rate } = &entry.kind else { return };
        self.last_loss = Some(*loss);
        let speed = (self.seconds > 0.0).then(|| self.tokens as f64 / self.seconds);
        let left = self.left(entry.step, total);
        if self.style == Style::Json {
            let mut event = json!({"event": "log", "total_steps": total});
            merge(&mut event, entry);
            merge(&mut event, &json!({"tokens_per_second": speed, "seconds_left": left}));
            self.event(&event);
        } else {
            let speed = speed.map_or(String::new(), |s| format!("  {} tok/s", thousands(s as u64)));
            let text = format!(
                "{}  loss {}  grad {}  lr {}{speed}  {} left",
                self.at(entry.step, total),
                number(*loss),
                number(*grad_norm),
                rate(*learning_rate),
                duration(left),
            );
            self.say(&text);
        }
        (self.tokens, self.seconds) = (0, 0.0);
    }

    fn eval_line(&mut self, entry: &LogEntry, total: u64) {
        let LogKind::Eval { loss, metrics } = &entry.kind else { return };
        if self.style == Style::Json {
            let mut event = json!({"event": "evaluation", "total_steps": total});
            merge(&mut event, entry);
            self.event(&event);
            return;
        }
        let mut text = format!("{}  eval loss {}", self.at(entry.step, total), number(*loss));
        if let Some(p) = metrics.get("perplexity") {
            text.push_str(&format!("  perplexity {}", number(*p)));
        }
        if let Some(a) = metrics.get("accuracy") {
            text.push_str(&format!("  accuracy {:.2} %", 100.0 * a));
        }
        self.say(&text);
    }
}

/// Adds the fields of a serialisable value to an object.
fn merge(object: &mut serde_json::Value, more: &impl serde::Serialize) {
    if let (Some(map), Ok(serde_json::Value::Object(more))) =
        (object.as_object_mut(), serde_json::to_value(more))
    {
        map.extend(more);
    }
}

impl Observer for Progress {
    fn step(&mut self, report: &StepReport) {
        self.first_step.get_or_insert(report.step);
        self.tokens += report.tokens;
        self.seconds += report.seconds;
        let left = self.left(report.step, report.total);
        if let Some(bar) = &self.bar {
            bar.set_position(report.step);
            let speed = thousands((report.tokens as f64 / report.seconds.max(1e-9)) as u64);
            let (loss, lr) = (number(report.loss), rate(report.learning_rate));
            self.message = format!("loss {loss}  {} left  {speed} tok/s  lr {lr}", duration(left));
            bar.set_message(self.message.clone());
        }
    }

    fn evaluating(&mut self, batch: usize, batches: usize) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("evaluating, batch {} of {batches}", batch + 1));
        }
    }

    fn answering(&mut self, row: usize, rows: usize) {
        if let Some(bar) = &self.bar {
            bar.set_message(format!("answering, row {row} of {rows}"));
        }
    }

    fn evaluated(&mut self, _step: u64, _evaluation: &Evaluation) {
        if let Some(bar) = &self.bar {
            bar.set_message(self.message.clone());
        }
    }

    fn logged(&mut self, entry: &LogEntry, total_steps: u64) {
        match entry.kind {
            LogKind::Train { .. } => self.train_line(entry, total_steps),
            LogKind::Eval { .. } => self.eval_line(entry, total_steps),
            LogKind::Summary { .. } => {}
        }
    }

    fn saved(&mut self, step: u64, path: &Path) {
        self.event(&json!({"event": "checkpoint", "step": step, "path": path.display().to_string()}));
        self.say(&format!("saved {}", path.display()));
    }

    fn halved(&mut self, rows: u64, why: &str) {
        self.event(&json!({"event": "halved", "rows": rows, "why": why}));
        self.say(&format!("{why}; batches are computed {rows} rows at a time from now on"));
    }

    fn stop_requested(&mut self) -> bool {
        self.closed || self.stop.load(Ordering::SeqCst)
    }
}
