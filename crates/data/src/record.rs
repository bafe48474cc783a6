//! What a row means, whatever format it was written in.

use serde_json::{Map, Value};

/// The names under which a message's thinking is passed; the first is the one that templates read (transformers 5.23).
pub(crate) const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// A row after its format was recognised.
#[derive(Debug, Clone, PartialEq)]
pub enum Record {
    /// Rendered by a chat template; the responses are trained.
    Chat(Conversation),
    /// Trained as it is.
    Text(String),
    /// Token ids made elsewhere. `labels` are unshifted, -100 = not trained; `None` = all ids.
    Tokens { input_ids: Vec<i64>, labels: Option<Vec<i64>> },
    /// A row of a dataset with an entry in `dataset_info.json` that LLaMA-Factory leaves out, and why: counted, not trained.
    Unusable(&'static str),
}

/// Messages and what belongs to them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// The turns, in order.
    pub messages: Vec<Message>,
    /// Tool descriptions (JSON schema, as the template's `tools` variable), if any.
    pub tools: Option<Value>,
    /// Responses before this message index belong to the prompt and are never trained.
    pub first_response: usize,
    /// The row's `chat_template_kwargs`: more variables for the template.
    pub variables: Map<String, Value>,
}

impl Conversation {
    /// A conversation of plain messages.
    pub fn new(messages: Vec<Message>) -> Self {
        Self { messages, ..Self::default() }
    }
}

/// One message. Templates see a mapping of `role`, `content` and `extra`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`, or whatever else the template knows.
    pub role: String,
    /// The text; empty when a message only calls tools.
    pub content: String,
    /// The row has null for the content, or none at all. Templates that ask for that see it.
    pub null_content: bool,
    /// Everything else, such as `tool_calls`, `name`, `reasoning_content`; never null.
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message of text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into(), ..Self::default() }
    }

    /// From the user.
    pub fn user(content: impl Into<String>) -> Self {
        Self::new("user", content)
    }

    /// From the model.
    pub fn assistant(content: impl Into<String>) -> Self {
        Self::new("assistant", content)
    }

    /// From the system.
    pub fn system(content: impl Into<String>) -> Self {
        Self::new("system", content)
    }

    /// Whether the message is written by the model.
    pub fn is_response(&self) -> bool {
        self.role == "assistant"
    }

    /// Whether it calls tools.
    pub fn calls_tools(&self) -> bool {
        self.extra.get("tool_calls").and_then(Value::as_array).is_some_and(|c| !c.is_empty())
    }

    /// Its thinking, when that is apart from the content.
    pub fn reasoning(&self) -> Option<&str> {
        REASONING.iter().find_map(|k| self.extra.get(*k)).and_then(Value::as_str)
    }

    /// The names of the tools that it calls.
    pub fn called_tools(&self) -> impl Iterator<Item = &str> {
        let calls = self.extra.get("tool_calls").and_then(Value::as_array).into_iter().flatten();
        calls.filter_map(|call| call.get("function").unwrap_or(call).get("name")?.as_str())
    }
}
