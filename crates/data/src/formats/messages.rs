//! OpenAI's messages: a list of role and content.

use super::{Fields, Format, chat};
use crate::error::Result;
use crate::record::{Conversation, Record};

pub(super) const FORMAT: Format = Format {
    name: "messages",
    required: &["messages"],
    optional: &["tools", "chat_template_kwargs"],
    about: "OpenAI: role system, user, assistant or tool; content a string or a list of text parts; tool_calls kept",
    example: r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}]}"#,
    convert,
};

fn convert(fields: &Fields) -> Result<Record, String> {
    let messages = chat::messages(fields, "messages")?;
    let tools = chat::tools(fields.get("tools"))?;
    Ok(Record::Chat(Conversation {
        tools,
        variables: chat::variables(fields)?,
        ..Conversation::new(messages)
    }))
}
