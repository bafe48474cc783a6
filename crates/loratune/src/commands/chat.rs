//! `loratune chat`.

use std::io::{self, BufRead, IsTerminal};

use anyhow::Result;
use loratune_data::{ChatTemplate, Message, TemplateChoice};
use loratune_model::decoder::Sequences;
use loratune_model::generate::{Sampling, continue_sequences};

use super::generate::{Printer, sampling};
use crate::cli::{ChatArgs, Global};
use crate::load::{LoadedModel, render};
use crate::output;

/// A conversation and the keys and values that the model already has of it.
struct Chat<'a> {
    model: &'a LoadedModel,
    template: ChatTemplate,
    system: Option<Message>,
    messages: Vec<Message>,
    sampling: Sampling,
    sequences: Sequences,
    /// The tokens that `sequences` holds.
    cached: Vec<u32>,
}

pub fn run(args: &ChatArgs, global: &Global) -> Result<()> {
    let model = LoadedModel::open(&args.model, args.answer.dtype.into())?;
    let template = match model.template(args.answer.template.as_deref())? {
        Some(template) => template,
        None => {
            if !global.quiet {
                output::note(
                    "note: the model has no chat template: messages are joined as they are (see --template)",
                );
            }
            TemplateChoice::Model.load(&*model.tokenizer, None)?
        }
    };
    let mut chat = Chat {
        sequences: model.decoder.sequences(1),
        system: args.answer.system.as_ref().map(Message::system),
        messages: Vec::new(),
        sampling: sampling(&args.answer, model.stop_ids()),
        cached: Vec::new(),
        model: &model,
        template,
    };
    let terminal = io::stdin().is_terminal();
    if terminal && !global.quiet {
        output::note("/clear begins anew, /exit or Ctrl-D ends");
    }
    for line in lines(terminal) {
        let line = line?;
        match line.trim() {
            "" => {}
            "/exit" | "/quit" => break,
            "/clear" => chat.clear(),
            command if command.starts_with('/') && !command.contains(char::is_whitespace) && terminal => {
                output::note(&format!("there is no {command}; there are /clear and /exit"));
            }
            _ => match chat.say(&line) {
                Err(e) if terminal && !output::is_closed(&e) => {
                    output::error(&output::message(&e));
                    output::note("the message was taken back; /clear begins anew");
                }
                said => said?,
            },
        }
    }
    Ok(())
}

/// The lines of standard input, each asked for when it's needed.
fn lines(terminal: bool) -> impl Iterator<Item = io::Result<String>> {
    std::iter::from_fn(move || {
        if terminal && output::print("> ").is_err() {
            return None;
        }
        let mut line = String::new();
        match io::stdin().lock().read_line(&mut line) {
            Ok(0) => {
                // The cursor stands behind the "> ".
                let _ = if terminal { output::line("") } else { Ok(()) };
                None
            }
            Ok(_) => Some(Ok(line.trim_end_matches(['\r', '\n']).to_string())),
            Err(e) => Some(Err(e)),
        }
    })
}

impl Chat<'_> {
    fn clear(&mut self) {
        self.messages.clear();
    }

    /// Takes a message and prints the answer. After an error the conversation is as it was before.
    fn say(&mut self, text: &str) -> Result<()> {
        self.messages.push(Message::user(text));
        let answered = self.answer();
        if answered.is_err() {
            self.messages.pop();
        }
        self.messages.push(Message::assistant(answered?));
        self.sampling.seed = self.sampling.seed.wrapping_add(1);
        Ok(())
    }

    fn answer(&mut self) -> Result<String> {
        let all: Vec<Message> = self.system.iter().chain(&self.messages).cloned().collect();
        let ids = self.model.encode(&render(&self.template, &all)?)?;
        // Templates may write earlier turns differently (without their thinking), so what is kept is what is equal. The
        // last token always runs: its logits are needed.
        let same = self.cached.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        let kept = same.min(ids.len().saturating_sub(1));
        self.sequences.truncate(0, kept);
        self.cached.truncate(kept);
        tracing::debug!(kept, new = ids.len() - kept, "prompt");
        let mut printer = Printer::new(&self.model.tokenizer, &self.sampling.stop);
        let LoadedModel { decoder, params, .. } = self.model;
        let new = vec![ids[kept..].to_vec()];
        let answers =
            continue_sequences(decoder, params, &mut self.sequences, &new, &self.sampling, |_, t| {
                printer.token(t)
            });
        // Also after an error the cache's tokens must be known.
        let generated = answers.as_ref().ok().and_then(|a| a.first()).map_or(&[][..], |a| &a.tokens);
        self.cached = ids.iter().chain(generated).copied().take(self.sequences.lengths()[0]).collect();
        answers?;
        printer.finish()?;
        output::line("")?;
        Ok(printer.text)
    }
}
