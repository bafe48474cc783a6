//! What a transfer tells while it goes on.

/// Watches transfers; called from several threads.
pub trait Progress: Send + Sync {
    /// A transfer begins: what it is of, how many files are missing and their bytes.
    fn begin(&self, _what: &str, _files: usize, _bytes: u64) {}
    /// So many bytes more have gone over (or fewer, when what had arrived was of no use).
    fn advance(&self, _bytes: i64) {}
    /// The transfer is over.
    fn end(&self) {}
    /// Something that whoever waits should know.
    fn note(&self, _text: &str) {}
    /// Asked now and then; `true` ends the transfer, and what has arrived stays for the next time.
    fn stop_requested(&self) -> bool {
        false
    }
}

/// Says nothing.
#[derive(Debug, Clone, Copy)]
pub struct Silent;

impl Progress for Silent {}
