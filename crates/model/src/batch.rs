//! What a forward pass reads.

use std::sync::Arc;

use loratune_engine::ops::{Documents, IGNORE};

/// Documents laid one after another without padding.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Token ids of all documents, `[tokens]`.
    pub ids: Arc<[u32]>,
    pub documents: Documents,
    /// Position of each token in its sequence.
    pub positions: Arc<[u32]>,
    /// For each token the id that should follow it, or [`IGNORE`].
    pub targets: Vec<i32>,
    /// Tokens of the longest row, a pack of documents being one row: the length that padding would pad to.
    pub longest_row: usize,
}

impl Batch {
    /// From documents of ids and labels as Hugging Face has them: `labels[i]` belongs to `ids[i]` and is what the
    /// token before it should predict; -100 is not trained. A document's first label has nothing before it.
    pub fn from_labelled<'a>(documents: impl IntoIterator<Item = (&'a [u32], &'a [i32])>) -> Batch {
        let (mut ids, mut targets, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
        for (doc, labels) in documents {
            ids.extend_from_slice(doc);
            targets.extend(labels.iter().skip(1).copied().take(doc.len().saturating_sub(1)));
            targets.resize(ids.len(), IGNORE);
            lengths.push(doc.len());
        }
        let longest_row = lengths.iter().copied().max().unwrap_or(0);
        let documents = Documents::from_lengths(&lengths);
        let positions = documents.positions().into();
        Batch { ids: ids.into(), documents, positions, targets, longest_row }
    }

    /// From documents without labels.
    pub fn from_ids<'a>(documents: impl IntoIterator<Item = &'a [u32]>) -> Batch {
        Batch::from_labelled(documents.into_iter().map(|d| (d, &[][..])))
    }

    /// Tokens that are trained on.
    pub fn trained_tokens(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORE).count()
    }

    pub fn tokens(&self) -> usize {
        self.ids.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_the_labels_one_to_the_left_and_never_cross_documents() {
        let batch = Batch::from_labelled([(&[5, 6, 7][..], &[-100, 6, 7][..]), (&[8][..], &[8][..])]);
        assert_eq!(batch.targets, [6, 7, -100, -100]);
        assert_eq!(&*batch.positions, [0, 1, 2, 0]);
        assert_eq!(batch.trained_tokens(), 2);
    }
}
