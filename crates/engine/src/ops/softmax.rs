//! The passes over a row of scores that attention and the loss share. Each is a loop of its own, so that it vectorises where
//! its caller is compiled for the processor at hand (`isa::vectorised!`).

use crate::Real;

const LANES: usize = 16;

/// The largest element, −∞ of none. NaN is passed over.
#[inline(always)]
pub(crate) fn largest<R: Real>(row: &[R]) -> R {
    let larger = |a: R, b: R| if b > a { b } else { a };
    // In lanes: the largest of the largest is the same in any order.
    let mut lanes = [R::neg_infinity(); LANES];
    let parts = row.chunks_exact(LANES);
    let rest = parts.remainder();
    for part in parts {
        lanes.iter_mut().zip(part).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    rest.iter().copied().fold(over_lanes(lanes, larger), larger)
}

/// Every x becomes e^(x − `max`); the result is their sum, taken in lanes and then over these.
#[inline(always)]
pub(crate) fn exponentials<R: Real>(row: &mut [R], max: R) -> R {
    row.iter_mut().for_each(|x| *x = (*x - max).exp_fast());
    let mut lanes = [R::zero(); LANES];
    let parts = row.chunks_exact(LANES);
    let rest = parts.remainder();
    for part in parts {
        lanes.iter_mut().zip(part).for_each(|(lane, &x)| *lane += x);
    }
    rest.iter().fold(over_lanes(lanes, |a, b| a + b), |sum, &x| sum + x)
}

/// Halves of the lanes on each other until one is left: four steps, where one after the other would be fifteen that wait for
/// each other.
#[inline(always)]
fn over_lanes<R: Real>(mut lanes: [R; LANES], f: impl Fn(R, R) -> R) -> R {
    let mut left = LANES;
    while left > 1 {
        left /= 2;
        for l in 0..left {
            lanes[l] = f(lanes[l], lanes[l + left]);
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_is_found_wherever_it_is_and_nan_passed_over() {
        for n in [1, 7, 8, 9, 64, 67] {
            for at in 0..n {
                let mut row: Vec<f32> = (0..n).map(|i| -((i * 37 % 11) as f32)).collect();
                row[at] = 5.0;
                row[(at + 1) % n] = if n > 1 { f32::NAN } else { 5.0 };
                assert_eq!(largest(&row), 5.0, "{n} {at}");
            }
        }
        assert_eq!(largest::<f32>(&[]), f32::NEG_INFINITY);
        assert_eq!(largest(&[f32::NAN; 9]), f32::NEG_INFINITY);
    }
}
