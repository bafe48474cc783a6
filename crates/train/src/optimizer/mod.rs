//! The optimiser: a rule for all trainable parameters, their groups, and what the rule remembers of each.

mod groups;
mod state;

use loratune_engine::ops::{Adafactor, AdamW, AdamWSteps, Lion, Sgd};
use loratune_engine::{Device, Error, Gradients, Params, Tensor};

use crate::config::{Optimizer as Choice, RunConfig};

use groups::group;
pub use groups::{Group, GroupSize, group_sizes};
use state::State;

/// Below so many numbers bitsandbytes keeps a parameter's state in 32 bits.
const LEAST_8BIT: usize = 4096;

/// The update that all parameters share; learning rate and weight decay are the group's.
#[derive(Clone, Copy, Debug)]
enum Rule {
    AdamW(AdamW),
    AdamW8Bit(AdamW),
    Adafactor(Adafactor),
    Sgd(Sgd),
    Lion(Lion),
    Lion8Bit(Lion),
}

impl Rule {
    fn new(config: &RunConfig) -> Rule {
        let (beta1, beta2) = (config.adam_beta1, config.adam_beta2);
        let adamw = AdamW { lr: 0.0, beta1, beta2, eps: config.adam_epsilon, weight_decay: 0.0 };
        let lion = Lion { lr: 0.0, beta1, beta2, weight_decay: 0.0 };
        match config.optim {
            Choice::AdamW => Rule::AdamW(adamw),
            Choice::AdamW8Bit => Rule::AdamW8Bit(adamw),
            // What transformers' `Trainer` sets, and Adafactor's defaults for the rest.
            Choice::Adafactor => Rule::Adafactor(Adafactor {
                lr: 0.0,
                weight_decay: 0.0,
                eps: 1e-30,
                clip_threshold: 1.0,
                decay_rate: -0.8,
            }),
            Choice::Sgd => Rule::Sgd(Sgd {
                lr: 0.0,
                weight_decay: 0.0,
                momentum: config.optim_args.number("momentum").unwrap_or(0.0),
                dampening: config.optim_args.number("dampening").unwrap_or(0.0),
                nesterov: config.optim_args.switch("nesterov").unwrap_or(false),
            }),
            Choice::Lion => Rule::Lion(lion),
            Choice::Lion8Bit => Rule::Lion8Bit(lion),
        }
    }

    /// The rule as it is for a group at its learning rate.
    fn of_group(self, lr: f64, group: Group) -> Rule {
        let weight_decay = group.weight_decay;
        match self {
            Rule::AdamW(o) => Rule::AdamW(AdamW { lr, weight_decay, ..o }),
            Rule::AdamW8Bit(o) => Rule::AdamW8Bit(AdamW { lr, weight_decay, ..o }),
            Rule::Adafactor(o) => Rule::Adafactor(Adafactor { lr, weight_decay, ..o }),
            Rule::Sgd(o) => Rule::Sgd(Sgd { lr, weight_decay, ..o }),
            Rule::Lion(o) => Rule::Lion(Lion { lr, weight_decay, ..o }),
            Rule::Lion8Bit(o) => Rule::Lion8Bit(Lion { lr, weight_decay, ..o }),
        }
    }
}

/// An optimiser over all trainable parameters.
#[derive(Clone, Debug)]
pub struct Optimizer {
    rule: Rule,
    groups: Vec<Group>,
    /// By parameter.
    states: Vec<State>,
    /// Updates made.
    steps: u64,
}

impl Optimizer {
    /// States are where the parameters are.
    ///
    /// # Errors
    /// If their device has no room for them, or the optimiser no kernel there.
    pub fn new(params: &Params, config: &RunConfig) -> Result<Optimizer, Error> {
        let rule = Rule::new(config);
        let elsewhere = params.ids().any(|id| params.value(id).device() != Device::Cpu);
        if elsewhere && !matches!(rule, Rule::AdamW(_)) {
            return Err(Error::Invalid(format!(
                "optim is {}, which is computed on the processor only; use adamw_torch, or device: cpu",
                config.optim.name()
            )));
        }
        let group_of = |id| group(params.name(id), params.value(id).shape().len(), config);
        Ok(Optimizer {
            rule,
            groups: params.ids().map(group_of).collect(),
            states: params.ids().map(|id| State::new(rule, params.value(id))).collect::<Result<_, _>>()?,
            steps: 0,
        })
    }

    /// Bytes of all states that [`Optimizer::new`] would make.
    pub fn bytes_for(params: &Params, config: &RunConfig) -> u64 {
        let rule = Rule::new(config);
        params.ids().map(|id| State::bytes_for(rule, params.value(id).shape())).sum()
    }

    /// By parameter, which multiple of `learning_rate` its own is.
    pub fn lr_factors(&self) -> Vec<f64> {
        self.groups.iter().map(|g| g.lr_factor).collect()
    }

    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Bytes of all states.
    pub fn bytes(&self) -> u64 {
        self.states.iter().map(State::bytes).sum()
    }

    /// One update of every parameter with its gradient times `grad_scale`; `rates` are the learning rates, by parameter.
    pub fn step(
        &mut self,
        params: &mut Params,
        grads: &Gradients,
        grad_scale: f64,
        rates: &[f64],
    ) -> Result<(), Error> {
        grads.check_complete(params)?;
        self.steps += 1;
        let mut adamw = AdamWSteps::default();
        for id in params.ids() {
            let Some(g) = grads.get(id) else { continue };
            let rule = self.rule.of_group(rates[id.index()], self.groups[id.index()]);
            let (p, step) = (params.value_mut(id), self.steps);
            match (rule, &mut self.states[id.index()]) {
                // On a card all parameters are one pass.
                (Rule::AdamW(o), State::Adam { m, v }) => adamw.step(p, m, v, g, grad_scale, step, &o)?,
                (rule, state) => state.step(rule, p, g, grad_scale, step)?,
            }
        }
        adamw.finish()
    }

    /// The state as named tensors in the host's memory, for a checkpoint.
    ///
    /// # Errors
    /// If a device fails.
    pub fn tensors(&self, params: &Params) -> Result<Vec<(String, Tensor)>, Error> {
        let mut all = Vec::new();
        for id in params.ids() {
            for (part, tensor) in self.states[id.index()].tensors()? {
                all.push((format!("{}.{part}", params.name(id)), tensor.to_device(Device::Cpu)?));
            }
        }
        Ok(all)
    }

    /// Takes the state of a checkpoint; `read(name, shape)` gives each tensor.
    ///
    /// # Errors
    /// What `read` says, or that a tensor cannot be a state.
    pub fn restore<E: From<Error>>(
        &mut self,
        params: &Params,
        steps: u64,
        mut read: impl FnMut(&str, &[usize]) -> Result<Tensor, E>,
    ) -> Result<(), E> {
        for id in params.ids() {
            let state = &mut self.states[id.index()];
            let mut parts = Vec::new();
            for (part, tensor) in state.tensors()? {
                let read = read(&format!("{}.{part}", params.name(id)), tensor.shape())?;
                parts.push(read.to_device(tensor.device())?);
            }
            state.restore(parts)?;
        }
        self.steps = steps;
        Ok(())
    }
}
