pub(super) mod cuda;

use rayon::prelude::*;

use crate::error::{Result, check_shape};
use crate::isa::vectorised;
use crate::ops::elementwise::on;
use crate::pool;
use crate::profile::{self, Pass};
use crate::tape::{Backward, Sink, Source, Tape, Var};
use crate::tensor::CHUNK;
use crate::{Element, Real, Tensor, dispatch};

/// The function that [`gated`] applies to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// g·σ(g), SwiGLU's (`silu`, `swish`).
    Silu,
    /// ½·g·(1 + tanh(√(2/π)·(g + 0.044715·g³))) (`gelu_pytorch_tanh`, `gelu_new`).
    GeluTanh,
    /// ½·g·(1 + erf(g/√2)) (`gelu`).
    Gelu,
}

/// An activation a: inlined into the loops over the elements.
trait Curve: Sync {
    /// a(g)·u.
    fn product<R: Real>(g: R, u: R) -> R;
    /// d·u·a'(g) and d·a(g).
    fn gradients<R: Real>(g: R, u: R, d: R) -> (R, R);
}

struct Silu;

impl Curve for Silu {
    #[inline(always)]
    fn product<R: Real>(g: R, u: R) -> R {
        g / (R::one() + (-g).exp_fast()) * u
    }
    #[inline(always)]
    fn gradients<R: Real>(g: R, u: R, d: R) -> (R, R) {
        let one = R::one();
        let sigmoid = one / (one + (-g).exp_fast());
        (d * u * sigmoid * (one + g * (one - sigmoid)), d * g * sigmoid)
    }
}

/// By ½·(1 + tanh z) = σ(2z), which loses no digits where the tanh is near -1.
struct GeluTanh;

impl GeluTanh {
    /// s = σ(2z) and g·d(2z)/dg, with z = √(2/π)·(g + 0.044715·g³).
    #[inline(always)]
    fn sigmoid<R: Real>(g: R) -> (R, R) {
        // Beyond ±32 s is 0 or 1, and g³ may be infinite. NaN stays.
        let limit = R::of(32.0);
        let g = if g > limit { limit } else { g };
        let g = if g < -limit { -limit } else { g };
        let (two_root, cubic) = (R::of(2.0 * (2.0 / std::f64::consts::PI).sqrt()), R::of(0.044715));
        let square = cubic * g * g;
        let s = R::one() / (R::one() + (-two_root * g * (R::one() + square)).exp_fast());
        (s, two_root * g * (R::one() + R::of(3.0) * square))
    }
}

impl Curve for GeluTanh {
    #[inline(always)]
    fn product<R: Real>(g: R, u: R) -> R {
        g * Self::sigmoid(g).0 * u
    }
    #[inline(always)]
    fn gradients<R: Real>(g: R, u: R, d: R) -> (R, R) {
        let (s, growth) = Self::sigmoid(g);
        (d * u * s * (R::one() + (R::one() - s) * growth), d * g * s)
    }
}

struct Gelu;

impl Curve for Gelu {
    #[inline(always)]
    fn product<R: Real>(g: R, u: R) -> R {
        g * g.normal_cdf() * u
    }
    #[inline(always)]
    fn gradients<R: Real>(g: R, u: R, d: R) -> (R, R) {
        let density = R::of((0.5 / std::f64::consts::PI).sqrt()) * (R::of(-0.5) * g * g).exp_fast();
        let below = g.normal_cdf();
        (d * u * (below + g * density), d * g * below)
    }
}

/// Runs a block with `$A` bound to the [`Curve`] of an [`Activation`].
macro_rules! dispatch_curve {
    ($activation:expr, $A:ident => $body:expr) => {
        match $activation {
            Activation::Silu => {
                type $A = Silu;
                $body
            }
            Activation::GeluTanh => {
                type $A = GeluTanh;
                $body
            }
            Activation::Gelu => {
                type $A = Gelu;
                $body
            }
        }
    };
}

struct GatedBackward {
    gate_source: Source,
    up_source: Source,
    gate: Tensor,
    up: Tensor,
    activation: Activation,
}

impl Backward for GatedBackward {
    fn name(&self) -> &'static str {
        "gated"
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let (dgate, dup) = match self.gate.cuda().is_some() {
            true => {
                let (mut gate, mut up) = (self.gate, self.up);
                cuda::backward(&mut gate, &mut up, &dy, self.activation)?;
                (gate, up)
            }
            false => dispatch!(dy.dtype(), E => {
                dispatch_curve!(self.activation, A => backward::<E, A>(&self.gate, &self.up, &dy)?)
            }),
        };
        grads.add(self.gate_source, dgate)?;
        grads.add(self.up_source, dup)
    }
}

fn forward<E: Element, A: Curve>(g: &[E], u: &[E]) -> Vec<E> {
    let mut y = pool::any::<E>(g.len());
    y.par_chunks_mut(CHUNK).zip(g.par_chunks(CHUNK)).zip(u.par_chunks(CHUNK)).for_each(|((y, g), u)| {
        vectorised!([E: Element, A: Curve] (y: &mut [E], g: &[E], u: &[E]) {
            for ((y, g), u) in y.iter_mut().zip(g).zip(u) {
                *y = E::from_acc(A::product(g.to_acc(), u.to_acc()));
            }
        });
    });
    y
}

fn backward<E: Element, A: Curve>(gate: &Tensor, up: &Tensor, dy: &Tensor) -> Result<(Tensor, Tensor)> {
    let (g, u, d) = (gate.slice::<E>()?, up.slice::<E>()?, dy.slice::<E>()?);
    let (mut dg, mut du) = (pool::any::<E>(g.len()), pool::any::<E>(g.len()));
    dg.par_chunks_mut(CHUNK).zip(du.par_chunks_mut(CHUNK)).enumerate().for_each(|(c, (dg, du))| {
        let at = c * CHUNK;
        let (g, u, d) = (&g[at..at + dg.len()], &u[at..at + dg.len()], &d[at..at + dg.len()]);
        vectorised!([E: Element, A: Curve] (dg: &mut [E], du: &mut [E], g: &[E], u: &[E], d: &[E]) {
            for ((((dg, du), g), u), d) in dg.iter_mut().zip(du).zip(g).zip(u).zip(d) {
                let (of_gate, of_up) = A::gradients(g.to_acc(), u.to_acc(), d.to_acc());
                (*dg, *du) = (E::from_acc(of_gate), E::from_acc(of_up));
            }
        });
    });
    Ok((Tensor::new(dg, gate.shape()), Tensor::new(du, gate.shape())))
}

/// y = a(gate) ∘ up: a gated linear unit with the activation a (SwiGLU, GeGLU: Shazeer, arXiv 2002.05202).
///
/// dgate = dy∘up∘a'(gate), dup = dy∘a(gate), where
/// - silu: a' = σ(g)·(1 + g·(1 − σ(g)));
/// - gelu by tanh: a = g·s with s = σ(2z), z = √(2/π)·(g + 0.044715·g³), a' = s·(1 + g·(1 − s)·2z');
/// - gelu: a = g·Φ(g), a' = Φ(g) + g·e^(−g²/2)/√(2π), with Φ the normal distribution.
///
/// Computed in one pass and rounded once. Saved: gate and up.
pub fn gated(tape: &mut Tape<'_>, gate: &Var, up: &Var, activation: Activation) -> Result<Var> {
    let _span = profile::span("gated", Pass::Forward);
    check_shape("gated", "up", up.value().shape(), gate.value().shape())?;
    let y = match gate.value().cuda() {
        Some(there) => {
            let up = on("gated", "up", up.value(), there.device(), there.dtype())?;
            Tensor::on_cuda(cuda::forward(there, up, activation)?, gate.value().shape())
        }
        None => dispatch!(gate.value().dtype(), E => {
            let (g, u) = (gate.value().slice::<E>()?, up.value().slice::<E>()?);
            let y = dispatch_curve!(activation, A => forward::<E, A>(g, u));
            Tensor::new(y, gate.value().shape())
        }),
    };
    let needs = gate.needs_grad() || up.needs_grad();
    let y = tape.record(y, needs, || GatedBackward {
        gate_source: gate.source(),
        up_source: up.source(),
        gate: gate.value().clone(),
        up: up.value().clone(),
        activation,
    });
    Ok(y.with_recipe(|| cuda::recipe([gate.value(), up.value()], activation)))
}
