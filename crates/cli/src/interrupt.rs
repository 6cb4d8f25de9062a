//! Ctrl-C: while something that can end cleanly is running, the first one asks it to; any other ends the process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::{Context as _, Result};

/// The exit code of a process that Ctrl-C ended, as shells have it: 128 + SIGINT.
pub const EXIT_CODE: u8 = 130;

/// Ctrl-C of this process.
#[derive(Clone, Debug, Default)]
pub struct Interrupt {
    state: Arc<State>,
}

#[derive(Debug, Default)]
struct State {
    guards: AtomicUsize,
    requested: AtomicBool,
}

impl Interrupt {
    /// Takes over Ctrl-C; once per process.
    pub fn install() -> Result<Interrupt> {
        let interrupt = Interrupt::default();
        let state = Arc::clone(&interrupt.state);
        ctrlc::set_handler(move || {
            let first = !state.requested.swap(true, Ordering::SeqCst);
            if !first || state.guards.load(Ordering::SeqCst) == 0 {
                std::process::exit(EXIT_CODE.into());
            }
        })
        .context("cannot take over Ctrl-C")?;
        Ok(interrupt)
    }

    /// From here until the guard is dropped, the first Ctrl-C only sets a flag.
    pub fn guard(&self) -> Guard {
        self.state.guards.fetch_add(1, Ordering::SeqCst);
        self.state.requested.store(false, Ordering::SeqCst);
        Guard { state: Arc::clone(&self.state) }
    }
}

/// While it lives, work can be ended cleanly.
#[derive(Debug)]
pub struct Guard {
    state: Arc<State>,
}

impl Guard {
    /// Whether Ctrl-C was pressed since the guard was made.
    pub fn requested(&self) -> bool {
        self.state.requested.load(Ordering::SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.state.guards.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The error of a command that Ctrl-C ended after it had cleaned up; reported by the exit code alone.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;
