//! The output folder: what may be written there, checkpoints, and going on from one.
//!
//! A checkpoint is written into a folder aside and renamed when every file of it is on disk, so a run that is killed at
//! any moment leaves only whole checkpoints.

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use loratune_data::Example;
use loratune_model::files::atomic::{replace_dir_atomically, sweep_unfinished};
use serde::{Deserialize, Serialize};

use crate::config::{Resume, RunConfig};
use crate::error::{Error, Result};
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
    "dataset",
    "eval_dataset",
    "dataset_dir",
    "save_strategy",
    "save_steps",
    "save_total_limit",
    "plot_loss",
    "report_to",
    "threads",
    "preprocessing_num_workers",
    "device",
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
    total_steps: u64,
    started: u64,
    progress: Progress,
}

/// The output folder of a run.
#[derive(Debug)]
pub struct Output {
    dir: PathBuf,
    overwrite: bool,
    limit: Option<usize>,
    last: RefCell<Option<PathBuf>>,
}

impl Output {
    /// Looks at the folder and decides how to begin. Nothing is written or removed yet.
    ///
    /// # Errors
    /// If the folder holds something and the configuration says neither to go on nor to overwrite; if there's no
    /// checkpoint to go on from.
    pub fn inspect(config: &RunConfig) -> Result<(Output, Start)> {
        let dir = PathBuf::from(&config.output_dir);
        let problem = |path: &Path, what: String| Error::Output { path: path.into(), what };
        let output = Output {
            overwrite: config.overwrite_output_dir,
            limit: config.save_total_limit.map(|n| n as usize),
            last: RefCell::new(None),
            dir: dir.clone(),
        };
        let names: Vec<String> = match std::fs::read_dir(&dir) {
            Ok(entries) => entries.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(problem(&dir, format!("output_dir can't be used: {e}"))),
        };
        let newest = checkpoints(&dir).pop();
        match &config.resume_from_checkpoint {
            Resume::From(path) => {
                let path = PathBuf::from(path);
                if !path.join(STATE).is_file() {
                    let what = format!(
                        "resume_from_checkpoint: no checkpoint of loratune's here ({STATE} is missing)"
                    );
                    return Err(problem(&path, what));
                }
                return Ok((output, Start::Resume(path)));
            }
            Resume::Latest => {
                return match newest {
                    Some((_, path)) => Ok((output, Start::Resume(path))),
                    None => Err(problem(
                        &dir,
                        "resume_from_checkpoint: there is no checkpoint in output_dir to go on from".into(),
                    )),
                };
            }
            Resume::No => {}
        }
        if names.is_empty() || config.overwrite_output_dir {
            return Ok((output, Start::Fresh));
        }
        Err(problem(
            &dir,
            match newest {
                Some((step, _)) => format!(
                    "output_dir holds a run with a checkpoint at step {step}: add resume_from_checkpoint=true to go \
                     on from it, overwrite_output_dir=true to start over, or name another folder"
                ),
                None => "output_dir is not empty: add overwrite_output_dir=true to replace what an earlier run wrote \
                         there, or name another folder"
                    .into(),
            },
        ))
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the folder ready once everything else is known to be in order: creates it, removes an earlier run's files
    /// if that was asked for, and half-written checkpoints.
    pub fn begin(&self, start: &Start) -> Result<()> {
        let io = |path: &Path, e: std::io::Error| Error::Output { path: path.into(), what: e.to_string() };
        std::fs::create_dir_all(&self.dir).map_err(|e| io(&self.dir, e))?;
        sweep_unfinished(&self.dir)?;
        if *start == Start::Fresh && self.overwrite {
            for (_, path) in checkpoints(&self.dir) {
                std::fs::remove_dir_all(&path).map_err(|e| io(&path, e))?;
            }
            let shards = |name: &str| name.starts_with("model-") && name.ends_with(".safetensors");
            for entry in std::fs::read_dir(&self.dir).map_err(|e| io(&self.dir, e))?.flatten() {
                let name = entry.file_name().to_string_lossy().into_owned();
                if OUTPUT_FILES.contains(&name.as_str()) || shards(&name) {
                    std::fs::remove_file(entry.path()).map_err(|e| io(&entry.path(), e))?;
                }
            }
            let runs = self.dir.join("runs");
            if runs.is_dir() {
                std::fs::remove_dir_all(&runs).map_err(|e| io(&runs, e))?;
            }
        }
        if let Start::Resume(path) = start {
            *self.last.borrow_mut() = Some(path.clone());
        }
        Ok(())
    }

    /// Where the last good state is, in words.
    pub fn last_state(&self) -> String {
        match &*self.last.borrow() {
            Some(path) => path.display().to_string(),
            None => "the start: no checkpoint was written yet".into(),
        }
    }

    /// Writes `checkpoint-N`, then removes what `save_total_limit` no longer allows.
    pub fn save_checkpoint(&self, trainer: &Trainer<'_>) -> Result<PathBuf> {
        let path = self.dir.join(format!("checkpoint-{}", trainer.progress.step));
        let state = State {
            version: 1,
            config: trainer.config().to_yaml(),
            data: fingerprint(trainer.feed()),
            optimizer_steps: trainer.optimizer.steps(),
            total_steps: trainer.total_steps(),
            started: trainer.started,
            progress: trainer.progress.clone(),
        };
        replace_dir_atomically(&path, |dir| -> Result<()> {
            trainer.model.save_weights(dir)?;
            let tensors = trainer.optimizer.tensors(&trainer.model.params);
            crate::model::write_tensors(&dir.join(OPTIMIZER), &tensors)?;
            crate::output::trainer_state(trainer, false).save(&dir.join("trainer_state.json"))?;
            write_json(&dir.join(STATE), &state)
        })?;
        *self.last.borrow_mut() = Some(path.clone());
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
            std::fs::remove_dir_all(path)
                .map_err(|e| Error::Output { path: path.clone(), what: e.to_string() })?;
        }
        Ok(())
    }

    /// The checkpoint of a step, if it's there.
    pub fn checkpoint(&self, step: u64) -> Option<PathBuf> {
        checkpoints(&self.dir).into_iter().find(|(s, _)| *s == step).map(|(_, p)| p)
    }
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

/// Brings a trainer to the state of a checkpoint.
///
/// # Errors
/// If the checkpoint is damaged, or belongs to a run of other data or other settings; the error names them.
pub fn resume(trainer: &mut Trainer<'_>, path: &Path) -> Result<()> {
    let problem = |what: String| Error::Checkpoint { path: path.into(), what };
    let state = read_state(path)?;
    let theirs = RunConfig::from_text(&state.config, "run_config.yaml", &[])?.config;
    let changed = differences(&theirs, trainer.config());
    if !changed.is_empty() {
        return Err(problem(format!(
            "this run differs from the one that wrote the checkpoint in {}. A resumed run must end where the whole run \
             would have; to train on with other settings, start a new run (with adapter_name_or_path for an adapter)",
            changed.join(", ")
        )));
    }
    if state.data != fingerprint(trainer.feed()) {
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

/// A digest of every token and label of the run's data, in order (FNV-1a).
fn fingerprint(feed: &crate::feed::Feed) -> String {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut eat = |x: u64| hash = (hash ^ x).wrapping_mul(0x100_0000_01b3);
    for part in [&feed.train, &feed.eval] {
        eat(part.len() as u64);
        for Example { input_ids, labels, .. } in part {
            eat(input_ids.len() as u64);
            input_ids.iter().for_each(|&i| eat(i as u64));
            labels.iter().for_each(|&l| eat(l as u32 as u64));
        }
    }
    format!("{hash:016x}")
}

/// JSON, indented, written aside and renamed.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value)
        .map_err(|e| Error::Output { path: path.into(), what: e.to_string() })?;
    crate::model::write_text(path, &(text + "\n"))
}
