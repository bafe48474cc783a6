use crate::error::Result;
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{DType, Tensor};

struct CastBackward {
    x: Source,
    dtype: DType,
}

impl Backward for CastBackward {
    fn name(&self) -> &'static str {
        "cast"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        grads.add(self.x, dy.to_dtype(self.dtype))
    }
}

/// x in another storage type; the gradient is cast back. Nothing is saved.
pub fn cast(tape: &mut Tape<'_>, x: &Var, dtype: DType) -> Var {
    let _span = profile::span("cast", Pass::Forward);
    if x.value().dtype() == dtype {
        return x.clone();
    }
    let from = x.value().dtype();
    tape.record(x.value().to_dtype(dtype), x.needs_grad(), || CastBackward { x: x.source(), dtype: from })
}
