//! The rotary embedding's fields, in transformers 5's form (`rope_parameters`) and the older one (`rope_theta` with
//! `rope_scaling`).

use serde_json::{Map, Value};

use super::Result;
use super::config_fields::Fields;

/// transformers' default base.
const DEFAULT_THETA: f64 = 10_000.0;

/// The base of the frequencies. Only plain rotary embeddings (`rope_type` "default") are implemented.
pub(crate) fn theta(fields: &Fields<'_>) -> Result<f64> {
    let mut theta = fields.positive("rope_theta", DEFAULT_THETA)?;
    for key in ["rope_scaling", "rope_parameters"] {
        match fields.map.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) => {
                if let Some(given) = section(fields, key, map)? {
                    theta = given;
                }
            }
            Some(_) => return Err(fields.wrong(key, "must be an object or null")),
        }
    }
    Ok(theta)
}

/// One of the two objects: refuses what isn't plain, returns its `rope_theta`.
fn section(fields: &Fields<'_>, key: &str, map: &Map<String, Value>) -> Result<Option<f64>> {
    let mut theta = None;
    for (name, value) in map {
        match (name.as_str(), value) {
            ("rope_type" | "type", Value::String(kind)) if kind == "default" => {}
            ("rope_type" | "type", kind) => {
                let detail = format!("has {name} {kind}; only \"default\" is implemented");
                return Err(fields.wrong(key, detail));
            }
            ("rope_theta", value) => {
                let given = value.as_f64().filter(|t| t.is_finite() && *t > 0.0);
                theta = Some(
                    given.ok_or_else(|| fields.wrong(key, "has a rope_theta that is no positive number"))?,
                );
            }
            ("partial_rotary_factor", value) if value.as_f64() == Some(1.0) => {}
            (_, Value::Null) => {}
            (other, value) => {
                let detail =
                    format!("has {other} = {value}, which is not implemented for rope_type \"default\"");
                return Err(fields.wrong(key, detail));
            }
        }
    }
    Ok(theta)
}
