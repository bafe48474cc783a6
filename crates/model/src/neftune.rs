//! NEFTune: noise on the embeddings in training (Jain et al., arXiv 2310.05914).

use crate::batch::Batch;

/// Noise uniform in ±α/√(L·d) on every element of the embeddings, d being the hidden size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neftune {
    /// α; the paper uses 5, 10 and 15.
    pub alpha: f64,
    pub length: NoiseLength,
}

/// Which length L is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoiseLength {
    /// Each sequence's own, also inside packs: the paper's definition and its authors' experiments.
    Sequence,
    /// The longest row of the batch, to which the others would be padded: Hugging Face's hook.
    Batch,
}

impl Neftune {
    /// The largest noise on each token, `[tokens]`.
    ///
    /// With an embedding scale (Gemma's √d), a sequence's noise is scaled like the embedding it is added to; Hugging
    /// Face's hook adds it to the scaled embedding as it is.
    pub fn magnitudes(&self, batch: &Batch, hidden: usize, embedding_scale: f64) -> Vec<f64> {
        let magnitude = |length: usize| self.alpha / ((length * hidden) as f64).sqrt();
        match self.length {
            NoiseLength::Batch => vec![magnitude(batch.longest_row.max(1)); batch.tokens()],
            NoiseLength::Sequence => batch
                .documents
                .ranges()
                .flat_map(|d| std::iter::repeat_n(embedding_scale * magnitude(d.len().max(1)), d.len()))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> Batch {
        // One row of 4 tokens, and a pack of 2 and 7.
        let mut batch = Batch::from_ids([&[1; 4][..], &[2; 2][..], &[3; 7][..]]);
        batch.longest_row = 9;
        batch
    }

    #[test]
    fn a_sequence_has_noise_by_its_own_length_also_in_a_pack() {
        let noise = Neftune { alpha: 5.0, length: NoiseLength::Sequence };
        let magnitudes = noise.magnitudes(&batch(), 16, 1.0);
        let expected: Vec<f64> = [4usize, 2, 7]
            .iter()
            .flat_map(|&l| std::iter::repeat_n(5.0 / ((l * 16) as f64).sqrt(), l))
            .collect();
        assert_eq!(magnitudes, expected);
    }

    #[test]
    fn a_batch_has_noise_by_its_longest_row() {
        let noise = Neftune { alpha: 5.0, length: NoiseLength::Batch };
        assert_eq!(noise.magnitudes(&batch(), 16, 1.0), vec![5.0 / 12.0; 13]);
    }

    #[test]
    fn an_embedding_scale_scales_the_sequences_noise_and_not_hugging_faces() {
        let (own, hook) = [NoiseLength::Sequence, NoiseLength::Batch]
            .map(|length| Neftune { alpha: 1.0, length }.magnitudes(&batch(), 16, 4.0))
            .into();
        assert_eq!(own[0], 4.0 / 8.0);
        assert_eq!(hook[0], 1.0 / 12.0);
    }
}
