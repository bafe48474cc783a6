//! Which files belong to which subset and split.

use serde_json::Value;

use super::DatasetPart;
use super::pattern::fits;

/// Endings of files that hold rows.
const ENDINGS: [&str; 9] =
    [".parquet", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".txt", ".text", ".arrow"];
const COMPRESSED: [&str; 4] = [".gz", ".zst", ".xz", ".bz2"];
/// Files that end like rows and hold none.
const NO_ROWS: [&str; 8] = [
    "dataset_infos.json",
    "dataset_info.json",
    "dataset_dict.json",
    "state.json",
    "config.json",
    "requirements.txt",
    "license.txt",
    "readme.txt",
];
/// Words for splits in the names of files and folders, as the `datasets` library reads them.
const WORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Whether a file may hold rows.
pub(crate) fn is_data(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    let hidden = path.split('/').any(|part| part.starts_with('.') || part.starts_with("__"));
    !hidden && ending(path).is_some() && !NO_ROWS.contains(&name.as_str())
}

/// The ending that says what a file holds, without that of its compression. JSON is one kind, lines or not.
fn ending(path: &str) -> Option<&'static str> {
    let name = path.to_lowercase();
    let name = COMPRESSED.iter().find_map(|c| name.strip_suffix(c)).unwrap_or(&name);
    let found = ENDINGS.iter().copied().find(|e| name.ends_with(e))?;
    Some(if [".jsonl", ".ndjson"].contains(&found) { ".json" } else { found })
}

/// The subsets of a dataset.
#[derive(Debug)]
pub(crate) struct Layout {
    subsets: Vec<Subset>,
}

#[derive(Debug)]
struct Subset {
    name: String,
    is_default: bool,
    splits: Vec<(String, Vec<String>)>,
}

impl Layout {
    /// From the README's `configs`, or the names of all files.
    pub fn of(readme: &str, names: &[String], folder: Option<&str>) -> Layout {
        if let Some(folder) = folder {
            return Layout::plain(names, Some(folder.trim_matches('/')));
        }
        let declared: Vec<Subset> = declared(readme).iter().filter_map(|c| subset(c, names)).collect();
        match declared.is_empty() {
            true => Layout::plain(names, None),
            false => Layout { subsets: declared },
        }
    }

    fn plain(names: &[String], folder: Option<&str>) -> Layout {
        let splits = by_names(names, folder);
        Layout { subsets: vec![Subset { name: "default".into(), is_default: true, splits }] }
    }

    /// The hub's own Parquet files: `subset/split/0000.parquet`.
    pub fn converted(names: &[String]) -> Layout {
        let mut subsets: Vec<Subset> = Vec::new();
        for name in names.iter().filter(|n| n.ends_with(".parquet")) {
            let parts: Vec<&str> = name.split('/').collect();
            let [subset, split, _] = parts[..] else { continue };
            let at = subsets.iter().position(|s| s.name == subset).unwrap_or_else(|| {
                let is_default = subset == "default";
                subsets.push(Subset { name: subset.into(), is_default, splits: Vec::new() });
                subsets.len() - 1
            });
            put(&mut subsets[at].splits, split, name.clone());
        }
        Layout { subsets }
    }

    /// The files of a part, in order.
    ///
    /// # Errors
    /// What is wrong with it, to follow the repository's name.
    pub fn files(&self, part: DatasetPart<'_>) -> Result<Vec<String>, String> {
        let subset = self.subset(part.subset)?;
        let split = part.split.unwrap_or("train");
        if let Some((_, files)) = subset.splits.iter().find(|(name, _)| name == split) {
            return Ok(files.clone());
        }
        if split.contains(['[', '+', '%']) {
            return Err(format!(
                "has no split `{split}`; parts and sums of splits are not there (use max_samples, or name the dataset twice)"
            ));
        }
        let (names, place) = (list(subset.splits.iter().map(|(name, _)| name)), place(part));
        match subset.splits.iter().find(|(name, _)| name.strip_prefix("partial-") == Some(split)) {
            Some(_) => Err(format!(
                "is too large for the hub to have made all of its `{split}` Parquet; `partial-{split}` is its beginning"
            )),
            None if names.is_empty() => Err(format!("holds no files of rows{place}")),
            None => Err(format!("has no split `{split}`{place}; it has {names}")),
        }
    }

    fn subset(&self, wanted: Option<&str>) -> Result<&Subset, String> {
        let names = || list(self.subsets.iter().map(|s| &s.name));
        match wanted {
            Some(wanted) => self
                .subsets
                .iter()
                .find(|s| s.name == wanted)
                .ok_or_else(|| format!("has no subset `{wanted}`; it has {}", names())),
            None => match self.subsets.as_slice() {
                [] => Err("holds no files of rows".into()),
                [one] => Ok(one),
                many => {
                    let default = many.iter().find(|s| s.is_default);
                    let default = default.or_else(|| many.iter().find(|s| s.name == "default"));
                    default.ok_or_else(|| format!("has several subsets, name one: {}", names()))
                }
            },
        }
    }
}

fn place(part: DatasetPart<'_>) -> String {
    match (part.folder, part.subset) {
        (Some(folder), _) => format!(" in its folder `{folder}`"),
        (None, Some(subset)) => format!(" in its subset `{subset}`"),
        (None, None) => String::new(),
    }
}

fn list<'a>(names: impl Iterator<Item = &'a String>) -> String {
    names.map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", ")
}

fn put(splits: &mut Vec<(String, Vec<String>)>, split: &str, file: String) {
    match splits.iter_mut().find(|(name, _)| name == split) {
        Some((_, files)) => files.push(file),
        None => splits.push((split.to_string(), vec![file])),
    }
}

/// The `configs` in the block of YAML at the README's head.
fn declared(readme: &str) -> Vec<Value> {
    let Some(rest) = readme.trim_start_matches('\u{feff}').strip_prefix("---") else { return Vec::new() };
    let Some(end) = rest.find("\n---") else { return Vec::new() };
    let head: Option<Value> = serde_saphyr::from_str(&rest[..end]).ok();
    head.and_then(|h| h.get("configs")?.as_array().cloned()).unwrap_or_default()
}

fn subset(config: &Value, names: &[String]) -> Option<Subset> {
    let text = |key: &str| config.get(key).and_then(Value::as_str);
    let folder = text("data_dir").map(|d| d.trim_matches('/'));
    let splits = match config.get("data_files") {
        None => by_names(names, folder),
        Some(files) => patterns(files).into_iter().fold(Vec::new(), |mut splits, (split, pattern)| {
            let pattern = folder.map_or(pattern.clone(), |f| format!("{f}/{pattern}"));
            for name in names.iter().filter(|n| fits(&pattern, n)) {
                let taken =
                    splits.iter().any(|(s, f): &(String, Vec<String>)| *s == split && f.contains(name));
                if !taken {
                    put(&mut splits, &split, name.clone());
                }
            }
            splits
        }),
    };
    let is_default = config.get("default").and_then(Value::as_bool).unwrap_or(false);
    Some(Subset { name: text("config_name").unwrap_or("default").to_string(), is_default, splits })
}

/// `data_files` in its forms: one pattern or several (all of them `train`), patterns by split.
fn patterns(files: &Value) -> Vec<(String, String)> {
    let texts = |value: &Value| -> Vec<String> {
        match value {
            Value::String(s) => vec![s.clone()],
            Value::Array(items) => items.iter().filter_map(|i| i.as_str().map(str::to_string)).collect(),
            _ => Vec::new(),
        }
    };
    let of = |split: &str, value: &Value| -> Vec<(String, String)> {
        texts(value).into_iter().map(|p| (split.to_string(), p)).collect()
    };
    match files {
        Value::Array(items) if items.iter().any(Value::is_object) => items
            .iter()
            .filter_map(|item| Some(of(item.get("split")?.as_str()?, item.get("path")?)))
            .flatten()
            .collect(),
        Value::Object(splits) => splits.iter().flat_map(|(split, value)| of(split, value)).collect(),
        other => of("train", other),
    }
}

/// The split that a file's path tells.
type Rule<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Splits from the names of files: those of the commonest kind, by `train-00000-of-00002`, by words, or all `train`.
fn by_names(names: &[String], folder: Option<&str>) -> Vec<(String, Vec<String>)> {
    let inside = |n: &&String| folder.is_none_or(|f| f.is_empty() || n.starts_with(&format!("{f}/")));
    let mut files: Vec<&String> = names.iter().filter(inside).filter(|n| is_data(n)).collect();
    files.sort();
    let count = |e: &str| files.iter().filter(|f| ending(f) == Some(e)).count();
    // The first of the commonest, in the order of the list.
    let Some(kind) = ENDINGS.iter().copied().rev().max_by_key(|e| count(e)).filter(|e| count(e) > 0) else {
        return Vec::new();
    };
    files.retain(|f| ending(f) == Some(kind));
    let relative = |f: &str| f[folder.filter(|f| !f.is_empty()).map_or(0, |f| f.len() + 1)..].to_string();
    let rules: [Rule<'_>; 3] = [&sharded, &|f| word(f.rsplit('/').next().unwrap_or(f)), &|f| {
        f.rsplit_once('/').and_then(|(folders, _)| folders.split('/').find_map(word))
    }];
    for rule in rules {
        let mut splits = Vec::new();
        for file in &files {
            if let Some(split) = rule(&relative(file)) {
                put(&mut splits, &split, file.to_string());
            }
        }
        if !splits.is_empty() {
            return splits;
        }
    }
    vec![("train".into(), files.into_iter().cloned().collect())]
}

/// `data/NAME-00000-of-00005.ext`: the split may have any name.
fn sharded(file: &str) -> Option<String> {
    let name = file.strip_prefix("data/").filter(|n| !n.contains('/'))?;
    let (head, tail) = name.rsplit_once("-of-")?;
    let (split, number) = head.rsplit_once('-')?;
    let five = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let (total, rest) = tail.split_at_checked(5)?;
    (five(number) && five(total) && rest.starts_with('.')).then(|| split.to_string())
}

/// The split whose word stands in a name between its punctuation.
fn word(name: &str) -> Option<String> {
    let name = name.to_lowercase();
    let mut words = name.split(|c: char| !c.is_ascii_alphabetic());
    let found = words.find_map(|w| WORDS.iter().find(|(_, words)| words.contains(&w)))?;
    Some(found.0.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(readme: &str, names: &[&str], part: DatasetPart<'_>) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|n| n.to_string()).collect();
        Layout::of(readme, &names, part.folder).files(part)
    }

    fn split(split: &str) -> DatasetPart<'_> {
        DatasetPart { split: Some(split), ..DatasetPart::default() }
    }

    const GSM8K: &str = "---\nlicense: mit\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: main/train-*\n  \
        - split: test\n    path: main/test-*\n- config_name: socratic\n  data_files:\n  - split: train\n    path:\n    - \
        socratic/train-*\n---\n# GSM8K\n";
    const GSM8K_FILES: [&str; 4] = [
        "README.md",
        "main/test-00000-of-00001.parquet",
        "main/train-00000-of-00001.parquet",
        "socratic/train-00000-of-00001.parquet",
    ];

    #[test]
    fn declared_subsets_and_splits_are_found() {
        let main = DatasetPart { subset: Some("main"), ..DatasetPart::default() };
        assert_eq!(files(GSM8K, &GSM8K_FILES, main).unwrap(), ["main/train-00000-of-00001.parquet"]);
        let socratic = DatasetPart { subset: Some("socratic"), split: Some("test"), folder: None };
        let e = files(GSM8K, &GSM8K_FILES, socratic).unwrap_err();
        assert_eq!(e, "has no split `test` in its subset `socratic`; it has `train`");
        let e = files(GSM8K, &GSM8K_FILES, DatasetPart::default()).unwrap_err();
        assert_eq!(e, "has several subsets, name one: `main`, `socratic`");
        let folder = DatasetPart { folder: Some("socratic"), ..DatasetPart::default() };
        assert_eq!(files(GSM8K, &GSM8K_FILES, folder).unwrap(), ["socratic/train-00000-of-00001.parquet"]);
    }

    #[test]
    fn names_tell_splits() {
        let of = |names: &[&str], s: &str| files("", names, split(s));
        assert_eq!(of(&["data/dev-00000-of-00001.parquet", "x.parquet"], "dev").unwrap().len(), 1);
        let named = ["my_train_file.jsonl", "my_test_file.jsonl", "dataset_infos.json", "constant.csv"];
        assert_eq!(of(&named, "train").unwrap(), ["my_train_file.jsonl"]);
        assert_eq!(of(&["training/a.csv", "val/b.csv"], "validation").unwrap(), ["val/b.csv"]);
        assert_eq!(of(&["b.json", "a.jsonl", "notes.txt"], "train").unwrap(), ["a.jsonl", "b.json"]);
        assert_eq!(of(&["README.md"], "train").unwrap_err(), "holds no files of rows");
        assert_eq!(of(&["a.json"], "test").unwrap_err(), "has no split `test`; it has `train`");
        assert!(of(&["a.json"], "train[:10]").unwrap_err().contains("max_samples"));
        assert_eq!(of(&["constrain.json"], "train").unwrap(), ["constrain.json"]);
    }

    #[test]
    fn one_pattern_is_the_training_split() {
        let readme = "---\nconfigs:\n- config_name: default\n  data_files: \"*.csv\"\n---\n";
        assert_eq!(files(readme, &["a.csv", "b.csv", "x.json"], split("train")).unwrap(), ["a.csv", "b.csv"]);
    }

    #[test]
    fn the_hubs_parquet_is_found() {
        let names =
            ["default/train/0000.parquet", "default/train/0001.parquet", "x/partial-train/0000.parquet"];
        let layout = Layout::converted(&names.map(String::from));
        assert_eq!(layout.files(DatasetPart::default()).unwrap().len(), 2);
        let x = DatasetPart { subset: Some("x"), ..DatasetPart::default() };
        assert!(layout.files(x).unwrap_err().contains("partial-train"));
    }
}
