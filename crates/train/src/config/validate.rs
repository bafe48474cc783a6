//! What several keys say together: values that follow from others, contradictions, keys without effect.

use super::error::{ConfigError, Entry, Origin};
use super::field::{Iterations, Limit, LogSteps, MicroBatch, Resume, Steps, Targets};
use super::keys::{KEYS, RunConfig};
use super::registry::Key;
use super::value::Value;
use super::{
    BaseDtype, EvalStrategy, Finetuning, Loaded, MixStrategy, NeftuneScale, NewTokens, Optimizer,
    SaveStrategy, Stage,
};
use crate::schedule::{Schedule, ScheduleError};
use loratune_model::adapter::Init;

impl RunConfig {
    /// The learning-rate schedule that this configuration describes.
    ///
    /// # Errors
    /// `lr_scheduler_kwargs` that the schedule cannot use; never after [`RunConfig::load`].
    pub fn schedule(&self) -> Result<Schedule, ScheduleError> {
        Schedule::new(self.lr_scheduler_type, &self.lr_scheduler_kwargs.0, self.learning_rate)
    }

    /// Whether LoRA+ is on, which only adapters know: a ratio of 0 is off, and one of 1 is plain LoRA unless embeddings have
    /// a rate of their own.
    pub fn lora_plus(&self) -> bool {
        let embedding = self.loraplus_lr_embedding.is_some();
        self.finetuning_type == Finetuning::Lora
            && self.loraplus_lr_ratio.is_some_and(|ratio| ratio > 0.0 && (ratio != 1.0 || embedding))
    }

    /// Whether new adapters are made, by this configuration's description of them.
    pub(super) fn makes_adapters(&self) -> bool {
        self.finetuning_type == Finetuning::Lora && self.adapter_name_or_path.is_none()
    }

    /// With adapters, what resizing the vocabulary trains whole if nobody says what to train: embedding and head, those left
    /// out that are adapted by name.
    fn tables_of_resizing(&self) -> Option<Vec<String>> {
        let said = !self.modules_to_save.is_empty() || self.trainable_token_indices.is_some();
        let asked = self.resize_vocab && self.makes_adapters() && !said;
        let adapted = |table: &str| match &self.lora_target {
            Targets::Names(names) => names.iter().any(|n| n.rsplit('.').next() == Some(table)),
            _ => false,
        };
        let tables = ["embed_tokens", "lm_head"].into_iter().filter(|t| !adapted(t));
        let tables: Vec<String> = tables.map(str::to_string).collect();
        (asked && !tables.is_empty()).then_some(tables)
    }

    /// Warm-up steps in a run of `total` steps, from `warmup_steps` or `warmup_ratio`; a share is rounded up.
    pub fn warmup(&self, total: u64) -> u64 {
        match self.warmup_steps {
            Steps::Count(0) => (total as f64 * self.warmup_ratio).ceil() as u64,
            steps => steps.resolve(total),
        }
    }
}

impl Loaded {
    /// Decides every open value, then refuses contradictions. The order of the checks is the order in which a person
    /// would want to hear of them.
    pub(super) fn resolve_and_check(&mut self, file: &str) -> Result<(), ConfigError> {
        self.check_required(file)?;
        self.check_evaluation()?;
        self.check_pissa_spelling()?;
        // Before values are filled in: what is noted is what somebody wrote.
        let unused = self.unused();
        self.resolve();
        self.check_best_model()?;
        self.check_answers()?;
        self.check_method()?;
        self.check_data()?;
        self.check_output()?;
        self.check_schedule()?;
        self.notes.extend(unused);
        Ok(())
    }

    fn check_required(&self, file: &str) -> Result<(), ConfigError> {
        for key in KEYS {
            let known = key.name == "dataset" && self.config.tokenized_path.is_some();
            if let (Some(example), Value::Null, false) = (key.required, (key.get)(&self.config), known) {
                return Err(ConfigError::Required { file: file.to_string(), key: key.name, example });
            }
        }
        Ok(())
    }

    fn resolve(&mut self) {
        let c = &mut self.config;
        let mut derived: Vec<(&'static str, &'static str)> = Vec::new();
        if c.lora_alpha.is_none() {
            c.lora_alpha = Some(2.0 * c.lora_rank as f64);
            derived.push(("lora_alpha", "2 × lora_rank"));
        }
        if c.pissa_init {
            // From here on it's spelt as PEFT does, also in the resolved configuration.
            c.init_lora_weights = match c.pissa_iter {
                Some(Iterations(None)) => Init::Pissa,
                Some(Iterations(Some(n))) => Init::PissaNiter(n as usize),
                None => Init::PissaNiter(16),
            };
            (c.pissa_init, c.pissa_iter) = (false, None);
            derived.push(("init_lora_weights", "from pissa_init"));
        }
        if let Some(tables) = c.tables_of_resizing() {
            self.notes.push(format!(
                "resize_vocab trains {} whole, as in LLaMA-Factory; modules_to_save can name others",
                tables.join(" and ")
            ));
            c.modules_to_save = tables;
            derived.push(("modules_to_save", "from resize_vocab"));
        }
        if c.makes_adapters() {
            c.lora_dropout.get_or_insert(0.0);
        }
        if c.eval_steps.is_none() && c.eval_strategy == EvalStrategy::Steps {
            // With `auto` there is no number yet; the loop takes what logging_steps comes to.
            if let LogSteps::Steps(steps) = c.logging_steps {
                c.eval_steps = Some(steps);
                derived.push(("eval_steps", "logging_steps"));
            }
        }
        if c.data_seed.is_none() {
            c.data_seed = Some(c.seed);
            derived.push(("data_seed", "seed"));
        }
        if c.stage == Stage::Pt && !self.origins.get("packing").is_some_and(Origin::is_explicit) {
            c.packing = true;
            derived.push(("packing", "with stage pt"));
        }
        if c.fp16 {
            self.notes.push(
                "fp16: nothing here computes in float16, so the run computes in float32, where losses need no scaling; bf16: true \
                 would halve the memory"
                    .into(),
            );
        }
        if c.dtype == BaseDtype::Auto {
            c.dtype = if c.bf16 { BaseDtype::Bfloat16 } else { BaseDtype::Float32 };
            derived.push(("dtype", "from bf16"));
        }
        for (key, how) in derived {
            self.origins.insert(key, Origin::Derived(how));
        }
    }

    fn check_evaluation(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        // Whether there are some in tokenized_path is known when they are read.
        let has_rows = c.val_size > 0.0 || !c.eval_dataset.is_empty() || c.tokenized_path.is_some();
        if c.val_size > 0.0 && !c.eval_dataset.is_empty() {
            return self.conflict(
                &["val_size", "eval_dataset"],
                "evaluate on held-out rows or on a dataset; keep one",
            );
        }
        if c.eval_strategy != EvalStrategy::No {
            return match has_rows {
                true => Ok(()),
                false => self.conflict(
                    &["eval_strategy"],
                    "there is nothing to evaluate on; set val_size or eval_dataset",
                ),
            };
        }
        let at_the_end = [("do_eval", c.do_eval), ("do_predict", c.do_predict)];
        if let Some((key, _)) = at_the_end.into_iter().find(|(_, on)| *on && !has_rows) {
            return self.conflict(&[key], "there is nothing to evaluate on; set val_size or eval_dataset");
        }
        let wants = |key, why| self.conflict(&[key, "eval_strategy"], why);
        const SET: &str = "set eval_strategy to steps or epoch";
        if c.lr_scheduler_type.follows_metric() {
            return wants("lr_scheduler_type", &format!("it follows what evaluations show; {SET}"));
        }
        if c.save_strategy == SaveStrategy::Best {
            return wants("save_strategy", &format!("nothing would say which is best; {SET}"));
        }
        if c.eval_delay > 0.0 {
            return wants("eval_delay", &format!("evaluation is off; {SET}"));
        }
        if c.load_best_model_at_end {
            return wants("load_best_model_at_end", &format!("nothing would say which is best; {SET}"));
        }
        if c.early_stopping_steps.is_some() {
            return wants("early_stopping_steps", &format!("nothing would say when to stop; {SET}"));
        }
        if c.eval_on_start {
            return wants("eval_on_start", &format!("evaluation is off; {SET}"));
        }
        if c.eval_steps.is_some() {
            return wants("eval_steps", &format!("evaluation is off; {SET}"));
        }
        if has_rows && !c.do_eval && !c.do_predict && c.tokenized_path.is_none() {
            let key = if c.val_size > 0.0 { "val_size" } else { "eval_dataset" };
            return wants(key, &format!("these rows would not be used; {SET}, or remove `{key}`"));
        }
        Ok(())
    }

    fn check_answers(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        const SET: &str = "set predict_with_generate: true";
        if c.do_predict && !c.predict_with_generate {
            return self.conflict(
                &["do_predict", "predict_with_generate"],
                &format!("predictions are answers; {SET}"),
            );
        }
        if c.metric_for_best_model.is_of_answers() && !c.predict_with_generate {
            return self.conflict(
                &["metric_for_best_model", "predict_with_generate"],
                &format!("the metric compares answers; {SET}"),
            );
        }
        if c.predict_with_generate && c.eval_strategy == EvalStrategy::No && !c.do_eval && !c.do_predict {
            return self.conflict(
                &["predict_with_generate", "eval_strategy"],
                "nothing is evaluated; set eval_strategy, do_eval or do_predict",
            );
        }
        Ok(())
    }

    fn check_best_model(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        if !c.load_best_model_at_end {
            return Ok(());
        }
        let same = matches!(
            (c.eval_strategy, c.save_strategy),
            (EvalStrategy::Steps, SaveStrategy::Steps)
                | (EvalStrategy::Epoch, SaveStrategy::Epoch)
                | (_, SaveStrategy::Best)
        );
        if !same {
            return self.conflict(
                &["load_best_model_at_end", "eval_strategy", "save_strategy"],
                "the best model can only be kept if it is saved when it is evaluated; make both strategies equal, \
                 or save_strategy best",
            );
        }
        let (EvalStrategy::Steps, SaveStrategy::Steps, Some(eval)) =
            (c.eval_strategy, c.save_strategy, c.eval_steps)
        else {
            return Ok(());
        };
        let multiple = match (c.save_steps, eval) {
            (Steps::Count(save), Steps::Count(eval)) => eval > 0 && save % eval == 0,
            // In millionths, as transformers does: 0.3 / 0.1 is not 3 in floating point.
            (Steps::Ratio(save), Steps::Ratio(eval)) => {
                let (save, eval) = ((save * 1e6).round() as u64, (eval * 1e6).round() as u64);
                eval > 0 && save % eval == 0
            }
            _ => false,
        };
        match multiple {
            true => Ok(()),
            false => self.conflict(
                &["load_best_model_at_end", "save_steps", "eval_steps"],
                "save_steps must be a multiple of eval_steps (both counts or both shares), so that what is evaluated is saved",
            ),
        }
    }

    /// Before it is resolved: what is said twice must not be said differently.
    fn check_pissa_spelling(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        if c.pissa_init && self.origin("init_lora_weights").is_explicit() {
            return self
                .conflict(&["pissa_init", "init_lora_weights"], "both say how adapters start; keep one");
        }
        if c.pissa_iter.is_some() && !c.pissa_init {
            return self.conflict(
                &["pissa_iter", "pissa_init"],
                "it counts the iterations of pissa_init; set pissa_init: true, or init_lora_weights: pissa_niter_N",
            );
        }
        Ok(())
    }

    fn check_method(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        if c.init_special_tokens != NewTokens::Noise && c.new_special_tokens_config.is_none() {
            return self.conflict(
                &["init_special_tokens", "new_special_tokens_config"],
                "rows cannot start from descriptions that are nowhere; name the file that has them, or use noise_init",
            );
        }
        if !c.unfrozen_parameters.is_empty() && c.finetuning_type != Finetuning::Full {
            return self.conflict(
                &["unfrozen_parameters", "finetuning_type"],
                "it chooses among the weights that full fine-tuning trains; with lora, name whole modules in modules_to_save",
            );
        }
        if c.trainable_token_indices.is_some() && c.finetuning_type != Finetuning::Lora {
            return self.conflict(
                &["trainable_token_indices", "finetuning_type"],
                "rows are trained by themselves beside adapters only; use finetuning_type: lora, or train the embedding whole",
            );
        }
        if c.lora_plus() && c.learning_rate == 0.0 {
            return self.conflict(
                &["loraplus_lr_ratio", "learning_rate"],
                "a multiple of a learning rate of 0 is 0; set learning_rate",
            );
        }
        if c.finetuning_type != Finetuning::Lora && c.adapter_name_or_path.is_some() {
            return self.conflict(
                &["finetuning_type", "adapter_name_or_path"],
                "training whole weights has no adapter; merge it into the model first, or use finetuning_type: lora",
            );
        }
        if c.train_from_scratch && c.finetuning_type == Finetuning::Lora {
            return self.conflict(
                &["train_from_scratch", "finetuning_type"],
                "adapters on frozen random weights learn nothing; use finetuning_type: full",
            );
        }
        let whole = c.finetuning_type == Finetuning::Full && c.unfrozen_parameters.is_empty();
        if c.train_from_scratch && !whole {
            let key =
                if c.finetuning_type == Finetuning::Full { "unfrozen_parameters" } else { "finetuning_type" };
            return self.conflict(
                &["train_from_scratch", key],
                "what is not trained would stay random numbers; train all weights (finetuning_type: full without \
                 unfrozen_parameters)",
            );
        }
        self.check_layers()
    }

    /// As PEFT does, of a new adapter.
    fn check_layers(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        if !c.makes_adapters() {
            return Ok(());
        }
        for (key, set) in [
            ("layers_to_transform", c.layers_to_transform.is_some()),
            ("layers_pattern", !c.layers_pattern.is_empty()),
        ] {
            if set && matches!(c.lora_target, Targets::Regex(_)) {
                return self.conflict(
                    &["lora_target", key],
                    "a regular expression already says which layers; use names, or put the layers into the expression",
                );
            }
        }
        if !c.layers_pattern.is_empty() && c.layers_to_transform.is_none() {
            return self.conflict(
                &["layers_pattern", "layers_to_transform"],
                "it says where the layers' indices stand, but not which ones are meant; set layers_to_transform, or remove it",
            );
        }
        Ok(())
    }

    fn check_data(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        if let Some(micro) = c.micro_batch {
            let rows = c.per_device_train_batch_size * c.gradient_accumulation_steps;
            if matches!(micro, MicroBatch::Rows(n) if !rows.is_multiple_of(n)) {
                return self.conflict(
                    &["micro_batch", "per_device_train_batch_size", "gradient_accumulation_steps"],
                    &format!("a step has {rows} rows, which can't be divided into as many at a time"),
                );
            }
            if c.neftune_noise_alpha.is_some_and(|a| a > 0.0) && c.neftune_scale == NeftuneScale::PerBatch {
                return self.conflict(
                    &["micro_batch", "neftune_scale"],
                    "the noise would depend on the rows that are computed at a time; use neftune_scale: per_sequence",
                );
            }
        }
        if c.fp16 && c.bf16 {
            return self.conflict(&["fp16", "bf16"], "a run has one precision; keep one");
        }
        if c.text_column.is_some() && c.messages_column.is_some() {
            return self.conflict(
                &["text_column", "messages_column"],
                "a row is a text or a conversation; keep one",
            );
        }
        if c.stage == Stage::Pt {
            if c.streaming && c.packing {
                return self.conflict(
                    &["stage", "streaming"],
                    "blocks are cut from data in memory; set packing: false to train documents one by one, or streaming: false",
                );
            }
            if c.eval_on_each_dataset && c.packing {
                return self.conflict(
                    &["stage", "eval_on_each_dataset"],
                    "a block can be of two datasets; set eval_on_each_dataset: false, or packing: false",
                );
            }
            for (key, set) in [("mask_history", c.mask_history), ("train_on_prompt", c.train_on_prompt)] {
                if set && self.origin(key).is_explicit() {
                    return self.conflict(
                        &[key, "stage"],
                        "plain text has no prompts and no history; use stage: sft",
                    );
                }
            }
        }
        if c.train_on_prompt && c.mask_history {
            return self.conflict(
                &["train_on_prompt", "mask_history"],
                "one trains on earlier turns, the other does not",
            );
        }
        let interleaves = c.mix_strategy != MixStrategy::Concat;
        if !c.interleave_probs.is_empty() && !interleaves {
            return self.conflict(
                &["interleave_probs", "mix_strategy"],
                "weights go with interleave_under, interleave_over or interleave_once",
            );
        }
        if c.streaming && c.max_steps.0.is_none() {
            return self.conflict(&["streaming", "max_steps"], "a stream has no end: set max_steps");
        }
        if c.streaming && c.tokenized_path.is_some() {
            return self.conflict(
                &["streaming", "tokenized_path"],
                "the rows of a stream are not kept; set streaming: false",
            );
        }
        if c.streaming && c.val_size.fract() != 0.0 {
            return self.conflict(
                &["streaming", "val_size"],
                "a stream has no length: give val_size as a number of rows",
            );
        }
        if c.eval_on_each_dataset && c.eval_dataset.is_empty() {
            return self.conflict(&["eval_on_each_dataset", "eval_dataset"], "there is no eval_dataset");
        }
        Ok(())
    }

    fn check_output(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        if c.overwrite_output_dir {
            let inside = match &c.resume_from_checkpoint {
                Resume::No => false,
                Resume::Latest => true,
                Resume::From(path) => std::path::Path::new(path).starts_with(&c.output_dir),
            };
            if inside {
                return self.conflict(
                    &["overwrite_output_dir", "resume_from_checkpoint"],
                    "overwriting would delete the checkpoint to go on from; keep one",
                );
            }
        }
        for key in ["model_name_or_path", "adapter_name_or_path", "tokenized_path"] {
            if self.entry(key).value == self.entry("output_dir").value {
                return self.conflict(
                    &[key, "output_dir"],
                    "the result would overwrite its own input; name another folder",
                );
            }
        }
        Ok(())
    }

    fn check_schedule(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        if c.warmup_steps != Steps::Count(0) && c.warmup_ratio > 0.0 {
            return self
                .conflict(&["warmup_steps", "warmup_ratio"], "both set the length of the warm-up; keep one");
        }
        if let (Steps::Count(warmup), Limit(Some(max))) = (c.warmup_steps, c.max_steps)
            && warmup > max
        {
            return self
                .conflict(&["warmup_steps", "max_steps"], "the run would end before its warm-up does");
        }
        self.check_optimizer()?;
        match c.schedule() {
            Ok(_) => Ok(()),
            Err(e) => self.conflict(&["lr_scheduler_kwargs"], &e.to_string()),
        }
    }

    fn check_optimizer(&self) -> Result<(), ConfigError> {
        let c = &self.config;
        let (numbers, switches): (&[&str], &[&str]) = match c.optim {
            Optimizer::Sgd => (&["momentum", "dampening"], &["nesterov"]),
            _ => (&[], &[]),
        };
        for (name, _) in &c.optim_args.0 {
            let n = name.as_str();
            let good = numbers.contains(&n)
                && c.optim_args.number(n).is_some_and(|x| (0.0..=1.0).contains(&x))
                || switches.contains(&n) && c.optim_args.switch(n).is_some();
            if !good {
                let why = match c.optim {
                    Optimizer::Sgd => {
                        "sgd takes momentum and dampening from 0 to 1, and nesterov, true or false"
                    }
                    _ => {
                        "this optimiser takes no arguments; adam_beta1, adam_beta2, adam_epsilon and weight_decay are keys"
                    }
                };
                return self.conflict(&["optim", "optim_args"], why);
            }
        }
        let momentum = c.optim_args.number("momentum").unwrap_or(0.0);
        let dampening = c.optim_args.number("dampening").unwrap_or(0.0);
        if c.optim_args.switch("nesterov") == Some(true) && (momentum == 0.0 || dampening != 0.0) {
            return self.conflict(&["optim_args"], "nesterov needs a momentum, and no dampening");
        }
        Ok(())
    }

    fn entry(&self, key: &'static str) -> Entry {
        let value = Key::find(key).map_or(Value::Null, |k| (k.get)(&self.config));
        Entry { key, value: value.to_yaml(), origin: self.origin(key) }
    }

    fn conflict(&self, keys: &[&'static str], why: &str) -> Result<(), ConfigError> {
        Err(ConfigError::Conflict {
            entries: keys.iter().map(|k| self.entry(k)).collect(),
            why: why.to_string(),
        })
    }
}
