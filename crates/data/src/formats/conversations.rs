//! ShareGPT's conversations: a list of from and value.

use super::{Fields, Format, chat, optional_string};
use crate::error::Result;
use crate::record::{Conversation, Message, Record};

pub(super) const FORMAT: Format = Format {
    name: "conversations",
    required: &["conversations"],
    optional: &["system", "tools", "chat_template_kwargs"],
    about: "ShareGPT: from human, gpt, system, function_call, observation or tool; role/content are taken too",
    example: r#"{"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}"#,
    convert,
};

fn convert(fields: &Fields) -> Result<Record, String> {
    let mut messages = chat::messages(fields, "conversations")?;
    let system = optional_string(fields, "system")?;
    if !system.is_empty() {
        if messages.first().is_some_and(|m| m.role == "system") {
            return Err("the system text stands in `system` and in `conversations` as well; keep one".into());
        }
        messages.insert(0, Message::system(system));
    }
    let tools = chat::tools(fields.get("tools"))?;
    Ok(Record::Chat(Conversation {
        tools,
        variables: chat::variables(fields)?,
        ..Conversation::new(messages)
    }))
}
