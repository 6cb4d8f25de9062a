//! Scopes of a run: moments that the device notes around what it is asked for.
//!
//! While the host asks, the stream is held back. The device then goes from one launch to the next without waiting for the
//! host, so that scopes are its own times.

use std::cell::RefCell;
use std::ffi::c_void;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use mantissa_ops::backend::RunError;
use mantissa_ops::batch::Batch;
use mantissa_ops::{Grain, Scope, Trace};

use crate::ahead::failure;
use crate::batch::Rows;
use crate::error::CudaError;
use crate::families::elementwise;
use crate::launch::Launched;
use crate::session::{CudaSession, Failure};
use crate::steps::{LaunchTarget, StepError};
use crate::stream::{Event, Stream};

/// Launches that are asked for while the stream is held: with the moments around them no more than its queue has room for.
const HELD: usize = 256;
/// The longest time that it is held. The driver may wait for the device, as when it loads a kernel that is launched for the
/// first time; then nobody else would let the stream go.
const PATIENCE: Duration = Duration::from_millis(50);
/// Scopes of a kernel that has nothing to do, in front of each run; the middle one of their times is the clock's own.
const EMPTY_SCOPES: usize = 5;

/// Where a stream waits for the host.
#[derive(Debug, Default)]
struct Gate {
    is_open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    /// Holds back what a stream is asked for from now on.
    fn close(stream: &Stream) -> Result<Arc<Gate>, CudaError> {
        let gate = Arc::new(Gate::default());
        let waiting = Arc::into_raw(Arc::clone(&gate)).cast_mut().cast::<c_void>();
        // SAFETY: the pointer is that of a counted reference, which `wait_at_gate` takes over. Where it is never called, as
        // the device is lost, the gate stays allocated.
        unsafe { stream.call_host(wait_at_gate, waiting) }?;
        Ok(gate)
    }

    fn open(&self) {
        *self.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.opened.notify_all();
    }
}

/// Returns once the gate is open, or after [`PATIENCE`].
///
/// # Safety
/// `gate` comes from `Arc::into_raw` of a [`Gate`], and is passed once.
unsafe extern "C" fn wait_at_gate(gate: *mut c_void) {
    // SAFETY: the caller's.
    let gate = unsafe { Arc::from_raw(gate.cast::<Gate>().cast_const()) };
    let is_open = gate.is_open.lock().unwrap_or_else(PoisonError::into_inner);
    // Open or not, the stream goes on.
    drop(gate.opened.wait_timeout_while(is_open, PATIENCE, |is_open| !*is_open));
}

/// A scope whose moments were asked for: the one with this index, and the next.
#[derive(Debug)]
struct Asked {
    step: Option<usize>,
    kernel: String,
    begin: usize,
}

#[derive(Debug, Default)]
struct State {
    /// Made when first needed, used again by further traces.
    moments: Vec<Event>,
    /// How many of them this trace has noted.
    noted: usize,
    gate: Option<Arc<Gate>>,
    /// Launches since it was closed.
    held: usize,
    launches: usize,
    step: Option<usize>,
    scopes: Vec<Asked>,
    /// The moment at which the run begins.
    start: usize,
}

/// Notes the moments of one run.
#[derive(Debug)]
pub(crate) struct Tracer {
    stream: Arc<Stream>,
    grain: Grain,
    state: RefCell<State>,
}

impl Tracer {
    fn new(stream: Arc<Stream>, grain: Grain, moments: Vec<Event>) -> Tracer {
        Tracer { stream, grain, state: RefCell::new(State { moments, ..State::default() }) }
    }

    /// Whether each step is to have scopes of its own.
    pub fn keeps_steps_apart(&self) -> bool {
        self.grain == Grain::Kernel
    }

    /// Says to which step further launches belong.
    pub fn enter(&self, step: usize) {
        self.state.borrow_mut().step = Some(step);
    }

    /// Asks the stream for one launch, which is a scope where every one is to be.
    pub fn launch<E: From<CudaError>>(
        &self,
        kernel: &str,
        ask: impl FnOnce(&Stream) -> Result<(), E>,
    ) -> Result<(), E> {
        self.make_room()?;
        match self.grain {
            Grain::Launch => ask(&self.stream),
            Grain::Kernel => self.scope(|| ask(&self.stream).map(|()| kernel.to_owned())),
        }
    }

    /// Asks for what makes one scope, and names it.
    fn scope<E: From<CudaError>>(&self, ask: impl FnOnce() -> Result<String, E>) -> Result<(), E> {
        // What is asked for may enter further steps.
        let step = self.state.borrow().step;
        let begin = self.note()?;
        let kernel = ask()?;
        self.note()?;
        self.state.borrow_mut().scopes.push(Asked { step, kernel, begin });
        Ok(())
    }

    /// Has the device note the moment at which everything asked for so far is done.
    fn note(&self) -> Result<usize, CudaError> {
        let state = &mut *self.state.borrow_mut();
        let index = state.noted;
        if index == state.moments.len() {
            state.moments.push(self.stream.event()?);
        }
        self.stream.note(&state.moments[index])?;
        state.noted += 1;
        Ok(index)
    }

    /// Lets the device begin where its queue would be full. Launches that are no scopes may overlap and go on without a break;
    /// before further scopes it is held again.
    fn make_room(&self) -> Result<(), CudaError> {
        let state = &mut *self.state.borrow_mut();
        state.launches += 1;
        state.held += 1;
        if state.held <= HELD {
            return Ok(());
        }
        let Some(gate) = state.gate.take() else { return Ok(()) };
        gate.open();
        if self.grain == Grain::Kernel {
            (state.gate, state.held) = (Some(Gate::close(&self.stream)?), 1);
        }
        Ok(())
    }

    fn hold(&self) -> Result<(), CudaError> {
        self.state.borrow_mut().gate = Some(Gate::close(&self.stream)?);
        Ok(())
    }

    /// Begins the run.
    fn start(&self) -> Result<(), CudaError> {
        let start = self.note()?;
        self.state.borrow_mut().start = start;
        Ok(())
    }

    /// Lets the device run, waits for it, and brings the times; with the moments, to be used again.
    fn finish(self) -> Result<(Trace, Vec<Event>), CudaError> {
        let last = self.note()?;
        let State { moments, gate, mut scopes, start: first, .. } = self.state.into_inner();
        gate.iter().for_each(|gate| gate.open());
        self.stream.synchronize()?;
        let between = |begin: usize, end: usize| moments[begin].seconds_until(&moments[end]);
        let empty = scopes.drain(..EMPTY_SCOPES).map(|scope| between(scope.begin, scope.begin + 1));
        let mut empty = empty.collect::<Result<Vec<f64>, CudaError>>()?;
        empty.sort_by(f64::total_cmp);
        let timed = |Asked { step, kernel, begin }: Asked| {
            let (start, seconds) = (between(first, begin)?, between(begin, begin + 1)?);
            Ok(Scope { step, kernel, start, seconds })
        };
        let scopes: Result<Vec<Scope>, CudaError> = scopes.into_iter().map(timed).collect();
        let trace = Trace { scopes: scopes?, seconds: between(first, last)?, clock: empty[EMPTY_SCOPES / 2] };
        Ok((trace, moments))
    }
}

impl CudaSession {
    /// Runs a batch with its scopes noted.
    pub(crate) fn trace(&mut self, batch: &Batch<'_>, grain: Grain) -> Result<Trace, RunError> {
        let moments = std::mem::take(&mut self.moments);
        let tracer = Tracer::new(Arc::clone(&self.stream), grain, moments);
        self.execute(batch, |session| session.launch_traced(batch, &tracer))?;
        let finished = tracer.finish().map_err(Failure::from);
        let (trace, moments) = finished.map_err(|failure| self.abandon(failure))?;
        self.moments = moments;
        Ok(trace)
    }

    fn launch_traced(&mut self, batch: &Batch<'_>, tracer: &Tracer) -> Result<(), Failure> {
        tracer.hold()?;
        self.launch_empty(tracer).map_err(failure)?;
        tracer.start()?;
        let name = "copy of the batch".to_owned();
        tracer.scope(|| self.upload(batch).map(|()| name))?;
        match tracer.grain {
            Grain::Kernel => self.launch_steps(LaunchTarget::Tracer(tracer), self.plan.steps.len()),
            Grain::Launch => tracer.scope(|| {
                let launched = self.launch_all(Some(tracer))?;
                Ok(self.describe(launched, tracer))
            }),
        }
    }

    /// A sum of no values, so often.
    fn launch_empty(&self, tracer: &Tracer) -> Result<(), StepError> {
        let runner = self.runner(LaunchTarget::Stream(&self.stream), Rows::All);
        let spec = elementwise::spec(self.plan.policy.activations());
        let launch = || runner.launch(&spec, elementwise::launch_shape(1, 1), &elementwise::Args::default());
        (0..EMPTY_SCOPES).try_for_each(|_| tracer.scope(|| launch().map(|()| String::new())))
    }

    fn describe(&self, launched: Launched, tracer: &Tracer) -> String {
        match launched {
            Launched::Token => self.token.as_ref().map_or_else(String::new, |token| token.spec.to_string()),
            Launched::Graph { kernels } => format!("graph of {kernels} kernels"),
            Launched::Steps => format!("stream of {} kernels", tracer.state.borrow().launches),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(gate: &Arc<Gate>) {
        let waiting = Arc::into_raw(Arc::clone(gate)).cast_mut().cast::<c_void>();
        // SAFETY: the pointer was just made of a counted reference, and is passed once.
        unsafe { wait_at_gate(waiting) };
    }

    #[test]
    fn a_gate_lets_go_when_it_is_opened_and_after_a_while() {
        let gate = Arc::new(Gate::default());
        std::thread::scope(|scope| {
            scope.spawn(|| wait(&gate));
            gate.open();
        });
        wait(&gate);
        wait(&Arc::new(Gate::default()));
        assert_eq!(Arc::strong_count(&gate), 1);
    }
}
