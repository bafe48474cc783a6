//! From files to a decoder, and back.

use loratune_engine::{DType, Device, Params, Tensor};

use crate::decoder::{Decoder, Dtypes, RandomWeights, Trained, WeightSource};
use crate::error::{Error, Result};
use crate::files::atomic::write_atomically;
use crate::files::{FileDType, ModelFiles, TensorPlan};
use crate::spec::DecoderSpec;

impl WeightSource for ModelFiles {
    fn tensor(&self, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let raw = self.tensors.read(name)?;
        crate::adapter::dense(name, &raw, shape, dtype)
    }

    fn tensor_on(&self, device: Device, name: &str, shape: &[usize], dtype: DType) -> Result<Tensor> {
        let raw = self.tensors.read(name)?;
        if let Device::Cuda(ordinal) = device
            && raw.dtype == FileDType::from(dtype)
            && raw.shape == shape
            && let Some(tensor) = Tensor::from_bytes_on(ordinal, dtype, shape, &raw.bytes)?
        {
            return Ok(tensor);
        }
        // Converted, or wrong: then the reading by the host says in what.
        Ok(crate::adapter::dense(name, &raw, shape, dtype)?.to_device(device)?)
    }
}

/// The decoder of a model's files; see [`Decoder::build`].
///
/// # Errors
/// If a tensor is missing, misshapen or damaged, or the files hold one that this decoder does not have (leaving it out
/// would change the mathematics).
pub fn decoder(
    files: &ModelFiles,
    dtypes: Dtypes,
    params: &mut Params,
    trained: &Trained,
) -> Result<Decoder> {
    decoder_on(Device::Cpu, files, dtypes, params, trained)
}

/// The same with the frozen weights on a device, where those that need no conversion go straight from the files.
///
/// # Errors
/// As of [`decoder`], or if the device can't be used or has no room.
pub fn decoder_on(
    device: Device,
    files: &ModelFiles,
    dtypes: Dtypes,
    params: &mut Params,
    trained: &Trained,
) -> Result<Decoder> {
    let spec = &files.config.spec;
    check_names(files, spec)?;
    Decoder::build_on(device, spec, files, dtypes, params, trained)
}

/// A decoder of the same configuration with random weights.
pub fn random_decoder(
    files: &ModelFiles,
    seed: u64,
    dtypes: Dtypes,
    params: &mut Params,
    trained: &Trained,
) -> Result<Decoder> {
    let spec = &files.config.spec;
    let weights = RandomWeights { seed, std: spec.initializer_range };
    Decoder::build(spec, &weights, dtypes, params, trained)
}

fn check_names(files: &ModelFiles, spec: &DecoderSpec) -> Result<()> {
    // Before the tensors are enumerated: a layer that is not in the files is not worth a name.
    let names = files.tensors.names();
    if names.len() < spec.num_layers() {
        return Err(Error::Invalid(format!(
            "{}: num_hidden_layers is {}, but the weights are only {} tensors, fewer than layers: the configuration is \
             of another model, or the weights are incomplete",
            files.path.display(),
            spec.num_layers(),
            names.len()
        )));
    }
    let known: std::collections::HashSet<String> = spec.tensors().into_iter().map(|t| t.name).collect();
    let harmless =
        |name: &str| name.ends_with("rotary_emb.inv_freq") || (spec.tied_head && name == "lm_head.weight");
    match names.into_iter().find(|n| !known.contains(*n) && !harmless(n)) {
        None => Ok(()),
        Some(bare) if known.contains(&format!("model.{bare}")) => {
            let remedy = match spec.tied_head {
                true => {
                    "save the model with its head once: \
                     transformers.AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)"
                }
                false => "take the weights of the model with its head (lm_head.weight)",
            };
            Err(Error::Invalid(format!(
                "{}: the tensor '{bare}' lacks the prefix `model.`: the weights are those of the bare model without a head; \
                 expected 'model.{bare}'; {remedy}",
                files.path.display()
            )))
        }
        Some(extra) => Err(Error::Invalid(format!(
            "{}: holds the tensor '{extra}', which a model of this configuration does not have; leaving it out would \
             change the model",
            files.path.display()
        ))),
    }
}

/// The type that a model's weights are written in: its own, or f16 for a quantised GGUF file.
pub fn file_dtype(files: &ModelFiles) -> FileDType {
    let name = "model.embed_tokens.weight";
    match files.tensors.info(name).map(|i| i.dtype).or(files.config.dtype) {
        Some(d @ (FileDType::F32 | FileDType::F16 | FileDType::BF16)) => d,
        Some(FileDType::F64) | None => FileDType::F32,
        Some(_) => FileDType::F16,
    }
}

/// The type of a file that holds what is stored in this one.
impl From<DType> for FileDType {
    fn from(dtype: DType) -> FileDType {
        match dtype {
            DType::F64 => FileDType::F64,
            DType::F32 => FileDType::F32,
            DType::BF16 => FileDType::BF16,
        }
    }
}

/// A tensor's elements as a file's bytes, rounded once; none of a format that is only read.
pub fn encode(tensor: &Tensor, dtype: FileDType) -> Vec<u8> {
    crate::files::encode(&tensor.reals::<f32>(), dtype).unwrap_or_default()
}

/// Largest file that a model is written in unless asked otherwise; above it, shards. Five of Hugging Face's GB.
pub const MAX_SHARD_BYTES: u64 = 5_000_000_000;

/// Writes a model's folder: `config.json`, `generation_config.json` if the base has one, and the weights in `dtype`,
/// asking `provide` for each tensor when its turn comes. `untied` gives a head that shared the embedding's weight a tensor of
/// its own.
pub fn write_model(
    dir: &std::path::Path,
    files: &ModelFiles,
    dtype: FileDType,
    untied: bool,
    provide: impl FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    write_shards(dir, files, dtype, MAX_SHARD_BYTES, untied, provide)
}

/// As [`write_model`]; no file is larger than `max_shard_bytes`, unless one tensor is.
pub fn write_shards(
    dir: &std::path::Path,
    files: &ModelFiles,
    dtype: FileDType,
    max_shard_bytes: u64,
    untied: bool,
    mut provide: impl FnMut(&str) -> Result<Tensor>,
) -> Result<()> {
    use std::io::Write;

    let mut spec = files.config.spec.clone();
    spec.tied_head &= !untied;
    let plan: Vec<TensorPlan> =
        spec.tensors().into_iter().map(|t| TensorPlan { name: t.name, dtype, shape: t.shape }).collect();
    crate::files::write_model(dir, &plan, max_shard_bytes, |t| -> Result<Vec<u8>> {
        Ok(encode(&provide(&t.name)?, dtype))
    })?;
    let mut config = files.raw_config.clone();
    if let Some(map) = config.as_object_mut() {
        let key = if map.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
        map.insert(key.into(), torch_name(dtype).into());
        if untied {
            map.insert("tie_word_embeddings".into(), false.into());
        }
    }
    let json = |name: &str, value: &serde_json::Value| {
        write_atomically(&dir.join(name), |out| out.write_all(format!("{value:#}\n").as_bytes()))
    };
    json("config.json", &config)?;
    if let Some(generation) = &files.generation_config {
        json("generation_config.json", generation)?;
    }
    Ok(())
}

/// PyTorch's name of a file's type.
fn torch_name(dtype: FileDType) -> &'static str {
    match dtype {
        FileDType::BF16 => "bfloat16",
        FileDType::F16 => "float16",
        FileDType::F64 => "float64",
        _ => "float32",
    }
}

/// A tensor of the files in f32, for merging.
pub fn read_f32(files: &ModelFiles, name: &str) -> Result<Tensor> {
    let raw = files.tensors.read(name)?;
    let shape = raw.shape.clone();
    crate::adapter::dense(name, &raw, &shape, DType::F32)
}
