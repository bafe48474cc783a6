//! Tokens whose rows are trained by themselves, as a configuration names them.

use super::field::{Arity, Field, Problem};
use super::value::Value;

/// A token: its id, or its text in the vocabulary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRef {
    /// As it is written; whether it is one is the model's to say.
    Id(i64),
    /// Such as `<think>`.
    Text(String),
}

/// `trainable_token_indices`: tokens of the embedding (and of a head tied to it), or by module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TrainedTokens {
    /// A list.
    OfEmbedding(Vec<TokenRef>),
    /// A mapping from `embed_tokens` or `lm_head` to lists.
    ByModule(Vec<(String, Vec<TokenRef>)>),
}

impl TrainedTokens {
    fn tokens(value: &Value) -> Result<Vec<TokenRef>, Problem> {
        let one = |value: &Value| match value {
            Value::Str(text) if !text.is_empty() => Ok(TokenRef::Text(text.clone())),
            Value::Int(_) | Value::Float(_) => value.as_i64().map(TokenRef::Id).ok_or(Problem::Type),
            _ => Err(Problem::Type),
        };
        match value {
            Value::List(items) if items.is_empty() => Err(Problem::Type),
            Value::List(items) => items.iter().map(one).collect(),
            single => Ok(vec![one(single)?]),
        }
    }

    fn list(tokens: &[TokenRef]) -> Value {
        let value = |token: &TokenRef| match token {
            TokenRef::Id(id) => Value::Int(*id),
            TokenRef::Text(text) => Value::Str(text.clone()),
        };
        Value::List(tokens.iter().map(value).collect())
    }
}

impl Field for TrainedTokens {
    const ARITY: Arity = Arity::Many;
    fn expected() -> String {
        "token ids or tokens as a list, such as [32000, \"<think>\"], or by module: {embed_tokens: [5], lm_head: [5]}"
            .into()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Map(modules) if modules.is_empty() => Err(Problem::Type),
            Value::Map(modules) => {
                let modules = modules.iter().map(|(name, v)| Ok((name.clone(), TrainedTokens::tokens(v)?)));
                Ok(TrainedTokens::ByModule(modules.collect::<Result<_, Problem>>()?))
            }
            list => Ok(TrainedTokens::OfEmbedding(TrainedTokens::tokens(list)?)),
        }
    }
    fn to_value(&self) -> Value {
        match self {
            TrainedTokens::OfEmbedding(tokens) => TrainedTokens::list(tokens),
            TrainedTokens::ByModule(modules) => {
                Value::Map(modules.iter().map(|(n, t)| (n.clone(), TrainedTokens::list(t))).collect())
            }
        }
    }
}
