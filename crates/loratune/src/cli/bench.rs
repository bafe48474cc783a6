//! The arguments of `loratune bench`.

use clap::{Args, Subcommand, ValueEnum};
use loratune_engine::{Checkpointing, DeviceChoice};
use loratune_model::adapter::Init;

use super::{ComputeDtype, at_least_1};

#[derive(Debug, Args)]
#[command(
    after_help = "Examples: loratune bench step --shape smollm2-135m --batch 4 --seq 256 --dtype bf16 --profile\n\
                  \u{20}         loratune bench ops --shape smollm2-135m --rows 1024"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    pub what: BenchCommand,
}

#[derive(Debug, Subcommand)]
pub enum BenchCommand {
    /// Time training steps of a model of some shape with random weights.
    #[command(
        after_help = "Example: loratune bench step --shape smollm2-135m --batch 4 --seq 256 --dtype bf16 --profile"
    )]
    Step(BenchStepArgs),
    /// Time single ops of a model's shape, and what the machine can do at best.
    #[command(after_help = "Example: loratune bench ops --shape smollm2-135m --rows 1024")]
    Ops(BenchOpsArgs),
}

/// What is put on the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchMethod {
    Lora,
    Dora,
}

fn init(name: &str) -> Result<Init, String> {
    Init::from_name(name).ok_or_else(|| {
        "expected true, false, gaussian, orthogonal, pissa, pissa_niter_N or olora, as init_lora_weights"
            .into()
    })
}

#[derive(Debug, Args)]
pub struct BenchStepArgs {
    /// A model's name (an unknown one lists them) or a config.json.
    #[arg(long, value_name = "SHAPE", default_value = "smollm2-135m", help_heading = "Step")]
    pub shape: String,
    /// Rows of a micro-batch.
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least_1, help_heading = "Step")]
    pub batch: usize,
    /// Tokens of a row.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_1, help_heading = "Step")]
    pub seq: usize,
    /// Micro-batches of a step.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_1, help_heading = "Step")]
    pub accumulation: usize,
    /// Rank of the adapter; alpha is twice the rank.
    #[arg(long, value_name = "R", default_value_t = 8, value_parser = at_least_1, help_heading = "Step")]
    pub rank: usize,
    /// Layers that are adapted: all, or names such as q_proj,v_proj.
    #[arg(long, value_name = "NAMES", default_value = "all", help_heading = "Step")]
    pub targets: String,
    /// Kind of adapter.
    #[arg(long, value_name = "METHOD", value_enum, default_value_t = BenchMethod::Lora, help_heading = "Step")]
    pub method: BenchMethod,
    /// How the adapters start, in PEFT's names: true, gaussian, pissa_niter_16, …; what it takes is part of the time to build.
    #[arg(long, value_name = "NAME", default_value = "true", value_parser = init, help_heading = "Step")]
    pub init: Init,
    /// Type of frozen weights and activations.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = ComputeDtype::Bf16, help_heading = "Step")]
    pub dtype: ComputeDtype,
    /// What computes: auto (the first NVIDIA card, else the processor), cpu, cuda, cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto", help_heading = "Step")]
    pub device: DeviceChoice,
    /// Compute blocks again in the backward pass instead of keeping them; with offload, their inputs wait in the host's memory.
    #[arg(long, value_name = "HOW", value_enum, num_args = 0..=1, default_value = "none", default_missing_value = "block",
          help_heading = "Step")]
    pub gradient_checkpointing: BenchCheckpointing,
    /// Steps that are timed, after one that is not.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = at_least_1, help_heading = "Step")]
    pub steps: usize,
    /// Also say where the time of one more step goes, by op, beside what the machine can do.
    #[arg(long, help_heading = "Output")]
    pub profile: bool,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct BenchOpsArgs {
    /// A model's name (an unknown one lists them) or a config.json.
    #[arg(long, value_name = "SHAPE", default_value = "smollm2-135m", help_heading = "Ops")]
    pub shape: String,
    /// Tokens that a product multiplies.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_1, help_heading = "Ops")]
    pub rows: usize,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What a step keeps of the blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchCheckpointing {
    None,
    Block,
    Offload,
}

impl From<BenchCheckpointing> for Checkpointing {
    fn from(how: BenchCheckpointing) -> Checkpointing {
        match how {
            BenchCheckpointing::None => Checkpointing::None,
            BenchCheckpointing::Block => Checkpointing::Block,
            BenchCheckpointing::Offload => Checkpointing::Offload,
        }
    }
}
