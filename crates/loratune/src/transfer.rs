//! What is shown of downloads and uploads: a bar on a terminal, lines elsewhere.

use std::io::{self, IsTerminal};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use loratune_hub::Progress;

use crate::output::{self, bytes, duration};

/// Without a terminal, how long nothing is said about a transfer that goes on.
const SILENCE: Duration = Duration::from_secs(30);

/// Watches transfers.
pub struct Transfer {
    quiet: bool,
    now: Mutex<Option<Now>>,
}

/// A transfer that goes on.
struct Now {
    what: String,
    bar: Option<ProgressBar>,
    done: i64,
    total: u64,
    start: Instant,
    told: Instant,
}

impl Transfer {
    pub fn new(quiet: bool) -> Transfer {
        Transfer { quiet, now: Mutex::new(None) }
    }

    fn with(&self, f: impl FnOnce(&mut Option<Now>)) {
        f(&mut self.now.lock().unwrap_or_else(|poisoned| poisoned.into_inner()));
    }
}

impl Progress for Transfer {
    fn begin(&self, what: &str, files: usize, total: u64) {
        if self.quiet {
            return;
        }
        let files = if files == 1 { "1 file".to_string() } else { format!("{files} files") };
        let bar = io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template =
                "{msg} {bar:16} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec}, {eta} left";
            let style = ProgressStyle::with_template(template);
            let bar = bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.with_message(what.to_string())
        });
        if bar.is_none() {
            output::note(&format!("{what}: {files}, {}", bytes(total)));
        }
        let now = Instant::now();
        self.with(|slot| {
            *slot = Some(Now { what: what.into(), bar, done: 0, total, start: now, told: now });
        });
    }

    fn advance(&self, more: i64) {
        self.with(|slot| {
            let Some(now) = slot else { return };
            now.done += more;
            let done = u64::try_from(now.done).unwrap_or(0);
            match &now.bar {
                Some(bar) => bar.set_position(done),
                None if now.told.elapsed() >= SILENCE => {
                    now.told = Instant::now();
                    output::note(&format!("{}: {} of {}", now.what, bytes(done), bytes(now.total)));
                }
                None => {}
            }
        });
    }

    fn end(&self) {
        self.with(|slot| {
            let Some(now) = slot.take() else { return };
            let seconds = now.start.elapsed().as_secs_f64();
            if let Some(bar) = now.bar {
                bar.finish_and_clear();
                let done = u64::try_from(now.done).unwrap_or(0);
                output::note(&format!("{}: {} in {}", now.what, bytes(done), duration(seconds)));
            }
        });
    }

    fn note(&self, text: &str) {
        if self.quiet {
            return;
        }
        self.with(|slot| match slot.as_ref().and_then(|now| now.bar.as_ref()) {
            Some(bar) => bar.suspend(|| output::note(&format!("note: {text}"))),
            None => output::note(&format!("note: {text}")),
        });
    }
}
