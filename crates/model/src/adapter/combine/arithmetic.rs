//! Elementwise combinations of task tensors, in f32 and in PEFT's order of operations (`peft/utils/merge_utils.py`).

use loratune_engine::rng::Key;
use loratune_engine::{Result, Tensor};

use super::options::{CombineOptions, MajoritySign, Pruning};

/// One combined tensor from those of the adapters that have the module. `keys` are DARE's, one for each.
///
/// # Errors
/// None if all tensors are f32 and of one shape.
pub(super) fn combine(
    tensors: Vec<Tensor>,
    weights: &[f32],
    keys: &[Key],
    options: &CombineOptions,
) -> Result<Tensor> {
    let shape = tensors.first().map(|t| t.shape().to_vec()).unwrap_or_default();
    let density = options.density.unwrap_or(1.0);
    let mut pruned = Vec::with_capacity(tensors.len());
    for (tensor, &key) in tensors.into_iter().zip(keys) {
        let mut data = tensor.slice::<f32>()?.to_vec();
        match options.combination.pruning() {
            Pruning::Nothing => {}
            Pruning::Magnitude => keep_largest(&mut data, density),
            Pruning::Random => drop_random(&mut data, density, key),
        }
        pruned.push(data);
    }
    let data = if options.combination.elects_signs() {
        disjoint_mean(&pruned, weights, options.majority_sign)
    } else {
        weighted_sum(&pruned, weights)
    };
    Tensor::from_vec(data, &shape)
}

/// Zeroes all but the ⌊density·n⌋ largest magnitudes; of equal ones the first are kept.
fn keep_largest(x: &mut [f32], density: f64) {
    let keep = (density * x.len() as f64) as usize;
    if density >= 1.0 || keep >= x.len() {
        return;
    }
    if keep == 0 {
        x.fill(0.0);
        return;
    }
    let mut magnitudes: Vec<f32> = x.iter().map(|v| v.abs()).collect();
    let (above, &mut threshold, _) = magnitudes.select_nth_unstable_by(keep - 1, |a, b| b.total_cmp(a));
    let mut equal = keep - above.iter().filter(|&&v| v > threshold).count();
    for v in x {
        if v.abs() < threshold {
            *v = 0.0;
        } else if v.abs() == threshold {
            if equal == 0 {
                *v = 0.0;
            } else {
                equal -= 1;
            }
        }
    }
}

/// Keeps each element with probability `density` and divides it by that.
fn drop_random(x: &mut [f32], density: f64, key: Key) {
    if density >= 1.0 {
        return;
    }
    for (i, v) in x.iter_mut().enumerate() {
        *v = if key.uniform(i as u64) < density { *v / density as f32 } else { 0.0 };
    }
}

fn weighted_sum(tensors: &[Vec<f32>], weights: &[f32]) -> Vec<f32> {
    let n = tensors.first().map_or(0, Vec::len);
    (0..n).map(|i| tensors.iter().zip(weights).map(|(t, w)| t[i] * w).sum()).collect()
}

/// Per element: the sign of the majority, then the mean of the weighted values that have it (0 if none does).
fn disjoint_mean(tensors: &[Vec<f32>], weights: &[f32], method: MajoritySign) -> Vec<f32> {
    let sign = |x: f32| {
        if x > 0.0 {
            1.0
        } else if x < 0.0 {
            -1.0
        } else {
            0.0
        }
    };
    let n = tensors.first().map_or(0, Vec::len);
    (0..n)
        .map(|i| {
            let total: f32 = match method {
                MajoritySign::Total => tensors.iter().map(|t| t[i]).sum(),
                MajoritySign::Frequency => tensors.iter().map(|t| sign(t[i])).sum(),
            };
            let majority = if total >= 0.0 { 1.0 } else { -1.0 };
            let (mut sum, mut count) = (0f32, 0f32);
            for (t, w) in tensors.iter().zip(weights) {
                if sign(t[i]) == majority {
                    sum += t[i] * w;
                    count += 1.0;
                }
            }
            sum / count.max(1.0)
        })
        .collect()
}

/// Clamps all numbers of both to ± their common quantile, interpolated linearly between neighbours as `torch.quantile`
/// does. As in PEFT the bound is the quantile of the signed numbers, so below the median all become one number.
pub(super) fn clamp_to_quantile(a: &mut [f32], b: &mut [f32], quantile: f64) {
    let mut all: Vec<f32> = a.iter().chain(b.iter()).copied().collect();
    if all.is_empty() {
        return;
    }
    let position = quantile * (all.len() - 1) as f64;
    let (low, weight) = (position.floor() as usize, position.fract());
    let (_, &mut below, rest) = all.select_nth_unstable_by(low, |a, b| a.total_cmp(b));
    let above = rest.iter().copied().min_by(|a, b| a.total_cmp(b)).unwrap_or(below);
    let high = (below as f64 + weight * (above as f64 - below as f64)) as f32;
    for v in a.iter_mut().chain(b) {
        *v = v.max(-high).min(high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_magnitudes_are_kept_and_of_equal_ones_the_first() {
        let kept = |density| {
            let mut x = [1.0, -3.0, 0.5, 3.0, -1.0, 1.0, 0.0, 2.0];
            keep_largest(&mut x, density);
            x
        };
        assert_eq!(kept(0.5), [1.0, -3.0, 0.0, 3.0, 0.0, 0.0, 0.0, 2.0]);
        assert_eq!(kept(0.24), [0.0, -3.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], "the count is rounded down");
        assert_eq!(kept(0.0), [0.0; 8]);
        assert_eq!(kept(1.0), [1.0, -3.0, 0.5, 3.0, -1.0, 1.0, 0.0, 2.0]);
    }

    #[test]
    fn drops_are_as_frequent_as_asked_and_keep_the_expectation() {
        let n = 200_000;
        for density in [0.1, 0.5, 0.9] {
            let mut x = vec![1.0f32; n];
            drop_random(&mut x, density, Key::new(4).with(1));
            let kept: Vec<f32> = x.iter().copied().filter(|v| *v != 0.0).collect();
            let rate = kept.len() as f64 / n as f64;
            // Five standard deviations of a binomial.
            assert!(
                (rate - density).abs() < 5.0 * (density * (1.0 - density) / n as f64).sqrt(),
                "{density}: {rate}"
            );
            assert!(kept.iter().all(|&v| v == 1.0 / density as f32));
            let mean = x.iter().map(|&v| v as f64).sum::<f64>() / n as f64;
            assert!((mean - 1.0).abs() < 0.03, "{density}: mean {mean}");
        }
        let mut x = vec![0.3f32; 10];
        drop_random(&mut x, 1.0, Key::new(4));
        assert_eq!(x, [0.3; 10]);
    }

    #[test]
    fn signs_are_elected_by_total_or_by_frequency() {
        let t = [vec![5.0, 0.0, -1.0, 0.0], vec![-1.0, 2.0, 1.0, 0.0], vec![-2.0, 4.0, 0.0, 0.0]];
        let w = [1.0, 10.0, 100.0];
        assert_eq!(disjoint_mean(&t, &w, MajoritySign::Total), [5.0, 210.0, 10.0, 0.0]);
        assert_eq!(disjoint_mean(&t, &w, MajoritySign::Frequency), [-105.0, 210.0, 10.0, 0.0]);
    }

    #[test]
    fn quantiles_lie_between_neighbours() {
        let clamped = |q| {
            let (mut a, mut b) = ([-4.0, 0.0, 1.0], [3.0, 2.0]);
            clamp_to_quantile(&mut a, &mut b, q);
            (a, b)
        };
        assert_eq!(clamped(1.0), ([-3.0, 0.0, 1.0], [3.0, 2.0]));
        assert_eq!(clamped(0.875), ([-2.5, 0.0, 1.0], [2.5, 2.0]));
        assert_eq!(clamped(0.0), ([-4.0; 3], [-4.0; 2]), "as torch.clamp with min above max");
    }
}
