//! Keys with a fixed set of values. Each enum stands with its spellings, and with the peers' spellings that are not built yet.

use super::field::{Arity, Field, Problem};
use super::value::Value;
use crate::progress::Evaluation;
use crate::schedule::ScheduleKind;
use loratune_engine::{Checkpointing, DeviceChoice};
use loratune_model::adapter::{Bias, Init};

/// One line per value: variant, spelling, further spellings of the same. `not_yet` lists known values to refuse by name.
macro_rules! choices {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal $(| $also:literal)*),+ $(,)? }
     not_yet [$($later:literal),* $(,)?]) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// The spelling in a configuration file.
            pub fn name(self) -> &'static str {
                match self { $($name::$variant => $text),+ }
            }
        }

        impl Field for $name {
            const TEXT: bool = true;
            fn expected() -> String {
                one_of(&[$($text),+])
            }
            fn choices() -> Vec<&'static str> {
                vec![$($text, $($also,)*)+]
            }
            fn parse(value: &Value) -> Result<Self, Problem> {
                const LATER: &[&str] = &[$($later),*];
                let text = match value {
                    Value::Str(s) => s.trim().to_ascii_lowercase(),
                    // YAML 1.1 reads a bare `no` as false.
                    Value::Bool(false) => "no".to_string(),
                    _ => return Err(Problem::Type),
                };
                match text.as_str() {
                    $($text $(| $also)* => Ok($name::$variant),)+
                    other if LATER.contains(&other) => Err(not_yet(&[$($text),+])),
                    _ => Err(Problem::Type),
                }
            }
            fn to_value(&self) -> Value {
                Value::Str(self.name().into())
            }
        }
    };
}

fn one_of(names: &[&str]) -> String {
    match names {
        [one] => one.to_string(),
        [head @ .., last] => format!("{} or {last}", head.join(", ")),
        [] => String::new(),
    }
}

fn not_yet(have: &[&str]) -> Problem {
    Problem::Refused(format!("loratune does not have it yet; it has {}", one_of(have)))
}

choices! {
    /// What is learned from a row (`stage`).
    Stage {
        /// Supervised: prompts and responses.
        Sft = "sft",
        /// Plain text.
        Pt = "pt",
    }
    not_yet ["rm", "ppo", "dpo", "kto"]
}

choices! {
    /// Where BOS stands in plain text (`bos_of`).
    BosOf {
        /// In the place of each block's first token.
        Block = "block",
        /// Before each document.
        Document = "document",
    }
    not_yet []
}

choices! {
    /// Which weights are trained (`finetuning_type`).
    Finetuning {
        /// Low-rank adapters on a frozen base.
        Lora = "lora",
        /// All weights.
        Full = "full",
        /// All weights of some layers.
        Freeze = "freeze",
    }
    not_yet ["oft"]
}

choices! {
    /// What is pushed to the hub, and when (`hub_strategy`).
    HubStrategy {
        /// The result.
        End = "end",
        /// Also the model of every checkpoint.
        EverySave = "every_save",
        /// Also the newest checkpoint, as `last-checkpoint`.
        Checkpoint = "checkpoint",
        /// Also every checkpoint.
        AllCheckpoints = "all_checkpoints",
    }
    not_yet []
}

choices! {
    /// How new rows of the vocabulary start (`init_special_tokens`).
    NewTokens {
        /// The mean of the old rows, and noise.
        Noise = "noise_init",
        /// The mean of the rows of the token's description.
        Description = "desc_init",
        /// That, and noise.
        NoisyDescription = "desc_init_w_noise",
    }
    not_yet []
}

choices! {
    /// How the rotary embedding is stretched (`rope_scaling`), in transformers' names.
    RopeScaling {
        /// All positions are divided.
        Linear = "linear",
        /// The base follows the length of the text.
        Dynamic = "dynamic",
        /// YaRN.
        Yarn = "yarn",
        /// As Llama 3.1.
        Llama3 = "llama3",
    }
    not_yet []
}

choices! {
    /// How several datasets become one (`mix_strategy`).
    MixStrategy {
        /// One after the other.
        Concat = "concat",
        /// By turns, until the first is used up.
        Under = "interleave_under",
        /// By turns, until the last is used up; the others begin again.
        Over = "interleave_over",
        /// By turns, until the last is used up; the others are left out.
        Once = "interleave_once",
    }
    not_yet []
}

impl MixStrategy {
    /// As the data crate calls it.
    pub fn mix(self) -> loratune_data::Mix {
        match self {
            MixStrategy::Concat => loratune_data::Mix::Concat,
            MixStrategy::Under => loratune_data::Mix::InterleaveUnder,
            MixStrategy::Over => loratune_data::Mix::InterleaveOver,
            MixStrategy::Once => loratune_data::Mix::InterleaveOnce,
        }
    }
}

choices! {
    /// When to evaluate (`eval_strategy`).
    EvalStrategy {
        /// Never.
        No = "no",
        /// Every `eval_steps`.
        Steps = "steps",
        /// After each epoch.
        Epoch = "epoch",
    }
    not_yet []
}

choices! {
    /// When to write a checkpoint (`save_strategy`).
    SaveStrategy {
        /// Only the final result.
        No = "no",
        /// Every `save_steps`.
        Steps = "steps",
        /// After each epoch.
        Epoch = "epoch",
        /// After each evaluation that is better than all before.
        Best = "best",
    }
    not_yet []
}

choices! {
    /// When to log the loss (`logging_strategy`).
    LogStrategy {
        /// Never.
        No = "no",
        /// Every `logging_steps`.
        Steps = "steps",
        /// After each epoch.
        Epoch = "epoch",
    }
    not_yet []
}

choices! {
    /// What decides which checkpoint is the best (`metric_for_best_model`).
    Metric {
        /// The loss on the evaluation rows.
        EvalLoss = "eval_loss" | "loss",
        /// Its exponential.
        Perplexity = "eval_perplexity" | "perplexity",
        /// Share of trained tokens that were the most probable ones.
        Accuracy = "eval_accuracy" | "accuracy",
        /// Of the answers, with `predict_with_generate`: F1 of words.
        Rouge1 = "eval_rouge-1" | "rouge-1",
        /// F1 of pairs of words.
        Rouge2 = "eval_rouge-2" | "rouge-2",
        /// F1 of the longest common subsequence.
        RougeL = "eval_rouge-l" | "rouge-l",
        /// BLEU-4 of characters.
        Bleu4 = "eval_bleu-4" | "bleu-4",
        /// Answers that are equal.
        ExactMatch = "eval_exact_match" | "exact_match",
        /// Right numbers behind `####`.
        Gsm8kStrict = "eval_gsm8k_strict" | "gsm8k_strict" | "gsm8k" | "eval_gsm8k",
        /// Right last numbers.
        Gsm8kFlexible = "eval_gsm8k_flexible" | "gsm8k_flexible",
    }
    not_yet []
}

impl Metric {
    /// Its value in an evaluation; none if it is of answers and there are none.
    pub fn of(self, evaluation: &Evaluation) -> Option<f64> {
        let generated = evaluation.generated.as_ref();
        match self {
            Metric::EvalLoss => Some(evaluation.loss),
            Metric::Perplexity => Some(evaluation.perplexity()),
            Metric::Accuracy => Some(evaluation.accuracy),
            Metric::Rouge1 => generated.map(|s| s.rouge_1),
            Metric::Rouge2 => generated.map(|s| s.rouge_2),
            Metric::RougeL => generated.map(|s| s.rouge_l),
            Metric::Bleu4 => generated.map(|s| s.bleu_4),
            Metric::ExactMatch => generated.map(|s| s.exact_match),
            Metric::Gsm8kStrict => generated.map(|s| s.gsm8k_strict),
            Metric::Gsm8kFlexible => generated.map(|s| s.gsm8k_flexible),
        }
    }

    /// Whether a larger value is a better one.
    pub fn greater_is_better(self) -> bool {
        !matches!(self, Metric::EvalLoss | Metric::Perplexity)
    }

    /// Whether it compares answers.
    pub fn is_of_answers(self) -> bool {
        !matches!(self, Metric::EvalLoss | Metric::Perplexity | Metric::Accuracy)
    }
}

choices! {
    /// The optimiser (`optim`).
    Optimizer {
        /// AdamW with decoupled weight decay, PyTorch's formula.
        AdamW = "adamw_torch" | "adamw_torch_fused" | "adamw_hf" | "adamw" | "adamw_apex_fused" | "paged_adamw"
            | "paged_adamw_32bit",
        /// AdamW with moments of 8 bits, bitsandbytes'.
        AdamW8Bit = "adamw_bnb_8bit" | "adamw_8bit" | "paged_adamw_8bit",
        /// Adafactor, transformers' with a given learning rate.
        Adafactor = "adafactor",
        /// Gradient descent with momentum, PyTorch's.
        Sgd = "sgd",
        /// Lion, bitsandbytes'.
        Lion = "lion_32bit" | "lion" | "paged_lion_32bit",
        /// Lion with a momentum of 8 bits, bitsandbytes'.
        Lion8Bit = "lion_8bit" | "paged_lion_8bit",
    }
    not_yet ["adagrad", "rmsprop", "rmsprop_bnb", "rmsprop_bnb_8bit", "rmsprop_bnb_32bit", "ademamix", "ademamix_8bit",
             "paged_ademamix_32bit", "paged_ademamix_8bit", "adamw_anyprecision", "adamw_torch_8bit", "adamw_torch_4bit",
             "adamw_torch_xla", "adamw_torch_npu_fused", "galore_adamw", "galore_adamw_8bit", "galore_adafactor",
             "galore_adamw_layerwise", "galore_adamw_8bit_layerwise", "galore_adafactor_layerwise", "lomo", "adalomo",
             "grokadamw", "schedule_free_radam", "schedule_free_adamw", "schedule_free_sgd", "apollo_adamw",
             "apollo_adamw_layerwise", "stable_adamw", "muon"]
}

choices! {
    /// Storage of the frozen base weights (`dtype`).
    BaseDtype {
        /// bfloat16 when `bf16` is on, else float32.
        Auto = "auto",
        /// 32 bits.
        Float32 = "float32" | "fp32",
        /// 16 bits with float32's range.
        Bfloat16 = "bfloat16" | "bf16",
    }
    not_yet ["float16", "fp16", "half"]
}

choices! {
    /// Where the numbers go besides the files of every run (`report_to`).
    Reporter {
        /// Event files under `output_dir/runs`.
        TensorBoard = "tensorboard" | "all",
    }
    not_yet ["wandb", "swanlab", "mlflow", "comet_ml", "neptune", "clearml", "trackio", "dvclive", "codecarbon",
             "azure_ml", "dagshub", "flyte"]
}

impl Field for Vec<Reporter> {
    const ARITY: Arity = Arity::Many;
    const TEXT: bool = true;
    fn expected() -> String {
        "none, tensorboard or all".into()
    }
    fn choices() -> Vec<&'static str> {
        vec!["none", "tensorboard", "all"]
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Null => Ok(Vec::new()),
            Value::Str(s) if s.trim() == "none" => Ok(Vec::new()),
            _ => {
                let mut reporters = Vec::new();
                for name in Vec::<String>::parse(value)? {
                    if name != "none" {
                        reporters.push(Reporter::parse(&Value::Str(name))?);
                    }
                }
                reporters.dedup();
                Ok(reporters)
            }
        }
    }
    fn to_value(&self) -> Value {
        match self.as_slice() {
            [] => Value::Str("none".into()),
            many => Value::List(many.iter().map(Field::to_value).collect()),
        }
    }
}

impl Field for DeviceChoice {
    const TEXT: bool = true;
    fn expected() -> String {
        DeviceChoice::EXPECTED.into()
    }
    fn choices() -> Vec<&'static str> {
        vec!["auto", "cpu", "cuda"]
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        let Value::Str(name) = value else { return Err(Problem::Type) };
        match name.trim() {
            "mps" => Err(Problem::Refused(format!(
                "loratune does not have it yet; it has {}",
                DeviceChoice::EXPECTED
            ))),
            name => name.parse().map_err(|_| Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        Value::Str(self.to_string())
    }
}

impl Field for Checkpointing {
    // A bare flag is `true`.
    const ARITY: Arity = Arity::Maybe;
    fn expected() -> String {
        "none, block or offload; true is block, false is none".into()
    }
    fn choices() -> Vec<&'static str> {
        vec!["none", "block", "offload", "true", "false"]
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match (bool::parse(value), value) {
            (Ok(true), _) => Ok(Checkpointing::Block),
            (Ok(false), _) => Ok(Checkpointing::None),
            (_, Value::Str(name)) => match name.trim().to_ascii_lowercase().as_str() {
                "none" => Ok(Checkpointing::None),
                "block" => Ok(Checkpointing::Block),
                "offload" => Ok(Checkpointing::Offload),
                _ => Err(Problem::Type),
            },
            _ => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        match self {
            Checkpointing::None => Value::Bool(false),
            Checkpointing::Block => Value::Bool(true),
            Checkpointing::Offload => Value::Str("offload".into()),
        }
    }
}

choices! {
    /// The length in NEFTune's noise (`neftune_scale`).
    NeftuneScale {
        /// Each sequence's own.
        PerSequence = "per_sequence",
        /// That of the batch's longest row.
        PerBatch = "per_batch",
    }
    not_yet []
}

/// PEFT's initialisers that are still to come.
const INIT_NOT_YET: [&str; 5] = ["corda", "eva", "loftq", "lora_ga", "mica"];

impl Field for Init {
    fn expected() -> String {
        "true, false, gaussian, orthogonal, pissa, pissa_niter_N (N iterations) or olora".into()
    }
    fn choices() -> Vec<&'static str> {
        vec!["true", "false", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora"]
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Bool(true) => Ok(Init::Kaiming),
            Value::Bool(false) => Ok(Init::Random),
            Value::Str(s) => {
                let name = s.trim().to_ascii_lowercase();
                match Init::from_name(&name) {
                    Some(init) => Ok(init),
                    None if INIT_NOT_YET.contains(&name.as_str()) => Err(Problem::Refused(format!(
                        "loratune does not have it yet; it has {}",
                        Self::expected()
                    ))),
                    None => Err(Problem::Type),
                }
            }
            _ => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        match self {
            Init::Kaiming => Value::Bool(true),
            Init::Random => Value::Bool(false),
            other => Value::Str(other.name()),
        }
    }
}

/// What named templates do with thoughts (`enable_thinking`); `None` is LLaMA-Factory's null.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thinking(pub Option<bool>);

impl Field for Thinking {
    fn expected() -> String {
        "true, false or `none`".into()
    }
    fn choices() -> Vec<&'static str> {
        vec!["true", "false", "none"]
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        match value {
            Value::Bool(on) => Ok(Thinking(Some(*on))),
            Value::Str(s) => match s.trim().to_ascii_lowercase().as_str() {
                "true" => Ok(Thinking(Some(true))),
                "false" => Ok(Thinking(Some(false))),
                "none" => Ok(Thinking(None)),
                _ => Err(Problem::Type),
            },
            _ => Err(Problem::Type),
        }
    }
    fn to_value(&self) -> Value {
        self.0.map_or_else(|| Value::Str("none".into()), Value::Bool)
    }
}

impl Field for Bias {
    const TEXT: bool = true;
    fn expected() -> String {
        one_of(&Bias::ALL.map(Bias::name))
    }
    fn choices() -> Vec<&'static str> {
        Bias::ALL.map(Bias::name).to_vec()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        let Value::Str(name) = value else { return Err(Problem::Type) };
        Bias::ALL.into_iter().find(|b| b.name() == name.trim()).ok_or(Problem::Type)
    }
    fn to_value(&self) -> Value {
        Value::Str(self.name().into())
    }
}

impl Field for ScheduleKind {
    const TEXT: bool = true;
    fn expected() -> String {
        one_of(&ScheduleKind::ALL.map(|(_, name)| name))
    }
    fn choices() -> Vec<&'static str> {
        ScheduleKind::ALL.map(|(_, name)| name).to_vec()
    }
    fn parse(value: &Value) -> Result<Self, Problem> {
        let Value::Str(name) = value else { return Err(Problem::Type) };
        ScheduleKind::from_name(name.trim()).ok_or(Problem::Type)
    }
    fn to_value(&self) -> Value {
        Value::Str(self.name().into())
    }
}
