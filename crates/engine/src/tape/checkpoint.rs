//! Parts of a model that are computed again in the backward pass instead of being kept (Chen et al., arXiv 1604.06174).

use std::sync::{Arc, Mutex, PoisonError};

use super::{Backward, Mode, Sink, Source, Tape, Var};
use crate::Tensor;
use crate::error::{Error, Result};
use crate::kept::Kept;

type Part = dyn Fn(&mut Tape<'_>, &Var) -> Result<Var> + Send;

struct Again {
    part: Box<Part>,
    x: Kept,
    source: Source,
    mode: Mode,
    /// Where the part's random sites begin.
    sites: u64,
}

/// The part's input in its second pass: keeps the gradient that arrives.
struct Input(Arc<Mutex<Option<Tensor>>>);

impl Backward for Input {
    fn name(&self) -> &'static str {
        "checkpoint's input"
    }
    fn backward(self: Box<Self>, dy: Tensor, _: &mut Sink<'_>) -> Result<()> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(dy);
        Ok(())
    }
}

impl Backward for Again {
    fn name(&self) -> &'static str {
        "checkpoint"
    }
    fn is_profiled(&self) -> bool {
        false
    }
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
        let mut tape = Tape { sites: self.sites, unread: true, ..Tape::new(grads.params, self.mode) };
        let arrived = Arc::new(Mutex::new(None));
        let x = self.x.get()?;
        let x = match self.source.needs_grad() {
            true => tape.record(x, true, || Input(arrived.clone())),
            false => tape.constant(x),
        };
        let y = (self.part)(&mut tape, &x)?;
        drop(x);
        let last = y.node.ok_or(Error::NotRecorded("checkpoint"))?;
        drop(y);
        tape.backward_from(last, dy, grads.by_param)?;
        let arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner).take();
        match arrived {
            Some(dx) => grads.add(self.source, dx),
            None => Ok(()),
        }
    }
}

/// What a training pass keeps of the parts that a model is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checkpointing {
    /// Everything that the backward needs.
    #[default]
    None,
    /// Their inputs.
    Block,
    /// Their inputs, in the host's memory; where that is where they are, the same as `Block`.
    Offload,
}

impl Tape<'_> {
    /// What `part` makes of x, of which only x is kept, here or in the host's memory: the part runs again, and is reversed, in the backward pass. Its random
    /// numbers are the same both times, so the gradients are those that it would have without this.
    ///
    /// # Errors
    /// As of `part`.
    pub fn checkpoint(
        &mut self,
        x: &Var,
        is_offloaded: bool,
        part: impl Fn(&mut Tape<'_>, &Var) -> Result<Var> + Send + 'static,
    ) -> Result<Var> {
        if self.mode == Mode::Infer || !self.recording {
            return part(self, x);
        }
        let (sites, mode) = (self.sites, self.mode);
        let mut first = Tape { sites, recording: false, ..Tape::new(self.params, mode) };
        let y = part(&mut first, &self.constant(x.value().clone()))?.value;
        self.sites = first.sites;
        let needs = x.needs_grad() || first.wanted;
        let kept = if needs && is_offloaded { x.keep().send_away()? } else { x.keep() };
        Ok(self.record(y, needs, || Again { part: Box::new(part), x: kept, source: x.source(), mode, sites }))
    }
}
