//! A question and its answer.

use super::{Fields, Format, string};
use crate::error::Result;
use crate::record::{Conversation, Message, Record};

pub(super) const FORMAT: Format = Format {
    name: "question/answer",
    required: &["question", "answer"],
    optional: &[],
    about: "the question is the user's turn, the answer the response",
    example: r#"{"question": "What is 2 + 2?", "answer": "4"}"#,
    convert,
};

fn convert(fields: &Fields) -> Result<Record, String> {
    let (question, answer) = (string(fields, "question")?, string(fields, "answer")?);
    Ok(Record::Chat(Conversation::new(vec![Message::user(question), Message::assistant(answer)])))
}
