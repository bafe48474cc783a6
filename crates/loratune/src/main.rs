//! The command line of loratune: arguments, messages and exit codes. What it does is in the libraries.

mod cli;
mod commands;
mod hub;
mod load;
mod output;
mod progress;
mod pushing;
mod transfer;

use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};
use commands::train::FrontEnd;

/// Tensors at whole cache lines.
#[global_allocator]
static MEMORY: loratune_engine::Memory = loratune_engine::Memory;

/// Exit codes: 0, or one of these. (130 is an interrupted run; see `commands::train`.)
const FAILURE: u8 = 1;
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = match Cli::try_parse_from(cli::arrange(std::env::args_os().collect())) {
        Ok(cli) => cli,
        Err(e) => return usage(&e),
    };
    start_logs();
    match load::on_threads(&cli.global, || dispatch(&cli)) {
        Ok(code) => code,
        Err(e) if output::is_closed(&e) => ExitCode::SUCCESS,
        Err(e) => {
            output::error(&output::message(&e));
            ExitCode::from(if output::is_usage(&e) { USAGE } else { FAILURE })
        }
    }
}

fn dispatch(cli: &Cli) -> anyhow::Result<ExitCode> {
    let global = &cli.global;
    hub::set_quiet(global.quiet);
    match &cli.command {
        Command::Quickstart(args) => return commands::quickstart::run(args, global),
        Command::Train(args) => return commands::train::run(FrontEnd::Keys, &args.run, global),
        Command::Llm(args) => return commands::train::run(FrontEnd::AutoTrain, &args.run, global),
        Command::Merge(args) => commands::merge::run(args, global)?,
        Command::Export(args) => commands::export::run(args, global)?,
        Command::Unmerge(args) => commands::unmerge::run(args, global)?,
        Command::Convert(args) => commands::convert::run(args, global)?,
        Command::Combine(args) => commands::combine::run(args, global)?,
        Command::Push(args) => commands::push::run(args, global)?,
        Command::Chat(args) => commands::chat::run(args, global)?,
        Command::Inspect(args) => commands::inspect::run(args)?,
        Command::Generate(args) => commands::generate::run(args, global)?,
        Command::Bench(args) => commands::bench::run(args)?,
        Command::Estimate(args) => commands::estimate::run(args, global)?,
        Command::Eval(args) => commands::eval::run(args, global)?,
    }
    Ok(ExitCode::SUCCESS)
}

/// Help, the version, or what clap says is wrong.
fn usage(e: &clap::Error) -> ExitCode {
    let failed = e.use_stderr();
    let _ = e.print();
    ExitCode::from(if failed { USAGE } else { 0 })
}

/// Logs of the libraries, only where RUST_LOG asks for them.
fn start_logs() {
    if std::env::var_os("RUST_LOG").is_some_and(|v| !v.is_empty()) {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    }
}
