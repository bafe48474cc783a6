//! Counter-based randomness: every number is a pure function of its key, so nothing depends on what was drawn before.

/// SplitMix64's output function (Steele, Lea, Flood 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A number for a key of parts, such as `[seed, epoch, stream, index]`.
pub fn keyed(parts: &[u64]) -> u64 {
    parts.iter().fold(0x9e37_79b9_7f4a_7c15, |h, &p| mix(h ^ mix(p.wrapping_add(0x9e37_79b9_7f4a_7c15))))
}

/// A permutation of `0..n` as a pure function of the key (Fisher–Yates; the modulo bias is below n / 2⁶⁴).
pub fn permutation(n: usize, key: &[u64]) -> Vec<usize> {
    let base = keyed(key);
    let mut out: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        let r = keyed(&[base, i as u64]);
        let j = ((u128::from(r) * (i as u128 + 1)) >> 64) as usize;
        out.swap(i, j);
    }
    out
}
