//! The rotary embedding's fields, in transformers 5's form (`rope_parameters`, for Gemma 3 one by kind of layer) and the older
//! one (`rope_theta` with `rope_scaling`).

use serde_json::{Map, Value};

use super::{Defaults, most};
use crate::files::{Fields, Result};
use crate::rope::{RopeScaling, RopeSpec};

/// From the fields, the width of a head, the family's defaults and `max_position_embeddings` to the rotary embeddings and the
/// context length.
pub(super) type Reader = fn(&Fields<'_>, usize, &Defaults, usize) -> Result<(Vec<RopeSpec>, usize)>;

/// One rotary embedding for all layers.
pub(super) fn one(
    fields: &Fields<'_>,
    head_dim: usize,
    defaults: &Defaults,
    positions: usize,
) -> Result<(Vec<RopeSpec>, usize)> {
    let section = section(fields, defaults)?;
    let theta = match section.positive("rope_theta")? {
        Some(theta) => theta,
        None => fields.positive("rope_theta", defaults.rope_theta)?,
    };
    let part = match section.positive("partial_rotary_factor")? {
        Some(part) => part,
        None => fields.positive("partial_rotary_factor", 1.0)?,
    };
    refuse_lost(fields, &section, theta, part)?;
    let dim = (head_dim as f64 * part) as usize;
    if part > 1.0 || dim == 0 || !dim.is_multiple_of(2) {
        let detail =
            format!("is {part}, which turns {dim} of a head's {head_dim} numbers; it must be an even part");
        return Err(fields.wrong("partial_rotary_factor", detail));
    }
    if dim != head_dim && !defaults.phi_rope {
        let detail = "turns part of a head only, which models of this family do not";
        return Err(fields.wrong("partial_rotary_factor", detail));
    }
    let scaling = section.scaling(dim, theta, positions)?;
    let length = context(fields, &scaling, positions)?;
    Ok((vec![RopeSpec { dim, theta, scaling }], length))
}

/// The context length: `max_position_embeddings`, as transformers and the models' authors mean it. It counts what scaling
/// makes of it (Llama 3.1, Phi-3, Gemma 3, DeepSeek Coder). It is longer only where the scaling itself is defined by the
/// length before it: `dynamic` changes nothing up to `max_position_embeddings` and is for `factor` times that; `yarn` is
/// for `factor` times its original length (Qwen's model cards ask for the one field and leave the other alone). Vicuna's
/// and LongChat's `linear` models say their length in `max_sequence_length`.
fn context(fields: &Fields<'_>, scaling: &RopeScaling, positions: usize) -> Result<usize> {
    let stretched = |original: usize, factor: f64| (original as f64 * factor) as usize;
    let length = match scaling {
        RopeScaling::Linear { .. } => {
            fields.optional_size("max_sequence_length", most::POSITIONS)?.unwrap_or(0)
        }
        RopeScaling::Dynamic { factor, .. } => stretched(positions, *factor),
        RopeScaling::Yarn { factor, original, .. } => stretched(*original, *factor),
        _ => 0,
    };
    Ok(length.max(positions).min(most::POSITIONS as usize))
}

/// Gemma 3's two embeddings: of layers without a window, and of those with one. In transformers 5's form they stand beside
/// one another in `rope_parameters`; in the older one `rope_theta`, `rope_scaling` and `rope_local_base_freq` say them. Where both
/// are there, transformers lays `rope_scaling` over the first.
pub(super) fn by_kind(
    fields: &Fields<'_>,
    head_dim: usize,
    _: &Defaults,
    positions: usize,
) -> Result<(Vec<RopeSpec>, usize)> {
    let parameters = object(fields, "rope_parameters")?;
    if let Some((name, _)) = parameters.and_then(|m| m.iter().find(|(_, v)| !v.is_null() && !v.is_object())) {
        let detail =
            format!("has {name} beside `full_attention` and `sliding_attention`, which alone are read");
        return Err(fields.wrong("rope_parameters", detail));
    }
    let of = |kind: &str| parameters.and_then(|m| m.get(kind)).and_then(Value::as_object);
    let mut full = of("full_attention").cloned().unwrap_or_default();
    let mut key = "rope_parameters";
    if let Some(scaling) = object(fields, "rope_scaling")? {
        key = "rope_scaling";
        if scaling.contains_key("type") && !scaling.contains_key("rope_type") {
            let detail =
                "names its kind by `type`, which transformers' Gemma 3 does not read; call it `rope_type`";
            return Err(fields.wrong(key, detail));
        }
        full.extend(scaling.iter().map(|(name, value)| (name.clone(), value.clone())));
    }
    let whole = |key: &str, part: Option<f64>| match part.filter(|part| *part != 1.0) {
        None => Ok(()),
        Some(part) => {
            let detail =
                format!("says partial_rotary_factor = {part}; models of this family turn whole heads");
            Err(fields.wrong(key, detail))
        }
    };
    whole("partial_rotary_factor", Some(fields.positive("partial_rotary_factor", 1.0)?))?;
    let one =
        |key: &'static str, map: Option<&Map<String, Value>>, top: &str, theta: f64| -> Result<RopeSpec> {
            let section = Section { fields, key, map, original: None, phi: false };
            whole(key, section.positive("partial_rotary_factor")?)?;
            let theta = match section.positive("rope_theta")? {
                Some(theta) => theta,
                None => fields.positive(top, theta)?,
            };
            Ok(RopeSpec { dim: head_dim, theta, scaling: section.scaling(head_dim, theta, positions)? })
        };
    let global = one(key, Some(&full), "rope_theta", 1_000_000.0)?;
    let local = one("rope_parameters", of("sliding_attention"), "rope_local_base_freq", 10_000.0)?;
    let length = context(fields, &global.scaling, positions)?;
    Ok((vec![global, local], length))
}

fn object<'a>(fields: &Fields<'a>, key: &str) -> Result<Option<&'a Map<String, Value>>> {
    match fields.map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map).filter(|m| !m.is_empty())),
        Some(_) => Err(fields.wrong(key, "must be an object or null")),
    }
}

/// The object that describes the embedding: `rope_scaling` replaces `rope_parameters`, as in transformers.
fn section<'f, 'a>(fields: &'f Fields<'a>, defaults: &Defaults) -> Result<Section<'f, 'a>> {
    let parameters = object(fields, "rope_parameters")?;
    let (key, map) = match object(fields, "rope_scaling")? {
        Some(scaling) => ("rope_scaling", Some(scaling)),
        None => ("rope_parameters", parameters),
    };
    let original = defaults.original_positions;
    Ok(Section { fields, key, map, original, phi: defaults.phi_rope })
}

/// What `rope_parameters` says and a `rope_scaling` beside it, which replaces it, would lose. Somebody added the one to
/// a file that transformers 5 wrote, and means both.
fn refuse_lost(fields: &Fields<'_>, section: &Section<'_, '_>, theta: f64, part: f64) -> Result<()> {
    if section.key != "rope_scaling" {
        return Ok(());
    }
    let map = object(fields, "rope_parameters")?;
    let replaced = Section { fields, key: "rope_parameters", map, original: None, phi: section.phi };
    for (name, used) in [("rope_theta", theta), ("partial_rotary_factor", part)] {
        if let Some(said) = replaced.positive(name)?.filter(|said| *said != used) {
            let detail = format!(
                "says {name} = {said}, but rope_scaling, which replaces it in transformers, leaves {used}; move \
                 rope_scaling's entries into rope_parameters"
            );
            return Err(fields.wrong("rope_parameters", detail));
        }
    }
    Ok(())
}

struct Section<'f, 'a> {
    fields: &'f Fields<'a>,
    key: &'static str,
    map: Option<&'a Map<String, Value>>,
    /// The family's original context.
    original: Option<usize>,
    /// Phi-3's, whose first files say `su` or `yarn` for longrope, and which knows nothing else.
    phi: bool,
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

    /// As [`Self::positive`] for what Python asks for by `or`: 0 is as good as absent.
    fn nonzero(&self, name: &str) -> Result<Option<f64>> {
        match self.get(name).and_then(Value::as_f64) {
            Some(0.0) => Ok(None),
            _ => self.positive(name),
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

    fn scaling(&self, dim: usize, theta: f64, positions: usize) -> Result<RopeScaling> {
        let kind = match self.get("rope_type").or(self.get("type")) {
            None => "default",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return self.wrong(format!("has rope_type {other}, which is no name")),
        };
        let (scaling, reads): (RopeScaling, &[&str]) = match (kind, self.phi) {
            ("default", _) => (RopeScaling::None, &[]),
            ("longrope", _) | ("su" | "yarn", true) => (self.longrope(dim / 2, positions)?, LONGROPE),
            (other, true) => {
                return self.wrong(format!("has rope_type `{other}`; Phi-3 has default and longrope"));
            }
            ("linear", _) => (RopeScaling::Linear { factor: self.needed("factor")? }, &["factor"]),
            ("dynamic", _) => {
                let factor = self.needed("factor")?;
                (RopeScaling::Dynamic { factor, original: positions.max(2) }, &["factor"])
            }
            ("llama3", _) => {
                let scaling = RopeScaling::Llama3 {
                    factor: self.needed("factor")?,
                    low_freq_factor: self.needed("low_freq_factor")?,
                    high_freq_factor: self.needed("high_freq_factor")?,
                    original: self.original(Some(positions))?,
                };
                (scaling, &["factor", "low_freq_factor", "high_freq_factor"])
            }
            ("yarn", _) if theta <= 1.0 => {
                return self.wrong(format!("has the base rope_theta {theta}, which yarn needs above 1"));
            }
            ("yarn", _) => (self.yarn(positions)?, YARN),
            (other, _) => {
                return self.wrong(format!(
                    "has rope_type `{other}`; default, linear, dynamic, llama3, yarn and longrope are implemented"
                ));
            }
        };
        let always =
            ["rope_type", "type", "rope_theta", "partial_rotary_factor", "original_max_position_embeddings"];
        let unread = |name: &&String| !always.contains(&name.as_str()) && !reads.contains(&name.as_str());
        let fields = self.map.into_iter().flat_map(|m| m.iter());
        match fields.filter(|(_, v)| !v.is_null()).find(|(name, _)| unread(name)) {
            Some((name, value)) => {
                self.wrong(format!("has {name} = {value}, which is not implemented for rope_type `{kind}`"))
            }
            None => Ok(scaling),
        }
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
            self.nonzero("mscale")?,
            self.nonzero("mscale_all_dim")?,
        ) {
            (Some(given), _, _) => given,
            (None, Some(m), Some(all)) => mscale(factor, m) / mscale(factor, all),
            _ => mscale(factor, 1.0),
        };
        Ok(RopeScaling::Yarn {
            factor,
            beta_fast: self.nonzero("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.nonzero("beta_slow")?.unwrap_or(1.0),
            original,
            attention_factor,
            truncate: self.flag_or_absent("truncate")?,
        })
    }

    /// A flag that is on where it is missing; null is off, as in Python.
    fn flag_or_absent(&self, name: &str) -> Result<bool> {
        match self.map.and_then(|map| map.get(name)) {
            None => Ok(true),
            Some(Value::Null) => Ok(false),
            Some(Value::Bool(on)) => Ok(*on),
            Some(other) => self.wrong(format!("has {name} = {other}; it must be true or false")),
        }
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
