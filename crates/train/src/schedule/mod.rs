//! Learning-rate schedules: the factor by which the learning rate is multiplied at each step.
//!
//! Names, keyword arguments and formulas are those of transformers' `get_scheduler`; the tests compare every step of
//! several set-ups with it. `step` counts finished optimiser steps, so the first update uses `step = 0`.

mod args;
mod plateau;

use std::f64::consts::PI;

use crate::config::Value;
use args::Args;
pub use plateau::{Plateau, Rates};

/// The schedules by Hugging Face's names (`lr_scheduler_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScheduleKind {
    /// Linear warm-up, then linearly to 0.
    Linear,
    /// Linear warm-up, then half a cosine to 0 (`num_cycles` 0.5).
    Cosine,
    /// Cosine that jumps back to 1 `num_cycles` − 1 times.
    CosineWithRestarts,
    /// To `lr_end` (1e-7) with `power` (1.0).
    Polynomial,
    /// Always 1, warm-up ignored.
    Constant,
    /// Linear warm-up, then 1.
    ConstantWithWarmup,
    /// 1/√(step/`timescale`) after the warm-up.
    InverseSqrt,
    /// Cosine down to `min_lr` or `min_lr_rate`.
    CosineWithMinLr,
    /// As before, the warm-up starting above 0 (`warmup_lr_rate`).
    CosineWarmupWithMinLr,
    /// Warm-up, plateau, decay of `num_decay_steps`.
    WarmupStableDecay,
    /// Lower when evaluations show no gain (PyTorch's `ReduceLROnPlateau`), warm-up ignored.
    ReduceOnPlateau,
    /// Lower without gains, higher with steady ones, warm-up ignored.
    Greedy,
}

impl ScheduleKind {
    /// Every kind with its name.
    pub const ALL: [(ScheduleKind, &'static str); 12] = [
        (ScheduleKind::Linear, "linear"),
        (ScheduleKind::Cosine, "cosine"),
        (ScheduleKind::CosineWithRestarts, "cosine_with_restarts"),
        (ScheduleKind::Polynomial, "polynomial"),
        (ScheduleKind::Constant, "constant"),
        (ScheduleKind::ConstantWithWarmup, "constant_with_warmup"),
        (ScheduleKind::InverseSqrt, "inverse_sqrt"),
        (ScheduleKind::CosineWithMinLr, "cosine_with_min_lr"),
        (ScheduleKind::CosineWarmupWithMinLr, "cosine_warmup_with_min_lr"),
        (ScheduleKind::WarmupStableDecay, "warmup_stable_decay"),
        (ScheduleKind::ReduceOnPlateau, "reduce_lr_on_plateau"),
        (ScheduleKind::Greedy, "greedy"),
    ];

    /// Hugging Face's name.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(kind, _)| *kind == self).map_or("linear", |(_, name)| name)
    }

    /// Whether it follows what evaluations show.
    pub fn follows_metric(self) -> bool {
        matches!(self, ScheduleKind::ReduceOnPlateau | ScheduleKind::Greedy)
    }

    /// Whether it begins with a warm-up where one is asked for.
    pub fn warms_up(self) -> bool {
        self != ScheduleKind::Constant && !self.follows_metric()
    }

    /// The kind of that name.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(_, n)| *n == name).map(|(kind, _)| *kind)
    }
}

/// A keyword argument in `lr_scheduler_kwargs` that its schedule cannot use.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ScheduleError {
    /// The schedule has no such argument.
    #[error("{schedule} has no argument `{name}`; it takes {takes}")]
    Unknown {
        /// Schedule name.
        schedule: &'static str,
        /// The argument as written.
        name: String,
        /// The arguments it has, or "none".
        takes: String,
    },
    /// Wrong type or range.
    #[error("{schedule}: {name} is `{value}`; expected {expected}")]
    Bad {
        /// Schedule name.
        schedule: &'static str,
        /// The argument.
        name: &'static str,
        /// Its value as YAML.
        value: String,
        /// What it should be.
        expected: String,
    },
    /// An argument without which the schedule is undefined, or two that exclude each other.
    #[error("{schedule} needs {what} in lr_scheduler_kwargs")]
    Needs {
        /// Schedule name.
        schedule: &'static str,
        /// What it needs.
        what: &'static str,
    },
}

/// How a warm-up or decay phase of `warmup_stable_decay` runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ramp {
    Linear,
    Cosine,
    OneMinusSqrt,
}

#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Linear,
    Constant,
    ConstantWithWarmup,
    /// `min` is the lowest factor; plain cosine has 0.
    Cosine {
        cycles: f64,
        min: f64,
    },
    CosineWithRestarts {
        cycles: f64,
    },
    CosineWarmup {
        cycles: f64,
        min: f64,
        warmup_start: Option<f64>,
    },
    Polynomial {
        lr: f64,
        lr_end: f64,
        power: f64,
    },
    InverseSqrt {
        timescale: Option<f64>,
    },
    WarmupStableDecay {
        stable: Option<u64>,
        decay: u64,
        warmup_ramp: Ramp,
        decay_ramp: Ramp,
        min: f64,
        cycles: f64,
    },
    Metric(Plateau),
}

/// A schedule with its arguments checked; a pure function of the step, but for those that follow a metric.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    kind: ScheduleKind,
    shape: Shape,
}

impl Schedule {
    /// Checks `kwargs` (Hugging Face's `lr_scheduler_kwargs`) for this kind. `learning_rate` is the peak rate: `min_lr`
    /// and `lr_end` are absolute rates and are divided by it.
    ///
    /// # Errors
    /// An unknown, ill-typed, missing or contradictory argument.
    pub fn new(
        kind: ScheduleKind,
        kwargs: &[(String, Value)],
        learning_rate: f64,
    ) -> Result<Self, ScheduleError> {
        let args = Args { schedule: kind.name(), given: kwargs };
        let shape = match kind {
            ScheduleKind::Linear => args.only(&[]).map(|()| Shape::Linear)?,
            ScheduleKind::Constant => args.only(&[]).map(|()| Shape::Constant)?,
            ScheduleKind::ConstantWithWarmup => args.only(&[]).map(|()| Shape::ConstantWithWarmup)?,
            ScheduleKind::Cosine => {
                args.only(&["num_cycles"])?;
                Shape::Cosine { cycles: args.positive("num_cycles")?.unwrap_or(0.5), min: 0.0 }
            }
            ScheduleKind::CosineWithRestarts => {
                args.only(&["num_cycles"])?;
                Shape::CosineWithRestarts { cycles: args.whole("num_cycles", 1)?.unwrap_or(1) as f64 }
            }
            ScheduleKind::Polynomial => polynomial(&args, learning_rate)?,
            ScheduleKind::InverseSqrt => {
                args.only(&["timescale"])?;
                Shape::InverseSqrt { timescale: args.whole("timescale", 1)?.map(|t| t as f64) }
            }
            ScheduleKind::CosineWithMinLr => {
                args.only(&["num_cycles", "min_lr", "min_lr_rate"])?;
                let min = args.min_rate(learning_rate)?;
                Shape::Cosine { cycles: args.positive("num_cycles")?.unwrap_or(0.5), min }
            }
            ScheduleKind::CosineWarmupWithMinLr => {
                args.only(&["num_cycles", "min_lr", "min_lr_rate", "warmup_lr_rate"])?;
                Shape::CosineWarmup {
                    cycles: args.positive("num_cycles")?.unwrap_or(0.5),
                    min: args.min_rate(learning_rate)?,
                    warmup_start: args.fraction("warmup_lr_rate")?,
                }
            }
            ScheduleKind::WarmupStableDecay => warmup_stable_decay(&args)?,
            ScheduleKind::ReduceOnPlateau => Shape::Metric(Plateau::reducing(&args)?),
            ScheduleKind::Greedy => Shape::Metric(Plateau::greedy(&args)?),
        };
        Ok(Schedule { kind, shape })
    }

    /// Which schedule this is.
    pub fn kind(&self) -> ScheduleKind {
        self.kind
    }

    /// What it does with a metric, if it follows one: the rates are those of [`Rates`] then.
    pub fn plateau(&self) -> Option<&Plateau> {
        match &self.shape {
            Shape::Metric(plateau) => Some(plateau),
            _ => None,
        }
    }

    /// The factor for the update that follows `step` finished steps, of `total`, the first `warmup` of them warm-up.
    ///
    /// Source: the `_get_*_lr_lambda` functions of transformers 5.23 `optimization.py`.
    pub fn lr_factor(&self, step: u64, warmup: u64, total: u64) -> f64 {
        let (t, w) = (step as f64, warmup as f64);
        // Divisors are at least 1 as in the source, so that warmup = total and total = 0 stay defined.
        let rest = (total as f64 - w).max(1.0);
        let ramp_up = t / w.max(1.0);
        let warming = step < warmup;
        match &self.shape {
            Shape::Constant | Shape::Metric(_) => 1.0,
            Shape::CosineWarmup { cycles, min, warmup_start } => {
                if warming {
                    return match warmup_start {
                        None => (t + 1.0) / w.max(1.0),
                        Some(start) => start + (1.0 - start) * t / (w - 1.0).max(1.0),
                    };
                }
                cosine((t - w + 1.0) / rest, *cycles, *min)
            }
            Shape::WarmupStableDecay { .. } => self.wsd(step, warmup, total),
            _ if warming => ramp_up,
            Shape::ConstantWithWarmup => 1.0,
            Shape::Linear => ((total as f64 - t) / rest).max(0.0),
            Shape::Cosine { cycles, min } => cosine((t - w) / rest, *cycles, *min),
            Shape::CosineWithRestarts { cycles } => {
                let progress = (t - w) / rest;
                if progress >= 1.0 {
                    0.0
                } else {
                    (0.5 * (1.0 + (PI * ((cycles * progress) % 1.0)).cos())).max(0.0)
                }
            }
            Shape::Polynomial { lr, lr_end, power } => {
                if step > total {
                    return lr_end / lr;
                }
                let remaining = 1.0 - (t - w) / rest;
                ((lr - lr_end) * remaining.powf(*power) + lr_end) / lr
            }
            Shape::InverseSqrt { timescale } => {
                let timescale = timescale.unwrap_or(if warmup == 0 { 10_000.0 } else { w });
                1.0 / ((t + timescale - w) / timescale).sqrt()
            }
        }
    }

    fn wsd(&self, step: u64, warmup: u64, total: u64) -> f64 {
        let Shape::WarmupStableDecay { stable, decay, warmup_ramp, decay_ramp, min, cycles } = &self.shape
        else {
            return 1.0;
        };
        let floor = |factor: f64| (factor * (1.0 - min) + min).max(0.0);
        if step < warmup {
            let p = step as f64 / warmup.max(1) as f64;
            return floor(match warmup_ramp {
                Ramp::Linear => p,
                Ramp::Cosine => 0.5 * (1.0 - (PI * p).cos()),
                Ramp::OneMinusSqrt => 1.0 - (1.0 - p).sqrt(),
            });
        }
        // Signed: with a decay longer than the run, the source's plateau has a negative length and the decay starts
        // before the warm-up's end.
        let stable = stable.map_or(total as i128 - warmup as i128 - *decay as i128, i128::from);
        let decay_start = warmup as i128 + stable;
        let step = i128::from(step);
        if step < decay_start {
            return 1.0;
        }
        if step >= decay_start + i128::from(*decay) {
            return *min;
        }
        let p = (step - decay_start) as f64 / (*decay).max(1) as f64;
        floor(match decay_ramp {
            Ramp::Linear => 1.0 - p,
            Ramp::Cosine => 0.5 * (1.0 + (PI * cycles * 2.0 * p).cos()),
            Ramp::OneMinusSqrt => 1.0 - p.sqrt(),
        })
    }
}

fn cosine(progress: f64, cycles: f64, min: f64) -> f64 {
    let factor = 0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos());
    (factor * (1.0 - min) + min).max(0.0)
}

fn polynomial(args: &Args, lr: f64) -> Result<Shape, ScheduleError> {
    args.only(&["lr_end", "power"])?;
    let lr_end = args.number("lr_end", "a learning rate of at least 0", |x| x >= 0.0)?.unwrap_or(1e-7);
    if lr_end >= lr {
        return Err(ScheduleError::Bad {
            schedule: args.schedule,
            name: "lr_end",
            value: Value::Float(lr_end).to_yaml(),
            expected: format!("a rate below learning_rate ({})", Value::Float(lr).to_yaml()),
        });
    }
    Ok(Shape::Polynomial { lr, lr_end, power: args.positive("power")?.unwrap_or(1.0) })
}

fn warmup_stable_decay(args: &Args) -> Result<Shape, ScheduleError> {
    args.only(&[
        "num_decay_steps",
        "num_stable_steps",
        "warmup_type",
        "decay_type",
        "min_lr_ratio",
        "num_cycles",
    ])?;
    let Some(decay) = args.whole("num_decay_steps", 0)? else {
        return Err(ScheduleError::Needs { schedule: args.schedule, what: "num_decay_steps" });
    };
    Ok(Shape::WarmupStableDecay {
        stable: args.whole("num_stable_steps", 0)?,
        decay,
        warmup_ramp: args.ramp("warmup_type")?.unwrap_or(Ramp::Linear),
        decay_ramp: args.ramp("decay_type")?.unwrap_or(Ramp::Cosine),
        min: args.fraction("min_lr_ratio")?.unwrap_or(0.0),
        cycles: args.positive("num_cycles")?.unwrap_or(0.5),
    })
}
