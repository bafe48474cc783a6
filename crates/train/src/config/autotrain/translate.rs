//! From AutoTrain's flags to keys.

use std::path::{Path, PathBuf};

use super::super::error::{ConfigError, Origin, meant};
use super::super::registry::Key;
use super::super::value::Value;
use super::super::words::{self, Written};
use super::flags::{DEFAULTS, To};
use super::{Given, Line, WHOSE};

/// Endings in which a split is looked for in a folder: AutoTrain's two first, in its order.
const ENDINGS: [&str; 5] = ["csv", "jsonl", "json", "parquet", "arrow"];

/// The command line so far.
struct Translation<'a> {
    given: &'a [Given],
    line: Line,
}

/// All flags together, in keys.
///
/// # Errors
/// What AutoTrain's flags cannot say, or loratune cannot do.
pub(super) fn translate(given: &[Given]) -> Result<Line, ConfigError> {
    let line = Line { presets: Vec::new(), settings: Vec::new(), notes: Vec::new() };
    let mut t = Translation { given, line };
    for flag in given {
        if let To::Refused(reason) = flag.flag.to
            && words::truth(&flag.text) != Some(false)
        {
            return Err(flag.refused(reason.to_string()));
        }
    }
    if !t.is_on("train") {
        return Err(ConfigError::Line {
            what: "`loratune llm` needs --train: training is what it does (`loratune generate` and `loratune chat` run a model)",
        });
    }
    for (key, value) in DEFAULTS {
        t.preset(key, parsed(key, value)?);
    }
    for flag in given {
        match flag.flag.to {
            To::Key(key) => t.set(key, flag.value(key)?, flag),
            To::Needless(why) => {
                let note = format!("{}: `--{}` changes nothing here: {why}", flag.origin, flag.dashed());
                t.line.notes.push(note);
            }
            To::Together(_) | To::Refused(_) => {}
        }
    }
    t.method()?;
    t.precision()?;
    t.lengths()?;
    t.data()?;
    t.hub()?;
    Ok(t.line)
}

fn parsed(key: &str, text: &str) -> Result<Value, ConfigError> {
    Ok(words::read_setting(&format!("{key}={text}"))?.value)
}

impl Given {
    fn dashed(&self) -> String {
        self.flag.name.replace('_', "-")
    }

    /// The value, read as that key's; a bare switch is true.
    fn value(&self, key: &str) -> Result<Value, ConfigError> {
        if self.flag.is_switch {
            return Ok(Value::Bool(words::truth(&self.text) != Some(false)));
        }
        match Key::find(key) {
            Some(_) => parsed(key, &self.text),
            None => Ok(Value::Str(self.text.clone())),
        }
    }

    fn refused(&self, reason: String) -> ConfigError {
        ConfigError::Refused {
            key: format!("--{}", self.dashed()),
            value: self.text.clone(),
            origin: self.origin.clone(),
            reason,
        }
    }

    fn bad(&self, expected: &str, choices: &[&'static str]) -> ConfigError {
        ConfigError::BadValue {
            key: format!("--{}", self.dashed()),
            value: self.text.clone(),
            origin: self.origin.clone(),
            expected: expected.to_string() + &meant(&self.text, choices),
        }
    }
}

/// `none` in its spellings.
fn is_none(text: &str) -> bool {
    matches!(text.to_ascii_lowercase().as_str(), "" | "none" | "no" | "null" | "false")
}

impl<'a> Translation<'a> {
    /// The last setting of a flag: later words win.
    fn get(&self, name: &str) -> Option<&'a Given> {
        self.given.iter().rev().find(|g| g.flag.name == name)
    }

    fn is_on(&self, name: &str) -> bool {
        self.get(name).is_some_and(|g| words::truth(&g.text) != Some(false))
    }

    fn set(&mut self, key: &str, value: Value, flag: &Given) {
        self.line.settings.push(Written { key: key.into(), value, origin: flag.origin.clone() });
    }

    /// A default: what is set explicitly replaces it.
    fn preset(&mut self, key: &str, value: Value) {
        self.line.presets.retain(|w| w.key != key);
        self.line.presets.push(Written { key: key.into(), value, origin: Origin::Preset(WHOSE) });
    }

    fn method(&mut self) -> Result<(), ConfigError> {
        if let Some(peft) = self.get("peft")
            && self.is_on("peft")
        {
            self.set("finetuning_type", Value::Str("lora".into()), peft);
        }
        let Some(trainer) = self.get("trainer") else { return Ok(()) };
        match trainer.text.as_str() {
            "default" | "generic" => self.set("stage", Value::Str("pt".into()), trainer),
            "sft" => {
                self.set("stage", Value::Str("sft".into()), trainer);
                self.preset("packing", Value::Bool(true));
                self.preset("train_on_prompt", Value::Bool(true));
            }
            "dpo" | "orpo" | "reward" | "grpo" => {
                return Err(trainer.refused(
                    "loratune trains on texts, not on preferences or rewards; it has default, sft".into(),
                ));
            }
            _ => return Err(trainer.bad("default or sft", &["default", "sft"])),
        }
        Ok(())
    }

    fn precision(&mut self) -> Result<(), ConfigError> {
        if let Some(quantization) = self.get("quantization").filter(|g| !is_none(&g.text)) {
            return Err(match quantization.text.as_str() {
                "int4" | "int8" => quantization.refused(
                    "quantised bases are not there yet: train on the full weights with --quantization none (--mixed-precision \
                     bf16 halves their memory)"
                        .into(),
                ),
                _ => quantization.bad("int4, int8 or none", &["int4", "int8", "none"]),
            });
        }
        if let Some(precision) = self.get("mixed_precision").filter(|g| !is_none(&g.text)) {
            match precision.text.as_str() {
                key @ ("fp16" | "bf16") => self.set(key, Value::Bool(true), precision),
                _ => return Err(precision.bad("fp16, bf16 or none", &["fp16", "bf16", "none"])),
            }
        }
        Ok(())
    }

    fn lengths(&mut self) -> Result<(), ConfigError> {
        if let Some(batch) = self.get("batch_size") {
            for key in ["per_device_train_batch_size", "per_device_eval_batch_size"] {
                self.set(key, batch.value(key)?, batch);
            }
        }
        if let Some(logging) = self.get("logging_steps") {
            let text = if logging.text == "-1" { "auto" } else { &logging.text };
            self.set("logging_steps", parsed("logging_steps", text)?, logging);
        }
        let whole =
            |g: &Given| g.text.trim().parse::<i64>().map_err(|_| g.bad("a whole number of tokens", &[]));
        let most = self.get("model_max_length").map(whole).transpose()?.unwrap_or(2048);
        let Some(block) = self.get("block_size") else { return Ok(()) };
        if block.text.contains(',') {
            return Err(block.refused("lists are for preferences; texts have one length".into()));
        }
        let asked = match whole(block)? {
            -1 => 1024,
            n => n,
        };
        if asked > most {
            self.line.notes.push(format!(
                "{}: --model-max-length allows {most} tokens at most, so blocks have {most}",
                block.origin
            ));
        }
        self.set("cutoff_len", Value::Int(asked.min(most)), block);
        Ok(())
    }

    fn data(&mut self) -> Result<(), ConfigError> {
        let split = |name: &str, default: Option<&str>| -> Option<String> {
            self.get(name).map(|g| g.text.clone()).or(default.map(String::from)).filter(|s| !is_none(s))
        };
        let (train, valid) = (split("train_split", Some("train")), split("valid_split", None));
        if let Some(path) = self.get("data_path") {
            let train = train.unwrap_or_else(|| "train".into());
            self.set("dataset", located(path, &train)?, path);
            if let Some(valid) = &valid {
                let from = self.get("valid_split").unwrap_or(path);
                self.set("eval_dataset", located(path, valid)?, from);
            } else if let Some(unused) =
                ["valid", "validation", "dev"].iter().find_map(|s| in_folder(&path.text, s))
            {
                self.line.notes.push(format!(
                    "{} is there but not used: --valid-split {} evaluates on it",
                    unused.display(),
                    unused.file_stem().unwrap_or_default().to_string_lossy()
                ));
            }
        }
        let strategy = self.get("eval_strategy");
        if valid.is_some() {
            let when = strategy.map_or("epoch", |g| g.text.as_str()).to_string();
            for key in ["eval_strategy", "save_strategy"] {
                match strategy {
                    Some(given) => self.set(key, Value::Str(when.clone()), given),
                    None => self.preset(key, Value::Str(when.clone())),
                }
            }
            self.preset("load_best_model_at_end", Value::Bool(when != "no"));
        } else if let Some(given) = strategy.filter(|g| !is_none(&g.text)) {
            self.line.notes.push(format!("{}: nothing is evaluated without --valid-split", given.origin));
        }
        self.columns()
    }

    fn columns(&mut self) -> Result<(), ConfigError> {
        let template = self.get("chat_template").filter(|g| !is_none(&g.text));
        if let Some(template) = template
            && template.text != "tokenizer"
        {
            self.set("template", Value::Str(template.text.clone()), template);
        }
        if let Some(column) = self.get("text_column") {
            let key = if template.is_some() { "messages_column" } else { "text_column" };
            self.set(key, Value::Str(column.text.clone()), column);
        }
        Ok(())
    }

    fn hub(&mut self) -> Result<(), ConfigError> {
        if let Some(backend) = self.get("backend").filter(|g| g.text != "local") {
            return Err(backend.refused("loratune runs here; the only backend is local".into()));
        }
        let project = self.get("project_name").map(|g| {
            let name = Path::new(&g.text).file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        });
        let id = match (self.get("repo_id"), self.get("username")) {
            (Some(repo), _) if repo.text.contains('/') => Some((repo.text.clone(), repo)),
            // In the versions that had it, a user's name was enough.
            (Some(user), _) | (None, Some(user)) => {
                project.map(|project| (format!("{}/{project}", user.text), user))
            }
            (None, None) => None,
        };
        if let Some((id, flag)) = id.filter(|_| self.is_on("push_to_hub")) {
            self.set("hub_model_id", Value::Str(id), flag);
            self.preset("hub_private_repo", Value::Bool(true));
        }
        Ok(())
    }
}

/// A split in a folder, or a file, or a dataset's name; with those, `split` may be AutoTrain's `config:split`.
fn located(path: &Given, split: &str) -> Result<Value, ConfigError> {
    let folder = Path::new(&path.text);
    if folder.is_file() {
        return Ok(Value::Str(path.text.clone()));
    }
    if folder.is_dir() {
        if folder.join("dataset_dict.json").is_file() {
            return Ok(Value::Str(format!("{}#{split}", path.text)));
        }
        let found = in_folder(&path.text, split);
        let names = ENDINGS.map(|e| format!("{split}.{e}")).join(", ");
        let found = found.ok_or_else(|| path.refused(format!("the folder has none of {names}")))?;
        return Ok(Value::Str(found.display().to_string()));
    }
    // A training split is what a name means by itself.
    Ok(Value::Str(match split {
        "train" => path.text.clone(),
        split => format!("{}#{split}", path.text),
    }))
}

fn in_folder(folder: &str, split: &str) -> Option<PathBuf> {
    ENDINGS.iter().map(|e| Path::new(folder).join(format!("{split}.{e}"))).find(|p| p.is_file())
}
