//! Where a decoder's frozen weights live.

use std::collections::HashMap;
use std::sync::Arc;

use loratune_engine::{DType, Device, FrozenWeight, Weight};

use super::{Decoder, Part};
use crate::error::Result;

/// Moves weights one at a time; those that are shared stay shared.
struct Mover {
    device: Device,
    /// By the address of the old one, which is kept until all are moved so that no address comes twice.
    moved: HashMap<usize, [Arc<FrozenWeight>; 2]>,
}

impl Mover {
    fn take(&mut self, weight: &mut Weight) -> Result<()> {
        let Weight::Frozen(old) = weight else { return Ok(()) };
        if old.device() == self.device {
            return Ok(());
        }
        let address = Arc::as_ptr(old).addr();
        if let Some([_, new]) = self.moved.get(&address) {
            *old = new.clone();
            return Ok(());
        }
        let new = Arc::new(old.to_device(self.device)?);
        let shared = Arc::strong_count(old) > 1;
        let before = std::mem::replace(old, new.clone());
        if shared {
            self.moved.insert(address, [before, new]);
        }
        Ok(())
    }
}

impl Decoder {
    /// What of this decoder a card can't train or evaluate yet, in words; the engine refuses it when it comes to it.
    pub fn card_lacks(&self) -> Option<&'static str> {
        let tables = [(&self.embedding, "the embedding"), (&self.head, "the head")];
        let adapted = tables.iter().find(|(table, _)| table.adapter.is_some() || table.rows.is_some());
        match adapted {
            Some((_, "the head")) => Some("adapters and trained rows of the head"),
            Some(_) => Some("adapters and trained rows of the embedding"),
            None if self.dtype == DType::F32 && self.storage() == DType::BF16 => {
                Some("float32 activations (bf16: false) beside bfloat16 weights")
            }
            None => None,
        }
    }

    /// Moves the frozen weights to a device. Trained ones are the [`Params`](loratune_engine::Params)' own.
    ///
    /// # Errors
    /// If the device can't be used or has no room for them.
    pub fn to_device(&mut self, device: Device) -> Result<()> {
        let mut mover = Mover { device, moved: HashMap::new() };
        let mut matrix = |m: &mut super::Matrix| {
            mover.take(&mut m.weight)?;
            m.bias.as_mut().map_or(Ok(()), |bias| mover.take(bias))
        };
        matrix(&mut self.embedding)?;
        matrix(&mut self.head)?;
        for block in &mut self.blocks {
            block.matrices_mut().try_for_each(&mut matrix)?;
        }
        for block in &mut self.blocks {
            block.each(&mut |part| match part {
                Part::Matrix(_) => Ok(()),
                Part::Norm(norm) => mover.take(&mut norm.weight),
            })?;
        }
        mover.take(&mut self.norm.weight)
    }
}
