//! The pieces of each turn with their contents, and what becomes of thoughts.

use serde_json::{Map, Value};

use super::TurnTemplate;
use super::align::{Role, Turn};
use crate::template::named::{CONTENT, Piece, Reasoning};
use crate::text::Special;

/// A part of a turn to be tokenised by itself.
#[derive(Debug, Clone)]
pub(super) enum Element {
    Text(String),
    Special(Special),
}

/// One turn.
#[derive(Debug, Clone)]
pub(super) struct MessageElements {
    pub elements: Vec<Element>,
    pub is_response: bool,
    /// Index of its (first) message.
    pub index: usize,
}

/// What a run wants of thoughts: `enable_thinking` and `preserve_thinking`, with LLaMA-Factory's meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Thinking {
    /// `true`: the empty thought of a response without one is trained. `None`: it is part of the prompt. `false`: the same,
    /// and thoughts that there are are taken out.
    enabled: Option<bool>,
    /// Keep the thoughts of earlier responses in prompts and with `mask_history`.
    preserve: bool,
}

impl Thinking {
    /// From variables; later ones win.
    pub fn of(variables: &[Option<&Map<String, Value>>]) -> Self {
        let get = |name: &str| variables.iter().rev().find_map(|v| v.as_ref()?.get(name));
        let enabled = match get("enable_thinking") {
            None => Some(true),
            Some(value) => value.as_bool(),
        };
        Self { enabled, preserve: get("preserve_thinking").and_then(Value::as_bool).unwrap_or(false) }
    }

    fn empty_is_trained(self) -> bool {
        self.enabled == Some(true)
    }
}

/// A turn and an empty thought next to it.
pub(super) struct ThoughtTurn {
    turn: Turn,
    before: bool,
    after: bool,
}

impl From<Turn> for ThoughtTurn {
    fn from(turn: Turn) -> Self {
        Self { turn, before: false, after: false }
    }
}

impl TurnTemplate {
    /// Sees to the thoughts of a conversation to train on.
    pub(super) fn think(
        &self,
        mut turns: Vec<Turn>,
        thinking: Thinking,
        last_only: bool,
    ) -> Vec<ThoughtTurn> {
        if self.named().reasoning == Reasoning::None {
            return turns.into_iter().map(ThoughtTurn::from).collect();
        }
        let last = (turns.len() / 2 * 2).saturating_sub(1);
        let last_only = last_only && !thinking.preserve;
        for (i, turn) in turns.iter_mut().enumerate().filter(|(_, t)| t.role.is_response()) {
            self.write_reasoning(turn);
            if thinking.enabled == Some(false) || (last_only && i < last) {
                turn.content = self.without_thought(&turn.content);
            }
        }
        let thoughtless: Vec<bool> = turns
            .iter()
            .enumerate()
            .map(|(i, t)| t.role.is_response() && !self.thinks(&t.content) && (!last_only || i == last))
            .collect();
        let trained = thinking.empty_is_trained();
        let mut out: Vec<ThoughtTurn> = turns.into_iter().map(ThoughtTurn::from).collect();
        for i in (1..out.len()).filter(|&i| thoughtless[i]) {
            if trained {
                out[i].before = true;
            } else {
                out[i - 1].after = true;
            }
        }
        out
    }

    /// Sees to the thoughts of a prompt.
    pub(super) fn think_in_prompt(&self, mut turns: Vec<Turn>, thinking: Thinking) -> Vec<ThoughtTurn> {
        let reasons = self.named().reasoning != Reasoning::None;
        for turn in turns.iter_mut().filter(|t| reasons && t.role.is_response()) {
            self.write_reasoning(turn);
            if !thinking.preserve {
                turn.content = self.without_thought(&turn.content);
            }
        }
        let mut out: Vec<ThoughtTurn> = turns.into_iter().map(ThoughtTurn::from).collect();
        if let Some(last) = out.last_mut() {
            last.after = reasons && !thinking.empty_is_trained();
        }
        out
    }

    /// A thought that the message holds as a field becomes part of its content.
    fn write_reasoning(&self, turn: &mut Turn) {
        if let Some(reasoning) = turn.reasoning.take()
            && !self.thinks(&turn.content)
        {
            let (open, close) = self.named().thought;
            turn.content = format!("{open}{reasoning}{close}{}", turn.content);
        }
    }

    fn thinks(&self, content: &str) -> bool {
        let (open, close) = self.named().thought;
        content.contains(open.trim()) || content.contains(close.trim())
    }

    /// The content without its thoughts and without the line breaks that it then begins with.
    fn without_thought(&self, content: &str) -> String {
        let (open, close) = self.named().thought;
        let mut out = String::with_capacity(content.len());
        let mut rest = content;
        while let Some((before, tail)) = rest.split_once(open)
            && let Some((_, after)) = tail.split_once(close)
        {
            out.push_str(before);
            rest = after;
        }
        out.push_str(rest);
        out.trim_start_matches('\n').to_string()
    }

    /// What stands before calls: of a thought and white space, the thought.
    fn without_space_after_thought<'t>(&self, content: &'t str) -> &'t str {
        let close = self.named().thought.1;
        match content.rfind(close).map(|at| content.split_at(at + close.len())) {
            Some((thought, rest)) if rest.trim().is_empty() => thought,
            _ => content,
        }
    }

    /// The elements of all turns.
    pub(super) fn build(
        &self,
        system: &str,
        turns: Vec<ThoughtTurn>,
        tools: Option<&Value>,
    ) -> Result<Vec<MessageElements>, String> {
        let named = self.named();
        let mut head = Vec::new();
        let mut system_text = String::new();
        self.fill(&mut head, named.prefix, "")?;
        let system = if system.is_empty() { self.default_system() } else { system };
        if !system.is_empty() || tools.is_some() {
            let tools = match tools.and_then(Value::as_array) {
                Some(tools) => named.tools.describe(tools, self.now)?,
                None => String::new(),
            };
            let content = system.to_string() + &tools;
            let start = head.len();
            self.fill(&mut head, named.system, &content)?;
            if named.system_in_user {
                let moved = head.drain(start..).filter_map(|e| match e {
                    Element::Text(text) => Some(text),
                    Element::Special(_) => None,
                });
                system_text = moved.collect();
            }
        }
        let mut out = Vec::with_capacity(turns.len());
        for (i, ThoughtTurn { turn, before, after }) in turns.into_iter().enumerate() {
            let mut elements = std::mem::take(&mut head);
            let lead = std::mem::take(&mut system_text);
            if i > 0 && i % 2 == 0 {
                self.fill(&mut elements, named.separator, "")?;
            }
            if before {
                elements.push(self.empty_thought());
            }
            let (pieces, content) = match turn.role {
                Role::User => (named.user, lead + &turn.content),
                Role::Observation => (named.observation.unwrap_or(named.user), turn.content),
                Role::Assistant => (named.assistant, turn.content),
                Role::Function => {
                    let calls = named.tools.calls(&turn.calls);
                    let calls = calls.map_err(|e| format!("message {}: {e}", turn.message + 1))?;
                    let content = self.without_space_after_thought(&turn.content).to_string() + &calls;
                    (named.function.unwrap_or(named.assistant), content)
                }
            };
            self.fill(&mut elements, pieces, &content)?;
            if after {
                elements.push(self.empty_thought());
            }
            out.push(MessageElements { elements, is_response: turn.role.is_response(), index: turn.message });
        }
        Ok(out)
    }

    fn empty_thought(&self) -> Element {
        let (open, close) = self.named().thought;
        Element::Text(match self.named().reasoning {
            Reasoning::Closing => close.to_string(),
            _ => format!("{open}{close}"),
        })
    }

    /// Adds a turn's pieces with their content.
    fn fill(&self, out: &mut Vec<Element>, pieces: &[Piece], content: &str) -> Result<(), String> {
        for piece in pieces {
            match piece {
                Piece::Text(text) => out.push(Element::Text(text.replacen(CONTENT, content, 1))),
                Piece::Bos => out.extend(self.bos.clone().map(Element::Special)),
                Piece::Eos => out.extend(self.eos.clone().map(Element::Special)),
                Piece::Token(token) => {
                    let special = self.tokens.iter().find(|s| s.content == *token);
                    let special = special.ok_or_else(|| format!("the tokenizer has no token `{token}`"))?;
                    out.push(Element::Special(special.clone()));
                }
            }
        }
        Ok(())
    }
}
