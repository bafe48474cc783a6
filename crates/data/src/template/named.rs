//! Templates by name: the `template` key of a run. A new one is a file in `named/` and a line in [`NAMED`].

use std::fmt::Write;
use std::path::Path;

use super::ChatTemplate;
use crate::error::{DataError, Result, nearest};
use crate::text::Text;

/// A template that comes with the tool. All of them mark their responses by `{% generation %}`.
#[derive(Debug)]
pub struct NamedTemplate {
    /// The name to give as `template`.
    pub name: &'static str,
    /// One line for `--help` and README.
    pub about: &'static str,
    /// Jinja source.
    pub source: &'static str,
}

/// All templates by name.
pub const NAMED: &[NamedTemplate] = &[
    NamedTemplate {
        name: "alpaca",
        about: "### Instruction: … ### Response: …, with Stanford Alpaca's opening sentence",
        source: include_str!("named/alpaca.jinja"),
    },
    NamedTemplate {
        name: "chatml",
        about: "<|im_start|>role … <|im_end|>",
        source: include_str!("named/chatml.jinja"),
    },
    NamedTemplate {
        name: "default",
        about: "Human: … Assistant: …, as LLaMA-Factory 0.9.5's template of that name",
        source: include_str!("named/default.jinja"),
    },
    NamedTemplate {
        name: "empty",
        about: "prompt and response one after the other, the end token after each response",
        source: include_str!("named/empty.jinja"),
    },
];

/// The table of templates for `--help` and README.
pub fn template_table() -> String {
    let mut out = String::new();
    for t in NAMED {
        let _ = writeln!(out, "{:8}  {}", t.name, t.about);
    }
    out
}

/// Where a run's template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateChoice {
    /// The model's own, or `empty` when it has none.
    Model,
    /// One of [`NAMED`], or the path of a `.jinja` file.
    Named(String),
}

impl TemplateChoice {
    /// `None`, an empty string and `model` choose the model's own.
    pub fn parse(name: Option<&str>) -> Self {
        match name.map(str::trim) {
            None | Some("" | "model") => Self::Model,
            Some(name) => Self::Named(name.to_string()),
        }
    }

    /// Finds and compiles the template.
    ///
    /// # Errors
    /// An unknown name (with the nearest right one), a file that cannot be read, a template that does not compile.
    pub fn load(&self, text: &dyn Text, now: Option<u64>) -> Result<ChatTemplate> {
        let (name, source) = match self {
            Self::Model => match text.chat_template() {
                Some(source) => ("the model's own".to_string(), source.to_string()),
                None => ("empty".to_string(), source_of("empty").unwrap_or_default().to_string()),
            },
            Self::Named(name) => match source_of(name) {
                Some(source) => (name.clone(), source.to_string()),
                None => (name.clone(), read_file(name)?),
            },
        };
        let mut variables = Vec::new();
        let specials = [
            ("bos_token", text.bos()),
            ("eos_token", text.eos()),
            ("pad_token", text.pad()),
            ("unk_token", text.unk()),
        ];
        for (variable, special) in specials {
            if let Some(special) = special {
                variables.push((variable.to_string(), special.content));
            }
        }
        ChatTemplate::new(&name, &source, variables, now).map_err(DataError::Template)
    }
}

fn source_of(name: &str) -> Option<&'static str> {
    NAMED.iter().find(|t| t.name == name).map(|t| t.source)
}

fn read_file(name: &str) -> Result<String> {
    let path = Path::new(name);
    let is_file = path.is_file();
    if is_file && path.extension().is_some_and(|e| e == "jinja" || e == "jinja2" || e == "j2") {
        return std::fs::read_to_string(path).map_err(|source| DataError::Io { path: name.into(), source });
    }
    let hint = match nearest(name, NAMED.iter().map(|t| t.name)) {
        _ if is_file => "; a template file should end in .jinja".to_string(),
        _ if path.extension().is_some() => "; there is no file of that name".to_string(),
        Some(near) => format!("; did you mean `{near}`?"),
        None => String::new(),
    };
    let known = NAMED.iter().map(|t| t.name).collect::<Vec<_>>().join(", ");
    Err(DataError::UnknownTemplate { name: name.into(), hint, known })
}
