//! tokenizer_config.json: what it says about special tokens, templates and lengths.

use serde_json::{Map, Value, json};
use tokenizers::processors::PostProcessorWrapper;
use tokenizers::{AddedToken, Tokenizer};

use crate::{Result, SpecialToken, TokenizerError};

/// Larger values of model_max_length mean "no limit" (transformers writes 1e30).
const LONGEST_MODEL: f64 = 1e9;

/// The understood part of a tokenizer configuration, and the rest as it was.
#[derive(Debug, Default)]
pub(crate) struct ConfigParts {
    pub config: Map<String, Value>,
    pub chat_template: Option<String>,
    pub named_templates: Vec<(String, String)>,
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub pad: Option<String>,
    pub unk: Option<String>,
    /// Further special tokens (`additional_special_tokens`, `extra_special_tokens`).
    pub more_special: Vec<String>,
    /// `added_tokens_decoder`, or the tokens of added_tokens.json, sorted by id.
    pub added: Vec<(u32, AddedToken)>,
    /// added_tokens.json, if that is where they are from.
    pub added_file: Option<String>,
    /// (add_bos_token, add_eos_token) when at least one is stated.
    pub adds: Option<(bool, bool)>,
    pub model_max_length: Option<usize>,
}

impl ConfigParts {
    /// Reads tokenizer_config.json's value; `origin` names it in errors.
    pub fn from_value(value: Value, origin: &str) -> Result<Self> {
        let mut config = match value {
            Value::Object(map) => map,
            Value::Null => Map::new(),
            _ => {
                return Err(field(origin, "", "the file must hold a JSON object"));
            }
        };
        let mut parts = ConfigParts::default();
        match config.remove("chat_template") {
            None | Some(Value::Null) => {}
            Some(template) => parts.read_templates(template, origin)?,
        }
        parts.bos = token_content(&config, "bos_token", origin)?;
        parts.eos = token_content(&config, "eos_token", origin)?;
        parts.pad = token_content(&config, "pad_token", origin)?;
        parts.unk = token_content(&config, "unk_token", origin)?;
        for key in ["additional_special_tokens", "extra_special_tokens"] {
            parts.more_special.extend(token_list(config.get(key), key, origin)?);
        }
        parts.added = added_tokens(config.get("added_tokens_decoder"), origin)?;
        let flag = |key: &str| config.get(key).and_then(Value::as_bool);
        if flag("add_bos_token").is_some() || flag("add_eos_token").is_some() {
            parts.adds =
                Some((flag("add_bos_token").unwrap_or(false), flag("add_eos_token").unwrap_or(false)));
        }
        parts.model_max_length = config
            .get("model_max_length")
            .and_then(Value::as_f64)
            .filter(|n| (1.0..=LONGEST_MODEL).contains(n))
            .map(|n| n as usize);
        parts.config = config;
        Ok(parts)
    }

    /// A template is a string, or a list of `{"name", "template"}`, or a map from names to templates.
    fn read_templates(&mut self, template: Value, origin: &str) -> Result<()> {
        let wrong = || field(origin, "chat_template", "must be a string or a list of named templates");
        let mut named = Vec::new();
        match template {
            Value::String(text) => self.chat_template = Some(text),
            Value::Array(list) => {
                for entry in list {
                    let name = entry.get("name").and_then(Value::as_str).ok_or_else(wrong)?;
                    let text = entry.get("template").and_then(Value::as_str).ok_or_else(wrong)?;
                    named.push((name.to_owned(), text.to_owned()));
                }
            }
            Value::Object(map) => {
                for (name, text) in map {
                    named.push((name, text.as_str().ok_or_else(wrong)?.to_owned()));
                }
            }
            _ => return Err(wrong()),
        }
        for (name, text) in named {
            self.add_template(name, text);
        }
        Ok(())
    }

    /// Files one named template; a later one of the same name wins.
    pub fn add_template(&mut self, name: String, text: String) {
        if name == "default" {
            self.chat_template = Some(text);
            return;
        }
        self.named_templates.retain(|(n, _)| *n != name);
        self.named_templates.push((name, text));
    }

    /// special_tokens_map.json fills in the roles that tokenizer_config.json leaves open.
    pub fn merge_special_tokens_map(&mut self, map: &Map<String, Value>, origin: &str) -> Result<()> {
        for (key, role) in [
            ("bos_token", &mut self.bos),
            ("eos_token", &mut self.eos),
            ("pad_token", &mut self.pad),
            ("unk_token", &mut self.unk),
        ] {
            // An explicit null in tokenizer_config.json is an answer, too.
            if role.is_none() && !self.config.contains_key(key) {
                *role = token_content(map, key, origin)?;
            }
        }
        let key = "additional_special_tokens";
        if !self.config.contains_key(key) && !self.config.contains_key("extra_special_tokens") {
            self.more_special.extend(token_list(map.get(key), key, origin)?);
        }
        Ok(())
    }

    /// added_tokens.json, which transformers before 4.34 wrote: a map from tokens to ids. Those that have a role are special.
    /// After the roles are known.
    pub fn read_added_tokens_file(&mut self, map: &Map<String, Value>, origin: &str) -> Result<()> {
        let named = [&self.bos, &self.eos, &self.pad, &self.unk];
        let special = |content: &String| {
            named.iter().any(|role| role.as_ref() == Some(content)) || self.more_special.contains(content)
        };
        let mut added = Vec::with_capacity(map.len());
        for (content, id) in map {
            let id = id.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|_| !content.is_empty());
            let id = id.ok_or_else(|| {
                field(origin, content, "must be a token with its id, a whole number; download the file again")
            })?;
            let special = special(content);
            added.push((id, AddedToken::from(content.as_str(), special).normalized(!special)));
        }
        added.sort_by_key(|(id, _)| *id);
        (self.added, self.added_file) = (added, Some(origin.to_owned()));
        Ok(())
    }
}

/// Adds the tokens that the configuration names and tokenizer.json doesn't mark as added, as transformers does: a
/// token that the vocabulary has keeps its id and becomes special, any other gets the next free id.
pub(crate) fn add_missing_tokens(tokenizer: &mut Tokenizer, parts: &ConfigParts, origin: &str) -> Result<()> {
    let known = tokenizer.get_added_tokens_decoder();
    let is_added = |content: &str| known.values().any(|t| t.content == content);
    let missing: Vec<_> = parts.added.iter().filter(|(_, t)| !is_added(&t.content)).cloned().collect();
    let named = [&parts.bos, &parts.eos, &parts.pad, &parts.unk];
    // An ordinary added token becomes special with its role, and stays what it is otherwise.
    let ordinary = |c: &&String| known.values().find(|t| t.content == **c && !t.special).cloned();
    let raised: Vec<_> = named.into_iter().flatten().filter_map(|c| ordinary(&c)).collect();
    let roles: Vec<AddedToken> = named
        .into_iter()
        .flatten()
        .chain(&parts.more_special)
        .filter(|c| !is_added(c) && !missing.iter().any(|(_, t)| t.content == **c))
        .map(|c| AddedToken::from(c.as_str(), true))
        .collect();
    let build =
        |e: tokenizers::Error| TokenizerError::Build { origin: origin.to_owned(), detail: e.to_string() };
    for (id, token) in missing {
        let content = token.content.clone();
        if token.special {
            tokenizer.add_special_tokens([token]).map_err(build)?;
        } else {
            tokenizer.add_tokens([token]).map_err(build)?;
        }
        if let Some(got) = tokenizer.token_to_id(&content).filter(|&got| got != id) {
            if let Some(file) = &parts.added_file {
                let detail = format!(
                    "must be {got}, the next id with {origin}, and is {id}: the files do not belong together; download \
                     the folder again"
                );
                return Err(field(file, &content, &detail));
            }
            return Err(field(
                origin,
                "added_tokens_decoder",
                &format!(
                    "of tokenizer_config.json gives `{content}` the id {id}, but tokenizer.json leads to {got}; \
                     the files do not belong together"
                ),
            ));
        }
    }
    tokenizer.add_special_tokens(roles).map_err(build)?;
    let raised = raised.into_iter().map(|token| AddedToken { special: true, ..token });
    tokenizer.add_special_tokens(raised).map_err(build)?;
    Ok(())
}

/// A post-processor that puts BOS in front and EOS behind; `None` when neither is wanted.
pub(crate) fn template_post_processor(
    bos: Option<&SpecialToken>,
    eos: Option<&SpecialToken>,
) -> std::result::Result<Option<PostProcessorWrapper>, String> {
    if bos.is_none() && eos.is_none() {
        return Ok(None);
    }
    let special = |t: &SpecialToken, n: u32| json!({"SpecialToken": {"id": t.content, "type_id": n}});
    let sequence = |name: &str, n: u32| json!({"Sequence": {"id": name, "type_id": n}});
    let around = |name: &str, n: u32| -> Vec<Value> {
        bos.map(|t| special(t, n))
            .into_iter()
            .chain([sequence(name, n)])
            .chain(eos.map(|t| special(t, n)))
            .collect()
    };
    let mut tokens = Map::new();
    for t in bos.into_iter().chain(eos) {
        tokens.insert(t.content.clone(), json!({"id": t.content, "ids": [t.id], "tokens": [t.content]}));
    }
    let mut pair = around("A", 0);
    pair.extend(around("B", 1));
    let value = json!({
        "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens,
    });
    serde_json::from_value(value).map(Some).map_err(|e| e.to_string())
}

fn field(origin: &str, name: &str, detail: &str) -> TokenizerError {
    TokenizerError::Field { origin: origin.to_owned(), field: name.to_owned(), detail: detail.to_owned() }
}

/// The text of a special token: a string, or an AddedToken's `content`.
fn content_of(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content").and_then(Value::as_str))
}

fn token_content(map: &Map<String, Value>, key: &str, origin: &str) -> Result<Option<String>> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match content_of(value) {
            Some("") | None => {
                Err(field(origin, key, "must be a token's text or an object with its `content`"))
            }
            Some(text) => Ok(Some(text.to_owned())),
        },
    }
}

/// `additional_special_tokens` is a list; transformers 5 also writes a map from role names to tokens.
fn token_list(value: Option<&Value>, key: &str, origin: &str) -> Result<Vec<String>> {
    let values: Vec<&Value> = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(list)) => list.iter().collect(),
        Some(Value::Object(map)) => map.values().collect(),
        Some(_) => return Err(field(origin, key, "must be a list of tokens")),
    };
    values
        .into_iter()
        .map(|v| content_of(v).map(str::to_owned))
        .collect::<Option<_>>()
        .ok_or_else(|| field(origin, key, "must hold tokens' texts or objects with `content`"))
}

fn added_tokens(value: Option<&Value>, origin: &str) -> Result<Vec<(u32, AddedToken)>> {
    let key = "added_tokens_decoder";
    let map = match value {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Object(map)) => map,
        Some(_) => return Err(field(origin, key, "must be a map from ids to tokens")),
    };
    let mut tokens = Vec::with_capacity(map.len());
    for (id, token) in map {
        let id: u32 =
            id.parse().map_err(|_| field(origin, key, &format!("has the key `{id}`, which is no id")))?;
        let content = content_of(token)
            .filter(|c| !c.is_empty())
            .ok_or_else(|| field(origin, key, &format!("has no `content` for id {id}")))?;
        let flag = |name: &str, default: bool| token.get(name).and_then(Value::as_bool).unwrap_or(default);
        let special = flag("special", false);
        let token = AddedToken::from(content, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special));
        tokens.push((id, token));
    }
    tokens.sort_by_key(|(id, _)| *id);
    Ok(tokens)
}
