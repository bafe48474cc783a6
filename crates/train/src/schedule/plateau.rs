//! Learning rates that follow what evaluations show, not the number of the step: `reduce_lr_on_plateau` and `greedy`.
//!
//! Arguments, defaults and arithmetic are those of PyTorch's `ReduceLROnPlateau` and of transformers' `GreedyLR`
//! (arXiv 2512.14527); the tests replay both over sequences of metrics. Every parameter group has a rate of its own, since
//! bounds act on each (LoRA+ has several).

use serde::{Deserialize, Serialize};

use super::ScheduleError;
use super::args::Args;

/// What to do with the learning rate when evaluations show no gain, or a steady one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Plateau {
    /// Whether a steady gain raises the rate (`greedy`).
    pub raises: bool,
    /// Whether a larger metric is a better one; `None` = as the metric has it.
    pub greater: Option<bool>,
    /// A rate is multiplied by this when it falls, and divided when it rises.
    pub factor: f64,
    /// Evaluations in a row without (with) a gain that change nothing yet.
    pub patience: u64,
    /// How much better is a gain: a share of the best (`rel`), or a difference.
    pub threshold: f64,
    /// Whether `threshold` is a share.
    pub relative: bool,
    /// Evaluations after a fall that count for nothing.
    pub cooldown: u64,
    /// Evaluations after a rise that count for nothing.
    pub warmup: u64,
    /// Bounds of every rate.
    pub min_lr: f64,
    /// The upper one.
    pub max_lr: f64,
    /// The least change that is made.
    pub eps: f64,
    /// Evaluations whose mean is taken for the metric; `None` = the latest alone.
    pub window: Option<u64>,
    /// Falls at the lower bound after which everything begins again.
    pub reset_start: u64,
}

/// Arguments of both schedules.
const SHARED: [&str; 8] =
    ["mode", "factor", "patience", "threshold", "threshold_mode", "cooldown", "min_lr", "eps"];

impl Plateau {
    /// `ReduceLROnPlateau`'s arguments.
    pub(super) fn reducing(args: &Args) -> Result<Plateau, ScheduleError> {
        args.only(&SHARED)?;
        Ok(Plateau { max_lr: f64::INFINITY, ..Plateau::read(args, 0.1, 1e-4, true, 0.0)? })
    }

    /// `GreedyLR`'s arguments.
    pub(super) fn greedy(args: &Args) -> Result<Plateau, ScheduleError> {
        args.only(&[&SHARED[..], &["warmup", "max_lr", "smooth", "window_size", "reset_start"]].concat())?;
        let window = args.whole("window_size", 1)?.unwrap_or(50);
        Ok(Plateau {
            raises: true,
            warmup: args.whole("warmup", 0)?.unwrap_or(0),
            max_lr: args.rate("max_lr")?.unwrap_or(1.0),
            window: args.switch("smooth")?.unwrap_or(false).then_some(window),
            reset_start: args.whole("reset_start", 0)?.unwrap_or(500),
            ..Plateau::read(args, 0.95, 1e-6, false, 1e-3)?
        })
    }

    /// What both have, with their defaults.
    fn read(
        args: &Args,
        factor: f64,
        threshold: f64,
        relative: bool,
        min_lr: f64,
    ) -> Result<Plateau, ScheduleError> {
        let below_1 = |x: f64| x > 0.0 && x < 1.0;
        Ok(Plateau {
            raises: false,
            greater: args.word("mode", &["min", "max"])?.map(|mode| mode == 1),
            factor: args.number("factor", "a number above 0 and below 1", below_1)?.unwrap_or(factor),
            patience: args.whole("patience", 0)?.unwrap_or(10),
            threshold: args.number("threshold", "a number of at least 0", |x| x >= 0.0)?.unwrap_or(threshold),
            relative: args.word("threshold_mode", &["rel", "abs"])?.map_or(relative, |mode| mode == 0),
            cooldown: args.whole("cooldown", 0)?.unwrap_or(0),
            warmup: 0,
            min_lr: args.rate("min_lr")?.unwrap_or(min_lr),
            max_lr: f64::INFINITY,
            eps: args.number("eps", "a number of at least 0", |x| x >= 0.0)?.unwrap_or(1e-8),
            window: None,
            reset_start: 0,
        })
    }
}

/// How far it has come; part of every checkpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// By group: what its rate is a multiple of `learning_rate` by, its first rate, its rate now.
    groups: Vec<(f64, f64, f64)>,
    best: Option<f64>,
    bad: u64,
    good: u64,
    cooldown: u64,
    warmup: u64,
    reset: u64,
    recent: Vec<f64>,
}

impl Rates {
    /// At the start; `factors` are the groups' multiples of `learning_rate`.
    pub fn new(plateau: &Plateau, learning_rate: f64, factors: &[f64]) -> Rates {
        let mut groups: Vec<(f64, f64, f64)> = Vec::new();
        // 1 first: its rate is the one that is logged.
        for &factor in std::iter::once(&1.0).chain(factors) {
            if !groups.iter().any(|(f, ..)| *f == factor) {
                groups.push((factor, learning_rate * factor, learning_rate * factor));
            }
        }
        Rates {
            groups,
            best: None,
            bad: 0,
            good: 0,
            cooldown: 0,
            warmup: 0,
            reset: plateau.reset_start,
            recent: Vec::new(),
        }
    }

    /// The rate of the groups with this multiple.
    pub fn of(&self, factor: f64) -> f64 {
        self.groups.iter().find(|(f, ..)| *f == factor).map_or(0.0, |(.., lr)| *lr)
    }

    /// Takes the metric of an evaluation into account. `greater`: a larger one is a better one.
    pub fn evaluated(&mut self, plateau: &Plateau, metric: f64, greater: bool) {
        let metric = self.smoothed(plateau, metric);
        match plateau.raises {
            true => self.greedy(plateau, metric, greater),
            false => self.reduce(plateau, metric, greater),
        }
    }

    fn smoothed(&mut self, plateau: &Plateau, metric: f64) -> f64 {
        let Some(window) = plateau.window else { return metric };
        self.recent.push(metric);
        if self.recent.len() as u64 > window {
            self.recent.remove(0);
        }
        self.recent.iter().sum::<f64>() / self.recent.len() as f64
    }

    fn is_gain(&self, plateau: &Plateau, metric: f64, greater: bool) -> bool {
        let Some(best) = self.best else { return metric.is_finite() };
        match (greater, plateau.relative) {
            (false, true) => metric < best * (1.0 - plateau.threshold),
            (false, false) => metric < best - plateau.threshold,
            (true, true) => metric > best * (1.0 + plateau.threshold),
            (true, false) => metric > best + plateau.threshold,
        }
    }

    fn reduce(&mut self, plateau: &Plateau, metric: f64, greater: bool) {
        if self.is_gain(plateau, metric, greater) {
            (self.best, self.bad) = (Some(metric), 0);
        } else {
            self.bad += 1;
        }
        if self.cooldown > 0 {
            self.cooldown -= 1;
            self.bad = 0;
        }
        if self.bad > plateau.patience {
            self.fall(plateau);
            (self.cooldown, self.bad) = (plateau.cooldown, 0);
        }
    }

    fn greedy(&mut self, plateau: &Plateau, metric: f64, greater: bool) {
        if self.cooldown > 0 || self.warmup > 0 {
            match self.cooldown {
                0 => self.warmup -= 1,
                _ => self.cooldown -= 1,
            }
            (self.bad, self.good) = (0, 0);
            return;
        }
        if self.is_gain(plateau, metric, greater) {
            (self.best, self.bad, self.good) = (Some(metric), 0, self.good + 1);
        } else {
            (self.bad, self.good) = (self.bad + 1, 0);
        }
        if self.good > plateau.patience {
            self.rise(plateau);
            (self.warmup, self.good) = (plateau.warmup, 0);
        } else if self.bad > plateau.patience {
            let at_bottom = self.fall(plateau);
            (self.cooldown, self.bad) = (plateau.cooldown, 0);
            if at_bottom {
                self.reset = self.reset.saturating_sub(1);
                if self.reset == 0 {
                    self.begin_again(plateau);
                }
            }
        }
    }

    /// Whether all rates are at the lower bound now.
    fn fall(&mut self, plateau: &Plateau) -> bool {
        for (.., lr) in &mut self.groups {
            let lower = (*lr * plateau.factor).max(plateau.min_lr);
            if *lr - lower > plateau.eps {
                *lr = lower;
            }
        }
        self.groups.iter().all(|(.., lr)| *lr <= plateau.min_lr)
    }

    fn rise(&mut self, plateau: &Plateau) {
        for (.., lr) in &mut self.groups {
            let higher = (*lr / plateau.factor).min(plateau.max_lr);
            if higher - *lr > plateau.eps {
                *lr = higher;
            }
        }
        self.reset = plateau.reset_start;
    }

    fn begin_again(&mut self, plateau: &Plateau) {
        for (_, first, lr) in &mut self.groups {
            *lr = *first;
        }
        (self.best, self.bad, self.good, self.warmup) = (None, 0, 0, 0);
        // As in transformers, the fall that led here still starts its cooldown.
        self.cooldown = plateau.cooldown;
        self.reset = plateau.reset_start;
        self.recent.clear();
    }
}
