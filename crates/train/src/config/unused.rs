//! Keys that somebody wrote and that a run has no use for: allowed, so that one file serves several methods by overrides,
//! but said.

use super::keys::RunConfig;
use super::registry::Key;
use super::{EvalStrategy, Finetuning, HubStrategy, Loaded, LogStrategy, SaveStrategy, Stage};
use crate::schedule::ScheduleKind;

type Unused = Vec<(&'static [&'static str], &'static str)>;

/// What describes a new adapter: going on with one that is given, it has its own.
const OF_NEW_ADAPTERS: &[&str] = &[
    "lora_rank",
    "lora_alpha",
    "lora_target",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "init_lora_weights",
    "pissa_init",
    "pissa_iter",
    "use_dora",
    "bias",
    "modules_to_save",
    "trainable_token_indices",
];

/// What any run with adapters obeys.
const OF_ADAPTERS: &[&str] =
    &["lora_dropout", "merge_adapter", "pissa_convert", "loraplus_lr_ratio", "loraplus_lr_embedding"];

const OF_FREEZING: &[&str] = &["freeze_trainable_layers", "freeze_trainable_modules", "freeze_extra_modules"];

/// Keys that the method gives nothing to do, with the reason.
fn by_method(c: &RunConfig) -> Unused {
    let mut unused: Unused = Vec::new();
    let other = match c.finetuning_type {
        Finetuning::Lora => None,
        Finetuning::Full => Some("finetuning_type is full"),
        Finetuning::Freeze => Some("finetuning_type is freeze"),
    };
    if let Some(why) = other {
        unused.push((OF_NEW_ADAPTERS, why));
        unused.push((OF_ADAPTERS, why));
    } else {
        if !c.lora_plus() {
            unused.push((&["loraplus_lr_embedding"], "loraplus_lr_ratio is off"));
        }
        if !c.makes_adapters() {
            // Whether pissa_convert has something to do depends on how the adapter was made.
            unused.push((OF_NEW_ADAPTERS, "the adapter in adapter_name_or_path has its own"));
        } else if !c.pissa_init && !c.init_lora_weights.changes_base() {
            unused.push((&["pissa_convert"], "init_lora_weights leaves the base as it is"));
        }
    }
    if c.finetuning_type != Finetuning::Freeze {
        unused.push((OF_FREEZING, "finetuning_type is not freeze"));
    }
    unused
}

/// What says how a result is pushed.
const OF_PUSHING: &[&str] =
    &["hub_model_id", "hub_strategy", "hub_private_repo", "hub_revision", "hub_always_push"];

fn by_other_keys(c: &RunConfig) -> Unused {
    let mut unused: Unused = Vec::new();
    if !c.push_to_hub {
        unused.push((OF_PUSHING, "push_to_hub is off"));
    } else if c.merge_adapter {
        unused
            .push((&["hub_strategy", "hub_always_push"], "merge_adapter: only the merged result is pushed"));
    } else if c.hub_strategy == HubStrategy::End {
        unused.push((&["hub_always_push"], "hub_strategy is end"));
    }
    if c.neftune_noise_alpha.is_none_or(|a| a == 0.0) {
        unused.push((&["neftune_scale"], "neftune_noise_alpha is off"));
    }
    if c.new_special_tokens_config.is_some() {
        unused.push((&["add_special_tokens"], "new_special_tokens_config names the tokens"));
    }
    if !c.resize_vocab {
        unused.push((&["init_special_tokens"], "resize_vocab is off, so there are no new rows"));
    } else if c.train_from_scratch {
        unused.push((&["init_special_tokens"], "train_from_scratch draws all rows"));
    }
    if c.stage != Stage::Pt {
        unused.push((&["add_eos_token", "bos_of"], "stage is not pt"));
    }
    if c.eval_strategy == EvalStrategy::Epoch {
        unused.push((&["eval_steps"], "eval_strategy is epoch"));
    }
    if !c.predict_with_generate {
        let of_answers: &[&str] =
            &["max_new_tokens", "do_sample", "temperature", "top_p", "top_k", "skip_special_tokens"];
        unused.push((of_answers, "predict_with_generate is off"));
    } else if !c.do_sample {
        unused.push((&["temperature", "top_p", "top_k"], "do_sample is off"));
    }
    let picks = c.load_best_model_at_end
        || c.early_stopping_steps.is_some()
        || c.save_strategy == SaveStrategy::Best
        || c.lr_scheduler_type.follows_metric();
    if !picks {
        unused.push((&["greater_is_better"], "nothing asks which evaluation is best"));
    }
    if c.save_strategy != SaveStrategy::Steps {
        unused.push((&["save_steps"], "save_strategy is not steps"));
    }
    if c.merge_adapter {
        unused.push((&["pissa_convert"], "merge_adapter leaves no adapter"));
    }
    if c.save_strategy == SaveStrategy::No {
        unused.push((&["save_only_model"], "save_strategy is no"));
    }
    if c.logging_strategy != LogStrategy::Steps {
        unused.push((&["logging_steps"], "logging_strategy is not steps"));
    }
    if c.report_to.is_empty() {
        unused.push((&["logging_dir"], "report_to is none"));
    }
    if c.streaming {
        unused.push((&["dataloader_drop_last"], "a stream's batches are all whole"));
    }
    if c.lr_scheduler_type == ScheduleKind::Constant {
        unused.push((
            &["warmup_steps", "warmup_ratio"],
            "lr_scheduler_type is constant; constant_with_warmup warms up",
        ));
    } else if !c.lr_scheduler_type.warms_up() {
        unused.push((&["warmup_steps", "warmup_ratio"], "this lr_scheduler_type has no warm-up"));
    }
    if !c.streaming {
        unused.push((&["buffer_size"], "streaming is off: whole epochs are shuffled"));
    } else if c.disable_shuffling {
        unused.push((&["buffer_size"], "disable_shuffling keeps the order"));
    }
    if c.max_steps.0.is_some() {
        unused.push((&["num_train_epochs"], "max_steps sets the length"));
    }
    unused
}

impl Loaded {
    /// A note for each key without effect. For a configuration whose open values are not decided yet.
    pub(super) fn unused(&self) -> Vec<String> {
        let (c, default) = (&self.config, RunConfig::default());
        let mut notes = Vec::new();
        for (keys, why) in by_method(c).into_iter().chain(by_other_keys(c)) {
            for key in keys {
                let origin = self.origin(key);
                // A resolved configuration spells out every default; those need no remark.
                let at_default = Key::find(key).is_none_or(|k| (k.get)(c) == (k.get)(&default));
                if origin.is_explicit() && !at_default {
                    notes.push(format!("{origin}: `{key}` is not used: {why}"));
                }
            }
        }
        notes
    }
}
