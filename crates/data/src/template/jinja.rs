//! A compiled Jinja template.

use std::collections::BTreeMap;
use std::ops::Range;

use minijinja::{Environment, Value};

use super::{RenderInput, TemplateError, generation, python, value};

/// Work that one rendering may do; a template in an endless loop ends with an error instead of hanging. A conversation
/// of ten thousand messages needs about a million.
const FUEL: u64 = 20_000_000;

/// A compiled chat template; shared between threads.
#[derive(Debug)]
pub struct JinjaTemplate {
    name: String,
    source: String,
    environment: Environment<'static>,
    has_generation: bool,
    /// Whether it tells a content of null from an empty one.
    asks_null: bool,
    variables: BTreeMap<String, Value>,
}

impl JinjaTemplate {
    /// Compiles a template. `variables` are always defined (`bos_token`, `eos_token`, …). `now` is what `strftime_now`
    /// prints, in seconds since 1970 (UTC); fixing it keeps a resumed run's tokens the same as the day before's.
    ///
    /// # Errors
    /// When the source is no valid template.
    pub fn new(
        name: &str,
        source: &str,
        variables: impl IntoIterator<Item = (String, String)>,
        now: Option<u64>,
    ) -> Result<Self, TemplateError> {
        // Jinja reads every kind of line break as "\n".
        let source = source.replace("\r\n", "\n").replace('\r', "\n");
        let (source, has_generation) = generation::replace_tags(&source);
        let asks_null = value::asks_for_null(&source);
        let mut environment = python::environment(now);
        environment.set_fuel(Some(FUEL));
        environment.add_template_owned("chat", source.clone()).map_err(|e| TemplateError {
            template: name.into(),
            line: e.line(),
            message: message_of(&e),
        })?;
        let variables = variables.into_iter().map(|(k, v)| (k, Value::from(v))).collect();
        Ok(Self { name: name.into(), source, environment, has_generation, asks_null, variables })
    }

    /// Its name in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Everything that decides what it renders, but the conversation and the clock.
    pub(super) fn identity(&self) -> String {
        format!("{}{:?}", self.source, self.variables)
    }

    /// The parts of the date that it prints, as seconds since 1970 that are the same while they are.
    pub(super) fn date(&self, now: u64) -> Option<u64> {
        const DAY: u64 = 86_400;
        // What tells the time of day: `%H` and its like, in any of the formats that it names.
        let asks_time = |format: &str| {
            let mut rest = format.split('%').skip(1).map(|r| r.trim_start_matches('-'));
            rest.any(|r| r.starts_with(['H', 'I', 'M', 'S', 'p', 'c', 'X', 'T', 's', 'f', 'R', 'r']))
        };
        let mut calls = self.source.split("strftime_now").skip(1).peekable();
        calls.peek()?;
        let literal = |after: &str| {
            let quoted = after.strip_prefix('(').map(str::trim_start)?;
            let quote = quoted.chars().next().filter(|c| ['"', '\''].contains(c))?;
            quoted[1..].split(quote).next().map(str::to_string)
        };
        // `strftime_now is defined` asks nothing; a format that is no literal may ask for anything.
        let by_day = calls.all(|after| match literal(after) {
            Some(format) => !asks_time(&format),
            None => !after.starts_with('('),
        });
        Some(if by_day { now / DAY * DAY } else { now })
    }

    /// Whether it marks the responses itself, by `{% generation %}`.
    pub fn has_generation(&self) -> bool {
        self.has_generation
    }

    /// Renders a conversation.
    ///
    /// # Errors
    /// The template's own message when it raises, otherwise the engine's, with the line.
    pub fn render(&self, input: RenderInput<'_>) -> Result<String, TemplateError> {
        self.render_with(input, None)
    }

    /// Renders a conversation and gives the byte spans of its `{% generation %}` blocks. `marks` are two characters that
    /// do not occur in the conversation; they are removed from the text.
    pub(crate) fn render_generation(
        &self,
        input: RenderInput<'_>,
        marks: (char, char),
    ) -> Result<(String, Vec<Range<usize>>), TemplateError> {
        let marked = self.render_with(input, Some(marks))?;
        generation::split_marks(&marked, marks).ok_or_else(|| TemplateError {
            template: self.name.clone(),
            line: None,
            message: "its generation blocks are cut apart by what the template does with them".into(),
        })
    }

    fn render_with(
        &self,
        input: RenderInput<'_>,
        marks: Option<(char, char)>,
    ) -> Result<String, TemplateError> {
        let mut context: BTreeMap<&str, Value> =
            self.variables.iter().map(|(k, v)| (k.as_str(), v.clone())).collect();
        context.insert("messages", value::of_messages(input.messages, self.asks_null));
        context.insert("tools", input.tools.map_or_else(|| Value::from(()), value::of_json));
        context.insert("documents", Value::from(()));
        context.insert("add_generation_prompt", Value::from(input.add_generation_prompt));
        for (key, value) in input.variables.into_iter().flatten() {
            context.insert(key, value::of_json(value));
        }
        if let Some((open, close)) = marks {
            context.insert(generation::OPEN, Value::from(open.to_string()));
            context.insert(generation::CLOSE, Value::from(close.to_string()));
        }
        let result = self.environment.get_template("chat").and_then(|t| t.render(Value::from_pairs(context)));
        result.map_err(|e| TemplateError {
            template: self.name.clone(),
            line: e.line(),
            message: message_of(&e),
        })
    }
}

/// The innermost message: what `raise_exception` was given, or the engine's own words.
fn message_of(error: &minijinja::Error) -> String {
    let mut source: Option<&dyn std::error::Error> = Some(error);
    let mut last = error;
    while let Some(e) = source {
        if let Some(inner) = e.downcast_ref::<minijinja::Error>() {
            last = inner;
        }
        source = e.source();
    }
    match last.detail().and_then(|d| d.strip_prefix(python::RAISED)) {
        Some(raised) => format!("the template refuses: {raised}"),
        None => match last.detail() {
            Some(detail) => format!("{}: {detail}", last.kind()),
            None => last.kind().to_string(),
        },
    }
}
