//! A run whose results go to the hub: at its end, or with every checkpoint, beside the training.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use loratune_hub::{Hub, Push, Pushed, Upload, folder};
use loratune_train::config::{HubStrategy, RunConfig};
use loratune_train::progress::{Evaluation, StepReport};
use loratune_train::report::LogEntry;
use loratune_train::trainer::Observer;

use crate::hub;
use crate::output::{self, shell_word};

/// Of a checkpoint, what belongs to the model: the rest is for going on.
const OF_THE_MODEL: [&str; 9] = [
    "adapter_config.json",
    "adapter_model.safetensors",
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
];

/// Where a run's results go.
pub struct Pushing {
    hub: Arc<Hub>,
    quiet_hub: Arc<Hub>,
    strategy: HubStrategy,
    always: bool,
    output_dir: PathBuf,
    template: Push,
    /// The push that goes on, and whether it has ended.
    current: Option<JoinHandle<()>>,
    busy: Arc<AtomicBool>,
    /// What went wrong on the way, to be said between the steps.
    troubles: Arc<Mutex<Vec<String>>>,
}

impl Pushing {
    /// For a configuration that asks for it; a name without an owner becomes the token's user's. Nothing is made yet.
    ///
    /// # Errors
    /// Without a token, or when the hub does not know it.
    pub fn of(config: &mut RunConfig) -> Result<Option<Pushing>> {
        if !config.push_to_hub {
            return Ok(None);
        }
        let output_dir = PathBuf::from(&config.output_dir);
        let own_name = || output_dir.file_name().map(|n| n.to_string_lossy().into_owned());
        let named = config.hub_model_id.clone().or_else(own_name).unwrap_or_default();
        let hub = hub::open(hub::token(config)?)?;
        let repo = hub.full_id(&named).context("push_to_hub")?;
        config.hub_model_id = Some(repo.clone());
        let quiet_hub = Arc::new(Hub::new(hub.settings().clone()));
        let template = Push {
            repo,
            private: config.hub_private_repo,
            revision: config.hub_revision.clone(),
            message: String::new(),
            files: Vec::new(),
        };
        Ok(Some(Pushing {
            hub: Arc::new(hub),
            quiet_hub,
            // Checkpoints hold adapters; the repository of a merged model would be left with one.
            strategy: if config.merge_adapter { HubStrategy::End } else { config.hub_strategy },
            always: config.hub_always_push,
            output_dir,
            template,
            current: None,
            busy: Arc::default(),
            troubles: Arc::default(),
        }))
    }

    /// Makes the repository: whoever may not push learns it before the training, not after.
    ///
    /// # Errors
    /// When the hub refuses.
    pub fn begin(&self) -> Result<()> {
        self.hub.ensure_repo(&self.template).context("push_to_hub")
    }

    /// Pushes what a checkpoint is made of, while the training goes on; not if the last one is still on its way.
    fn checkpoint(&mut self, step: u64, path: &Path) {
        if self.strategy == HubStrategy::End || (self.busy.load(Ordering::SeqCst) && !self.always) {
            return;
        }
        // Linked aside: a checkpoint may be removed while it is on its way.
        let aside = self.output_dir.join(format!(".push-{step}.loratune-tmp"));
        let files = match stage(path, &aside, self.strategy) {
            Ok(files) => files,
            Err(e) => return self.trouble(step, &e),
        };
        let message = format!("Training in progress, step {step}");
        let push = Push { message, files: [files, self.logs()].concat(), ..self.template.clone() };
        self.finish_current();
        self.busy.store(true, Ordering::SeqCst);
        let (hub, busy, troubles) = (self.quiet_hub.clone(), self.busy.clone(), self.troubles.clone());
        self.current = Some(std::thread::spawn(move || {
            if let Err(e) = hub.push(&push) {
                let text = format!("step {step} could not be pushed to `{}`: {e}", push.repo);
                troubles.lock().unwrap_or_else(|p| p.into_inner()).push(text);
            }
            let _ = fs::remove_dir_all(&aside);
            busy.store(false, Ordering::SeqCst);
        }));
    }

    fn trouble(&self, step: u64, e: &anyhow::Error) {
        let text = format!("step {step} could not be pushed: {}", output::message(e));
        self.troubles.lock().unwrap_or_else(|p| p.into_inner()).push(text);
    }

    /// What a run writes as it goes on, beside its checkpoints.
    fn logs(&self) -> Vec<Upload> {
        ["run_config.yaml", "trainer_log.jsonl"]
            .into_iter()
            .map(|name| Upload { from: self.output_dir.join(name), to: name.to_string() })
            .filter(|upload| upload.from.is_file())
            .collect()
    }

    fn finish_current(&mut self) {
        if let Some(thread) = self.current.take() {
            let _ = thread.join();
        }
    }

    /// Waits for what is on its way. Returns what went wrong.
    pub fn wait(&mut self) -> Vec<String> {
        self.finish_current();
        std::mem::take(&mut self.troubles.lock().unwrap_or_else(|p| p.into_inner()))
    }

    /// Pushes the result.
    ///
    /// # Errors
    /// When the hub refuses; the result is in its folder all the same, and the message says so.
    pub fn result(&mut self) -> Result<Pushed> {
        self.finish_current();
        let push = Push {
            message: "End of training".into(),
            files: folder(&self.output_dir, "")?,
            ..self.template.clone()
        };
        let command = format!(
            "loratune push {} --repo {}",
            shell_word(&self.output_dir.display().to_string()),
            shell_word(&push.repo)
        );
        self.hub.push(&push).with_context(|| {
            let dir = self.output_dir.display();
            format!("the result is in {dir}, but it could not be pushed (try again with `{command}`)")
        })
    }
}

/// Links a checkpoint's files into a folder: those of the model for the repository's root, and all of them for a folder of
/// their own if the strategy wants checkpoints, too.
fn stage(checkpoint: &Path, aside: &Path, strategy: HubStrategy) -> Result<Vec<Upload>> {
    let whole = match strategy {
        HubStrategy::End | HubStrategy::EverySave => None,
        HubStrategy::Checkpoint => Some("last-checkpoint".to_string()),
        HubStrategy::AllCheckpoints => checkpoint.file_name().map(|n| n.to_string_lossy().into_owned()),
    };
    let mut uploads = Vec::new();
    for file in folder(checkpoint, "")? {
        let from = aside.join(&file.to);
        link(&file.from, &from)?;
        let is_model = OF_THE_MODEL.contains(&file.to.as_str())
            || (file.to.starts_with("model") && file.to.ends_with(".safetensors"));
        if is_model {
            uploads.push(Upload { from: from.clone(), to: file.to.clone() });
        }
        uploads.extend(whole.as_ref().map(|whole| Upload { from, to: format!("{whole}/{}", file.to) }));
    }
    Ok(uploads)
}

fn link(from: &Path, to: &Path) -> Result<()> {
    if let Some(folder) = to.parent() {
        fs::create_dir_all(folder)?;
    }
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to)?;
    }
    Ok(())
}

/// Passes everything on, and pushes checkpoints.
pub struct PushingObserver<'a, O> {
    pub observer: &'a mut O,
    pub pushing: Option<&'a mut Pushing>,
}

impl<O: Observer> Observer for PushingObserver<'_, O> {
    fn step(&mut self, report: &StepReport) {
        self.observer.step(report);
    }
    fn evaluating(&mut self, batch: usize, batches: usize) {
        self.observer.evaluating(batch, batches);
    }
    fn answering(&mut self, row: usize, rows: usize) {
        self.observer.answering(row, rows);
    }
    fn halved(&mut self, rows: u64, why: &str) {
        self.observer.halved(rows, why);
    }
    fn evaluated(&mut self, step: u64, evaluation: &Evaluation) {
        self.observer.evaluated(step, evaluation);
    }
    fn logged(&mut self, entry: &LogEntry, total_steps: u64) {
        self.observer.logged(entry, total_steps);
    }
    fn saved(&mut self, step: u64, path: &Path) {
        self.observer.saved(step, path);
        if let Some(pushing) = &mut self.pushing {
            pushing.checkpoint(step, path);
        }
    }
    fn stop_requested(&mut self) -> bool {
        self.observer.stop_requested()
    }
}
