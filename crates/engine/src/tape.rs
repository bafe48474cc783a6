//! The tape: records ops with what their backward needs, and replays them in reverse.
//!
//! Ops are few and big, and each writes its own backward; the tape knows no mathematics. A value that no trainable
//! parameter flows into carries no node, is saved by nothing, and costs nothing in the backward pass.

use std::sync::Arc;

use rayon::prelude::*;

use crate::error::{Error, Result, check_shape};
use crate::gemm::{Finish, MatMut, Term, Threads, sum_of_products};
use crate::kept::{Kept, Recipe, User};
use crate::ops::elementwise;
use crate::param::{Gradients, ParamId, Params};
use crate::profile::{self, Pass};
use crate::rng::Key;
use crate::{DType, Element, Tensor, dispatch, pool};

mod checkpoint;
mod deferred;

pub use checkpoint::Checkpointing;
pub(crate) use deferred::{FactorGradient, Product};

/// A value on the tape.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    node: Option<usize>,
    recipe: Option<Arc<Recipe>>,
}

impl Var {
    pub fn value(&self) -> &Tensor {
        &self.value
    }
    /// Whether a trainable parameter flows into this value.
    pub fn needs_grad(&self) -> bool {
        self.node.is_some()
    }
    pub(crate) fn source(&self) -> Source {
        Source(self.node)
    }
    /// Another value whose gradient is this one's, unchanged: this value plus something constant.
    pub(crate) fn shifted(&self, value: Tensor) -> Var {
        debug_assert_eq!(value.shape(), self.value.shape());
        Var { value, node: self.node, recipe: None }
    }

    /// The same value, computed again where it is needed in the backward pass instead of being kept.
    pub(crate) fn with_recipe(self, make: impl FnOnce() -> Arc<Recipe>) -> Var {
        // On the CPU passes over memory cost more than the memory.
        let recipe = self
            .value
            .cuda()
            .filter(|there| self.node.is_some() && !there.device().plans_processor())
            .map(|_| make());
        Var { recipe, ..self }
    }

    /// The value, for an op's backward.
    pub(crate) fn keep(&self) -> Kept {
        match &self.recipe {
            None => Kept::Value(self.value.clone()),
            Some(recipe) => Kept::Again(User::of(recipe)),
        }
    }
}

/// Where an op's input came from: what a backward needs of an input whose value it does not need.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source(Option<usize>);

impl Source {
    /// Of a value that wants no gradient.
    pub fn none() -> Source {
        Source(None)
    }

    pub fn needs_grad(self) -> bool {
        self.0.is_some()
    }
}

/// What an op leaves on the tape.
pub(crate) trait Backward: Send {
    fn name(&self) -> &'static str;
    /// Whether the profile counts it as one op; of several, each counts itself.
    fn is_profiled(&self) -> bool {
        true
    }
    /// Takes the gradient of the output and adds the gradients of the inputs. What was saved is freed on the way.
    fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()>;
}

struct Node {
    op: Option<Box<dyn Backward>>,
    shape: Vec<usize>,
}

/// What has arrived of a value's gradient: a sum, and on a card products that are still to be added to it, so that those of
/// several layers with one input become one; and gradients of parameters that read the value itself, for the same reason.
#[derive(Default)]
struct Arrived {
    sum: Option<Tensor>,
    products: Vec<Product>,
    factors: Vec<FactorGradient>,
}

impl Arrived {
    fn take(&mut self, by_param: &mut Gradients) -> Result<Option<Tensor>> {
        // First, and freed, for they hold the value or what it is made of.
        let factors = std::mem::take(&mut self.factors);
        if !factors.is_empty() {
            let _span = profile::span("adapter", Pass::Backward);
            deferred::factors(&factors, by_param)?;
            drop(factors);
        }
        match std::mem::take(&mut self.products) {
            products if products.is_empty() => Ok(self.sum.take()),
            products => {
                let _span = profile::span("linear", Pass::Backward);
                Ok(Some(deferred::sum(self.sum.take(), &products)?))
            }
        }
    }
}

/// Where backwards put gradients.
pub(crate) struct Sink<'a> {
    by_node: &'a mut [Arrived],
    by_param: &'a mut Gradients,
    pub params: &'a Params,
}

impl Sink<'_> {
    pub fn add(&mut self, to: Source, grad: Tensor) -> Result<()> {
        let Some(i) = to.0 else { return Ok(()) };
        match &mut self.by_node[i].sum {
            Some(sum) => sum.add_assign(&grad)?,
            empty => *empty = Some(grad),
        }
        Ok(())
    }

    /// Adds products on a card, when the gradient is asked for.
    pub fn add_later(&mut self, to: Source, products: impl IntoIterator<Item = Product>) {
        if let Some(i) = to.0 {
            self.by_node[i].products.extend(products);
        }
    }

    /// Adds the gradient of a parameter that reads a value on a card, when that value's gradient is asked for.
    pub fn add_factor(&mut self, of: Source, gradient: FactorGradient) -> Result<()> {
        check_shape(
            "gradient",
            self.params.name(gradient.id),
            &[gradient.r, gradient.k],
            self.params.value(gradient.id).shape(),
        )?;
        match of.0 {
            Some(i) => self.by_node[i].factors.push(gradient),
            None => deferred::factors(&[gradient], self.by_param)?,
        }
        Ok(())
    }

    /// What has arrived so far, for an op that adds to it in its own pass and [`puts`](Sink::put) it back.
    pub fn take(&mut self, to: Source) -> Result<Option<Tensor>> {
        to.0.map_or(Ok(None), |i| self.by_node[i].take(self.by_param))
    }

    pub fn put(&mut self, to: Source, grad: Tensor) {
        if let Some(i) = to.0 {
            self.by_node[i].sum = Some(grad);
        }
    }

    /// Adds a sum of products `[rows, cols]` to a gradient, in one pass over it.
    pub fn add_products<E: Element>(
        &mut self,
        to: Source,
        [rows, cols]: [usize; 2],
        terms: &[Term<'_>],
    ) -> Result<()> {
        let Some(i) = to.0 else { return Ok(()) };
        let sum = &mut self.by_node[i].sum;
        let add = sum.is_some();
        let fresh = || Tensor::new(pool::any::<E>(rows * cols), &[rows, cols]);
        let sum = sum.get_or_insert_with(fresh);
        check_shape("linear backward", "gradient", sum.shape(), &[rows, cols])?;
        let c = MatMut::new(sum.slice_mut::<E>()?, rows, cols);
        sum_of_products(c, add, terms, Finish::default(), Threads::All);
        Ok(())
    }

    /// Adds the gradient of some columns of a matrix `[rows, cols]`, from column `first` on.
    pub fn add_columns(&mut self, to: Source, first: usize, cols: usize, grad: &Tensor) -> Result<()> {
        let Some(i) = to.0 else { return Ok(()) };
        let sum = match &mut self.by_node[i].sum {
            Some(sum) => sum,
            empty => empty.insert(grad.zeros_beside(grad.dtype(), &[grad.rows(), cols])?),
        };
        check_shape("split_columns", "gradient", sum.shape(), &[grad.rows(), cols])?;
        let size = grad.cols();
        if let (Some(grad_there), Some(sum)) = (grad.cuda(), sum.cuda_mut()?) {
            sum.pointer_mut();
            return elementwise::columns(
                (sum, first, cols),
                (grad_there, 0, size),
                [grad.rows(), size],
                true,
            );
        }
        dispatch!(grad.dtype(), E => {
            let (sum, grad) = (sum.slice_mut::<E>()?, grad.slice::<E>()?);
            let rows = sum.par_chunks_mut(cols.max(1)).zip(grad.par_chunks(size.max(1))).with_min_len(16);
            rows.for_each(|(sum, grad)| {
                for (s, g) in sum[first..first + size].iter_mut().zip(grad) {
                    *s = E::from_acc(s.to_acc() + g.to_acc());
                }
            });
        });
        Ok(())
    }

    pub fn add_param(&mut self, id: ParamId, grad: Tensor) -> Result<()> {
        check_shape("gradient", self.params.name(id), grad.shape(), self.params.value(id).shape())?;
        self.by_param.add(id, grad)
    }
}

/// Whether the pass is for training (dropout and noise on) or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Dropout and noise on, ops recorded; randomness is drawn under this key (seed, step, micro-batch).
    Train(Key),
    /// Ops recorded, nothing random: for checking gradients.
    Grad,
    /// Nothing recorded, nothing random.
    Infer,
}

/// One forward pass and its reversal.
pub struct Tape<'p> {
    params: &'p Params,
    mode: Mode,
    nodes: Vec<Node>,
    sites: u64,
    /// Not within a [`checkpoint`](Tape::checkpoint) in the forward pass.
    recording: bool,
    /// Whether anything was recorded, or would have been.
    wanted: bool,
    /// Whether only the backward matters: see [`Tape::result_is_unread`].
    unread: bool,
}

impl<'p> Tape<'p> {
    pub fn new(params: &'p Params, mode: Mode) -> Tape<'p> {
        Tape { params, mode, nodes: Vec::new(), sites: 0, recording: true, wanted: false, unread: false }
    }

    pub fn params(&self) -> &'p Params {
        self.params
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// A value that gradients stop at.
    pub fn constant(&self, value: Tensor) -> Var {
        Var { value, node: None, recipe: None }
    }

    /// A trainable parameter as a value, for ops that take it like any other input.
    pub fn param(&mut self, id: ParamId) -> Var {
        struct Leaf(ParamId);
        impl Backward for Leaf {
            fn name(&self) -> &'static str {
                "parameter"
            }
            fn backward(self: Box<Self>, dy: Tensor, grads: &mut Sink<'_>) -> Result<()> {
                grads.add_param(self.0, dy)
            }
        }
        let value = self.params.value(id).clone();
        self.record(value, true, || Leaf(id))
    }

    /// Whether nobody reads the value that this pass ends with, only its gradients are wanted: in the second pass of a
    /// [`checkpoint`](Tape::checkpoint). What is computed for that value alone can be left out.
    pub fn result_is_unread(&self) -> bool {
        self.unread
    }

    /// The random key of the next site in this pass, when randomness is on. Sites are numbered in the order of the
    /// forward pass, which is the same in every pass.
    pub(crate) fn next_key(&mut self) -> Option<Key> {
        let Mode::Train(key) = self.mode else { return None };
        self.sites += 1;
        Some(key.with(self.sites))
    }

    /// Puts an op's result on the tape; `op` is only made (and its saved tensors only kept) when a gradient is needed.
    pub(crate) fn record<B: Backward + 'static>(
        &mut self,
        value: Tensor,
        needs_grad: bool,
        op: impl FnOnce() -> B,
    ) -> Var {
        self.wanted |= needs_grad;
        if !needs_grad || self.mode == Mode::Infer || !self.recording {
            return Var { value, node: None, recipe: None };
        }
        self.nodes.push(Node { op: Some(Box::new(op())), shape: value.shape().to_vec() });
        Var { value, node: Some(self.nodes.len() - 1), recipe: None }
    }

    /// Number of ops that were recorded, for tests of what is recorded.
    pub fn recorded(&self) -> usize {
        self.nodes.len()
    }

    /// Adds `seed` · d`loss`/dp to the gradient of every trainable parameter p.
    ///
    /// # Errors
    /// If the loss does not depend on any parameter, is not a scalar, or an op's backward fails.
    pub fn backward(self, loss: &Var, seed: f64, gradients: &mut Gradients) -> Result<()> {
        let last = loss.node.ok_or(Error::NotRecorded("backward"))?;
        if loss.value.numel() != 1 {
            return Err(Error::Shape {
                op: "backward",
                what: "loss".into(),
                expected: "a scalar".into(),
                got: format!("{:?}", loss.value.shape()),
            });
        }
        let one = Tensor::from_reals(vec![seed], loss.value.shape(), DType::F64).to_dtype(loss.value.dtype());
        self.backward_from(last, one, gradients)
    }

    /// Like [`Tape::backward`] for a value of any shape and its gradient `dy`.
    pub fn backward_with(self, var: &Var, dy: Tensor, gradients: &mut Gradients) -> Result<()> {
        let last = var.node.ok_or(Error::NotRecorded("backward"))?;
        self.backward_from(last, dy, gradients)
    }

    fn backward_from(mut self, last: usize, dy: Tensor, gradients: &mut Gradients) -> Result<()> {
        let mut by_node: Vec<Arrived> = (0..=last).map(|_| Arrived::default()).collect();
        by_node[last].sum = Some(dy);
        for i in (0..=last).rev() {
            let node = &mut self.nodes[i];
            let (Some(dy), Some(op)) = (by_node[i].take(gradients)?, node.op.take()) else { continue };
            check_shape(op.name(), "gradient of the output", dy.shape(), &node.shape)?;
            let _span = op.is_profiled().then(|| profile::span(op.name(), Pass::Backward));
            let mut sink = Sink { by_node: &mut by_node, by_param: gradients, params: self.params };
            op.backward(dy, &mut sink)?;
        }
        Ok(())
    }
}
