//! A model, perhaps with an adapter, ready to answer.

use std::path::Path;

use anyhow::Result;
use loratune_data::{ChatTemplate, Message, TemplateChoice, Text, encode_prompt, render_chat};
use loratune_engine::{DType, Params};
use loratune_model::adapter::{self, AdapterSpec, Attached, Start};
use loratune_model::decoder::{Dtypes, Trained};
use loratune_model::files::{ModelFiles, peft};
use loratune_model::{Decoder, load};
use loratune_tokenizer::TokenizerBundle;

use crate::cli::{Global, ModelArgs};

/// Everything that running a model needs.
pub struct LoadedModel {
    pub files: ModelFiles,
    pub tokenizer: TokenizerBundle,
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
    pub fn from_paths(model: &Path, adapter_dir: Option<&Path>, dtype: DType) -> Result<LoadedModel> {
        // A wrong adapter path should not cost the time of reading the model.
        let saved = adapter_dir.map(peft::read_adapter).transpose()?;
        let files = ModelFiles::open(model)?;
        let tokenizer = files.tokenizer()?;
        let mut params = Params::new();
        let Some((config, tensors)) = saved else {
            let decoder = load::decoder(&files, Dtypes::both(dtype), &mut params, &Trained::Nothing)?;
            return Ok(LoadedModel { files, tokenizer, decoder, params, attached: None });
        };
        let spec = AdapterSpec::from_config(&config)?;
        let trained = spec.trained(&load::spec(&files.config))?;
        let mut decoder = load::decoder(&files, Dtypes::both(dtype), &mut params, &trained)?;
        let start = Start::Saved(&tensors);
        let attached = adapter::attach(&mut decoder, &mut params, &spec, start, &files)?;
        decoder.fix_norms(&params)?;
        Ok(LoadedModel { files, tokenizer, decoder, params, attached: Some(attached) })
    }

    /// The ids that end an answer: every EOS that config.json, generation_config.json and the tokenizer name.
    pub fn stop_ids(&self) -> Vec<u32> {
        let mut ids = self.files.config.eos_token_ids.clone();
        let generation = self.files.generation_config.as_ref().and_then(|g| g.get("eos_token_id"));
        let one_or_many = generation.map(|v| v.as_array().cloned().unwrap_or_else(|| vec![v.clone()]));
        ids.extend(
            one_or_many
                .into_iter()
                .flatten()
                .filter_map(|v| v.as_u64())
                .filter_map(|id| u32::try_from(id).ok()),
        );
        ids.extend(self.tokenizer.eos.as_ref().map(|t| t.id));
        ids.sort_unstable();
        ids.dedup();
        ids
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
        Ok(Some(choice.load(&self.tokenizer, None)?))
    }

    /// Ids of a rendered prompt, checked against the model's vocabulary.
    ///
    /// # Errors
    /// If the tokenizer fails, or knows more tokens than the model.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        let ids = encode_prompt(&self.tokenizer as &dyn Text, text).map_err(anyhow::Error::msg)?;
        let vocabulary = self.files.config.vocab_size;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= vocabulary) {
            anyhow::bail!(
                "{}: the tokenizer gave the id {id}, but the model's vocabulary has {vocabulary} rows (vocab_size): \
                 the tokenizer belongs to another model",
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

/// Starts the threads that compute; to be called before anything else does.
///
/// # Errors
/// If the system refuses them.
pub fn start_threads(global: &Global) -> Result<()> {
    if let Some(n) = global.threads {
        rayon::ThreadPoolBuilder::new().num_threads(n).build_global()?;
    }
    Ok(())
}
