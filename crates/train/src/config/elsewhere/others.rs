//! Keys of TRL's `SFTConfig` (1.16), PEFT's `LoraConfig` (0.21) and AutoTrain's names in files.

use super::Answer::{Inverse, Lacking, Needless, Never, NotYet, Only, Use};
use super::Group;

pub(super) const TRL: &[Group] = &[
    (Inverse("train_on_prompt"), &["assistant_only_loss", "completion_only_loss"]),
    (Only(&["keep_start"], "rows keep their beginning"), &["truncation_mode"]),
    (
        Only(&["bfd"], "packs are filled best fit decreasing, and no row is cut for them"),
        &["packing_strategy"],
    ),
    (Only(&["nll", "chunked_nll"], "the loss is cross-entropy, computed in chunks"), &["loss_type"]),
    (Needless("nothing is padded"), &["padding_free", "pad_to_multiple_of", "pad_token"]),
    (Needless("rows are shuffled anew every epoch unless disable_shuffling is true"), &["shuffle_dataset"]),
    (Needless("in evaluation every token weighs the same, packed or not"), &["eval_packing"]),
    (
        Lacking(
            "gradient_checkpointing: offload moves the blocks' inputs to the host's memory, and nothing else is kept",
        ),
        &["activation_offloading"],
    ),
    (Lacking("its members are keys of their own, such as dtype"), &["model_init_kwargs", "dataset_kwargs"]),
    (Lacking("EOS is the tokenizer's; change it in tokenizer_config.json"), &["eos_token"]),
];

pub(super) const PEFT: &[Group] = &[
    (Only(&["CAUSAL_LM"], "models are causal language models"), &["task_type"]),
    (Only(&["LORA"], "adapters are LoRA's"), &["peft_type"]),
    (Use("weight_decay"), &["loraplus_weight_decay"]),
    (Use("model_name_or_path"), &["base_model_name_or_path"]),
    (
        Needless("it is written, not read"),
        &["auto_mapping", "peft_version", "inference_mode", "runtime_config"],
    ),
    (Never("it is Megatron's"), &["megatron_config", "megatron_core"]),
    (
        NotYet,
        &[
            "alora_invocation_tokens",
            "arrow_config",
            "corda_config",
            "ensure_weight_tying",
            "eva_config",
            "fan_in_fan_out",
            "kasa_config",
            "layer_replication",
            "loftq_config",
            "lora_bias",
            "lora_ga_config",
            "monteclora_config",
            "qalora_group_size",
            "target_parameters",
            "use_bdlora",
            "use_qalora",
            "velora_config",
        ],
    ),
];

/// In files and `train`'s flags; `loratune llm` has them as they are.
pub(super) const AUTOTRAIN: &[Group] = &[
    (Use("cutoff_len"), &["block_size"]),
    (Use("lora_rank"), &["lora_r"]),
    (Use("learning_rate"), &["lr"]),
    (Use("num_train_epochs"), &["epochs"]),
    (Use("per_device_train_batch_size"), &["batch_size"]),
    (Use("gradient_accumulation_steps"), &["gradient_accumulation"]),
    (Use("lr_scheduler_type"), &["scheduler"]),
    (Use("optim"), &["optimizer"]),
    (Use("output_dir"), &["project_name"]),
    (Use("dataset"), &["data_path"]),
    (Use("model_name_or_path"), &["model"]),
    (Use("template"), &["chat_template"]),
];
