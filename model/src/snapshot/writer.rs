//! Writing snapshots beside training.

use std::{
    sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{Header, SnapshotError, Snapshots};
use crate::state::State;

/// A snapshot that was written.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    /// Optimiser steps done at it.
    pub step: u64,
    /// Its size, bytes.
    pub bytes: u64,
    /// How long writing took.
    pub took: Duration,
}

/// A thread that writes one snapshot at a time. Between it and the trainer goes one buffer, to and fro: who has it, works.
pub struct SnapshotWriter {
    /// None once the thread is to end.
    work: Option<SyncSender<(Header, State)>>,
    done: Receiver<(State, Result<Written, SnapshotError>)>,
    /// The buffer, while nothing is being written.
    buffer: Option<State>,
    thread: Option<JoinHandle<()>>,
}

impl SnapshotWriter {
    /// Starts the thread.
    pub fn start(snapshots: Snapshots) -> std::io::Result<Self> {
        let (work, orders) = sync_channel::<(Header, State)>(1);
        let (answer, done) = sync_channel(1);
        let thread = thread::Builder::new().name("snapshot".to_owned()).spawn(move || {
            for (header, state) in orders {
                let started = Instant::now();
                let step = header.step;
                let written = snapshots.write(&header, &state);
                let written = written.map(|bytes| Written { step, bytes, took: started.elapsed() });
                if answer.send((state, written)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { work: Some(work), done, buffer: Some(State::default()), thread: Some(thread) })
    }

    /// Hands a snapshot over that `fill` copies into the buffer. False if the last one is still being written: then this one is left out.
    pub fn offer<E>(&mut self, fill: impl FnOnce(&mut State) -> Result<Header, E>) -> Result<bool, E> {
        let Some(mut state) = self.buffer.take() else { return Ok(false) };
        match fill(&mut state) {
            Ok(header) => {
                if let Some(work) = &self.work {
                    // A thread that is gone shows when its answer is asked for.
                    let _ = work.send((header, state));
                }
                Ok(true)
            }
            Err(error) => {
                self.buffer = Some(state);
                Err(error)
            }
        }
    }

    /// What became of the last snapshot handed over, once, when it is known.
    pub fn outcome(&mut self) -> Option<Result<Written, SnapshotError>> {
        if self.buffer.is_some() {
            return None;
        }
        match self.done.try_recv() {
            Ok((state, written)) => {
                self.buffer = Some(state);
                Some(written)
            }
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => Some(Err(SnapshotError::WriterGone)),
        }
    }

    /// The same, waiting until nothing is being written.
    pub fn wait(&mut self) -> Option<Result<Written, SnapshotError>> {
        if self.buffer.is_some() {
            return None;
        }
        match self.done.recv() {
            Ok((state, written)) => {
                self.buffer = Some(state);
                Some(written)
            }
            Err(_) => Some(Err(SnapshotError::WriterGone)),
        }
    }
}

impl Drop for SnapshotWriter {
    /// Waits for the snapshot under way.
    fn drop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            // A writer that panicked has said so itself.
            let _ = thread.join();
        }
    }
}
