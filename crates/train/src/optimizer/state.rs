//! What a rule remembers of one parameter.

use loratune_engine::ops::{
    EightBit, SecondMoment, adafactor_step, adamw_8bit_step, adamw_step, lion_8bit_step, lion_step, sgd_step,
};
use loratune_engine::{Error, Tensor};

use super::{LEAST_8BIT, Rule};

/// The parts, named as the peers name them.
#[derive(Clone, Debug)]
pub(super) enum State {
    None,
    Adam { m: Tensor, v: Tensor },
    Adam8 { m: EightBit, v: EightBit },
    Momentum(Tensor),
    Momentum8(EightBit),
    Factored { row: Tensor, column: Tensor },
    Squares(Tensor),
}

impl State {
    pub fn new(rule: Rule, p: &Tensor) -> Result<State, Error> {
        let zeros = || p.zeros_like();
        let small = p.numel() < LEAST_8BIT;
        Ok(match rule {
            Rule::AdamW8Bit(_) if !small => {
                State::Adam8 { m: EightBit::zeros(p.numel(), true), v: EightBit::zeros(p.numel(), false) }
            }
            Rule::AdamW(_) | Rule::AdamW8Bit(_) => State::Adam { m: zeros()?, v: zeros()? },
            Rule::Lion8Bit(_) if !small => State::Momentum8(EightBit::zeros(p.numel(), true)),
            Rule::Lion(_) | Rule::Lion8Bit(_) => State::Momentum(zeros()?),
            Rule::Sgd(o) if o.momentum == 0.0 => State::None,
            Rule::Sgd(_) => State::Momentum(zeros()?),
            Rule::Adafactor(_) => match *p.shape() {
                [rows, columns] => State::Factored {
                    row: Tensor::zeros(p.dtype(), &[rows]),
                    column: Tensor::zeros(p.dtype(), &[columns]),
                },
                _ => State::Squares(zeros()?),
            },
        })
    }

    /// Bytes of the state of f32 parameters of this shape.
    pub fn bytes_for(rule: Rule, shape: &[usize]) -> u64 {
        let n = shape.iter().product::<usize>() as u64;
        let small = (n as usize) < LEAST_8BIT;
        match rule {
            Rule::AdamW8Bit(_) if !small => 2 * EightBit::bytes_for(n),
            Rule::Lion8Bit(_) if !small => EightBit::bytes_for(n),
            Rule::AdamW(_) | Rule::AdamW8Bit(_) => 8 * n,
            Rule::Sgd(o) if o.momentum == 0.0 => 0,
            Rule::Lion(_) | Rule::Lion8Bit(_) | Rule::Sgd(_) => 4 * n,
            Rule::Adafactor(_) => match *shape {
                [rows, columns] => 4 * (rows + columns) as u64,
                _ => 4 * n,
            },
        }
    }

    pub fn step(
        &mut self,
        rule: Rule,
        p: &mut Tensor,
        g: &Tensor,
        scale: f64,
        step: u64,
    ) -> Result<(), Error> {
        match (rule, self) {
            (Rule::AdamW(o) | Rule::AdamW8Bit(o), State::Adam { m, v }) => {
                adamw_step(p, m, v, g, scale, step, &o)
            }
            (Rule::AdamW8Bit(o), State::Adam8 { m, v }) => adamw_8bit_step(p, m, v, g, scale, step, &o),
            (Rule::Lion(o) | Rule::Lion8Bit(o), State::Momentum(m)) => lion_step(p, m, g, scale, &o),
            (Rule::Lion8Bit(o), State::Momentum8(m)) => lion_8bit_step(p, m, g, scale, &o),
            (Rule::Sgd(o), State::None) => sgd_step(p, None, g, scale, step, &o),
            (Rule::Sgd(o), State::Momentum(b)) => sgd_step(p, Some(b), g, scale, step, &o),
            (Rule::Adafactor(o), State::Factored { row, column }) => {
                adafactor_step(p, SecondMoment::Factored { row, column }, g, scale, step, &o)
            }
            (Rule::Adafactor(o), State::Squares(v)) => {
                adafactor_step(p, SecondMoment::Whole(v), g, scale, step, &o)
            }
            (rule, state) => Err(Error::Invalid(format!("{state:?} is no state of {rule:?}"))),
        }
    }

    /// The parts with their names.
    pub fn tensors(&self) -> Result<Vec<(&'static str, Tensor)>, Error> {
        Ok(match self {
            State::None => Vec::new(),
            State::Adam { m, v } => vec![("exp_avg", m.clone()), ("exp_avg_sq", v.clone())],
            State::Adam8 { m, v } => {
                let ([state1, absmax1], [state2, absmax2]) = (m.tensors()?, v.tensors()?);
                vec![("state1", state1), ("absmax1", absmax1), ("state2", state2), ("absmax2", absmax2)]
            }
            State::Momentum(m) => vec![("momentum_buffer", m.clone())],
            State::Momentum8(m) => {
                let [state1, absmax1] = m.tensors()?;
                vec![("state1", state1), ("absmax1", absmax1)]
            }
            State::Factored { row, column } => {
                vec![("exp_avg_sq_row", row.clone()), ("exp_avg_sq_col", column.clone())]
            }
            State::Squares(v) => vec![("exp_avg_sq", v.clone())],
        })
    }

    /// Takes parts in the order and shapes of [`State::tensors`].
    pub fn restore(&mut self, parts: Vec<Tensor>) -> Result<(), Error> {
        match (self, parts.as_slice()) {
            (State::None, []) => {}
            (State::Adam { m, v }, [a, b]) => (*m, *v) = (a.clone(), b.clone()),
            (State::Factored { row, column }, [a, b]) => (*row, *column) = (a.clone(), b.clone()),
            (State::Momentum(m) | State::Squares(m), [a]) => *m = a.clone(),
            (State::Adam8 { m, v }, [state1, absmax1, state2, absmax2]) => {
                m.restore(state1, absmax1)?;
                v.restore(state2, absmax2)?;
            }
            (State::Momentum8(m), [state1, absmax1]) => m.restore(state1, absmax1)?,
            (_, parts) => {
                return Err(Error::Invalid(format!("{} tensors are no optimiser's state", parts.len())));
            }
        }
        Ok(())
    }

    pub fn bytes(&self) -> u64 {
        let of = |t: &Tensor| (t.numel() * t.dtype().size()) as u64;
        match self {
            State::None => 0,
            State::Adam { m: a, v: b } | State::Factored { row: a, column: b } => of(a) + of(b),
            State::Momentum(m) | State::Squares(m) => of(m),
            State::Adam8 { m, v } => m.bytes() + v.bytes(),
            State::Momentum8(m) => m.bytes(),
        }
    }
}
