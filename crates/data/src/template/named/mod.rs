//! Templates by name, as data: the turns of LLaMA-Factory 0.9.5's templates for text, and of 0.7's `default`.
//!
//! A turn is a list of [`Piece`]s. The markers and the system texts are those that the models were trained with; the
//! goldens in `tests/goldens/turns.json` compare every template with LLaMA-Factory's, token by token. A new template is
//! an entry in one of the tables here.

mod chatml;
mod tokens;
mod words;

pub use super::turns::ToolFormat;

/// Stands for the content in a [`Piece::Text`]; at most once in a turn.
pub const CONTENT: &str = "{{content}}";

/// A part of a turn. Each is tokenised by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Text, with [`CONTENT`] for the message's.
    Text(&'static str),
    /// The tokenizer's begin token; nothing when it has none.
    Bos,
    /// The tokenizer's end token.
    Eos,
    /// A token of the vocabulary by its spelling.
    Token(&'static str),
}

/// What a template does with responses that do not think.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reasoning {
    /// Nothing: it is not for models that think.
    None,
    /// They get an empty thought: both of [`NamedTemplate::thought`].
    Pair,
    /// They get the closing mark alone.
    Closing,
}

/// A chat template as turns; what a template leaves out is as in a template without markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamedTemplate {
    /// The name to give as `template`.
    pub name: &'static str,
    /// Before everything.
    pub prefix: &'static [Piece],
    /// The system text with the tools' description, if there is either.
    pub system: &'static [Piece],
    /// What the user says, up to where the response begins.
    pub user: &'static [Piece],
    /// A response; all of it is trained.
    pub assistant: &'static [Piece],
    /// Results of tools; `None` = as `user`.
    pub observation: Option<&'static [Piece]>,
    /// A response that calls tools; `None` = as `assistant`.
    pub function: Option<&'static [Piece]>,
    /// Before each of the user's turns but the first.
    pub separator: &'static [Piece],
    /// How tools are described and called.
    pub tools: ToolFormat,
    /// The system text of conversations without one; may be empty.
    pub default_system: &'static str,
    /// Tokens that end a response, besides EOS.
    pub stop_words: &'static [&'static str],
    /// The marks around a thought.
    pub thought: (&'static str, &'static str),
    /// A response's EOS is trained where the next turn begins, and one EOS ends the whole.
    pub efficient_eos: bool,
    /// The first of `stop_words` takes the place of EOS.
    pub replace_eos: bool,
    /// The system text is part of the first user turn's content.
    pub system_in_user: bool,
    /// Thinking.
    pub reasoning: Reasoning,
}

/// No markers, EOS after each response.
const BASE: NamedTemplate = NamedTemplate {
    name: "",
    prefix: &[],
    system: &[Piece::Text(CONTENT)],
    user: &[Piece::Text(CONTENT)],
    assistant: &[Piece::Text(CONTENT), Piece::Eos],
    observation: None,
    function: None,
    separator: &[],
    tools: ToolFormat::Action,
    default_system: "",
    stop_words: &[],
    thought: ("<think>\n", "\n</think>\n\n"),
    efficient_eos: false,
    replace_eos: false,
    system_in_user: false,
    reasoning: Reasoning::None,
};

impl NamedTemplate {
    /// All of them, by name.
    pub fn all() -> Vec<&'static Self> {
        let mut all: Vec<&Self> =
            [words::TEMPLATES, chatml::TEMPLATES, tokens::TEMPLATES].into_iter().flatten().collect();
        all.sort_by_key(|t| t.name);
        all
    }

    /// By its name.
    pub fn find(name: &str) -> Option<&'static Self> {
        [words::TEMPLATES, chatml::TEMPLATES, tokens::TEMPLATES]
            .into_iter()
            .flatten()
            .find(|t| t.name == name)
    }

    /// The pieces of all turns.
    pub(super) fn pieces(&self) -> impl Iterator<Item = Piece> {
        let turns = [
            self.prefix,
            self.system,
            self.user,
            self.assistant,
            self.separator,
            self.observation.unwrap_or_default(),
            self.function.unwrap_or_default(),
        ];
        turns.into_iter().flatten().copied()
    }
}
