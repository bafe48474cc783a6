use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::ops::softcap::{self, Softcap};
use crate::tensor::CHUNK;
use crate::{Element, Real, Tensor, dispatch};

/// What becomes of the head's output u: z = scale·u, then cap·tanh(z/cap) if there is a soft cap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Logits {
    /// 1 but for Granite (1/`logits_scaling`).
    pub scale: f64,
    /// Gemma 2's `final_logit_softcapping`.
    pub softcap: Option<f64>,
}

impl Default for Logits {
    fn default() -> Logits {
        Logits { scale: 1.0, softcap: None }
    }
}

impl Logits {
    /// The logits of the head's outputs, of any shape; in place if no other tensor shares them.
    ///
    /// # Errors
    /// If the scale or the cap can't be one.
    pub fn apply(&self, mut outputs: Tensor) -> Result<Tensor> {
        self.check("logits")?;
        if *self == Logits::default() {
            return Ok(outputs);
        }
        dispatch!(outputs.dtype(), E => {
            let map = self.map::<<E as Element>::Acc>();
            outputs.slice_mut::<E>()?.par_chunks_mut(CHUNK).for_each(|chunk| {
                chunk.iter_mut().for_each(|x| *x = E::from_acc(map.value(x.to_acc())));
            });
        });
        Ok(outputs)
    }

    pub(super) fn check(&self, op: &'static str) -> Result<()> {
        if self.scale == 0.0 || !self.scale.is_finite() {
            return Err(Error::Invalid(format!(
                "{op}: logits scaled by {}: expected a number other than 0",
                self.scale
            )));
        }
        softcap::check(op, self.softcap)
    }

    pub(super) fn map<R: Real>(&self) -> LogitMap<R> {
        LogitMap { scale: R::of(self.scale), softcap: self.softcap.map(Softcap::new) }
    }
}

/// [`Logits`] in the type of the arithmetic.
#[derive(Clone, Copy)]
pub(super) struct LogitMap<R> {
    scale: R,
    softcap: Option<Softcap<R>>,
}

impl<R: Real> LogitMap<R> {
    #[inline(always)]
    fn value(self, u: R) -> R {
        let z = u * self.scale;
        self.softcap.map_or(z, |cap| cap.apply(z))
    }

    /// Outputs of the head become logits.
    pub fn forward(self, row: &mut [R]) {
        if self.softcap.is_some() || self.scale != R::one() {
            row.iter_mut().for_each(|x| *x = self.value(*x));
        }
    }

    /// Puts dlogit/du into `slopes`, which stay empty where that is the scale for all.
    pub fn slopes(self, logits: &[R], slopes: &mut Vec<R>) {
        slopes.clear();
        if let Some(cap) = self.softcap {
            slopes.extend(logits.iter().map(|&y| self.scale * cap.slope(y)));
        }
    }

    /// The gradient of the logits becomes that of the head's outputs.
    pub fn backward(self, row: &mut [R], slopes: &[R]) {
        if self.softcap.is_some() {
            row.iter_mut().zip(slopes).for_each(|(d, &s)| *d *= s);
        } else if self.scale != R::one() {
            row.iter_mut().for_each(|d| *d *= self.scale);
        }
    }
}
