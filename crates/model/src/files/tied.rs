//! A head and an embedding that the configuration says are one matrix, and the files that have it once, twice, or under
//! the head's name alone.

use std::sync::Arc;

use super::safetensors::missing;
use super::{RawTensor, Result, TensorInfo, TensorSource};
use crate::spec::{EMBEDDING, HEAD};

fn names() -> [String; 2] {
    [EMBEDDING, HEAD].map(|path| format!("{path}.weight"))
}

/// Whether the weights are those of a model whose head is its embedding, as its configuration says. A head of its own that
/// differs (of a merged adapter, say, which trained the two apart) is not left out for that: transformers does not tie the
/// two then.
pub(super) fn is_tied(tensors: &dyn TensorSource) -> Result<bool> {
    let names = names();
    if names.iter().any(|name| tensors.info(name).is_none()) {
        return Ok(true);
    }
    let [embedding, head] = [tensors.read(&names[0])?, tensors.read(&names[1])?];
    Ok(match embedding.dtype == head.dtype {
        true => embedding.bytes == head.bytes,
        false => embedding.to_f32() == head.to_f32(),
    })
}

/// The tensors of a tied model, with the embedding under its own name: of two names for one matrix, some tools save the
/// head's.
pub(super) fn by_the_embeddings_name(tensors: Arc<dyn TensorSource>) -> Arc<dyn TensorSource> {
    let [embedding, head] = names();
    match (tensors.info(&embedding), tensors.info(&head)) {
        (None, Some(_)) => Arc::new(HeadOnly { tensors, embedding, head }),
        _ => tensors,
    }
}

/// Tensors of which the head is called the embedding.
struct HeadOnly {
    tensors: Arc<dyn TensorSource>,
    embedding: String,
    head: String,
}

impl HeadOnly {
    fn stored<'a>(&'a self, name: &'a str) -> &'a str {
        if name == self.embedding { &self.head } else { name }
    }
}

impl TensorSource for HeadOnly {
    fn names(&self) -> Vec<&str> {
        let mut names = self.tensors.names();
        names.iter_mut().filter(|name| **name == self.head).for_each(|name| *name = &self.embedding);
        names.sort_unstable();
        names
    }

    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.info(self.stored(name)).filter(|_| name != self.head)
    }

    fn read(&self, name: &str) -> Result<RawTensor<'_>> {
        if name == self.head {
            let file = self.tensors.info(name).map(|info| info.file).unwrap_or_default();
            return Err(missing(&file, name, self.names().into_iter()));
        }
        self.tensors.read(self.stored(name))
    }
}
