//! Which parts are in training on this machine, and how one trainer follows another.

use paris_protocol::{checkpoint::CheckpointId, part::Part};
use tokio::task::AbortHandle;

use super::{
    super::trainer::{self, Job, TrainerHandle},
    Done, Driver,
};
use crate::history::{EventName, Line};

/// A part in training here.
pub(super) enum Training {
    /// Its data is being fetched and decoded.
    Preparing(AbortHandle),
    /// Its thread runs.
    Running(TrainerHandle),
    /// Its thread was told to end. Only then may another train the part: both would write to the same files.
    Ending {
        /// From where training is to go on then, if it is.
        again: Option<Beginning>,
    },
}

/// The checkpoint that training begins with; none at a part's beginning.
pub(super) type Beginning = Option<CheckpointId>;

impl Driver {
    /// Ends a part's training here, and has it go on `again` once its thread is gone. False where no thread is.
    pub(super) fn end_training(&mut self, part: Part, again: Option<Beginning>) -> bool {
        match self.training.remove(&part) {
            None => false,
            Some(Training::Preparing(task)) => {
                task.abort();
                false
            }
            Some(Training::Running(trainer)) => {
                trainer.stop();
                self.training.insert(part, Training::Ending { again });
                true
            }
            Some(Training::Ending { .. }) => {
                self.training.insert(part, Training::Ending { again });
                true
            }
        }
    }

    /// A part's thread is gone. True if training goes on with another.
    pub(super) fn training_ended(&mut self, part: Part) -> bool {
        match self.training.remove(&part) {
            Some(Training::Ending { again: Some(from) }) => {
                self.prepare(part, from);
                true
            }
            _ => {
                self.keeping.leave(part);
                self.note_gone(part);
                false
            }
        }
    }

    /// Tells the agent that nothing more comes of a part's training here, once that is so.
    pub(super) fn note_gone(&mut self, part: Part) {
        if !self.training.contains_key(&part) && !self.storing.contains(&part) {
            self.agent.trainer_gone(part);
        }
    }

    /// Gathers what training a part takes, then starts its thread.
    pub(super) fn prepare(&mut self, part: Part, from: Beginning) {
        let from = from.and_then(|id| self.agent.register().checkpoint(part, id)).cloned();
        let peers: Vec<_> = self.agent.peers().keys().copied().collect();
        let (work, me) = (self.work.clone(), self.agent.id());
        let task = self.tasks.spawn(async move {
            let job = work.job(part, from.as_ref(), me, &peers).await;
            let lost = match from {
                Some(from) if job.is_err() && work.is_missing(&from).await => Some(from.id()),
                _ => None,
            };
            Done::Prepared { part, job: job.map(Box::new).map_err(|error| format!("{error:#}")), lost }
        });
        self.training.insert(part, Training::Preparing(task));
    }

    pub(super) fn start_training(&mut self, part: Part, job: Result<Box<Job>, String>) {
        if !matches!(self.training.get(&part), Some(Training::Preparing(_))) {
            return;
        }
        let started = job.and_then(|job| {
            let places = self.keeping.places.clone();
            let started = trainer::start(*job, places, self.memory.clone(), self.to_driver.clone());
            started.map_err(|error| error.to_string())
        });
        match started {
            Ok(handle) => {
                self.training.insert(part, Training::Running(handle));
            }
            Err(error) => self.training_failed(part, &format!("training cannot begin: {error}")),
        }
    }

    /// A part cannot be trained here, or no more: others may try.
    pub(super) fn training_failed(&mut self, part: Part, reason: &str) {
        tracing::error!("{part}: {reason}");
        if self.training_ended(part) {
            return;
        }
        let step = self.agent.progress(part).map_or(0, |progress| progress.step);
        self.keeping.write(part, Line::event(EventName::Failed, step, reason));
        self.agent.trainer_failed(self.now(), part);
    }
}
