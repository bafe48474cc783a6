//! The registry: every key of a run's configuration, once.
//!
//! To add a key, add its lines here. Parsing, overrides, flags, unknown-key suggestions, docs/configuration.md, `print-config`
//! and the field of [`RunConfig`] all come from this list; only what concerns several keys at once is in `validate.rs`.

use super::choices::*;
use super::field::{Field, Iterations, Kwargs, Limit, LogSteps, MicroBatch, Resume, Signed, Steps, Targets};
use super::optim::OptimArgs;
use super::registry::{Key, Source, or_none, run_config};
use super::rules::*;
use super::secret::Secret;
use super::tokens::TrainedTokens;
use crate::schedule::ScheduleKind;
use loratune_engine::{Checkpointing, DeviceChoice};
use loratune_model::adapter::{Bias, Init};

run_config! {
    "Model" {
        /// The base model: a Hugging Face folder, a GGUF file, or a name on the hub (`org/name`, `org/name@revision`,
        /// `org/name:file.gguf`) if there is no such path.
        model_name_or_path: String = String::new(), HuggingFace, required "model_name_or_path: models/SmolLM2-135M";
        /// Branch, tag or commit of a base model on the hub.
        model_revision: Option<String> = None, LlamaFactory, words "main";
        /// Folder in which downloads are kept, in the layout of Hugging Face's cache.
        cache_dir: Option<String> = None, LlamaFactory, words "HF_HUB_CACHE, or hub in HF_HOME";
        /// Go on training this PEFT adapter, a folder or a name on the hub; rank, alpha, targets, and dropout if lora_dropout is not set, are then the adapter's.
        adapter_name_or_path: Option<String> = None, LlamaFactory, rule ONE_ADAPTER;
        /// Start from random weights; only the model's config and tokenizer are read.
        train_from_scratch: bool = false, LlamaFactory;
        /// Storage of the frozen base weights: `auto` is bfloat16 with bf16, else float32.
        dtype: BaseDtype = BaseDtype::Auto, HuggingFace, alias "torch_dtype";
        /// Stretch the rotary embedding where cutoff_len is longer than the model's context, by as many times as that takes: `linear`,
        /// `dynamic`, `yarn` or `llama3`. It makes another model of the base: an adapter is for the model as it is scaled, which
        /// merge_adapter writes down in config.json.
        rope_scaling: Option<RopeScaling> = None, LlamaFactory, words "the model's own";
        /// Split special tokens that stand in texts like other text, also those that a template writes as text.
        split_special_tokens: bool = false, LlamaFactory;
        /// Ordinary tokens to add to the tokenizer, as a list or with commas. They take the embedding's free rows; where there
        /// are none, resize_vocab is needed.
        add_tokens: Vec<String> = Vec::new(), LlamaFactory;
        /// Special tokens to add, which are found as they are written and left out of decoded answers; like add_tokens.
        add_special_tokens: Vec<String> = Vec::new(), LlamaFactory, deprecated "new_special_tokens";
        /// A YAML or JSON file of special tokens to add and what each means, such as `{"<think>": "start of a thought"}`; it
        /// stands in the place of add_special_tokens.
        new_special_tokens_config: Option<String> = None, LlamaFactory;
        /// Give embedding and head rows for tokens that have none, up to the next multiple of 64; with `lora` both are then
        /// trained whole unless modules_to_save or trainable_token_indices says otherwise.
        resize_vocab: bool = false, LlamaFactory;
        /// How new rows start: `noise_init` (the mean of the old rows, and noise of 1/√hidden size), `desc_init` (the mean of the
        /// description's tokens in new_special_tokens_config), `desc_init_w_noise` (that, and noise).
        init_special_tokens: NewTokens = NewTokens::Noise, LlamaFactory;
    }
    "Method" {
        /// `sft`: rows of text are trained whole, prompts with responses on the response. `pt`: plain text (or conversations, as
        /// the template writes them), all documents one after the other in blocks of cutoff_len, trained whole; what fills no
        /// block at the end is left out.
        stage: Stage = Stage::Sft, LlamaFactory;
        /// `lora` trains adapters on the frozen base, `full` all weights, `freeze` those of some layers.
        finetuning_type: Finetuning = Finetuning::Lora, LlamaFactory;
        /// Rank of the adapters.
        lora_rank: u64 = 8, LlamaFactory, alias "r", rule RANK;
        /// Scale: an adapter's output is multiplied by lora_alpha / lora_rank.
        lora_alpha: Option<f64> = None, LlamaFactory, rule POSITIVE, words "2 × lora_rank";
        /// Dropout on the adapters' input. Going on with adapter_name_or_path, the adapter's own unless it is set here.
        lora_dropout: Option<f64> = None, LlamaFactory, rule BELOW_1, words "0, or the given adapter's";
        /// Modules to adapt: `all` (`all-linear`: every linear layer but the head), names (also `embed_tokens` and `lm_head`) as a
        /// list or with commas, or a regular expression for the whole path. Text is a regular expression if it holds anything but letters, digits, `_`, `.`, `-`, commas and spaces.
        lora_target: Targets = Targets::AllLinear, LlamaFactory, alias "target_modules";
        /// Modules to leave out, written like lora_target.
        exclude_modules: Option<Targets> = None, Peft, rule NOT_ALL;
        /// Adapt only the layers with these indices.
        layers_to_transform: Option<Vec<u64>> = None, Peft;
        /// With layers_to_transform: regular expressions for what stands before the layer's index in a path.
        layers_pattern: Vec<String> = Vec::new(), Peft, words "the first index";
        /// Ranks that differ by module: names or regular expressions that end the module path; of several that match, the
        /// first in alphabetical order counts, as in PEFT's files.
        rank_pattern: Vec<(String, u64)> = Vec::new(), Peft, rule RANKS;
        /// Alphas that differ by module, like rank_pattern.
        alpha_pattern: Vec<(String, f64)> = Vec::new(), Peft, rule ALPHAS;
        /// Scale by lora_alpha / √lora_rank instead.
        use_rslora: bool = false, LlamaFactory;
        /// How adapters start: `true` (uniform A, zero B), `gaussian`, `orthogonal`, `false` (both random), or from the base's
        /// own weights: `pissa` (exact SVD), `pissa_niter_16` (fast SVD with 16 iterations), `olora` (QR).
        init_lora_weights: Init = Init::Kaiming, Peft;
        /// PiSSA, spelt as LLaMA-Factory does: the same as init_lora_weights `pissa_niter_N` with N from pissa_iter.
        pissa_init: bool = false, LlamaFactory;
        /// Iterations of the fast SVD with pissa_init; -1 is the exact one.
        pissa_iter: Option<Iterations> = None, LlamaFactory, words "16 with pissa_init";
        /// Write what started from `pissa` or `olora` as plain LoRA of twice the rank on the untouched base; `false` writes the
        /// factors as they are, and the base without its principal part in `residual_model` (LLaMA-Factory's default is false).
        pissa_convert: bool = true, LlamaFactory;
        /// DoRA: train the length of each row of the adapted weights apart from its direction.
        use_dora: bool = false, LlamaFactory;
        /// Train biases too: `none`, `all`, or those of the adapted layers (`lora_only`).
        bias: Bias = Bias::None, Peft;
        /// Modules to train and save whole beside the adapters, such as `embed_tokens, lm_head`.
        modules_to_save: Vec<String> = Vec::new(), Peft, alias "additional_target";
        /// Tokens, by id or as they are written, whose rows in the embedding are trained by themselves, and in the head if it
        /// is tied to it; or rows by module: `{embed_tokens: [5, 7], lm_head: [5]}`.
        trainable_token_indices: Option<TrainedTokens> = None, Peft, words "none";
        /// LoRA+: learning rate of B as a multiple of A's; 0 is off, 1 is plain LoRA.
        loraplus_lr_ratio: Option<f64> = None, LlamaFactory, rule NOT_NEGATIVE, words "off";
        /// LoRA+: learning rate of adapters on embeddings, of A and B as in PEFT (in LLaMA-Factory of B only).
        loraplus_lr_embedding: Option<f64> = None, LlamaFactory, rule NOT_NEGATIVE,
            words "1e-6 with LoRA+ (a loraplus_lr_ratio other than 0 and 1)",
            differs "loraplus_lr_embedding" "the rate of both A and B of adapters on embeddings, as in PEFT; in LLaMA-Factory of B only";
        /// NEFTune: α of the noise on the embeddings in training, ±α/√(length × hidden size); the paper uses 5 to 15.
        neftune_noise_alpha: Option<f64> = None, HuggingFace, rule NOT_NEGATIVE, words "off",
            differs "neftune_noise_alpha" "scaled by each sequence's own length, as in the paper; neftune_scale: per_batch is Hugging Face's";
        /// The length in NEFTune's noise: each sequence's own (`per_sequence`, the paper's), or that of the batch's longest row
        /// (`per_batch`, Hugging Face's).
        neftune_scale: NeftuneScale = NeftuneScale::PerSequence, Loratune;
        /// With `full`: train only parameters whose name matches one of these regular expressions from its start; whole
        /// parameters, without Axolotl's row ranges.
        unfrozen_parameters: Vec<String> = Vec::new(), Axolotl, words "all";
        /// With `freeze`: how many layers to train, the last ones, or the first ones if negative.
        freeze_trainable_layers: Signed = Signed(2), LlamaFactory, rule NOT_ZERO;
        /// With `freeze`: what to train in those layers, such as `self_attn, mlp`; `all` is everything.
        freeze_trainable_modules: Vec<String> = vec!["all".into()], LlamaFactory;
        /// With `freeze`: modules outside the layers to train too, such as `embed_tokens, norm`.
        freeze_extra_modules: Vec<String> = Vec::new(), LlamaFactory;
    }
    "Data" {
        /// What to train on, a list or with commas: entries of dataset_info.json in dataset_dir, paths of files (.json, .jsonl,
        /// .csv, .tsv, .parquet, .arrow, .txt, and .gz of them) or of folders of them, their names in dataset_dir (the ending may be
        /// left out), or names on the hub: `org/name`, with `#split` or `#subset:split` for another part than its training split.
        dataset: Vec<String> = Vec::new(), LlamaFactory, required "dataset: data/train.jsonl";
        /// What to evaluate on, written like dataset.
        eval_dataset: Vec<String> = Vec::new(), LlamaFactory;
        /// Folder with LLaMA-Factory's dataset_info.json, or in which a dataset that is no path is looked up as a file or folder
        /// of that name; `ONLINE` takes all names as the hub's, `REMOTE:owner/name` takes dataset_info.json from there.
        dataset_dir: String = "data".into(), LlamaFactory;
        /// Chat template: a name, or nothing for the model's own.
        template: Option<String> = None, LlamaFactory, alias "chat_template_path", words "the model's own";
        /// The system text of conversations without one, in place of the template's own.
        default_system: Option<String> = None, LlamaFactory, words "the template's";
        /// How a named template describes tools and their calls, if not in its own way, such as `default`, `glm4`, `llama3`,
        /// `mistral` or `qwen`.
        tool_format: Option<String> = None, LlamaFactory, words "the template's";
        /// What templates of reasoning models do with responses that hold no thought: train an empty one (`true`), or make it
        /// part of the prompt, taking thoughts out (`false`) or leaving them (`none`, LLaMA-Factory's null). The model's own
        /// template is given the value if it is set.
        enable_thinking: Option<Thinking> = None, LlamaFactory, words "true for named templates";
        /// Keep the thoughts of earlier turns in prompts and with mask_history.
        preserve_thinking: bool = false, LlamaFactory;
        /// Most tokens of a row, or of a pack.
        cutoff_len: u64 = 2048, LlamaFactory, alias "max_seq_length", alias "max_length", rule ROW_TOKENS,
            differs "max_length" "taken as TRL's, the most tokens of a row; in LLaMA-Factory it is the most of an answer";
        /// Divide cutoff_len between prompt and response in proportion, but keep so many tokens of the response: the rule of
        /// LLaMA-Factory up to 0.7.1, whose default was 1. Left out, its rule since: a side below half is kept whole.
        reserved_label_len: Option<u64> = None, LlamaFactory, rule AT_LEAST_1, words "the later rule";
        /// The column that holds a row's text, if it has another name than `text`.
        text_column: Option<String> = None, Trl, alias "dataset_text_field", words "by the row's fields";
        /// The column that holds a row's messages, as a list or as JSON text.
        messages_column: Option<String> = None, Loratune, words "by the row's fields";
        /// With `pt`: end every document with the tokenizer's EOS.
        add_eos_token: bool = true, AutoTrain;
        /// With `pt`, where the tokenizer puts BOS before texts: in the place of each `block`'s first token (LLaMA-Factory's way),
        /// or before each `document` (AutoTrain's).
        bos_of: BosOf = BosOf::Block, Loratune;
        /// Train on prompts too.
        train_on_prompt: bool = false, LlamaFactory;
        /// Train on the last turn only.
        mask_history: bool = false, LlamaFactory;
        /// Put rows together up to cutoff_len; rows of a pack never see each other. With `pt` it is on unless set to false, and
        /// blocks know no borders; false trains each document by itself, cut at cutoff_len.
        packing: bool = false, LlamaFactory,
            differs "packing" "rows of a pack do not see each other, as with LLaMA-Factory's neat_packing and in TRL; with LLaMA-Factory's packing alone, and in AutoTrain, they do";
        /// Keep the order of the data.
        disable_shuffling: bool = false, LlamaFactory;
        /// Use the first so many rows of each dataset.
        max_samples: Option<u64> = None, LlamaFactory, rule ALL_ROWS;
        /// Hold rows out for evaluation: a share below 1 or a number of rows.
        val_size: f64 = 0.0, LlamaFactory, rule VAL_SIZE;
        /// How several datasets become one: one after the other (`concat`), or by turns until the first is used up
        /// (`interleave_under`), until the last is while the others begin again (`interleave_over`) or are left out
        /// (`interleave_once`).
        mix_strategy: MixStrategy = MixStrategy::Concat, LlamaFactory;
        /// With interleaving: how often each dataset is drawn, in relation to the others.
        interleave_probs: Vec<f64> = Vec::new(), LlamaFactory, words "by turns";
        /// Read, tokenise and shuffle rows while training, without keeping them: for data larger than memory and disk. Needs
        /// max_steps.
        streaming: bool = false, LlamaFactory;
        /// With streaming: rows among which the next one is drawn.
        buffer_size: u64 = 16384, LlamaFactory, rule AT_LEAST_1;
        /// Tokenise anew what is kept from an earlier run, and replace it. Rows of datasets of a megabyte and more are kept in
        /// `loratune/tokenized` in HF_HOME, XDG_CACHE_HOME or ~/.cache.
        overwrite_cache: bool = false, LlamaFactory;
        /// Folder for tokenised rows, as `datasets` saves them. If it holds rows, these are the training and evaluation rows, and
        /// what says otherwise how rows are read changes nothing; else the rows are written there when the run starts.
        tokenized_path: Option<String> = None, LlamaFactory;
        /// Evaluate each eval_dataset by itself too, as `eval_NAME_loss`; eval_loss is over all of them.
        eval_on_each_dataset: bool = false, LlamaFactory;
        /// Threads for tokenising.
        preprocessing_num_workers: Option<u64> = None, LlamaFactory, alias "dataset_num_proc", rule AT_LEAST_1, words "threads";
    }
    "Output" {
        /// Folder for the result, checkpoints, logs and plots.
        output_dir: String = String::new(), HuggingFace, required "output_dir: runs/first";
        /// Allow output_dir to hold something; it is replaced.
        overwrite_output_dir: bool = false, LlamaFactory;
        /// Leave the model with the adapter folded in (in f32, rounded once to the base's type) instead of the adapter; checkpoints
        /// hold adapters all the same.
        merge_adapter: bool = false, AutoTrain;
        /// Go on from a checkpoint: `true` for the newest in output_dir, or its folder.
        resume_from_checkpoint: Resume = Resume::No, HuggingFace;
        /// Log every so many steps; below 1 a share of the run; `auto` is a fifth of the data's batches, from 1 to 25.
        logging_steps: LogSteps = LogSteps::Steps(Steps::Count(500)), HuggingFace, rule POSITIVE_OR_AUTO;
        /// Log every logging_steps (`steps`), after each `epoch`, or `no` losses at all.
        logging_strategy: LogStrategy = LogStrategy::Steps, HuggingFace;
        /// Log the first step too.
        logging_first_step: bool = false, HuggingFace;
        /// Folder of the TensorBoard events.
        logging_dir: Option<String> = None, HuggingFace, words "runs in output_dir";
        /// Checkpoints: `no`, every save_steps (`steps`), after each `epoch`, or after each evaluation that is the `best` so far.
        save_strategy: SaveStrategy = SaveStrategy::Steps, HuggingFace;
        /// Steps between checkpoints; below 1 a share of the run.
        save_steps: Steps = Steps::Count(500), HuggingFace, rule POSITIVE;
        /// Keep only the newest so many checkpoints (the best one always).
        save_total_limit: Option<u64> = None, HuggingFace, rule AT_LEAST_1, words "all";
        /// Leave the optimiser's state out of checkpoints: smaller, but a run can't go on from them; only the checkpoint of an
        /// interrupted run holds it all the same.
        save_only_model: bool = false, HuggingFace;
        /// Draw `training_loss.png` and `.svg`, `training_eval_loss.png`, `training_eval_accuracy.png` (LLaMA-Factory's default is
        /// false).
        plot_loss: bool = true, LlamaFactory;
        /// Show each parameter's name, type, device, and whether it is trained.
        print_param_status: bool = false, LlamaFactory;
        /// `tensorboard` or `none` (Hugging Face's default is none); `all` is what there is: tensorboard. W&B documents no format that
        /// other programs may write, and has a library for Python only.
        report_to: Vec<Reporter> = vec![Reporter::TensorBoard], HuggingFace;
    }
    "Hub" {
        /// Push the result to the hub; see hub_strategy.
        push_to_hub: bool = false, HuggingFace;
        /// Repository to push to, made if it is missing; a name without an owner belongs to the token's user.
        hub_model_id: Option<String> = None, HuggingFace, words "output_dir's name";
        /// Access token, for downloads too; it is never written anywhere. Better set HF_TOKEN.
        hub_token: Option<Secret> = None, HuggingFace, alias "hf_hub_token", words "HF_TOKEN, or the token file";
        /// What is pushed: the result (`end`), also the model of every checkpoint (`every_save`), also the newest checkpoint itself
        /// in `last-checkpoint` (`checkpoint`), or every one (`all_checkpoints`).
        hub_strategy: HubStrategy = HubStrategy::EverySave, HuggingFace;
        /// Whether a repository that is made is private (Hugging Face's default is public). One that exists stays as it is.
        hub_private_repo: bool = true, HuggingFace;
        /// Branch to push to, made if it is missing.
        hub_revision: Option<String> = None, HuggingFace, words "main";
        /// Push every checkpoint, waiting for the one before; else one is left out while another is on its way.
        hub_always_push: bool = false, HuggingFace;
    }
    "Evaluation" {
        /// Evaluate: `no`, every eval_steps (`steps`), or after each `epoch`.
        eval_strategy: EvalStrategy = EvalStrategy::No, HuggingFace, deprecated "evaluation_strategy";
        /// Steps between evaluations; below 1 a share of the run.
        eval_steps: Option<Steps> = None, HuggingFace, rule POSITIVE, words "logging_steps";
        /// No evaluation before so many steps, or with `epoch` epochs.
        eval_delay: f64 = 0.0, HuggingFace, rule NOT_NEGATIVE;
        /// Evaluate before the first step too.
        eval_on_start: bool = false, HuggingFace;
        /// Rows per batch in evaluation.
        per_device_eval_batch_size: u64 = 8, HuggingFace, rule ROWS;
        /// End with the best checkpoint instead of the last weights.
        load_best_model_at_end: bool = false, HuggingFace;
        /// What decides which one is best: `loss`, `perplexity`, `accuracy`; with predict_with_generate also `rouge-1`, `rouge-2`,
        /// `rouge-l`, `bleu-4`, `exact_match`, `gsm8k_strict` (`gsm8k`), `gsm8k_flexible`.
        metric_for_best_model: Metric = Metric::EvalLoss, HuggingFace;
        /// Whether a larger metric is a better one.
        greater_is_better: Option<bool> = None, HuggingFace, words "for all but loss and perplexity";
        /// Stop after so many evaluations without a better metric.
        early_stopping_steps: Option<u64> = None, LlamaFactory, alias "early_stopping_patience", rule AT_LEAST_1,
            words "never";
        /// Let the model answer the evaluation rows' prompts in every evaluation, and score the answers (ROUGE, BLEU-4, exact match,
        /// GSM8K's final numbers).
        predict_with_generate: bool = false, HuggingFace;
        /// Evaluate at the end, whatever eval_strategy says.
        do_eval: bool = false, HuggingFace;
        /// Write the answers to the evaluation rows into `generated_predictions.jsonl` at the end; needs predict_with_generate.
        do_predict: bool = false, HuggingFace;
        /// Most tokens of an answer.
        max_new_tokens: u64 = 1024, LlamaFactory, rule AT_LEAST_1;
        /// Draw tokens by their probability; `false` always takes the most probable one.
        do_sample: bool = true, LlamaFactory;
        /// Higher is more varied.
        temperature: f64 = 0.95, LlamaFactory, rule POSITIVE;
        /// Draw among the most probable tokens that together have this probability.
        top_p: f64 = 0.7, LlamaFactory, rule SHARE;
        /// Draw among this many most probable tokens; 0 is all.
        top_k: u64 = 50, LlamaFactory;
        /// Leave special tokens out of the answers.
        skip_special_tokens: bool = true, LlamaFactory;
    }
    "Training" {
        /// Rows (or packs) per batch.
        per_device_train_batch_size: u64 = 8, HuggingFace, rule ROWS;
        /// Leave out an epoch's last batch if it has fewer rows; evaluation keeps all rows, which Hugging Face's does not.
        dataloader_drop_last: bool = false, HuggingFace;
        /// Batches per optimiser step; the loss is divided by all trained tokens of the step.
        gradient_accumulation_steps: u64 = 1, HuggingFace, rule ROWS;
        /// Rows (or packs) that are computed at a time: a number that divides a step's rows, which per_device_train_batch_size and
        /// gradient_accumulation_steps make together and which stay what they are; or `auto`, the most that there is memory for.
        micro_batch: Option<MicroBatch> = None, Loratune, rule MICRO_BATCH, words "per_device_train_batch_size";
        /// Peak learning rate.
        learning_rate: f64 = 5e-5, HuggingFace, rule NOT_NEGATIVE;
        /// Passes over the data; fractions are allowed.
        num_train_epochs: f64 = 3.0, HuggingFace, rule POSITIVE;
        /// Stop after so many optimiser steps, whatever num_train_epochs says; -1 is off.
        max_steps: Limit = Limit(None), HuggingFace;
        /// Course of the learning rate. `reduce_lr_on_plateau` and `greedy` go by metric_for_best_model at every evaluation, the
        /// better direction being the metric's own, where Hugging Face's default is always `mode: min`.
        lr_scheduler_type: ScheduleKind = ScheduleKind::Linear, HuggingFace;
        /// Arguments of the course, such as `{num_cycles: 2}`.
        lr_scheduler_kwargs: Kwargs = Kwargs::default(), HuggingFace;
        /// Steps with a rising learning rate; below 1 a share of the run.
        warmup_steps: Steps = Steps::Count(0), HuggingFace, rule NOT_NEGATIVE;
        /// The same as a share of the run.
        warmup_ratio: f64 = 0.0, HuggingFace, rule BELOW_1;
        /// Optimiser: `adamw_torch` (also `adamw_torch_fused`, `adamw_hf`), `adamw_bnb_8bit` (`adamw_8bit`: moments of 8 bits, a
        /// quarter of the memory), `adafactor`, `sgd`, `lion_32bit` (`lion`), `lion_8bit`; the `paged_` names mean the same, since
        /// nothing has to be moved to the processor's memory.
        optim: Optimizer = Optimizer::AdamW, HuggingFace;
        /// Arguments of `sgd`: `momentum`, `dampening`, `nesterov`.
        optim_args: OptimArgs = OptimArgs::default(), HuggingFace;
        /// Weight decay, decoupled from the gradient but for `sgd`.
        weight_decay: f64 = 0.0, HuggingFace, rule NOT_NEGATIVE;
        /// Decay of the mean, of AdamW and Lion.
        adam_beta1: f64 = 0.9, HuggingFace, rule BELOW_1;
        /// Decay of AdamW's variance, and of Lion's momentum (whose paper has 0.99).
        adam_beta2: f64 = 0.999, HuggingFace, rule BELOW_1;
        /// AdamW's ε.
        adam_epsilon: f64 = 1e-8, HuggingFace, rule NOT_NEGATIVE;
        /// Clip the gradient's norm to this; 0 is off.
        max_grad_norm: f64 = 1.0, HuggingFace, rule NOT_NEGATIVE;
        /// Label smoothing: this share of each target's probability is spread over the whole vocabulary, in eval_loss too.
        label_smoothing_factor: f64 = 0.0, HuggingFace, rule BELOW_1;
        /// Seed of everything random: initialisation, dropout, order, held-out rows.
        seed: u64 = 42, HuggingFace;
        /// Seed of the data's order.
        data_seed: Option<u64> = None, HuggingFace, words "seed";
        /// Mixed precision in float16. Nothing here has arithmetic for it yet: the run computes in float32, which needs no loss
        /// scaling, and says so.
        fp16: bool = false, HuggingFace;
        /// Compute in bfloat16; trained weights stay float32.
        bf16: bool = false, HuggingFace;
        /// Keep only the inputs of the model's blocks (`true` or `block`) and compute these again in the backward pass: less memory
        /// for about a quarter more arithmetic, and the same numbers. With `offload` the inputs wait in the host's memory, which they
        /// go to and come back from while an NVIDIA card computes; on the processor that is `block`.
        gradient_checkpointing: Checkpointing = Checkpointing::None, HuggingFace;
        /// When a card's memory does not suffice for a batch, compute it in halves, as often as that helps, and from then on: the
        /// steps are the same (Hugging Face begins anew with fewer rows a step).
        auto_find_batch_size: bool = false, HuggingFace,
            differs "auto_find_batch_size" "a batch that does not fit is computed in halves, and the step stays what it is; Hugging Face begins anew with fewer rows a step";
        /// What computes: `auto` (the first NVIDIA card, else the processor), `cpu`, `cuda` or `cuda:N`.
        device: DeviceChoice = DeviceChoice::Auto, Loratune;
        /// Threads for computing.
        threads: Option<u64> = None, Loratune, rule AT_LEAST_1, words "all cores";
    }
}
