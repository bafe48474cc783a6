//! Datasets for loratune: from files to token ids with a loss mask.
//!
//! [`load_examples`] reads JSON and JSONL ([`read`]), recognises each row's format ([`formats`]), renders conversations
//! by a chat template ([`template`]), finds what is trained in them ([`mask`]), tokenises ([`encode`]), truncates
//! ([`truncate`]) and reports what came out ([`report`]). [`Plan`] gives the rows and batches of every epoch. Nothing here knows of tensors
//! or models.

pub mod encode;
pub mod error;
pub mod formats;
pub mod load;
pub mod mask;
pub mod order;
pub mod pack;
mod page;
pub mod read;
pub mod record;
pub mod report;
pub mod rng;
pub mod split;
pub mod template;
pub mod text;
mod tokenizer;
pub mod truncate;

pub use encode::{EncodeOptions, Example};
pub use error::{DataError, Result, RowRef};
pub use formats::{FORMATS, format_table};
pub use load::{Dataset, DatasetSpec, encode_prompt, load_examples, render_chat};
pub use order::{EpochOrder, Plan};
pub use pack::pack;
pub use read::DatasetSource;
pub use record::{Conversation, Message, Record};
pub use report::DatasetReport;
pub use template::{
    ChatTemplate, JinjaTemplate, NamedTemplate, OllamaTemplate, TemplateChoice, TurnTemplate,
    ollama_template, template_names, template_table,
};
pub use text::{Encoding, Special, Text};
pub use truncate::Truncation;
