//! Random choices from loratune's counter-based generator: the same seed gives the same text everywhere.

use loratune_engine::rng::Key;

/// A sequence of draws from one key.
pub struct Draw {
    key: Key,
    next: u64,
}

impl Draw {
    /// The draws of row `index` of a part of the output; parts and rows are independent of each other.
    pub fn new(part: &str, index: usize) -> Draw {
        Draw { key: Key::new(super::SEED).named(part).with(index as u64), next: 0 }
    }

    /// Uniform in 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        let word = u64::from(self.key.word(self.next));
        self.next += 1;
        ((word * n as u64) >> 32) as usize
    }

    /// Uniform in low..=high.
    pub fn between(&mut self, low: usize, high: usize) -> usize {
        low + self.below(high - low + 1)
    }

    /// One of the choices.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }

    /// `n` different ones of the choices, in random order.
    pub fn sample<T: Copy>(&mut self, choices: &[T], n: usize) -> Vec<T> {
        let mut all = choices.to_vec();
        for i in 0..n {
            let j = self.between(i, all.len() - 1);
            all.swap(i, j);
        }
        all.truncate(n);
        all
    }

    /// Small numbers more often than large ones, up to two digits: a count or a price.
    pub fn number(&mut self) -> usize {
        let high = self.pick(&[9, 20, 99]);
        self.between(2, high)
    }
}
