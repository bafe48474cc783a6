//! The arguments of `loratune push`.

use std::path::PathBuf;

use clap::Args;

#[derive(Debug, Args)]
#[command(after_help = "Example: loratune push runs/first --repo me/first-adapter\n\
                  The token comes from HF_TOKEN, or from where `hf auth login` left it.")]
pub struct PushArgs {
    /// The folder: an adapter, a model, or what a run left. Checkpoints and hidden files stay here.
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
    /// The repository, made if it is missing; a name without an owner is one of yours.
    #[arg(short, long, value_name = "OWNER/NAME", visible_alias = "repo-id", help_heading = "Hub")]
    pub repo: String,
    /// Make a new repository public; private unless given. One that exists stays as it is.
    #[arg(long, help_heading = "Hub")]
    pub public: bool,
    /// Branch to commit to, made if it is missing; main unless given.
    #[arg(long, value_name = "BRANCH", help_heading = "Hub")]
    pub revision: Option<String>,
    /// What the commit says.
    #[arg(long, value_name = "TEXT", default_value = "Upload with loratune", help_heading = "Hub")]
    pub message: String,
    /// Token with write access; better set HF_TOKEN, which no list of processes shows.
    #[arg(long, value_name = "TOKEN", hide_default_value = true, help_heading = "Hub")]
    pub token: Option<String>,
    /// Print the result as one JSON object.
    #[arg(long, help_heading = "Output")]
    pub json: bool,
}
