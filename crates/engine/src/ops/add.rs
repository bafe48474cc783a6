use super::elementwise::{self, on};
use crate::error::{Result, check_shape};
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::{Element, Real, Tensor, dispatch};

struct AddBackward {
    a: Source,
    b: Source,
    factor: f64,
}

impl Backward for AddBackward {
    fn name(&self) -> &'static str {
        "add"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        grads.add(self.a, dy.clone())?;
        if !self.b.needs_grad() {
            return Ok(());
        }
        let mut db = dy;
        if self.factor != 1.0 {
            db.scale_assign(self.factor);
        }
        grads.add(self.b, db)
    }
}

/// y = a + b, same shapes (the residual connection). Both gradients are dy; nothing is saved.
pub fn add(tape: &mut Tape<'_>, a: &Var, b: &Var) -> Result<Var> {
    add_scaled(tape, a, b, 1.0)
}

/// y = a + factor·b, same shapes, in one pass and rounded once to the storage type (Granite's residual multiplier).
///
/// da = dy, db = factor·dy. Saved: nothing but the factor.
pub fn add_scaled(tape: &mut Tape<'_>, a: &Var, b: &Var, factor: f64) -> Result<Var> {
    let _span = profile::span("add", Pass::Forward);
    check_shape("add", "second operand", b.value().shape(), a.value().shape())?;
    let y = if let Some(x) = a.value().cuda() {
        let y = on("add", "second operand", b.value(), x.device(), x.dtype())?;
        Tensor::on_cuda(elementwise::add(x, y, factor)?, a.value().shape())
    } else {
        dispatch!(a.value().dtype(), E => {
            let (x, y) = (a.value().slice::<E>()?, b.value().slice::<E>()?);
            let f = <E as Element>::Acc::of(factor);
            let sum = crate::tensor::map2_to_vec(x, y, |x, y| E::from_acc(x.to_acc() + f * y.to_acc()));
            Tensor::new(sum, a.value().shape())
        })
    };
    Ok(record(tape, a, b, factor, y))
}

/// [`add_scaled`] whose sum nobody reads, but whose backward will run: it is of no particular value.
///
/// # Errors
/// As of [`add_scaled`].
pub fn add_unread(tape: &mut Tape<'_>, a: &Var, b: &Var, factor: f64) -> Result<Var> {
    check_shape("add", "second operand", b.value().shape(), a.value().shape())?;
    Ok(record(tape, a, b, factor, b.value().clone()))
}

fn record(tape: &mut Tape<'_>, a: &Var, b: &Var, factor: f64, y: Tensor) -> Var {
    let needs = a.needs_grad() || b.needs_grad();
    tape.record(y, needs, || AddBackward { a: a.source(), b: b.source(), factor })
}
