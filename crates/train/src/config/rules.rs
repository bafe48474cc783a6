//! Ranges of values beyond their types.

use super::registry::Rule;
use super::value::Value;

fn number(value: &Value, ok: fn(f64) -> bool) -> bool {
    value.as_f64().is_some_and(ok)
}

/// Every value of a mapping.
fn every(value: &Value, ok: fn(&Value) -> bool) -> bool {
    matches!(value, Value::Map(entries) if entries.iter().all(|(_, x)| ok(x)))
}

pub(super) const AT_LEAST_1: Rule = Rule { text: "at least 1", ok: |v| number(v, |x| x >= 1.0) };
// Far above what any machine holds; beyond them, sizes would no longer be countable.
const MOST_ROWS: f64 = 16_777_216.0;
pub(super) const ROWS: Rule =
    Rule { text: "from 1 to 16777216", ok: |v| number(v, |x| (1.0..=MOST_ROWS).contains(&x)) };
pub(super) const MICRO_BATCH: Rule =
    Rule { text: "from 1 to 16777216, or auto", ok: |v| *v == Value::Str("auto".into()) || (ROWS.ok)(v) };
pub(super) const ROW_TOKENS: Rule =
    Rule { text: "from 2 to 16777216", ok: |v| number(v, |x| (2.0..=MOST_ROWS).contains(&x)) };
pub(super) const RANK: Rule =
    Rule { text: "from 1 to 1048576", ok: |v| number(v, |x| (1.0..=1_048_576.0).contains(&x)) };
pub(super) const RANKS: Rule =
    Rule { text: "every value from 1 to 1048576", ok: |v| every(v, |x| (RANK.ok)(x)) };
pub(super) const ALPHAS: Rule = Rule { text: "every value above 0", ok: |v| every(v, |x| (POSITIVE.ok)(x)) };
pub(super) const NOT_NEGATIVE: Rule = Rule { text: "at least 0", ok: |v| number(v, |x| x >= 0.0) };
pub(super) const SHARE: Rule =
    Rule { text: "above 0 and at most 1", ok: |v| number(v, |x| x > 0.0 && x <= 1.0) };
pub(super) const POSITIVE: Rule = Rule { text: "above 0", ok: |v| number(v, |x| x > 0.0) };
pub(super) const BELOW_1: Rule =
    Rule { text: "from 0 up to, but not, 1", ok: |v| number(v, |x| (0.0..1.0).contains(&x)) };
pub(super) const VAL_SIZE: Rule = Rule {
    text: "a share below 1 or a whole number of rows from 2 (a bare 1 is neither)",
    ok: |v| number(v, |x| (0.0..1.0).contains(&x) || (x >= 2.0 && x.fract() == 0.0)),
};
pub(super) const NOT_ZERO: Rule = Rule { text: "not 0", ok: |v| number(v, |x| x != 0.0) };
pub(super) const ALL_ROWS: Rule =
    Rule { text: "at least 1; leave it out for all rows", ok: |v| number(v, |x| x >= 1.0) };
pub(super) const NOT_ALL: Rule =
    Rule { text: "not all, which would leave nothing to adapt", ok: |v| *v != Value::Str("all".into()) };
pub(super) const ONE_ADAPTER: Rule = Rule {
    text: "one adapter folder (several at once are not supported yet)",
    ok: |v| !matches!(v, Value::Str(s) if s.contains(',')),
};
pub(super) const POSITIVE_OR_AUTO: Rule =
    Rule { text: "above 0", ok: |v| *v == Value::Str("auto".into()) || number(v, |x| x > 0.0) };
