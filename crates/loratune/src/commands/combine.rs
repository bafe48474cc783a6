//! `loratune combine`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use loratune_model::adapter::combine::{self, Combination, CombineOptions};
use loratune_model::files::atomic::replace_dir_atomically;
use serde_json::json;

use super::folder::{self, Failure, Kind};
use crate::cli::{CombineArgs, Global};
use crate::load::read_adapter;
use crate::output::{self, Usage, field};

pub fn run(args: &CombineArgs, global: &Global) -> Result<()> {
    let given: Vec<(PathBuf, f64)> = args.adapter.iter().map(|a| path_and_weight(a)).collect();
    let options = options(args)?;
    if let Some((path, weight)) = given.iter().find(|(_, w)| !w.is_finite()) {
        return Err(
            Usage(format!("{}: its weight is {weight}; a finite number is needed", path.display())).into()
        );
    }
    let sources: Vec<&Path> = given.iter().map(|(p, _)| p.as_path()).collect();
    folder::check(&args.output, Kind::Adapter, args.overwrite, &sources)?;
    let read = given.iter().map(|(path, _)| read_adapter(path)).collect::<Result<Vec<_>>>()?;
    let folders: Vec<&Path> = read.iter().map(|a| a.folder.as_path()).collect();
    let tokenizer = folder::common_tokenizer(&folders)?;
    let weights = given.iter().map(|(_, weight)| *weight);
    let adapters: Vec<_> = read.into_iter().map(|a| a.saved).zip(weights).collect();
    let result = combine::combine(&adapters, &options).map_err(|e| match e {
        combine::Error::Option { option, what } => Usage(format!("--{} {what}", flag(option))).into(),
        other => anyhow::Error::from(other),
    })?;
    replace_dir_atomically(&args.output, |dir| -> Result<(), Failure> {
        folder::write_adapter(dir, &result)?;
        folder::write_tokenizer(dir, tokenizer.as_ref())
    })
    .map_err(|f| f.0)?;
    let exact = options.combination == Combination::Cat || given.len() == 1;
    if args.json {
        let adapters: Vec<_> = given
            .iter()
            .map(|(path, weight)| json!({"path": path.display().to_string(), "weight": weight}))
            .collect();
        output::json(&json!({
            "output": args.output.display().to_string(), "method": options.combination.name(),
            "rank": result.0.r, "exact": exact, "adapters": adapters,
        }))?;
    } else if !global.quiet {
        let mut out = field("wrote", format!("{} (LoRA, rank {})", args.output.display(), result.0.r));
        let sum: Vec<String> =
            given.iter().map(|(path, weight)| format!("{weight} × {}", path.display())).collect();
        out += &field("combined", sum.join(" + "));
        let what = if exact { ", exactly the weighted sum" } else { "" };
        out += &field("method", format!("{}{what}", options.combination));
        output::print(&out)?;
    }
    Ok(())
}

/// A folder and what stands behind its last `=`, if that is a number; else the weight is 1. A folder that exists under the
/// whole name is meant, unless there is one without the number too.
fn path_and_weight(given: &Path) -> (PathBuf, f64) {
    let split = given.to_str().and_then(|text| text.rsplit_once('='));
    match split.and_then(|(path, weight)| Some((Path::new(path), weight.parse().ok()?))) {
        Some((path, weight)) if path.exists() || !given.exists() => (path.to_path_buf(), weight),
        _ => (given.to_path_buf(), 1.0),
    }
}

fn options(args: &CombineArgs) -> Result<CombineOptions> {
    let name = args.method.name();
    let unused = |flag: &str, of: &str| {
        Err(Usage(format!("--{flag} is for {of}, and has no effect on {name}; leave it out")).into())
    };
    if args.majority_sign.is_some() && !name.contains("ties") {
        return unused("majority-sign", "ties");
    }
    if args.seed.is_some() && !name.contains("dare") {
        return unused("seed", "dare");
    }
    Ok(CombineOptions {
        density: args.density,
        majority_sign: args.majority_sign.unwrap_or_default(),
        svd_rank: args.rank,
        svd_clamp: args.svd_clamp,
        seed: args.seed.unwrap_or(42),
        ..CombineOptions::new(args.method)
    })
}

/// What PEFT's options are called here.
fn flag(option: &str) -> String {
    match option {
        "combination" => "method".into(),
        "svd_rank" => "rank".into(),
        other => other.replace('_', "-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_weight_is_what_stands_behind_the_last_equals_sign() {
        let split = |text: &str| {
            let (path, weight) = path_and_weight(Path::new(text));
            (path.display().to_string(), weight)
        };
        assert_eq!(split("a/b"), ("a/b".into(), 1.0));
        assert_eq!(split("a/b=0.7"), ("a/b".into(), 0.7));
        assert_eq!(split("lr=1/b=-2e-1"), ("lr=1/b".into(), -0.2));
        assert_eq!(split("lr=1/b"), ("lr=1/b".into(), 1.0));
        assert_eq!(split("a=b=c"), ("a=b=c".into(), 1.0));
    }
}
