//! Training that loses no step: snapshots beside it, and back to the last one where a step fails.
//!
//! Where training begins is told in [`beginning`].
//!
//! **Where a step fails.** A loss or gradient that is not finite sends training back to the last snapshot. A batch that fails for the first time is
//! tried again: every step follows from the state, so if it goes through, this machine had computed wrong. A batch that fails twice is passed over
//! with those before it since the snapshot (as PaLM did at loss spikes; Chowdhery et al. 2022, section 5.1), by moving the *cursor*, which is part of
//! the state: so whoever goes on from a later state goes on with the same bits. After [`FALLBACKS_MAX`] times within [`FORGIVEN_AFTER_STEPS`] steps
//! training gives up.

mod alone;
pub mod beginning;

use std::{
    fmt::{self, Display},
    sync::Arc,
};

use candle_core::Device;

pub use self::beginning::{Beginning, Origin};
use self::beginning::{complain, name_of, start_writer};
use crate::{
    batch::{BatchSource, Text},
    config::PartConfig,
    draw::{Draw, DrawError},
    report::StepReport,
    snapshot::{Header, SnapshotError, SnapshotWriter, Snapshots, files::SnapshotLock, writer::Written},
    state::{Published, State},
    trainer::{TrainError, TrainSettings, Trainer},
};

/// How often training goes back to a snapshot before it gives up.
pub const FALLBACKS_MAX: u32 = 3;
/// Steps beyond a failure after which it no longer counts.
pub const FORGIVEN_AFTER_STEPS: u64 = 1000;
/// Published states that a snapshot lists as superseded: the first, and the latest.
pub const SUPERSEDED_MAX: usize = 16;

/// Training that cannot go on, after all that could be done.
#[derive(Debug, thiserror::Error)]
pub enum DurableError {
    /// Training failed for a reason that going back does not mend.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// It failed too often.
    #[error("{0}. It had gone back to a snapshot {FALLBACKS_MAX} times before, and gives up")]
    GivenUp(TrainError),
    /// It failed, and no snapshot is there.
    #[error("{0}. There is no snapshot to go back to")]
    NoSnapshot(TrainError),
}

/// What a part's training takes beside its data and its state.
#[derive(Clone)]
pub struct Setup {
    /// The part's model.
    pub config: PartConfig,
    /// How it is trained.
    pub settings: TrainSettings,
    /// Keys all randomness.
    pub key: [u8; 32],
    /// The encoding of "", batch 1.
    pub null_text: Text,
    /// Where it is trained.
    pub device: Device,
    /// See [`Trainer::set_recompute`].
    pub recompute: bool,
    /// The weights that its first step starts from, as [`Trainer::weights`] writes them; random ones where none are given.
    pub base: Option<Arc<[u8]>>,
}

impl Setup {
    fn trainer(&self, state: Option<&State>) -> Result<Trainer, TrainError> {
        let Self { config, settings, key, null_text, device, recompute, base } = self;
        let mut trainer = match (state, base) {
            (Some(state), _) => Trainer::from_state(config.clone(), *settings, key, null_text, state, device),
            (None, Some(base)) => Trainer::from_base(config.clone(), *settings, key, null_text, base, device),
            (None, None) => Trainer::new(config.clone(), *settings, key, null_text, device),
        }?;
        trainer.set_recompute(*recompute);
        Ok(trainer)
    }
}

/// What became of a step.
#[derive(Debug)]
pub enum Outcome {
    /// It was done.
    Stepped(StepReport),
    /// It failed, and training is back at a snapshot.
    WentBack(Fallback),
}

/// A return to a snapshot.
#[derive(Debug)]
pub struct Fallback {
    /// Why.
    pub reason: TrainError,
    /// The step of the snapshot.
    pub step: u64,
    /// Batches that are passed over, the failed one included; 0 where all are tried again.
    pub skipped: u64,
    /// Which of [`FALLBACKS_MAX`] it is.
    pub number: u32,
}

impl Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { reason, step, skipped, number } = self;
        write!(f, "{reason}. Back to the snapshot of step {step}, {number} of {FALLBACKS_MAX} times; ")?;
        match skipped {
            0 => f.write_str("the same batches are tried again"),
            batches => write!(f, "{batches} batches are passed over"),
        }
    }
}

/// A part in training, with its snapshots.
pub struct Durable {
    config: PartConfig,
    run: String,
    trainer: Trainer,
    origin: Origin,
    snapshots: Snapshots,
    /// None until the disk lets it start.
    writer: Option<(SnapshotWriter, SnapshotLock)>,
    /// See [`Header::supersedes`].
    supersedes: Vec<String>,
    /// Whether it superseded nothing when it began: then its snapshots do so, too, until the first after its first publication.
    begun_anew: bool,
    written: Option<Written>,
    problem: Option<String>,
    fallbacks: u32,
    failed: Option<Failed>,
    /// Batches before this one are not tried again.
    passed: u64,
}

/// The last failure.
#[derive(Clone, Copy)]
struct Failed {
    step: u64,
    cursor: u64,
    /// Whether its batch has gone through since.
    repeated: bool,
}

impl Durable {
    /// Chooses and begins.
    pub fn begin(
        setup: Setup,
        run: &str,
        snapshots: Snapshots,
        published: Option<Published>,
    ) -> Result<Self, DurableError> {
        let beginning = Beginning::choose(setup, run, snapshots, published)?;
        let trainer = beginning.trainer()?;
        beginning.train(trainer)
    }

    /// Where training began.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The trainer, to be measured and published.
    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// The last snapshot that was written by this object.
    pub fn last_snapshot(&self) -> Option<Written> {
        self.written
    }

    /// Why the last snapshot was not written; none once one is.
    pub fn snapshot_problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// One step on the batch that is due, drawn here and now, or the way back to the last snapshot.
    pub fn step(&mut self, data: &dyn BatchSource) -> Result<Outcome, DurableError> {
        let stepped = self.trainer.step(data);
        self.outcome(stepped)
    }

    /// The same on the next of `draws`. After a way back they must begin anew, at the trainer's cursor.
    pub fn step_from(
        &mut self,
        draws: &mut dyn Iterator<Item = Result<Draw, DrawError>>,
    ) -> Result<Outcome, DurableError> {
        let stepped = self.trainer.step_from(draws);
        self.outcome(stepped)
    }

    fn outcome(&mut self, stepped: Result<StepReport, TrainError>) -> Result<Outcome, DurableError> {
        match stepped {
            Ok(report) => {
                self.forgive();
                Ok(Outcome::Stepped(report))
            }
            Err(error) => Ok(Outcome::WentBack(self.go_back(error)?)),
        }
    }

    /// Makes sure that no step has failed unseen, as on a GPU it may, before the part is published or training ends; or goes back to the last snapshot.
    ///
    /// # Errors
    /// As those of a step.
    pub fn check(&mut self) -> Result<Option<Fallback>, DurableError> {
        match self.trainer.check() {
            Ok(()) => Ok(None),
            Err(error) => self.go_back(error).map(Some),
        }
    }

    fn go_back(&mut self, reason: TrainError) -> Result<Fallback, DurableError> {
        let TrainError::NotFinite { step, .. } = reason else { return Err(reason.into()) };
        // The batch of that step: on a device that is looked at now and then it is not the last one.
        let cursor = step - 1 + self.trainer.cursor() - self.trainer.step_count();
        if self.fallbacks == FALLBACKS_MAX {
            return Err(DurableError::GivenUp(reason));
        }
        self.settle();
        let found = self.snapshots.latest(&self.config, |header| self.shares_history(header));
        let Some((header, state)) = found else { return Err(DurableError::NoSnapshot(reason)) };
        let again = self.failed.is_some_and(|before| before.cursor == cursor);
        let micro_batch = self.trainer.micro_batch();
        self.trainer.restore(&state)?;
        self.trainer.set_micro_batch(micro_batch);
        if again {
            self.passed = cursor + 1;
        }
        // Also what was passed over earlier: the snapshot may be from before that.
        self.trainer.skip_to(self.passed);
        self.fallbacks += 1;
        self.failed = Some(Failed { step, cursor, repeated: false });
        let skipped = self.trainer.cursor() - header.cursor;
        Ok(Fallback { reason, step: header.step, skipped, number: self.fallbacks })
    }

    /// True for a snapshot of this training, not one that lay there before it began.
    fn shares_history(&self, header: &Header) -> bool {
        let shared = |state| header.supersedes.contains(state);
        let is_shared = match header.supersedes.is_empty() {
            true => self.begun_anew,
            false => self.supersedes.iter().any(shared),
        };
        header.run == self.run && is_shared
    }

    /// After a step that was done: what went through at last is said, what is long past is forgotten.
    fn forgive(&mut self) {
        let Some(failed) = &mut self.failed else { return };
        if !self.trainer.is_checked() {
            return;
        }
        if self.trainer.cursor() > failed.cursor && self.passed <= failed.cursor && !failed.repeated {
            failed.repeated = true;
            tracing::warn!(
                "step {} went through when it was tried again from the same state: this machine had computed wrong. Its memory, its cooling or its \
                 clock rates deserve a look",
                failed.step
            );
        }
        if self.trainer.step_count() >= failed.step + FORGIVEN_AFTER_STEPS {
            (self.failed, self.fallbacks) = (None, 0);
        }
    }

    /// Hands a snapshot of this moment to the thread that writes, at the cost of a copy in memory. False if the last one is still being written: then this
    /// one is left out. A disk that refuses stops nothing; see [`Durable::snapshot_problem`].
    pub fn snapshot(&mut self) -> Result<bool, TrainError> {
        self.collect();
        if self.writer.is_none() {
            match start_writer(&self.snapshots) {
                Ok(started) => self.writer = Some(started),
                Err(error) => self.note_problem(&error),
            }
        }
        let Some((writer, _)) = &mut self.writer else { return Ok(false) };
        writer.offer(|state| {
            self.trainer.copy_state(state)?;
            Ok(Header {
                run: self.run.clone(),
                part: self.snapshots.part().to_owned(),
                step: state.step,
                cursor: state.cursor,
                threads: rayon::current_num_threads(),
                supersedes: self.supersedes.clone(),
            })
        })
    }

    /// Notes what became of the last snapshot, if that is known.
    pub fn collect(&mut self) {
        let outcome = self.writer.as_mut().and_then(|(writer, _)| writer.outcome());
        self.note(outcome);
    }

    /// Waits until nothing is being written.
    pub fn settle(&mut self) {
        let outcome = self.writer.as_mut().and_then(|(writer, _)| writer.wait());
        self.note(outcome);
    }

    fn note(&mut self, outcome: Option<Result<Written, SnapshotError>>) {
        match outcome {
            Some(Ok(written)) => (self.written, self.problem) = (Some(written), None),
            Some(Err(error)) => {
                // Begun anew for the next one: the folder may have to be made again.
                self.writer = None;
                self.note_problem(&error);
            }
            None => {}
        }
    }

    /// Says a new problem once.
    fn note_problem(&mut self, error: &SnapshotError) {
        if self.problem.as_deref() != Some(&error.to_string()) {
            self.problem = Some(complain(error));
        }
    }

    /// The state of this moment, to be published: whoever is told to go on from it may go on from any later snapshot.
    ///
    /// # Errors
    /// Where it cannot be read from its device.
    pub fn publish(&mut self) -> Result<Published, TrainError> {
        let published = self.trainer.published()?;
        self.supersedes.push(name_of(&published));
        // The first stays: of what a node without a quorum publishes nothing is signed, and where it began is what is named again.
        let surplus = self.supersedes.len().saturating_sub(SUPERSEDED_MAX);
        self.supersedes.drain(1..1 + surplus);
        Ok(published)
    }
}
