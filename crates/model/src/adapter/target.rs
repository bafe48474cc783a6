//! Choosing modules by name, as PEFT does (`tuners_utils.check_target_module_exists`).

use std::collections::{BTreeMap, BTreeSet};

use fancy_regex::Regex;

use crate::error::{Error, Result};

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
    fn contains(&self, path: &str) -> Result<bool> {
        match self {
            Targets::AllLinear => Ok(true),
            Targets::Names(names) => Ok(names.iter().any(|n| ends_with(path, n))),
            Targets::Regex(r) => matches(&regex(&format!("^(?:{r})$"), "target_modules")?, path),
        }
    }

    /// The chosen ones of `paths`, in their order.
    ///
    /// # Errors
    /// If a name, or the whole choice, matches nothing; the error lists what there is.
    pub fn choose(&self, paths: &[&str], exclude: Option<&Targets>, layers: &[usize]) -> Result<Vec<usize>> {
        let mut chosen = Vec::new();
        for (i, path) in paths.iter().enumerate() {
            let excluded = match exclude {
                Some(e) => e.contains(path)?,
                None => false,
            };
            let in_layer = layers.is_empty() || layer_index(path).is_some_and(|l| layers.contains(&l));
            if !excluded && in_layer && self.contains(path)? {
                chosen.push(i);
            }
        }
        let names = all_linear_names(paths);
        if let Targets::Names(wanted) = self {
            for name in wanted {
                if !paths.iter().any(|p| ends_with(p, name)) {
                    return Err(unknown(name, &names));
                }
            }
        }
        if chosen.is_empty() {
            return Err(Error::Invalid(format!(
                "the adapter's target '{self}' matches no linear layer of the model; its layers are {}",
                names.join(", ")
            )));
        }
        Ok(chosen)
    }
}

fn unknown(name: &str, names: &[String]) -> Error {
    let nearest = names
        .iter()
        .map(|n| (strsim::jaro_winkler(name, n), n))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(score, _)| *score > 0.7)
        .map_or(String::new(), |(_, n)| format!("; did you mean '{n}'?"));
    let head = if ends_with("lm_head", name) || ends_with("model.embed_tokens", name) {
        " (adapters on the embedding and on the head are not there yet)"
    } else {
        ""
    };
    Error::Invalid(format!(
        "the adapter's target '{name}' is no linear layer of the model{head}{nearest} The model has {}",
        names.join(", ")
    ))
}

/// The last path components of the model's linear layers: what `all-linear` stands for.
pub fn all_linear_names(paths: &[&str]) -> Vec<String> {
    let set: BTreeSet<&str> = paths.iter().map(|p| p.rsplit('.').next().unwrap_or(p)).collect();
    set.into_iter().map(str::to_string).collect()
}

/// The first number in a path, as PEFT's default `layers_pattern` finds it.
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

    const PATHS: [&str; 4] = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.11.self_attn.q_proj",
        "model.layers.11.self_attn.v_proj",
    ];

    fn choose(t: Targets) -> Vec<usize> {
        t.choose(&PATHS, None, &[]).unwrap()
    }

    #[test]
    fn names_match_whole_components_from_the_end() {
        let names = |n: &[&str]| Targets::Names(n.iter().map(|s| s.to_string()).collect());
        assert_eq!(choose(names(&["q_proj"])), [0, 2]);
        assert_eq!(choose(names(&["self_attn.v_proj", "model.layers.0.mlp.up_proj"])), [1, 3]);
        let error = names(&["proj"]).choose(&PATHS, None, &[]).unwrap_err().to_string();
        assert!(
            error.contains("'proj' is no linear layer") && error.contains("q_proj, up_proj, v_proj"),
            "{error}"
        );
        let error = names(&["q_porj"]).choose(&PATHS, None, &[]).unwrap_err().to_string();
        assert!(error.contains("did you mean 'q_proj'?"), "{error}");
    }

    #[test]
    fn regexes_match_the_whole_path() {
        assert_eq!(choose(Targets::Regex(r".*\.(q|v)_proj".into())), [0, 2, 3]);
        assert_eq!(choose(Targets::Regex(r".*layers\.(?!0\.).*".into())), [2, 3]);
        assert!(Targets::Regex("q_proj".into()).choose(&PATHS, None, &[]).is_err());
    }

    #[test]
    fn exclusion_and_layers_narrow_the_choice() {
        let exclude = Targets::Names(vec!["q_proj".into()]);
        assert_eq!(Targets::AllLinear.choose(&PATHS, Some(&exclude), &[]).unwrap(), [1, 3]);
        assert_eq!(Targets::AllLinear.choose(&PATHS, None, &[11]).unwrap(), [2, 3]);
    }

    #[test]
    fn patterns_take_the_first_key_that_matches_the_end() {
        let p = BTreeMap::from([("q_proj".to_string(), 4), (r"layers\.11\..*".to_string(), 8)]);
        assert_eq!(pattern(&p, PATHS[0]).unwrap(), Some(4));
        assert_eq!(pattern(&p, PATHS[3]).unwrap(), Some(8));
        assert_eq!(pattern(&p, PATHS[1]).unwrap(), None);
    }
}
