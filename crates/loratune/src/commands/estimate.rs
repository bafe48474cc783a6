//! `loratune estimate`.

use std::path::Path;

use anyhow::{Context, Result};
use loratune_engine::Checkpointing;
use loratune_engine::cuda::Planned;
use loratune_model::DecoderSpec;
use loratune_model::bench::{SHAPES, shape, spec};
use loratune_train::config::{Loaded, MicroBatch, Origin, RunConfig};
use loratune_train::estimate::{Estimate, Target, estimate, estimate_shape};
use loratune_train::located::Located;
use loratune_train::model::dtypes;
use serde_json::json;

use crate::cli::{EstimateArgs, Global};
use crate::hub;
use crate::output::{self, Usage, bytes, field, thousands};

pub fn run(args: &EstimateArgs, global: &Global) -> Result<()> {
    let loaded = load(args, global)?;
    let config = &loaded.config;
    if !args.json && !global.quiet {
        loaded.notes.iter().for_each(|n| output::note(&format!("note: {n}")));
    }
    let target = Target::of(config.device)?;
    let made = match &args.shape {
        Some(name) => estimate_shape(config, &decoder(name)?, &target)?,
        None => {
            let (config, located) = locate(config)?;
            let with_data = !args.no_data && loaded.origin("dataset") != Origin::Default;
            estimate(&config, &located, &target, with_data)?
        }
    };
    if args.json {
        let dtype = dtypes(config);
        return Ok(output::json(&json!({
            "device": target.name, "free_bytes": target.free,
            "dtype": {"activations": dtype.activations.to_string(), "weights": dtype.weights.to_string()},
            "estimate": made,
        }))?);
    }
    Ok(output::print(&render(&made, &target, config))?)
}

/// The configuration, in which nothing has to stand that an estimate does not need.
fn load(args: &EstimateArgs, global: &Global) -> Result<Loaded> {
    let mut words = args.settings.clone();
    words.extend(global.threads.map(|n| format!("threads={n}")));
    let mut without = vec![("dataset", "(none)"), ("output_dir", "(none)")];
    if args.shape.is_some() {
        without.push(("model_name_or_path", "(a shape)"));
    }
    let loaded = RunConfig::from_words_without(&words, &without)?;
    if args.shape.is_some() && loaded.origin("model_name_or_path") != Origin::Default {
        let what = "--shape is given, and model_name_or_path too: which of the two is meant?";
        return Err(Usage(what.into()).into());
    }
    Ok(loaded)
}

/// Where the model lies. Of one on the hub the weights are not fetched.
fn locate(config: &RunConfig) -> Result<(RunConfig, Located)> {
    let mut config = config.clone();
    if !Path::new(&config.model_name_or_path).exists() {
        config.train_from_scratch = true;
    }
    let located = hub::locate(&config)?;
    Ok((config, located))
}

/// The decoder of a named shape, or of a config.json.
pub fn decoder(name: &str) -> Result<DecoderSpec> {
    let config = match shape(name) {
        Some(config) => config,
        None if name == "quickstart" => serde_json::from_slice(super::quickstart::MODEL_CONFIG)?,
        None if Path::new(name).exists() => {
            let path =
                if Path::new(name).is_dir() { Path::new(name).join("config.json") } else { name.into() };
            let text = std::fs::read_to_string(&path).with_context(|| format!("{}", path.display()))?;
            serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?
        }
        None => {
            let names: Vec<&str> = SHAPES.iter().map(|(name, _)| *name).collect();
            return Err(Usage(format!(
                "--shape {name}: expected the path of a config.json, or one of {}, quickstart",
                names.join(", ")
            ))
            .into());
        }
    };
    Ok(spec(&config)?)
}

fn render(made: &Estimate, target: &Target, config: &RunConfig) -> String {
    let m = &made.memory;
    let size = |n: usize| bytes(n as u64);
    let dtype = dtypes(config);
    let share = 100.0 * m.trained_parameters as f64 / m.parameters.max(1) as f64;
    let longest = made.rows.iter().max().copied().unwrap_or(0);
    let alike = made.rows.iter().all(|&n| n == longest);
    let rows = match made.rows.len() {
        1 => format!("1 row of {} tokens", thousands(longest)),
        n if alike => format!("{n} rows of {} tokens", thousands(longest)),
        n => format!("the {n} longest rows, of up to {} tokens", thousands(longest)),
    };
    let mut out = field(
        "model",
        format!(
            "{} parameters, {} trained ({share:.2} %)",
            thousands(m.parameters),
            thousands(m.trained_parameters)
        ),
    );
    out += &field("device", &target.name);
    let again = match config.gradient_checkpointing {
        Checkpointing::None => "",
        Checkpointing::Block => ", blocks computed again",
        Checkpointing::Offload => ", blocks computed again from inputs in the host's memory",
    };
    let unknown = match (config.micro_batch, target.free) {
        (Some(MicroBatch::Auto), None) => {
            "; how many micro_batch: auto takes depends on what is free there, which is not known"
        }
        _ => "",
    };
    out += &field(
        "step",
        format!(
            "{rows} at a time, {} times; {} activations on {} weights{again}{unknown}",
            made.accumulation, dtype.activations, dtype.weights
        ),
    );
    match (&made.data, &made.without_data) {
        (Some(data), _) => {
            let [rows, tokens, steps] =
                [data.rows_per_epoch as u64, data.tokens_per_epoch, data.total_steps].map(thousands);
            out += &field("data", format!("{rows} rows and {tokens} tokens an epoch; {steps} steps"));
        }
        (None, Some(why)) => {
            out += &field("data", format!("not read: {why}; rows are taken to have cutoff_len tokens"));
        }
        (None, None) => {}
    }
    out += "\n";
    out += &field("weights", format!("{} frozen, {} trained", size(m.weights), size(m.trained)));
    out += &field("gradients", size(m.gradients));
    out += &field("optimiser", size(m.optimizer));
    out += &field("activations", format!("{} kept, {} a block", size(m.activations), size(m.block)));
    out += &field("loss", format!("{} while it is computed", size(m.loss)));
    out += &field("backward", format!("{} beyond what it finds", size(m.backward)));
    if m.workspace > 0 {
        out += &field("workspace", size(m.workspace));
    }
    let taken = format!("{}, and {} with what is kept for the next tensors", size(m.peak), size(m.taken));
    out += &field("peak", taken);
    out += &field("beside it", beside(target.planned));
    if let Some(free) = target.free {
        let fits = match (m.peak <= free, m.taken <= free) {
            (true, true) => "fits",
            (true, false) => "fits, with little to spare",
            _ => {
                "does not fit: fewer or shorter rows at a time need less, and so does gradient_checkpointing"
            }
        };
        out += &field("free", format!("{}: {fits}", size(free)));
    }
    out
}

fn beside(planned: Planned) -> &'static str {
    match planned {
        Planned::Processor => {
            "the program, tokenizer and data; pages of the model's files, which the system takes back when it wants to"
        }
        _ => "what the driver takes for its context and the kernels, about half a gigabyte",
    }
}
