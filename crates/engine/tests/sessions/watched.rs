//! The CPU backend with sessions that note what is asked of them, and that keep their logits to themselves as a device does.

use std::sync::{Arc, Mutex};

use mantissa_cpu::{CpuBackend, CpuOptions};
use mantissa_numerics::contract::OpContract;
use mantissa_ops::backend::{
    Backend, BackendInfo, KernelChoice, LoadOptions, LoadReport, MemoryUse, NextRun, PrepareError, Progress,
    RunError, Session, StepObserver, ValueReader,
};
use mantissa_ops::reduction::{Reduced, Request};
use mantissa_ops::{Batch, Limits, Op, Plan, Program, ShapeClass, TensorSource, ValueId};

/// What was asked of a session.
#[derive(Default)]
pub struct Asked {
    /// The logits of every run that were reduced.
    pub reduced: Vec<Vec<f32>>,
    /// How often logits were fetched.
    pub fetched: usize,
    /// Runs that the engine asked for.
    pub runs: usize,
    /// Runs that the session started behind a reduction.
    pub ahead: usize,
}

/// Whether sessions start the next run behind a reduction.
#[derive(Clone, Copy, Debug)]
pub enum Ahead {
    /// They leave it to the engine.
    Never,
    /// They do.
    Always,
    /// They do, and every so many times the reduction turns out not to have chosen the first row's token.
    Undecided(usize),
}

/// A backend whose sessions are watched.
pub struct Watched {
    backend: CpuBackend,
    ahead: Ahead,
    asked: Arc<Mutex<Asked>>,
}

impl Watched {
    pub fn new(ahead: Ahead) -> Watched {
        let backend = CpuBackend::new(CpuOptions::default()).unwrap();
        Watched { backend, ahead, asked: Arc::default() }
    }

    /// What was asked so far, which is counted from zero again.
    pub fn take(&self) -> Asked {
        std::mem::take(&mut *self.asked.lock().unwrap())
    }
}

impl Backend for Watched {
    fn info(&self) -> BackendInfo {
        self.backend.info()
    }

    fn contracts(&self) -> &[OpContract] {
        self.backend.contracts()
    }

    fn choose(&self, program: &Program, op: &Op, contract: &OpContract, class: ShapeClass) -> KernelChoice {
        self.backend.choose(program, op, contract, class)
    }

    fn prepare(
        &self,
        plan: Arc<Plan>,
        source: &dyn TensorSource,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Session>, PrepareError> {
        let session = self.backend.prepare(plan, source, options, progress)?;
        Ok(Box::new(WatchedSession { session, ahead: self.ahead, asked: Arc::clone(&self.asked) }))
    }
}

struct WatchedSession {
    session: Box<dyn Session>,
    ahead: Ahead,
    asked: Arc<Mutex<Asked>>,
}

impl ValueReader for WatchedSession {
    fn read(&self, value: ValueId) -> Vec<f32> {
        self.session.read(value)
    }
}

impl Session for WatchedSession {
    fn plan(&self) -> &Plan {
        self.session.plan()
    }

    fn limits(&self) -> &Limits {
        self.session.limits()
    }

    fn report(&self) -> &LoadReport {
        self.session.report()
    }

    fn memory(&self) -> MemoryUse {
        self.session.memory()
    }

    fn run(&mut self, batch: &Batch<'_>) -> Result<(), RunError> {
        self.asked.lock().unwrap().runs += 1;
        self.session.run(batch)
    }

    fn run_observed(&mut self, batch: &Batch<'_>, observer: &mut dyn StepObserver) -> Result<(), RunError> {
        self.session.run_observed(batch, observer)
    }

    fn logits(&mut self) -> Result<&[f32], RunError> {
        self.asked.lock().unwrap().fetched += 1;
        self.session.logits()
    }

    fn reduce(&mut self, requests: &[Request<'_>], reduced: &mut Vec<Reduced>) -> Result<(), RunError> {
        let logits = self.session.logits()?.to_vec();
        self.session.reduce(requests, reduced)?;
        self.asked.lock().unwrap().reduced.push(logits);
        Ok(())
    }

    fn reduce_and_run(
        &mut self,
        requests: &[Request<'_>],
        reduced: &mut Vec<Reduced>,
        next: &Batch<'_>,
    ) -> Result<NextRun, RunError> {
        self.reduce(requests, reduced)?;
        let count = self.asked.lock().unwrap().reduced.len();
        match self.ahead {
            Ahead::Never => return Ok(NextRun::NotStarted),
            Ahead::Undecided(every) if count.is_multiple_of(every) => reduced[0].chosen = None,
            Ahead::Always | Ahead::Undecided(_) => {}
        }
        let tokens: Vec<u32> = reduced.iter().map(|row| row.chosen.map_or(0, |key| key.token())).collect();
        self.asked.lock().unwrap().ahead += 1;
        self.session.run(&Batch { tokens: &tokens, ..*next })?;
        Ok(NextRun::Started)
    }

    fn write(&mut self, value: ValueId, numbers: &[f32]) -> Result<(), RunError> {
        self.session.write(value, numbers)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<(), RunError> {
        self.session.copy_page(from, to)
    }
}
