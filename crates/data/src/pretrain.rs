//! Plain text for `stage: pt`: documents one after the other, cut into blocks of one length.
//!
//! Nothing marks where one document ends and the next begins but the end token, and a block's tokens see each other across that
//! border: so do LLaMA-Factory (`stage pt` with packing) and AutoTrain (its `default` trainer) cut theirs.

use serde::{Deserialize, Serialize};

use crate::encode::Example;

/// The special tokens of a document.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pretrain {
    /// The tokenizer's EOS after it, unless it ends with one.
    pub eos: bool,
    /// The tokenizer's BOS before it, if the tokenizer has BOS put before texts.
    pub bos: bool,
}

/// What [`blocks`] makes of documents.
#[derive(Debug)]
pub struct Blocks {
    /// Examples of the same length, every token trained; each stands for the row in which it begins.
    pub examples: Vec<Example>,
    /// Tokens at the end that fill no block, which are left out.
    pub left_over: usize,
}

/// Cuts documents into blocks of `length` tokens. With `bos` the first token of every block is replaced by it, as LLaMA-Factory
/// does where the tokenizer has BOS put before texts.
pub fn blocks(documents: impl Iterator<Item = Example>, length: usize, bos: Option<u32>) -> Blocks {
    let (mut examples, mut ids, mut source) = (Vec::new(), Vec::with_capacity(length), None);
    for document in documents {
        for id in document.input_ids {
            source.get_or_insert_with(|| document.source.clone());
            ids.push(id);
            if ids.len() == length
                && let Some(source) = source.take()
            {
                if let (Some(bos), Some(first)) = (bos, ids.first_mut()) {
                    *first = bos;
                }
                let labels = ids.iter().map(|&id| id as i32).collect();
                examples.push(Example { input_ids: std::mem::take(&mut ids), labels, source });
            }
        }
    }
    Blocks { examples, left_over: ids.len() }
}
