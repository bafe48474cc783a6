//! The optimiser and its parameter groups.

use loratune_engine::ops::{AdamW, adamw_step};
use loratune_engine::{Gradients, Params, Tensor};

use crate::config::RunConfig;

/// What differs between parameters.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Group {
    /// Multiplies the schedule's learning rate.
    pub lr_factor: f64,
    pub weight_decay: f64,
}

/// The group of a parameter. Biases and norms are not decayed, as in Hugging Face's `Trainer`.
fn group(name: &str, config: &RunConfig) -> Group {
    let lowercase = name.to_ascii_lowercase();
    let decayed = !(lowercase.contains("bias") || lowercase.contains("norm"));
    Group { lr_factor: 1.0, weight_decay: if decayed { config.weight_decay } else { 0.0 } }
}

/// AdamW over all trainable parameters.
#[derive(Clone, Debug)]
pub struct Optimizer {
    groups: Vec<Group>,
    /// Running means of the gradients and of their squares, by parameter.
    m: Vec<Tensor>,
    v: Vec<Tensor>,
    /// Updates made.
    steps: u64,
    beta1: f64,
    beta2: f64,
    eps: f64,
}

impl Optimizer {
    pub fn new(params: &Params, config: &RunConfig) -> Optimizer {
        let zeros = || {
            params
                .ids()
                .map(|id| Tensor::zeros(params.value(id).dtype(), params.value(id).shape()))
                .collect::<Vec<_>>()
        };
        Optimizer {
            groups: params.ids().map(|id| group(params.name(id), config)).collect(),
            m: zeros(),
            v: zeros(),
            steps: 0,
            beta1: config.adam_beta1,
            beta2: config.adam_beta2,
            eps: config.adam_epsilon,
        }
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// One update of every parameter with its gradient times `grad_scale`, at learning rate `lr`.
    pub fn step(
        &mut self,
        params: &mut Params,
        grads: &Gradients,
        grad_scale: f64,
        lr: f64,
    ) -> Result<(), loratune_engine::Error> {
        grads.check_complete(params)?;
        self.steps += 1;
        for id in params.ids() {
            let Some(g) = grads.get(id) else { continue };
            let group = self.groups[id.index()];
            let o = AdamW {
                lr: lr * group.lr_factor,
                beta1: self.beta1,
                beta2: self.beta2,
                eps: self.eps,
                weight_decay: group.weight_decay,
            };
            let (m, v) = (&mut self.m[id.index()], &mut self.v[id.index()]);
            adamw_step(params.value_mut(id), m, v, g, grad_scale, self.steps, &o)?;
        }
        Ok(())
    }

    /// The state as named tensors, for a checkpoint.
    pub fn tensors(&self, params: &Params) -> Vec<(String, Tensor)> {
        params
            .ids()
            .flat_map(|id| {
                let (name, i) = (params.name(id), id.index());
                [
                    (format!("{name}.exp_avg"), self.m[i].clone()),
                    (format!("{name}.exp_avg_sq"), self.v[i].clone()),
                ]
            })
            .collect()
    }

    /// Takes the state of a checkpoint; `read(name, shape)` gives each tensor.
    pub fn restore<E>(
        &mut self,
        params: &Params,
        steps: u64,
        mut read: impl FnMut(&str, &[usize]) -> Result<Tensor, E>,
    ) -> Result<(), E> {
        for id in params.ids() {
            let (name, i) = (params.name(id), id.index());
            self.m[i] = read(&format!("{name}.exp_avg"), self.m[i].shape())?;
            self.v[i] = read(&format!("{name}.exp_avg_sq"), self.v[i].shape())?;
        }
        self.steps = steps;
        Ok(())
    }
}
