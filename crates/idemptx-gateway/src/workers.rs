//! The threads that serve clients.

use std::cell::Cell;
use std::io;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use tokio::runtime::{Builder, Handle};

use crate::network::Stream;

/// Threads that serve clients, each with a runtime of its own; clones share them.
///
/// A connection stays on its thread, with its requests and with what they use: connections to
/// upstreams ([`PerWorker`]), and to a store on Redis.
/// So no request waits for another thread to be woken, or for a lock that it holds; in return, the
/// requests of one HTTP/2 connection share one core.
/// What is not a client's (listeners, operators, checks) has the runtime of the process.
///
/// They run until the process ends: a runtime that ends could close an upstream's connection before
/// the request on it, which would then count as lost and release a claim that must lapse instead.
#[derive(Clone, Debug, Default)]
pub struct Workers(Arc<[Worker]>);

#[derive(Debug)]
struct Worker {
    runtime: Handle,
    connections: Arc<AtomicUsize>,
}

impl Workers {
    /// Starts a thread for each core that the process may use, or as many as the environment
    /// variable `TOKIO_WORKER_THREADS` says.
    ///
    /// # Errors
    ///
    /// The system's if it has no room for another thread.
    pub fn start() -> io::Result<Self> {
        let chosen = std::env::var("TOKIO_WORKER_THREADS").ok().and_then(|text| text.parse().ok());
        let cores = || thread::available_parallelism().map_or(1, NonZero::get);
        Self::start_threads(chosen.unwrap_or_else(cores))
    }

    /// Starts this many threads, at most 64; in a process, the first number counts.
    ///
    /// There are none where that is one: connections are then served by the runtime that accepts
    /// them.
    ///
    /// # Errors
    ///
    /// The system's if it has no room for another thread.
    pub fn start_threads(count: usize) -> io::Result<Self> {
        match count.min(WORKERS_MAX) {
            0 | 1 => Ok(Self::default()),
            count => {
                let count = *COUNT.get_or_init(|| count);
                (0..count)
                    .map(|number| Worker::start(number, count))
                    .collect::<io::Result<_>>()
                    .map(Self)
            }
        }
    }

    /// Runs the same on each thread, such as opening what its first request would wait for.
    pub(crate) async fn on_each<F>(&self, run: impl Fn() -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let running: Vec<_> = self.0.iter().map(|worker| worker.runtime.spawn(run())).collect();
        for task in running {
            // A panic is that thread's.
            let _ = task.await;
        }
    }

    /// Serves a connection in a task on the thread that has the fewest.
    ///
    /// # Errors
    ///
    /// The system's if the connection cannot be handed over; it is closed then.
    pub(crate) fn serve<F>(
        &self,
        stream: Stream,
        serve: impl FnOnce(Stream) -> F + Send + 'static,
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let least_busy = |worker: &&Worker| worker.connections.load(Ordering::Relaxed);
        let Some(worker) = self.0.iter().min_by_key(least_busy) else {
            tokio::spawn(serve(stream));
            return Ok(());
        };
        let counted = Counted::new(Arc::clone(&worker.connections));
        let stream = stream.leave_runtime()?;
        worker.runtime.spawn(async move {
            let _counted = counted;
            match Stream::enter_runtime(stream) {
                Ok(stream) => serve(stream).await,
                Err(error) => tracing::warn!("closing a client connection: {error}"),
            }
        });
        Ok(())
    }
}

impl Worker {
    fn start(number: usize, count: usize) -> io::Result<Self> {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_all().max_blocking_threads(BLOCKING_MAX / count).build()?;
        let handle = runtime.handle().clone();
        thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
            NUMBER.set(Some(number));
            runtime.block_on(std::future::pending::<()>());
        })?;
        Ok(Self { runtime: handle, connections: Arc::default() })
    }
}

/// Counts a connection of a thread until it is dropped.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(connections: Arc<AtomicUsize>) -> Self {
        connections.fetch_add(1, Ordering::Relaxed);
        Self(connections)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Values of which each of the threads that serve clients has one, and the rest of the process
/// together one more.
#[derive(Debug)]
pub(crate) struct PerWorker<T> {
    workers: Box<[T]>,
    others: T,
}

impl<T: Default> Default for PerWorker<T> {
    fn default() -> Self {
        let count = COUNT.get().map_or(0, |count| *count);
        Self { workers: (0..count).map(|_| T::default()).collect(), others: T::default() }
    }
}

impl<T> PerWorker<T> {
    /// Returns the calling thread's.
    pub(crate) fn own(&self) -> &T {
        NUMBER.get().and_then(|number| self.workers.get(number)).unwrap_or(&self.others)
    }

    /// Returns all of them.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.workers.iter().chain([&self.others])
    }
}

/// Returns whether this thread serves clients.
pub(crate) fn is_worker() -> bool {
    NUMBER.get().is_some()
}

thread_local! {
    static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
}

/// The number of threads, once they are started.
static COUNT: OnceLock<usize> = OnceLock::new();
/// Threads for blocking calls, such as reading a spooled body, of all workers together.
const BLOCKING_MAX: usize = 512;
/// More cores than that are better used by another gateway.
const WORKERS_MAX: usize = 64;
