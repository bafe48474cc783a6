//! The rotary embedding's fields, in transformers 5's form (`rope_parameters`, for Gemma 3 one by kind of layer) and the older
//! one (`rope_theta` with `rope_scaling`).

use serde_json::{Map, Value};

use super::{Defaults, most};
use crate::files::{Fields, Result};
use crate::rope::{RopeScaling, RopeSpec};

/// The rotary embedding of layers without a window (of all layers in most models), and the context length: what the
/// configuration says, or more where scaling stretches it.
pub(super) fn read(
    fields: &Fields<'_>,
    head_dim: usize,
    defaults: &Defaults,
    positions: usize,
) -> Result<(RopeSpec, usize)> {
    let (key, map) = section(fields, "full_attention")?;
    let section = Section { fields, key, map, original: defaults.original_positions };
    let default_theta = defaults.rope_theta;
    let theta = match section.positive("rope_theta")? {
        Some(theta) => theta,
        None => {
            let parameters = fields.map.get("rope_parameters").and_then(Value::as_object);
            let other = Section { fields, key: "rope_parameters", map: parameters, original: None };
            match other.positive("rope_theta")? {
                Some(theta) => theta,
                None => fields.positive("rope_theta", default_theta)?,
            }
        }
    };
    let part = match section.positive("partial_rotary_factor")? {
        Some(part) => part,
        None => fields.positive("partial_rotary_factor", 1.0)?,
    };
    let dim = (head_dim as f64 * part) as usize;
    if part > 1.0 || dim == 0 || !dim.is_multiple_of(2) {
        let detail =
            format!("is {part}, which turns {dim} of a head's {head_dim} numbers; it must be an even part");
        return Err(fields.wrong("partial_rotary_factor", detail));
    }
    let scaling = section.scaling(dim, positions)?;
    if matches!(scaling, RopeScaling::Yarn { .. }) && theta <= 1.0 {
        return Err(fields.wrong(key, format!("has the base rope_theta {theta}, which yarn needs above 1")));
    }
    let stretched = |original: usize, factor: f64| positions.max((original as f64 * factor) as usize);
    let max_positions = match &scaling {
        RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor, .. } => stretched(positions, *factor),
        RopeScaling::Yarn { factor, original, .. } => stretched(*original, *factor),
        _ => positions,
    };
    Ok((RopeSpec { dim, theta, scaling }, max_positions.min(most::POSITIONS as usize)))
}

/// The rotary embedding of Gemma 3's layers with a window.
pub(super) fn local(fields: &Fields<'_>, head_dim: usize, default_theta: f64) -> Result<RopeSpec> {
    let nested = fields.map.get("rope_parameters").and_then(|v| v.get("sliding_attention"));
    let theta = match nested.and_then(Value::as_object) {
        Some(map) => {
            let section = Section { fields, key: "rope_parameters", map: Some(map), original: None };
            if section.scaling(head_dim, 1)? != RopeScaling::None {
                return Err(fields
                    .wrong("rope_parameters", "scales the layers with a window, which is not implemented"));
            }
            section.positive("rope_theta")?
        }
        None => None,
    };
    match theta {
        Some(theta) => Ok(RopeSpec::plain(head_dim, theta)),
        None => Ok(RopeSpec::plain(head_dim, fields.positive("rope_local_base_freq", default_theta)?)),
    }
}

/// The object that describes the embedding; `rope_scaling` goes first, as in transformers.
fn section<'a>(fields: &Fields<'a>, kind: &str) -> Result<(&'static str, Option<&'a Map<String, Value>>)> {
    for key in ["rope_scaling", "rope_parameters"] {
        match fields.map.get(key) {
            None | Some(Value::Null) => {}
            Some(Value::Object(map)) if map.is_empty() => {}
            Some(Value::Object(map)) => {
                let nested = map.get(kind).and_then(Value::as_object);
                return Ok((key, nested.or(Some(map))));
            }
            Some(_) => return Err(fields.wrong(key, "must be an object or null")),
        }
    }
    Ok(("rope_parameters", None))
}

struct Section<'f, 'a> {
    fields: &'f Fields<'a>,
    key: &'static str,
    map: Option<&'a Map<String, Value>>,
    /// The family's original context.
    original: Option<usize>,
}

impl Section<'_, '_> {
    fn get(&self, name: &str) -> Option<&Value> {
        self.map?.get(name).filter(|v| !v.is_null())
    }

    fn wrong<T>(&self, detail: impl Into<String>) -> Result<T> {
        Err(self.fields.wrong(self.key, detail))
    }

    fn positive(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
            Some(number) => Ok(Some(number)),
            None => self.wrong(format!("has {name} = {value}, which is no positive number")),
        }
    }

    fn needed(&self, name: &str) -> Result<f64> {
        match self.positive(name)? {
            Some(number) => Ok(number),
            None => self.wrong(format!("has no {name}, which its rope_type needs")),
        }
    }

    /// The context that the model was trained on before it was stretched.
    fn original(&self, otherwise: Option<usize>) -> Result<usize> {
        let name = "original_max_position_embeddings";
        // The top level goes first, as in transformers.
        let given = match self.fields.optional_size(name, most::POSITIONS)? {
            Some(n) => Some(n),
            None => self.positive(name)?.map(|n| n as usize).or(self.original).or(otherwise),
        };
        match given.filter(|&n| n >= 2) {
            Some(n) => Ok(n),
            None => self.wrong(format!("has no {name}, which its rope_type needs")),
        }
    }

    fn divisors(&self, name: &str, pairs: usize) -> Result<Vec<f32>> {
        let list = self.get(name).and_then(Value::as_array);
        let numbers: Option<Vec<f32>> =
            list.and_then(|l| l.iter().map(|v| v.as_f64().map(|x| x as f32)).collect());
        match numbers.filter(|n| n.len() == pairs && n.iter().all(|x| x.is_finite() && *x > 0.0)) {
            Some(numbers) => Ok(numbers),
            None => self.wrong(format!("has no {name} of {pairs} positive numbers, which longrope needs")),
        }
    }

    fn scaling(&self, dim: usize, positions: usize) -> Result<RopeScaling> {
        let kind = match self.get("rope_type").or(self.get("type")) {
            None => "default",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return self.wrong(format!("has rope_type {other}, which is no name")),
        };
        let (scaling, reads): (RopeScaling, &[&str]) = match kind {
            "default" => (RopeScaling::None, &[]),
            "linear" => (RopeScaling::Linear { factor: self.needed("factor")? }, &["factor"]),
            "dynamic" => {
                let factor = self.needed("factor")?;
                (RopeScaling::Dynamic { factor, original: positions.max(2) }, &["factor"])
            }
            "llama3" => {
                let scaling = RopeScaling::Llama3 {
                    factor: self.needed("factor")?,
                    low_freq_factor: self.needed("low_freq_factor")?,
                    high_freq_factor: self.needed("high_freq_factor")?,
                    original: self.original(Some(positions))?,
                };
                (scaling, &["factor", "low_freq_factor", "high_freq_factor"])
            }
            "yarn" if self.get("long_factor").is_none() => (self.yarn(positions)?, YARN),
            // Phi-3's first configurations said `su` or `yarn`.
            "longrope" | "su" | "yarn" => (self.longrope(dim / 2, positions)?, LONGROPE),
            other => {
                return self.wrong(format!(
                    "has rope_type `{other}`; default, linear, dynamic, llama3, yarn and longrope are implemented"
                ));
            }
        };
        let always =
            ["rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
        let unread = |name: &&String| !always.contains(&name.as_str()) && !reads.contains(&name.as_str());
        let fields = self.map.into_iter().flat_map(|m| m.iter());
        if let Some((name, value)) = fields.filter(|(_, v)| !v.is_null()).find(|(name, _)| unread(name)) {
            // The kinds of layers of Gemma 3 stand beside one another.
            if !(value.is_object() && name.ends_with("_attention")) {
                return self
                    .wrong(format!("has {name} = {value}, which is not implemented for rope_type `{kind}`"));
            }
        }
        Ok(scaling)
    }

    fn yarn(&self, positions: usize) -> Result<RopeScaling> {
        let original = self.original(Some(positions))?;
        let factor = match self.positive("factor")? {
            Some(factor) => factor,
            None => positions as f64 / original as f64,
        };
        let mscale = |scale: f64, m: f64| if scale <= 1.0 { 1.0 } else { 0.1 * m * scale.ln() + 1.0 };
        let attention_factor = match (
            self.positive("attention_factor")?,
            self.positive("mscale")?,
            self.positive("mscale_all_dim")?,
        ) {
            (Some(given), _, _) => given,
            (None, Some(m), Some(all)) => mscale(factor, m) / mscale(factor, all),
            _ => mscale(factor, 1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.positive("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.positive("beta_slow")?.unwrap_or(1.0),
            original,
            attention_factor,
            truncate: self.get("truncate").and_then(Value::as_bool).unwrap_or(true),
        })
    }

    fn longrope(&self, pairs: usize, positions: usize) -> Result<RopeScaling> {
        let original = self.original(Some(positions))?;
        let factor = match self.positive("factor")? {
            Some(factor) => factor,
            None => positions as f64 / original as f64,
        };
        let attention_factor = match self.positive("attention_factor")? {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        };
        Ok(RopeScaling::LongRope {
            short: self.divisors("short_factor", pairs)?,
            long: self.divisors("long_factor", pairs)?,
            original,
            attention_factor,
        })
    }
}

/// Among them what some files say and transformers does not read.
const YARN: &[&str] = &[
    "attention_factor",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "extrapolation_factor",
    "factor",
    "finetuned",
    "mscale",
    "mscale_all_dim",
    "truncate",
];
const LONGROPE: &[&str] = &["attention_factor", "factor", "long_factor", "short_factor"];
