//! Trainable parameters and their gradients.

use std::sync::Arc;

use crate::cuda::{CudaBuffer, CudaDevice};
use crate::error::{Error, Result, check_shape};
use crate::{DType, Device, Tensor};

/// Names a trainable parameter of one [`Params`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParamId(pub(crate) usize);

impl ParamId {
    pub fn index(self) -> usize {
        self.0
    }
}

#[derive(Clone, Debug)]
struct Param {
    name: String,
    value: Tensor,
}

/// The trainable parameters, in the order in which they were added (which fixes the order of every reduction over
/// them). Their type is f32, or f64 when gradients are checked.
#[derive(Clone, Debug, Default)]
pub struct Params {
    entries: Vec<Param>,
}

impl Params {
    pub fn new() -> Params {
        Params::default()
    }

    /// # Errors
    /// If the name is taken, or the tensor is of a type that is not trained in (bf16).
    pub fn add(&mut self, name: impl Into<String>, value: Tensor) -> Result<ParamId> {
        let name = name.into();
        if self.find(&name).is_some() {
            return Err(Error::Invalid(format!("two trainable parameters are named '{name}'")));
        }
        if value.dtype() == DType::BF16 {
            return Err(Error::Invalid(format!("parameter '{name}' is bf16; parameters are trained in f32")));
        }
        self.entries.push(Param { name, value });
        Ok(ParamId(self.entries.len() - 1))
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
    pub fn ids(&self) -> impl Iterator<Item = ParamId> + use<> {
        (0..self.entries.len()).map(ParamId)
    }
    pub fn name(&self, id: ParamId) -> &str {
        &self.entries[id.0].name
    }
    pub fn value(&self, id: ParamId) -> &Tensor {
        &self.entries[id.0].value
    }
    pub fn value_mut(&mut self, id: ParamId) -> &mut Tensor {
        &mut self.entries[id.0].value
    }
    pub fn find(&self, name: &str) -> Option<ParamId> {
        self.entries.iter().position(|p| p.name == name).map(ParamId)
    }

    /// Replaces a value.
    ///
    /// # Errors
    /// If the shape differs.
    pub fn set(&mut self, id: ParamId, value: Tensor) -> Result<()> {
        let old = &mut self.entries[id.0];
        check_shape("set parameter", &old.name, value.shape(), old.value.shape())?;
        old.value = value.to_dtype(old.value.dtype()).to_device(old.value.device())?;
        Ok(())
    }

    /// Moves every parameter to a device.
    ///
    /// # Errors
    /// If the device can't be used or has no room for them.
    pub fn to_device(&mut self, device: Device) -> Result<()> {
        for entry in &mut self.entries {
            entry.value = entry.value.to_device(device)?;
        }
        Ok(())
    }

    /// Number of trainable numbers.
    pub fn numel(&self) -> usize {
        self.entries.iter().map(|p| p.value.numel()).sum()
    }
}

/// Gradients by parameter, summed over the micro-batches of a step.
#[derive(Clone, Debug)]
pub struct Gradients {
    by_param: Vec<Option<Tensor>>,
}

impl Gradients {
    pub fn new(params: &Params) -> Gradients {
        Gradients { by_param: vec![None; params.len()] }
    }

    pub fn get(&self, id: ParamId) -> Option<&Tensor> {
        self.by_param.get(id.0).and_then(Option::as_ref)
    }

    pub fn add(&mut self, id: ParamId, grad: Tensor) -> Result<()> {
        match &mut self.by_param[id.0] {
            Some(sum) => sum.add_assign(&grad)?,
            empty => *empty = Some(grad),
        }
        Ok(())
    }

    /// # Errors
    /// Naming the first parameter that no gradient arrived at.
    pub fn check_complete(&self, params: &Params) -> Result<()> {
        match params.ids().find(|&id| self.get(id).is_none()) {
            Some(id) => Err(Error::MissingGradient(params.name(id).to_string())),
            None => Ok(()),
        }
    }

    /// The Euclidean norm of all gradients together, summed in f64 in a fixed order.
    ///
    /// # Errors
    /// If a device fails.
    pub fn norm(&self) -> Result<f64> {
        let mut sum = 0.0;
        let mut by_device: Vec<(&Arc<CudaDevice>, Vec<&CudaBuffer>)> = Vec::new();
        for gradient in self.by_param.iter().flatten() {
            let Some(there) = gradient.cuda() else {
                sum += sum_of_squares(gradient);
                continue;
            };
            match by_device.iter_mut().find(|(device, _)| Arc::ptr_eq(device, there.device())) {
                Some((_, gradients)) => gradients.push(there),
                None => by_device.push((there.device(), vec![there])),
            }
        }
        for (device, gradients) in by_device {
            sum += crate::ops::elementwise::sum_of_squares(device, &gradients)?;
        }
        Ok(sum.sqrt())
    }

    /// Multiplies every gradient.
    pub fn scale(&mut self, factor: f64) {
        self.by_param.iter_mut().flatten().for_each(|g| g.scale_assign(factor));
    }

    /// Name of the first parameter whose gradient is not finite.
    pub fn first_non_finite<'p>(&self, params: &'p Params) -> Option<&'p str> {
        params.ids().find(|&id| self.get(id).is_some_and(|g| !g.is_finite())).map(|id| params.name(id))
    }
}

fn sum_of_squares(t: &Tensor) -> f64 {
    use rayon::prelude::*;
    crate::dispatch!(t.dtype(), E => {
        let s = t.slice::<E>().expect("dispatched on its own type");
        let parts: Vec<f64> = s
            .par_chunks(crate::tensor::CHUNK)
            .map(|c| c.iter().map(|x| { let x = crate::Real::f64(crate::Element::to_acc(*x)); x * x }).sum())
            .collect();
        parts.into_iter().sum()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_norm_over_several_chunks_equals_a_plain_sum() {
        // Whole numbers, so that both sums are exact whatever their order.
        let values = |n: usize| (0..n).map(|i| (i % 23) as f64 - 11.0).collect::<Vec<f64>>();
        for dtype in [DType::F32, DType::F64] {
            let mut params = Params::new();
            let mut plain = 0.0;
            let sizes = [3 * crate::tensor::CHUNK + 5, 1, crate::tensor::CHUNK];
            let ids = sizes.map(|n| params.add(format!("p{n}"), Tensor::zeros(dtype, &[n])).unwrap());
            let mut grads = Gradients::new(&params);
            for (id, n) in ids.into_iter().zip(sizes) {
                plain += values(n).iter().map(|x| x * x).sum::<f64>();
                grads.add(id, Tensor::from_vec(values(n), &[n]).unwrap().to_dtype(dtype)).unwrap();
            }
            assert_eq!(grads.norm().unwrap(), plain.sqrt(), "{dtype}");
        }
    }
}
