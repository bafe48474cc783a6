//! An adapter on the head: its part of each chunk of outputs, and its gradients summed over the chunks.

use std::ops::Range;

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::ops::linear::{Factors, Mask, Scale, difference, scale_gradient};
use crate::ops::rows::HeadWeight;
use crate::ops::{Lora, TableAdapter};
use crate::tape::Tape;
use crate::{ParamId, Real, Tensor, Weight};

/// The head's output for a chunk, and with DoRA the unscaled one that dm needs.
pub(super) struct Outputs<R> {
    pub y: Vec<R>,
    unscaled: Vec<R>,
}

impl<R> Outputs<R> {
    pub fn plain(y: Vec<R>) -> Outputs<R> {
        Outputs { y, unscaled: Vec::new() }
    }
}

/// The adapter of a head W `[vocabulary, hidden]` in one pass over the trained rows x `[n, hidden]`.
///
/// What is as wide as x is there for all rows at once, what is as wide as the vocabulary for a chunk.
pub(super) struct HeadAdapter<'a, R> {
    lora: &'a Lora,
    f: Factors<'a, R>,
    mask: Mask,
    scale: Option<Scale<R>>,
    /// drop(x), where there is dropout.
    dropped: Option<Vec<R>>,
    /// x − drop(x), which DoRA doesn't scale.
    unseen: Option<Vec<R>>,
    h: Vec<R>,
    db: Vec<R>,
    dh: Vec<R>,
    /// Σ dy∘unscaled over the rows.
    dots: Vec<R>,
    /// dy·W by row, where DoRA with dropout needs it besides the scaled one.
    clean: Vec<R>,
}

impl<'a, R: Real> HeadAdapter<'a, R> {
    /// As [`HeadAdapter::new`], if there is an adapter.
    pub fn of<'p: 'a>(
        tape: &mut Tape<'p>,
        adapter: TableAdapter<'a>,
        head: &Weight,
        x: &[R],
        rows: &[usize],
        tokens: usize,
    ) -> Result<Option<HeadAdapter<'a, R>>> {
        let Some(lora) = adapter.lora else { return Ok(None) };
        if adapter.rows.is_some() && lora.dora.is_some() {
            // Its norms would be those of the trained rows, which change in every step.
            return Err(Error::Invalid("the head has a DoRA and trained rows at once".into()));
        }
        HeadAdapter::new(tape, lora, head, x, rows, tokens).map(Some)
    }

    /// For the trained `rows` of `tokens`, whose inputs are `x`. Takes the tape's next key if there is random dropout,
    /// whose numbers are counted over the trained rows.
    fn new<'p: 'a>(
        tape: &mut Tape<'p>,
        lora: &'a Lora,
        head: &Weight,
        x: &[R],
        rows: &[usize],
        tokens: usize,
    ) -> Result<HeadAdapter<'a, R>> {
        let w = head.resolve(tape.params());
        let (vocabulary, hidden) = w.matrix("linear_cross_entropy")?;
        let f = lora.factors::<R>(tape.params(), [vocabulary, hidden])?;
        let mask = lora.mask(tape, tokens, hidden)?.of_rows(rows)?;
        let dropped = mask.dropped(x);
        let h = f.down(dropped.as_deref().unwrap_or(x), rows.len());
        let (mut scale, mut unseen) = (None, None);
        if let Some(dora) = &lora.dora {
            dora.check_frozen("linear_cross_entropy", head)?;
            let cross = if dora.wants_cross() { w.times_transposed(f.a, f.r)? } else { Vec::new() };
            scale = Some(dora.scale(tape.params(), &f, &cross)?);
            unseen = dropped.as_ref().map(|dropped| difference(x, dropped));
        }
        Ok(HeadAdapter {
            lora,
            mask,
            dropped,
            unseen,
            h,
            db: vec![R::zero(); vocabulary * f.r],
            dh: Vec::with_capacity(rows.len() * f.r),
            dots: vec![R::zero(); if scale.is_some() { vocabulary } else { 0 }],
            clean: Vec::new(),
            scale,
            f,
        })
    }

    /// Buffers as large as a chunk's outputs that are in memory together.
    pub fn copies_of_outputs(&self) -> usize {
        if self.scale.is_some() { 2 } else { 1 }
    }

    /// The head's outputs for some `rows` of x.
    pub fn outputs(&self, w: &HeadWeight<'_, R>, x: &[R], rows: &Range<usize>) -> Result<Outputs<R>> {
        let (n, hidden) = (rows.len(), self.f.cols);
        let seen = match (&self.scale, &self.dropped) {
            (Some(_), Some(dropped)) => dropped,
            _ => x,
        };
        let mut u = w.times_transposed(part(seen, rows, hidden), n)?;
        self.f.add_up(part(&self.h, rows, self.f.r), n, &mut u);
        let Some(scale) = &self.scale else { return Ok(Outputs::plain(u)) };
        let mut y = match &self.unseen {
            Some(unseen) => w.times_transposed(part(unseen, rows, hidden), n)?,
            None => vec![R::zero(); u.len()],
        };
        let vocabulary = self.f.out.max(1);
        y.par_chunks_mut(vocabulary).zip(u.par_chunks(vocabulary)).for_each(|(y, u)| {
            y.iter_mut().zip(u).zip(&scale.g).for_each(|((y, &u), &g)| *y += g * u);
        });
        Ok(Outputs { y, unscaled: u })
    }

    /// Takes the gradient of the outputs of some `rows` into the gradients, and adds its product with W to the end of `dx` if it's wanted.
    pub fn backward(
        &mut self,
        w: &HeadWeight<'_, R>,
        outputs: Outputs<R>,
        rows: &Range<usize>,
        dx: Option<&mut Vec<R>>,
    ) -> Result<()> {
        let (n, mut dz) = (rows.len(), outputs.y);
        if let Some(scale) = &self.scale {
            if dx.is_some() && !self.mask.is_none() {
                self.clean.extend_from_slice(&w.times(&mut dz, n)?);
            }
            let dots = scale_gradient(&mut dz, &outputs.unscaled, &scale.g);
            self.dots.iter_mut().zip(dots).for_each(|(sum, d)| *sum += d);
        }
        let dh = self.f.up_backward(&dz, part(&self.h, rows, self.f.r), n, &mut self.db);
        self.dh.extend_from_slice(&dh);
        if let Some(dx) = dx {
            dx.extend_from_slice(&w.times(&mut dz, n)?);
        }
        Ok(())
    }

    /// Completes `dx` of all rows of `x`, and gives the gradients of the adapter's parameters.
    pub fn finish(self, x: &[R], dx: Option<&mut Vec<R>>) -> Vec<(ParamId, Tensor)> {
        let f = &self.f;
        let n = self.dh.len() / f.r.max(1);
        if let Some(dx) = dx {
            match self.clean.is_empty() {
                true => self.mask.add_dx(f, &self.dh, n, dx),
                false => *dx = self.mask.dx_of_scaled(f, &self.dh, self.clean, std::mem::take(dx)),
            }
        }
        let mut grads = vec![
            (self.lora.a, f.da(&self.dh, self.dropped.as_deref().unwrap_or(x), n)),
            (self.lora.b, Tensor::new(self.db, &[f.out, f.r])),
        ];
        if let (Some(dora), Some(scale)) = (&self.lora.dora, &self.scale) {
            let dm: Vec<R> = self.dots.iter().zip(&scale.inverse_norm).map(|(&d, &i)| d * i).collect();
            grads.push((dora.magnitude, Tensor::new(dm, &[f.out])));
        }
        grads
    }
}

/// Some rows of a matrix.
fn part<'a, R>(matrix: &'a [R], rows: &Range<usize>, cols: usize) -> &'a [R] {
    &matrix[rows.start * cols..rows.end * cols]
}
