//! Axes: ranges, tick positions at round numbers, and their labels.

/// One axis: values from `low` to `high` onto pixels from `start` to `end`.
#[derive(Debug, Clone, Copy)]
pub struct Axis {
    pub low: f64,
    pub high: f64,
    pub start: f32,
    pub end: f32,
}

impl Axis {
    /// The pixel of a value; absurd values end a little outside of the picture.
    pub fn pixel(&self, value: f64) -> f32 {
        let share = ((value - self.low) / (self.high - self.low)).clamp(-10.0, 10.0);
        self.start + (share as f32) * (self.end - self.start)
    }
}

/// Round tick values inside `low..=high`, about `wanted` of them, at multiples of 1, 2 or 5 times a power of ten (and of at
/// least `least`), with the number of decimals that their labels need.
pub fn ticks(low: f64, high: f64, wanted: usize, least: f64) -> (Vec<f64>, usize) {
    let rough = ((high - low) / wanted.max(1) as f64).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|f| f * power >= rough * 0.999).unwrap_or(10.0);
    let step = (factor * power).max(least);
    let decimals = (-step.log10()).ceil().clamp(0.0, 12.0) as usize;
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    ((first..=last).map(|i| i as f64 * step).collect(), decimals)
}

/// A tick's label: `12,000` for large whole numbers, scientific where decimals would run away.
pub fn tick_label(value: f64, decimals: usize) -> String {
    if value != 0.0 && (value.abs() >= 1e7 || decimals > 4) {
        // As many digits as the distance to the next tick needs.
        let digits = (value.abs().log10().floor() as i64 + decimals as i64).clamp(0, 9) as usize;
        return format!("{value:.digits$e}");
    }
    let decimals = if decimals > 4 { 0 } else { decimals };
    let text = format!("{value:.decimals$}");
    let (sign, digits) = text.strip_prefix('-').map_or(("", text.as_str()), |d| ("-", d));
    let (whole, rest) = digits.split_once('.').map_or((digits, String::new()), |(w, f)| (w, format!(".{f}")));
    let mut grouped = String::new();
    for (i, c) in whole.chars().enumerate() {
        if i > 0 && (whole.len() - i) % 3 == 0 && whole.len() > 4 {
            grouped.push(',');
        }
        grouped.push(c);
    }
    format!("{sign}{grouped}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.0, 10.0, 5, 0.0), (vec![0.0, 2.0, 4.0, 6.0, 8.0, 10.0], 0));
        assert_eq!(ticks(0.93, 2.71, 6, 0.0), (vec![1.0, 1.5, 2.0, 2.5], 1));
        assert_eq!(ticks(1.0, 3.0, 8, 1.0).0, [1.0, 2.0, 3.0]);
        for (low, high) in [(0.0, 1e-9), (-3.0, 1e6), (5.0, 5.0 + 1e-7), (1e15, 1e15 + 8.0)] {
            let (values, _) = ticks(low, high, 8, 0.0);
            assert!((1..=12).contains(&values.len()), "{low}..{high}: {values:?}");
            assert!(values.iter().all(|v| (low..=high * (1.0 + 1e-12)).contains(v)), "{values:?}");
        }
    }

    #[test]
    fn labels_are_short() {
        assert_eq!(tick_label(12000.0, 0), "12,000");
        assert_eq!(tick_label(2000.0, 0), "2000");
        assert_eq!(tick_label(-0.25, 2), "-0.25");
        assert_eq!(tick_label(0.00015, 5), "1.5e-4");
        assert_eq!(tick_label(2.00001, 5), "2.00001e0");
        assert_eq!(tick_label(0.0, 5), "0");
    }
}
