//! `loratune push`.

use std::path::Path;

use anyhow::Result;
use loratune_hub::{HubError, Push, Pushed, Token, folder};
use serde_json::{Value, json};

use crate::cli::{Global, PushArgs};
use crate::hub;
use crate::output::{self, Usage, field};

pub fn run(args: &PushArgs, global: &Global) -> Result<()> {
    check(&args.folder)?;
    let token = args.token.as_deref().map(|t| Token::new(t, "--token")).transpose().map_err(usage)?.flatten();
    let hub = hub::open(token)?;
    let push = Push {
        repo: hub.full_id(&args.repo).map_err(usage)?,
        private: !args.public,
        revision: args.revision.clone(),
        message: args.message.clone(),
        files: folder(&args.folder, "")?,
    };
    let pushed = hub.push(&push)?;
    if args.json {
        output::json(&as_json(&pushed))?;
    } else if !global.quiet {
        output::print(&lines(&pushed))?;
    }
    Ok(())
}

/// Names and settings that cannot be are the command line's fault.
fn usage(e: HubError) -> anyhow::Error {
    match e {
        HubError::Name { .. } | HubError::Setting { .. } => Usage(e.to_string()).into(),
        other => other.into(),
    }
}

/// A folder that others can use.
fn check(folder: &Path) -> Result<()> {
    let has = |name: &str| folder.join(name).is_file();
    let is_gguf = |name: &std::ffi::OsStr| name.to_string_lossy().to_lowercase().ends_with(".gguf");
    if !folder.is_dir() {
        let what = if folder.exists() { "is a file; a folder is pushed" } else { "does not exist" };
        return Err(Usage(format!("{} {what}", folder.display())).into());
    }
    let mut entries = std::fs::read_dir(folder)?.flatten();
    if has("adapter_config.json") || has("config.json") || entries.any(|e| is_gguf(&e.file_name())) {
        return Ok(());
    }
    let what = "is neither an adapter nor a model: it has no adapter_config.json, config.json or .gguf file";
    anyhow::bail!("{} {what}", folder.display())
}

/// What a push came to, for programs.
pub fn as_json(pushed: &Pushed) -> Value {
    json!({
        "repo": pushed.repo, "url": pushed.url, "commit": pushed.commit, "changed": pushed.changed,
        "unchanged": pushed.unchanged, "private": pushed.private,
    })
}

/// The same for people.
pub fn lines(pushed: &Pushed) -> String {
    let seen = match pushed.private {
        Some(true) => " (private)",
        Some(false) => " (public)",
        None => "",
    };
    let files = |n: usize| if n == 1 { "1 file".to_string() } else { format!("{n} files") };
    let what = match (pushed.changed, pushed.unchanged) {
        (0, _) => "nothing to do, it has all of it".to_string(),
        (changed, 0) => files(changed),
        (changed, same) => format!("{}; {} it had already", files(changed), files(same)),
    };
    field("pushed", format!("{}{seen}, {what}", pushed.url))
}
