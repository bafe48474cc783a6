//! Keys of transformers' `TrainingArguments` and `Seq2SeqTrainingArguments` (4.40 to 5.23).

use super::Answer::{Lacking, Needless, Never, Only, Sets, Use};
use super::Group;

const ONE_PROCESS: &str = "a run is one process";
const NO_TORCH: &str = "it is PyTorch's";
const BATCHES: &str = "batches are made in the training process";

pub(super) const KEYS: &[Group] = &[
    (Only(&["false"], "a loss that is not finite is never hidden"), &["logging_nan_inf_filter"]),
    (Sets("gradient_checkpointing"), &["activation_checkpointing"]),
    (Only(&["true"], "files are safetensors"), &["save_safetensors"]),
    (Needless("no code from a model's folder is ever run"), &["trust_remote_code"]),
    (
        Needless(ONE_PROCESS),
        &[
            "ddp_timeout",
            "ddp_find_unused_parameters",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "ddp_static_graph",
            "ddp_backend",
            "local_rank",
            "average_tokens_across_devices",
            "log_on_each_node",
            "save_on_each_node",
            "log_level_replica",
        ],
    ),
    (
        Needless(BATCHES),
        &[
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
        ],
    ),
    (
        Needless("columns that the format does not use are not read"),
        &["remove_unused_columns", "label_names"],
    ),
    (
        Needless("nothing is padded, so rows need not be sorted by length"),
        &["group_by_length", "length_column_name", "sortish_sampler"],
    ),
    (Needless("the same seed gives the same bytes in any case"), &["full_determinism"]),
    (
        Needless("logits are never kept in evaluation"),
        &[
            "eval_accumulation_steps",
            "prediction_loss_only",
            "batch_eval_metrics",
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "include_for_metrics",
        ],
    ),
    (Needless("the fused loss and norms are always used"), &["use_liger_kernel", "liger_kernel_config"]),
    (Needless("training keeps no keys and values"), &["use_cache"]),
    (Needless("memory is kept for the next step"), &["torch_empty_cache_steps", "skip_memory_metrics"]),
    (Needless("RUST_LOG says what libraries log"), &["log_level"]),
    (Needless("--quiet says nothing but results"), &["disable_tqdm"]),
    (
        Needless("what a checkpoint holds is decided by the run"),
        &["restore_callback_states_from_checkpoint", "enable_jit_checkpoint"],
    ),
    (
        Needless(NO_TORCH),
        &[
            "tf32",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "gradient_checkpointing_kwargs",
            "activation_checkpointing_kwargs",
        ],
    ),
    (Use("per_device_train_batch_size"), &["per_gpu_train_batch_size"]),
    (Use("per_device_eval_batch_size"), &["per_gpu_eval_batch_size"]),
    (Use("device"), &["no_cuda", "use_cpu"]),
    (Use("cutoff_len"), &["model_max_length"]),
    (Lacking("evaluation has the run's precision"), &["bf16_full_eval", "fp16_full_eval"]),
    (Only(&["1"], "tokens are drawn one by one"), &["generation_num_beams"]),
    (Never(ONE_PROCESS), &["deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"]),
    (Needless("trainer_state.json always has num_input_tokens_seen"), &["include_num_input_tokens_seen"]),
    (Needless("every result has tokens per second"), &["include_tokens_per_second"]),
    (Needless("TensorBoard names a run by its folder, logging_dir"), &["run_name", "project"]),
    (Only(&["random"], "disable_shuffling: true keeps the order"), &["train_sampling_strategy"]),
    (Only(&["false"], "a resumed run goes on where it was in the data"), &["ignore_data_skip"]),
    (Use("max_new_tokens"), &["generation_max_length"]),
    (
        Lacking("how answers are drawn is said by do_sample, temperature, top_p, top_k and max_new_tokens"),
        &["generation_config"],
    ),
    (Lacking("it is GaLore's and APOLLO's, which are not there"), &["optim_target_modules"]),
    (Never("it is for debugging PyTorch; a value that is not finite is always found and named"), &["debug"]),
    (
        Never("numbers go to TensorBoard and trainer_log.jsonl"),
        &["trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"],
    ),
];
