//! A run: configuration, data, the loop, checkpoints, evaluation, reports.

pub mod checkpoint;
pub mod config;
pub mod data;
pub mod error;
pub mod estimate;
pub mod evaluate;
pub mod feed;
mod freeze;
pub mod located;
pub mod metrics;
pub mod model;
pub mod optimizer;
pub mod output;
pub mod predict;
mod pretrain;
pub mod progress;
pub mod report;
pub mod run;
pub mod schedule;
pub mod trainer;
pub mod vocabulary;

pub use error::{Error, Result};
