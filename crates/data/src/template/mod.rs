//! Chat templates: a model's own in Jinja, or one by name.
//!
//! Jinja runs on minijinja as transformers runs it: the environment follows `transformers.utils.chat_template_utils`
//! (5.23) with `trim_blocks` and `lstrip_blocks` on, loop controls, `raise_exception`, `strftime_now`, Python's `tojson`
//! and Python's methods on strings and mappings. A conversation becomes one text, which is tokenised as a whole.
//!
//! Named templates are turns as in LLaMA-Factory ([`NamedTemplate`]): each piece of a turn is tokenised by itself, and
//! what is trained follows from whose turn it is.

mod choice;
mod generation;
mod jinja;
mod json;
mod named;
mod ollama;
mod python;
mod text;
mod turns;
mod value;

use serde_json::Map;

use crate::record::Message;
use crate::text::Text;

pub use choice::{TemplateChoice, template_names, template_table};
pub use jinja::JinjaTemplate;
pub use named::{CONTENT, NamedTemplate, Piece, Reasoning, ToolFormat};
pub use ollama::{OllamaTemplate, ollama_template};
pub(crate) use turns::TurnEncoding;
pub use turns::TurnTemplate;

/// A template that does not compile or that refuses a conversation.
#[derive(Debug, Clone, thiserror::Error)]
#[error("template `{template}`{}: {message}", line.map(|l| format!(" (line {l})")).unwrap_or_default())]
pub struct TemplateError {
    /// Name of the template.
    pub template: String,
    /// Line in its source.
    pub line: Option<usize>,
    /// What the template or the engine says.
    pub message: String,
}

impl TemplateError {
    fn new(template: &str, message: impl Into<String>) -> Self {
        Self { template: template.into(), line: None, message: message.into() }
    }
}

/// A template ready to use; shared between threads.
#[derive(Debug)]
pub enum ChatTemplate {
    /// In Jinja.
    Jinja(Box<JinjaTemplate>),
    /// By name, bound to a tokenizer.
    Turns(Box<TurnTemplate>),
}

/// What a template sees besides the messages.
#[derive(Debug, Clone, Copy, Default)]
pub struct RenderInput<'a> {
    /// The conversation.
    pub messages: &'a [Message],
    /// Tool descriptions.
    pub tools: Option<&'a serde_json::Value>,
    /// Whether to end with the header of a response.
    pub add_generation_prompt: bool,
    /// Further variables, which win over the template's own (`enable_thinking`, `chat_template_kwargs`, …).
    pub variables: Option<&'a Map<String, serde_json::Value>>,
}

impl ChatTemplate {
    /// Its name in messages.
    pub fn name(&self) -> &str {
        match self {
            Self::Jinja(template) => template.name(),
            Self::Turns(template) => template.named().name,
        }
    }

    /// Everything that decides what it renders, but the conversation and the clock.
    pub(crate) fn identity(&self) -> String {
        match self {
            Self::Jinja(template) => template.identity(),
            Self::Turns(template) => template.identity(),
        }
    }

    /// What it prints of the date (`None` = the clock's), in seconds since 1970 that are the same while that is; `None` if it
    /// prints nothing of it.
    pub(crate) fn date(&self, now: Option<u64>) -> Option<u64> {
        let now = now.unwrap_or_else(python::clock);
        match self {
            Self::Jinja(template) => template.date(now),
            Self::Turns(template) => (template.named().tools == ToolFormat::Llama3).then_some(now / 86_400),
        }
    }

    /// Tokens that end a response, besides those that the model itself names; empty for a template in Jinja.
    pub fn stop_ids(&self) -> &[u32] {
        match self {
            Self::Jinja(_) => &[],
            Self::Turns(template) => template.stop_ids(),
        }
    }

    /// Renders a conversation as text. The ids of a named template are those of its pieces, which need not be those of
    /// this text: [`Self::prompt_ids`] gives them.
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn render(&self, input: RenderInput<'_>) -> Result<String, TemplateError> {
        match self {
            Self::Jinja(template) => template.render(input),
            Self::Turns(template) => template.render(input),
        }
    }

    /// Token ids of the conversation and the header of the next response, exactly as in training.
    ///
    /// # Errors
    /// When the template refuses the conversation, or the tokenizer fails.
    pub fn prompt_ids(
        &self,
        text: &dyn Text,
        messages: &[Message],
        tools: Option<&serde_json::Value>,
        variables: &Map<String, serde_json::Value>,
    ) -> Result<Vec<u32>, TemplateError> {
        let input = RenderInput { messages, tools, add_generation_prompt: true, variables: Some(variables) };
        match self {
            Self::Jinja(template) => crate::load::encode_prompt(text, &template.render(input)?)
                .map_err(|message| TemplateError::new(template.name(), message)),
            Self::Turns(template) => template.prompt_ids(text, input),
        }
    }
}
