//! Models and datasets from the Hugging Face hub, and results to it.
//!
//! A [`Hub`] finds files by the name of their repository, in the cache that Hugging Face's own libraries share or by
//! downloading them, and pushes folders. It knows repositories and files, not what is in them.

mod cache;
mod dataset;
mod digest;
mod download;
mod error;
mod http;
mod hub;
mod listing;
mod name;
mod progress;
mod push;
mod select;
mod settings;
mod token;
mod url;

pub use dataset::{DatasetFiles, DatasetPart};
pub use error::{HubError, Result};
pub use hub::{Fetched, Hub};
pub use name::{Kind, MAIN, RepoName};
pub use progress::{Progress, Silent};
pub use push::{Push, Pushed, Upload, folder, is_pushed};
pub use select::Part;
pub use settings::{ENDPOINT, Settings};
pub use token::Token;
