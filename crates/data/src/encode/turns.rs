//! Encoding by a named template, with LLaMA-Factory's labels.

use std::ops::Range;

use super::{Encoded, Encoder, IGNORE, targets};
use crate::error::{DataError, Result, RowRef};
use crate::record::Conversation;
use crate::template::{TurnEncoding, TurnTemplate};
use crate::truncate::{Truncation, keep};

impl Encoder<'_> {
    pub(super) fn turns(
        &self,
        template: &TurnTemplate,
        conversation: &Conversation,
        row: &RowRef,
    ) -> Result<Encoded> {
        let options = self.options;
        let encoding = template
            .encode(self.text, conversation, &options.template_variables, options.mask_history)
            .map_err(|source| DataError::TemplateRow { row: row.clone(), source })?;
        if !encoding.pairs.iter().any(|p| p.message >= conversation.first_response) {
            return Err(DataError::NoResponse { row: row.clone() });
        }
        let labels = self.labels(template, conversation, &encoding);
        let kept = self.kept(template, &encoding);
        let mut encoded = Encoded {
            input_ids: keep(&encoding.ids, &kept),
            labels: keep(&labels, &kept),
            offsets: keep(&encoding.offsets, &kept),
            full_len: encoding.ids.len(),
            prompt_len: targets(&labels).position(|t| t).map_or(labels.len(), |i| i + 1),
            ends_trained: self.is_closed(template, &encoding),
            text: encoding.text,
            unusable: None,
        };
        if let Some(eos) = template.eos().filter(|_| template.named().efficient_eos) {
            let end = encoded.text.len();
            encoded.input_ids.push(eos.id);
            encoded.labels.push(eos.id as i32);
            encoded.offsets.push((end, end));
            encoded.full_len += 1;
        }
        Ok(encoded)
    }

    /// Labels before truncation. Where the template leaves the EOS between turns out (`efficient_eos`), the first token of
    /// a prompt has the label EOS: the response before it is followed by EOS when it is generated. With `mask_history`
    /// LLaMA-Factory counts turns from the end, so that it is the prompts before the last one that have that label.
    fn labels(
        &self,
        template: &TurnTemplate,
        conversation: &Conversation,
        encoding: &TurnEncoding,
    ) -> Vec<i32> {
        let ids = &encoding.ids;
        let (pairs, history) = (&encoding.pairs, self.options.mask_history);
        let mut labels = vec![IGNORE; ids.len()];
        let mut train = |range: Range<usize>| range.for_each(|i| labels[i] = ids[i] as i32);
        let is_trained = |n: usize| pairs.get(n).is_some_and(|p| p.message >= conversation.first_response);
        let last = pairs.len().saturating_sub(1);
        for (n, pair) in pairs.iter().enumerate() {
            if self.options.train_on_prompt {
                train(pair.source.clone());
                train(pair.target.clone());
            } else if is_trained(n) && (!history || n == last) {
                train(pair.target.clone());
            }
        }
        if let Some(eos) = template.eos().filter(|_| template.named().efficient_eos) {
            for (n, pair) in pairs.iter().enumerate().filter(|(_, p)| !p.source.is_empty()) {
                if if history { n < last } else { n > 0 && is_trained(n - 1) } {
                    labels[pair.source.start] = eos.id as i32;
                }
            }
        }
        labels
    }

    /// The token ranges that `cutoff_len` leaves.
    fn kept(&self, template: &TurnTemplate, encoding: &TurnEncoding) -> Vec<Range<usize>> {
        let Some(cutoff) = self.options.cutoff_len else {
            return std::iter::once(0..encoding.ids.len()).collect();
        };
        // The EOS at the end has its place from the start; in LLaMA-Factory 0.7 it came on top.
        let reserved = match self.options.truncation {
            Truncation::Balanced => usize::from(template.named().efficient_eos),
            Truncation::Proportional(_) => 0,
        };
        let pairs = encoding.pairs.iter().map(|p| (p.source.clone(), p.target.clone()));
        let budget = cutoff.saturating_sub(reserved);
        self.options.truncation.keep_pairs(pairs, budget, self.options.mask_history)
    }

    /// Whether the last response has an end token.
    fn is_closed(&self, template: &TurnTemplate, encoding: &TurnEncoding) -> bool {
        let last = encoding.pairs.last().and_then(|p| encoding.ids.get(p.target.clone()));
        let is_end = |id: &u32| template.stop_ids().contains(id) || self.is_end(*id);
        template.named().efficient_eos || last.unwrap_or_default().iter().any(is_end)
    }
}
