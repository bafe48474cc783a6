//! Uniform noise in training, NEFTune's (Jain et al., arXiv 2310.05914).

use rayon::prelude::*;

use crate::error::{Result, check_shape};
use crate::profile::{self, Pass};
use crate::rng::Key;
use crate::tape::{Tape, Var};
use crate::tensor::CHUNK;
use crate::{Element, Real, Tensor, dispatch};

/// x `[tokens, hidden]` plus noise uniform in ±`magnitudes[token]`, in training passes; x itself in others.
///
/// Element (t, j) gets (2u − 1)·`magnitudes[t]` with u the uniform number of index t·hidden + j under the pass's next
/// key, in f64 and rounded to the type of the arithmetic; the sum is rounded once. If all magnitudes are 0, nothing is
/// drawn and no key is taken. The gradient passes unchanged, so nothing is recorded or saved.
///
/// # Errors
/// If there isn't one magnitude per token.
pub fn uniform_noise(tape: &mut Tape<'_>, x: &Var, magnitudes: &[f64]) -> Result<Var> {
    let _span = profile::span("uniform_noise", Pass::Forward);
    check_shape("uniform_noise", "magnitudes [tokens]", &[magnitudes.len()], &[x.value().rows()])?;
    if magnitudes.iter().all(|&m| m == 0.0) {
        return Ok(x.clone());
    }
    let Some(key) = tape.next_key() else { return Ok(x.clone()) };
    let y = match x.value().cuda() {
        Some(there) => Tensor::on_cuda(super::elementwise::noise(there, magnitudes, key)?, x.value().shape()),
        None => dispatch!(x.value().dtype(), E => {
            Tensor::new(noisy(x.value().slice::<E>()?, x.value().cols(), magnitudes, key), x.value().shape())
        }),
    };
    Ok(x.shifted(y))
}

fn noisy<E: Element>(x: &[E], hidden: usize, magnitudes: &[f64], key: Key) -> Vec<E> {
    let mut y = x.to_vec();
    y.par_chunks_mut(CHUNK).enumerate().for_each(|(c, y)| {
        for (i, four) in y.chunks_mut(4).enumerate() {
            let first = c * CHUNK + i * 4;
            for (k, (y, word)) in four.iter_mut().zip(key.words(first as u64 / 4)).enumerate() {
                let noise = (2.0 * Key::uniform_of(word) - 1.0) * magnitudes[(first + k) / hidden];
                *y = E::from_acc(y.to_acc() + E::Acc::of(noise));
            }
        }
    });
    y
}
