//! A fork-join pool for kernels that take microseconds.
//!
//! Workers spin for a short while between runs and then sleep, so that consecutive kernels of a token start within
//! about a microsecond and an idle engine uses no processor. A worker that wakes late is not waited for: whoever is
//! awake takes the tasks.

use std::any::Any;
use std::cell::Cell;
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker spins before it sleeps: longer than the pauses within and between the steps of a generation,
/// because waking a sleeper costs the caller up to 100 microseconds in a virtual machine.
const SPIN: Duration = Duration::from_micros(300);
/// Tasks are claimed in runs of remaining / (threads * this), at least one: long contiguous stretches first, single
/// tasks at the end, so that threads finish together.
const SHARES: usize = 4;

/// One task of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    /// Which task, below the number of tasks of the run.
    pub index: usize,
    /// The thread that runs it, below [`Pool::threads`]; no two threads of a run have the same.
    pub worker: usize,
}

/// Threads that run tasks together with the caller.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One run at a time.
    turn: Mutex<()>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// A thread could not be started.
#[derive(Debug, thiserror::Error)]
#[error("cannot start thread {index} of {threads}: {source}; fewer threads may work")]
pub struct PoolError {
    /// Which thread.
    pub index: usize,
    /// How many were wanted.
    pub threads: usize,
    /// What the system says.
    pub source: std::io::Error,
}

/// A run as the workers see it; lives on the caller's stack until every thread has left it.
struct Job<'a> {
    body: &'a (dyn Fn(Task) + Sync),
    tasks: usize,
    threads: usize,
    next: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Whether a run can be joined, and by how many threads it has been: generation in the upper half, then the flag,
/// then the count. One word, so that joining and closing exclude each other.
struct State;

impl State {
    const OPEN: u64 = 1 << 31;
    const COUNT: u64 = State::OPEN - 1;
    const GENERATION: u64 = 1 << 32;
    /// Generation of a pool that ends.
    const STOP: u64 = u64::MAX;
}

struct Shared {
    state: AtomicU64,
    job: AtomicPtr<Job<'static>>,
    sleepers: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

thread_local! {
    /// Whether this thread is inside a run.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing under these locks is left half-changed by a panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads, the caller of [`Pool::run`] among them.
    ///
    /// # Errors
    /// [`PoolError`] where the system starts no more threads.
    pub fn new(threads: NonZeroUsize) -> Result<Pool, PoolError> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: AtomicPtr::new(std::ptr::null_mut()),
            sleepers: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::new(), turn: Mutex::new(()) };
        for index in 1..threads.get() {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("mantissa-{index}"))
                .spawn(move || shared.work(index))
                .map_err(|source| PoolError { index, threads: threads.get(), source })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// As many threads as the system lets this process run at once.
    pub fn default_threads() -> NonZeroUsize {
        std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN)
    }

    /// Threads that take part in a run.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `body` once for every task index below `tasks`, on all threads, and returns when all calls have.
    ///
    /// Which thread runs what is not determined: results must not depend on it. A run inside a run (from any pool)
    /// is executed by the calling thread alone. If calls panic, the others still end, tasks not yet started are
    /// dropped, and one of the panics continues in the caller.
    pub fn run(&self, tasks: usize, body: impl Fn(Task) + Sync) {
        if tasks <= 1 || self.workers.is_empty() || INSIDE.get() {
            for index in 0..tasks {
                body(Task { index, worker: 0 });
            }
            return;
        }
        let turn = lock(&self.turn);
        let job = Job {
            body: &body,
            tasks,
            threads: self.threads(),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
        };
        self.shared.open(&job);
        job.take_part(0);
        self.shared.close();
        drop(turn);
        if let Some(panic) = lock(&job.panic).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.store(State::STOP, Ordering::SeqCst);
        self.shared.wake_sleepers();
        for worker in self.workers.drain(..) {
            // Workers catch the panics of tasks, so this is no error that anyone has not seen.
            let _ = worker.join();
        }
    }
}

impl Job<'_> {
    /// Runs tasks until none are left.
    fn take_part(&self, worker: usize) {
        INSIDE.set(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            while let Some(claimed) = self.claim() {
                for index in claimed {
                    (self.body)(Task { index, worker });
                }
            }
        }));
        INSIDE.set(false);
        if let Err(panic) = result {
            self.next.store(self.tasks, Ordering::Relaxed);
            *lock(&self.panic) = Some(panic);
        }
    }

    fn claim(&self) -> Option<std::ops::Range<usize>> {
        let mut start = self.next.load(Ordering::Relaxed);
        loop {
            let remaining = self.tasks.checked_sub(start).filter(|&count| count > 0)?;
            let count = (remaining / (SHARES * self.threads)).max(1);
            let end = start + count;
            match self.next.compare_exchange_weak(start, end, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some(start..end),
                Err(current) => start = current,
            }
        }
    }
}

impl Shared {
    /// Publishes a run. The caller must close it before `job` ends.
    fn open(&self, job: &Job<'_>) {
        let job: *const Job<'_> = job;
        self.job.store(job.cast_mut().cast(), Ordering::Relaxed);
        let generation = self.state.load(Ordering::Relaxed) & !(State::OPEN | State::COUNT);
        // SeqCst, so that a worker that goes to sleep either sees this or is seen as a sleeper below.
        self.state.store(generation.wrapping_add(State::GENERATION) | State::OPEN, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            self.wake_sleepers();
        }
    }

    fn wake_sleepers(&self) {
        let guard = lock(&self.lock);
        self.wake.notify_all();
        drop(guard);
    }

    /// Lets no more threads join and waits until those that did have left.
    fn close(&self) {
        self.state.fetch_and(!State::OPEN, Ordering::AcqRel);
        let mut spins = 0_u32;
        while self.state.load(Ordering::Acquire) & State::COUNT != 0 {
            spins += 1;
            if spins < 10_000 {
                std::hint::spin_loop();
            } else {
                // The processor may be needed by the very thread that is waited for.
                std::thread::yield_now();
            }
        }
    }

    /// The life of a worker.
    fn work(&self, worker: usize) {
        let mut seen = 0;
        loop {
            let state = self.wait_for_run(seen);
            if state == State::STOP {
                return;
            }
            seen = state & !(State::OPEN | State::COUNT);
            let joined = self.state.compare_exchange(state, state + 1, Ordering::AcqRel, Ordering::Relaxed);
            if joined.is_err() {
                // Another worker joined at the same moment, or the run is over: look again.
                seen = seen.wrapping_sub(State::GENERATION);
                std::hint::spin_loop();
                continue;
            }
            let job = self.job.load(Ordering::Relaxed);
            // SAFETY: the run was open when this thread joined it, so its owner is in `open`..`close` and waits there
            // until the count is back at zero: the job outlives this borrow. Its fields are `Sync`.
            unsafe { &*job }.take_part(worker);
            self.state.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// The state once it is an open run of another generation than `seen`, or the end.
    fn wait_for_run(&self, seen: u64) -> u64 {
        let ready = || {
            let state = self.state.load(Ordering::SeqCst);
            let new = state & !(State::OPEN | State::COUNT) != seen && state & State::OPEN != 0;
            (new || state == State::STOP).then_some(state)
        };
        loop {
            let start = Instant::now();
            while start.elapsed() < SPIN {
                for _ in 0..64 {
                    if let Some(state) = ready() {
                        return state;
                    }
                    std::hint::spin_loop();
                }
            }
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            let guard = lock(&self.lock);
            if ready().is_none() {
                // Whatever the reason of waking: spin again, for the next run comes soon after one that was missed.
                drop(self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner));
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> Pool {
        Pool::new(NonZeroUsize::new(threads).unwrap()).unwrap()
    }

    #[test]
    fn every_task_runs_once() {
        for threads in 1..=4 {
            let pool = pool(threads);
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 3, 17, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |task| {
                    assert!(task.worker < threads);
                    counts[task.index].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn many_short_runs_with_pauses() {
        let pool = pool(3);
        let total = AtomicUsize::new(0);
        for run in 0..5_000 {
            pool.run(5, |task| {
                total.fetch_add(task.index, Ordering::Relaxed);
            });
            if run % 1000 == 0 {
                // Long enough for the workers to sleep.
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        assert_eq!(total.into_inner(), 5_000 * 10);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = pool(3);
        for bad in [0, 7, 63] {
            let result = catch_unwind(AssertUnwindSafe(|| {
                pool.run(64, |task| assert!(task.index != bad, "task {bad}"));
            }));
            let message = *result.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("task {bad}"));
        }
        let count = AtomicUsize::new(0);
        pool.run(64, |_| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 64);
    }

    #[test]
    fn a_nested_run_is_executed_in_place() {
        let pool = pool(2);
        let count = AtomicUsize::new(0);
        pool.run(4, |_| {
            let thread = std::thread::current().id();
            pool.run(8, |task| {
                assert_eq!((std::thread::current().id(), task.worker), (thread, 0));
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 32);
    }

    #[test]
    fn callers_take_turns() {
        let pool = pool(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        pool.run(3, |_| {
                            total.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 3 * 200 * 3);
    }
}
