//! The arguments of `loratune estimate`.

use clap::Args;

#[derive(Debug, Args)]
#[command(
    after_help = "Examples: loratune estimate lora.yaml --device cuda per_device_train_batch_size=16\n\
                  \u{20}         loratune estimate --shape llama2-7b --device cuda --bf16 --lora_rank 16 --cutoff_len 1024"
)]
pub struct EstimateArgs {
    /// A run's configuration file, then settings that win over it, as with `train`: KEY=VALUE, or flags for every key.
    #[arg(value_name = "CONFIG.yaml] [KEY=VALUE] [--KEY VALUE", num_args = 0..)]
    pub settings: Vec<String>,
    /// A model by its shape: a name (an unknown one lists them; `quickstart` is the embedded model) or a config.json. Then neither model
    /// nor data have to exist.
    #[arg(long, value_name = "SHAPE", help_heading = "Estimate")]
    pub shape: Option<String>,
    /// Don't read the data for the lengths of its rows: all are taken to have cutoff_len tokens.
    #[arg(long, help_heading = "Estimate")]
    pub no_data: bool,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
