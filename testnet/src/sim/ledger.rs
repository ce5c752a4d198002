//! Who trains what, as an all-seeing observer writes it down, and the laws that it holds every agent to.

use std::{collections::BTreeMap, time::Duration};

use anyhow::ensure;
use paris_protocol::{
    checkpoint::CheckpointId, claim::ClaimId, identity::NodeId, lease::Time, part::Part, register::Register,
};

use super::{
    queue::Place,
    report::{Report, Spans, percentile},
};

/// Cohorts on both sides of a cut, at most.
const COHORTS_MAX: usize = 8;

/// What is known of a part.
#[derive(Clone, Debug, Default)]
struct PartEntry {
    trainers: u32,
    changed: Time,
    owned: bool,
    last: Option<Place>,
    orphaned: Option<Time>,
    unowned: Duration,
    duplicated: Duration,
    /// The greatest checkpoint by (term, step) that an honest node published, and who.
    best: Option<(u64, u64, CheckpointId)>,
}

/// The observer's book.
pub(super) struct Ledger {
    parts: BTreeMap<Part, PartEntry>,
    /// The fence of every node, and of every cohort after them: the greatest current claim that it ever named, by part.
    fences: Vec<BTreeMap<Part, (u64, ClaimId)>>,
    /// The one claim of a key on a part and term.
    claims: BTreeMap<(Part, u64, NodeId), ClaimId>,
    pub(super) spans: Spans,
    transfers: u64,
    checkpoints: u64,
}

impl Ledger {
    pub(super) fn new(parts: impl Iterator<Item = Part>, nodes: u32) -> Self {
        Self {
            parts: parts.map(|part| (part, PartEntry::default())).collect(),
            fences: vec![BTreeMap::new(); nodes as usize + COHORTS_MAX],
            claims: BTreeMap::new(),
            spans: Spans::default(),
            transfers: 0,
            checkpoints: 0,
        }
    }

    fn entry(&mut self, part: Part) -> &mut PartEntry {
        self.parts.entry(part).or_default()
    }

    /// An owner begins to train.
    pub(super) fn begins(&mut self, now: Time, part: Part, node: Place) {
        let entry = self.entry(part);
        entry.settle(now);
        entry.trainers += 1;
        let changed = entry.last.is_some_and(|last| last != node);
        entry.last = Some(node);
        let (first, orphaned) = (!std::mem::replace(&mut entry.owned, true), entry.orphaned.take());
        if first {
            self.spans.first_owned.push(now);
        }
        self.spans.takeovers.extend(orphaned.map(|since| now - since));
        self.transfers += u64::from(changed);
    }

    /// An owner's trainer ends; `died` if nobody was told.
    pub(super) fn ends(&mut self, now: Time, part: Part, died: bool) {
        let entry = self.entry(part);
        entry.settle(now);
        entry.trainers -= 1;
        if died && entry.trainers == 0 {
            entry.orphaned = Some(now);
        }
    }

    pub(super) fn published(&mut self, part: Part, term: u64, step: u64, id: CheckpointId) {
        self.checkpoints += 1;
        let entry = self.entry(part);
        entry.best = entry.best.max(Some((term, step, id)));
    }

    /// A law: one claim of an honest key on a part and term, across all its crashes. True if this one is new.
    pub(super) fn signed(
        &mut self,
        part: Part,
        term: u64,
        owner: NodeId,
        id: ClaimId,
        liar: bool,
    ) -> anyhow::Result<bool> {
        let before = self.claims.insert((part, term, owner), id);
        ensure!(liar || before.is_none_or(|before| before == id), "{owner} signed two claims on {part} in term {term}");
        Ok(before != Some(id))
    }

    /// A law: the current claim that a node names never goes back.
    pub(super) fn fence(&mut self, node: usize, part: Part, register: &Register) -> anyhow::Result<()> {
        let Some(claim) = register.current(part) else { return Ok(()) };
        let Some(id) = register.current_id(part) else { return Ok(()) };
        let now = (claim.term, id);
        let before = self.fences[node].insert(part, now);
        ensure!(before <= Some(now), "node {node} went back from {before:?} to {now:?} on {part}");
        Ok(())
    }

    /// Node `node` has lost its memory of others: what it names may be less.
    pub(super) fn forget_fence(&mut self, node: usize) {
        self.fences[node].clear();
    }

    /// The best published checkpoint of every part.
    pub(super) fn best(&self) -> impl Iterator<Item = (Part, CheckpointId)> + '_ {
        self.parts.iter().filter_map(|(part, entry)| Some((*part, entry.best?.2)))
    }

    /// Parts with another number of owners than one.
    pub(super) fn not_owned_once(&self) -> Vec<Part> {
        self.parts.iter().filter(|(_, entry)| entry.trainers != 1).map(|(part, _)| *part).collect()
    }

    /// Fills in what the book says.
    pub(super) fn close(&mut self, now: Time, report: &mut Report) {
        let (mut unowned, mut duplicated) = (Duration::ZERO, Duration::ZERO);
        for entry in self.parts.values_mut() {
            entry.settle(now);
            unowned += entry.unowned;
            duplicated += entry.duplicated;
        }
        let total = now.as_secs_f64() * self.parts.len() as f64;
        report.unowned_percent = 100.0 * unowned.as_secs_f64() / total;
        report.duplicated_percent = 100.0 * duplicated.as_secs_f64() / total;
        report.transfers_per_hour = self.transfers as f64 / report.hours;
        report.checkpoints = self.checkpoints;
        report.owned_p50_s = percentile(&mut self.spans.first_owned, 0.5);
        report.owned_p99_s = percentile(&mut self.spans.first_owned, 0.99);
        report.takeover_p50_s = percentile(&mut self.spans.takeovers, 0.5);
        report.takeover_p99_s = percentile(&mut self.spans.takeovers, 0.99);
        report.takeovers = self.spans.takeovers.len();
        report.divergence_s = percentile(&mut self.spans.divergences, 1.0);
    }
}

impl PartEntry {
    /// Books the time since the last change.
    fn settle(&mut self, now: Time) {
        let span = now - self.changed;
        self.changed = now;
        match self.trainers {
            0 if self.owned => self.unowned += span,
            0 | 1 => {}
            more => self.duplicated += span * (more - 1),
        }
    }
}
