//! One file per command.

pub mod eval;
pub mod generate;
pub mod train;
