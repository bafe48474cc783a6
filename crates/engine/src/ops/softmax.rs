//! The passes over a row of scores that attention and the loss share. Each is a loop of its own, so that it vectorises where
//! its caller is compiled for the processor at hand (`isa::vectorised!`).

use crate::Real;

/// The largest element, −∞ of none. NaN is passed over.
#[inline(always)]
pub(crate) fn largest<R: Real>(row: &[R]) -> R {
    let larger = |a: R, b: R| if b > a { b } else { a };
    // Eight at a time: the largest of the largest is the same in any order.
    let mut lanes = [R::neg_infinity(); 8];
    let parts = row.chunks_exact(8);
    let rest = parts.remainder();
    for part in parts {
        lanes.iter_mut().zip(part).for_each(|(lane, &x)| *lane = larger(*lane, x));
    }
    lanes.iter().chain(rest).copied().fold(R::neg_infinity(), larger)
}

/// Every x becomes e^(x − `max`); the result is their sum, taken in sixteen lanes and then over these.
#[inline(always)]
pub(crate) fn exponentials<R: Real>(row: &mut [R], max: R) -> R {
    row.iter_mut().for_each(|x| *x = (*x - max).exp_fast());
    let mut lanes = [R::zero(); 16];
    let parts = row.chunks_exact(16);
    let rest = parts.remainder();
    for part in parts {
        lanes.iter_mut().zip(part).for_each(|(lane, &x)| *lane += x);
    }
    lanes.iter().chain(rest).fold(R::zero(), |sum, &x| sum + x)
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
