//! LLaMA-Factory's `dataset_info.json`: datasets by name, where they are, and what their columns mean.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::{DataError, Result, kind_of, nearest};

/// The file's name inside of a `dataset_dir`.
pub const INDEX: &str = "dataset_info.json";

/// How the rows of a dataset are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Formatting {
    /// An instruction and its output.
    #[default]
    Alpaca,
    /// A list of turns that alternate.
    Sharegpt,
    /// As ShareGPT, with `tool_calls` and one message for each tool's result.
    Openai,
}

impl Formatting {
    /// The name in `dataset_info.json` and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Alpaca => "alpaca",
            Self::Sharegpt => "sharegpt",
            Self::Openai => "openai",
        }
    }
}

/// What the columns of a dataset hold; `None` = there is no such column. The names of the fields are LLaMA-Factory's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Columns {
    pub prompt: Option<String>,
    pub query: Option<String>,
    pub response: Option<String>,
    pub history: Option<String>,
    pub messages: Option<String>,
    pub system: Option<String>,
    pub tools: Option<String>,
}

/// How the turns of a dataset name their fields and roles; a role that is `None` does not occur.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tags {
    pub role: String,
    pub content: String,
    pub user: Option<String>,
    pub assistant: Option<String>,
    pub observation: Option<String>,
    pub function: Option<String>,
    pub system: Option<String>,
}

/// What an entry says of the rows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    pub formatting: Formatting,
    pub columns: Columns,
    pub tags: Tags,
    /// The entry names its columns, so that they have to be there.
    pub names_columns: bool,
    /// The entry says nothing of the rows: those without an `instruction` are recognised by their fields.
    pub is_silent: bool,
}

impl Default for Attributes {
    fn default() -> Self {
        let some = |name: &str| Some(name.to_string());
        Self {
            formatting: Formatting::Alpaca,
            columns: Columns {
                prompt: some("instruction"),
                query: some("input"),
                response: some("output"),
                history: None,
                messages: some("conversations"),
                system: None,
                tools: None,
            },
            tags: Tags {
                role: "from".into(),
                content: "value".into(),
                user: some("human"),
                assistant: some("gpt"),
                observation: some("observation"),
                function: some("function_call"),
                system: some("system"),
            },
            names_columns: false,
            is_silent: true,
        }
    }
}

impl Attributes {
    /// The columns that the entry names and its formatting reads.
    pub fn named_columns(&self) -> Vec<&str> {
        let c = &self.columns;
        let read = match self.formatting {
            Formatting::Alpaca => vec![&c.prompt, &c.query, &c.response, &c.history, &c.system, &c.tools],
            Formatting::Sharegpt | Formatting::Openai => vec![&c.messages, &c.system, &c.tools],
        };
        if self.names_columns { read.into_iter().flatten().map(String::as_str).collect() } else { Vec::new() }
    }
}

/// Where a dataset is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// `hf_hub_url`: a repository of the Hugging Face hub.
    Hub(String),
    /// `file_name`: a file or folder inside of `dataset_dir`.
    File(String),
}

/// An entry of the index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub location: Location,
    /// A configuration of the hub's dataset.
    pub subset: Option<String>,
    /// `train` unless the entry says otherwise.
    pub split: Option<String>,
    /// A folder inside of the hub's repository.
    pub folder: Option<String>,
    pub num_samples: Option<usize>,
    pub attributes: Attributes,
}

/// The datasets that an index names.
#[derive(Debug, Clone)]
pub struct DatasetInfo {
    path: PathBuf,
    entries: Map<String, Value>,
}

const KEYS: [&str; 14] = [
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
    "file_name",
    "formatting",
    "ranking",
    "subset",
    "split",
    "folder",
    "num_samples",
    "columns",
    "tags",
];
const COLUMNS: [&str; 7] = ["prompt", "query", "response", "history", "messages", "system", "tools"];
/// Columns of other trainings and other media: named in files that hold text, too, so that only their use is refused.
const OTHER_COLUMNS: [&str; 6] = ["images", "videos", "audios", "chosen", "rejected", "kto_tag"];
const TAGS: [&str; 7] =
    ["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"];

impl DatasetInfo {
    /// The index of a folder; `None` where there is none.
    ///
    /// # Errors
    /// A file that is no JSON object.
    pub fn read(dataset_dir: &Path) -> Result<Option<Self>> {
        let path = dataset_dir.join(INDEX);
        // What `datasets` saves beside its rows has the same name and stands beside a state.json.
        if !path.is_file() || dataset_dir.join("state.json").is_file() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&path)
            .map_err(|source| DataError::Io { path: path.display().to_string(), source })?;
        Self::parse(&path, &text).map(Some)
    }

    /// An index from its text; `path` is its name in messages.
    ///
    /// # Errors
    /// Text that is no JSON object.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let bad = |message: String| DataError::BrokenIndex { path: path.display().to_string(), message };
        match serde_json::from_str(text.trim_start_matches('\u{feff}')) {
            Ok(Value::Object(entries)) => Ok(Self { path: path.to_path_buf(), entries }),
            Ok(other) => Err(bad(format!(
                "expected an object with an entry for each dataset, found {}",
                kind_of(&other)
            ))),
            Err(e) => Err(bad(e.to_string())),
        }
    }

    /// The names of all datasets.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// The entry of a dataset.
    ///
    /// # Errors
    /// An entry that cannot be used here, with what is wrong in it.
    pub fn entry(&self, name: &str) -> Result<Option<Entry>> {
        let Some(value) = self.entries.get(name) else { return Ok(None) };
        entry(value).map(Some).map_err(|message| DataError::BrokenIndex {
            path: self.path.display().to_string(),
            message: format!("dataset `{name}`: {message}"),
        })
    }
}

type Parsed<T> = std::result::Result<T, String>;

fn entry(value: &Value) -> Parsed<Entry> {
    let Value::Object(fields) = value else {
        return Err(format!("expected an object, found {}", kind_of(value)));
    };
    slips(fields, &KEYS, "")?;
    if fields.get("ranking").is_some_and(|r| *r == Value::Bool(true)) {
        return Err("`ranking` is true: it is for training on preferences, which is not there yet".into());
    }
    let location = match (text(fields, "hf_hub_url")?, text(fields, "file_name")?) {
        (Some(repository), _) => Location::Hub(repository),
        (None, Some(file)) => Location::File(file),
        (None, None) => return Err(elsewhere(fields)),
    };
    Ok(Entry {
        location,
        subset: text(fields, "subset")?,
        split: text(fields, "split")?,
        folder: text(fields, "folder")?,
        num_samples: match fields.get("num_samples") {
            None | Some(Value::Null) => None,
            Some(n) => match n.as_u64().filter(|n| *n > 0) {
                Some(n) => Some(n as usize),
                None => return Err(format!("`num_samples` should be a whole number above 0, found {n}")),
            },
        },
        attributes: attributes(fields)?,
    })
}

fn elsewhere(fields: &Map<String, Value>) -> String {
    let other = ["ms_hub_url", "om_hub_url", "script_url", "cloud_file_name"];
    match other.iter().find(|k| fields.contains_key(**k)) {
        Some(key) => format!("`{key}` is not supported; expected `file_name` or `hf_hub_url`"),
        None => "it names no place; expected `file_name` (in dataset_dir) or `hf_hub_url`".into(),
    }
}

fn attributes(fields: &Map<String, Value>) -> Parsed<Attributes> {
    let mut out = Attributes::default();
    let has = |key: &str| fields.get(key).is_some_and(|v| !v.is_null());
    out.is_silent = !(has("formatting") || has("columns") || has("tags"));
    out.formatting = match text(fields, "formatting")?.as_deref() {
        None | Some("alpaca") => Formatting::Alpaca,
        Some("sharegpt") => Formatting::Sharegpt,
        Some("openai") => Formatting::Openai,
        Some(other) => return Err(format!("`formatting` is `{other}`; expected alpaca, sharegpt or openai")),
    };
    if let Some(columns) = mapping(fields, "columns")? {
        let known: Vec<&str> = COLUMNS.into_iter().chain(OTHER_COLUMNS).collect();
        slips(columns, &known, "columns.")?;
        for media in ["images", "videos", "audios"] {
            if text(columns, media)?.is_some() {
                return Err(format!("`columns.{media}`: only text can be trained"));
            }
        }
        let [prompt, query, response, history, messages, system, tools] = COLUMNS.map(|c| text(columns, c));
        out.columns = Columns {
            prompt: prompt?,
            query: query?,
            response: response?,
            history: history?,
            messages: messages?,
            system: system?,
            tools: tools?,
        };
        let (missing, what) = match out.formatting {
            Formatting::Alpaca => (out.columns.prompt.is_none() && out.columns.query.is_none(), "prompt"),
            _ => (out.columns.messages.is_none(), "messages"),
        };
        if missing {
            return Err(format!("`columns` names no `{what}`; what it leaves out is not read"));
        }
        out.names_columns = true;
    }
    if let Some(tags) = mapping(fields, "tags")? {
        slips(tags, &TAGS, "tags.")?;
        let [role, content, user, assistant, observation, function, system] = TAGS.map(|t| text(tags, t));
        let default = Attributes::default().tags;
        out.tags = Tags {
            role: role?.unwrap_or(default.role),
            content: content?.unwrap_or(default.content),
            user: user?,
            assistant: assistant?,
            observation: observation?,
            function: function?,
            system: system?,
        };
        if out.formatting != Formatting::Alpaca && (out.tags.user.is_none() || out.tags.assistant.is_none()) {
            return Err(
                "`tags` names no `user_tag` or no `assistant_tag`; what it leaves out does not occur".into(),
            );
        }
    }
    Ok(out)
}

/// A key that is nearly one of the known ones. Others are left alone, as LLaMA-Factory does.
fn slips(fields: &Map<String, Value>, known: &[&str], under: &str) -> Parsed<()> {
    for key in fields.keys().filter(|k| !known.contains(&k.as_str())) {
        if let Some(right) = nearest(key, known.iter().copied().filter(|k| !fields.contains_key(*k)))
            && strsim::damerau_levenshtein(key, right) <= 2
        {
            return Err(format!("`{under}{key}` is unknown; did you mean `{under}{right}`?"));
        }
    }
    Ok(())
}

fn text(fields: &Map<String, Value>, key: &str) -> Parsed<Option<String>> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s.clone())),
        Some(other) => Err(format!("`{key}` should be a string, found {}", kind_of(other))),
    }
}

fn mapping<'f>(fields: &'f Map<String, Value>, key: &str) -> Parsed<Option<&'f Map<String, Value>>> {
    match fields.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(format!("`{key}` should be an object, found {}", kind_of(other))),
    }
}
