//! The ops. Each checks its shapes, computes, and leaves its backward on the tape; its doc comment derives the backward
//! and says what is saved.
//!
//! Batches are laid out without padding: the tokens of all documents one after another, `[tokens, features]`, with
//! the documents' boundaries beside them (see [`Documents`]).

mod adafactor;
mod adamw;
mod add;
mod attention;
mod cast;
mod eight_bit;
pub(crate) mod elementwise;
mod embedding;
mod gated;
mod linear;
mod lion;
mod loss;
mod noise;
mod norm;
mod rope;
mod rows;
mod sgd;
mod softcap;
mod softmax;
mod split;

pub use adafactor::{Adafactor, SecondMoment, adafactor_step};
pub use adamw::{AdamW, AdamWSteps, adamw_step};
pub use add::{add, add_scaled, add_unread};
pub use attention::{AttentionConfig, Documents, KvCache, attention, attention_cached};
pub use cast::cast;
pub use eight_bit::{EightBit, adamw_8bit_step, lion_8bit_step};
pub(crate) use elementwise::on as on_card;
pub use embedding::embedding;
pub(crate) use gated::cuda::activation_name;
pub use gated::{Activation, gated};
pub(crate) use linear::column_sums;
pub use linear::{
    Dora, Dropout, Layer, Lora, RowNorm, column_norms, linear, linear_unread, linears, row_norms,
};
pub use lion::{Lion, lion_step};
pub use loss::{IGNORE, Logits, LossOutput, Targets, head_outputs, linear_cross_entropy};
pub use noise::uniform_noise;
pub use norm::{RmsNorm, rms_norm};
pub use rope::{RopeTable, rope};
pub use rows::{TableAdapter, TrainedRows};
pub use sgd::{Sgd, sgd_step};
pub use split::split_columns;

/// The sources of all kernels.
pub(crate) static KERNELS: &[&crate::cuda::Source] = &[
    &crate::cuda::SUMS,
    &crate::cuda::THIN,
    &elementwise::SOURCE,
    &adamw::cuda::SOURCE,
    &attention::cuda::PLAIN,
    &attention::cuda::FLASH,
    &attention::hopper::SOURCE,
    &embedding::cuda::SOURCE,
    &gated::cuda::SOURCE,
    &linear::cuda::SOURCE,
    &loss::cuda::SOURCE,
    &norm::cuda::SOURCE,
    &rope::cuda::SOURCE,
];
