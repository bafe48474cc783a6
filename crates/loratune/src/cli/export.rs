//! The arguments of `export`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use loratune_model::export::GgufType;

use super::StorageDtype;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples: loratune export --model models/base --adapter runs/first --output models/mine --gguf q8_0\n\
                  \u{20}         loratune export merge.yaml   (LLaMA-Factory's: model_name_or_path, adapter_name_or_path, template, export_dir …)\n\
                  Then:     ollama create mine -f models/mine/Modelfile"
)]
pub struct ExportArgs {
    /// A configuration (YAML or JSON) with LLaMA-Factory's keys of exporting, then settings that win over it.
    #[arg(value_name = "CONFIG.yaml] [KEY=VALUE", num_args = 0..)]
    pub settings: Vec<String>,
    /// The model: a Hugging Face folder or a GGUF file.
    #[arg(short, long, value_name = "PATH", help_heading = "Model")]
    pub model: Option<PathBuf>,
    /// An adapter for it, which is merged.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Model")]
    pub adapter: Option<PathBuf>,
    /// The folder to write.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Result")]
    pub output: Option<PathBuf>,
    /// Replace what an earlier export left in the output folder.
    #[arg(long, help_heading = "Result")]
    pub overwrite: bool,
    /// Write one GGUF file of the merged model instead of safetensors.
    #[arg(long, value_name = "TYPE", value_enum, help_heading = "Result", conflicts_with = "gguf_adapter")]
    pub gguf: Option<GgufArg>,
    /// Write a GGUF file of the adapter alone, for llama.cpp's --lora and Ollama's ADAPTER.
    #[arg(long, value_name = "TYPE", value_enum, help_heading = "Result")]
    pub gguf_adapter: Option<GgufArg>,
    /// Type of safetensors; the model's own unless given (f16 for a quantised GGUF file).
    #[arg(long, value_name = "TYPE", value_enum, help_heading = "Result", conflicts_with_all = ["gguf", "gguf_adapter"])]
    pub dtype: Option<StorageDtype>,
    /// Largest safetensors file in GB.
    #[arg(long, value_name = "GB", value_parser = gigabytes, help_heading = "Result", conflicts_with_all = ["gguf", "gguf_adapter"])]
    pub shard_size: Option<f64>,
    /// Chat template to write with the model: a name or a .jinja file; the model's own unless given.
    #[arg(short, long, value_name = "NAME", help_heading = "Result")]
    pub template: Option<String>,
    /// Read the result back and print its largest difference in a logit from base and adapter.
    #[arg(long, help_heading = "Result", conflicts_with = "gguf_adapter")]
    pub verify: bool,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// What the matrices of a GGUF file are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum GgufArg {
    F32,
    F16,
    Bf16,
    #[value(name = "q8_0")]
    Q8_0,
    #[value(name = "q4_0")]
    Q4_0,
}

impl From<GgufArg> for GgufType {
    fn from(kind: GgufArg) -> GgufType {
        match kind {
            GgufArg::F32 => GgufType::F32,
            GgufArg::F16 => GgufType::F16,
            GgufArg::Bf16 => GgufType::Bf16,
            GgufArg::Q8_0 => GgufType::Q8_0,
            GgufArg::Q4_0 => GgufType::Q4_0,
        }
    }
}

/// A size of shards.
///
/// # Errors
/// In words, for one that is none.
pub fn gigabytes(text: &str) -> Result<f64, String> {
    let given = text.trim_end_matches("GB").trim().parse().ok().filter(|x: &f64| x.is_finite() && *x > 0.0);
    given.ok_or_else(|| "a number of gigabytes above 0 is needed".into())
}
