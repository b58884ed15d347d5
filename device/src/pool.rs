//! A bounded pool of worker threads that runs tasks in the order in which they became ready.

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;

/// Most workers of the pool that all functions share.
pub(crate) const WORKERS_MAX: usize = 8;

/// Something that runs on a worker, one step at a time.
pub(crate) trait Task: Send + Sync {
    /// Does one step. True to be run again, after all that is ready now.
    fn run(self: Arc<Self>) -> bool;
}

/// Worker threads, started as they are needed up to a limit. Dropped, its workers finish what is
/// ready and end.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    ready: Condvar,
    limit: usize,
}

#[derive(Default)]
struct State {
    ready: VecDeque<Arc<dyn Task>>,
    workers: usize,
    idle: usize,
    closing: bool,
}

impl Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("State")
            .field("ready", &self.ready.len())
            .field("workers", &self.workers)
            .field("idle", &self.idle)
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// At most `limit` workers, at least one.
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                ready: Condvar::new(),
                limit: limit.max(1),
            }),
        })
    }

    /// The pool that all functions of this process share: a worker per CPU, 4 to 8 of them. Four,
    /// so that long requests of a few functions, at which workers wait and do not compute, do not
    /// hold up everything else.
    pub(crate) fn global() -> Arc<Self> {
        static GLOBAL: OnceLock<Arc<Pool>> = OnceLock::new();
        let start = || {
            let cpus = thread::available_parallelism().map_or(2, usize::from);
            Self::new(cpus.clamp(4, WORKERS_MAX))
        };
        GLOBAL.get_or_init(start).clone()
    }

    /// Makes `task` ready. Never waits for a worker.
    pub(crate) fn schedule(&self, task: Arc<dyn Task>) {
        let mut state = self.shared.lock();
        state.ready.push_back(task);
        let short = state.idle < state.ready.len() && state.workers < self.shared.limit;
        if short {
            state.workers += 1;
        }
        drop(state);
        self.shared.ready.notify_one();
        if short {
            let shared = Arc::clone(&self.shared);
            let worker = thread::Builder::new().name("tidemark-io".to_owned());
            if let Err(error) = worker.spawn(move || shared.work()) {
                // The task stays ready; the workers there are, or the next call, take care of it.
                self.shared.lock().workers -= 1;
                tracing::error!(%error, "cannot start an I/O worker");
            }
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().closing = true;
        self.shared.ready.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(task) = self.next() {
            if Arc::clone(&task).run() {
                self.lock().ready.push_back(task);
            }
        }
    }

    /// The task that has been ready longest; waits for one. `None` when the pool closes.
    fn next(&self) -> Option<Arc<dyn Task>> {
        let mut state = self.lock();
        loop {
            if let Some(task) = state.ready.pop_front() {
                return Some(task);
            }
            if state.closing {
                state.workers -= 1;
                return None;
            }
            state.idle += 1;
            state = self
                .ready
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}
