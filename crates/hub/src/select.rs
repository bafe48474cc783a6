//! Which files of a repository are wanted. Pickles never are: opening one can run any code.

use std::path::Path;

use crate::error::{HubError, Result};
use crate::name::{Kind, RepoName};

/// What a tokenizer and its templates are made of.
const TOKENIZER: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
];
const TEMPLATES: &str = "additional_chat_templates/";
/// Of a tokenizer without tokenizer.json: SentencePiece's, which is read, and what tells another kind.
const OLD_TOKENIZER: [&str; 2] = ["tokenizer.model", "vocab.json"];
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// How much of a model is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Everything that running it needs.
    Whole,
    /// Its description and tokenizer.
    WithoutWeights,
}

/// What to fetch of a model: files by name, and an index that names more.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    pub files: Vec<String>,
    pub index: bool,
    /// The model is this one file, not the folder.
    pub gguf: Option<String>,
}

/// Chooses the files of a model.
///
/// # Errors
/// When there are none that loratune reads, saying what there is.
pub(crate) fn model(name: &RepoName, all: &[String], part: Part) -> Result<Plan> {
    let unsuitable = |what: String| HubError::Unsuitable { kind: Kind::Model, repo: name.id.clone(), what };
    let has = |file: &str| all.iter().any(|f| f == file);
    let ggufs: Vec<&String> = all.iter().filter(|f| f.to_lowercase().ends_with(".gguf")).collect();
    if let Some(wanted) = &name.file {
        return one_gguf(wanted, &ggufs).map_err(unsuitable);
    }
    if !has("config.json") {
        return match ggufs.as_slice() {
            [one] => Ok(gguf(one)),
            [] if has("adapter_config.json") => {
                let what = "is an adapter, not a model; give it as the adapter, and as the model the base it was made for";
                Err(unsuitable(what.into()))
            }
            [] => Err(unsuitable("is no model: it has neither a config.json nor a GGUF file".into())),
            many => Err(unsuitable(format!("holds several GGUF files; name one: {}", choices(name, many)))),
        };
    }
    let mut files = vec!["config.json".to_string()];
    files.extend(tokenizer(all));
    if part == Part::WithoutWeights {
        return Ok(Plan { files, index: false, gguf: None });
    }
    if has(WEIGHTS) {
        files.push(WEIGHTS.into());
        return Ok(Plan { files, index: false, gguf: None });
    }
    if has(INDEX) {
        files.push(INDEX.into());
        return Ok(Plan { files, index: true, gguf: None });
    }
    if let [one] = ggufs.as_slice() {
        return Ok(gguf(one));
    }
    if !ggufs.is_empty() {
        let what = format!("has no safetensors, but GGUF files; name one: {}", choices(name, &ggufs));
        return Err(unsuitable(what));
    }
    Err(unsuitable(match pickle(all) {
        Some(file) => format!(
            "holds its weights only as {file}, a pickle, which is not read because it can run any code. Look for a revision \
             with safetensors (often @refs/pr/1), or convert it with transformers: \
             AutoModelForCausalLM.from_pretrained(\"{}\").save_pretrained(\"folder\")",
            name.id
        ),
        None => format!("has a config.json but no weights ({WEIGHTS}, {INDEX} or a .gguf file)"),
    }))
}

/// Chooses the files of an adapter.
///
/// # Errors
/// As [`model`].
pub(crate) fn adapter(name: &RepoName, all: &[String]) -> Result<Plan> {
    let unsuitable = |what: String| HubError::Unsuitable { kind: Kind::Model, repo: name.id.clone(), what };
    let has = |file: &str| all.iter().any(|f| f == file);
    if let Some(file) = &name.file {
        return Err(unsuitable(format!("is to be an adapter, which is a folder: leave `:{file}` out")));
    }
    if !has("adapter_config.json") {
        let what = if has("config.json") { "is a model, not an adapter" } else { "is no adapter" };
        return Err(unsuitable(format!("{what}: it has no adapter_config.json")));
    }
    if !has("adapter_model.safetensors") {
        return Err(unsuitable(match has("adapter_model.bin") {
            true => {
                "holds only adapter_model.bin, a pickle, which is not read because it can run any code; convert it with \
                     PEFT: PeftModel.from_pretrained(base, adapter).save_pretrained(\"folder\")"
                    .into()
            }
            false => "has an adapter_config.json but no adapter_model.safetensors".into(),
        }));
    }
    let mut files = vec!["adapter_config.json".to_string(), "adapter_model.safetensors".to_string()];
    files.extend(tokenizer(all));
    Ok(Plan { files, index: false, gguf: None })
}

fn tokenizer(all: &[String]) -> Vec<String> {
    let mut wanted: Vec<&str> = TOKENIZER.to_vec();
    if !all.iter().any(|f| f == "tokenizer.json") {
        wanted.extend(OLD_TOKENIZER);
    }
    let template = |f: &String| f.starts_with(TEMPLATES) && f.ends_with(".jinja");
    all.iter().filter(|f| wanted.contains(&f.as_str()) || template(f)).cloned().collect()
}

fn gguf(file: &str) -> Plan {
    Plan { files: vec![file.to_string()], index: false, gguf: Some(file.to_string()) }
}

/// The GGUF file that follows the colon: its name, or its quantisation as llama.cpp and Ollama let people write it.
fn one_gguf(wanted: &str, ggufs: &[&String]) -> Result<Plan, String> {
    let names = || ggufs.iter().map(|f| f.as_str()).collect::<Vec<_>>().join(", ");
    if ggufs.is_empty() {
        return Err(format!("has no GGUF file, so that `:{wanted}` means nothing"));
    }
    if ggufs.iter().any(|f| f.as_str() == wanted) {
        return Ok(gguf(wanted));
    }
    if wanted.to_lowercase().ends_with(".gguf") {
        return Err(format!("has no file `{wanted}`; its GGUF files are {}", names()));
    }
    let fits: Vec<&&String> = ggufs.iter().filter(|f| quantisation_is(f, wanted)).collect();
    match fits.as_slice() {
        [one] => Ok(gguf(one)),
        [] => Err(format!("has no GGUF file of the quantisation {wanted}; its GGUF files are {}", names())),
        many => {
            let names: Vec<&str> = many.iter().map(|f| f.as_str()).collect();
            Err(format!("has several GGUF files of {wanted}: name one of {}", names.join(", ")))
        }
    }
}

/// Whether a name such as `SmolLM2-135M-Instruct.Q4_K_M.gguf` ends in a quantisation.
fn quantisation_is(file: &str, wanted: &str) -> bool {
    let stem = file.rsplit('/').next().unwrap_or(file).to_lowercase();
    let stem = stem.strip_suffix(".gguf").unwrap_or(&stem);
    let head = stem.strip_suffix(&wanted.to_lowercase());
    head.is_some_and(|head| head.is_empty() || head.ends_with(['-', '.', '_']))
}

fn choices(name: &RepoName, files: &[&String]) -> String {
    files.iter().map(|f| format!("{}:{f}", name.id)).collect::<Vec<_>>().join(", ")
}

fn pickle(all: &[String]) -> Option<&String> {
    let is_pickle = |f: &&String| {
        let top = !f.contains('/');
        top && [".bin", ".pt", ".pth", ".ckpt"].iter().any(|ending| f.ends_with(ending))
    };
    all.iter().filter(is_pickle).min_by_key(|f| !f.starts_with("pytorch_model"))
}

/// The shards that an index names, in the order of their names.
///
/// # Errors
/// When the file is no index, or names a file outside its folder.
pub(crate) fn shards(path: &Path) -> Result<Vec<String>> {
    let bytes = std::fs::read(path).map_err(HubError::io("read", path))?;
    let broken = |what: &str| HubError::Upload { path: path.to_path_buf(), what: what.to_string() };
    let index: serde_json::Value =
        serde_json::from_slice(&bytes).map_err(|e| broken(&format!("it is not valid JSON: {e}")))?;
    let map = index.get("weight_map").and_then(|m| m.as_object());
    let map = map.ok_or_else(|| broken("it is no index of safetensors: it has no weight_map"))?;
    let mut shards: Vec<String> = map.values().filter_map(|v| v.as_str().map(str::to_string)).collect();
    shards.sort();
    shards.dedup();
    match shards.iter().find(|s| s.contains('/') || !s.ends_with(".safetensors")) {
        Some(bad) => Err(broken(&format!("it names {bad:?}, which is no safetensors file beside it"))),
        None => Ok(shards),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(files: &[&str]) -> Vec<String> {
        files.iter().map(|f| f.to_string()).collect()
    }

    fn plan(name: &str, files: &[&str]) -> Result<Plan> {
        model(&RepoName::parse(name).unwrap(), &names(files), Part::Whole)
    }

    #[test]
    fn only_what_is_read_is_fetched() {
        let all = [
            "README.md",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "onnx/model.onnx",
            "modeling.py",
            "additional_chat_templates/tools.jinja",
            "original/consolidated.00.pth",
        ];
        let found = plan("a/b", &all).unwrap();
        let expected = [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "additional_chat_templates/tools.jinja",
            "model.safetensors",
        ];
        assert_eq!(found.files, expected);
        let described = model(&RepoName::parse("a/b").unwrap(), &names(&all), Part::WithoutWeights).unwrap();
        assert!(!described.files.contains(&"model.safetensors".to_string()));
        assert!(plan("a/b", &["config.json", INDEX, "model-00001-of-00002.safetensors"]).unwrap().index);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let error = |files: &[&str]| plan("a/b", files).unwrap_err().to_string();
        assert!(error(&["config.json", "pytorch_model.bin"]).contains("pytorch_model.bin, a pickle"));
        assert!(error(&["config.json"]).contains("no weights"));
        assert!(error(&["adapter_config.json", "adapter_model.safetensors"]).contains("is an adapter"));
        assert!(error(&["README.md"]).contains("neither a config.json nor a GGUF"));
        assert!(error(&["x.Q4_0.gguf", "x.Q8_0.gguf"]).contains("a/b:x.Q4_0.gguf, a/b:x.Q8_0.gguf"));
        let name = RepoName::parse("a/b").unwrap();
        let error = |files: &[&str]| adapter(&name, &names(files)).unwrap_err().to_string();
        assert!(error(&["adapter_config.json", "adapter_model.bin"]).contains("adapter_model.bin, a pickle"));
        assert!(error(&["config.json"]).contains("is a model, not an adapter"));
    }

    #[test]
    fn gguf_files_are_found_by_name_or_quantisation() {
        let all = ["m-Q4_K_M.gguf", "m-Q8_0.gguf", "big/m.F16.gguf", "config.json"];
        let found = |name: &str| plan(name, &all).map(|p| p.gguf.unwrap()).map_err(|e| e.to_string());
        assert_eq!(found("a/b:m-Q8_0.gguf").unwrap(), "m-Q8_0.gguf");
        assert_eq!(found("a/b:q4_k_m").unwrap(), "m-Q4_K_M.gguf");
        assert_eq!(found("a/b:F16").unwrap(), "big/m.F16.gguf");
        assert!(found("a/b:Q4").unwrap_err().contains("no GGUF file of the quantisation Q4"));
        assert_eq!(plan("a/b", &["one.gguf", "README.md"]).unwrap().gguf.unwrap(), "one.gguf");
    }
}
