//! What somebody wrote of a new adapter, against the model: every name must mean something. (Adapters from files may name
//! modules that a model lacks; PEFT allows it.)

use super::AdapterSpec;
use crate::error::Result;
use crate::spec::DecoderSpec;

impl AdapterSpec {
    /// # Errors
    /// The first name, pattern or layer that matches nothing in the model.
    pub fn check(&self, model: &DecoderSpec) -> Result<()> {
        let matrices = model.matrices();
        self.check_targets(&matrices)
    }
}
