//! Scopes: what a run launched, and how long each of it took.

use std::time::Instant;

/// One launch of a kernel, or several that could not be told apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Scope {
    /// The step of the plan that it belongs to, by its index; nothing where it computes several.
    pub step: Option<usize>,
    /// The kernel with its specialisation, as the backend names it.
    pub kernel: String,
    /// Seconds from the start of the run to its own.
    pub start: f64,
    /// Seconds that it took.
    pub seconds: f64,
}

/// How a run is cut into scopes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Grain {
    /// What is launched as one is one scope: a graph, or a kernel that computes many steps, is timed as the whole that it is
    /// without a trace.
    Launch,
    /// Every kernel is launched and timed by itself. Where a backend otherwise overlaps kernels, or has one for many steps,
    /// that is another way to run the same steps, with the same bits.
    Kernel,
}

/// Seconds between two readings of the host's clock with nothing in between: the smallest of several, as others run too.
pub fn host_clock() -> f64 {
    let reading = |_| {
        let started = Instant::now();
        started.elapsed()
    };
    (0..16).map(reading).min().unwrap_or_default().as_secs_f64()
}

/// The scopes of one run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace {
    /// In the order of their starts.
    pub scopes: Vec<Scope>,
    /// Seconds from the start of the run until its last result was there, by the clock of whoever computes: on a device from
    /// before its first copy until its last kernel has ended, without the host's part.
    pub seconds: f64,
    /// Seconds between two readings of that clock with nothing in between. About as much is part of every scope's time.
    pub clock: f64,
}

impl Trace {
    /// Seconds of all scopes together.
    pub fn in_scopes(&self) -> f64 {
        self.scopes.iter().map(|scope| scope.seconds).sum()
    }
}
