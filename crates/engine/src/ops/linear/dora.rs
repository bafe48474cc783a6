//! DoRA's row-wise rescaling of an adapted weight (Liu et al., arXiv 2402.09353; the definition is PEFT's).

use std::sync::Arc;

use num_traits::Float;
use rayon::prelude::*;

use super::lora::{Factors, LoraSaved};
use super::{Input, Lora};
use crate::error::{Error, Result, check_shape};
use crate::gemm::{Finish, Mat, MatMut, Threads, matmul};
use crate::isa::vectorised;
use crate::tape::{Mode, Sink, Source, Tape};
use crate::{Element, ParamId, Params, Real, Tensor, Weight, dispatch, dispatch_real};

/// The magnitudes that make a [`Lora`] a DoRA: row j of W + s·B·A is scaled by gⱼ = mⱼ / ‖(W + s·B·A)ⱼ‖.
///
/// With u = x·Wᵀ + s·(x·Aᵀ)·Bᵀ: y = g∘u + bias. The bias is never scaled. Dropout x' = drop(x) changes what is scaled,
/// but not the base (PEFT's definition): with u' = x'·Wᵀ + s·(x'·Aᵀ)·Bᵀ,
///
/// y = x·Wᵀ + (g−1)∘(x'·Wᵀ) + g∘s·(x'·Aᵀ)·Bᵀ + bias = (x−x')·Wᵀ + g∘u' + bias.
///
/// **Backward**, with dz = g∘dy and the norm a constant: dmⱼ = Σ_n dyₙⱼ·uₙⱼ / normⱼ; A and B get what LoRA gives them for
/// dz; dx = dz·W + s·(dz·B)·A without dropout, and dy·W + drop'(dz·W − dy·W + s·(dz·B)·A) with it.
///
/// **Saved** besides LoRA's h: for dm, the output y. Its storage is usually kept by the op that reads y anyway, and
/// u/norm = y/m. Where that doesn't hold (a bias, dropout, some g = 0), u in the activations' type instead.
///
/// A row of W + s·B·A that is 0 has no direction to scale: its g is 1 and its dm 0 (PEFT's are NaN).
#[derive(Clone, Debug)]
pub struct Dora {
    /// m `[out]`.
    pub magnitude: ParamId,
    pub norm: RowNorm,
}

/// Where ‖W + s·B·A‖ by row comes from; gradients never flow through it (§4.3 of the paper).
#[derive(Clone, Debug)]
pub enum RowNorm {
    /// From the present A and B in every pass; `squares` are W's own ‖Wⱼ‖² `[out]`, which never change.
    Recomputed { squares: Arc<[f64]> },
    /// Known values `[out]`, for passes over parameters that don't change.
    Fixed(Arc<[f64]>),
}

/// ‖W + s·B·A‖ by row, `[out]`, for a linear layer's W `[out, in]`. Magnitudes that start as these change nothing.
///
/// # Errors
/// If the shapes of W, A and B do not fit.
pub fn row_norms(params: &Params, weight: &Weight, lora: &Lora) -> Result<Vec<f64>> {
    let w = weight.resolve(params);
    let (out, cols) = w.matrix("row_norms")?;
    dispatch_real!(params.value(lora.a).dtype(), R => {
        let f = lora.factors::<R>(params, [out, cols])?;
        let cross = w.times_transposed(f.a, f.r)?;
        norms(&f, &lora.known_squares().unwrap_or_else(|| w.row_squares().into()), &cross)
    })
}

/// The same for an embedding: its weight is the table's transpose, so these are norms of the columns of
/// E + s·(B·A)ᵀ, `[hidden]`, with E `[vocabulary, hidden]`, A `[r, vocabulary]`, B `[hidden, r]`.
///
/// # Errors
/// If the shapes of E, A and B do not fit.
pub fn column_norms(params: &Params, table: &Weight, lora: &Lora) -> Result<Vec<f64>> {
    let w = table.resolve(params);
    let (vocabulary, hidden) = w.matrix("column_norms")?;
    dispatch_real!(params.value(lora.a).dtype(), R => {
        let f = lora.factors::<R>(params, [hidden, vocabulary])?;
        let cross = w.times(f.a, f.r)?;
        norms(&f, &lora.known_squares().unwrap_or_else(|| w.column_squares().into()), &cross)
    })
}

impl Lora {
    fn known_squares(&self) -> Option<Arc<[f64]>> {
        match &self.dora {
            Some(Dora { norm: RowNorm::Recomputed { squares }, .. }) => Some(squares.clone()),
            _ => None,
        }
    }
}

/// ‖(W + s·B·A)ⱼ‖ = √(‖Wⱼ‖² + 2s·((W·Aᵀ)∘B)ⱼ + s²·((B·(A·Aᵀ))∘B)ⱼ) with sums over the rank.
///
/// `squares` are ‖Wⱼ‖² and `cross` is A·Wᵀ `[r, out]`, so nothing as large as W is made. The sums over the rank are in
/// f64; rounding may take them below 0 where everything cancels, which counts as 0.
fn norms<R: Real>(f: &Factors<'_, R>, squares: &[f64], cross: &[R]) -> Result<Vec<f64>> {
    let (r, out, s) = (f.r, f.out, f.s.f64());
    check_shape("dora", "squares of W's rows", &[squares.len()], &[out])?;
    let mut gram = vec![R::zero(); r * r];
    matmul(MatMut::new(&mut gram, r, r), f.a(), f.a().t(), R::one(), R::zero(), Threads::All);
    let mut bg = vec![R::zero(); out * r];
    let c = MatMut::new(&mut bg, out, r);
    matmul(c, f.b(), Mat::new(&gram, r, r), R::one(), R::zero(), Threads::All);
    let norm = |j: usize| {
        let (mut mixed, mut own) = (0.0, 0.0);
        for k in 0..r {
            let b = f.b[j * r + k].f64();
            mixed += cross[k * out + j].f64() * b;
            own += bg[j * r + k].f64() * b;
        }
        let square = squares[j] + s * (2.0 * mixed + s * own);
        // Not `max`, which would turn NaN into 0.
        if square < 0.0 { 0.0 } else { square.sqrt() }
    };
    Ok((0..out).into_par_iter().with_min_len(1024).map(norm).collect())
}

/// What one pass scales each output feature by, `[out]`.
pub(crate) struct Scale<R> {
    pub g: Vec<R>,
    /// dm / (Σ dy∘u): 1/norm.
    pub inverse_norm: Vec<R>,
}

impl Dora {
    /// Whether [`Dora::scale`] wants A·Wᵀ.
    pub(crate) fn wants_cross(&self) -> bool {
        matches!(self.norm, RowNorm::Recomputed { .. })
    }

    /// This pass's factors. `cross` is A·Wᵀ `[r, out]` if it's wanted.
    ///
    /// The norm is rounded to the type of the arithmetic, which the magnitudes have: those that start as the norm give
    /// g = 1 exactly.
    pub(crate) fn scale<R: Real>(
        &self,
        params: &Params,
        f: &Factors<'_, R>,
        cross: &[R],
    ) -> Result<Scale<R>> {
        let m = params.value(self.magnitude);
        check_shape("dora", "magnitude [out]", m.shape(), &[f.out])?;
        let norms = match &self.norm {
            RowNorm::Recomputed { squares } => norms(f, squares, cross)?,
            RowNorm::Fixed(norms) => norms.to_vec(),
        };
        check_shape("dora", "norms of the rows", &[norms.len()], &[f.out])?;
        let inverse = |norm: R| if norm == R::zero() { R::zero() } else { R::one() / norm };
        let g = |(&norm, &m): (&f64, &R)| if R::of(norm) == R::zero() { R::one() } else { m / R::of(norm) };
        Ok(Scale {
            g: norms.iter().zip(m.slice::<R>()?).map(g).collect(),
            inverse_norm: norms.iter().map(|&n| inverse(R::of(n))).collect(),
        })
    }

    /// # Errors
    /// If the weight is trained: its squares would be those of an earlier step.
    pub(crate) fn check_frozen(&self, op: &'static str, weight: &Weight) -> Result<()> {
        match weight.param() {
            None => Ok(()),
            Some(_) => Err(Error::Invalid(format!(
                "{op}: DoRA rescales a frozen weight, and this one is trained; train the weight or its adapter"
            ))),
        }
    }
}

/// In one pass over the rows of dy: dz = g∘dy in its place, and the sums over rows of dy∘u, `[out]`, in a fixed order.
pub(crate) fn scale_gradient<D: Element, E: Element>(dy: &mut [D], u: &[E], g: &[D::Acc]) -> Vec<D::Acc> {
    let out = g.len();
    let block = 64 * out.max(1);
    let partial: Vec<Vec<D::Acc>> = dy
        .par_chunks_mut(block)
        .zip(u.par_chunks(block))
        .map(|(dy, u)| {
            let mut partial = vec![D::Acc::of(0.0); out];
            let sums = &mut partial[..];
            vectorised!([D: Element, E: Element] (dy: &mut [D], u: &[E], g: &[D::Acc], sums: &mut [D::Acc]) {
                let out = g.len();
                for (dy, u) in dy.chunks_exact_mut(out).zip(u.chunks_exact(out)) {
                    for (((dy, u), &g), sum) in dy.iter_mut().zip(u).zip(g).zip(&mut *sums) {
                        *sum += dy.to_acc() * D::Acc::of(u.to_acc().f64());
                        *dy = D::from_acc(dy.to_acc() * g);
                    }
                }
            });
            partial
        })
        .collect();
    let mut total = vec![D::Acc::of(0.0); out];
    for sums in &partial {
        total.iter_mut().zip(sums).for_each(|(t, &s)| *t += s);
    }
    total
}

/// Below this a factor counts as 0 when u is to be had back from g·u.
const LEAST_FACTOR: f64 = 1e-20;

pub(super) struct DoraSaved {
    pub magnitude: ParamId,
    pub lora: LoraSaved,
    pub g: Tensor,
    /// u, or the output, and what its sums with dy are to be multiplied by for dm.
    pub u: Tensor,
    pub dm_factor: Tensor,
}

/// y `[n, out]` of [`Dora`], rounded once.
pub(super) fn forward<E: Element>(
    (lora, dora): (&Lora, &Dora),
    tape: &mut Tape<'_>,
    input: &Input<'_, E>,
    bias: Option<&[E::Acc]>,
) -> Result<(Tensor, DoraSaved)> {
    let &Input { x, n, weight, shape: [out, cols] } = input;
    let f = lora.factors::<E::Acc>(tape.params(), [out, cols])?;
    let mask = lora.mask(tape, n, cols)?;
    let dropped = mask.dropped(x);
    let seen = dropped.as_deref().unwrap_or(x);
    let cross = if dora.wants_cross() { weight.times_transposed(f.a, f.r)? } else { Vec::new() };
    let scale = dora.scale(tape.params(), &f, &cross)?;
    let h = f.down(seen, n);
    let least = E::Acc::of(LEAST_FACTOR);
    let from_output = bias.is_none() && dropped.is_none() && scale.g.iter().all(|g| g.abs() >= least);
    // With the output in u's place: dm = (Σ dy∘u)/norm = (Σ dy∘y)/(g·norm).
    let mut dm_factor = scale.inverse_norm;
    if from_output {
        dm_factor.iter_mut().zip(&scale.g).for_each(|(d, &g)| *d = *d / g);
    }
    let (y, u) = if from_output || tape.mode() == Mode::Infer && dropped.is_none() {
        let finish = Finish { scale: Some(&scale.g), bias };
        let y = Tensor::new(weight.sum_with::<E>(x, n, Some(f.up(&h, n)), finish)?, &[n, out]);
        (y.clone(), y)
    } else {
        let u: Vec<E::Acc> = weight.sum_of::<E, E::Acc>(seen, n, Some(f.up(&h, n)), Finish::default())?;
        let unseen = match &dropped {
            Some(dropped) => Some(weight.times_transposed_of::<E, E::Acc>(&difference(x, dropped), n)?),
            None => None,
        };
        let saved = Tensor::from_slice(&u, &[n, out], E::DTYPE);
        let y = Tensor::from_rows(u, [n, out], E::DTYPE, |i, y| {
            y.iter_mut().zip(&scale.g).for_each(|(y, &g)| *y *= g);
            for row in unseen.as_ref().map(|p| &p[i * out..][..out]).into_iter().chain(bias) {
                y.iter_mut().zip(row).for_each(|(y, &p)| *y += p);
            }
        });
        (y, saved)
    };
    let saved = DoraSaved {
        magnitude: dora.magnitude,
        lora: LoraSaved { lora: lora.clone(), mask, h: Tensor::new(h, &[n, f.r]) },
        g: Tensor::new(scale.g, &[out]),
        u,
        dm_factor: Tensor::new(dm_factor, &[out]),
    };
    Ok((y, saved))
}

/// a − b.
pub(crate) fn difference<E: Element>(a: &[E], b: &[E]) -> Vec<E> {
    crate::tensor::map2_to_vec(a, b, |a, b| E::from_acc(a.to_acc() - b.to_acc()))
}

impl DoraSaved {
    /// Adds dm, dA, dB, and dx if it's wanted.
    pub fn backward<E: Element>(
        self,
        input: &Input<'_, E>,
        dy: Tensor,
        x: Source,
        grads: &mut Sink<'_>,
    ) -> Result<()> {
        let &Input { n, weight, shape, .. } = input;
        let clean = match x.needs_grad() && !self.lora.mask.is_none() {
            true => Some(weight.times_of::<E, E::Acc>(dy.slice()?, n)?),
            false => None,
        };
        let mut dz = dy.into_vec::<E>()?;
        let (g, factor) = (self.g.slice::<E::Acc>()?, self.dm_factor.slice::<E::Acc>()?);
        let mut dm = dispatch!(self.u.dtype(), U => scale_gradient(&mut dz, self.u.slice::<U>()?, g));
        dm.iter_mut().zip(factor).for_each(|(d, &f)| *d *= f);
        grads.add_param(self.magnitude, Tensor::new(dm, &[g.len()]))?;
        let Some(clean) = clean else { return self.lora.backward(input, &dz, x, grads) };

        let f = self.lora.lora.factors::<E::Acc>(grads.params, shape)?;
        let dh = self.lora.factor_gradients(&f, input, &dz, grads)?;
        let scaled = weight.times_of::<E, E::Acc>(&dz, n)?;
        let dx = self.lora.mask.dx_of_scaled(&f, &dh, clean, scaled);
        grads.add(x, Tensor::from_reals(dx, &[n, f.cols], E::DTYPE))
    }
}
