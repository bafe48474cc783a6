use std::sync::Arc;

use super::Activation;
use crate::Tensor;
use crate::cuda::{CudaBuffer, Source};
use crate::error::{Error, Result};
use crate::kept::{Parts, Recipe};
use crate::ops::elementwise::{args, on, run, suffix, wide};

pub(crate) static SOURCE: Source = Source {
    name: "gated",
    text: concat!(include_str!("activations.cuh"), include_str!("kernel.cu")),
    variants: &[0],
    hopper: false,
};

/// What kernels call an activation.
pub(crate) fn activation_name(activation: Activation) -> &'static str {
    match activation {
        Activation::Silu => "silu",
        Activation::GeluTanh => "gelu_tanh",
        Activation::Gelu => "gelu",
    }
}

fn name(direction: &str, activation: Activation, x: &CudaBuffer) -> Result<String> {
    Ok(format!("{direction}_{}_{}", activation_name(activation), suffix("gated", x.dtype())?))
}

pub(super) fn forward(gate: &CudaBuffer, up: &CudaBuffer, activation: Activation) -> Result<CudaBuffer> {
    let y = CudaBuffer::any(gate.device(), gate.dtype(), gate.len())?;
    let args = args![y.pointer(), gate.pointer(), up.pointer(), gate.len()];
    let tasks = gate.len().div_ceil(wide(gate.dtype()));
    run(gate.device(), &SOURCE, &name("forward", activation, gate)?, tasks, args)?;
    Ok(y)
}

/// The product again, from the gate and up that are kept for the backward.
pub(super) fn recipe([gate, up]: [&Tensor; 2], activation: Activation) -> Arc<Recipe> {
    let parts = Parts::Gated { gate: gate.clone(), up: up.clone(), activation };
    let (gate, up) = (gate.clone(), up.clone());
    Recipe::new(Some(parts), move || {
        let there = |what, t| on("gated", what, t, gate.card()?, gate.dtype());
        let y = forward(there("gate", &gate)?, there("up", &up)?, activation)?;
        Ok(Tensor::on_cuda(y, gate.shape()))
    })
}

/// The gradients of gate and up, in their places: this is where a step needs the most memory.
pub(super) fn backward(
    gate: &mut Tensor,
    up: &mut Tensor,
    dy: &Tensor,
    activation: Activation,
) -> Result<()> {
    let device = gate.card()?.clone();
    let dy = on("gated", "the output's gradient", dy, &device, gate.dtype())?;
    on("gated", "up", up, &device, gate.dtype())?;
    // The processor writes them beside what they are computed from.
    device.passing(&[gate.bytes(), up.bytes()])?;
    let (Some(gate), Some(up)) = (gate.cuda_mut()?, up.cuda_mut()?) else {
        return Err(Error::Invalid("gated: an input on the CPU of an output on a card".into()));
    };
    let (dgate, dup) = (gate.pointer_mut(), up.pointer_mut());
    let args = args![dgate, dup, dgate, dup, dy.pointer(), gate.len()];
    let tasks = gate.len().div_ceil(wide(gate.dtype()));
    run(&device, &SOURCE, &name("backward", activation, gate)?, tasks, args)
}
