//! The model card of a folder that a command makes of a base and an adapter: without it the hub shows nothing, and nobody knows
//! what is inside.

use std::path::Path;

use anyhow::{Context, Result};
use loratune_hub::RepoName;

/// Its file.
pub const FILE: &str = "README.md";

/// Writes the card. `model` and `adapter` are as they were named; `how` the command, `used` how the result is used.
///
/// # Errors
/// The file system's.
pub fn write(
    dir: &Path,
    name: &str,
    model: &Path,
    adapter: Option<&Path>,
    dtype: &str,
    used: &str,
) -> Result<()> {
    let (model, adapter) = (model.display().to_string(), adapter.map(|a| a.display().to_string()));
    let on_hub = RepoName::parse(&model).ok().filter(|_| !Path::new(&model).exists());
    let mut out = String::from("---\n");
    if let Some(repository) = on_hub {
        out += &format!("base_model: {}\n", repository.id);
    }
    out += "pipeline_tag: text-generation\ntags:\n- loratune\n";
    out += if adapter.is_some() { "- lora\n---\n" } else { "---\n" };
    let what = match adapter {
        Some(adapter) => format!("`{model}` with the adapter `{adapter}` folded in"),
        None => format!("`{model}`"),
    };
    out += &format!("\n# {name}\n\n{what}; weights in {dtype}.\n\n## Use\n\n{used}");
    std::fs::write(dir.join(FILE), out).with_context(|| format!("{}", dir.join(FILE).display()))
}

/// How a folder of safetensors is used.
pub const SAFETENSORS: &str = "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n\
    model = AutoModelForCausalLM.from_pretrained(\"path/to/this/folder\")\n\
    tokenizer = AutoTokenizer.from_pretrained(\"path/to/this/folder\")\n```\n\n\
    ```sh\nloratune generate --model path/to/this/folder --prompt \"…\"\n```\n";

/// How a folder with a Modelfile is used.
pub const MODELFILE: &str = "```sh\nollama create NAME -f Modelfile\n```\n";
