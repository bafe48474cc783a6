//! A training step of a model of some shape with random weights, to be timed.

use loratune_engine::bench::quick;
use loratune_engine::ops::{AdamW, AdamWSteps};
use loratune_engine::rng::Key;
use loratune_engine::{Checkpointing, DType, Device, Gradients, Mode, Params, Tape, Tensor};
use serde_json::{Value, json};

use crate::adapter::{AdapterSpec, Start, attach};
use crate::decoder::{Dtypes, WeightSource};
use crate::error::Result;
use crate::files::ModelConfig;
use crate::spec::DecoderSpec;
use crate::{Batch, Decoder};

/// Shapes with a name: the configuration's fields of models that people fine-tune.
pub const SHAPES: &[(&str, [usize; 7])] = &[
    // hidden, intermediate, layers, heads, key-value heads, vocabulary, tied head
    ("smollm2-135m", [576, 1536, 30, 9, 3, 49152, 1]),
    ("smollm2-360m", [960, 2560, 32, 15, 5, 49152, 1]),
    ("tinyllama-1.1b", [2048, 5632, 22, 32, 4, 32000, 0]),
    ("smollm2-1.7b", [2048, 8192, 24, 32, 32, 49152, 1]),
    ("llama3.2-1b", [2048, 8192, 16, 32, 8, 128256, 1]),
    ("llama2-7b", [4096, 11008, 32, 32, 32, 32000, 0]),
    ("mistral-7b", [4096, 14336, 32, 32, 8, 32000, 0]),
    ("llama3-8b", [4096, 14336, 32, 32, 8, 128256, 0]),
];

/// The fields of config.json for a named shape.
pub fn shape(name: &str) -> Option<Value> {
    let [hidden, intermediate, layers, heads, kv_heads, vocabulary, tied] =
        SHAPES.iter().find(|(known, _)| *known == name)?.1;
    Some(json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers,
        "num_attention_heads": heads, "num_key_value_heads": kv_heads, "vocab_size": vocabulary,
        "tie_word_embeddings": tied == 1, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "max_position_embeddings": 131072,
    }))
}

/// Weights that cost little to draw, with a standard deviation near 0.02, and norms of ones.
#[derive(Clone, Copy, Debug)]
pub struct QuickWeights {
    pub seed: u64,
}

impl WeightSource for QuickWeights {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        self.tensor_on(Device::Cpu, name, shape, dtype)
    }

    fn tensor_on(&self, device: Device, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        if shape.len() == 1 {
            let ones = Tensor::from_vec(vec![1f32; shape[0]], shape)?.to_dtype(dtype);
            return Ok(ones.to_device(device)?);
        }
        let start = Key::new(self.seed).named(name).words(0)[0];
        Ok(quick(start, shape, dtype, device)?)
    }
}

/// A model with an adapter, its optimiser, and a batch of random tokens.
pub struct StepBench {
    decoder: Decoder,
    params: Params,
    moments: Vec<[Tensor; 2]>,
    batch: Batch,
    /// Micro-batches of a step.
    accumulation: usize,
    step: u64,
}

impl StepBench {
    /// `rows` documents of `length` random tokens each, all of them trained on.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn new(
        model: &DecoderSpec,
        dtypes: Dtypes,
        adapter: &AdapterSpec,
        rows: usize,
        length: usize,
        accumulation: usize,
        device: Device,
    ) -> Result<StepBench> {
        let mut params = Params::new();
        // DoRA's norms are taken of weights in the host's memory.
        let drawn_on = if adapter.use_dora { Device::Cpu } else { device };
        let source = QuickWeights { seed: 0 };
        let trained = adapter.trained(model)?;
        let mut decoder = Decoder::build_on(drawn_on, model, &source, dtypes, &mut params, &trained)?;
        attach(&mut decoder, &mut params, adapter, Start::Fresh { seed: 0 }, &source)?;
        decoder.to_device(device)?;
        params.to_device(device)?;
        let zeros = |id| params.value(id).zeros_like();
        let moments = params.ids().map(|id| Ok([zeros(id)?, zeros(id)?])).collect::<Result<_>>()?;
        let key = Key::new(1);
        let ids: Vec<Vec<u32>> = (0..rows)
            .map(|row| {
                let token = |i: usize| key.words((row * length + i) as u64)[0] % model.vocab_size as u32;
                (0..length).map(token).collect()
            })
            .collect();
        let labels: Vec<Vec<i32>> = ids.iter().map(|row| row.iter().map(|&id| id as i32).collect()).collect();
        let batch = Batch::from_labelled(ids.iter().zip(&labels).map(|(i, l)| (&i[..], &l[..])));
        Ok(StepBench { decoder, params, moments, batch, accumulation, step: 0 })
    }

    /// The adapter's parameters as they are.
    pub fn params(&self) -> &Params {
        &self.params
    }

    /// What is kept of the blocks.
    pub fn set_checkpointing(&mut self, checkpointing: Checkpointing) {
        self.decoder.set_checkpointing(checkpointing);
    }

    /// Tokens of a step.
    pub fn tokens(&self) -> usize {
        self.batch.tokens() * self.accumulation
    }

    /// Forward, backward, clipping, AdamW; the mean loss.
    pub fn step(&mut self) -> Result<f64> {
        self.step += 1;
        let mut gradients = Gradients::new(&self.params);
        let mut loss = 0.0;
        for micro_batch in 0..self.accumulation {
            let key = Key::new(self.step).with(micro_batch as u64);
            let mut tape = Tape::new(&self.params, Mode::Train(key));
            let out = self.decoder.loss(&mut tape, &self.batch)?;
            let trained = (out.tokens * self.accumulation) as f64;
            loss += out.loss.value().item() / trained;
            tape.backward(&out.loss, 1.0 / trained, &mut gradients)?;
        }
        gradients.check_complete(&self.params)?;
        let clip = (1.0 / gradients.norm()?).min(1.0);
        let adamw = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 };
        let mut steps = AdamWSteps::default();
        for (id, [m, v]) in self.params.ids().zip(&mut self.moments) {
            if let Some(g) = gradients.get(id) {
                steps.step(self.params.value_mut(id), m, v, g, clip, self.step, &adamw)?;
            }
        }
        steps.finish()?;
        Ok(loss)
    }
}

/// The decoder that config.json's fields describe.
///
/// # Errors
/// If the architecture is not known, or a field is missing or cannot be.
pub fn spec(config: &Value) -> Result<DecoderSpec> {
    Ok(ModelConfig::from_value(config, std::path::Path::new("the given shape"))?.spec)
}
