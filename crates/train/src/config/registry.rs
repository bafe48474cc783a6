//! What a key of the configuration is, and the macro that makes the registry, the fields of `RunConfig` and their defaults
//! out of one list (`keys.rs`).

use super::field::{Arity, Problem};
use super::keys::{KEYS, RunConfig};
use super::value::Value;

/// Whose meaning a key has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// transformers' `TrainingArguments`.
    HuggingFace,
    /// LLaMA-Factory's arguments.
    LlamaFactory,
    /// PEFT's `LoraConfig`.
    Peft,
    /// TRL's `SFTConfig`.
    Trl,
    /// AutoTrain's command line.
    AutoTrain,
    /// Axolotl's configuration.
    Axolotl,
    /// loratune's own.
    Loratune,
}

impl Source {
    /// The name for tables and messages.
    pub fn name(self) -> &'static str {
        match self {
            Source::HuggingFace => "Hugging Face",
            Source::LlamaFactory => "LLaMA-Factory",
            Source::Peft => "PEFT",
            Source::Trl => "TRL",
            Source::AutoTrain => "AutoTrain",
            Source::Axolotl => "Axolotl",
            Source::Loratune => "loratune",
        }
    }
}

/// A further condition on a key's value: the words for the message, and the test.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// Completes "expected a whole number, …".
    pub text: &'static str,
    /// Whether the value is good; absent values are not asked.
    pub ok: fn(&Value) -> bool,
}

/// One key of the configuration.
#[derive(Clone, Copy)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// Other spellings that mean the same.
    pub aliases: &'static [&'static str],
    /// Other spellings that still work and get a note.
    pub deprecated: &'static [&'static str],
    /// The heading it stands under.
    pub group: &'static str,
    /// One paragraph, without line breaks.
    pub doc: &'static str,
    /// Whose meaning it has.
    pub source: Source,
    /// Range beyond the type.
    pub rule: Option<Rule>,
    /// The default in words where it depends on other keys.
    pub default_words: Option<&'static str>,
    /// A line to show when this key is required and missing.
    pub required: Option<&'static str>,
    /// Spellings that mean different things in the peers, and which was taken: said when somebody uses them.
    pub differs: &'static [(&'static str, &'static str)],
    /// Whether `key=value` takes the value as text.
    pub is_text: bool,
    /// How many words follow the key's flag on a command line.
    pub arity: Arity,
    /// Whether the value must not be shown or written anywhere.
    pub is_secret: bool,
    /// What it expects, without the rule.
    pub expected: fn() -> String,
    /// The words that are good values, where there are few.
    pub choices: fn() -> Vec<&'static str>,
    /// Reads the value into the configuration.
    pub set: fn(&mut RunConfig, &Value) -> Result<(), Problem>,
    /// Back to the default.
    pub reset: fn(&mut RunConfig),
    /// The value as it stands in the configuration.
    pub get: fn(&RunConfig) -> Value,
}

impl Key {
    /// Type and range, for messages.
    pub fn expectation(&self) -> String {
        match self.rule {
            Some(rule) => format!("{}, {}", (self.expected)(), rule.text),
            None => (self.expected)(),
        }
    }

    /// All spellings, the name first.
    pub fn spellings(&self) -> impl Iterator<Item = &'static str> {
        [self.name].into_iter().chain(self.aliases.iter().copied()).chain(self.deprecated.iter().copied())
    }

    /// The key of that name or alias.
    pub fn find(name: &str) -> Option<&'static Key> {
        KEYS.iter().find(|key| key.spellings().any(|s| s == name))
    }
}

/// `or_none!(expr?)`: `Some(expr)` if the optional part was written.
macro_rules! or_none {
    () => {
        None
    };
    ($value:expr) => {
        Some($value)
    };
}

macro_rules! run_config {
    ($($group:literal { $(
        $(#[doc = $doc:literal])+
        $name:ident: $ty:ty = $default:expr, $source:ident
        $(, alias $alias:literal)* $(, deprecated $old:literal)* $(, rule $rule:expr)? $(, words $words:literal)?
        $(, required $required:literal)? $(, differs $spelling:literal $taken:literal)? ;
    )+ })+) => {
        /// A run's configuration with every value decided. Its fields are the keys of the file, documented there.
        #[derive(Debug, Clone, PartialEq)]
        pub struct RunConfig { $($(
            $(#[doc = $doc])+
            pub $name: $ty,
        )+)+ }

        impl Default for RunConfig {
            /// Every key at its default; `model_name_or_path`, `dataset` and `output_dir` are still empty.
            fn default() -> Self {
                RunConfig { $($($name: $default,)+)+ }
            }
        }

        /// Every key, in the order of the documentation and of `to_yaml`.
        pub static KEYS: &[Key] = &[ $($( Key {
            name: stringify!($name),
            aliases: &[$($alias),*],
            deprecated: &[$($old),*],
            group: $group,
            doc: concat!($($doc),+),
            source: Source::$source,
            rule: or_none!($($rule)?),
            default_words: or_none!($($words)?),
            required: or_none!($($required)?),
            differs: &[$(($spelling, $taken))?],
            is_text: <$ty as Field>::TEXT,
            arity: <$ty as Field>::ARITY,
            is_secret: <$ty as Field>::SECRET,
            expected: <$ty as Field>::expected,
            choices: <$ty as Field>::choices,
            set: |config, value| {
                config.$name = <$ty as Field>::parse(value)?;
                Ok(())
            },
            reset: |config| config.$name = $default,
            get: |config| config.$name.to_value(),
        }, )+)+ ];
    };
}

pub(super) use {or_none, run_config};
