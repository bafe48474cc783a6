//! Plain text, trained as a whole.

use super::{Fields, Format, string};
use crate::error::Result;
use crate::record::Record;

pub(super) const FORMAT: Format = Format {
    name: "text",
    required: &["text"],
    optional: &[],
    about: "plain text without a template; every token is trained, and the end of the text",
    example: r#"{"text": "Once upon a time …"}"#,
    convert,
};

fn convert(fields: &Fields) -> Result<Record, String> {
    Ok(Record::Text(string(fields, "text")?))
}
