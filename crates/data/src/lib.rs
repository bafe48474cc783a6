//! Datasets for loratune: from files to token ids with a loss mask.
//!
//! [`load_examples`] reads JSON and JSONL ([`read`]), recognises each row's format ([`formats`]), renders conversations
//! by a chat template ([`template`]), finds what is trained in them ([`mask`]), tokenises ([`encode`]), truncates
//! ([`truncate`]) and reports what came out ([`report`]). [`Plan`] gives the rows and batches of every epoch. Nothing here knows of tensors
//! or models.

mod cache;
pub mod encode;
pub mod error;
pub mod examples;
pub mod find;
pub mod formats;
pub mod info;
pub mod load;
pub mod mask;
pub mod mix;
pub mod order;
pub mod pack;
mod page;
pub mod pretrain;
pub mod read;
pub mod record;
pub mod report;
pub mod rng;
pub mod saved;
mod set;
pub mod split;
pub mod stream;
pub mod template;
pub mod text;
mod tokenise;
mod tokenizer;
pub mod truncate;

pub use cache::CacheOptions;
pub use encode::{EncodeOptions, Example};
pub use error::{DataError, Result, RowRef};
pub use examples::Examples;
pub use find::{DatasetHub, Finder, HubDataset};
pub use formats::{FORMATS, format_table};
pub use load::{Dataset, DatasetSpec, encode_prompt, load_examples, render_chat};
pub use mix::Mix;
pub use order::{EpochOrder, Plan};
pub use pack::pack;
pub use read::DatasetSource;
pub use record::{Conversation, Message, Record};
pub use report::DatasetReport;
pub use stream::ExampleStream;
pub use template::{
    ChatTemplate, JinjaTemplate, NamedTemplate, OllamaTemplate, TemplateChoice, TurnTemplate,
    ollama_template, template_names, template_table,
};
pub use text::{Encoding, Special, Text};
pub use truncate::Truncation;
