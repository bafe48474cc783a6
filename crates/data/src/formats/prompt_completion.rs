//! A prompt and its completion, as two strings or as two lists of messages.

use serde_json::Value;

use super::{Fields, Format, chat, string};
use crate::error::{Result, kind_of};
use crate::record::{Conversation, Message, Record};

pub(super) const FORMAT: Format = Format {
    name: "prompt/completion",
    required: &["prompt", "completion"],
    optional: &["tools", "chat_template_kwargs"],
    about: "two strings or two message lists; only the completion is trained; `template: plain` joins the strings as they are",
    example: r#"{"prompt": "2 + 2 =", "completion": " 4"}"#,
    convert,
};

fn convert(fields: &Fields) -> Result<Record, String> {
    let conversation = match (fields.get("prompt"), fields.get("completion")) {
        (Some(Value::Array(_)), Some(Value::Array(_))) => {
            let mut messages = chat::messages(fields, "prompt")?;
            let first_response = messages.len();
            messages.extend(chat::messages(fields, "completion")?);
            Conversation { first_response, ..Conversation::new(messages) }
        }
        (Some(Value::Array(_)), Some(other)) | (Some(other), Some(Value::Array(_))) => {
            let found = kind_of(other);
            return Err(format!(
                "`prompt` and `completion` should both be strings or both lists, one is {found}"
            ));
        }
        _ => Conversation::new(vec![
            Message::user(string(fields, "prompt")?),
            Message::assistant(string(fields, "completion")?),
        ]),
    };
    let tools = chat::tools(fields.get("tools"))?;
    Ok(Record::Chat(Conversation { tools, variables: chat::variables(fields)?, ..conversation }))
}
