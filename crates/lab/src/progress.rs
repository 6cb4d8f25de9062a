//! What a long measurement tells of itself, and how it is ended early.

use crate::LabError;

/// Is told what is being measured, and asked whether to go on. Looked at between repetitions, never within one.
pub trait Progress {
    /// What is being done now.
    fn say(&self, what: &str);

    /// So many of so many parts are done.
    fn step(&self, done: usize, of: usize) {
        let _ = (done, of);
    }

    /// Whether the measurement is to end here.
    fn cancelled(&self) -> bool {
        false
    }

    /// Demands that the measurement goes on.
    ///
    /// # Errors
    /// [`LabError::Cancelled`] where it is to end.
    fn go_on(&self) -> Result<(), LabError> {
        if self.cancelled() { Err(LabError::Cancelled) } else { Ok(()) }
    }
}

/// Says nothing, and is never cancelled.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quiet;

impl Progress for Quiet {
    fn say(&self, _what: &str) {}
}
