//! A thread of ours beside the server's own: it works on a file, and never calls the server.
//!
//! What the keyspace has to say to it, or it to the keyspace, goes through a channel whose other end a timer serves: so nothing but
//! the main thread ever touches a key. Memory is the one thing of the server that a thread may use, and its log, for a panic.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use keyguard_core::Error;
use keyguard_snapshot::file::FileError;
use keyguard_snapshot::write::Interrupter;

use crate::ffi;

/// Why an export or an import ended before it was through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The file or its folder.
    #[error("{0}")]
    File(#[from] FileError),
    /// The store.
    #[error("{0}")]
    Store(Error),
    /// There is no such store any more.
    #[error("the store was deleted meanwhile")]
    Gone,
    /// Other data stands where it was at work.
    #[error("the data of the server was replaced meanwhile")]
    Replaced,
    /// This server follows another one.
    #[error("this server became a replica meanwhile")]
    Replica,
    /// The system has no thread to give, or ours has met a defect; then the log says where.
    #[error("the thread that deals with the file could not go on")]
    Thread,
}

/// While one is at work, its store has been there.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        if error == Error::NoStore { Self::Gone } else { Self::Store(error) }
    }
}

/// Tells a worker to stop, also in the middle of a long call of SQLite.
#[derive(Clone, Default)]
pub struct Stop(Arc<State>);

#[derive(Default)]
struct State {
    requested: AtomicBool,
    interrupter: Mutex<Option<Interrupter>>,
}

impl Stop {
    /// Whether it was told to.
    pub fn requested(&self) -> bool {
        self.0.requested.load(Ordering::Acquire)
    }

    /// What ends the worker's long calls from now on.
    pub fn interrupts(&self, interrupter: Interrupter) {
        let mut place = self.0.interrupter.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever asked before there was anything to interrupt, asked for this.
        if self.requested() {
            interrupter.interrupt();
        }
        *place = Some(interrupter);
    }

    /// Tells it.
    pub fn request(&self) {
        self.0.requested.store(true, Ordering::Release);
        if let Some(interrupter) = &*self.0.interrupter.lock().unwrap_or_else(PoisonError::into_inner) {
            interrupter.interrupt();
        }
    }
}

/// A thread at work. One that is dropped is told to stop, and does so when it gets to it.
pub struct Worker {
    stop: Stop,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Starts one.
    ///
    /// # Errors
    /// If the system has no thread to give.
    pub fn start(stop: Stop, work: impl FnOnce(&Stop) + Send + 'static) -> io::Result<Self> {
        let its = stop.clone();
        let thread = Builder::new().name("keyguard".to_owned()).spawn(move || {
            ffi::lower_priority();
            ffi::guarded((), || work(&its));
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }

    /// Whether it has come to its end.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Tells it to stop.
    pub fn stop(&self) {
        self.stop.request();
    }

    /// Tells it to stop, and waits until it has.
    pub fn stop_and_wait(mut self) {
        self.stop();
        if let Some(thread) = self.thread.take() {
            // A panic of it was logged where it happened.
            let _ = thread.join();
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop();
    }
}
