//! What a node keeps of its own training on the disk: snapshots and histories.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use paris_model::snapshot::Snapshots;
use paris_protocol::{hash::Hash, manifest::RunId, part::Part};

use crate::{
    history::{History, Line, summary::Summary},
    store::DataDir,
};

/// Between two snapshots of a part, if the operator says nothing else: what a killed process loses at most.
pub const SNAPSHOT_EVERY: Duration = Duration::from_secs(60);

/// Where a run's snapshots and histories are. Cheap to clone.
#[derive(Clone)]
pub(super) struct Places {
    run: RunId,
    dir: DataDir,
    pub(super) snapshot_every: Duration,
}

impl Places {
    pub(super) fn new(dir: DataDir, run: RunId, snapshot_every: Duration) -> Self {
        Self { run, dir, snapshot_every }
    }

    /// The run's name in snapshots.
    pub(super) fn run(&self) -> String {
        self.run.0.to_string()
    }

    pub(super) fn snapshots(&self, part: Part) -> Snapshots {
        Snapshots::new(&self.dir.snapshots_path(&self.run()), &part.name())
    }

    pub(super) fn history(&self) -> History {
        History::new(self.dir.history_path(&self.run()))
    }
}

/// What the driver knows of it.
pub(super) struct Keeping {
    pub(super) places: Places,
    /// How training went here, of each part that ever was in training here.
    summaries: HashMap<Part, Summary>,
    /// Parts with snapshots that are not in training, each with the best state when that was last looked at.
    left: BTreeMap<Part, Option<Hash>>,
}

impl Keeping {
    pub(super) fn new(places: Places, parts: impl Iterator<Item = Part>) -> Self {
        let history = places.history();
        let with_snapshots = Snapshots::parts(&places.dir.snapshots_path(&places.run()));
        let (mut summaries, mut left) = (HashMap::new(), BTreeMap::new());
        for part in parts {
            // An unreadable history is no reason not to start.
            let summary = Summary::of(history.tail(&part.name()).unwrap_or_default());
            if !summary.is_empty() {
                summaries.insert(part, summary);
            }
            if with_snapshots.contains(&part.name()) {
                left.insert(part, None);
            }
        }
        Self { places, summaries, left }
    }

    pub(super) fn summary(&self, part: Part) -> Option<&Summary> {
        self.summaries.get(&part)
    }

    /// Takes in what a trainer has written to its history.
    pub(super) fn note(&mut self, part: Part, line: Line) {
        self.summaries.entry(part).or_default().note(line);
    }

    /// Takes in what happened to a part whose trainer is gone, and writes it to its history.
    pub(super) fn write(&mut self, part: Part, line: Line) {
        let written = self.places.history().append(&part.name()).and_then(|mut file| file.add(&line));
        if let Err(error) = written {
            tracing::warn!("the history of {part} could not be written: {error}");
        }
        self.note(part, line);
    }

    /// A part's trainer has ended: from now on its snapshots may become needless.
    pub(super) fn leave(&mut self, part: Part) {
        self.left.insert(part, None);
    }

    /// Removes snapshots that can never be used again: those of parts in training nowhere on this machine whose best published state, `best`, they do not
    /// supersede. As long as nobody has published beyond them they stay, whoever owns the part.
    pub(super) fn discard_overtaken(&mut self, trains: impl Fn(Part) -> bool, best: impl Fn(Part) -> Option<Hash>) {
        for (part, seen) in &mut self.left {
            let best = best(*part);
            if best == *seen || trains(*part) {
                continue;
            }
            *seen = best;
            if let Some(best) = best {
                let (snapshots, best) = (self.places.snapshots(*part), best.to_string());
                // Removing large files can take a while.
                tokio::task::spawn_blocking(move || {
                    snapshots.discard_unless(|header| header.supersedes.contains(&best));
                });
            }
        }
    }
}
