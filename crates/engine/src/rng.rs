//! Counter-based randomness: every draw is a pure function of (seed, stream, step, index), so it's the same on any
//! number of threads, is recomputed instead of stored, and needs no state to be saved for a run to continue.
//!
//! Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).

/// What a draw is for. Streams of different purpose, tensor or step are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    seed: u64,
    stream: u64,
}

const fn mix(mut z: u64) -> u64 {
    // The finaliser of SplitMix64: every input bit reaches every output bit.
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Key {
    pub fn new(seed: u64) -> Key {
        Key { seed, stream: 0 }
    }

    /// A sub-stream for a number: a step, a micro-batch, a tensor's index.
    pub fn with(self, number: u64) -> Key {
        Key { seed: self.seed, stream: mix(self.stream.wrapping_add(0x9e37_79b9_7f4a_7c15) ^ mix(number)) }
    }

    /// A sub-stream for a name, such as a parameter's or a purpose's.
    pub fn named(self, name: &str) -> Key {
        // FNV-1a
        let h =
            name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ b as u64).wrapping_mul(0x100_0000_01b3));
        self.with(h)
    }

    /// Seed and stream, for kernels that draw the same words.
    pub(crate) fn halves(self) -> [u64; 2] {
        [self.seed, self.stream]
    }

    /// Four independent uniform 32-bit words for a counter.
    #[inline]
    pub fn words(self, counter: u64) -> [u32; 4] {
        const M0: u64 = 0xD251_1F53;
        const M1: u64 = 0xCD9E_8D57;
        let mut c = [counter as u32, (counter >> 32) as u32, self.stream as u32, (self.stream >> 32) as u32];
        let mut k = [self.seed as u32, (self.seed >> 32) as u32];
        for _ in 0..10 {
            let p0 = M0 * c[0] as u64;
            let p1 = M1 * c[2] as u64;
            c = [(p1 >> 32) as u32 ^ c[1] ^ k[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ k[1], p0 as u32];
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        c
    }

    /// The word of element `index`.
    #[inline]
    pub fn word(self, index: u64) -> u32 {
        self.words(index / 4)[(index % 4) as usize]
    }

    /// Uniform in [0, 1) with 24 bits, for element `index`.
    #[inline]
    pub fn uniform(self, index: u64) -> f64 {
        Key::uniform_of(self.word(index))
    }

    /// The uniform number that a word stands for.
    #[inline]
    pub(crate) fn uniform_of(word: u32) -> f64 {
        (word >> 8) as f64 * (1.0 / 16_777_216.0)
    }

    /// Standard normal for element `index` (Box-Muller; neighbours share a pair of words).
    pub fn normal(self, index: u64) -> f64 {
        let w = self.words(index / 2);
        let u = (((w[0] as u64) << 21 | (w[1] >> 11) as u64) as f64 + 0.5) * (1.0 / 9_007_199_254_740_992.0);
        let v = (((w[2] as u64) << 21 | (w[3] >> 11) as u64) as f64) * (1.0 / 9_007_199_254_740_992.0);
        let (r, a) = ((-2.0 * u.ln()).sqrt(), std::f64::consts::TAU * v);
        if index.is_multiple_of(2) { r * a.cos() } else { r * a.sin() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn philox_equals_the_papers_known_answer() {
        // Random123's kat_vectors: counter and key all zero, and all ones.
        let zero = Key { seed: 0, stream: 0 };
        assert_eq!(zero.words(0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Key { seed: u64::MAX, stream: u64::MAX };
        assert_eq!(ones.words(u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn moments_are_those_of_the_distributions() {
        let key = Key::new(7).named("moments").with(3);
        let n = 200_000u64;
        let (mut s1, mut s2, mut u1) = (0.0, 0.0, 0.0);
        for i in 0..n {
            let z = key.normal(i);
            s1 += z;
            s2 += z * z;
            u1 += key.uniform(i);
        }
        let n = n as f64;
        assert!((s1 / n).abs() < 0.01 && (s2 / n - 1.0).abs() < 0.02 && (u1 / n - 0.5).abs() < 0.005);
    }
}
