use crate::Real;
use crate::error::{Error, Result};

/// x ↦ cap·tanh(x/cap), which is x near 0 and never beyond ±cap (Gemma 2, arXiv 2408.00118, section 2).
#[derive(Clone, Copy)]
pub(crate) struct Softcap<R> {
    cap: R,
    inverse: R,
}

impl<R: Real> Softcap<R> {
    pub fn new(cap: f64) -> Softcap<R> {
        Softcap { cap: R::of(cap), inverse: R::of(1.0 / cap) }
    }

    #[inline(always)]
    pub fn apply(self, x: R) -> R {
        self.cap * (x * self.inverse).tanh_fast()
    }

    /// The slope where the capped value is `y`: 1 − (y/cap)².
    #[inline(always)]
    pub fn slope(self, y: R) -> R {
        let t = y * self.inverse;
        R::one() - t * t
    }
}

/// # Errors
/// If a cap is not a positive number.
pub(crate) fn check(op: &'static str, softcap: Option<f64>) -> Result<()> {
    match softcap {
        Some(cap) if !(cap > 0.0 && cap.is_finite()) => {
            Err(Error::Invalid(format!("{op}: a soft cap of {cap}: expected a number above 0, or none")))
        }
        _ => Ok(()),
    }
}
