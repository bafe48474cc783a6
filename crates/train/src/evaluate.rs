//! Evaluation: loss and token accuracy over examples.

use loratune_engine::{Mode, Params, Tape};
use loratune_model::{Batch, Decoder};

use crate::error::{Error, Result};
use crate::progress::Evaluation;

/// Every trained token weighs the same, however the rows are batched. (Hugging Face's `Trainer` averages over batches.)
///
/// # Errors
/// If no token is trained, so that there is nothing to average; or whatever the model says.
pub fn evaluate(
    decoder: &Decoder,
    params: &Params,
    batches: impl Iterator<Item = Batch>,
) -> Result<Evaluation> {
    let (mut loss, mut tokens, mut correct) = (0.0, 0usize, 0usize);
    for batch in batches {
        let mut tape = Tape::new(params, Mode::Infer);
        let out = decoder.loss(&mut tape, &batch)?;
        loss += out.loss.value().item();
        tokens += out.tokens;
        correct += out.correct;
    }
    if tokens == 0 {
        return Err(Error::Invalid(
            "there is nothing to evaluate: the evaluation data has no trained token".into(),
        ));
    }
    Ok(Evaluation {
        loss: loss / tokens as f64,
        accuracy: correct as f64 / tokens as f64,
        tokens,
        generated: None,
    })
}
