//! A model from a path: a Hugging Face folder, a GGUF file, or a folder that holds one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use loratune_tokenizer::TokenizerBundle;
use serde_json::Value;

use super::config_fields::without_code;
use super::gguf::{GgufFile, GgufSource};
use super::suggest::must_exist;
use super::{Error, ModelConfig, RawTensor, Result, SafetensorsSource, TensorInfo, TensorSource, tied};

/// An opened model: its description, and its weights ready to be read.
pub struct ModelFiles {
    /// The Hugging Face folder or the GGUF file.
    pub path: PathBuf,
    /// The description, checked.
    pub config: ModelConfig,
    /// config.json as it is, but for the names of code of its own; for GGUF, what it would be.
    pub raw_config: Value,
    /// generation_config.json, if there is one.
    pub generation_config: Option<Value>,
    /// The weights under their Hugging Face names.
    pub tensors: Arc<dyn TensorSource>,
    /// The rows of the vocabulary in the files, where the model has another number of them.
    pub resized_from: Option<usize>,
    gguf: Option<Arc<GgufFile>>,
}

impl std::fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ModelFiles")
            .field("path", &self.path)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl ModelFiles {
    /// Opens a Hugging Face folder (config.json with safetensors), a `.gguf` file, or a folder that holds exactly one
    /// `.gguf` file and no config.json. Weights are mapped, not read.
    ///
    /// # Errors
    /// When there is nothing at the path (with near names), it is something else (an adapter, pickled weights), or a
    /// file is broken or describes a model that isn't supported.
    pub fn open(path: &Path) -> Result<ModelFiles> {
        must_exist(path)?;
        if path.is_file() {
            if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf")) {
                return Self::open_gguf(path);
            }
            let what = "is a file, but not a .gguf file; give a GGUF file or the model's folder";
            return Err(Error::unsupported(path, what));
        }
        if path.join("config.json").is_file() {
            return Self::open_folder(path);
        }
        match only_gguf(path)? {
            Some(file) => Self::open_gguf(&file),
            None => Err(not_a_model(path)),
        }
    }

    /// As [`ModelFiles::open`], for training from random weights: a folder needs no weights, and those that are there are
    /// not looked at.
    ///
    /// # Errors
    /// As [`ModelFiles::open`].
    pub fn open_without_weights(path: &Path) -> Result<ModelFiles> {
        must_exist(path)?;
        if path.join("config.json").is_file() {
            return Self::open_described(path, Arc::new(NoWeights));
        }
        Self::open(path)
    }

    fn open_folder(path: &Path) -> Result<ModelFiles> {
        // The configuration is checked first: what is wrong there explains what is wrong with the weights.
        ModelConfig::from_value(&read_json(&path.join("config.json"))?, &path.join("config.json"))?;
        Self::open_described(path, Arc::new(open_weights(path)?))
    }

    fn open_described(path: &Path, tensors: Arc<dyn TensorSource>) -> Result<ModelFiles> {
        let config_path = path.join("config.json");
        let mut raw_config = without_code(read_json(&config_path)?);
        let mut config = ModelConfig::from_value(&raw_config, &config_path)?;
        let mut tensors = tensors;
        if config.spec.tied_head {
            tensors = tied::by_the_embeddings_name(tensors);
            if let (false, Some(map)) = (tied::is_tied(&*tensors)?, raw_config.as_object_mut()) {
                map.insert("tie_word_embeddings".into(), false.into());
                config = ModelConfig::from_value(&raw_config, &config_path)?;
            }
        }
        let generation_path = path.join("generation_config.json");
        let generation_config =
            if generation_path.is_file() { Some(read_json(&generation_path)?) } else { None };
        let path = path.to_owned();
        Ok(ModelFiles {
            path,
            config,
            raw_config,
            generation_config,
            tensors,
            resized_from: None,
            gguf: None,
        })
    }

    fn open_gguf(path: &Path) -> Result<ModelFiles> {
        let file = Arc::new(GgufFile::open(path)?);
        let raw_config = file.hf_config()?;
        let config = ModelConfig::from_value(&raw_config, path)?;
        let tensors = Arc::new(GgufSource::new(Arc::clone(&file), &config)?);
        let path = path.to_owned();
        let (generation_config, resized_from, gguf) = (None, None, Some(file));
        Ok(ModelFiles { path, config, raw_config, generation_config, tensors, resized_from, gguf })
    }

    /// The same weights with another description.
    pub(super) fn with_config(&self, config: ModelConfig, raw_config: Value) -> ModelFiles {
        ModelFiles {
            path: self.path.clone(),
            config,
            raw_config,
            generation_config: self.generation_config.clone(),
            tensors: self.tensors.clone(),
            resized_from: self.resized_from,
            gguf: self.gguf.clone(),
        }
    }

    /// The same model with another size of vocabulary, whose tensors `tensors` gives.
    ///
    /// # Errors
    /// When so many rows are impossible.
    pub(crate) fn with_vocabulary(&self, rows: usize, tensors: Arc<dyn TensorSource>) -> Result<ModelFiles> {
        let mut raw_config = self.raw_config.clone();
        if let Some(map) = raw_config.as_object_mut() {
            map.insert("vocab_size".into(), rows.into());
        }
        let resized_from = Some(self.resized_from.unwrap_or(self.config.spec.vocab_size));
        let config = ModelConfig::from_value(&raw_config, &self.path)?;
        let resized_from = resized_from.filter(|&old| old != rows);
        Ok(ModelFiles { tensors, resized_from, ..self.with_config(config, raw_config) })
    }

    /// The model's tokenizer: from the folder's files, or rebuilt from the GGUF file's metadata.
    ///
    /// # Errors
    /// When the tokenizer's files are missing or cannot be understood.
    pub fn tokenizer(&self) -> Result<TokenizerBundle> {
        match &self.gguf {
            Some(file) => Ok(TokenizerBundle::from_gguf(&file.vocabulary()?)?),
            None => Ok(TokenizerBundle::from_folder(&self.path)?),
        }
    }

    /// The name of the pre-tokenizer, where a GGUF file says it.
    pub(crate) fn pre_tokenizer(&self) -> Option<String> {
        let value = self.gguf.as_ref()?.metadata.get("tokenizer.ggml.pre")?;
        value.as_str().map(str::to_owned)
    }

    /// Was it read from a GGUF file?
    pub fn is_gguf(&self) -> bool {
        self.gguf.is_some()
    }
}

/// A model of which only the description is there.
struct NoWeights;

impl TensorSource for NoWeights {
    fn names(&self) -> Vec<&str> {
        Vec::new()
    }
    fn info(&self, _: &str) -> Option<TensorInfo> {
        None
    }
    fn read(&self, name: &str) -> Result<RawTensor<'_>> {
        Err(Error::unsupported(Path::new(name), "is a tensor of a model that was opened without its weights"))
    }
}

/// The safetensors of a folder: one file, or an index with shards. transformers prefers the one file, too.
fn open_weights(folder: &Path) -> Result<SafetensorsSource> {
    let (single, index) = (folder.join("model.safetensors"), folder.join("model.safetensors.index.json"));
    if single.is_file() {
        return SafetensorsSource::open_file(&single);
    }
    if index.is_file() {
        return SafetensorsSource::open_index(&index);
    }
    let names = file_names(folder)?;
    let pickled =
        names.iter().find(|n| n.starts_with("pytorch_model") || n.ends_with(".bin") || n.ends_with(".pth"));
    if let Some(pickled) = pickled {
        return Err(Error::unsupported(
            folder,
            format!(
                "holds only {pickled}, a pickle, which is not read because it can run any code; convert it to safetensors \
             with transformers: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(folder)"
            ),
        ));
    }
    if let Some(other) = names.iter().find(|n| n.ends_with(".safetensors")) {
        return Err(Error::unsupported(
            folder,
            format!(
                "has neither model.safetensors nor model.safetensors.index.json, only {other}; download the index, too, or \
             rename the file if it holds the whole model"
            ),
        ));
    }
    Err(Error::unsupported(
        folder,
        "has a config.json but no weights (model.safetensors); download them, too",
    ))
}

fn not_a_model(folder: &Path) -> Error {
    if folder.join("adapter_config.json").is_file() {
        let what =
            "is an adapter, not a model; give it as the adapter, and as the model the base it was made for";
        return Error::unsupported(folder, what);
    }
    Error::unsupported(folder, "is not a model: it has neither a config.json nor one .gguf file")
}

/// The folder's GGUF file, if it has exactly one.
fn only_gguf(folder: &Path) -> Result<Option<PathBuf>> {
    let mut found = file_names(folder)?;
    found.retain(|n| n.to_lowercase().ends_with(".gguf"));
    match found.as_slice() {
        [] => Ok(None),
        [one] => Ok(Some(folder.join(one))),
        many => Err(Error::unsupported(
            folder,
            format!("holds several GGUF files; name one of {}", many.join(", ")),
        )),
    }
}

fn file_names(folder: &Path) -> Result<Vec<String>> {
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io("read the folder", folder, e))?;
    let mut names: Vec<String> = entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn read_json(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::damaged(path, format!("it is not valid JSON: {e}")))
}
