//! LLaMA-Factory's keys of exporting: a file, settings, and the options that win over both.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use loratune_hub::Token;
use serde_json::{Map, Value};

use crate::cli::{ExportArgs, GgufArg, StorageDtype, gigabytes};
use crate::output::Usage;

/// What is to be exported, and how.
pub struct Settings {
    pub model: PathBuf,
    pub adapter: Option<PathBuf>,
    pub output: PathBuf,
    pub template: Option<String>,
    pub form: Form,
    /// Where the result is pushed to.
    pub push: Option<Push>,
}

/// A repository on the hub, and whose token makes it.
pub struct Push {
    pub repo: String,
    pub token: Option<Token>,
}

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    Safetensors { dtype: Option<StorageDtype>, shard_bytes: Option<u64> },
    Gguf(GgufArg),
    GgufAdapter(GgufArg),
}

/// The keys that are understood. `export_gguf` and `export_gguf_adapter` are loratune's own.
const KEYS: [&str; 15] = [
    "adapter_name_or_path",
    "export_device",
    "export_dir",
    "export_gguf",
    "export_gguf_adapter",
    "export_hub_model_id",
    "export_legacy_format",
    "export_size",
    "finetuning_type",
    "hf_hub_token",
    "hub_token",
    "infer_dtype",
    "model_name_or_path",
    "template",
    "trust_remote_code",
];

/// LLaMA-Factory's keys that ask for what is not done here, and what to do instead.
const REFUSED: [(&str, &str); 4] = [
    ("export_quantization_bit", "--gguf q8_0 and --gguf q4_0 write quantised models"),
    ("export_quantization_dataset", "--gguf q8_0 and --gguf q4_0 write quantised models, and need no data"),
    ("export_quantization_maxlen", "--gguf q8_0 and --gguf q4_0 write quantised models, and need no data"),
    ("export_quantization_nsamples", "--gguf q8_0 and --gguf q4_0 write quantised models, and need no data"),
];

fn usage<T>(text: String) -> Result<T> {
    Err(Usage(text).into())
}

/// Reads all three.
///
/// # Errors
/// What is missing, unknown, contradicts itself, or is not done here.
pub fn read(args: &ExportArgs) -> Result<Settings> {
    let mut given = Map::new();
    for (i, text) in args.settings.iter().enumerate() {
        match text.split_once('=') {
            Some((key, value)) => {
                let key = key.trim().trim_start_matches("--").replace('-', "_");
                given.insert(key, value_of(value));
            }
            None if i == 0 => given.extend(file(Path::new(text))?),
            None => {
                return usage(format!(
                    "`{text}` is no setting: write KEY=VALUE, and one configuration first"
                ));
            }
        }
    }
    check_keys(&given)?;
    let text = |key: &str| -> Result<Option<String>> {
        match given.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(n)) => Ok(Some(n.to_string())),
            Some(Value::Array(list)) if list.len() == 1 && list[0].is_string() => {
                Ok(list[0].as_str().map(str::to_owned))
            }
            Some(other) => usage(format!("`{key}` is {other}; one text is needed")),
        }
    };
    if let Some(device) = text("export_device")?.filter(|d| d != "cpu" && d != "auto") {
        return usage(format!(
            "`export_device` is `{device}`; cpu and auto are possible, and both are the CPU here"
        ));
    }
    let adapter = args.adapter.clone().or(text("adapter_name_or_path")?.map(PathBuf::from));
    if let Some(several) = adapter.as_ref().filter(|a| a.to_string_lossy().contains(',') && !a.exists()) {
        return usage(format!(
            "adapter_name_or_path names several adapters ({}): make one of them first, with `loratune combine`",
            several.display()
        ));
    }
    let needed = |option: &Option<PathBuf>, key: &str, flag: &str| -> Result<PathBuf> {
        let found = option.clone().or(text(key)?.map(PathBuf::from));
        found.map_or_else(|| usage(format!("name {flag}, or `{key}` in the configuration")), Ok)
    };
    Ok(Settings {
        model: needed(&args.model, "model_name_or_path", "--model")?,
        adapter,
        output: needed(&args.output, "export_dir", "--output")?,
        template: args.template.clone().or(text("template")?),
        form: form(args, &text)?,
        push: match text("export_hub_model_id")? {
            None => None,
            Some(repo) => {
                let token = text("hub_token")?.or(text("hf_hub_token")?);
                let token = token.map(|t| Token::new(&t, "hub_token")).transpose();
                let token = token.map_err(|e| Usage(e.to_string()))?.flatten();
                Some(Push { repo, token })
            }
        },
    })
}

fn form(args: &ExportArgs, text: &dyn Fn(&str) -> Result<Option<String>>) -> Result<Form> {
    let kind = |option: Option<GgufArg>, key: &str| -> Result<Option<GgufArg>> {
        let parse = |name: String| {
            GgufArg::from_str(&name, true).or_else(|_| {
                usage(format!("`{key}` is `{name}`; f32, f16, bf16, q8_0 and q4_0 are possible"))
            })
        };
        option.map_or_else(|| text(key)?.map(parse).transpose(), |kind| Ok(Some(kind)))
    };
    match (kind(args.gguf, "export_gguf")?, kind(args.gguf_adapter, "export_gguf_adapter")?) {
        (Some(_), Some(_)) => {
            usage("a GGUF file of the model and one of the adapter: write one after the other".into())
        }
        (Some(kind), None) => Ok(Form::Gguf(kind)),
        (None, Some(GgufArg::Q4_0)) => {
            usage("an adapter is not written as q4_0: f32, f16, bf16 and q8_0 are possible".into())
        }
        (None, Some(kind)) => Ok(Form::GgufAdapter(kind)),
        (None, None) => {
            let dtype = match (args.dtype, text("infer_dtype")?.as_deref()) {
                (Some(dtype), _) => Some(dtype),
                (None, None | Some("auto")) => None,
                (None, Some("float32" | "f32")) => Some(StorageDtype::F32),
                (None, Some("float16" | "f16")) => Some(StorageDtype::F16),
                (None, Some("bfloat16" | "bf16")) => Some(StorageDtype::Bf16),
                (None, Some(other)) => {
                    return usage(format!(
                        "`infer_dtype` is `{other}`; auto, float32, float16 and bfloat16 are possible"
                    ));
                }
            };
            let size = |given: String| {
                gigabytes(&given).map_err(|e| Usage(format!("`export_size` is `{given}`: {e}")))
            };
            let size = match args.shard_size {
                Some(size) => Some(size),
                None => text("export_size")?.map(size).transpose()?,
            };
            // Hugging Face's GB.
            Ok(Form::Safetensors { dtype, shard_bytes: size.map(|gb| (gb * 1e9) as u64) })
        }
    }
}

fn check_keys(given: &Map<String, Value>) -> Result<()> {
    for (key, value) in given {
        let off = matches!(value, Value::Null | Value::Bool(false));
        if let Some((_, instead)) = REFUSED.iter().find(|(name, _)| name == key) {
            if off {
                continue;
            }
            return usage(format!("`{key}` is LLaMA-Factory's, and not done here: {instead}"));
        }
        if key == "export_legacy_format" && !off {
            return usage(
                "`export_legacy_format` asks for .bin files, pickles that can run any code: safetensors are written only".into(),
            );
        }
        if key == "trust_remote_code" || KEYS.contains(&key.as_str()) {
            continue;
        }
        let near = KEYS
            .iter()
            .map(|known| (strsim::normalized_damerau_levenshtein(key, known), known))
            .filter(|(likeness, _)| *likeness >= 0.6)
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let hint = near.map_or(String::new(), |(_, known)| format!("; did you mean `{known}`?"));
        return usage(format!("unknown key `{key}` for export{hint}"));
    }
    Ok(())
}

fn file(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("{}: the configuration cannot be read", path.display()))?;
    let value: Value = serde_saphyr::from_str(&text).map_err(|e| {
        let message = e.without_snippet().to_string();
        Usage(format!("{}: not YAML: {}", path.display(), message.lines().next().unwrap_or_default()))
    })?;
    match value {
        Value::Object(map) => Ok(map),
        _ => usage(format!("{}: the configuration must be keys with values", path.display())),
    }
}

/// true, false and null as such, everything else as text.
fn value_of(text: &str) -> Value {
    match text.trim() {
        "" | "null" | "~" => Value::Null,
        "true" | "True" => Value::Bool(true),
        "false" | "False" => Value::Bool(false),
        other => Value::String(other.to_owned()),
    }
}
