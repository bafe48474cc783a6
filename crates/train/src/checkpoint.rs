//! The output folder: what may be written there, checkpoints, and going on from one.
//!
//! A checkpoint is written into a folder aside and renamed when every file of it is on disk, so a run that is killed at
//! any moment leaves only whole checkpoints.

use std::cell::RefCell;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use loratune_model::files::atomic::{remove_dir_atomically, replace_dir_atomically, sweep_unfinished};
use serde::{Deserialize, Serialize};

use crate::config::{Resume, RunConfig};
use crate::error::{Error, Result};
use crate::located::Pin;
use crate::progress::Progress;
use crate::trainer::Trainer;

/// loratune's own part of a checkpoint.
const STATE: &str = "loratune_state.json";
const OPTIMIZER: &str = "optimizer.safetensors";

/// Keys that may differ between a checkpoint and the run that goes on from it, because they do not change its numbers.
const FREE_KEYS: &[&str] = &[
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    // How the result is written; checkpoints are the same.
    "pissa_convert",
    "merge_adapter",
    "dataset",
    "eval_dataset",
    "dataset_dir",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "save_only_model",
    "logging_dir",
    "plot_loss",
    "report_to",
    "push_to_hub",
    "hub_model_id",
    "hub_token",
    "hub_strategy",
    "hub_private_repo",
    "hub_revision",
    "hub_always_push",
    "threads",
    "tokenized_path",
    "cache_dir",
    "print_param_status",
    "auto_find_batch_size",
    "preprocessing_num_workers",
    "overwrite_cache",
    "device",
    "gradient_checkpointing",
];

/// What loratune writes into an output folder beside checkpoints; only these are removed when it is overwritten.
pub(crate) const OUTPUT_FILES: &[&str] = &[
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "all_results.json",
    "chat_template.jinja",
    "config.json",
    "eval_results.json",
    "generation_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
    "run_config.yaml",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "train_results.json",
    "trainer_log.jsonl",
    "trainer_state.json",
    "training_loss.png",
    "training_loss.svg",
];

/// Folders that belong to a result, each with a file by which it's known: removed with it.
const OUTPUT_FOLDERS: [(&str, &str); 2] =
    [(crate::model::RESIDUAL_MODEL, "config.json"), (crate::model::INITIAL_ADAPTER, "adapter_config.json")];

/// How a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    Fresh,
    Resume(PathBuf),
}

#[derive(Serialize, Deserialize)]
struct State {
    /// Of the format of this file.
    version: u32,
    config: String,
    data: String,
    optimizer_steps: u64,
    started: u64,
    /// Commits of what was taken from the hub; older checkpoints have none.
    #[serde(default)]
    pins: Vec<Pin>,
    progress: Progress,
}

/// Held by the run that writes into a folder.
const LOCK: &str = ".loratune.lock";

/// The output folder of a run.
#[derive(Debug)]
pub struct Output {
    dir: PathBuf,
    overwrite: bool,
    limit: Option<usize>,
    /// The newest whole checkpoint.
    last: RefCell<Option<PathBuf>>,
    /// Where the checkpoint that is gone on from lies, if it's another folder.
    beside: Option<PathBuf>,
    /// To be kept in checkpoints.
    pub(crate) pins: Vec<Pin>,
    lock: RefCell<Option<File>>,
}

fn same(a: &Path, b: &Path) -> bool {
    matches!((a.canonicalize(), b.canonicalize()), (Ok(a), Ok(b)) if a == b)
}

impl Output {
    /// Looks at the folder and decides how to begin. Nothing is written or removed yet.
    ///
    /// # Errors
    /// If the folder holds something and the configuration says neither to go on nor to overwrite; if there's no
    /// checkpoint to go on from; if the run would overwrite its own input.
    pub fn inspect(config: &RunConfig) -> Result<(Output, Start)> {
        let dir = PathBuf::from(&config.output_dir);
        let problem = |path: &Path, what: &str| Error::Output { path: path.into(), what: what.into() };
        let mut output = Output {
            overwrite: config.overwrite_output_dir,
            limit: config.save_total_limit.map(|n| n as usize),
            last: RefCell::new(None),
            beside: None,
            pins: Vec::new(),
            lock: RefCell::new(None),
            dir: dir.clone(),
        };
        let names: Vec<String> = match std::fs::read_dir(&dir) {
            Ok(entries) => entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(problem(&dir, &format!("output_dir can't be used: {e}"))),
        };
        let names: Vec<String> = names.into_iter().filter(|n| n != LOCK).collect();
        output.spare_inputs(config)?;
        let newest = checkpoints(&dir).pop();
        match &config.resume_from_checkpoint {
            Resume::From(path) => {
                let path = PathBuf::from(path);
                if !path.join(STATE).is_file() {
                    let what = format!(
                        "resume_from_checkpoint: no checkpoint of loratune's here ({STATE} is missing)"
                    );
                    return Err(problem(&path, &what));
                }
                let parent = path.canonicalize().ok().and_then(|p| p.parent().map(Path::to_path_buf));
                let at_home = parent.as_ref().is_some_and(|p| same(p, &dir));
                if !at_home && !names.is_empty() && !config.overwrite_output_dir {
                    let what = "output_dir holds something else than the run of resume_from_checkpoint: name the \
                                folder of that run, or an empty one";
                    return Err(problem(&dir, what));
                }
                output.beside = parent.filter(|_| !at_home);
                return Ok((output, Start::Resume(path)));
            }
            Resume::Latest => {
                let what = "resume_from_checkpoint: there is no checkpoint in output_dir to go on from";
                let (_, path) = newest.ok_or_else(|| problem(&dir, what))?;
                return Ok((output, Start::Resume(path)));
            }
            Resume::No => {}
        }
        if names.is_empty() {
            return Ok((output, Start::Fresh));
        }
        if config.overwrite_output_dir {
            output.check_overwritten(&names)?;
            return Ok((output, Start::Fresh));
        }
        let what = match newest {
            Some((step, _)) => format!(
                "output_dir holds a run with a checkpoint at step {step}: add resume_from_checkpoint=true to go on \
                 from it, overwrite_output_dir=true to start over, or name another folder"
            ),
            None => {
                "output_dir is not empty: add overwrite_output_dir=true to replace what an earlier run wrote \
                     there, or name another folder"
                    .into()
            }
        };
        Err(problem(&dir, &what))
    }

    /// A run must not write over, or delete, the model, adapter or data that it reads, however their paths are spelt.
    fn spare_inputs(&self, config: &RunConfig) -> Result<()> {
        let removed = if self.overwrite { self.leftovers() } else { Vec::new() };
        let data = |key: &'static str, names: &[String]| -> Vec<(&str, PathBuf)> {
            names.iter().map(|n| (key, crate::data::place(n, &config.dataset_dir))).collect()
        };
        let models = [
            ("model_name_or_path", Some(&config.model_name_or_path)),
            ("adapter_name_or_path", config.adapter_name_or_path.as_ref()),
        ];
        let inputs = models
            .into_iter()
            .filter_map(|(key, path)| Some((key, PathBuf::from(path?))))
            .chain(data("dataset", &config.dataset))
            .chain(data("eval_dataset", &config.eval_dataset));
        for (key, path) in inputs {
            if same(&path, &self.dir) || removed.iter().any(|r| inside(&path, r)) {
                return Err(Error::Output {
                    path: self.dir.clone(),
                    what: format!(
                        "output_dir: the run would overwrite its own input, {key}; name another folder"
                    ),
                });
            }
        }
        Ok(())
    }

    /// What overwriting removes: every file and folder of an earlier run.
    fn leftovers(&self) -> Vec<PathBuf> {
        let mut found: Vec<PathBuf> = checkpoints(&self.dir).into_iter().map(|(_, path)| path).collect();
        let files = entries(&self.dir).unwrap_or_default().into_iter();
        found.extend(files.filter(|(path, name)| path.is_file() && is_output(name)).map(|(path, _)| path));
        for (folder, file) in OUTPUT_FOLDERS {
            let folder = self.dir.join(folder);
            found.extend(folder.join(file).is_file().then_some(folder));
        }
        let events = entries(&self.dir.join("runs")).unwrap_or_default().into_iter();
        let ours = |name: &str| name.starts_with("events.out.tfevents.") && name.contains(".loratune.");
        found.extend(events.filter(|(_, name)| ours(name)).map(|(path, _)| path));
        found
    }

    /// Only an earlier run's files may be replaced; a folder that merely has files of the same names is somebody's.
    fn check_overwritten(&self, names: &[String]) -> Result<()> {
        let a_run = names.iter().any(|n| n == "run_config.yaml") || !checkpoints(&self.dir).is_empty();
        let folder = |n: &String| OUTPUT_FOLDERS.iter().any(|(f, _)| f == n);
        match names.iter().find(|n| is_output(n) || folder(n)) {
            Some(name) if !a_run => Err(Error::Output {
                path: self.dir.clone(),
                what: format!(
                    "overwrite_output_dir: the folder holds {name}, but no run of loratune wrote it (there is no \
                     run_config.yaml); name another folder"
                ),
            }),
            _ => Ok(()),
        }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder ready once everything else is known to be in order: creates it, removes an earlier run's files
    /// if that was asked for, and half-written checkpoints.
    pub fn begin(&self, start: &Start) -> Result<()> {
        let io = |path: &Path| {
            let path = path.to_path_buf();
            move |source| Error::OutputIo { path, source }
        };
        std::fs::create_dir_all(&self.dir).map_err(io(&self.dir))?;
        self.take_lock()?;
        sweep_unfinished(&self.dir)?;
        if *start == Start::Fresh && self.overwrite {
            for path in self.leftovers() {
                match path.is_dir() {
                    true => remove_dir_atomically(&path)?,
                    false => std::fs::remove_file(&path).map_err(io(&path))?,
                }
            }
        }
        if let Start::Resume(path) = start {
            *self.last.borrow_mut() = Some(path.clone());
        }
        Ok(())
    }

    /// Two runs must not write into one folder. The lock goes with the process, however it ends.
    fn take_lock(&self) -> Result<()> {
        let path = self.dir.join(LOCK);
        let file = File::create(&path).map_err(|source| Error::OutputIo { path: path.clone(), source })?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Err(Error::Output {
                path: self.dir.clone(),
                what: "another run is writing into output_dir: wait for it, or name another folder".into(),
            }),
            // A file system without locks is no reason not to run.
            Ok(()) | Err(TryLockError::Error(_)) => {
                *self.lock.borrow_mut() = Some(file);
                Ok(())
            }
        }
    }

    /// Where the last good state is, in words.
    pub fn last_state(&self) -> String {
        match &*self.last.borrow() {
            Some(path) => path.display().to_string(),
            None => "the start: no checkpoint was written yet".into(),
        }
    }

    /// Writes `checkpoint-N`, then removes what `save_total_limit` no longer allows.
    /// Unless it is `whole`, the optimiser's state is left out, and no run can go on from it.
    pub fn save_checkpoint(&self, trainer: &Trainer<'_>, whole: bool) -> Result<PathBuf> {
        let path = self.dir.join(format!("checkpoint-{}", trainer.progress.step));
        let state = State {
            version: 1,
            config: trainer.config().to_yaml(),
            data: trainer.feed().digest().to_string(),
            optimizer_steps: trainer.optimizer.steps(),
            started: trainer.started,
            pins: self.pins.clone(),
            progress: trainer.progress.clone(),
        };
        replace_dir_atomically(&path, |dir| -> Result<()> {
            trainer.model.save_weights(dir)?;
            if whole {
                let tensors = trainer.optimizer.tensors(&trainer.model.params)?;
                crate::model::write_tensors(&dir.join(OPTIMIZER), &tensors)?;
            }
            crate::output::trainer_state(trainer, false).save(&dir.join("trainer_state.json"))?;
            write_json(&dir.join(STATE), &state)
        })?;
        if whole {
            *self.last.borrow_mut() = Some(path.clone());
        }
        self.enforce_limit(trainer)?;
        Ok(path)
    }

    /// Removes the oldest checkpoints beyond the limit; the best one always stays.
    fn enforce_limit(&self, trainer: &Trainer<'_>) -> Result<()> {
        let Some(limit) = self.limit else { return Ok(()) };
        let all = checkpoints(&self.dir);
        let best =
            trainer.progress.best.map(|(_, step)| step).filter(|_| trainer.config().load_best_model_at_end);
        let removable: Vec<_> = all.iter().filter(|(step, _)| Some(*step) != best).collect();
        let kept_best = usize::from(removable.len() < all.len());
        let excess = removable.len().saturating_sub(limit.saturating_sub(kept_best).max(1));
        for (_, path) in &removable[..excess] {
            remove_dir_atomically(path)?;
        }
        Ok(())
    }

    /// The checkpoint of a step, if it's there.
    pub fn checkpoint(&self, step: u64) -> Option<PathBuf> {
        let here = checkpoints(&self.dir).into_iter();
        let there = self.beside.iter().flat_map(|dir| checkpoints(dir));
        here.chain(there).find(|(s, _)| *s == step).map(|(_, p)| p)
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if self.lock.borrow_mut().take().is_some() {
            // Only tidiness: a lock file that stays locks nothing.
            let _ = std::fs::remove_file(self.dir.join(LOCK));
        }
    }
}

/// Whether `path` is `place` or lies in it.
fn inside(path: &Path, place: &Path) -> bool {
    matches!((path.canonicalize(), place.canonicalize()), (Ok(p), Ok(place)) if p.starts_with(&place))
}

/// A file that runs write into their folder.
fn is_output(name: &str) -> bool {
    OUTPUT_FILES.contains(&name) || is_shard(name)
}

/// A part of a model that was written in several files.
fn is_shard(name: &str) -> bool {
    name.starts_with("model-") && name.ends_with(".safetensors")
}

/// Paths and names of what a folder holds.
fn entries(dir: &Path) -> std::io::Result<Vec<(PathBuf, String)>> {
    let entries = std::fs::read_dir(dir)?;
    Ok(entries.flatten().map(|e| (e.path(), e.file_name().to_string_lossy().into_owned())).collect())
}

/// The checkpoints in a folder by step, oldest first.
fn checkpoints(dir: &Path) -> Vec<(u64, PathBuf)> {
    let mut found: Vec<(u64, PathBuf)> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|e| {
            let step = e.file_name().to_str()?.strip_prefix("checkpoint-")?.parse().ok()?;
            e.path().join(STATE).is_file().then(|| (step, e.path()))
        })
        .collect();
    found.sort();
    found
}

fn read_state(path: &Path) -> Result<State> {
    let problem = |what: String| Error::Checkpoint { path: path.into(), what };
    let text = std::fs::read_to_string(path.join(STATE)).map_err(|e| problem(format!("{STATE}: {e}")))?;
    let state: State =
        serde_json::from_str(&text).map_err(|e| problem(format!("{STATE} can't be read: {e}")))?;
    if state.version != 1 {
        return Err(problem(format!("written by another version of loratune (format {})", state.version)));
    }
    Ok(state)
}

/// When the run of a checkpoint was first started, in seconds since 1970.
pub fn started(path: &Path) -> Result<u64> {
    Ok(read_state(path)?.started)
}

/// The commits of what the run that a configuration goes on with took from the hub; none where there is no such run, of which
/// [`Output::inspect`] speaks.
pub fn pins(config: &RunConfig) -> Vec<Pin> {
    let path = match &config.resume_from_checkpoint {
        Resume::No => None,
        Resume::Latest => checkpoints(Path::new(&config.output_dir)).pop().map(|(_, path)| path),
        Resume::From(path) => Some(PathBuf::from(path)),
    };
    path.and_then(|path| read_state(&path).ok()).map(|state| state.pins).unwrap_or_default()
}

/// Brings a trainer to the state of a checkpoint.
///
/// # Errors
/// If the checkpoint is damaged, or belongs to a run of other data or other settings; the error names them.
pub fn resume(trainer: &mut Trainer<'_>, path: &Path) -> Result<()> {
    let problem = |what: String| Error::Checkpoint { path: path.into(), what };
    let state = read_state(path)?;
    if !path.join(OPTIMIZER).exists() {
        return Err(problem(format!(
            "it holds no optimiser state ({OPTIMIZER}), so a run can't go on from it: it was written with save_only_model. \
             To train on from its weights, start a new run with adapter_name_or_path (or model_name_or_path) set to it"
        )));
    }
    let theirs = RunConfig::from_text(&state.config, "run_config.yaml", &[])?.config;
    let changed = differences(&theirs, trainer.config());
    if !changed.is_empty() {
        return Err(problem(format!(
            "this run differs from the one that wrote the checkpoint in {}. A resumed run must end where the whole run \
             would have; to train on with other settings, start a new run (with adapter_name_or_path for an adapter)",
            changed.join(", ")
        )));
    }
    if state.data != trainer.feed().digest() {
        return Err(problem("the data is not what it was when the checkpoint was written".into()));
    }
    trainer.model.load_weights(path)?;
    let file = path.join(OPTIMIZER);
    let tensors = crate::model::TensorFile::open(&file)?;
    trainer
        .optimizer
        .restore(&trainer.model.params, state.optimizer_steps, |name, shape| tensors.read(name, shape))?;
    trainer.progress = state.progress;
    Ok(())
}

fn differences(a: &RunConfig, b: &RunConfig) -> Vec<String> {
    crate::config::KEYS
        .iter()
        .filter(|key| !FREE_KEYS.contains(&key.name))
        .filter(|key| (key.get)(a) != (key.get)(b))
        .map(|key| {
            format!("{} ({} there, {} here)", key.name, (key.get)(a).to_yaml(), (key.get)(b).to_yaml())
        })
        .collect()
}

/// JSON, indented, written aside and renamed.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Output { path: path.into(), what: e.to_string() })?;
    crate::model::write_text(path, &(text + "\n"))
}
