//! The model card: a `README.md` that the Hugging Face hub understands and a person can follow.

use std::fmt::Write as _;
use std::path::Path;

use super::{ReportError, write_whole};
use crate::config::Value;

/// What lies in the folder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// An adapter for the base.
    #[default]
    Adapter,
    /// An adapter's raw factors, with the model that they belong on and the adapter before training in folders.
    RawAdapter,
    /// A model all of whose weights were trained.
    Whole,
    /// A model some of whose weights were trained.
    Part,
    /// A model with an adapter folded in.
    Merged,
}

impl Kind {
    fn is_model(self) -> bool {
        matches!(self, Kind::Whole | Kind::Part | Kind::Merged)
    }
}

/// What stands in the examples for the folder that the card lies in.
const HERE: &str = "path/to/this/folder";

/// What the card says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Card {
    /// Headline, usually the output folder's name.
    pub name: String,
    /// The base model as it was named (a path or a hub id).
    pub base_model: String,
    /// Whether `base_model` is a hub id: only then may it stand in the card's metadata.
    pub base_is_on_hub: bool,
    /// What was made.
    pub kind: Kind,
    /// The base was random: there is no base model.
    pub from_scratch: bool,
    /// The data sets as they were named.
    pub datasets: Vec<String>,
    /// Those of them that are hub ids, for the metadata.
    pub hub_datasets: Vec<String>,
    /// The repository on the hub that the folder is pushed to.
    pub repository: Option<String>,
    /// Rows of the hyper-parameter table, in order.
    pub hyperparameters: Vec<(String, String)>,
    /// Finished optimiser steps and epochs.
    pub steps: u64,
    /// Passes over the data.
    pub epochs: f64,
    /// Mean training loss over the run, in nats per token.
    pub train_loss: Option<f64>,
    /// Loss of the last (or best) evaluation, in nats per token.
    pub eval_loss: Option<f64>,
    /// Name and version of what made it, in order.
    pub versions: Vec<(String, String)>,
    /// Whether `training_loss.png` lies beside the card.
    pub has_plot: bool,
    /// Rows of the embedding, where an adapter was made with another number than its base has.
    pub rows: Option<usize>,
}

impl Card {
    /// Writes `README.md` into `folder`.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, folder: &Path) -> Result<(), ReportError> {
        write_whole(&folder.join("README.md"), self.to_markdown().as_bytes())
    }

    /// The text of the card.
    pub fn to_markdown(&self) -> String {
        let mut out = self.front_matter();
        let _ = write!(out, "\n# {}\n\n{}\n\n", one_line(&self.name), self.summary());
        if self.train_loss.is_some() || self.eval_loss.is_some() {
            out.push_str("## Result\n\n| | loss | perplexity |\n|---|---|---|\n");
            for (name, loss) in [("training (mean)", self.train_loss), ("evaluation", self.eval_loss)] {
                if let Some(loss) = loss {
                    let _ = writeln!(out, "| {name} | {loss:.4} | {:.3} |", loss.exp());
                }
            }
            out.push('\n');
        }
        if self.has_plot {
            out.push_str("![Loss over the steps](training_loss.png)\n\n");
        }
        out.push_str("## Use\n\n");
        let usage = self.usage();
        // Folders inside a repository cannot be named so.
        out.push_str(&match self.repository.as_deref().filter(|_| self.kind != Kind::RawAdapter) {
            Some(repository) => usage.replace(HERE, repository),
            None => usage,
        });
        out.push_str("\n## Training\n\n| hyper-parameter | value |\n|---|---|\n");
        for (name, value) in &self.hyperparameters {
            let _ = writeln!(out, "| {} | {} |", cell(name), cell(value));
        }
        if !self.versions.is_empty() {
            out.push_str("\n## Versions\n\n");
            for (name, version) in &self.versions {
                let _ = writeln!(out, "- {name} {version}");
            }
        }
        out
    }

    fn front_matter(&self) -> String {
        let text = |s: &str| Value::Str(s.to_string()).to_yaml();
        let mut out = String::from("---\n");
        if self.base_is_on_hub && !self.from_scratch {
            let _ = writeln!(out, "base_model: {}", text(&self.base_model));
        }
        let library = if self.kind.is_model() { "transformers" } else { "peft" };
        let _ = writeln!(out, "library_name: {library}\npipeline_tag: text-generation");
        if !self.hub_datasets.is_empty() {
            out.push_str("datasets:\n");
            for name in &self.hub_datasets {
                let _ = writeln!(out, "- {}", text(name));
            }
        }
        out.push_str("tags:\n- loratune\n");
        out.push_str(match self.kind {
            Kind::Adapter | Kind::RawAdapter | Kind::Merged => "- lora\n",
            Kind::Whole => "- full\n",
            Kind::Part => "- partial\n",
        });
        out.push_str("---\n");
        out
    }

    fn summary(&self) -> String {
        let what = match (self.from_scratch, self.kind) {
            (true, _) => format!(
                "A language model of the architecture of `{}`, trained from random weights",
                self.base_model
            ),
            (false, Kind::Whole) => format!("`{}`, fine-tuned in full", self.base_model),
            (false, Kind::Part) => {
                format!("`{}`, some of whose weights were fine-tuned,", self.base_model)
            }
            (false, Kind::Merged) => {
                format!("`{}`, fine-tuned by a LoRA adapter that is folded in,", self.base_model)
            }
            (false, Kind::Adapter) => format!("A LoRA adapter for `{}`", self.base_model),
            (false, Kind::RawAdapter) => format!(
                "A LoRA adapter for `{}` without what the adapter started from (`residual_model` in this folder)",
                self.base_model
            ),
        };
        let data: Vec<String> = self.datasets.iter().map(|d| format!("`{d}`")).collect();
        let on = if data.is_empty() { String::new() } else { format!(" on {}", data.join(", ")) };
        let verb = if self.kind.is_model() || self.from_scratch { "" } else { ", trained" };
        format!("{}{verb}{on} for {} steps ({:.2} epochs).", one_line(&what), self.steps, self.epochs)
    }

    fn usage(&self) -> String {
        if self.kind.is_model() {
            return "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
                model = AutoModelForCausalLM.from_pretrained(\"path/to/this/folder\")\n\
                tokenizer = AutoTokenizer.from_pretrained(\"path/to/this/folder\")\n```\n\n\
                ```sh\nloratune generate --model path/to/this/folder --prompt \"…\"\n```\n"
                .to_string();
        }
        let raw = self.kind == Kind::RawAdapter;
        let base = if raw { "path/to/this/folder/residual_model" } else { &self.base_model };
        // PEFT's readers do not resize the base by themselves. The raw form's base has the rows already.
        let resize = match self.rows.filter(|_| !raw) {
            Some(rows) => format!("base.resize_token_embeddings({rows}, mean_resizing=False)\n"),
            None => String::new(),
        };
        let convert = match raw {
            true => {
                "\nAs plain LoRA of twice the rank, for the model as it was:\n\n```sh\n\
                 loratune convert --adapter path/to/this/folder --initial path/to/this/folder/initial_adapter \
                 --output plain\n```\n"
            }
            false => "",
        };
        format!(
            "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
             base = AutoModelForCausalLM.from_pretrained({})\n{resize}\
             model = PeftModel.from_pretrained(base, \"path/to/this/folder\")\n\
             tokenizer = AutoTokenizer.from_pretrained(\"path/to/this/folder\")\n```\n\n\
             ```sh\nloratune generate --model {} --adapter path/to/this/folder --prompt \"…\"\n\
             loratune merge --model {} --adapter path/to/this/folder --output merged\n```\n{convert}",
            python_str(base),
            shell_word(base),
            shell_word(base),
        )
    }
}

fn one_line(s: &str) -> String {
    s.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A cell of a table. What looks like a tag (`<think>`) would not be shown otherwise.
fn cell(s: &str) -> String {
    one_line(s).replace('&', "&amp;").replace('<', "&lt;").replace('|', "\\|")
}

fn python_str(s: &str) -> String {
    serde_json::Value::from(s).to_string()
}

/// A word that a shell takes as it is, quoted where it must be.
fn shell_word(s: &str) -> String {
    let plain = !s.is_empty() && s.chars().all(|c| c.is_ascii_alphanumeric() || "_-./:@%+=,".contains(c));
    if plain { s.to_string() } else { format!("'{}'", s.replace('\'', "'\\''")) }
}
