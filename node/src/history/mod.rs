//! A part's history on this machine: how its training went, a line every few seconds, for `status`, `history`, a plot, and a page to come.
//!
//! The file is `history/RUN/PART.jsonl` in the data directory: JSON lines, each of a `kind`. Names and units are stable; [`VERSION`] grows when they change.
//! A reader passes over what it does not understand, such as the torn last line of a process that was killed. The file is bounded: when it is
//! full, the older half is merged by twos ([`mod@file`]), so that weeks fit and the newest hours are the finest.

pub mod file;
mod interval;
pub mod plot;
pub mod summary;

use std::{
    fmt::{self, Display},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

pub use self::file::History;
pub(crate) use self::interval::Interval;

/// Version of the lines.
pub const VERSION: u32 = 1;
/// A line of a history.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Line {
    /// Some seconds of training.
    Steps(Steps),
    /// Something that happened.
    Event(Event),
}

/// Some seconds of training. Losses are means over the steps, rates over the seconds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Steps {
    /// Version of the line.
    pub version: u32,
    /// When the interval ended, seconds since 1970.
    pub time_s: u64,
    /// Optimiser steps done at its end.
    pub step: u64,
    /// Steps in it.
    pub steps: u64,
    /// Its length, seconds.
    pub seconds: f64,
    /// Training loss.
    pub loss: f32,
    /// The gradients' global norm before clipping.
    pub gradient_norm: f32,
    /// Training loss by the time t of the noising, in [`TIME_BINS`](paris_model::report::TIME_BINS) bins evenly over 0..1; null where none was drawn.
    pub loss_by_time: Vec<Option<f32>>,
    /// The last held-out loss; null where it was not finite.
    pub held_out_loss: Option<f32>,
    /// Samples trained on a second.
    pub samples_per_s: f64,
    /// Where the seconds went.
    pub split: Split,
    /// Step of the last snapshot on the disk, if this process has written one.
    pub snapshot_step: Option<u64>,
    /// Why the last snapshot was not written; none where it was.
    pub snapshot_problem: Option<String>,
}

/// Where time went, seconds of the trainer's thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Split {
    /// Waiting for and drawing batches.
    pub data: f64,
    /// Forward passes.
    pub forward: f64,
    /// Backward passes.
    pub backward: f64,
    /// Updates of the parameters and their average.
    pub optimizer: f64,
    /// Copying snapshots; they are written beside training.
    pub snapshot: f64,
    /// Measuring and serialising what is published.
    pub checkpoint: f64,
    /// The rest of the interval.
    pub other: f64,
}

impl Split {
    /// The shares with their names, in the order of a step.
    pub fn named(&self) -> [(&'static str, f64); 7] {
        let Self { data, forward, backward, optimizer, snapshot, checkpoint, other } = *self;
        [
            ("data", data),
            ("forward", forward),
            ("backward", backward),
            ("optimizer", optimizer),
            ("snapshot", snapshot),
            ("checkpoint", checkpoint),
            ("other", other),
        ]
    }

    fn plus(&self, more: &Self) -> Self {
        Self {
            data: self.data + more.data,
            forward: self.forward + more.forward,
            backward: self.backward + more.backward,
            optimizer: self.optimizer + more.optimizer,
            snapshot: self.snapshot + more.snapshot,
            checkpoint: self.checkpoint + more.checkpoint,
            other: self.other + more.other,
        }
    }
}

/// What can happen to a part in training.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventName {
    /// Training began here.
    Began,
    /// A step failed, and training went back to a snapshot.
    WentBack,
    /// Training here ended by a failure.
    Failed,
    /// Training here ended in order.
    Ended,
}

impl Display for EventName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EventName::Began => "began",
            EventName::WentBack => "went back",
            EventName::Failed => "failed",
            EventName::Ended => "ended",
        })
    }
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Version of the line.
    pub version: u32,
    /// When, seconds since 1970.
    pub time_s: u64,
    /// Optimiser steps done.
    pub step: u64,
    /// What.
    pub event: EventName,
    /// The same for people.
    pub message: String,
}

impl Line {
    /// An event of this moment.
    pub(crate) fn event(event: EventName, step: u64, message: impl Into<String>) -> Self {
        Line::Event(Event { version: VERSION, time_s: now_s(), step, event, message: message.into() })
    }

    /// Optimiser steps done.
    pub fn step(&self) -> u64 {
        match self {
            Line::Steps(steps) => steps.step,
            Line::Event(event) => event.step,
        }
    }
}

impl Event {
    /// True for what an operator should look into.
    pub fn is_failure(&self) -> bool {
        matches!(self.event, EventName::WentBack | EventName::Failed)
    }
}

impl Steps {
    /// Two intervals as one, `later` being the later.
    fn merged(&self, later: &Self) -> Self {
        let steps = self.steps + later.steps;
        let mean = |a: f64, weight_a: f64, b: f64, weight_b: f64| {
            if weight_a + weight_b > 0.0 { (a * weight_a + b * weight_b) / (weight_a + weight_b) } else { b }
        };
        let by_steps = |a: f32, b: f32| mean(a.into(), self.steps as f64, b.into(), later.steps as f64) as f32;
        let bins = self.loss_by_time.len().max(later.loss_by_time.len());
        let bin = |bins: &[Option<f32>], bin: usize| bins.get(bin).copied().flatten();
        let by_time = (0..bins).map(|index| match (bin(&self.loss_by_time, index), bin(&later.loss_by_time, index)) {
            (Some(a), Some(b)) => Some(by_steps(a, b)),
            (a, b) => a.or(b),
        });
        Self {
            steps,
            seconds: self.seconds + later.seconds,
            loss: by_steps(self.loss, later.loss),
            gradient_norm: by_steps(self.gradient_norm, later.gradient_norm),
            loss_by_time: by_time.collect(),
            samples_per_s: mean(self.samples_per_s, self.seconds, later.samples_per_s, later.seconds),
            split: self.split.plus(&later.split),
            ..later.clone()
        }
    }
}

/// A part's history as the local API and `history --json` give it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PartHistory {
    /// [`VERSION`].
    pub version: u32,
    /// `expert-3` or `router`.
    pub part: String,
    /// Oldest first.
    pub lines: Vec<Line>,
}

impl PartHistory {
    pub(crate) fn new(part: String, lines: Vec<Line>) -> Self {
        Self { version: VERSION, part, lines }
    }
}

/// The same history in fewer lines: neighbours are merged by twos until at most `most` intervals are left, or
/// none is next to another. Events stay.
pub fn thinned(mut lines: Vec<Line>, most: usize) -> Vec<Line> {
    loop {
        let before = lines.len();
        if lines.iter().filter(|line| matches!(line, Line::Steps(_))).count() <= most {
            return lines;
        }
        lines = by_twos(lines);
        if lines.len() == before {
            return lines;
        }
    }
}

/// Merges every two intervals between which nothing happened.
fn by_twos(lines: Vec<Line>) -> Vec<Line> {
    let mut merged: Vec<Line> = Vec::with_capacity(lines.len() / 2 + 1);
    let mut open = false;
    for line in lines {
        match (merged.last_mut(), &line) {
            (Some(Line::Steps(last)), Line::Steps(next)) if open => {
                *last = last.merged(next);
                open = false;
            }
            _ => {
                open = matches!(line, Line::Steps(_));
                merged.push(line);
            }
        }
    }
    merged
}

/// Seconds since 1970 by this machine's clock: for people to read, nothing is decided by it.
pub(crate) fn now_s() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().unwrap_or(Duration::ZERO).as_secs()
}
