//! Building a decoder from weights that are read, or drawn at random.

use std::collections::BTreeSet;

use loratune_engine::cuda::PlannedDevice;
use loratune_engine::rng::Key;
use loratune_engine::{Checkpointing, DType, Device, FrozenWeight, Params, Tensor, Weight};
use rayon::prelude::*;

use super::{Block, Decoder, Matrix, Norm, Part, Tables};
use crate::error::{Error, Result};
use crate::spec::{DecoderSpec, EMBEDDING, HEAD, LinearShape, MatrixKind};

/// Where a decoder's weights come from.
pub trait WeightSource: Sync {
    /// The tensor of this Hugging Face name in type `dtype`.
    ///
    /// # Errors
    /// If it's missing, has another shape, or holds a number that is not finite.
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor>;

    /// The same on a device.
    ///
    /// # Errors
    /// As of `tensor`, or if the device can't be used or has no room.
    fn tensor_on(&self, device: Device, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Ok(self.tensor(name, shape, dtype)?.to_device(device)?)
    }
}

/// Shapes alone, on a device that is planned with.
impl WeightSource for PlannedDevice {
    fn tensor(&self, _: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        Ok(PlannedDevice::tensor(self, dtype, shape)?)
    }

    fn tensor_on(&self, _: Device, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        WeightSource::tensor(self, name, shape, dtype)
    }
}

/// Storage types of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dtypes {
    pub activations: DType,
    /// Of frozen weights.
    pub weights: DType,
}

impl Dtypes {
    /// One type for both.
    pub fn both(dtype: DType) -> Dtypes {
        Dtypes { activations: dtype, weights: dtype }
    }
}

/// Random weights as transformers draws them for a new model: normal with the configuration's standard deviation,
/// ones for norms, zeros for biases.
#[derive(Clone, Copy, Debug)]
pub struct RandomWeights {
    pub seed: u64,
    pub std: f64,
}

impl WeightSource for RandomWeights {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let n: usize = shape.iter().product();
        let key = Key::new(self.seed).named("init").named(name);
        let number = |i: usize| match shape.len() {
            1 if name.ends_with(".bias") => 0.0,
            1 => 1.0,
            _ => key.normal(i as u64) * self.std,
        };
        let numbers = (0..n).into_par_iter();
        Ok(match dtype {
            DType::F64 => Tensor::from_vec(numbers.map(number).collect::<Vec<f64>>(), shape)?,
            _ => Tensor::from_vec(numbers.map(|i| number(i) as f32).collect::<Vec<f32>>(), shape)?
                .to_dtype(dtype),
        })
    }
}

/// Which of a model's own tensors are trained.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Trained {
    #[default]
    Nothing,
    Everything,
    Tensors {
        names: BTreeSet<String>,
        /// Head and embedding become two matrices even if the files share one: PEFT's `modules_to_save` copies what it
        /// trains, and leaves the other as it is.
        untied: bool,
    },
}

impl Trained {
    pub fn contains(&self, tensor: &str) -> bool {
        match self {
            Trained::Nothing => false,
            Trained::Everything => true,
            Trained::Tensors { names, .. } => names.contains(tensor),
        }
    }

    pub fn unties(&self) -> bool {
        matches!(self, Trained::Tensors { untied: true, .. })
    }
}

struct Builder<'a> {
    source: &'a dyn WeightSource,
    params: &'a mut Params,
    trained: &'a Trained,
    dtypes: Dtypes,
    /// Of frozen weights.
    device: Device,
}

impl Builder<'_> {
    fn weight(&mut self, name: String, shape: &[usize]) -> Result<Weight> {
        let read_from = name.clone();
        self.weight_from(name, &read_from, shape)
    }

    fn weight_from(&mut self, name: String, read_from: &str, shape: &[usize]) -> Result<Weight> {
        if self.trained.contains(&name) {
            let tensor = self.source.tensor(read_from, shape, self.dtypes.activations.compute())?;
            return Ok(Weight::Param(self.params.add(name, tensor)?));
        }
        Ok(Weight::dense(self.source.tensor_on(self.device, read_from, shape, self.dtypes.weights)?))
    }

    fn table(&self, path: &str, kind: MatrixKind, weight: Weight, shape: [usize; 2]) -> Matrix {
        Matrix { path: path.into(), kind, weight, bias: None, shape, adapter: None, rows: None }
    }

    /// The head: a matrix of its own, or the embedding's.
    fn head(&mut self, spec: &DecoderSpec, embedding: &Matrix) -> Result<Matrix> {
        let name = format!("{HEAD}.weight");
        let weight = match (spec.tied_head, self.trained.unties()) {
            (false, _) => self.weight(name, &embedding.shape)?,
            (true, true) if self.trained.contains(&name) || embedding.weight.param().is_some() => {
                self.weight_from(name, &format!("{EMBEDDING}.weight"), &embedding.shape)?
            }
            (true, _) => embedding.weight.clone(),
        };
        Ok(self.table(HEAD, MatrixKind::Head, weight, embedding.shape))
    }

    fn linear(&mut self, layer: usize, (name, out, input, bias): LinearShape) -> Result<Matrix> {
        let path = format!("model.layers.{layer}.{name}");
        let weight = self.weight(format!("{path}.weight"), &[out, input])?;
        let bias = match bias {
            true => Some(self.weight(format!("{path}.bias"), &[out])?),
            false => None,
        };
        let kind = MatrixKind::Linear;
        Ok(Matrix { path, kind, weight, bias, shape: [out, input], adapter: None, rows: None })
    }

    fn linears(&mut self, layer: usize, shapes: Vec<LinearShape>) -> Result<Vec<Matrix>> {
        shapes.into_iter().map(|shape| self.linear(layer, shape)).collect()
    }

    fn norm(&mut self, path: String, size: usize) -> Result<Norm> {
        let weight = self.weight(format!("{path}.weight"), &[size])?;
        Ok(Norm { path, weight })
    }

    fn block(&mut self, spec: &DecoderSpec, layer: usize) -> Result<Block> {
        let path = |name: &str| format!("model.layers.{layer}.{name}");
        let [before, after, mlp_before, mlp_after] = spec.norms.names();
        let norm =
            |b: &mut Self, name: Option<&str>| name.map(|n| b.norm(path(n), spec.hidden_size)).transpose();
        Ok(Block {
            attention_norm: norm(self, before)?,
            attention_inputs: self.linears(layer, spec.attention_inputs())?,
            qk_norms: match spec.qk_norm_sizes() {
                Some([q, k]) => {
                    Some([self.norm(path("self_attn.q_norm"), q)?, self.norm(path("self_attn.k_norm"), k)?])
                }
                None => None,
            },
            attention_output: self.linear(layer, spec.attention_output())?,
            attention_output_norm: norm(self, after)?,
            mlp_norm: norm(self, mlp_before)?,
            mlp_inputs: self.linears(layer, spec.mlp_inputs())?,
            mlp_output: self.linear(layer, spec.mlp_output())?,
            mlp_output_norm: norm(self, mlp_after)?,
            spec: spec.layers[layer],
        })
    }
}

impl Decoder {
    /// A decoder on the same frozen weights, in which those that `trained` names are parameters with their present values,
    /// in the activations' compute type. Everything else is shared.
    ///
    /// # Errors
    /// If something is a parameter already.
    pub fn with_trained(&self, params: &mut Params, trained: &Trained) -> Result<Decoder> {
        let mut decoder = self.clone();
        let (untied, compute) = (!self.spec.tied_head || trained.unties(), self.dtype.compute());
        let mut take = |name: String, weight: &mut Weight| -> Result<()> {
            if trained.contains(&name) {
                let FrozenWeight::Dense(value) = &*weight.resolve(params);
                *weight = Weight::Param(params.add(name, value.to_dtype(compute))?);
            }
            Ok(())
        };
        let take_matrix = |take: &mut dyn FnMut(String, &mut Weight) -> Result<()>, m: &mut Matrix| {
            take(format!("{}.weight", m.path), &mut m.weight)?;
            m.bias.as_mut().map_or(Ok(()), |bias| take(format!("{}.bias", m.path), bias))
        };
        let take_norm = |take: &mut dyn FnMut(String, &mut Weight) -> Result<()>, n: &mut Norm| {
            take(format!("{}.weight", n.path), &mut n.weight)
        };
        take_matrix(&mut take, &mut decoder.embedding)?;
        for block in &mut decoder.blocks {
            // In the order in which a block is built.
            block.each(&mut |part| match part {
                Part::Matrix(matrix) => take_matrix(&mut take, matrix),
                Part::Norm(norm) => take_norm(&mut take, norm),
            })?;
        }
        take_norm(&mut take, &mut decoder.norm)?;
        if untied {
            take_matrix(&mut take, &mut decoder.head)?;
        } else {
            decoder.head.weight = decoder.embedding.weight.clone();
        }
        Ok(decoder)
    }

    /// A decoder on the same frozen weights but for embedding and head, which `source` gives with `rows` rows. For decoders
    /// of which nothing is trained or adapted.
    ///
    /// # Errors
    /// Whatever the source says of a tensor.
    pub fn with_vocabulary(&self, rows: usize, source: &dyn WeightSource) -> Result<Decoder> {
        let mut decoder = self.clone();
        let (storage, shape) = (self.storage(), [rows, self.spec.hidden_size]);
        let table = |path: &str| source.tensor(&format!("{path}.weight"), &shape, storage).map(Weight::dense);
        decoder.embedding.weight = table(EMBEDDING)?;
        decoder.head.weight =
            if self.spec.tied_head { decoder.embedding.weight.clone() } else { table(HEAD)? };
        (decoder.embedding.shape, decoder.head.shape) = (shape, shape);
        decoder.spec.vocab_size = rows;
        Ok(decoder)
    }

    /// Builds the decoder. The weights that are trained become parameters, in the activations' compute type.
    ///
    /// # Errors
    /// Whatever the source says of a tensor.
    pub fn build(
        spec: &DecoderSpec,
        source: &dyn WeightSource,
        dtypes: Dtypes,
        params: &mut Params,
        trained: &Trained,
    ) -> Result<Decoder> {
        Decoder::build_on(Device::Cpu, spec, source, dtypes, params, trained)
    }

    /// The same with the frozen weights on a device. Parameters are in the host's memory.
    ///
    /// # Errors
    /// As of [`Decoder::build`], or if the device can't be used or has no room.
    pub fn build_on(
        device: Device,
        spec: &DecoderSpec,
        source: &dyn WeightSource,
        dtypes: Dtypes,
        params: &mut Params,
        trained: &Trained,
    ) -> Result<Decoder> {
        if spec.num_layers() == 0 || !spec.head_dim.is_multiple_of(2) {
            return Err(Error::Invalid(format!(
                "a decoder of {} layers with heads of {} can't be built: at least one layer and an even head size",
                spec.num_layers(),
                spec.head_dim
            )));
        }
        let mut b = Builder { source, params, trained, dtypes, device };
        let table = [spec.vocab_size, spec.hidden_size];
        let weight = b.weight(format!("{EMBEDDING}.weight"), &table)?;
        let embedding = b.table(EMBEDDING, MatrixKind::Embedding, weight, table);
        Ok(Decoder {
            blocks: (0..spec.num_layers()).map(|i| b.block(spec, i)).collect::<Result<_>>()?,
            norm: b.norm("model.norm".into(), spec.hidden_size)?,
            head: b.head(spec, &embedding)?,
            embedding,
            neftune: None,
            label_smoothing: 0.0,
            checkpointing: Checkpointing::None,
            ropes: Tables::default(),
            spec: spec.clone(),
            dtype: dtypes.activations,
        })
    }
}
