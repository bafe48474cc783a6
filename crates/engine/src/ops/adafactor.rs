use rayon::prelude::*;

use crate::error::{Error, Result, check_shape};
use crate::profile::{self, Pass};
use crate::tensor::CHUNK;
use crate::{Real, Tensor, dispatch_real};

/// Hyper-parameters of one Adafactor step.
#[derive(Clone, Copy, Debug)]
pub struct Adafactor {
    pub lr: f64,
    /// Decoupled.
    pub weight_decay: f64,
    /// Added to the squares of gradients.
    pub eps: f64,
    /// Updates are scaled down to this root mean square.
    pub clip_threshold: f64,
    /// β₂ at step t is 1 − t^`decay_rate`.
    pub decay_rate: f64,
}

/// Running means of the squared gradients.
#[derive(Debug)]
pub enum SecondMoment<'a> {
    /// Of a matrix `[rows, columns]`: means over columns and over rows.
    Factored { row: &'a mut Tensor, column: &'a mut Tensor },
    /// Of anything else, in its shape.
    Whole(&'a mut Tensor),
}

/// One Adafactor step (Shazeer & Stern, arXiv 1804.04235) with a given learning rate and no first moment: transformers' with
/// `scale_parameter=False, relative_step=False`, which is how its `Trainer` uses it. `step` counts from 1.
///
/// # Errors
/// Shapes or types that do not belong together.
pub fn adafactor_step(
    p: &mut Tensor,
    moment: SecondMoment<'_>,
    g: &Tensor,
    grad_scale: f64,
    step: u64,
    o: &Adafactor,
) -> Result<()> {
    let _span = profile::span("adafactor", Pass::Forward);
    check_shape("adafactor", "gradient", g.shape(), p.shape())?;
    dispatch_real!(p.dtype(), R => run::<R>(p, moment, g, grad_scale, step, o))
}

fn run<R: Real>(
    p: &mut Tensor,
    moment: SecondMoment<'_>,
    g: &Tensor,
    grad_scale: f64,
    step: u64,
    o: &Adafactor,
) -> Result<()> {
    let beta = 1.0 - (step as f64).powf(o.decay_rate);
    let scale = R::of(grad_scale);
    let shape = p.shape().to_vec();
    let g: Vec<R> = g.slice::<R>()?.iter().map(|&g| g * scale).collect();
    let square = |g: R| g.f64() * g.f64() + o.eps;
    let mut update = match moment {
        SecondMoment::Factored { row, column } => {
            let [rows, columns] = shape[..] else {
                return Err(Error::Invalid(format!("adafactor: only matrices are factored, not {shape:?}")));
            };
            check_shape("adafactor", "row means", row.shape(), &[rows])?;
            check_shape("adafactor", "column means", column.shape(), &[columns])?;
            let (row, column) = (row.slice_mut::<R>()?, column.slice_mut::<R>()?);
            row.par_iter_mut().zip(g.par_chunks(columns)).for_each(|(r, g)| {
                let mean = g.iter().map(|&g| square(g)).sum::<f64>() / columns as f64;
                *r = R::of(r.f64() * beta + mean * (1.0 - beta));
            });
            column.par_iter_mut().enumerate().for_each(|(j, c)| {
                let sum: f64 = (0..rows).map(|i| square(g[i * columns + j])).sum();
                *c = R::of(c.f64() * beta + sum / rows as f64 * (1.0 - beta));
            });
            let mean = row.iter().map(|r| r.f64()).sum::<f64>() / rows as f64;
            let by_row: Vec<f64> = row.iter().map(|r| 1.0 / (r.f64() / mean).sqrt()).collect();
            let by_column: Vec<f64> = column.iter().map(|c| 1.0 / c.f64().sqrt()).collect();
            let mut update = g;
            update.par_chunks_mut(columns).zip(&by_row).for_each(|(u, r)| {
                for (u, c) in u.iter_mut().zip(&by_column) {
                    *u = R::of(u.f64() * (r * c));
                }
            });
            update
        }
        SecondMoment::Whole(v) => {
            check_shape("adafactor", "second moment", v.shape(), &shape)?;
            let v = v.slice_mut::<R>()?;
            let mut update = g;
            update.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)).for_each(|(u, v)| {
                for (u, v) in u.iter_mut().zip(v) {
                    *v = R::of(v.f64() * beta + square(*u) * (1.0 - beta));
                    *u = R::of(u.f64() / v.f64().sqrt());
                }
            });
            update
        }
    };
    // Partial sums in the order of the pieces: the result does not depend on the threads.
    let sums: Vec<f64> =
        update.par_chunks(CHUNK).map(|u| u.iter().map(|u| u.f64() * u.f64()).sum()).collect();
    let rms = (sums.iter().sum::<f64>() / update.len().max(1) as f64).sqrt();
    let factor = R::of(o.lr / (rms / o.clip_threshold).max(1.0));
    let decay = R::of(1.0 - o.weight_decay * o.lr);
    let p = p.slice_mut::<R>()?;
    p.par_chunks_mut(CHUNK).zip(update.par_chunks_mut(CHUNK)).for_each(|(p, u)| {
        for (p, &mut u) in p.iter_mut().zip(u) {
            *p = *p * decay - u * factor;
        }
    });
    Ok(())
}
