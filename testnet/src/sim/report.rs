//! What a simulation measured, as a table and as JSON.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

use super::scenario::Spread;

/// The result of one simulated network. Times in seconds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// How gossip travelled.
    pub gossip: Spread,
    /// Nodes, liars among them.
    pub nodes: u32,
    /// Parts, the router among them.
    pub parts: u16,
    /// Simulated hours.
    pub hours: f64,
    /// The seed that replays it.
    pub seed: u64,
    /// From the first start until a part is trained: median, 99th percentile over parts.
    pub owned_p50_s: f64,
    /// See `owned_p50_s`.
    pub owned_p99_s: f64,
    /// From the death of a part's only trainer to the next one's start: median.
    pub takeover_p50_s: f64,
    /// The same: 99th percentile.
    pub takeover_p99_s: f64,
    /// Takeovers after a death.
    pub takeovers: usize,
    /// Share of part-time in which nobody trained, after the first owner, percent.
    pub unowned_percent: f64,
    /// Share of part-time in which more than one owner trained, percent.
    pub duplicated_percent: f64,
    /// Changes of a part's trainer an hour, over all parts.
    pub transfers_per_hour: f64,
    /// Gossip messages that a node sends a second.
    pub sent_per_node_second: f64,
    /// Bytes of gossip that a node hears a second, were it to hear everything once.
    pub heard_bytes_per_second: f64,
    /// Copies of messages that a node sends to neighbours a second; 0 where gossip does not go by hops.
    pub copies_per_node_second: f64,
    /// From the saying of a message to its hearing by hops: median.
    pub hops_p50_s: f64,
    /// The same: 99th percentile.
    pub hops_p99_s: f64,
    /// Longest time from the end of a partition until all agree.
    pub divergence_s: f64,
    /// Checkpoints published by honest nodes.
    pub checkpoints: u64,
    /// Best checkpoints of a part that no honest node has at the end.
    pub checkpoints_lost: u64,
    /// Parts that a liar came to own by the votes of others, and trained not.
    pub squatted: u64,
    /// Parts that a liar took from an owner that lived.
    pub robbed: u64,
    /// Nodes that refused to go on from an old copy of their disk.
    pub halted: u64,
    /// Events that happened.
    pub events: u64,
    /// Processor time, seconds: not part of what a seed replays.
    pub cpu_s: f64,
    /// The most memory that the process ever had, megabytes: not part of it either.
    pub peak_mb: u64,
}

/// Counts and spans while a simulation runs.
#[derive(Default)]
pub(super) struct Spans {
    pub(super) first_owned: Vec<Duration>,
    pub(super) takeovers: Vec<Duration>,
    pub(super) divergences: Vec<Duration>,
}

/// The value below which this share of the spans lies, seconds; 0 for none.
pub(super) fn percentile(spans: &mut [Duration], share: f64) -> f64 {
    spans.sort_unstable();
    let at = ((spans.len() as f64 * share).ceil() as usize).clamp(1, spans.len().max(1)) - 1;
    spans.get(at).map_or(0.0, Duration::as_secs_f64)
}

impl Report {
    /// Heading of [`Report`]'s table.
    pub const HEADING: &'static str = "scenario              nodes parts  hours   seed | owned p50/p99 s | takeover p50/p99 s    n | unowned %  dupl. % | changes/h | msg/s   B/s heard | heal s | lost |  cpu s    MB";

    /// Fills in how fast hops were.
    pub(super) fn set_hops(&mut self, spans: &mut [Duration]) {
        (self.hops_p50_s, self.hops_p99_s) = (percentile(spans, 0.5), percentile(spans, 0.99));
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<20} {:>6} {:>5} {:>6.2} {:>6} | {:>6.1} {:>7.1} | {:>8.1} {:>8.1} {:>5} | {:>9.3} {:>8.3} | {:>9.2} | {:>5.3} {:>11.0} | {:>6.0} | {:>4} | {:>6.1} {:>5}",
            self.scenario,
            self.nodes,
            self.parts,
            self.hours,
            self.seed,
            self.owned_p50_s,
            self.owned_p99_s,
            self.takeover_p50_s,
            self.takeover_p99_s,
            self.takeovers,
            self.unowned_percent,
            self.duplicated_percent,
            self.transfers_per_hour,
            self.sent_per_node_second,
            self.heard_bytes_per_second,
            self.divergence_s,
            self.checkpoints_lost,
            self.cpu_s,
            self.peak_mb
        )
    }
}
