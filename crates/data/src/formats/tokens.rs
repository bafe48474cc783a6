//! Rows that are token ids already.

use serde_json::Value;

use super::{Fields, Format};
use crate::error::{Result, kind_of};
use crate::record::Record;

pub(super) const FORMAT: Format = Format {
    name: "tokens",
    required: &["input_ids"],
    optional: &["labels", "attention_mask"],
    about: "token ids as they are; labels unshifted, -100 = not trained, all ids when absent; attention_mask is ignored unless it numbers several sequences, which is refused",
    example: r#"{"input_ids": [1, 15, 27, 2], "labels": [-100, -100, 27, 2]}"#,
    convert,
};

fn convert(fields: &Fields) -> Result<Record, String> {
    let input_ids = integers(fields, "input_ids")?.unwrap_or_default();
    let labels = integers(fields, "labels")?;
    if input_ids.is_empty() {
        return Err("`input_ids` is empty".into());
    }
    if let Some(labels) = &labels
        && labels.len() != input_ids.len()
    {
        let (n, m) = (labels.len(), input_ids.len());
        return Err(format!("`labels` has {n} entries but `input_ids` has {m}; they should be as many"));
    }
    // LLaMA-Factory's packs: sequence by sequence 1, 2, 3, ….
    if integers(fields, "attention_mask")?.is_some_and(|mask| mask.iter().any(|&m| m > 1)) {
        return Err("`attention_mask` numbers several sequences in one row (neat_packing); write them as rows of their own, and \
                    pack them in the run"
            .into());
    }
    Ok(Record::Tokens { input_ids, labels })
}

fn integers(fields: &Fields, name: &str) -> Result<Option<Vec<i64>>, String> {
    let items = match fields.get(name) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) => items,
        Some(other) => {
            return Err(format!("`{name}` should be a list of integers, found {}", kind_of(other)));
        }
    };
    let integer = |(i, v): (usize, &Value)| {
        v.as_i64().ok_or_else(|| format!("`{name}`[{i}] should be an integer, found {v}"))
    };
    items.iter().enumerate().map(integer).collect::<Result<Vec<_>, _>>().map(Some)
}
