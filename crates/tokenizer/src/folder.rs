//! Reading a tokenizer from a Hugging Face folder.

use std::path::Path;

use serde_json::{Map, Value};

use crate::config::ConfigParts;
use crate::{Result, TokenizerBundle, TokenizerError};

impl TokenizerBundle {
    /// Reads `tokenizer.json`, or where there is none a SentencePiece `tokenizer.model`, and, where they exist,
    /// `tokenizer_config.json`, `special_tokens_map.json`, `chat_template.jinja` (which wins over the configuration's
    /// template) and `additional_chat_templates/*.jinja`; beside `tokenizer.model` also `added_tokens.json`, unless
    /// `added_tokens_decoder` takes its place.
    ///
    /// # Errors
    /// When there is neither, or a file cannot be understood.
    pub fn from_folder(folder: &Path) -> Result<Self> {
        let (path, old) = (folder.join("tokenizer.json"), folder.join("tokenizer.model"));
        let (bytes, sentencepiece) = match (read(&path)?, read(&old)?) {
            (Some(bytes), _) => (bytes, false),
            (None, Some(bytes)) => (bytes, true),
            (None, None) => return Err(no_tokenizer(folder)),
        };
        let config_path = folder.join("tokenizer_config.json");
        let config = read_object(&config_path)?.map_or(Value::Null, Value::Object);
        let mut parts = ConfigParts::from_value(config, &config_path.display().to_string())?;
        let map_path = folder.join("special_tokens_map.json");
        if let Some(map) = read_object(&map_path)? {
            parts.merge_special_tokens_map(&map, &map_path.display().to_string())?;
        }
        let added_path = folder.join("added_tokens.json");
        if sentencepiece
            && !parts.config.contains_key("added_tokens_decoder")
            && let Some(map) = read_object(&added_path)?
        {
            parts.read_added_tokens_file(&map, &added_path.display().to_string())?;
        }
        for (name, text) in template_files(folder)? {
            parts.add_template(name, text);
        }
        match sentencepiece {
            false => Self::assemble(&bytes, parts, &path.display().to_string()),
            true => Self::from_sentencepiece(&bytes, parts, &old.display().to_string()),
        }
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Io { action: "read", path: path.to_owned(), source }),
    }
}

fn no_tokenizer(folder: &Path) -> TokenizerError {
    let hint = if !folder.is_dir() {
        ": there is no such folder"
    } else if folder.join("tekken.json").exists() {
        ", only Mistral's tekken.json, which is not read and has no chat template; take tokenizer.json, tokenizer_config.json \
         and the template from a copy of the model in Hugging Face's format"
    } else if folder.join("vocab.json").exists() {
        ", only vocab.json; convert it once with transformers: \
         AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
    } else {
        " and no tokenizer.model; download either from the model's page and put it there"
    };
    TokenizerError::NoTokenizer { folder: folder.to_owned(), hint }
}

fn read_optional(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(TokenizerError::Io { action: "read", path: path.to_owned(), source }),
    }
}

fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let Some(text) = read_optional(path)? else { return Ok(None) };
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|e| TokenizerError::Json { path: path.to_owned(), detail: e.to_string() })
}

/// The chat templates that have files of their own, by name, sorted.
fn template_files(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    if let Some(text) = read_optional(&folder.join("chat_template.jinja"))? {
        found.push(("default".to_owned(), text));
    }
    let more = folder.join("additional_chat_templates");
    let entries = match std::fs::read_dir(&more) {
        Ok(entries) => entries,
        Err(_) => return Ok(found),
    };
    let mut paths: Vec<_> = entries.flatten().map(|e| e.path()).collect();
    paths.sort();
    for path in paths.into_iter().filter(|p| p.extension().is_some_and(|e| e == "jinja")) {
        let Some(name) = path.file_stem().and_then(|s| s.to_str()).map(str::to_owned) else { continue };
        if let Some(text) = read_optional(&path)? {
            found.push((name, text));
        }
    }
    Ok(found)
}
