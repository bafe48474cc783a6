//! A model, perhaps with an adapter, ready to answer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use loratune_data::{ChatTemplate, Message, TemplateChoice, Text, encode_prompt, render_chat};
use loratune_engine::{DType, Params};
use loratune_model::adapter::combine::SavedAdapter;
use loratune_model::adapter::{self, AdapterSpec, Attached, Start};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::files::{ModelFiles, peft};
use loratune_model::{Decoder, load, vocabulary};
use loratune_tokenizer::TokenizerBundle;

use crate::cli::{Global, ModelArgs};
use crate::hub;
use crate::output::Usage;

/// A model's weights, on which any number of adapters can stand without copying them.
pub struct Base {
    pub files: Arc<ModelFiles>,
    pub tokenizer: Arc<TokenizerBundle>,
    decoder: Decoder,
}

impl Base {
    /// Reads a model.
    ///
    /// # Errors
    /// What is missing or broken, by file.
    pub fn open(model: &Path, dtype: DType) -> Result<Base> {
        let files = model_files(model)?;
        let tokenizer = files.tokenizer()?;
        let decoder = load::decoder(&files, Dtypes::both(dtype), &mut Params::new(), &Trained::Nothing)?;
        Ok(Base { files: Arc::new(files), tokenizer: Arc::new(tokenizer), decoder })
    }

    /// The model without an adapter.
    pub fn alone(&self) -> LoadedModel {
        LoadedModel {
            files: self.files.clone(),
            tokenizer: self.tokenizer.clone(),
            decoder: self.decoder.clone(),
            params: Params::new(),
            attached: None,
        }
    }

    /// The model with an adapter, ready for passes that change nothing.
    ///
    /// An adapter that was made with another size of vocabulary gets one: only embedding and head are then its own. Its
    /// tokenizer is the one in its folder, if there is one.
    ///
    /// # Errors
    /// If the adapter does not fit the model.
    pub fn with(&self, adapter: &Adapter) -> Result<LoadedModel> {
        let Adapter { folder, saved } = adapter;
        let spec = AdapterSpec::from_config(&saved.config)?;
        let fitted = vocabulary::fitted(&self.files, &saved.config, &saved.tensors)?.map(Arc::new);
        let resized = match &fitted {
            Some(files) => Some(self.decoder.with_vocabulary(files.config.spec.vocab_size, &**files)?),
            None => None,
        };
        let (files, base) =
            (fitted.as_ref().unwrap_or(&self.files), resized.as_ref().unwrap_or(&self.decoder));
        let mut params = Params::new();
        let trained = spec.trained(base.spec())?;
        let mut decoder = base.with_trained(&mut params, &trained)?;
        let start = Start::Saved(&saved.tensors);
        let attached = adapter::attach(&mut decoder, &mut params, &spec, start, &**files)?;
        decoder.fix_norms(&params)?;
        let tokenizer = match vocabulary::tokenizer_beside(folder)? {
            Some(own) if !own.is_same(&self.tokenizer)? => Arc::new(own),
            _ => self.tokenizer.clone(),
        };
        Ok(LoadedModel { files: files.clone(), tokenizer, decoder, params, attached: Some(attached) })
    }
}

/// An adapter and where it was read.
pub struct Adapter {
    pub folder: PathBuf,
    pub saved: SavedAdapter,
}

/// Reads an adapter: its folder, or one from the hub.
///
/// # Errors
/// What is missing or broken, by file.
pub fn read_adapter(path: &Path) -> Result<Adapter> {
    let folder = hub::adapter(path)?;
    let (config, tensors) = peft::read_adapter(&folder)?;
    let saved = SavedAdapter { name: path.display().to_string(), config, tensors };
    Ok(Adapter { folder, saved })
}

/// Opens a model that is named by its path or by its name on the hub.
///
/// # Errors
/// What is missing or broken, by file.
pub fn model_files(named: &Path) -> Result<ModelFiles> {
    Ok(ModelFiles::open(&hub::model(named)?)?)
}

/// PEFT's name of the model without an adapter.
pub const BASE: &str = "__base__";

/// Adapters that were read, by their names.
pub struct Named {
    pub name: String,
    pub adapter: Adapter,
}

impl Named {
    /// Reads the adapters of a command line, each `FOLDER` or `NAME=FOLDER`. A folder's own name is its last component.
    ///
    /// # Errors
    /// If two have one name, or a folder is missing or broken.
    pub fn read_all(given: &[PathBuf]) -> Result<Vec<Named>> {
        let mut names: Vec<(String, PathBuf)> = Vec::new();
        for path in given {
            let (name, path) = name_and_path(path);
            if name == BASE {
                return Err(Usage(format!(
                    "{BASE} is the model without an adapter: give {} another name",
                    path.display()
                ))
                .into());
            }
            if let Some((_, first)) = names.iter().find(|(n, _)| *n == name) {
                let what =
                    format!("two adapters are named `{name}` ({} and {})", first.display(), path.display());
                return Err(Usage(format!("{what}: give them names, as in --adapter first=FOLDER")).into());
            }
            names.push((name, path));
        }
        names.into_iter().map(|(name, path)| Ok(Named { name, adapter: read_adapter(&path)? })).collect()
    }
}

fn name_and_path(given: &Path) -> (String, PathBuf) {
    let split = given.to_str().and_then(|t| t.split_once('=')).filter(|_| !given.exists());
    let named =
        split.filter(|(name, path)| !(name.is_empty() || path.is_empty() || name.contains(['/', '\\'])));
    if let Some((name, path)) = named {
        return (name.to_string(), PathBuf::from(path));
    }
    let last = |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned());
    let name = last(given).or_else(|| last(&given.canonicalize().ok()?));
    (name.unwrap_or_else(|| given.display().to_string()), given.to_path_buf())
}

/// Everything that running a model needs.
pub struct LoadedModel {
    pub files: Arc<ModelFiles>,
    pub tokenizer: Arc<TokenizerBundle>,
    pub decoder: Decoder,
    pub params: Params,
    /// The adapter, if there is one.
    pub attached: Option<Attached>,
}

impl LoadedModel {
    /// Reads a model and attaches its adapter.
    ///
    /// # Errors
    /// What is missing or broken, by file.
    pub fn open(args: &ModelArgs, dtype: DType) -> Result<LoadedModel> {
        LoadedModel::from_paths(&args.model, args.adapter.as_deref(), dtype)
    }

    /// As [`LoadedModel::open`].
    ///
    /// # Errors
    /// As [`LoadedModel::open`].
    pub fn from_paths(model: &Path, adapter: Option<&Path>, dtype: DType) -> Result<LoadedModel> {
        // A wrong adapter path should not cost the time of reading the model.
        let saved = adapter.map(read_adapter).transpose()?;
        let base = Base::open(model, dtype)?;
        saved.map_or_else(|| Ok(base.alone()), |saved| base.with(&saved))
    }

    /// The ids that end an answer: every EOS that config.json, generation_config.json and the tokenizer name.
    pub fn stop_ids(&self) -> Vec<u32> {
        loratune_train::predict::stop_ids(&self.files, &self.tokenizer)
    }

    /// The chat template that prompts go through; `None` if the model has none and none is named.
    ///
    /// # Errors
    /// An unknown name, a template that does not compile.
    pub fn template(&self, name: Option<&str>) -> Result<Option<ChatTemplate>> {
        let choice = TemplateChoice::parse(name);
        if choice == TemplateChoice::Model && self.tokenizer.chat_template.is_none() {
            return Ok(None);
        }
        Ok(Some(choice.load(&*self.tokenizer, None)?))
    }

    /// Ids of a rendered prompt, checked against the model's vocabulary.
    ///
    /// # Errors
    /// If the tokenizer fails, or knows more tokens than the model.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = encode_prompt(&*self.tokenizer as &dyn Text, text).map_err(anyhow::Error::msg)?;
        let vocabulary = self.files.config.spec.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            let token = self.tokenizer.token(*id).unwrap_or_default();
            anyhow::bail!(
                "{}: the tokenizer gave the id {id} for `{token}`, but the model's embedding has {vocabulary} rows \
                 (vocab_size): the tokenizer belongs to another model, or the token was added and its rows were never saved",
                self.files.path.display()
            );
        }
        Ok(ids)
    }
}

/// The text that asks for the next response of a conversation.
///
/// # Errors
/// When the template raises.
pub fn render(template: &ChatTemplate, messages: &[Message]) -> Result<String> {
    Ok(render_chat(template, messages, None, true, &Default::default())?)
}

/// Starts the threads that compute and runs a command on one of them: a thread outside would have to wake one and to fall
/// asleep for every product.
///
/// # Errors
/// The command's, or if the system refuses the threads or the processor what LORATUNE_ISA asks for.
pub fn on_threads<T: Send>(global: &Global, command: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    loratune_engine::Isa::choose().map_err(|e| Usage(e.to_string()))?;
    // As much as a main thread has.
    const STACK: usize = 8 << 20;
    let threads = rayon::ThreadPoolBuilder::new().stack_size(STACK).thread_name(|i| format!("loratune {i}"));
    // 0: one for each core.
    let threads = threads.num_threads(global.threads.unwrap_or(0)).build_global();
    threads.context("the threads that compute can't be started; --threads N takes fewer")?;
    rayon::scope(|_| command())
}
