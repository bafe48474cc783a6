//! The arguments of the commands that make adapters and models from adapters and models.

use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use loratune_model::adapter::combine::{Combination, MajoritySign};
use loratune_model::files::FileDType;

use super::{ModelArgs, at_least_1, share_or_0};

#[derive(Debug, Args)]
#[command(
    after_help = "Example: loratune merge --model models/base --adapter runs/first --output models/mine --verify"
)]
pub struct MergeArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// The folder to write: a model with its tokenizer, as Hugging Face has it.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Result")]
    pub output: PathBuf,
    /// Replace what an earlier merge left in the output folder and in the file of norms.
    #[arg(long, help_heading = "Result")]
    pub overwrite: bool,
    /// Type of the written weights; the model's own unless given (f16 for a quantised GGUF file).
    #[arg(long, value_name = "TYPE", value_enum, help_heading = "Result")]
    pub dtype: Option<StorageDtype>,
    /// Also write the rows' lengths that DoRA replaces, a safetensors file: unmerging needs it.
    #[arg(long, value_name = "FILE", help_heading = "Result", requires = "adapter")]
    pub norms: Option<PathBuf>,
    /// Read the result back and print its largest difference in a logit from base and adapter.
    #[arg(long, help_heading = "Result")]
    pub verify: bool,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: loratune unmerge --model models/mine --adapter runs/first --output models/base-again\n\
                  LoRA is taken out up to the rounding of the merged weights; DoRA needs the norms that merging wrote. An \
                  adapter that replaced weights (modules_to_save, trained rows, biases) can't be taken out."
)]
pub struct UnmergeArgs {
    /// The model that the adapter was merged into.
    #[arg(short, long, value_name = "PATH", help_heading = "Model")]
    pub model: PathBuf,
    /// The adapter.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Model")]
    pub adapter: PathBuf,
    /// For DoRA: the file that `loratune merge --norms` wrote.
    #[arg(long, value_name = "FILE", help_heading = "Model")]
    pub norms: Option<PathBuf>,
    /// The folder to write: a model with its tokenizer, as Hugging Face has it.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Result")]
    pub output: PathBuf,
    /// Replace a model that is in the output folder.
    #[arg(long, help_heading = "Result")]
    pub overwrite: bool,
    /// Type of the written weights; the model's own unless given (f16 for a quantised GGUF file).
    #[arg(long, value_name = "TYPE", value_enum, help_heading = "Result")]
    pub dtype: Option<StorageDtype>,
    /// Read the result back and print the largest difference in a logit of result and adapter from the merged model.
    #[arg(long, help_heading = "Result")]
    pub verify: bool,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What an adapter becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ConvertTo {
    /// Plain LoRA on the untouched model
    Lora,
    /// Factors of half the rank, and the residual model that they belong on
    Raw,
}

/// How the nearest matrix of a rank is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SvdKind {
    Exact,
    Fast,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: loratune convert --adapter runs/pissa --model models/base --output adapters/plain\n\
                  PiSSA and OLoRA as PEFT leaves them become plain LoRA of twice the rank, exactly: with --model by \
                  decomposing the model again, or with --initial (the only way for pissa_niter_N, and for factors on a \
                  residual model). With --rank any adapter, DoRA too, becomes plain LoRA, and the error is told. --to raw is \
                  exact but for the rounding of the residual model to its type; OUTPUT/initial_adapter leads back."
)]
pub struct ConvertArgs {
    /// The adapter.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Adapter")]
    pub adapter: PathBuf,
    /// The model that it was trained on.
    #[arg(short, long, value_name = "PATH", help_heading = "Adapter")]
    pub model: Option<PathBuf>,
    /// The adapter as it was before training (PEFT's path_initial_model_for_weight_conversion).
    #[arg(long, value_name = "FOLDER", help_heading = "Adapter")]
    pub initial: Option<PathBuf>,
    /// What it becomes.
    #[arg(long, value_name = "FORM", value_enum, default_value_t = ConvertTo::Lora, hide_possible_values = true, help_heading = "Result", help = "What it becomes: lora, plain on the untouched model; or raw, factors of half the rank and the residual model that they belong on")]
    pub to: ConvertTo,
    /// Plain LoRA of this rank, the nearest to what the adapter changes.
    #[arg(long, value_name = "N", value_parser = at_least_1, help_heading = "Result")]
    pub rank: Option<usize>,
    /// How it is found; exact up to a side of 1024 unless given, fast (randomised) above.
    #[arg(long, value_name = "KIND", value_enum, requires = "rank", help_heading = "Result")]
    pub svd: Option<SvdKind>,
    /// Type of the residual model; the model's own unless given (f16 for a quantised GGUF file).
    #[arg(long, value_name = "TYPE", value_enum, help_heading = "Result")]
    pub dtype: Option<StorageDtype>,
    /// The folder to write.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Result")]
    pub output: PathBuf,
    /// Replace an adapter that is in the output folder.
    #[arg(long, help_heading = "Result")]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: loratune combine --adapter runs/maths=0.7 --adapter runs/style=0.3 --method cat --output adapters/both\n\
                  Only cat is exactly the weighted sum of what the adapters change; its rank is the sum of theirs. svd is the \
                  nearest to it of a given rank. linear, ties, dare_* and magnitude_prune combine the factors, which \
                  approximates it; with _svd they combine the changes themselves and cut them to a rank. DoRA and \
                  unconverted PiSSA have to be made plain first (loratune convert)."
)]
pub struct CombineArgs {
    /// An adapter and its weight, 1 unless given; once for each.
    #[arg(short, long, value_name = "FOLDER[=WEIGHT]", required = true, help_heading = "Adapters")]
    pub adapter: Vec<PathBuf>,
    /// How they are combined: PEFT's combination_type.
    #[arg(long, value_name = "METHOD", default_value = "cat", value_parser = methods(), help_heading = "Method")]
    pub method: Combination,
    /// The share of elements that are kept, for ties, dare and magnitude_prune.
    #[arg(long, value_name = "SHARE", value_parser = share_or_0, allow_negative_numbers = true, help_heading = "Method")]
    pub density: Option<f64>,
    /// Rank of the result of an svd method; the largest of the adapters' unless given.
    #[arg(long, value_name = "N", value_parser = at_least_1, help_heading = "Method")]
    pub rank: Option<usize>,
    /// For an svd method: clamp the entries of the factors to this quantile of their sizes.
    #[arg(long, value_name = "QUANTILE", value_parser = share_or_0, allow_negative_numbers = true, help_heading = "Method")]
    pub svd_clamp: Option<f64>,
    /// For ties: by what the sign of an element is elected; total unless given.
    #[arg(long, value_name = "BY", value_parser = signs(), help_heading = "Method")]
    pub majority_sign: Option<MajoritySign>,
    /// For dare: seed of what is dropped; 42 unless given.
    #[arg(long, value_name = "N", help_heading = "Method")]
    pub seed: Option<u64>,
    /// The folder to write.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Result")]
    pub output: PathBuf,
    /// Replace an adapter that is in the output folder.
    #[arg(long, help_heading = "Result")]
    pub overwrite: bool,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

fn methods() -> impl TypedValueParser<Value = Combination> {
    PossibleValuesParser::new(Combination::ALL.map(Combination::name)).try_map(|name| name.parse())
}

fn signs() -> impl TypedValueParser<Value = MajoritySign> {
    PossibleValuesParser::new(MajoritySign::ALL.map(MajoritySign::name)).try_map(|name| name.parse())
}

/// Type of weights in files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StorageDtype {
    F32,
    F16,
    Bf16,
}

impl From<StorageDtype> for FileDType {
    fn from(d: StorageDtype) -> FileDType {
        match d {
            StorageDtype::F32 => FileDType::F32,
            StorageDtype::F16 => FileDType::F16,
            StorageDtype::Bf16 => FileDType::BF16,
        }
    }
}
