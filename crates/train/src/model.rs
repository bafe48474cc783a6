//! The model of a run: base, what is trained on it, and how that is written and read.

use std::path::{Path, PathBuf};

use loratune_engine::{DType, Params, Tensor};
use loratune_model::adapter::{self, AdapterSpec, Attached};
use loratune_model::decoder::Dtypes;
use loratune_model::files::peft::{self, AdapterConfig};
use loratune_model::files::{
    FileDType, ModelFiles, SafetensorsSource, TensorSource, TensorView, write_safetensors,
};
use loratune_model::{Decoder, load};
use loratune_tokenizer::TokenizerBundle;

use crate::config::{BaseDtype, Finetuning, InitLora, RunConfig, Targets};
use crate::error::{Error, Result};

/// What is trained.
#[derive(Debug)]
pub enum Method {
    Lora { spec: AdapterSpec, attached: Attached },
    Full,
}

/// A model with its trainable parameters.
#[derive(Debug)]
pub struct TrainedModel {
    pub files: ModelFiles,
    pub tokenizer: TokenizerBundle,
    pub decoder: Decoder,
    pub params: Params,
    pub method: Method,
    /// The base as the configuration names it.
    pub base_path: String,
}

/// Storage types of the configuration's run.
pub fn dtypes(config: &RunConfig) -> Dtypes {
    let activations = if config.bf16 { DType::BF16 } else { DType::F32 };
    let weights = match config.dtype {
        BaseDtype::Auto => activations,
        BaseDtype::Float32 => DType::F32,
        BaseDtype::Bfloat16 => DType::BF16,
    };
    Dtypes { activations, weights }
}

fn spec_of(config: &RunConfig) -> AdapterSpec {
    let targets = |t: &Targets| match t {
        Targets::AllLinear => adapter::Targets::AllLinear,
        Targets::Names(n) => adapter::Targets::Names(n.clone()),
        Targets::Regex(r) => adapter::Targets::Regex(r.clone()),
    };
    AdapterSpec {
        r: config.lora_rank as usize,
        alpha: config.lora_alpha.unwrap_or(2.0 * config.lora_rank as f64),
        dropout: config.lora_dropout,
        targets: targets(&config.lora_target),
        exclude: config.exclude_modules.as_ref().map(targets),
        layers: config.layers_to_transform.iter().flatten().map(|&l| l as usize).collect(),
        rank_pattern: config.rank_pattern.iter().map(|(k, v)| (k.clone(), *v as usize)).collect(),
        alpha_pattern: config.alpha_pattern.iter().cloned().collect(),
        use_rslora: config.use_rslora,
        init: match config.init_lora_weights {
            InitLora::Kaiming => adapter::Init::Kaiming,
            InitLora::Gaussian => adapter::Init::Gaussian,
        },
    }
}

impl TrainedModel {
    /// Reads the base's weights, and attaches what is to be trained.
    pub fn open(config: &RunConfig, files: ModelFiles, tokenizer: TokenizerBundle) -> Result<TrainedModel> {
        let mut params = Params::new();
        let full = config.finetuning_type == Finetuning::Full;
        let trained = |_: &str| full;
        let dtypes = dtypes(config);
        let mut decoder = match config.train_from_scratch {
            true => load::random_decoder(&files, config.seed, dtypes, &mut params, &trained)?,
            false => load::decoder(&files, dtypes, &mut params, &trained)?,
        };
        let method = match (full, &config.adapter_name_or_path) {
            (true, _) => Method::Full,
            (false, Some(path)) => {
                let (saved, tensors) = peft::read_adapter(Path::new(path))?;
                let mut spec = AdapterSpec::from_config(&saved)?;
                // Dropout is the run's, as everything else about training is.
                spec.dropout = config.lora_dropout;
                let attached = adapter::attach_saved(&mut decoder, &mut params, &spec, &tensors)?;
                Method::Lora { spec, attached }
            }
            (false, None) => {
                let spec = spec_of(config);
                let attached = adapter::attach_new(&mut decoder, &mut params, &spec, config.seed)?;
                Method::Lora { spec, attached }
            }
        };
        Ok(TrainedModel {
            files,
            tokenizer,
            decoder,
            params,
            method,
            base_path: config.model_name_or_path.clone(),
        })
    }

    fn adapter_config(&self) -> Option<AdapterConfig> {
        match &self.method {
            Method::Lora { spec, attached } => Some(spec.to_config(Some(&self.base_path), &attached.targets)),
            Method::Full => None,
        }
    }

    /// Writes what was trained, in full precision: an adapter in PEFT's files, or all weights.
    pub fn save_weights(&self, dir: &Path) -> Result<()> {
        match self.adapter_config() {
            Some(config) => {
                let tensors = adapter::adapter_tensors(&self.decoder, &self.params);
                with_bytes(&tensors, |views| Ok(peft::write_adapter(dir, &config, views)?))
            }
            None => self.save_full(dir, FileDType::F32),
        }
    }

    /// Writes all weights as a Hugging Face folder's `config.json` and `model.safetensors`.
    fn save_full(&self, dir: &Path, dtype: FileDType) -> Result<()> {
        load::write_model(dir, &self.files, dtype, |name| match self.params.find(name) {
            Some(id) => Ok(self.params.value(id).clone()),
            None => load::read_f32(&self.files, name),
        })?;
        Ok(())
    }

    /// Writes the run's result: the adapter, or the model in the type that its base has.
    pub fn save_result(&self, dir: &Path) -> Result<()> {
        match self.method {
            Method::Lora { .. } => self.save_weights(dir)?,
            Method::Full => self.save_full(dir, load::file_dtype(&self.files))?,
        }
        self.tokenizer.save(dir)?;
        Ok(())
    }

    /// Takes the trained weights of a checkpoint.
    pub fn load_weights(&mut self, dir: &Path) -> Result<()> {
        let (file, prefix) = match self.method {
            Method::Lora { .. } => {
                (TensorFile::open(&dir.join("adapter_model.safetensors"))?, "base_model.model.")
            }
            Method::Full => (TensorFile::open_model(dir)?, ""),
        };
        for id in self.params.ids() {
            let name = format!("{prefix}{}", self.params.name(id));
            let tensor = file.read(&name, self.params.value(id).shape())?;
            self.params.set(id, tensor)?;
        }
        Ok(())
    }
}

/// Calls `write` with the tensors as f32 bytes.
fn with_bytes(
    tensors: &[(String, Tensor)],
    write: impl FnOnce(&[TensorView<'_>]) -> Result<()>,
) -> Result<()> {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, t)| load::encode(t, FileDType::F32)).collect();
    let views: Vec<TensorView<'_>> = tensors
        .iter()
        .zip(&bytes)
        .map(|((name, t), b)| (name.as_str(), FileDType::F32, t.shape(), b.as_slice()))
        .collect();
    write(&views)
}

/// Writes f32 tensors to one safetensors file.
pub(crate) fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    with_bytes(tensors, |views| Ok(write_safetensors(path, views)?))
}

pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    loratune_model::files::atomic::write_atomically(path, |f| f.write_all(text.as_bytes()))?;
    Ok(())
}

/// A safetensors file of a checkpoint.
pub(crate) struct TensorFile {
    path: PathBuf,
    source: SafetensorsSource,
}

impl TensorFile {
    pub fn open(path: &Path) -> Result<TensorFile> {
        Ok(TensorFile { path: path.into(), source: SafetensorsSource::open_file(path)? })
    }

    /// A model's weights, in one file or in shards.
    pub fn open_model(dir: &Path) -> Result<TensorFile> {
        let (single, index) = (dir.join("model.safetensors"), dir.join("model.safetensors.index.json"));
        if !single.is_file() && index.is_file() {
            return Ok(TensorFile { source: SafetensorsSource::open_index(&index)?, path: index });
        }
        TensorFile::open(&single)
    }

    /// A tensor in f32.
    pub fn read(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let raw = self.source.read(name)?;
        if raw.shape != shape {
            let what = format!("tensor '{name}' has the shape {:?}, this run needs {shape:?}", raw.shape);
            return Err(Error::Checkpoint { path: self.path.clone(), what });
        }
        Ok(Tensor::from_vec(raw.to_f32(), shape)?)
    }
}
