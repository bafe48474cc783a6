//! One file per command, and what several of them need.

pub mod bench;
mod card;
pub mod chat;
pub mod combine;
pub mod convert;
pub mod estimate;
pub mod eval;
pub mod export;
mod folder;
pub mod generate;
pub mod inspect;
pub mod merge;
mod norms;
mod prompts;
pub mod push;
pub mod quickstart;
pub mod train;
pub mod unmerge;
mod verify;
