//! A run: configuration, data, the loop, checkpoints, evaluation, reports.

pub mod config;
pub mod report;
pub mod schedule;
