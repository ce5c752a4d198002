//! Where a part's training begins.
//!
//! A caller names a published state to go on from, or none. The part's own latest snapshot is used instead if it is whole, of the
//! same run and part, and lists that state among those it *supersedes*: the state its training once began from, and those it has published
//! since. Then whoever trains from the named state would do again what the snapshot has done already. Nothing else is compared, neither claims nor
//! clocks nor steps: if another owner's checkpoint is named, it is not in the list, and a snapshot from before that owner's time is left aside; if this
//! node's own last checkpoint was written and never signed, the one before it is named, and is in the list. Where no state is named there
//! is none to be had, and any snapshot of the run's part is better than beginning anew.

use super::{Durable, DurableError, Setup};
use crate::{
    snapshot::{Header, SnapshotError, SnapshotWriter, Snapshots, files::SnapshotLock},
    state::{Published, State},
    trainer::{TrainError, Trainer},
};

/// Where training began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// At the part's beginning: from random weights, or from the base checkpoint.
    Beginning,
    /// From the published state that was named.
    Published,
    /// From this machine's own snapshot.
    Snapshot {
        /// Threads that wrote it.
        threads: usize,
    },
}

/// Where a part's training begins: chosen, and not yet begun.
pub struct Beginning {
    setup: Setup,
    run: String,
    snapshots: Snapshots,
    writer: Option<(SnapshotWriter, SnapshotLock)>,
    problem: Option<String>,
    state: Option<State>,
    origin: Origin,
    supersedes: Vec<String>,
}

impl Beginning {
    /// Chooses as the module says: `published`, the own snapshot that supersedes it, or anew.
    pub fn choose(
        setup: Setup,
        run: &str,
        snapshots: Snapshots,
        published: Option<Published>,
    ) -> Result<Self, DurableError> {
        setup.config.validate().map_err(TrainError::from)?;
        // Before anything is read: another trainer of this part may be about to write its last.
        let (writer, problem) = match start_writer(&snapshots) {
            Ok(started) => (Some(started), None),
            Err(error) => (None, Some(complain(&error))),
        };
        let named = published.as_ref().map(name_of);
        let fits =
            |header: &Header| header.run == run && named.as_ref().is_none_or(|named| header.supersedes.contains(named));
        let (state, origin, supersedes) = match snapshots.latest(&setup.config, fits) {
            Some((Header { threads, supersedes, .. }, state)) => {
                (Some(state), Origin::Snapshot { threads }, supersedes)
            }
            None => {
                let state = published.map(|it| State::read_published(&it, &setup.config)).transpose();
                let state = state.map_err(TrainError::from)?;
                let origin = if state.is_some() { Origin::Published } else { Origin::Beginning };
                (state, origin, named.into_iter().collect())
            }
        };
        let now = rayon::current_num_threads();
        if let Origin::Snapshot { threads } = origin
            && threads != now
        {
            tracing::warn!(
                "the snapshot was trained on {threads} threads and this is {now}: training goes on, equal within rounding and not to the bit"
            );
        }
        Ok(Self { setup, run: run.to_owned(), snapshots, writer, problem, state, origin, supersedes })
    }

    /// Where training begins.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The trainer as it is there.
    pub fn trainer(&self) -> Result<Trainer, TrainError> {
        self.setup.trainer(self.state.as_ref())
    }

    /// Begins, with a trainer made here that may have been given another micro-batch. Where it is not a snapshot that it goes on from, one is written at
    /// once, so that there is something to go back to.
    pub fn train(self, trainer: Trainer) -> Result<Durable, DurableError> {
        let Self { setup, run, snapshots, writer, problem, origin, supersedes, .. } = self;
        let (written, fallbacks, failed) = (None, 0, None);
        let mut durable = Durable {
            config: setup.config,
            run,
            trainer,
            origin,
            snapshots,
            writer,
            begun_anew: supersedes.is_empty(),
            supersedes,
            written,
            problem,
            fallbacks,
            failed,
            passed: 0,
        };
        if !matches!(origin, Origin::Snapshot { .. }) {
            durable.snapshot()?;
        }
        Ok(durable)
    }
}

/// The name of a published state: BLAKE3 of its second blob, in hexadecimal. What the first holds follows from how that came to be.
pub(super) fn name_of(published: &Published) -> String {
    blake3::hash(&published.state).to_hex().to_string()
}

/// Takes the part's snapshots for this trainer and starts the thread that writes them.
pub(super) fn start_writer(snapshots: &Snapshots) -> Result<(SnapshotWriter, SnapshotLock), SnapshotError> {
    let lock = snapshots.lock()?;
    let writer = SnapshotWriter::start(snapshots.clone());
    Ok((writer.map_err(|error| SnapshotError::Io { path: "the thread that writes".into(), error })?, lock))
}

/// Says an error that does not stop training, and returns it as text.
pub(super) fn complain(error: &SnapshotError) -> String {
    tracing::error!("no snapshot is written: {error}");
    error.to_string()
}
