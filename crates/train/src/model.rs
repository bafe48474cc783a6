//! The model of a run: base, what is trained on it, and how that is written and read.

use std::path::{Path, PathBuf};

use loratune_engine::{DType, Device, Params, Tensor};
use loratune_model::adapter::{self, AdapterSpec, Attached, Form, Start, TokenIndices};
use loratune_model::decoder::Dtypes;
use loratune_model::files::atomic::replace_dir_atomically;
use loratune_model::files::peft;
use loratune_model::files::{
    FileDType, ModelFiles, SafetensorsSource, TensorSource, TensorView, write_safetensors,
};
use loratune_model::{Decoder, Neftune, NoiseLength, load, vocabulary};
use loratune_tokenizer::TokenizerBundle;

use crate::config::{BaseDtype, Finetuning, NeftuneScale, RunConfig, Targets, TokenRef, TrainedTokens};
use crate::error::{Error, Result};
use crate::freeze;
use crate::located::Located;

/// What is trained.
#[derive(Debug)]
pub enum Method {
    Lora(Box<Attached>),
    /// Weights of the model itself: all of them, or some.
    Whole,
}

/// A model with its trainable parameters.
#[derive(Debug)]
pub struct TrainedModel {
    pub files: ModelFiles,
    pub tokenizer: TokenizerBundle,
    pub decoder: Decoder,
    pub params: Params,
    pub method: Method,
    /// The base as others may call it: by its name on the hub, or as the configuration does.
    pub base: BaseName,
    /// Write what changed its base as plain LoRA on the untouched one.
    convert: bool,
    /// Whether the result is the model with the adapter in it.
    merges: bool,
    /// The tokenizer is not the base's own: checkpoints hold it too.
    pub(crate) own_tokenizer: bool,
}

/// A parameter, and what a run does with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParameterStatus {
    pub name: String,
    pub shape: Vec<usize>,
    pub dtype: DType,
    pub trained: bool,
}

/// What a base is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BaseName {
    /// A path, or `org/name`.
    pub name: String,
    pub on_hub: bool,
    /// On the hub: the commit.
    pub revision: Option<String>,
}

impl BaseName {
    fn of(config: &RunConfig, located: &Located) -> BaseName {
        match &located.model {
            Some(model) => {
                BaseName { name: model.id.clone(), on_hub: true, revision: Some(model.commit.clone()) }
            }
            None => BaseName { name: config.model_name_or_path.clone(), on_hub: false, revision: None },
        }
    }
}

/// Folder of a result for the base without what a PiSSA or OLoRA adapter took out of it.
pub(crate) const RESIDUAL_MODEL: &str = "residual_model";
/// Folder of a result for what was taken out: the adapter as it was before training.
pub(crate) const INITIAL_ADAPTER: &str = "initial_adapter";

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

/// The rows that a configuration asks to be trained by themselves.
///
/// # Errors
/// If a token that is written out is not in the vocabulary.
pub(crate) fn token_indices(config: &RunConfig, tokenizer: &TokenizerBundle) -> Result<Option<TokenIndices>> {
    let missing = |text: &str| {
        // A comma may be part of a token, so that it does not part a text into several.
        let many =
            if text.contains(',') { " (several are written as a list: [32000, \"<think>\"])" } else { "" };
        Error::Misfit(format!(
            "trainable_token_indices: the vocabulary has no token `{text}`{many}; tokens are spelt as in tokenizer.json, and \
             add_tokens or add_special_tokens makes new ones"
        ))
    };
    let id = |token: &TokenRef| match token {
        TokenRef::Id(id) => Ok(*id),
        TokenRef::Text(text) => tokenizer.id_of(text).map(i64::from).ok_or_else(|| missing(text)),
    };
    let ids = |tokens: &[TokenRef]| tokens.iter().map(id).collect::<Result<Vec<i64>>>();
    Ok(match &config.trainable_token_indices {
        None => None,
        Some(TrainedTokens::OfEmbedding(tokens)) => Some(TokenIndices::OfEmbedding(ids(tokens)?)),
        Some(TrainedTokens::ByModule(modules)) => {
            let modules = modules.iter().map(|(name, tokens)| Ok((name.clone(), ids(tokens)?)));
            Some(TokenIndices::ByModule(modules.collect::<Result<_>>()?))
        }
    })
}

/// The adapter that a configuration asks for; `token_indices` are its trained rows.
pub(crate) fn spec_of(config: &RunConfig, token_indices: Option<TokenIndices>) -> AdapterSpec {
    let targets = |t: &Targets| match t {
        Targets::AllLinear => adapter::Targets::AllLinear,
        Targets::Names(n) => adapter::Targets::Names(n.clone()),
        Targets::Regex(r) => adapter::Targets::Regex(r.clone()),
    };
    AdapterSpec {
        r: config.lora_rank as usize,
        alpha: config.lora_alpha.unwrap_or(2.0 * config.lora_rank as f64),
        dropout: config.lora_dropout.unwrap_or(0.0),
        targets: targets(&config.lora_target),
        exclude: config.exclude_modules.as_ref().map(targets),
        layers: config.layers_to_transform.iter().flatten().map(|&l| l as usize).collect(),
        layers_pattern: config.layers_pattern.clone(),
        rank_pattern: config.rank_pattern.iter().map(|(k, v)| (k.clone(), *v as usize)).collect(),
        alpha_pattern: config.alpha_pattern.iter().cloned().collect(),
        use_rslora: config.use_rslora,
        use_dora: config.use_dora,
        bias: config.bias,
        modules_to_save: config.modules_to_save.clone(),
        token_indices,
        ensure_weight_tying: false,
        init: config.init_lora_weights,
    }
}

impl TrainedModel {
    /// Reads the base's weights, frozen ones to where the run computes, and attaches what is to be trained, which is in the host's
    /// memory until [`to_device`](TrainedModel::to_device). `checkpoint` is the folder of the checkpoint that the
    /// run will go on from, if any: what an initialiser took out of the base is taken from there, not found anew.
    pub fn open(
        config: &RunConfig,
        located: &Located,
        files: ModelFiles,
        tokenizer: TokenizerBundle,
        checkpoint: Option<&Path>,
        device: Device,
    ) -> Result<TrainedModel> {
        let mut params = Params::new();
        let model = files.config.spec.clone();
        let (spec, saved) = match (config.finetuning_type, located.adapter_path(config)) {
            (Finetuning::Lora, Some(path)) => {
                let (saved, tensors) = peft::read_adapter(path)?;
                let mut spec = AdapterSpec::from_config(&saved)?;
                spec.dropout = config.lora_dropout.unwrap_or(spec.dropout);
                (Some(spec), Some(tensors))
            }
            (Finetuning::Lora, None) => {
                let spec = spec_of(config, token_indices(config, &tokenizer)?);
                spec.check(&model)?;
                (Some(spec), None)
            }
            (Finetuning::Full | Finetuning::Freeze, _) => (None, None),
        };
        let trained = match &spec {
            Some(spec) => spec.trained(&model)?,
            None => freeze::trained(config, &model)?,
        };
        let dtypes = dtypes(config);
        let mut decoder = match config.train_from_scratch {
            true => load::random_decoder(&files, config.seed, dtypes, &mut params, &trained)?,
            false => load::decoder_on(device, &files, dtypes, &mut params, &trained)?,
        };
        decoder.set_neftune(neftune(config));
        decoder.set_label_smoothing(config.label_smoothing_factor);
        decoder.set_checkpointing(config.gradient_checkpointing);
        let method = match spec {
            None => Method::Whole,
            Some(spec) => {
                let resumed = match checkpoint {
                    Some(dir) if spec.init.changes_base() => Some(peft::read_adapter(dir)?.1),
                    _ => None,
                };
                let start = match (&resumed, &saved) {
                    (Some(tensors), _) => Start::Resumed(tensors),
                    (None, Some(tensors)) => Start::Saved(tensors),
                    (None, None) => Start::Fresh { seed: config.seed },
                };
                let mut attached = adapter::attach(&mut decoder, &mut params, &spec, start, &files)?;
                vocabulary::bring_tables(&mut attached, &params, &files)?;
                Method::Lora(Box::new(attached))
            }
        };
        Ok(TrainedModel {
            files,
            tokenizer,
            decoder,
            params,
            method,
            base: BaseName::of(config, located),
            convert: config.pissa_convert,
            merges: config.merge_adapter,
            own_tokenizer: false,
        })
    }

    /// Every parameter of the model and of its adapter, in the order of the forward pass, what is trained last.
    pub fn parameters(&self) -> Vec<ParameterStatus> {
        let storage = self.decoder.storage();
        let frozen =
            self.decoder.spec().tensors().into_iter().filter(|t| self.params.find(&t.name).is_none());
        let frozen =
            frozen.map(|t| ParameterStatus { name: t.name, shape: t.shape, dtype: storage, trained: false });
        let trained = self.params.ids().map(|id| {
            let value = self.params.value(id);
            ParameterStatus {
                name: self.params.name(id).to_string(),
                shape: value.shape().to_vec(),
                dtype: value.dtype(),
                trained: true,
            }
        });
        frozen.chain(trained).collect()
    }

    /// Moves the weights to where the run computes.
    ///
    /// # Errors
    /// If the device has no room for them.
    pub fn to_device(&mut self, device: Device) -> Result<()> {
        self.decoder.to_device(device)?;
        Ok(self.params.to_device(device)?)
    }

    /// The adapter that the result has folded in.
    pub(crate) fn merged(&self) -> Option<&Attached> {
        match &self.method {
            Method::Lora(attached) if self.merges => Some(attached),
            _ => None,
        }
    }

    /// The adapter whose result is its raw factors on a residual model.
    pub(crate) fn raw(&self) -> Option<&Attached> {
        match &self.method {
            _ if self.merges => None,
            Method::Lora(attached) if attached.spec.init.changes_base() && !self.convert => Some(attached),
            _ => None,
        }
    }

    fn save_adapter(&self, dir: &Path, attached: &Attached, base: &str, form: Form) -> Result<()> {
        let (mut config, tensors) =
            adapter::adapter_files(&self.decoder, &self.params, attached, Some(base), form)?;
        config.revision = self.base.revision.clone().filter(|_| base == self.base.name);
        with_bytes(&tensors, |views| Ok(peft::write_adapter(dir, &config, views)?))
    }

    /// Writes what was trained, in full precision: an adapter in PEFT's files, or all weights.
    pub fn save_weights(&self, dir: &Path) -> Result<()> {
        if self.own_tokenizer {
            self.tokenizer.save(dir)?;
        }
        match &self.method {
            Method::Lora(attached) => self.save_adapter(dir, attached, &self.base.name, Form::Plain),
            Method::Whole => self.save_whole(dir, FileDType::F32),
        }
    }

    /// Writes all weights as a Hugging Face folder's `config.json` and `model.safetensors`.
    fn save_whole(&self, dir: &Path, dtype: FileDType) -> Result<()> {
        load::write_model(dir, &self.files, dtype, self.decoder.is_untied(), |name| {
            match self.params.find(name) {
                Some(id) => Ok(self.params.value(id).to_device(Device::Cpu)?),
                None => load::read_f32(&self.files, name),
            }
        })?;
        Ok(())
    }

    /// Writes the run's result: the adapter, or the model in the type that its base has.
    pub fn save_result(&mut self, dir: &Path) -> Result<()> {
        if self.merged().is_some() {
            self.to_device(Device::Cpu)?;
        }
        match (&self.method, self.raw()) {
            (Method::Lora(attached), _) if self.merges => {
                let dtype = load::file_dtype(&self.files);
                adapter::merge(dir, &self.files, &self.decoder, &self.params, Some(attached), dtype)?;
            }
            (_, Some(attached)) => self.save_raw(dir, attached)?,
            (Method::Lora(_), None) => self.save_weights(dir)?,
            (Method::Whole, None) => self.save_whole(dir, load::file_dtype(&self.files))?,
        }
        self.tokenizer.save(dir)?;
        Ok(())
    }

    /// The factors as they are, the model that they belong on, and what that model lacks.
    fn save_raw(&self, dir: &Path, attached: &Attached) -> Result<()> {
        let residual = dir.join(RESIDUAL_MODEL);
        replace_dir_atomically(&residual, |dir| -> Result<()> {
            let dtype = self.decoder.storage().into();
            adapter::write_residual(dir, &self.files, &self.decoder, attached, dtype)?;
            Ok(self.tokenizer.save(dir)?)
        })?;
        replace_dir_atomically(&dir.join(INITIAL_ADAPTER), |dir| -> Result<()> {
            let (config, tensors) =
                adapter::initial_files(&self.decoder, &self.params, attached, Some(&self.base.name));
            with_bytes(&tensors, |views| Ok(peft::write_adapter(dir, &config, views)?))
        })?;
        self.save_adapter(dir, attached, &residual.display().to_string(), Form::Raw)
    }

    /// Takes the trained weights of a checkpoint.
    pub fn load_weights(&mut self, dir: &Path) -> Result<()> {
        match &self.method {
            Method::Lora(attached) => {
                let file = TensorFile::open(&dir.join("adapter_model.safetensors"))?;
                adapter::restore(&self.decoder, &mut self.params, attached, |name, shape| {
                    file.read(name, shape)
                })
            }
            Method::Whole => {
                let file = TensorFile::open_model(dir)?;
                for id in self.params.ids() {
                    let tensor = file.read(self.params.name(id), self.params.value(id).shape())?;
                    self.params.set(id, tensor)?;
                }
                Ok(())
            }
        }
    }
}

pub(crate) fn neftune(config: &RunConfig) -> Option<Neftune> {
    let alpha = config.neftune_noise_alpha.filter(|&a| a > 0.0)?;
    let length = match config.neftune_scale {
        NeftuneScale::PerSequence => NoiseLength::Sequence,
        NeftuneScale::PerBatch => NoiseLength::Batch,
    };
    Some(Neftune { alpha, length })
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
