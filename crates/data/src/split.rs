//! Setting rows aside for evaluation.

use crate::error::{DataError, Result};
use crate::rng::permutation;

/// Separates the split's randomness from the epochs'.
const SPLIT: u64 = 0x73_70_6c_69_74;

/// Splits `0..n` into training and evaluation rows, drawn by `seed` (LLaMA-Factory's `val_size`): a fraction below 1
/// takes `ceil(n · val_size)` rows, an integer above 1 that many. Both parts keep the order of the files.
///
/// # Errors
/// A negative number, exactly 1 (which would be all rows as a fraction), a number above 1 with a fraction, or a split that leaves
/// nothing to train on.
pub fn split(n: usize, val_size: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    let error = |message: String| DataError::ValSize { val_size, message };
    if val_size == 0.0 {
        return Ok(((0..n).collect(), Vec::new()));
    }
    if !val_size.is_finite() || val_size < 0.0 {
        return Err(error("expected a fraction from 0 to 1, or a number of rows above 1".into()));
    }
    if val_size == 1.0 {
        return Err(error("1 is read as the fraction 1.0, which leaves nothing to train on; give a smaller fraction, or 2 or more rows".into()));
    }
    if val_size > 1.0 && val_size.fract() != 0.0 {
        return Err(error("above 1 it is a number of rows and should be an integer".into()));
    }
    let count = if val_size < 1.0 { (n as f64 * val_size).ceil() } else { val_size };
    if count >= n as f64 {
        return Err(error(format!(
            "that is {count} rows for evaluation, but there are only {n}; nothing would be left to train on"
        )));
    }
    let mut held_out = vec![false; n];
    for i in permutation(n, &[seed, SPLIT]).into_iter().take(count as usize) {
        held_out[i] = true;
    }
    Ok((0..n).partition(|&i| !held_out[i]))
}
