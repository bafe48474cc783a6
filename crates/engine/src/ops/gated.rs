use rayon::prelude::*;

use crate::error::{Result, check_shape};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::tensor::CHUNK;
use crate::{Element, Real, Tensor, dispatch};

struct SiluMulBackward {
    gate_source: Source,
    up_source: Source,
    gate: Tensor,
    up: Tensor,
}

impl Backward for SiluMulBackward {
    fn name(&self) -> &'static str {
        "silu_mul"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let (dgate, dup) = dispatch!(dy.dtype(), E => backward::<E>(&self.gate, &self.up, &dy)?);
        grads.add(self.gate_source, dgate)?;
        grads.add(self.up_source, dup)
    }
}

fn backward<E: Element>(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (g, u, d) = (gate.slice::<E>()?, up.slice::<E>()?, dy.slice::<E>()?);
    let (mut dg, mut du) = (vec![E::default(); g.len()], vec![E::default(); g.len()]);
    dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK)).enumerate().for_each(|(c, (dg, du))| {
        let at = c * CHUNK;
        let (g, u, d) = (&g[at..at + dg.len()], &u[at..at + dg.len()], &d[at..at + dg.len()]);
        let one = E::Acc::of(1.0);
        for i in 0..dg.len() {
            let (g, u, d) = (g[i].to_acc(), u[i].to_acc(), d[i].to_acc());
            let sigmoid = one / (one + (-g).exp_fast());
            dg[i] = E::from_acc(d * u * sigmoid * (one + g * (one - sigmoid)));
            du[i] = E::from_acc(d * g * sigmoid);
        }
    });
    Ok((Tensor::new(dg, gate.shape()), Tensor::new(du, gate.shape())))
}

/// y = silu(gate) ∘ up with silu(g) = g·σ(g): the gated activation of SwiGLU (Shazeer, arXiv 2002.05202).
///
/// dgate = dy∘up·σ(g)·(1 + g·(1 − σ(g))), dup = dy∘silu(g). Saved: gate and up.
pub fn silu_mul(tape: &mut Tape<'_>, gate: &Var, up: &Var) -> Result<Var> {
    check_shape("silu_mul", "up", up.value().shape(), gate.value().shape())?;
    let y = dispatch!(gate.value().dtype(), E => {
        let (g, u) = (gate.value().slice::<E>()?, up.value().slice::<E>()?);
        let one = <E as Element>::Acc::of(1.0);
        let y = crate::tensor::map2_to_vec(g, u, |g, u| {
            let g = g.to_acc();
            E::from_acc(g / (one + (-g).exp_fast()) * u.to_acc())
        });
        Tensor::new(y, gate.value().shape())
    });
    let needs = gate.needs_grad() || up.needs_grad();
    Ok(tape.record(y, needs, || SiluMulBackward {
        gate_source: gate.source(),
        up_source: up.source(),
        gate: gate.value().clone(),
        up: up.value().clone(),
    }))
}
