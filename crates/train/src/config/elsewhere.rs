//! Keys that people's files hold and loratune has only one answer to: not yet, another name, or one value.

use super::value::Value;

/// What loratune says to a peer's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// Not built yet. `false`, `null`, `none` and empty values ask for nothing and are accepted.
    NotYet,
    /// The same thing has this name here.
    Use(&'static str),
    /// Accepted with this value (as YAML), which is how loratune always behaves; the text says why or what to do.
    Always(&'static str, &'static str),
    /// Accepted with any value and a note: it has nothing to act on here, for this reason.
    Needless(&'static str),
}

/// A key of a peer.
#[derive(Debug, Clone, Copy)]
pub struct Elsewhere {
    /// The key.
    pub name: &'static str,
    /// Whose key it is.
    pub owner: &'static str,
    /// What loratune does with it.
    pub answer: Answer,
}

use Answer::{Always, Needless, NotYet, Use};

const HF: &str = "Hugging Face";
const LF: &str = "LLaMA-Factory";
const PEFT: &str = "PEFT";
const TRL: &str = "TRL";
const AUTOTRAIN: &str = "AutoTrain";

const SPECIFIC: &[(&str, &str, Answer)] = &[
    ("do_train", LF, Always("true", "`loratune train` trains; use `loratune eval` to evaluate only")),
    ("pure_bf16", LF, Always("false", "trained weights are kept in float32; use bf16: true")),
    ("do_eval", HF, Needless("eval_strategy decides")),
    ("fp16", HF, Always("false", "float16 training is not there yet; use bf16: true")),
    ("overwrite_cache", LF, Always("true", "nothing is cached: every run tokenises anew")),
    ("logging_nan_inf_filter", HF, Always("false", "a loss that is not finite is never hidden")),
    ("gradient_checkpointing", HF, Always("false", "recomputing activations is not there yet")),
    ("disable_gradient_checkpointing", LF, Always("true", "recomputing activations is not there yet")),
    ("greater_is_better", HF, Always("false", "a loss is better when it is smaller")),
    ("logging_strategy", HF, Always("steps", "logging_steps says how often")),
    ("save_safetensors", HF, Always("true", "files are safetensors")),
    ("use_cpu", HF, Needless("this build computes on the processor")),
    ("task_type", PEFT, Always("CAUSAL_LM", "models are causal language models")),
    ("peft_type", PEFT, Always("LORA", "adapters are LoRA's")),
    ("trust_remote_code", HF, Needless("no code from a model's folder is ever run")),
    ("ddp_timeout", HF, Needless("a run is one process")),
    ("ddp_find_unused_parameters", HF, Needless("a run is one process")),
    ("dataloader_num_workers", HF, Needless("batches are made in the training process")),
    ("dataloader_pin_memory", HF, Needless("batches are made in the training process")),
    ("remove_unused_columns", HF, Needless("columns that the format does not use are not read")),
    ("use_fast_tokenizer", LF, Needless("there is one tokenizer")),
    ("low_cpu_mem_usage", LF, Needless("weights are mapped from the file in any case")),
    ("flash_attn", LF, Needless("attention never stores the score matrix")),
    ("max_seq_length", TRL, Use("cutoff_len")),
    ("max_length", TRL, Use("cutoff_len")),
    ("model_max_length", HF, Use("cutoff_len")),
    ("block_size", AUTOTRAIN, Use("cutoff_len")),
    ("lora_r", AUTOTRAIN, Use("lora_rank")),
    ("lr", AUTOTRAIN, Use("learning_rate")),
    ("epochs", AUTOTRAIN, Use("num_train_epochs")),
    ("batch_size", AUTOTRAIN, Use("per_device_train_batch_size")),
    ("gradient_accumulation", AUTOTRAIN, Use("gradient_accumulation_steps")),
    ("scheduler", AUTOTRAIN, Use("lr_scheduler_type")),
    ("optimizer", AUTOTRAIN, Use("optim")),
    ("project_name", AUTOTRAIN, Use("output_dir")),
    ("data_path", AUTOTRAIN, Use("dataset")),
    ("model", AUTOTRAIN, Use("model_name_or_path")),
    ("chat_template", AUTOTRAIN, Use("template")),
    ("per_gpu_train_batch_size", HF, Use("per_device_train_batch_size")),
    ("per_gpu_eval_batch_size", HF, Use("per_device_eval_batch_size")),
    ("no_cuda", HF, Use("device")),
    ("neat_packing", LF, Use("packing")),
    ("loraplus_weight_decay", PEFT, Use("weight_decay")),
];

const NOT_YET_HF: &[&str] = &[
    "auto_find_batch_size",
    "average_tokens_across_devices",
    "bf16_full_eval",
    "dataloader_drop_last",
    "dataloader_persistent_workers",
    "dataloader_prefetch_factor",
    "ddp_backend",
    "deepspeed",
    "do_predict",
    "eval_accumulation_steps",
    "eval_delay",
    "fp16_full_eval",
    "fsdp",
    "fsdp_config",
    "full_determinism",
    "gradient_checkpointing_kwargs",
    "group_by_length",
    "hub_model_id",
    "hub_private_repo",
    "hub_strategy",
    "hub_token",
    "ignore_data_skip",
    "include_num_input_tokens_seen",
    "include_tokens_per_second",
    "label_smoothing_factor",
    "liger_kernel_config",
    "log_level",
    "logging_dir",
    "logging_first_step",
    "optim_args",
    "optim_target_modules",
    "predict_with_generate",
    "prediction_loss_only",
    "push_to_hub",
    "run_name",
    "save_only_model",
    "tf32",
    "torch_compile",
    "torch_compile_backend",
    "torch_empty_cache_steps",
    "train_sampling_strategy",
    "use_liger_kernel",
];

const NOT_YET_LF: &[&str] = &[
    "buffer_size",
    "cache_dir",
    "compute_accuracy",
    "create_new_adapter",
    "default_system",
    "double_quantization",
    "enable_liger_kernel",
    "enable_thinking",
    "eval_num_beams",
    "eval_on_each_dataset",
    "export_dir",
    "freeze_language_model",
    "freeze_multi_modal_projector",
    "freeze_vision_tower",
    "hf_hub_token",
    "ignore_pad_token_for_loss",
    "image_max_pixels",
    "include_effective_tokens_per_second",
    "infer_backend",
    "infer_dtype",
    "interleave_probs",
    "media_dir",
    "mix_strategy",
    "mixture_of_depths",
    "model_revision",
    "moe_aux_loss_coef",
    "pref_beta",
    "pref_ftx",
    "pref_loss",
    "preprocessing_batch_size",
    "quantization_bit",
    "quantization_method",
    "quantization_type",
    "ref_model",
    "reward_model",
    "rope_scaling",
    "shift_attn",
    "split_special_tokens",
    "streaming",
    "tokenized_path",
    "tool_format",
    "upcast_layernorm",
    "upcast_lmhead_output",
    "use_adam_mini",
    "use_apollo",
    "use_badam",
    "use_dft_loss",
    "use_galore",
    "use_llama_pro",
    "use_muon",
    "use_reentrant_gc",
    "use_swanlab",
    "use_unsloth",
    "use_unsloth_gc",
    "video_max_pixels",
];

const NOT_YET_PEFT: &[&str] = &[
    "alora_invocation_tokens",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "fan_in_fan_out",
    "layer_replication",
    "loftq_config",
    "lora_bias",
    "lora_ga_config",
    "megatron_config",
    "target_parameters",
    "use_qalora",
];

/// Every known key of a peer.
pub fn all() -> impl Iterator<Item = Elsewhere> {
    let not_yet = |owner| move |name: &&'static str| Elsewhere { name, owner, answer: NotYet };
    SPECIFIC
        .iter()
        .map(|&(name, owner, answer)| Elsewhere { name, owner, answer })
        .chain(NOT_YET_HF.iter().map(not_yet(HF)))
        .chain(NOT_YET_LF.iter().map(not_yet(LF)))
        .chain(NOT_YET_PEFT.iter().map(not_yet(PEFT)))
}

/// The peers' key of that name.
pub fn find(name: &str) -> Option<Elsewhere> {
    all().find(|key| key.name == name)
}

/// A value that asks for nothing: the feature is off.
pub fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Str(s) => {
            matches!(s.to_ascii_lowercase().as_str(), "" | "none" | "null" | "no" | "false" | "off")
        }
        Value::List(items) => items.is_empty(),
        Value::Map(entries) => entries.is_empty(),
        _ => false,
    }
}
