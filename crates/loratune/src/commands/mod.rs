//! One file per command.

pub mod chat;
pub mod eval;
pub mod generate;
pub mod inspect;
pub mod merge;
pub mod quickstart;
pub mod train;
