//! Writing a tokenizer as a Hugging Face folder.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::{Result, SpecialToken, TokenizerBundle, TokenizerError};

impl TokenizerBundle {
    /// Writes `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and, with a chat template,
    /// `chat_template.jinja` (other named templates under `additional_chat_templates/`), as transformers 5 lays them
    /// out; transformers 4 reads them as well. The folder is created if needed. Each file appears whole or not at all.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        make_dir(folder)?;
        write(&folder.join("tokenizer.json"), &self.tokenizer_json()?)?;
        write(&folder.join("tokenizer_config.json"), &pretty(&Value::Object(self.config_to_save())))?;
        write(&folder.join("special_tokens_map.json"), &pretty(&Value::Object(self.special_tokens_map())))?;
        if let Some(template) = &self.chat_template {
            write(&folder.join("chat_template.jinja"), template)?;
        }
        let more = folder.join("additional_chat_templates");
        for (name, template) in self.named_templates.iter().filter(|(n, _)| is_file_name(n)) {
            make_dir(&more)?;
            write(&more.join(format!("{name}.jinja")), template)?;
        }
        Ok(())
    }

    /// tokenizer.json's text, the post-processor included.
    ///
    /// # Errors
    /// When the tokenizers library cannot serialise itself.
    pub fn tokenizer_json(&self) -> Result<String> {
        let fail = |e: String| TokenizerError::Run { action: "serialise the tokenizer", detail: e };
        let mut value = serde_json::to_value(&self.tokenizer).map_err(|e| fail(e.to_string()))?;
        value["post_processor"] =
            serde_json::to_value(&self.post_processor).map_err(|e| fail(e.to_string()))?;
        Ok(pretty(&value))
    }

    fn roles(&self) -> [(&'static str, &Option<SpecialToken>); 4] {
        [
            ("bos_token", &self.bos),
            ("eos_token", &self.eos),
            ("pad_token", &self.pad),
            ("unk_token", &self.unk),
        ]
    }

    fn config_to_save(&self) -> Map<String, Value> {
        let mut config = self.config.clone();
        for (key, token) in self.roles() {
            // What the file said stays as it was written (AddedToken objects included) unless the role changed.
            let said = config.get(key).and_then(|v| v.as_str().or_else(|| v.get("content")?.as_str()));
            if said != token.as_ref().map(|t| t.content.as_str()) {
                config.insert(key.to_owned(), token.as_ref().map_or(Value::Null, |t| json!(t.content)));
            }
        }
        // "TokenizersBackend", which transformers 5 would write, is unknown to transformers 4; this both know.
        config.entry("tokenizer_class").or_insert_with(|| json!("PreTrainedTokenizerFast"));
        config.entry("clean_up_tokenization_spaces").or_insert_with(|| json!(false));
        let mut sorted: Vec<_> = config.into_iter().collect();
        sorted.sort_by(|a, b| a.0.cmp(&b.0));
        sorted.into_iter().collect()
    }

    fn special_tokens_map(&self) -> Map<String, Value> {
        self.roles()
            .into_iter()
            .filter_map(|(key, token)| Some((key.to_owned(), json!(token.as_ref()?.content))))
            .collect()
    }
}

/// A template's name comes from a file; it must not lead out of the folder.
fn is_file_name(name: &str) -> bool {
    !name.is_empty()
        && name.chars().all(|c| c.is_alphanumeric() || "_-.".contains(c))
        && !name.starts_with('.')
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}

fn make_dir(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|source| TokenizerError::Io {
        action: "create the folder",
        path: folder.to_owned(),
        source,
    })
}

/// Writes beside the target, then renames.
fn write(path: &Path, text: &str) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".tmp");
    let aside = Path::new(&aside);
    let written = File::create(aside)
        .and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(aside, path));
    written.map_err(|source| {
        // The first error is the one worth reporting.
        let _ = std::fs::remove_file(aside);
        TokenizerError::Io { action: "write", path: path.to_owned(), source }
    })
}
