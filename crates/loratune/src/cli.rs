//! The arguments of every command.

mod bench;
mod estimate;
mod export;
mod push;
mod tools;
mod words;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use loratune_engine::DType;
use loratune_train::config::KEYS;

pub use bench::{BenchArgs, BenchCommand, BenchMethod, BenchOpsArgs, BenchStepArgs};
pub use estimate::EstimateArgs;
pub use export::{ExportArgs, GgufArg, gigabytes};
pub use push::PushArgs;
pub use tools::{CombineArgs, ConvertArgs, ConvertTo, MergeArgs, StorageDtype, SvdKind, UnmergeArgs};
pub use words::arrange;

/// Fine-tune language models with LoRA: one binary, no Python.
#[derive(Debug, Parser)]
#[command(
    name = "loratune",
    version,
    max_term_width = 100,
    propagate_version = true,
    after_help = "Example: loratune train lora.yaml\n\
                  Then:    loratune generate --model models/base --adapter runs/first --prompt \"Hello\""
)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub command: Command,
}

/// What every command understands.
#[derive(Debug, Args)]
pub struct Global {
    /// Say nothing but results and errors.
    #[arg(short, long, global = true, help_heading = "Everywhere")]
    pub quiet: bool,
    /// Threads for computing; all cores unless given.
    #[arg(long, value_name = "N", global = true, help_heading = "Everywhere", value_parser = at_least_1)]
    pub threads: Option<usize>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch a small model learn: fine-tune the one that comes with loratune, in about a minute.
    Quickstart(QuickstartArgs),
    /// Fine-tune a model, or go on with a run that was stopped.
    Train(TrainArgs),
    /// Fine-tune a model by AutoTrain's command line: its flags, defaults and meanings.
    Llm(LlmArgs),
    /// Fold an adapter into its model, or turn a GGUF file into a Hugging Face folder.
    Merge(MergeArgs),
    /// Write a model for other programs: safetensors in shards, GGUF, an adapter as GGUF, a Modelfile for Ollama.
    Export(ExportArgs),
    /// Take an adapter out of a model again that it was merged into.
    Unmerge(UnmergeArgs),
    /// Make an adapter plain LoRA, or LoRA of another rank, or factors on a residual model.
    Convert(ConvertArgs),
    /// Add up adapters with weights, or merge them by TIES or DARE.
    Combine(CombineArgs),
    /// Upload an adapter or a model to the hub.
    Push(PushArgs),
    /// Let a model answer prompts.
    Generate(GenerateArgs),
    /// Talk with a model.
    Chat(ChatArgs),
    /// Measure a model on a dataset: loss, perplexity, accuracy.
    Eval(EvalArgs),
    /// Describe a model, an adapter, or how a dataset is rendered and masked.
    Inspect(InspectArgs),
    /// Say what memory a run takes, before anything is loaded.
    Estimate(EstimateArgs),
    /// Time training steps and ops on this machine.
    Bench(BenchArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example: loratune quickstart --output first-run")]
pub struct QuickstartArgs {
    /// Settings that win over those of its configuration, such as learning_rate=5e-3.
    #[arg(value_name = "KEY=VALUE", num_args = 0..)]
    pub settings: Vec<String>,
    /// Folder for the model, the data, the configuration and the adapter.
    #[arg(
        short,
        long,
        value_name = "FOLDER",
        default_value = "loratune-quickstart",
        help_heading = "Output"
    )]
    pub output: PathBuf,
    /// Replace an earlier quickstart in that folder.
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Examples: loratune train lora.yaml learning_rate=2e-4 output_dir=runs/second\n\
                  \u{20}         loratune train --model_name_or_path models/base --dataset data.jsonl --output_dir runs/first",
    after_long_help = keys_help()
)]
pub struct TrainArgs {
    #[command(flatten)]
    pub run: RunArgs,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: loratune llm --train --model models/base --data-path data/ --project-name first --peft",
    after_long_help = autotrain_help()
)]
pub struct LlmArgs {
    #[command(flatten)]
    pub run: RunArgs,
}

/// A run: its settings, and what is shown of it.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// A configuration file (YAML or JSON; `train` only), then settings that win over it: KEY=VALUE, or flags for every key
    /// (`--key value`, `--switch`, `--no_switch`; `-` and `_` are the same).
    #[arg(value_name = "CONFIG.yaml] [KEY=VALUE] [--KEY VALUE", num_args = 0..)]
    pub settings: Vec<String>,
    /// Print the whole configuration, with where each value comes from, and stop.
    #[arg(long, help_heading = "Before the run", conflicts_with_all = ["dry_run", "json"])]
    pub print_config: bool,
    /// Read and check everything, print the data report and the plan, and stop.
    #[arg(long, help_heading = "Before the run")]
    pub dry_run: bool,
    /// Print events for programs: one JSON object a line.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

/// A model to run.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The model: a Hugging Face folder, a GGUF file, or a name on the hub (org/name, org/name@revision,
    /// org/name:file.gguf).
    #[arg(short, long, value_name = "PATH", help_heading = "Model")]
    pub model: PathBuf,
    /// An adapter for it, in PEFT's format: what a run leaves in its folder, or a name on the hub.
    #[arg(short, long, value_name = "FOLDER", help_heading = "Model")]
    pub adapter: Option<PathBuf>,
}

/// A model to run, perhaps with several adapters that share its weights.
#[derive(Debug, Args)]
pub struct ModelsArgs {
    /// The model: a Hugging Face folder, a GGUF file, or a name on the hub (org/name, org/name@revision,
    /// org/name:file.gguf).
    #[arg(short, long, value_name = "PATH", help_heading = "Model")]
    pub model: PathBuf,
    /// An adapter for it, in PEFT's format: what a run leaves in its folder, or a name on the hub; give the option again for more.
    #[arg(short, long, value_name = "[NAME=]FOLDER", help_heading = "Model")]
    pub adapter: Vec<PathBuf>,
}

/// Type of weights and activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ComputeDtype {
    F32,
    Bf16,
}

impl From<ComputeDtype> for DType {
    fn from(d: ComputeDtype) -> DType {
        match d {
            ComputeDtype::F32 => DType::F32,
            ComputeDtype::Bf16 => DType::BF16,
        }
    }
}

/// How a prompt becomes text, and how tokens are chosen.
#[derive(Debug, Args)]
pub struct AnswerArgs {
    /// A system message before the prompt.
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt")]
    pub system: Option<String>,
    /// Chat template: a name (alpaca, chatml, default, empty) or a .jinja file; the model's own unless given.
    #[arg(short, long, value_name = "NAME", help_heading = "Prompt")]
    pub template: Option<String>,
    /// Most tokens of an answer.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 256, help_heading = "Choice of tokens")]
    pub max_new_tokens: usize,
    /// 0 always takes the most probable token; higher is more varied.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true, help_heading = "Choice of tokens")]
    pub temperature: f64,
    /// Choose among the most probable tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share, allow_negative_numbers = true, help_heading = "Choice of tokens")]
    pub top_p: f64,
    /// Choose among this many most probable tokens; 0 is all.
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Choice of tokens")]
    pub top_k: usize,
    /// Seed of the choice; the same seed gives the same text.
    #[arg(long, value_name = "N", default_value_t = 42, help_heading = "Choice of tokens")]
    pub seed: u64,
    /// Type to compute in.
    #[arg(long, value_name = "TYPE", value_enum, default_value_t = ComputeDtype::F32, help_heading = "Model")]
    pub dtype: ComputeDtype,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: loratune generate --model models/base --adapter runs/first --prompt \"What is 2 + 3?\""
)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelsArgs,
    /// A prompt; give the option again for more.
    #[arg(short, long, value_name = "TEXT", help_heading = "Prompt", required_unless_present = "prompts")]
    pub prompt: Vec<String>,
    /// Prompts from a .jsonl file: strings, or objects with `prompt`, `question`, `instruction` or `messages`; a line's
    /// `adapter` says which one answers it alone (`__base__` is the model without any).
    #[arg(long, value_name = "FILE", help_heading = "Prompt", conflicts_with = "prompt")]
    pub prompts: Option<PathBuf>,
    /// Continue the text of the prompt as it is, without the chat template.
    #[arg(long, help_heading = "Prompt", conflicts_with_all = ["system", "template"])]
    pub raw: bool,
    /// Prompts that run together.
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Prompt", value_parser = at_least_1)]
    pub batch_size: usize,
    #[command(flatten)]
    pub answer: AnswerArgs,
    /// Print one JSON object a line for every prompt.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(
    after_help = "Example: loratune eval --model models/base --adapter runs/first --dataset data/test.jsonl --exact-match"
)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelsArgs,
    /// Also measure the model without an adapter.
    #[arg(long, help_heading = "Model", requires = "adapter")]
    pub base: bool,
    /// Compute in bfloat16.
    #[arg(long, help_heading = "Model")]
    pub bf16: bool,
    /// A dataset: a .json or .jsonl file or a folder of them; give the option again for more.
    #[arg(short, long, value_name = "PATH", required = true, help_heading = "Data")]
    pub dataset: Vec<PathBuf>,
    /// Chat template: a name (alpaca, chatml, default, empty) or a .jinja file; the model's own unless given.
    #[arg(short, long, value_name = "NAME", help_heading = "Data")]
    pub template: Option<String>,
    /// Cut rows at this many tokens; the model's context unless given.
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = at_least_1)]
    pub cutoff_len: Option<usize>,
    /// Use only the first rows of every dataset.
    #[arg(long, value_name = "N", help_heading = "Data", value_parser = at_least_1)]
    pub max_samples: Option<usize>,
    /// Rows that run together.
    #[arg(long, value_name = "N", default_value_t = 8, help_heading = "Data", value_parser = at_least_1)]
    pub batch_size: usize,
    /// Also let the model answer every row's prompt and count answers that equal the row's.
    #[arg(long, help_heading = "Answers")]
    pub exact_match: bool,
    /// Count answers whose final number is the row's, as lm-evaluation-harness does for GSM8K: strict (the number behind `####`) and
    /// flexible (the last number).
    #[arg(long, help_heading = "Answers")]
    pub gsm8k: bool,
    /// Score answers as LLaMA-Factory does: ROUGE-1, -2, -L of words (jieba's), BLEU-4 of characters.
    #[arg(long, help_heading = "Answers")]
    pub rouge: bool,
    /// Write prompts, answers and the rows' own answers into a .jsonl file.
    #[arg(long, value_name = "FILE", help_heading = "Answers")]
    pub predictions: Option<PathBuf>,
    /// Most tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 256, help_heading = "Answers")]
    pub max_new_tokens: usize,
    /// 0 always takes the most probable token; higher is more varied.
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = temperature, allow_negative_numbers = true, help_heading = "Answers")]
    pub temperature: f64,
    /// Choose among the most probable tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = share, allow_negative_numbers = true, help_heading = "Answers")]
    pub top_p: f64,
    /// Choose among this many most probable tokens; 0 is all.
    #[arg(long, value_name = "K", default_value_t = 0, help_heading = "Answers")]
    pub top_k: usize,
    /// Seed of the choice; the same seed gives the same text.
    #[arg(long, value_name = "N", default_value_t = 42, help_heading = "Answers")]
    pub seed: u64,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Example: loratune chat --model models/base --adapter runs/first\n\
                  Type a message and press enter; /clear begins anew, /exit (or Ctrl-D) ends.")]
pub struct ChatArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub answer: AnswerArgs,
}

#[derive(Debug, Clone, Args)]
#[command(after_help = "Examples: loratune inspect models/base\n\
                  \u{20}         loratune inspect runs/first\n\
                  \u{20}         loratune inspect data/train.jsonl --model models/base --row 7")]
pub struct InspectArgs {
    /// A model (folder or GGUF file), an adapter's folder, or a dataset (.json, .jsonl, or a folder of them).
    #[arg(value_name = "PATH")]
    pub path: PathBuf,
    /// For a dataset: the model whose tokenizer and template render it. For an adapter: the model to try it on.
    #[arg(short, long, value_name = "PATH", help_heading = "Dataset")]
    pub model: Option<PathBuf>,
    /// Chat template: a name (alpaca, chatml, default, empty) or a .jinja file; the model's own unless given.
    #[arg(short, long, value_name = "NAME", help_heading = "Dataset")]
    pub template: Option<String>,
    /// Cut rows at this many tokens.
    #[arg(long, value_name = "N", default_value_t = 2048, help_heading = "Dataset", value_parser = at_least_1)]
    pub cutoff_len: usize,
    /// Train on prompts too.
    #[arg(long, help_heading = "Dataset", conflicts_with = "mask_history")]
    pub train_on_prompt: bool,
    /// Train on the last turn only.
    #[arg(long, help_heading = "Dataset")]
    pub mask_history: bool,
    /// Show this row, counted from 1.
    #[arg(long, value_name = "N", help_heading = "Dataset", value_parser = at_least_1)]
    pub row: Option<usize>,
    /// Print one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}

fn at_least_1(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n >= 1).ok_or_else(|| "a whole number of at least 1 is needed".into())
}

fn temperature(text: &str) -> Result<f64, String> {
    let given = text.parse().ok().filter(|t: &f64| t.is_finite() && *t >= 0.0);
    given.ok_or_else(|| "a number of at least 0 is needed".into())
}

fn share(text: &str) -> Result<f64, String> {
    let given = text.parse().ok().filter(|p: &f64| *p > 0.0 && *p <= 1.0);
    given.ok_or_else(|| "a number above 0 and up to 1 is needed".into())
}

fn share_or_0(text: &str) -> Result<f64, String> {
    let given = text.parse().ok().filter(|p: &f64| (0.0..=1.0).contains(p));
    given.ok_or_else(|| "a number from 0 to 1 is needed".into())
}

/// AutoTrain's flags, for `llm --help`.
fn autotrain_help() -> String {
    let mut out = String::from(
        "Example: loratune llm --train --model models/base --data-path data/ --project-name first --peft\n\n\
         AutoTrain's flags, and what they are here (every key of `loratune train --help` is a flag too):\n",
    );
    for line in loratune_train::config::autotrain_help() {
        let (flags, meaning) = line;
        out.push_str(&format!("    {flags}\n"));
        for line in crate::output::wrap(&meaning, 88) {
            out.push_str(&format!("        {line}\n"));
        }
    }
    out.truncate(out.trim_end().len());
    out
}

/// Every key of a run's configuration with its default, for `train --help`.
fn keys_help() -> String {
    use std::fmt::Write;

    let defaults = loratune_train::config::RunConfig::default();
    let mut out = String::from(
        "Examples: loratune train lora.yaml learning_rate=2e-4 output_dir=runs/second\n\
         \u{20}         loratune train --model_name_or_path models/base --dataset data.jsonl --output_dir runs/first\n\n\
         Keys of the configuration, with their defaults; each is a flag too:\n",
    );
    let mut group = "";
    for key in KEYS {
        if key.group != group {
            group = key.group;
            let _ = writeln!(out, "\n  {group}");
        }
        let default = match (key.required, key.default_words, (key.get)(&defaults)) {
            (Some(_), _, _) => "required".to_string(),
            (_, Some(words), _) => words.to_string(),
            (_, _, loratune_train::config::Value::Null) => "none".to_string(),
            (_, _, value) => value.to_yaml(),
        };
        let doc = key.doc.split_whitespace().collect::<Vec<_>>().join(" ");
        let _ = writeln!(out, "    {}: {default}", key.name);
        for line in crate::output::wrap(&doc, 88) {
            let _ = writeln!(out, "        {line}");
        }
    }
    out.truncate(out.trim_end().len());
    out
}
