use crate::error::{Result, check_shape};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{Element, Tensor, dispatch};

struct AddBackward {
    a: Source,
    b: Source,
}

impl Backward for AddBackward {
    fn name(&self) -> &'static str {
        "add"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        grads.add(self.a, dy.clone())?;
        grads.add(self.b, dy)
    }
}

/// y = a + b, same shapes (the residual connection). Both gradients are dy; nothing is saved.
pub fn add(tape: &mut Tape<'_>, a: &Var, b: &Var) -> Result<Var> {
    check_shape("add", "second operand", b.value().shape(), a.value().shape())?;
    let y = dispatch!(a.value().dtype(), E => {
        let (x, y) = (a.value().slice::<E>()?, b.value().slice::<E>()?);
        let sum = crate::tensor::map2_to_vec(x, y, |x, y| E::from_acc(x.to_acc() + y.to_acc()));
        Tensor::new(sum, a.value().shape())
    });
    let needs = a.needs_grad() || b.needs_grad();
    Ok(tape.record(y, needs, || AddBackward { a: a.source(), b: b.source() }))
}
