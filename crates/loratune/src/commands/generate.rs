//! `loratune generate`.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use loratune_data::Message;
use loratune_model::generate::{Generated, Sampling, generate};
use loratune_tokenizer::TokenizerBundle;
use serde_json::{Value, json};

use crate::cli::{AnswerArgs, GenerateArgs, Global};
use crate::load::{LoadedModel, render, start_threads};
use crate::output;

/// A prompt as it was given: text, or a conversation.
enum Prompt {
    Text(String),
    Messages(Vec<Message>),
}

pub fn run(args: &GenerateArgs, global: &Global) -> Result<()> {
    start_threads(global)?;
    let prompts = match &args.prompts {
        Some(path) => read_prompts(path)?,
        None => args.prompt.iter().cloned().map(Prompt::Text).collect(),
    };
    let model = LoadedModel::open(&args.model, args.answer.dtype.into())?;
    let template = if args.raw { None } else { model.template(args.answer.template.as_deref())? };
    let texts: Vec<String> = prompts
        .iter()
        .map(|p| match (p, &template) {
            (Prompt::Text(text), None) => Ok(join(args.answer.system.as_deref(), text)),
            (Prompt::Messages(_), None) => {
                anyhow::bail!("the model has no chat template for `messages`; name one with --template")
            }
            (Prompt::Text(text), Some(t)) => {
                let mut messages: Vec<Message> = args.answer.system.iter().map(Message::system).collect();
                messages.push(Message::user(text));
                render(t, &messages)
            }
            (Prompt::Messages(m), Some(t)) => {
                let mut messages: Vec<Message> = args.answer.system.iter().map(Message::system).collect();
                messages.extend(m.iter().cloned());
                render(t, &messages)
            }
        })
        .collect::<Result<_>>()?;
    let ids = texts.iter().map(|t| model.encode(t)).collect::<Result<Vec<_>>>()?;
    let max = model.decoder.spec().max_positions;
    // Before the first part is answered.
    if let Some(length) = ids.iter().map(Vec::len).max().filter(|&l| l > max) {
        return Err(loratune_model::Error::ContextLength { length, max }.into());
    }
    let mut sampling = sampling(&args.answer, model.stop_ids());
    let stream = ids.len() == 1 && !args.json;
    let clock = Instant::now();
    let mut tokens = 0;
    if stream {
        let mut printer = Printer::new(&model.tokenizer, &sampling.stop);
        let answers = generate(&model.decoder, &model.params, &ids, &sampling, |_, t| printer.token(t))?;
        printer.finish()?;
        output::line("")?;
        tokens = new_tokens(&answers);
    } else {
        for (ids, texts) in ids.chunks(args.batch_size).zip(texts.chunks(args.batch_size)) {
            let answers = generate(&model.decoder, &model.params, ids, &sampling, |_, _| true)?;
            print_all(args, &model.tokenizer, sampling.first, texts, &answers)?;
            sampling.first += answers.len();
            tokens += new_tokens(&answers);
        }
    }
    if !global.quiet {
        let seconds = clock.elapsed().as_secs_f64();
        let speed = tokens as f64 / seconds.max(1e-9);
        output::note(&format!("{tokens} tokens in {seconds:.2} s, {speed:.1} tokens/s"));
    }
    Ok(())
}

fn new_tokens(answers: &[Generated]) -> usize {
    answers.iter().map(|a| a.tokens.len()).sum()
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

/// Prints answers, the first of which is number `first` of all (from 0).
fn print_all(
    args: &GenerateArgs,
    tokenizer: &TokenizerBundle,
    first: usize,
    prompts: &[String],
    answers: &[Generated],
) -> Result<()> {
    for (i, (prompt, answer)) in (first..).zip(prompts.iter().zip(answers)) {
        let text = answer_text(tokenizer, answer)?;
        if args.json {
            output::json(&json!({
                "index": i,
                "prompt": prompt,
                "text": text,
                "tokens": answer.tokens,
                "stopped": answer.stopped,
            }))?;
        } else {
            let gap = if i == 0 { "" } else { "\n" };
            output::line(format!("{gap}[{}]\n{text}", i + 1))?;
        }
    }
    Ok(())
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

/// Prompts of a JSONL file: a string a line, or an object.
fn read_prompts(path: &Path) -> Result<Vec<Prompt>> {
    let shown = path.display();
    let text =
        std::fs::read_to_string(path).with_context(|| format!("{shown}: the prompts cannot be read"))?;
    let lines = text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let prompts = lines
        .map(|(i, line)| {
            let value: Value =
                serde_json::from_str(line).with_context(|| format!("{shown}:{}: broken JSON", i + 1))?;
            prompt_of(&value).with_context(|| format!("{shown}:{}", i + 1))
        })
        .collect::<Result<Vec<_>>>()?;
    anyhow::ensure!(!prompts.is_empty(), "{shown}: the file holds no prompt");
    Ok(prompts)
}

fn prompt_of(value: &Value) -> Result<Prompt> {
    let text = |name: &str| value.get(name).and_then(Value::as_str).filter(|s| !s.is_empty());
    if let Some(s) = value.as_str().or_else(|| text("prompt")).or_else(|| text("question")) {
        return Ok(Prompt::Text(s.to_string()));
    }
    if let Some(instruction) = text("instruction") {
        let input = text("input").map_or(String::new(), |i| format!("\n{i}"));
        return Ok(Prompt::Text(format!("{instruction}{input}")));
    }
    let messages = value.get("messages").or_else(|| value.get("prompt")).and_then(Value::as_array);
    let message = |m: &Value| {
        let get = |k: &str| m.get(k).and_then(Value::as_str).map(str::to_string);
        Some(Message::new(get("role")?, get("content")?))
    };
    let messages = messages.map(|list| list.iter().map(message).collect::<Option<Vec<_>>>());
    match messages {
        Some(Some(list)) if !list.is_empty() => Ok(Prompt::Messages(list)),
        Some(_) => anyhow::bail!("every message needs a `role` and a `content` that are strings"),
        None => anyhow::bail!(
            "expected a string, or an object with `prompt`, `question`, `instruction` (and `input`) or `messages`"
        ),
    }
}
