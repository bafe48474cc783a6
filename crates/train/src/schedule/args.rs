//! The keyword arguments of a schedule, checked.

use super::{Ramp, ScheduleError};
use crate::config::Value;

/// The keyword arguments as given; `null` counts as not given.
pub(super) struct Args<'a> {
    pub schedule: &'static str,
    pub given: &'a [(String, Value)],
}

impl Args<'_> {
    pub fn only(&self, known: &[&str]) -> Result<(), ScheduleError> {
        match self.given.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            None => Ok(()),
            Some((name, _)) => Err(ScheduleError::Unknown {
                schedule: self.schedule,
                name: name.clone(),
                takes: if known.is_empty() { "none".into() } else { known.join(", ") },
            }),
        }
    }

    fn get(&self, name: &str) -> Option<&Value> {
        self.given.iter().find(|(n, v)| n == name && *v != Value::Null).map(|(_, v)| v)
    }

    pub fn number(
        &self,
        name: &'static str,
        expected: &str,
        ok: fn(f64) -> bool,
    ) -> Result<Option<f64>, ScheduleError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|x| x.is_finite() && ok(*x)) {
            Some(x) => Ok(Some(x)),
            None => Err(self.bad(name, value, expected.to_string())),
        }
    }

    pub fn positive(&self, name: &'static str) -> Result<Option<f64>, ScheduleError> {
        self.number(name, "a number above 0", |x| x > 0.0)
    }

    pub fn fraction(&self, name: &'static str) -> Result<Option<f64>, ScheduleError> {
        self.number(name, "a number from 0 to 1", |x| (0.0..=1.0).contains(&x))
    }

    pub fn rate(&self, name: &'static str) -> Result<Option<f64>, ScheduleError> {
        self.number(name, "a learning rate of at least 0", |x| x >= 0.0)
    }

    pub fn whole(&self, name: &'static str, least: u64) -> Result<Option<u64>, ScheduleError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_i64().and_then(|i| u64::try_from(i).ok()).filter(|n| *n >= least) {
            Some(n) => Ok(Some(n)),
            None => Err(self.bad(name, value, format!("a whole number of at least {least}"))),
        }
    }

    /// One of these words, by its place.
    pub fn word(&self, name: &'static str, words: &[&str]) -> Result<Option<usize>, ScheduleError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let place = match value {
            Value::Str(s) => words.iter().position(|w| w == s),
            _ => None,
        };
        place.map(Some).ok_or_else(|| self.bad(name, value, words.join(" or ")))
    }

    pub fn switch(&self, name: &'static str) -> Result<Option<bool>, ScheduleError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(other) => Err(self.bad(name, other, "true or false".into())),
        }
    }

    fn bad(&self, name: &'static str, value: &Value, expected: String) -> ScheduleError {
        ScheduleError::Bad { schedule: self.schedule, name, value: value.to_yaml(), expected }
    }

    pub fn ramp(&self, name: &'static str) -> Result<Option<Ramp>, ScheduleError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Str(s)) if s == "linear" => Ok(Some(Ramp::Linear)),
            Some(Value::Str(s)) if s == "cosine" => Ok(Some(Ramp::Cosine)),
            Some(Value::Str(s)) if s == "1-sqrt" => Ok(Some(Ramp::OneMinusSqrt)),
            Some(other) => Err(self.bad(name, other, "linear, cosine or 1-sqrt".into())),
        }
    }

    /// The lowest factor from `min_lr` (absolute) or `min_lr_rate` (relative): exactly one of them.
    pub fn min_rate(&self, learning_rate: f64) -> Result<f64, ScheduleError> {
        let min_lr = self.rate("min_lr")?;
        match (min_lr, self.fraction("min_lr_rate")?) {
            (Some(lr), None) => Ok(lr / learning_rate),
            (None, Some(rate)) => Ok(rate),
            _ => Err(ScheduleError::Needs {
                schedule: self.schedule,
                what: "either min_lr or min_lr_rate, and only one,",
            }),
        }
    }
}
