//! Drawing ahead: a thread makes the next draws while the trainer is busy with the last, so that training never waits for the disk.

use std::{
    any::Any,
    sync::{
        Arc,
        mpsc::{Receiver, sync_channel},
    },
    thread::{self, JoinHandle},
};

use crate::{
    batch::BatchSource,
    draw::{Draw, DrawError, DrawRule, Draws},
};

/// Draws that wait for the trainer. One more is in the making, and one in use.
pub const DRAWS_AHEAD_MAX: usize = 2;

/// A part's draws from a step on, made on a thread of their own, which ends when this is dropped.
pub struct Prefetch {
    draws: Option<Receiver<Result<Draw, DrawError>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Begins to draw what comes when `step` steps are done.
    pub fn start(rule: DrawRule, data: Arc<dyn BatchSource + Send + Sync>, step: u64) -> Result<Self, DrawError> {
        let (sender, draws) = sync_channel(DRAWS_AHEAD_MAX);
        let draw = move || {
            for draw in Draws::new(&rule, &*data, step) {
                // Nobody listens any more: training has ended.
                if sender.send(draw).is_err() {
                    return;
                }
            }
        };
        let thread = thread::Builder::new().name("draw-ahead".to_owned()).spawn(draw).map_err(DrawError::Thread)?;
        Ok(Self { draws: Some(draws), thread: Some(thread) })
    }
}

/// As [`Draws`]: an error, or a panic of the thread, is the last item.
impl Iterator for Prefetch {
    type Item = Result<Draw, DrawError>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(draw) = self.draws.as_ref()?.recv() {
            return Some(draw);
        }
        let panic = self.thread.take()?.join().err()?;
        Some(Err(DrawError::Panicked(message(&*panic))))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        // A thread that waits for room in the channel finds it gone.
        self.draws = None;
        if let Some(thread) = self.thread.take() {
            // The hook has reported its panic; with nobody left to train there is nobody to tell.
            let _ = thread.join();
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("no message").to_owned()
}
