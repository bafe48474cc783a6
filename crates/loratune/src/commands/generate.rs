//! `loratune generate`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use loratune_data::Message;
use loratune_model::generate::{Generated, Sampling, generate};
use loratune_tokenizer::TokenizerBundle;
use serde_json::json;

use super::prompts::{self, Line, Prompt};
use crate::cli::{AnswerArgs, GenerateArgs, Global};
use crate::load::{BASE, Base, LoadedModel, Named, render};
use crate::output;

/// Who answers: the model with each of the adapters, or without one.
struct Answerers {
    /// By name; at least one.
    models: Vec<(String, LoadedModel)>,
    /// Which of them answer a prompt that names none.
    all: Vec<usize>,
}

impl Answerers {
    fn open(args: &GenerateArgs, lines: &[Line]) -> Result<Answerers> {
        let named = Named::read_all(&args.model.adapter)?;
        let known = |name: &str| name == BASE || named.iter().any(|n| n.name == name);
        if let Some(line) = lines.iter().find(|l| l.adapter.as_deref().is_some_and(|n| !known(n))) {
            return Err(unknown(line, line.adapter.as_deref().unwrap_or_default(), &named));
        }
        let base = Base::open(&args.model.model, args.answer.dtype.into())?;
        let mut models =
            named.iter().map(|n| Ok((n.name.clone(), base.with(&n.adapter)?))).collect::<Result<Vec<_>>>()?;
        if models.is_empty() || lines.iter().any(|l| l.adapter.as_deref() == Some(BASE)) {
            models.push((BASE.to_string(), base.alone()));
        }
        Ok(Answerers { all: (0..named.len().max(1)).collect(), models })
    }

    /// Those that answer a line.
    fn of(&self, line: &Line) -> Vec<usize> {
        match &line.adapter {
            Some(name) => self.models.iter().position(|(n, _)| n == name).into_iter().collect(),
            None => self.all.clone(),
        }
    }
}

fn unknown(line: &Line, name: &str, named: &[Named]) -> anyhow::Error {
    let mut names: Vec<&str> = named.iter().map(|n| n.name.as_str()).collect();
    names.push(BASE);
    let place = line.place.as_deref().unwrap_or("the prompt");
    anyhow::anyhow!("{place}: there is no adapter `{name}`; there are {}", names.join(", "))
}

pub fn run(args: &GenerateArgs, global: &Global) -> Result<()> {
    let lines = match &args.prompts {
        Some(path) => prompts::read(path)?,
        None => args.prompt.iter().map(|p| Line::text(p)).collect(),
    };
    let answerers = Answerers::open(args, &lines)?;
    let Some((_, model)) = answerers.models.first() else { anyhow::bail!("there is no model to answer") };
    let prompts = Prompts::of(args, &answerers, &lines)?;
    let max = model.decoder.spec().max_positions;
    // Before the first part is answered.
    if let Some(length) = prompts.longest().filter(|&l| l > max) {
        return Err(loratune_model::Error::ContextLength { length, max }.into());
    }
    let asked: Vec<Vec<usize>> = lines.iter().map(|l| answerers.of(l)).collect();
    let sampling = sampling(&args.answer, model.stop_ids());
    let clock = Instant::now();
    let (mut tokens, mut first) = (0, true);
    match asked.as_slice() {
        // A single answer streams.
        [only] if only.len() == 1 && !args.json => {
            let (name, model) = &answerers.models[only[0]];
            if answerers.models.len() > 1 {
                output::line(format!("[1] {name}"))?;
            }
            let mut printer = Printer::new(&model.tokenizer, &sampling.stop);
            let ids = prompts.ids(only[0]);
            let answers = generate(&model.decoder, &model.params, ids, &sampling, |_, t| printer.token(t))?;
            printer.finish()?;
            output::line("")?;
            tokens = answers.iter().map(|a| a.tokens.len()).sum();
        }
        _ => {
            for start in (0..lines.len()).step_by(args.batch_size) {
                let part = start..lines.len().min(start + args.batch_size);
                for (place, answer) in answer(&answerers, &asked, &prompts, part, &sampling)? {
                    print_answer(args, &answerers, place, first, prompts.text(place), &answer)?;
                    first = false;
                    tokens += answer.tokens.len();
                }
            }
        }
    }
    if !global.quiet {
        let seconds = clock.elapsed().as_secs_f64();
        let speed = tokens as f64 / seconds.max(1e-9);
        output::note(&format!("{tokens} tokens in {seconds:.2} s, {speed:.1} tokens/s"));
    }
    Ok(())
}

/// The prompts as the answerers read them: those with one tokenizer share one reading.
struct Prompts {
    /// Texts and ids, by tokenizer.
    read: Vec<(Vec<String>, Vec<Vec<u32>>)>,
    /// Which of them an answerer reads.
    by: Vec<usize>,
}

impl Prompts {
    fn of(args: &GenerateArgs, answerers: &Answerers, lines: &[Line]) -> Result<Prompts> {
        let mut prompts = Prompts { read: Vec::new(), by: Vec::new() };
        for (i, (_, model)) in answerers.models.iter().enumerate() {
            let earlier = &answerers.models[..i];
            let same = earlier.iter().position(|(_, m)| Arc::ptr_eq(&m.tokenizer, &model.tokenizer));
            let read = match same {
                Some(first) => prompts.by[first],
                None => {
                    let texts = texts(args, model, lines)?;
                    let ids = texts.iter().map(|t| model.encode(t)).collect::<Result<Vec<_>>>()?;
                    prompts.read.push((texts, ids));
                    prompts.read.len() - 1
                }
            };
            prompts.by.push(read);
        }
        Ok(prompts)
    }

    fn longest(&self) -> Option<usize> {
        self.read.iter().flat_map(|(_, ids)| ids).map(Vec::len).max()
    }

    /// The prompts' ids for an answerer.
    fn ids(&self, by: usize) -> &[Vec<u32>] {
        &self.read[self.by[by]].1
    }

    /// A prompt's text, by its number and the answerer's.
    fn text(&self, (prompt, by): (usize, usize)) -> &str {
        &self.read[self.by[by]].0[prompt]
    }
}

/// The prompts as the model reads them.
fn texts(args: &GenerateArgs, model: &LoadedModel, lines: &[Line]) -> Result<Vec<String>> {
    let template = if args.raw { None } else { model.template(args.answer.template.as_deref())? };
    let system = || args.answer.system.iter().map(Message::system).collect::<Vec<_>>();
    lines
        .iter()
        .map(|line| match (&line.prompt, &template) {
            (Prompt::Text(text), None) => Ok(join(args.answer.system.as_deref(), text)),
            (Prompt::Messages(_), None) => {
                anyhow::bail!("the model has no chat template for `messages`; name one with --template")
            }
            (Prompt::Text(text), Some(t)) => render(t, &[system(), vec![Message::user(text)]].concat()),
            (Prompt::Messages(m), Some(t)) => render(t, &[system(), m.clone()].concat()),
        })
        .collect()
}

/// Answers to some of the prompts by prompt and answerer.
fn answer(
    answerers: &Answerers,
    asked: &[Vec<usize>],
    all: &Prompts,
    part: Range<usize>,
    sampling: &Sampling,
) -> Result<BTreeMap<(usize, usize), Generated>> {
    let mut out = BTreeMap::new();
    for (by, (_, model)) in answerers.models.iter().enumerate() {
        let mine: Vec<usize> = part.clone().filter(|&p| asked[p].contains(&by)).collect();
        // Draws belong to the prompt's number, and a call numbers its prompts without gaps.
        let gap = |a: &usize, b: &usize| sampling.temperature == 0.0 || a + 1 == *b;
        for run in mine.chunk_by(gap) {
            let prompts: Vec<Vec<u32>> = run.iter().map(|&p| all.ids(by)[p].clone()).collect();
            let sampling = Sampling { first: run[0], ..sampling.clone() };
            let answers = generate(&model.decoder, &model.params, &prompts, &sampling, |_, _| true)?;
            out.extend(run.iter().map(|&p| (p, by)).zip(answers));
        }
    }
    Ok(out)
}

/// Without a template a system text simply stands before the prompt.
fn join(system: Option<&str>, prompt: &str) -> String {
    system.map_or(prompt.to_string(), |s| format!("{s}\n\n{prompt}"))
}

pub fn sampling(args: &AnswerArgs, stop: Vec<u32>) -> Sampling {
    Sampling {
        temperature: args.temperature,
        top_p: args.top_p,
        top_k: args.top_k,
        seed: args.seed,
        first: 0,
        max_new_tokens: args.max_new_tokens,
        stop,
    }
}

/// The text of an answer without the token that ended it.
pub fn answer_text(tokenizer: &TokenizerBundle, answer: &Generated) -> Result<String> {
    let n = answer.tokens.len() - usize::from(answer.stopped && !answer.tokens.is_empty());
    Ok(tokenizer.decode(&answer.tokens[..n], true)?)
}

/// Prints the answer to a prompt, both by number (from 0).
fn print_answer(
    args: &GenerateArgs,
    answerers: &Answerers,
    (prompt, by): (usize, usize),
    first: bool,
    text: &str,
    answer: &Generated,
) -> Result<()> {
    let (name, model) = &answerers.models[by];
    let several = answerers.models.len() > 1;
    let answered = answer_text(&model.tokenizer, answer)?;
    if args.json {
        let mut value = json!({
            "index": prompt,
            "prompt": text,
            "text": answered,
            "tokens": answer.tokens,
            "stopped": answer.stopped,
        });
        if let Some(map) = value.as_object_mut().filter(|_| several) {
            map.insert("adapter".into(), json!(name));
        }
        return Ok(output::json(&value)?);
    }
    let gap = if first { "" } else { "\n" };
    let name = if several { format!(" {name}") } else { String::new() };
    Ok(output::line(format!("{gap}[{}]{name}\n{answered}", prompt + 1))?)
}

/// Prints tokens as they come, whole characters only.
pub struct Printer<'a> {
    decoder: Option<loratune_tokenizer::StreamDecoder<'a>>,
    stop: &'a [u32],
    failure: Option<anyhow::Error>,
    /// Everything that was printed.
    pub text: String,
}

impl<'a> Printer<'a> {
    pub fn new(tokenizer: &'a TokenizerBundle, stop: &'a [u32]) -> Self {
        Printer { decoder: Some(tokenizer.stream_decoder(true)), stop, failure: None, text: String::new() }
    }

    /// Takes a token; false when there is no use in more.
    pub fn token(&mut self, id: u32) -> bool {
        if self.stop.contains(&id) {
            return true;
        }
        let pushed = self.decoder.as_mut().map(|d| d.push(id)).transpose();
        self.emit(pushed.map(Option::unwrap_or_default).map_err(Into::into));
        self.failure.is_none()
    }

    /// Prints what was waiting for the end of a character.
    ///
    /// # Errors
    /// What went wrong with any token.
    pub fn finish(&mut self) -> Result<()> {
        if let (Some(decoder), None) = (self.decoder.take(), &self.failure) {
            let rest = decoder.finish();
            self.emit(rest.map_err(Into::into));
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    fn emit(&mut self, text: Result<String>) {
        let printed = text.and_then(|t| {
            if !t.is_empty() {
                output::print(&t)?;
                self.text.push_str(&t);
            }
            Ok(())
        });
        self.failure = self.failure.take().or(printed.err());
    }
}
