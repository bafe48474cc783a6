//! Which template a run uses: the `template` key.

use std::fmt::Write;
use std::path::Path;

use super::{CONTENT, ChatTemplate, JinjaTemplate, NamedTemplate, Piece, TurnTemplate};
use crate::error::{DataError, Result, nearest};
use crate::text::Text;

/// The template of models that have none, in Jinja and thus tokenised as one text.
const PLAIN: (&str, &str) = ("plain", include_str!("plain.jinja"));

/// All names that `template` takes, in order.
pub fn template_names() -> Vec<&'static str> {
    let mut names: Vec<&str> = NamedTemplate::all().iter().map(|t| t.name).collect();
    names.push(PLAIN.0);
    names.sort_unstable();
    names
}

/// The table of templates for documentation: the name and what stands around the user's content.
pub fn template_table() -> String {
    let mut out = String::new();
    for name in template_names() {
        let about = NamedTemplate::find(name).map_or_else(
            || {
                "prompt and response one after the other as one text, the end token after each response"
                    .into()
            },
            |t| shape(t.prefix) + &shape(t.user) + &shape(t.assistant),
        );
        let _ = writeln!(out, "{name:16} {about}");
    }
    out
}

/// A turn on one line: `…` for the content, `↵` for line breaks, `⟨bos⟩` and `⟨eos⟩` for the tokenizer's own tokens.
fn shape(pieces: &[Piece]) -> String {
    let one = |piece: &Piece| match piece {
        Piece::Text(text) => text.replace(CONTENT, "…").replace('\n', "↵"),
        Piece::Token(token) => (*token).to_string(),
        Piece::Bos => "⟨bos⟩".into(),
        Piece::Eos => "⟨eos⟩".into(),
    };
    pieces.iter().map(one).collect()
}

/// Where a run's template comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TemplateChoice {
    /// The model's own, or `plain` when it has none.
    Model,
    /// One of [`template_names`], or the path of a `.jinja` file.
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

    /// Finds the template and makes it ready for a tokenizer. `now` is what templates print as the date, in seconds since
    /// 1970 (UTC); `None` = the clock.
    ///
    /// # Errors
    /// An unknown name (with the nearest right one), a file that cannot be read, a template that does not compile or that
    /// needs tokens which the tokenizer lacks.
    pub fn load(&self, text: &dyn Text, now: Option<u64>) -> Result<ChatTemplate> {
        let own = match self {
            Self::Model => text.chat_template(),
            Self::Named(_) => None,
        };
        let (name, source) = match (self, own) {
            (_, Some(source)) => ("the model's own", source.to_string()),
            (Self::Model, None) => (PLAIN.0, PLAIN.1.to_string()),
            (Self::Named(name), _) if name == PLAIN.0 => (PLAIN.0, PLAIN.1.to_string()),
            (Self::Named(name), _) => match NamedTemplate::find(name) {
                Some(named) => {
                    return Ok(ChatTemplate::Turns(Box::new(TurnTemplate::new(named, text, now)?)));
                }
                None => (name.as_str(), read_file(name)?),
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
        let template = JinjaTemplate::new(name, &source, variables, now).map_err(DataError::Template)?;
        Ok(ChatTemplate::Jinja(Box::new(template)))
    }
}

fn read_file(name: &str) -> Result<String> {
    let path = Path::new(name);
    let is_file = path.is_file();
    let jinja = path.extension().is_some_and(|e| e == "jinja" || e == "jinja2" || e == "j2");
    if is_file && jinja {
        return std::fs::read_to_string(path).map_err(|source| DataError::Io { path: name.into(), source });
    }
    let names = template_names();
    let near = nearest(name, names.iter().copied());
    let hint = match near {
        _ if is_file => "; a template file should end in .jinja".to_string(),
        _ if jinja => "; there is no file of that name".to_string(),
        Some(near) => format!("; did you mean `{near}`?"),
        None if path.extension().is_some() => "; there is no file of that name".to_string(),
        None => String::new(),
    };
    Err(DataError::UnknownTemplate { name: name.into(), hint, known: names.join(", ") })
}
