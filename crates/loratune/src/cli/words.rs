//! Settings of a run among the words of a command line.
//!
//! `train` and `llm` take every key of the configuration as a flag. Clap knows only the few options that are the commands' own;
//! everything else is moved behind a `--`, where clap hands it on as it stands.

use std::ffi::OsString;

use clap::{Arg, CommandFactory};

use super::Cli;

/// Commands whose other flags are settings.
const COMMANDS: [&str; 3] = ["train", "llm", "estimate"];

/// The words as clap shall see them.
pub fn arrange(words: Vec<OsString>) -> Vec<OsString> {
    let mut cli = Cli::command();
    cli.build();
    let Some(at) = command_at(&words, &cli) else { return words };
    let name = words[at].to_string_lossy().into_owned();
    let Some(command) = cli.find_subcommand(&name) else { return words };
    let options: Vec<&Arg> = command.get_arguments().collect();
    let (mut own, mut settings) = (words[..=at].to_vec(), Vec::new());
    let mut rest = words.into_iter().skip(at + 1);
    while let Some(word) = rest.next() {
        if word == "--" {
            settings.extend(rest);
            break;
        }
        match word.to_str().and_then(|text| option(text, &options)) {
            Some((arg, long)) => {
                let takes_next = arg.get_action().takes_values() && !long.contains('=');
                own.push(long.into());
                own.extend(takes_next.then(|| rest.next()).flatten());
            }
            None => settings.push(word),
        }
    }
    own.push("--".into());
    own.extend(settings);
    own
}

/// Where the command stands, if it is one of these.
fn command_at(words: &[OsString], cli: &clap::Command) -> Option<usize> {
    let globals: Vec<&Arg> = cli.get_arguments().collect();
    let mut at = 1;
    while let Some(word) = words.get(at).and_then(|w| w.to_str()) {
        match option(word, &globals) {
            Some((arg, long)) => {
                at += 1 + usize::from(arg.get_action().takes_values() && !long.contains('='));
            }
            None => return COMMANDS.contains(&word).then_some(at),
        }
    }
    None
}

/// The option that a word names, in either spelling, and the word in clap's.
fn option<'a>(word: &str, options: &[&'a Arg]) -> Option<(&'a Arg, String)> {
    let Some(long) = word.strip_prefix("--") else {
        let mut letters = word.strip_prefix('-')?.chars();
        let (Some(letter), None) = (letters.next(), letters.next()) else { return None };
        let arg = options.iter().find(|a| a.get_short() == Some(letter))?;
        return Some((arg, word.to_string()));
    };
    let (name, value) = long.split_once('=').map_or((long, None), |(n, v)| (n, Some(v)));
    let name = name.replace('_', "-");
    let arg = options.iter().find(|a| a.get_long() == Some(name.as_str()))?;
    Some((arg, value.map_or(format!("--{name}"), |v| format!("--{name}={v}"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(line: &str) -> String {
        let words = arrange(line.split(' ').map(OsString::from).collect());
        words.iter().map(|w| w.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn settings_stand_behind_the_commands_own_options() {
        for (line, want) in [
            ("loratune train a.yaml seed=1 --print-config", "loratune train --print-config -- a.yaml seed=1"),
            (
                "loratune train --stage sft --do_train --print_config",
                "loratune train --print-config -- --stage sft --do_train",
            ),
            ("loratune --threads 2 train --lora-r -1 -q", "loratune --threads 2 train -q -- --lora-r -1"),
            ("loratune train --threads 2 x --threads=3", "loratune train --threads 2 --threads=3 -- x"),
            ("loratune train -h", "loratune train -h --"),
            ("loratune llm --train --model m --json", "loratune llm --json -- --train --model m"),
            ("loratune train -- --json", "loratune train -- --json"),
            ("loratune merge --model m", "loratune merge --model m"),
            ("loratune --threads", "loratune --threads"),
        ] {
            assert_eq!(arranged(line), want);
        }
    }
}
