//! Choosing modules by name, as PEFT does (`tuners_utils.check_target_module_exists`).

use std::collections::{BTreeMap, BTreeSet};

use fancy_regex::Regex;

use super::AdapterSpec;
use crate::error::{Error, Result};
use crate::spec::{MatrixKind, MatrixSpec};

/// A choice of modules.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Every linear layer but the head (PEFT's `all-linear`, LLaMA-Factory's `all`).
    AllLinear,
    /// Modules whose path is a name or ends with `.` and a name.
    Names(Vec<String>),
    /// Modules whose whole path matches (Python's `re.fullmatch`).
    Regex(String),
}

impl std::fmt::Display for Targets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Targets::AllLinear => f.write_str("all-linear"),
            Targets::Names(n) => f.write_str(&n.join(", ")),
            Targets::Regex(r) => f.write_str(r),
        }
    }
}

fn regex(pattern: &str, what: &str) -> Result<Regex> {
    Regex::new(pattern)
        .map_err(|e| Error::Invalid(format!("{what}: '{pattern}' is not a regular expression: {e}")))
}

fn matches(regex: &Regex, path: &str) -> Result<bool> {
    regex.is_match(path).map_err(|e| Error::Invalid(format!("matching '{path}' failed: {e}")))
}

fn ends_with(path: &str, name: &str) -> bool {
    path == name || path.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

impl Targets {
    pub(super) fn contains(&self, matrix: &MatrixSpec) -> Result<bool> {
        match self {
            Targets::AllLinear => Ok(matrix.kind == MatrixKind::Linear),
            Targets::Names(names) => Ok(names.iter().any(|n| ends_with(&matrix.path, n))),
            Targets::Regex(r) => matches(&regex(&format!("^(?:{r})$"), "target_modules")?, &matrix.path),
        }
    }

    /// The chosen ones of a model's matrices, in their order: what `spec` targets but does not exclude, save whole, or
    /// leave out by layer.
    ///
    /// # Errors
    /// If the choice matches nothing; the error lists what there is. (Of several names some may: PEFT allows it in files.)
    pub(crate) fn choose(&self, matrices: &[MatrixSpec], spec: &AdapterSpec) -> Result<Vec<usize>> {
        let names = last_names(matrices);
        let mut chosen = Vec::new();
        for (i, matrix) in matrices.iter().enumerate() {
            let excluded = match &spec.exclude {
                Some(e) => e.contains(matrix)?,
                None => false,
            };
            let saved = spec.modules_to_save.iter().any(|m| has_component(&matrix.path, m));
            if !excluded && !saved && self.contains(matrix)? && spec.in_layers(&matrix.path)? {
                chosen.push(i);
            }
        }
        if chosen.is_empty() {
            return Err(Error::Invalid(format!(
                "the adapter's target '{self}' matches no layer of the model that could be adapted; there are {}",
                names.join(", ")
            )));
        }
        Ok(chosen)
    }
}

impl AdapterSpec {
    /// For a new adapter, whose names somebody wrote: each must be a module that can be adapted, and none saved whole.
    ///
    /// # Errors
    /// The first name that is not; with the nearest one that is.
    pub(super) fn check_targets(&self, matrices: &[MatrixSpec]) -> Result<()> {
        let Targets::Names(wanted) = &self.targets else { return Ok(()) };
        for name in wanted {
            if !matrices.iter().any(|m| ends_with(&m.path, name)) {
                return Err(unknown(name, &last_names(matrices)));
            }
            if let Some(saved) = self.modules_to_save.iter().find(|s| *s == name) {
                return Err(Error::Invalid(format!(
                    "'{saved}' is both adapted (target_modules) and trained whole (modules_to_save); keep one"
                )));
            }
        }
        Ok(())
    }
}

/// Whether whole components of the path are `name`: PEFT's rule for keeping adapters off `modules_to_save`.
fn has_component(path: &str, name: &str) -> bool {
    format!(".{path}.").contains(&format!(".{name}."))
}

impl AdapterSpec {
    /// Whether the path is in the layers to transform.
    fn in_layers(&self, path: &str) -> Result<bool> {
        if self.layers.is_empty() {
            return Ok(true);
        }
        let index = match self.layers_pattern.as_slice() {
            [] => layer_index(path),
            patterns => {
                let mut found = None;
                for p in patterns {
                    let regex = regex(&format!(r"^(?:|.*?\.){p}\.(\d+)\."), "layers_pattern")?;
                    let captures = regex
                        .captures(path)
                        .map_err(|e| Error::Invalid(format!("matching '{path}' failed: {e}")))?;
                    found = captures.and_then(|c| c.get(1).and_then(|m| m.as_str().parse().ok()));
                    if found.is_some() {
                        break;
                    }
                }
                found
            }
        };
        Ok(index.is_some_and(|i| self.layers.contains(&i)))
    }
}

/// "; did you mean 'x'?" if something is near, else ".".
pub(crate) fn nearest<'a>(name: &str, names: impl IntoIterator<Item = &'a str>) -> String {
    names
        .into_iter()
        .map(|n| (strsim::jaro_winkler(name, n), n))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.7)
        .map_or(".".into(), |(_, n)| format!("; did you mean '{n}'?"))
}

fn unknown(name: &str, names: &[String]) -> Error {
    let nearest = nearest(name, names.iter().map(String::as_str));
    Error::Invalid(format!(
        "the adapter's target '{name}' is no layer of the model that could be adapted{nearest} The model has {}",
        names.join(", ")
    ))
}

/// The last path components of matrices, each once.
pub(super) fn last_names(matrices: &[MatrixSpec]) -> Vec<String> {
    let set: BTreeSet<&str> = matrices.iter().map(|m| m.path.rsplit('.').next().unwrap_or(&m.path)).collect();
    set.into_iter().map(str::to_string).collect()
}

/// The number after the second component of a path, as PEFT's default `layers_pattern` finds it.
fn layer_index(path: &str) -> Option<usize> {
    path.split('.').find_map(|part| part.parse().ok())
}

/// The value of the first key that matches a path: `re.match(rf"(.*\.)?({key})$", path)`.
pub(crate) fn pattern<T: Copy>(patterns: &BTreeMap<String, T>, path: &str) -> Result<Option<T>> {
    for (key, value) in patterns {
        if matches(&regex(&format!(r"^(.*\.)?({key})$"), "rank_pattern or alpha_pattern")?, path)? {
            return Ok(Some(*value));
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATHS: [&str; 6] = [
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.11.self_attn.q_proj",
        "model.layers.11.self_attn.v_proj",
        "lm_head",
    ];

    fn spec(targets: Targets) -> AdapterSpec {
        AdapterSpec { alpha: 16.0, targets, ..AdapterSpec::default() }
    }

    fn names(n: &[&str]) -> Targets {
        Targets::Names(n.iter().map(|s| s.to_string()).collect())
    }

    fn try_choose(spec: &AdapterSpec) -> Result<Vec<usize>> {
        let kinds = |path: &str| match path {
            "lm_head" => MatrixKind::Head,
            "model.embed_tokens" => MatrixKind::Embedding,
            _ => MatrixKind::Linear,
        };
        let matrix =
            |p: &&str| MatrixSpec { path: p.to_string(), kind: kinds(p), shape: [4, 4], bias: false };
        let matrices: Vec<MatrixSpec> = PATHS.iter().map(matrix).collect();
        spec.check_targets(&matrices)?;
        spec.targets.choose(&matrices, spec)
    }

    fn choose(spec: AdapterSpec) -> Vec<usize> {
        try_choose(&spec).unwrap()
    }

    fn error(spec: AdapterSpec) -> String {
        try_choose(&spec).unwrap_err().to_string()
    }

    #[test]
    fn names_match_whole_components_from_the_end() {
        assert_eq!(choose(spec(names(&["q_proj"]))), [1, 3]);
        assert_eq!(choose(spec(names(&["self_attn.v_proj", "model.layers.0.mlp.up_proj"]))), [2, 4]);
        assert_eq!(choose(spec(names(&["embed_tokens", "lm_head"]))), [0, 5]);
        let text = error(spec(names(&["proj"])));
        assert!(
            text.contains("'proj' is no layer of the model")
                && text.contains("embed_tokens, lm_head, q_proj, up_proj, v_proj"),
            "{text}"
        );
        let text = error(spec(names(&["q_porj"])));
        assert!(text.contains("did you mean 'q_proj'?"), "{text}");
    }

    #[test]
    fn all_linear_is_every_linear_layer_but_the_head() {
        assert_eq!(choose(spec(Targets::AllLinear)), [1, 2, 3, 4]);
    }

    #[test]
    fn regexes_match_the_whole_path() {
        assert_eq!(choose(spec(Targets::Regex(r".*\.(q|v)_proj".into()))), [1, 3, 4]);
        assert_eq!(choose(spec(Targets::Regex(r".*layers\.(?!0\.).*".into()))), [3, 4]);
        assert!(try_choose(&spec(Targets::Regex("q_proj".into()))).is_err());
    }

    #[test]
    fn exclusion_layers_and_saved_modules_narrow_the_choice() {
        let all = || spec(Targets::AllLinear);
        assert_eq!(choose(AdapterSpec { exclude: Some(names(&["q_proj"])), ..all() }), [2, 4]);
        assert_eq!(choose(AdapterSpec { layers: vec![11], ..all() }), [3, 4]);
        let pattern = |p: &str| AdapterSpec { layers: vec![0], layers_pattern: vec![p.into()], ..all() };
        assert_eq!(choose(pattern("layers")), [1, 2]);
        assert!(try_choose(&pattern("h")).is_err());
        assert_eq!(choose(AdapterSpec { modules_to_save: vec!["mlp".into()], ..all() }), [1, 3, 4]);
        let both =
            AdapterSpec { modules_to_save: vec!["lm_head".into()], ..spec(names(&["lm_head", "q_proj"])) };
        assert!(error(both).contains("both adapted"));
    }

    #[test]
    fn patterns_take_the_first_key_that_matches_the_end() {
        let p = BTreeMap::from([("q_proj".to_string(), 4), (r"layers\.11\..*".to_string(), 8)]);
        assert_eq!(pattern(&p, PATHS[1]).unwrap(), Some(4));
        assert_eq!(pattern(&p, PATHS[4]).unwrap(), Some(8));
        assert_eq!(pattern(&p, PATHS[2]).unwrap(), None);
    }
}
