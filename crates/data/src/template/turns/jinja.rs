//! A named template written in Jinja, for the tokenizer files of what was trained with it.

use std::fmt::Write;

use super::TurnTemplate;
use crate::template::named::{CONTENT, Piece};

impl TurnTemplate {
    /// The template in Jinja: what [`ChatTemplate::render`] gives for conversations without tools and empty thoughts, when
    /// the same tokenizer renders it. Messages that call tools are refused.
    ///
    /// [`ChatTemplate::render`]: crate::ChatTemplate::render
    pub fn to_jinja(&self) -> String {
        let named = self.named();
        let system = self.expression(named.system, "system");
        let mut out = format!(
            "{{%- set system = {} %}}\n{{%- set turns = messages %}}\n\
             {{%- if messages and messages[0]['role'] == 'system' %}}\n    \
             {{%- set system = messages[0]['content'] or system %}}\n    {{%- set turns = messages[1:] %}}\n\
             {{%- endif %}}\n",
            literal(self.default_system())
        );
        print(&mut out, "", &self.expression(named.prefix, "''"));
        if !named.system_in_user {
            out.push_str("{%- if system %}\n");
            print(&mut out, "    ", &system);
            out.push_str("{%- endif %}\n");
        }
        out.push_str("{%- for message in turns %}\n    {%- set content = message['content'] or '' %}\n");
        if named.system_in_user {
            out.push_str("    {%- if loop.first and system and message['role'] == 'user' %}\n");
            let _ = writeln!(out, "        {{%- set content = {system} + content %}}\n    {{%- endif %}}");
        }
        out.push_str(
            "    {%- if message['role'] == 'assistant' %}\n        {%- if message['tool_calls'] %}\n",
        );
        out.push_str("            {{- raise_exception('this template does not write tool calls') }}\n");
        out.push_str("        {%- endif %}\n");
        print(&mut out, "        ", &self.expression(named.assistant, "content"));
        out.push_str("    {%- else %}\n");
        if !named.separator.is_empty() {
            out.push_str("        {%- if not loop.first %}\n");
            print(&mut out, "            ", &self.expression(named.separator, "''"));
            out.push_str("        {%- endif %}\n");
        }
        match named.observation {
            None => print(&mut out, "        ", &self.expression(named.user, "content")),
            Some(observation) => {
                out.push_str("        {%- if message['role'] == 'tool' %}\n");
                print(&mut out, "            ", &self.expression(observation, "content"));
                out.push_str("        {%- else %}\n");
                print(&mut out, "            ", &self.expression(named.user, "content"));
                out.push_str("        {%- endif %}\n");
            }
        }
        out.push_str("    {%- endif %}\n{%- endfor %}");
        out
    }

    /// A turn as a sum of strings; empty for nothing.
    fn expression(&self, pieces: &[Piece], content: &str) -> String {
        let mut terms: Vec<String> = Vec::new();
        for piece in pieces {
            match piece {
                Piece::Text(text) => match text.split_once(CONTENT) {
                    Some((before, after)) => {
                        terms.extend([literal(before), content.to_string(), literal(after)]);
                    }
                    None => terms.push(literal(text)),
                },
                Piece::Token(token) => terms.push(literal(token)),
                Piece::Bos => terms.extend(self.bos.iter().map(|s| literal(&s.content))),
                Piece::Eos => terms.extend(self.eos.iter().map(|s| literal(&s.content))),
            }
        }
        terms.retain(|t| t != "''");
        terms.join(" + ")
    }
}

/// A line that prints an expression.
fn print(out: &mut String, indent: &str, expression: &str) {
    if !expression.is_empty() {
        let _ = writeln!(out, "{indent}{{{{- {expression} }}}}");
    }
}

/// A string of Jinja's.
fn literal(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('\'', "\\'").replace('\n', "\\n");
    format!("'{escaped}'")
}
