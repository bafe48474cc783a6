//! The flags of `autotrain llm`, of the versions 0.6.99 to 0.8.36, once each.

/// What a flag stands for.
#[derive(Debug, Clone, Copy)]
pub enum To {
    /// This key, with the same values.
    Key(&'static str),
    /// Keys that depend on other flags too (`translate.rs`); the words say which.
    Together(&'static str),
    /// Accepted with a note: there is nothing here for it to act on.
    Needless(&'static str),
    /// Refused, for this reason.
    Refused(&'static str),
}

/// A flag of AutoTrain's.
#[derive(Debug, Clone, Copy)]
pub struct Flag {
    /// Its name, with underscores.
    pub name: &'static str,
    /// Other spellings, from other versions.
    pub also: &'static [&'static str],
    /// Whether it stands without a value.
    pub is_switch: bool,
    /// What it stands for.
    pub to: To,
}

use To::{Key, Needless, Refused, Together};

const fn word(name: &'static str, also: &'static [&'static str], to: To) -> Flag {
    Flag { name, also, is_switch: false, to }
}

const fn switch(name: &'static str, also: &'static [&'static str], to: To) -> Flag {
    Flag { name, also, is_switch: true, to }
}

const PREFERENCES: To = Refused("loratune trains on texts, not on preferences between answers");

/// All of them.
pub static FLAGS: &[Flag] = &[
    switch("train", &[], Together("required: it is what the command does")),
    switch("deploy", &[], Refused("loratune trains; there is nothing to deploy")),
    switch("inference", &[], Refused("use `loratune generate`")),
    word("config", &[], Together("AutoTrain's own YAML file; flags win over it")),
    word("model", &[], Key("model_name_or_path")),
    word("project_name", &[], Key("output_dir")),
    word(
        "data_path",
        &[],
        Together(
            "`dataset`: FOLDER/TRAIN_SPLIT with the ending .csv or .jsonl (then .json, .parquet, .arrow), a \
        file, or a dataset's name; with valid_split `eval_dataset`",
        ),
    ),
    word("train_split", &[], Together("the name in data_path, `train` unless given")),
    word(
        "valid_split",
        &[],
        Together("the name in data_path of what to evaluate on; without it nothing is evaluated"),
    ),
    word("text_column", &[], Together("`text_column`, or `messages_column` with a chat_template")),
    word(
        "trainer",
        &[],
        Together(
            "`default` is `stage: pt` (all texts in blocks of block_size), `sft` is `stage: sft` with `packing`, \
        trained whole unless `train_on_prompt` is false",
        ),
    ),
    word(
        "batch_size",
        &["train_batch_size"],
        Together("`per_device_train_batch_size` and `per_device_eval_batch_size`"),
    ),
    word("epochs", &["num_train_epochs"], Key("num_train_epochs")),
    word("block_size", &[], Together("`cutoff_len`, at most model_max_length; -1 is 1024")),
    word("model_max_length", &[], Together("the most that block_size can be, 2048 unless given")),
    word("warmup_ratio", &[], Key("warmup_ratio")),
    word("lr", &["learning_rate"], Key("learning_rate")),
    word("optimizer", &["optim"], Key("optim")),
    word("scheduler", &["lr_scheduler_type"], Key("lr_scheduler_type")),
    word("weight_decay", &[], Key("weight_decay")),
    word("max_grad_norm", &[], Key("max_grad_norm")),
    word("gradient_accumulation", &["gradient_accumulation_steps"], Key("gradient_accumulation_steps")),
    word("seed", &[], Key("seed")),
    switch("add_eos_token", &[], Key("add_eos_token")),
    word("lora_r", &[], Key("lora_rank")),
    word("lora_alpha", &[], Key("lora_alpha")),
    word("lora_dropout", &[], Key("lora_dropout")),
    word("target_modules", &["lora_target"], Key("lora_target")),
    switch("peft", &["use_peft"], Together("`finetuning_type: lora`; without it `full`")),
    switch("merge_adapter", &[], Key("merge_adapter")),
    word(
        "quantization",
        &[],
        Together("`none`; `int4` and `int8` need quantised bases, which are not there yet"),
    ),
    word("mixed_precision", &[], Together("`fp16` or `bf16`; `none` is float32")),
    switch("disable_gradient_checkpointing", &[], Key("disable_gradient_checkpointing")),
    switch("use_flash_attention_2", &[], Needless("attention never stores the score matrix")),
    switch("unsloth", &[], Needless("there is one way of computing here, with fused ops")),
    word("distributed_backend", &[], Needless("a run is one process")),
    switch("auto_find_batch_size", &[], Key("auto_find_batch_size")),
    word("padding", &[], Needless("nothing is padded")),
    word(
        "chat_template",
        &[],
        Together(
            "`template` for `zephyr` and `chatml`, the model's own for `tokenizer`; the text column then holds messages",
        ),
    ),
    word("log", &[], Key("report_to")),
    word("logging_steps", &[], Together("`logging_steps`; -1 is `auto`")),
    word(
        "eval_strategy",
        &["evaluation_strategy"],
        Together("`eval_strategy` and `save_strategy`, with valid_split"),
    ),
    word("save_strategy", &[], Key("save_strategy")),
    word("save_total_limit", &[], Key("save_total_limit")),
    switch("push_to_hub", &[], Key("push_to_hub")),
    word("token", &[], Key("hub_token")),
    word("repo_id", &[], Together("`hub_model_id`; a bare user name is put before the project's name")),
    word("username", &[], Together("the user of `hub_model_id`")),
    word("backend", &[], Together("only `local`")),
    word("model_ref", &[], PREFERENCES),
    word("dpo_beta", &[], PREFERENCES),
    word("prompt_text_column", &[], PREFERENCES),
    word("rejected_text_column", &[], PREFERENCES),
    word("max_prompt_length", &[], PREFERENCES),
    word("max_completion_length", &[], PREFERENCES),
];

/// The flag of that name or alias.
pub fn find(name: &str) -> Option<&'static Flag> {
    FLAGS.iter().find(|f| f.name == name || f.also.contains(&name))
}

/// AutoTrain's defaults where they differ from ours, whatever else is said.
pub(super) const DEFAULTS: &[(&str, &str)] = &[
    ("stage", "pt"),
    ("bos_of", "document"),
    ("finetuning_type", "full"),
    ("per_device_train_batch_size", "2"),
    ("per_device_eval_batch_size", "2"),
    ("num_train_epochs", "1"),
    ("cutoff_len", "1024"),
    ("warmup_ratio", "0.1"),
    ("learning_rate", "3e-5"),
    ("gradient_accumulation_steps", "4"),
    ("lora_rank", "16"),
    ("lora_alpha", "32"),
    ("lora_dropout", "0.05"),
    ("report_to", "none"),
    ("logging_steps", "auto"),
    ("save_strategy", "no"),
    ("save_total_limit", "1"),
];
