//! `stage: pt`: documents that are cut into blocks.

use loratune_data::pretrain::{Pretrain, blocks};
use loratune_data::{Dataset, Examples, Text};
use loratune_model::files::ModelFiles;
use loratune_tokenizer::TokenizerBundle;

use crate::config::{BosOf, RunConfig, Stage};
use crate::error::{Error, Result};

impl RunConfig {
    /// Whether documents are put together and cut into blocks.
    pub fn cuts_blocks(&self) -> bool {
        self.stage == Stage::Pt && self.packing
    }
}

/// The special tokens of a document, with this stage.
pub(crate) fn documents(config: &RunConfig) -> Option<Pretrain> {
    let bos = !config.packing || config.bos_of == BosOf::Document;
    (config.stage == Stage::Pt).then_some(Pretrain { eos: config.add_eos_token, bos })
}

/// Documents as blocks of cutoff_len, or of the model's context if that is less.
///
/// # Errors
/// If there are fewer tokens than a block has.
pub(crate) fn cut(
    config: &RunConfig,
    data: Dataset,
    files: &ModelFiles,
    tokenizer: &TokenizerBundle,
) -> Result<Dataset> {
    let (asked, context) = (config.cutoff_len as usize, files.config.spec.max_positions);
    let length = asked.min(context);
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos() && config.bos_of == BosOf::Block).map(|b| b.id);
    let Dataset { train, eval, mut report, .. } = data;
    let mut cut = |documents: Examples, what: &str| -> Result<Examples> {
        if documents.is_empty() {
            return Ok(documents);
        }
        let tokens: usize = (0..documents.len()).map(|i| documents.length(i)).sum();
        let cut = blocks(documents.iter(), length, bos);
        if cut.examples.is_empty() {
            return Err(Error::Misfit(format!(
                "the {what} data has {tokens} tokens, which fill no block of {length} (cutoff_len): set cutoff_len to \
                 {tokens} or less"
            )));
        }
        report.warnings.push(format!(
            "{what}: {} blocks of {length} tokens; {} tokens at the end fill none and are left out",
            cut.examples.len(),
            cut.left_over
        ));
        Ok(cut.examples.into_iter().collect())
    };
    let (train, eval) = (cut(train, "training")?, cut(eval, "evaluation")?);
    if length < asked {
        let note = format!(
            "cutoff_len is {asked}, but the model's context is {context}: blocks have {context} tokens"
        );
        report.warnings.push(note);
    }
    Ok(Dataset { train, eval, eval_sets: Vec::new(), report })
}
