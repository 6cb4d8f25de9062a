//! Long measurements as the commands run them: with a bar on standard error, and ended cleanly by Ctrl-C.

use std::time::Duration;

use indicatif::ProgressBar;
use mantissa_lab::machine::Build;
use mantissa_lab::progress::Progress;

use crate::context::Context;
use crate::interrupt::Guard;
use crate::output;

/// This program, as results name it.
pub fn build() -> Build {
    Build { version: env!("CARGO_PKG_VERSION").to_owned(), commit: env!("BUILD_COMMIT").to_owned() }
}

/// A bar that is drawn while it lives, and Ctrl-C taken over as long.
pub struct Measuring {
    bar: ProgressBar,
    guard: Guard,
}

impl Measuring {
    /// Takes over Ctrl-C.
    pub fn start(context: &Context) -> Measuring {
        let bar = output::measuring_bar();
        bar.enable_steady_tick(Duration::from_millis(200));
        Measuring { bar, guard: context.interrupt.guard() }
    }

    /// Takes the bar away before results are printed.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

impl Progress for Measuring {
    fn say(&self, what: &str) {
        self.bar.set_message(what.to_owned());
    }

    fn step(&self, done: usize, of: usize) {
        self.bar.set_length(of as u64);
        self.bar.set_position(done as u64);
    }

    fn cancelled(&self) -> bool {
        self.guard.requested()
    }
}

impl Drop for Measuring {
    fn drop(&mut self) {
        self.finish();
    }
}
