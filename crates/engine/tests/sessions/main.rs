//! The engine over sessions that do things their own way, as those of devices do.

mod ahead;
mod remote_logits;
mod watched;
