//! The learning-rate schedules against transformers' `get_scheduler` (goldens/make_schedules.py).

use loratune_train::config::Value;
use loratune_train::schedule::{Rates, Schedule, ScheduleKind};

#[derive(serde::Deserialize)]
struct Golden {
    cases: Vec<Case>,
    metric_cases: Vec<MetricCase>,
}

#[derive(serde::Deserialize)]
struct MetricCase {
    name: String,
    learning_rate: f64,
    kwargs: Value,
    metrics: Vec<f64>,
    /// After each metric, of a group at `learning_rate` and one at 16 times as much.
    rates: Vec<[f64; 2]>,
}

#[derive(serde::Deserialize)]
struct Case {
    name: String,
    total: u64,
    warmup: u64,
    learning_rate: f64,
    kwargs: Value,
    factors: Vec<f64>,
}

fn kwargs(value: &Value) -> Vec<(String, Value)> {
    match value {
        Value::Map(entries) => entries.clone(),
        other => panic!("kwargs are a mapping, not {other}"),
    }
}

#[test]
fn every_step_of_every_schedule_equals_transformers() {
    let golden: Golden = serde_json::from_str(include_str!("goldens/schedules.json")).unwrap();
    let mut kinds = std::collections::BTreeSet::new();
    for case in &golden.cases {
        let kind = ScheduleKind::from_name(&case.name).unwrap();
        kinds.insert(kind.name());
        let schedule = Schedule::new(kind, &kwargs(&case.kwargs), case.learning_rate).unwrap();
        assert_eq!(case.factors.len() as u64, case.total + 3);
        for (step, want) in case.factors.iter().enumerate() {
            let got = schedule.lr_factor(step as u64, case.warmup, case.total);
            let label = format!("{} {} step {step}: {got} is not {want}", case.name, case.kwargs);
            // One rounding of the platform's cos or powf; the learning rate itself is used as f32.
            assert!((got - want).abs() <= 1e-15, "{label}");
        }
    }
    let by_metric = ScheduleKind::ALL.iter().filter(|(kind, _)| kind.follows_metric()).count();
    assert_eq!(kinds.len() + by_metric, ScheduleKind::ALL.len(), "a schedule has no golden");
}

#[test]
fn rates_that_follow_a_metric_equal_torchs_and_transformers() {
    let golden: Golden = serde_json::from_str(include_str!("goldens/schedules.json")).unwrap();
    let mut changes = 0;
    for case in &golden.metric_cases {
        let kind = ScheduleKind::from_name(&case.name).unwrap();
        let schedule = Schedule::new(kind, &kwargs(&case.kwargs), case.learning_rate).unwrap();
        let plateau = schedule.plateau().unwrap();
        let mut rates = Rates::new(plateau, case.learning_rate, &[16.0, 1.0, 16.0]);
        assert_eq!(rates.of(16.0), 16.0 * case.learning_rate);
        for (i, (metric, want)) in case.metrics.iter().zip(&case.rates).enumerate() {
            let before = rates.of(1.0);
            rates.evaluated(plateau, *metric, plateau.greater.unwrap_or(false));
            changes += usize::from(rates.of(1.0) != before);
            // What is written into a checkpoint is all there is.
            rates = serde_json::from_str(&serde_json::to_string(&rates).unwrap()).unwrap();
            for (factor, want) in [1.0, 16.0].into_iter().zip(want) {
                let got = rates.of(factor);
                let label =
                    format!("{} {} after {i}, × {factor}: {got} is not {want}", case.name, case.kwargs);
                assert!((got - want).abs() <= 1e-12 * want, "{label}");
            }
        }
    }
    assert!(changes > 60, "{changes}: the goldens hardly move");
}

#[test]
fn cosine_of_2025_steps_has_the_known_rates() {
    let schedule = Schedule::new(ScheduleKind::Cosine, &[], 5e-5).unwrap();
    for (step, want) in [(10, 2.5e-5), (20, 5e-5), (100, 4.98038e-5), (1000, 2.58812e-5), (2025, 0.0)] {
        let got = 5e-5 * schedule.lr_factor(step, 20, 2025);
        assert!((got - want).abs() < 5e-11, "step {step}: {got}");
    }
}

#[test]
fn degenerate_lengths_stay_finite() {
    for (kind, name) in ScheduleKind::ALL {
        let args = match kind {
            ScheduleKind::CosineWithMinLr | ScheduleKind::CosineWarmupWithMinLr => {
                vec![("min_lr_rate".to_string(), Value::Float(0.1))]
            }
            ScheduleKind::WarmupStableDecay => vec![("num_decay_steps".to_string(), Value::Int(100))],
            _ => vec![],
        };
        let schedule = Schedule::new(kind, &args, 1e-3).unwrap();
        for (warmup, total) in [(0, 0), (0, 1), (1, 1), (9, 3), (3, u64::MAX)] {
            for step in [0, 1, 2, 9, 1_000_000] {
                let factor = schedule.lr_factor(step, warmup, total);
                assert!(factor.is_finite(), "{name} {step}/{warmup}/{total}: {factor}");
            }
        }
    }
}

#[test]
fn bad_arguments_are_refused_by_name() {
    let new = |kind, args: &[(&str, Value)]| {
        let args: Vec<_> = args.iter().map(|(n, v)| (n.to_string(), v.clone())).collect();
        Schedule::new(kind, &args, 5e-5).unwrap_err().to_string()
    };
    use ScheduleKind::*;
    assert_eq!(
        new(Linear, &[("num_cycles", Value::Int(2))]),
        "linear has no argument `num_cycles`; it takes none"
    );
    assert_eq!(
        new(Cosine, &[("cycles", Value::Int(2))]),
        "cosine has no argument `cycles`; it takes num_cycles"
    );
    assert_eq!(
        new(CosineWithRestarts, &[("num_cycles", Value::Float(1.5))]),
        "cosine_with_restarts: num_cycles is `1.5`; expected a whole number of at least 1"
    );
    assert_eq!(
        new(Polynomial, &[("lr_end", Value::Float(1e-4))]),
        "polynomial: lr_end is `0.0001`; expected a rate below learning_rate (5.0e-5)"
    );
    let both = [("min_lr", Value::Float(1e-6)), ("min_lr_rate", Value::Float(0.1))];
    assert_eq!(
        new(CosineWithMinLr, &both),
        "cosine_with_min_lr needs either min_lr or min_lr_rate, and only one, in lr_scheduler_kwargs"
    );
    assert_eq!(
        new(WarmupStableDecay, &[]),
        "warmup_stable_decay needs num_decay_steps in lr_scheduler_kwargs"
    );
    assert_eq!(
        new(
            WarmupStableDecay,
            &[("num_decay_steps", Value::Int(5)), ("decay_type", Value::Str("exp".into()))]
        ),
        "warmup_stable_decay: decay_type is `exp`; expected linear, cosine or 1-sqrt"
    );
}
