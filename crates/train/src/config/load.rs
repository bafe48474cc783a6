//! From text to a checked [`Loaded`]: parsing, aliases, overrides, unknown keys.

use std::path::Path;

use super::elsewhere::{self, Answer};
use super::error::{ConfigError, Origin, meant};
use super::field::{Field, Problem};
use super::keys::{KEYS, RunConfig};
use super::registry::Key;
use super::secret::hidden;
use super::value::Value;
use super::words::{self, Written};
use super::{Loaded, Origins, autotrain, file, nearest};

impl RunConfig {
    /// Reads `path` (JSON if it ends in `.json`, else YAML), applies the settings after it in order (`key=value`, or flags as
    /// Hugging Face's parser takes them) and checks the whole.
    ///
    /// # Errors
    /// The first thing wrong, with file and line; see [`ConfigError`].
    pub fn load(path: &Path, settings: &[String]) -> Result<Loaded, ConfigError> {
        Self::from_text(&file::read_text(path)?, &path.display().to_string(), settings)
    }

    /// As [`RunConfig::load`], for text that is already here; `file` is its name in messages.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn from_text(text: &str, file: &str, settings: &[String]) -> Result<Loaded, ConfigError> {
        let mut builder = Builder::default();
        builder.apply(file::read(text, file)?)?;
        builder.finish(file, words::read(settings)?)
    }

    /// A configuration from a command line: its file, if the first word is none of the settings, and the settings.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn from_words(words: &[String]) -> Result<Loaded, ConfigError> {
        Self::build_from_words(Builder::default(), words)
    }

    fn build_from_words(mut builder: Builder, words: &[String]) -> Result<Loaded, ConfigError> {
        // A file whose name has a `=` in it counts.
        let is_file =
            |word: &&String| !word.starts_with('-') && (!word.contains('=') || Path::new(word).is_file());
        match words.first().filter(is_file) {
            Some(path) => {
                builder.apply(file::read(&file::read_text(Path::new(path))?, path)?)?;
                builder.finish(path, words::read(&words[1..])?)
            }
            None => builder.finish("the configuration", words::read(words)?),
        }
    }

    /// As [`RunConfig::from_words`], for a purpose that can do without some of the keys that a run needs: where these are not
    /// set, they are as `without` says, and have no origin.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn from_words_without(
        words: &[String],
        without: &[(&'static str, &str)],
    ) -> Result<Loaded, ConfigError> {
        let mut builder = Builder::default();
        for (name, value) in without {
            builder.set_quietly(name, value);
        }
        Self::build_from_words(builder, words)
    }

    /// A configuration from the words after `autotrain llm`, in AutoTrain's names and with its defaults; names that it does
    /// not have are read as everywhere else.
    ///
    /// # Errors
    /// As [`RunConfig::load`].
    pub fn from_autotrain(words: &[String]) -> Result<Loaded, ConfigError> {
        let line = autotrain::read(words)?;
        let mut builder = Builder { notes: line.notes, dialect: autotrain::names, ..Builder::default() };
        builder.apply(line.presets)?;
        builder.finish("the command line", line.settings)
    }
}

/// What the commands take beside keys.
pub(super) fn options() -> Vec<&'static str> {
    vec!["print_config", "dry_run", "json", "quiet"]
}

struct Builder {
    config: RunConfig,
    origins: Origins,
    notes: Vec<String>,
    /// Of spellings that mean different things in the peers, by key: which was taken.
    taken: Vec<(&'static str, String)>,
    /// Names that the front end knows besides the keys, to suggest.
    dialect: fn() -> Vec<&'static str>,
}

impl Default for Builder {
    fn default() -> Self {
        let config = RunConfig::default();
        Builder { config, origins: Origins::new(), notes: Vec::new(), taken: Vec::new(), dialect: options }
    }
}

impl Builder {
    fn finish(mut self, file: &str, settings: Vec<Written>) -> Result<Loaded, ConfigError> {
        // One at a time: a later setting replaces an earlier one instead of clashing with it.
        for written in settings {
            self.apply(vec![written])?;
        }
        let mut loaded = Loaded { config: self.config, origins: self.origins, notes: self.notes };
        loaded.resolve_and_check(file)?;
        // Not of what has no effect anyway.
        let unused = |key: &str| loaded.notes.iter().any(|n| n.contains(&format!("`{key}` is not used")));
        let taken = self.taken.into_iter().filter(|(key, _)| !unused(key)).map(|(_, note)| note);
        let taken: Vec<String> = taken.collect();
        loaded.notes.extend(taken);
        Ok(loaded)
    }

    /// Sets the keys of one source, in which no setting may stand twice.
    fn apply(&mut self, written: Vec<Written>) -> Result<(), ConfigError> {
        let mut spelt: Vec<(&'static str, String, Origin)> = Vec::new();
        for Written { key: spelling, value, origin } in written {
            let Some(key) = Key::find(&spelling) else {
                match foreign(&spelling, &value, &origin, self.dialect)? {
                    Foreign::Nothing => {}
                    Foreign::Note(note) => self.notes.push(note),
                    Foreign::Means(switch, on) => {
                        let key = Key::find(switch).ok_or_else(|| ConfigError::UnknownKey {
                            key: switch.to_string(),
                            origin: origin.clone(),
                            suggestion: None,
                        })?;
                        self.set(key, &spelling, &Value::Bool(on), &origin)?;
                    }
                }
                continue;
            };
            if let Some((_, first, first_origin)) = spelt.iter().find(|(name, ..)| *name == key.name) {
                return Err(ConfigError::Twice {
                    first: format!("`{first}` ({first_origin})"),
                    second: format!("`{spelling}` ({origin})"),
                });
            }
            if key.deprecated.contains(&spelling.as_str()) {
                self.notes.push(format!("{origin}: `{spelling}` is the old spelling of `{}`", key.name));
            }
            self.set(key, &spelling, &value, &origin)?;
            let differs = key.differs.iter().find(|(s, _)| *s == spelling && !elsewhere::is_off(&value));
            if let (Some((name, taken)), true) = (differs, origin.is_explicit()) {
                self.taken.push((key.name, format!("{origin}: `{name}`: {taken}")));
            }
            spelt.push((key.name, spelling, origin));
        }
        Ok(())
    }

    /// Sets a key to what stands in for a value that nobody gave.
    fn set_quietly(&mut self, name: &str, value: &str) {
        if let Some(key) = Key::find(name) {
            // A value that can't be leaves the key as it is, and the check of required keys says so.
            let _ = (key.set)(&mut self.config, &Value::Str(value.into()));
        }
    }

    fn set(
        &mut self,
        key: &'static Key,
        spelling: &str,
        value: &Value,
        origin: &Origin,
    ) -> Result<(), ConfigError> {
        if *value == Value::Null {
            // "Not set", also where an override takes back what the file says.
            (key.reset)(&mut self.config);
            self.origins.remove(key.name);
            return Ok(());
        }
        let name = spelling.to_string();
        (key.set)(&mut self.config, value).map_err(|problem| match problem {
            Problem::Type => bad_value(key, name.clone(), value, origin),
            Problem::Refused(reason) => ConfigError::Refused {
                key: name.clone(),
                value: shown(key, value),
                origin: origin.clone(),
                reason,
            },
        })?;
        let now = (key.get)(&self.config);
        if key.rule.is_some_and(|rule| now != Value::Null && !(rule.ok)(&now)) {
            return Err(bad_value(key, name, value, origin));
        }
        self.origins.insert(key.name, origin.clone());
        Ok(())
    }
}

/// A value for a message.
fn shown(key: &Key, value: &Value) -> String {
    if key.is_secret { "…".into() } else { hidden(&value.to_yaml()) }
}

fn bad_value(key: &Key, spelling: String, value: &Value, origin: &Origin) -> ConfigError {
    ConfigError::BadValue {
        key: spelling,
        value: shown(key, value),
        origin: origin.clone(),
        expected: key.expectation() + &misspelt(value, &(key.choices)()).unwrap_or_default(),
    }
}

/// What a word that is none of `choices` was probably meant to be; of a list the first such word counts.
fn misspelt(value: &Value, choices: &[&'static str]) -> Option<String> {
    match value {
        Value::Str(text) => {
            text.split(',').map(str::trim).find(|w| !choices.contains(w)).map(|word| meant(word, choices))
        }
        Value::List(items) => items.iter().find_map(|item| misspelt(item, choices)),
        _ => None,
    }
}

/// What a key says that is not in the registry.
enum Foreign {
    Nothing,
    Note(String),
    /// Another way to write that switch.
    Means(&'static str, bool),
}

/// Judges a key that is not in the registry.
fn foreign(
    name: &str,
    value: &Value,
    origin: &Origin,
    dialect: fn() -> Vec<&'static str>,
) -> Result<Foreign, ConfigError> {
    let Some(key) = elsewhere::find(name) else {
        let here = dialect().into_iter().chain(KEYS.iter().flat_map(Key::spellings));
        let known = here.chain(elsewhere::all().map(|key| key.name));
        let suggestion = nearest(name, known);
        return Err(match origin {
            Origin::Flag(typed) => {
                // In the way that the person writes: with dashes if there are some.
                let flag = typed.split(' ').next().unwrap_or_default().to_string();
                let dashes = flag.trim_start_matches('-').contains('-');
                let spell = |name: &str| if dashes { name.replace('_', "-") } else { name.to_string() };
                ConfigError::UnknownFlag { flag, suggestion: suggestion.map(spell) }
            }
            _ => ConfigError::UnknownKey { key: name.to_string(), origin: origin.clone(), suggestion },
        });
    };
    let advice = match key.answer {
        Answer::Needless(_) | Answer::NotYet | Answer::Lacking(_) | Answer::Never(_) | Answer::Use(_)
            if elsewhere::is_off(value) =>
        {
            return Ok(Foreign::Nothing);
        }
        Answer::Needless(why) => {
            return Ok(Foreign::Note(format!("{origin}: `{name}` changes nothing here: {why}")));
        }
        Answer::Sets(switch) => match bool::parse(value) {
            Ok(true) => return Ok(Foreign::Means(switch, true)),
            _ if elsewhere::is_off(value) => return Ok(Foreign::Nothing),
            _ => "it is true or false".to_string(),
        },
        Answer::Inverse(switch) => match bool::parse(value) {
            Ok(on) => return Ok(Foreign::Means(switch, !on)),
            _ if elsewhere::is_off(value) => return Ok(Foreign::Nothing),
            _ => "it is true or false".to_string(),
        },
        Answer::Only(values, _)
            if *value == Value::Null || values.contains(&value.to_yaml().trim_matches('"')) =>
        {
            return Ok(Foreign::Nothing);
        }
        Answer::Only(values, why) => format!("here it is always `{}`: {why}", values.join("` or `")),
        Answer::NotYet => "loratune does not have it yet; remove it".to_string(),
        Answer::Lacking(why) => format!("loratune does not have it: {why}"),
        Answer::Never(why) => format!("it has no place here: {why}"),
        Answer::Use(name) => format!("in loratune the key is `{name}`"),
    };
    Err(ConfigError::NotHere { key: key.name, owner: key.owner, origin: origin.clone(), advice })
}
