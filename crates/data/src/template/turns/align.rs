//! From messages to turns: the user's and the model's, one after the other.

use serde_json::{Map, Value};

use super::tools::Call;
use crate::record::Message;

/// Between the results of tools that were called at once.
const NEXT_RESULT: &str = "\n</tool_response>\n<tool_response>\n";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    User,
    Observation,
    Assistant,
    Function,
}

impl Role {
    pub fn is_response(self) -> bool {
        matches!(self, Self::Assistant | Self::Function)
    }
}

/// One turn of a conversation.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    pub role: Role,
    pub content: String,
    /// Of [`Role::Function`].
    pub calls: Vec<Call>,
    /// Thinking that the message holds apart from its content.
    pub reasoning: Option<String>,
    /// Index of its first message.
    pub message: usize,
}

/// A conversation's system text and its turns.
#[derive(Debug, Clone, Default)]
pub(super) struct Aligned {
    pub system: String,
    pub turns: Vec<Turn>,
}

/// Sorts messages into turns. The first message may be the system's; then user (or results of tools) and response
/// alternate, beginning with the user. Results that follow each other are one turn.
pub(super) fn align(messages: &[Message]) -> Result<Aligned, String> {
    let mut out = Aligned::default();
    for (index, message) in messages.iter().enumerate() {
        let role = match message.role.as_str() {
            "system" | "developer" if index == 0 => {
                out.system.clone_from(&message.content);
                continue;
            }
            "user" => Role::User,
            "tool" | "ipython" => Role::Observation,
            "assistant" if message.calls_tools() => Role::Function,
            "assistant" => Role::Assistant,
            "system" | "developer" => {
                return Err(format!("message {}: a system text must come first", index + 1));
            }
            other => return Err(format!("message {}: the role `{other}` is unknown to it", index + 1)),
        };
        if let Some(last) = out.turns.last_mut()
            && (last.role, role) == (Role::Observation, Role::Observation)
        {
            last.content.push_str(NEXT_RESULT);
            last.content.push_str(&message.content);
            continue;
        }
        let responds = out.turns.len() % 2 == 1;
        if role.is_response() != responds {
            let (found, expected) = if responds { ("user", "response") } else { ("response", "user") };
            return Err(format!(
                "message {}: a turn of the {found} where one of the {expected} should be; its turns alternate",
                index + 1
            ));
        }
        out.turns.push(Turn {
            role,
            content: message.content.clone(),
            calls: calls(message).map_err(|e| format!("message {}: {e}", index + 1))?,
            reasoning: message.reasoning().map(str::to_string),
            message: index,
        });
    }
    Ok(out)
}

fn calls(message: &Message) -> Result<Vec<Call>, String> {
    let calls = message.extra.get("tool_calls").and_then(Value::as_array);
    let one = |call: &Value| -> Result<Call, String> {
        let function = call.get("function").unwrap_or(call);
        let name = function.get("name").and_then(Value::as_str);
        let name = name.ok_or("a call of a tool without `name`")?.to_string();
        let arguments = function.get("arguments").cloned().unwrap_or_else(|| Value::Object(Map::new()));
        Ok(Call { name, arguments })
    };
    calls.into_iter().flatten().map(one).collect()
}
