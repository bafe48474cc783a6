//! A chat template in Go, for an Ollama Modelfile, found by rendering conversations and taking the texts around their contents.
//! It is accepted only if what it makes of further conversations equals what the template makes of them.

use super::{ChatTemplate, RenderInput, TemplateError};
use crate::record::Message;

/// What a Modelfile says of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OllamaTemplate {
    /// The value of `TEMPLATE`.
    pub template: String,
    /// The value of `SYSTEM`: the system text of conversations without one.
    pub system: Option<String>,
}

/// The texts around the contents of a conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Turns {
    /// Before everything.
    prefix: String,
    /// Around the system text; `None` if the template knows none.
    system: Option<(String, String)>,
    /// The system text stands in the first user turn, with this behind it.
    in_user: Option<String>,
    /// In place of the system text in conversations without one.
    without: String,
    /// The system text of conversations without one, where `without` is one in its place.
    default: Option<String>,
    user: String,
    /// Between a question and its answer.
    answer: String,
    /// Behind an answer.
    close: String,
}

/// Contents that stand for themselves: no template has these, trims them or changes them.
const MARKS: [&str; 7] = ["qAAAq", "qBBBq", "qCCCq", "qDDDq", "qEEEq", "qFFFq", "qSSSq"];
const SYSTEM: &str = MARKS[6];

/// The template in Go. `bos` is the begin token's text where the tokenizer puts it in front by itself, as Ollama will.
///
/// # Errors
/// Why the template is not one of turns around contents, in words that continue "the chat template".
pub fn ollama_template(template: &ChatTemplate, bos: Option<&str>) -> Result<OllamaTemplate, String> {
    let mut turns = find(template)?;
    for system in [None, Some(SYSTEM)] {
        for questions in 1..=3 {
            if system.is_some() && turns.system.is_none() && turns.in_user.is_none() {
                continue;
            }
            let theirs =
                render(template, system, questions, true).map_err(|e| format!("fails: {}", e.message))?;
            if theirs != turns.render(system, questions) {
                return Err(format!(
                    "treats a conversation of {questions} questions in another way than its turns one after the other"
                ));
            }
        }
    }
    if let Some(bos) = bos.filter(|b| !b.is_empty()) {
        turns.strip(bos);
    }
    Ok(OllamaTemplate { template: turns.go()?, system: turns.default.clone() })
}

/// A conversation of questions with answers between them, and the header of the next answer.
fn render(
    template: &ChatTemplate,
    system: Option<&str>,
    questions: usize,
    prompt: bool,
) -> Result<String, TemplateError> {
    let mut messages: Vec<Message> = system.map(Message::system).into_iter().collect();
    for (i, mark) in MARKS.iter().take(2 * questions - usize::from(prompt)).enumerate() {
        messages.push(Message::new(if i % 2 == 0 { "user" } else { "assistant" }, *mark));
    }
    template.render(RenderInput {
        messages: &messages,
        add_generation_prompt: prompt,
        ..RenderInput::default()
    })
}

/// What stands before, between and behind marks that must come in this order, each once.
fn around<'a>(text: &'a str, marks: &[&str]) -> Option<Vec<&'a str>> {
    let mut rest = text;
    let mut parts = Vec::new();
    for mark in marks {
        let (before, after) = rest.split_once(mark)?;
        parts.push(before);
        rest = after;
    }
    parts.push(rest);
    MARKS.iter().all(|mark| parts.iter().all(|p| !p.contains(mark))).then_some(parts)
}

fn find(template: &ChatTemplate) -> Result<Turns, String> {
    let fails = |e: TemplateError| format!("fails: {}", e.message);
    let odd = || "does not write contents once each, in order".to_owned();
    let two = render(template, None, 2, true).map_err(fails)?;
    let two = around(&two, &MARKS[..3]).ok_or_else(odd)?;
    let answered = render(template, None, 1, false).map_err(fails)?;
    let answered = around(&answered, &MARKS[..2]).ok_or_else(odd)?;
    let [before, answer, next, _] = two.as_slice() else { return Err(odd()) };
    let close = *answered.last().unwrap_or(&"");
    // What stands between an answer and the next question is the answer's end, and the question's beginning.
    let user = next.strip_prefix(close).ok_or("ends the last answer in another way than those before")?;
    let without =
        before.strip_suffix(user).ok_or("begins the first question in another way than later ones")?;
    let mut turns = Turns {
        without: without.to_owned(),
        user: user.to_owned(),
        answer: (*answer).to_owned(),
        close: close.to_owned(),
        ..Turns::default()
    };
    // A template that refuses system messages has none.
    let Ok(with) = render(template, Some(SYSTEM), 1, true) else { return Ok(turns) };
    let Some(with) = around(&with, &[SYSTEM, MARKS[0]]) else { return Ok(turns) };
    let [open, between, _] = with.as_slice() else { return Err(odd()) };
    match (between.strip_suffix(user), open.strip_suffix(user)) {
        (Some(after), _) => {
            // Both ways begin alike; what differs is the system text.
            let prefix = common_prefix(open, without);
            let rest = |text: &str| text[prefix..].to_owned();
            turns.system = Some((rest(open), after.to_owned()));
            turns.prefix = open[..prefix].to_owned();
            turns.without = rest(without);
            let whole = without.strip_prefix(open).and_then(|t| t.strip_suffix(after));
            if let Some(text) = whole.filter(|t| !t.is_empty()) {
                turns.default = Some(text.to_owned());
                (turns.prefix, turns.without) = (String::new(), String::new());
                turns.system = Some(((*open).to_owned(), after.to_owned()));
            }
        }
        (None, Some(before)) if before == without => {
            turns.in_user = Some((*between).to_owned());
            (turns.prefix, turns.without) = (without.to_owned(), String::new());
        }
        _ => return Err("puts the system text where no turn of Ollama's has it".into()),
    }
    Ok(turns)
}

fn common_prefix(a: &str, b: &str) -> usize {
    let same = a.char_indices().zip(b.chars()).find(|((_, x), y)| x != y);
    same.map_or_else(|| a.len().min(b.len()), |((at, _), _)| at)
}

impl Turns {
    /// What the Go template makes of a conversation.
    fn render(&self, system: Option<&str>, questions: usize) -> String {
        let system = system.or(self.default.as_deref());
        let mut out = self.prefix.clone();
        match (&self.system, system) {
            (Some((open, close)), Some(text)) => out += &format!("{open}{text}{close}"),
            _ => out += &self.without,
        }
        for (i, mark) in MARKS.iter().take(2 * questions - 1).enumerate() {
            if i % 2 == 1 {
                out += &format!("{mark}{}", self.close);
                continue;
            }
            out += &self.user;
            if let (0, Some(behind), Some(text)) = (i, &self.in_user, system) {
                out += &format!("{text}{behind}");
            }
            out += &format!("{mark}{}", self.answer);
        }
        out
    }

    /// Takes the begin token away where the text begins with it.
    fn strip(&mut self, bos: &str) {
        let cut = |text: &mut String| {
            if let Some(rest) = text.strip_prefix(bos) {
                *text = rest.to_owned();
            }
        };
        if !self.prefix.is_empty() {
            return cut(&mut self.prefix);
        }
        cut(&mut self.without);
        match &mut self.system {
            Some((open, _)) => cut(open),
            None if self.without.is_empty() => cut(&mut self.user),
            None => {}
        }
    }

    fn go(&self) -> Result<String, String> {
        let mut out = literal(&self.prefix)?;
        if let Some((open, close)) = &self.system {
            out += &format!("{{{{ if .System }}}}{}{{{{ .System }}}}{}", literal(open)?, literal(close)?);
            if !self.without.is_empty() {
                out += &format!("{{{{ else }}}}{}", literal(&self.without)?);
            }
            out += "{{ end }}";
        } else {
            out += &literal(&self.without)?;
        }
        let (user, answer, close) = (literal(&self.user)?, literal(&self.answer)?, literal(&self.close)?);
        let in_user = match &self.in_user {
            Some(behind) => {
                out += "{{ $first := true }}";
                format!(
                    "{{{{ if and $first $.System }}}}{{{{ $.System }}}}{}{{{{ end }}}}{{{{ $first = false }}}}",
                    literal(behind)?
                )
            }
            None => String::new(),
        };
        out += &format!(
            "{{{{ range .Messages }}}}{{{{ if eq .Role \"user\" }}}}{user}{in_user}{{{{ .Content }}}}{answer}\
             {{{{ else if eq .Role \"assistant\" }}}}{{{{ .Content }}}}{close}{{{{ end }}}}{{{{ end }}}}"
        );
        Ok(out)
    }
}

/// Text as it stands in a Go template inside a Modelfile's triple quotes.
fn literal(text: &str) -> Result<String, String> {
    if text.contains("\"\"\"") {
        return Err("writes three double quotes, which end a text in a Modelfile".into());
    }
    // Both brackets at once, and none of the replacement's own.
    Ok(text.split("{{").collect::<Vec<_>>().join("{{ \"{{\" }}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::JinjaTemplate;

    fn of(source: &str, bos: Option<&str>) -> Result<OllamaTemplate, String> {
        let variables = [("bos_token".to_string(), "<s>".to_string())];
        let template = JinjaTemplate::new("test", source, variables, None).unwrap();
        ollama_template(&ChatTemplate::Jinja(Box::new(template)), bos)
    }

    const CHATML: &str = "{% for m in messages %}{% if loop.first and m.role != 'system' %}\
        {{ '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}{% endif %}\
        {{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
        {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

    #[test]
    fn a_default_system_text_becomes_system() {
        let found = of(CHATML, None).unwrap();
        assert_eq!(found.system.as_deref(), Some("Be brief."));
        assert_eq!(
            found.template,
            "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ range .Messages }}\
             {{ if eq .Role \"user\" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n<|im_start|>assistant\n\
             {{ else if eq .Role \"assistant\" }}{{ .Content }}<|im_end|>\n{{ end }}{{ end }}"
        );
    }

    #[test]
    fn a_system_text_in_the_first_question_and_the_begin_token() {
        let source = "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\\n\\n' %}\
            {% set turns = messages[1:] %}{% else %}{% set s = '' %}{% set turns = messages %}{% endif %}\
            {% for m in turns %}{% if m.role == 'user' %}{{ '[INST] ' + (s if loop.first else '') + m.content + ' [/INST]' }}\
            {% else %}{{ ' ' + m.content + '</s>' }}{% endif %}{% endfor %}";
        // Here an answer begins with a space that the prompt lacks.
        let found = of(source, Some("<s>")).unwrap_err();
        assert!(found.contains("another way"), "{found}");
        let found = of(&source.replace("' ' + m", "m"), Some("<s>")).unwrap();
        assert!(
            found
                .template
                .starts_with("{{ $first := true }}{{ range .Messages }}{{ if eq .Role \"user\" }}[INST] ")
        );
        assert!(
            found.template.contains("{{ $.System }}\n\n{{ end }}{{ $first = false }}{{ .Content }} [/INST]")
        );
        assert_eq!(of(&source.replace("' ' + m", "m"), None).unwrap().template[..3], *"<s>");
    }

    #[test]
    fn templates_that_change_contents_are_refused() {
        let upper = CHATML.replace("m.content +", "m.content | upper +");
        assert!(of(&upper, None).unwrap_err().contains("contents"));
        let counted = CHATML.replace("m.role + '", "m.role + loop.index|string + '");
        assert!(of(&counted, None).is_err());
        let mut quotes = CHATML.replace("\\n' + m.content", "\"\"\"' + m.content");
        for role in ["system", "assistant"] {
            quotes = quotes.replace(&format!("{role}\\n"), &format!("{role}\"\"\""));
        }
        assert!(of(&quotes, None).unwrap_err().contains("double quotes"));
    }
}
