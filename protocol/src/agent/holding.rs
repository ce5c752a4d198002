//! Checkpoints: which to keep, pass on and train from.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    Action, Agent,
    ownership::{Owned, Phase},
};
use crate::{
    checkpoint::{Blob, Checkpoint, CheckpointId},
    lease::Time,
    message::Gossip,
    part::Part,
    register::Merged,
    signed::Verified,
};

/// Failed fetches after which an owner goes on from the next best checkpoint.
const ATTEMPTS_MAX: u32 = 4;
/// Checkpoints kept of a part: the best and the one before, for peers still fetching it.
const KEPT_OF_A_PART: usize = 2;

/// Which checkpoints of other owners a node keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// Those that fall to it among the manifest's number of replicas, with their resumable state.
    Replicas,
    /// Those, and the weights of every part's best checkpoint: for one who samples.
    Everything,
}

/// A checkpoint that this node's trainer wrote, its blobs in the local store.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    /// Optimiser steps since the part's beginning.
    pub step: u64,
    /// Loss on the held-out shards.
    pub held_out_loss: f32,
    /// The averaged weights.
    pub weights: Blob,
    /// The resumable state.
    pub state: Blob,
}

/// Why a fetch failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FetchFailure {
    /// Nobody delivered: worth another try.
    Unavailable,
    /// The bytes are what the hash says, and no checkpoint of this part: never to be tried again.
    Unusable,
}

/// What the local store has, and what is on its way.
#[derive(Debug)]
pub(super) struct Holding {
    /// By name: whether the resumable state is there too.
    held: BTreeMap<CheckpointId, bool>,
    pub(super) fetching: BTreeSet<CheckpointId>,
    /// Failures in a row, and when to try again.
    pub(super) failed: BTreeMap<CheckpointId, (u32, Time)>,
    unusable: BTreeSet<CheckpointId>,
    /// Left to others for now, and since when.
    pub(super) left: BTreeMap<CheckpointId, Time>,
}

impl Holding {
    pub(super) fn new(held: Vec<(CheckpointId, bool)>) -> Self {
        let held = held.into_iter().collect();
        Self {
            held,
            fetching: BTreeSet::new(),
            failed: BTreeMap::new(),
            unusable: BTreeSet::new(),
            left: BTreeMap::new(),
        }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = CheckpointId> + '_ {
        self.held.keys().copied()
    }

    pub(super) fn has(&self, id: CheckpointId, state: bool) -> bool {
        self.held.get(&id).is_some_and(|has_state| *has_state || !state)
    }
}

impl Agent {
    /// The best checkpoint of a part that was not found unusable: what a mixture takes.
    pub fn best(&self, part: Part) -> Option<&Verified<Checkpoint>> {
        self.usable(part).next().map(|(_, checkpoint)| checkpoint)
    }

    /// True if the checkpoint's weights are in the local store.
    pub fn holds(&self, id: CheckpointId) -> bool {
        self.holding.has(id, false)
    }

    /// True if the checkpoint's resumable state is in the local store.
    pub(super) fn has_state(&self, id: CheckpointId) -> bool {
        self.holding.has(id, true)
    }

    /// How many nodes, this one included, hold a checkpoint.
    pub fn holders(&self, id: CheckpointId) -> usize {
        let peers = self.others().filter(|(_, peer)| peer.presence.holds.contains(&id)).count();
        peers + usize::from(self.holds(id))
    }

    /// From now on keeps the weights of every part.
    pub fn mirror_everything(&mut self) {
        self.settings.mirror = Mirror::Everything;
        self.look_soon();
    }

    /// This node's trainer wrote a checkpoint: sign it, tell everyone. None if the part was never this node's, or if the checkpoint is one that
    /// every peer would refuse, such as one whose loss is not finite.
    pub fn checkpointed(&mut self, now: Time, part: Part, made: Made) -> Option<CheckpointId> {
        let in_training = |owned: &&Owned| owned.phase == Phase::Training;
        // A part claimed anew while its old trainer still finishes: the checkpoint belongs to the old claim.
        let (claim, term, parent) = match self.owned.get(&part).filter(in_training) {
            Some(owned) => (owned.id, owned.claim.term, owned.parent),
            None => *self.former.get(&part)?,
        };
        let Made { step, held_out_loss, weights, state } = made;
        let record = Checkpoint { part, claim, term, parent, step, held_out_loss, weights, state };
        let checkpoint = Verified::sign(&self.keypair, self.run, record);
        let id = checkpoint.id();
        if let Merged::Invalid(_) | Merged::Unlinked = self.register.merge_checkpoint(checkpoint.clone()) {
            return None;
        }
        self.look_soon();
        self.holding.held.insert(id, true);
        self.act(Action::RememberCheckpoint(checkpoint.signed().clone()));
        self.publish(&Gossip::Checkpoint(checkpoint.signed().clone()));
        match self.owned.get_mut(&part) {
            Some(owned) if owned.id == claim => {
                owned.parent = Some(id);
                self.consider_handover(now, part);
            }
            _ => {
                if let Some((_, _, parent)) = self.former.get_mut(&part) {
                    *parent = Some(id);
                }
            }
        }
        self.next_beat = now;
        Some(id)
    }

    /// A fetched checkpoint is in the local store and fits the manifest.
    pub fn fetched(&mut self, now: Time, id: CheckpointId, state: bool) {
        self.look_soon();
        self.holding.fetching.remove(&id);
        self.holding.failed.remove(&id);
        self.holding.left.remove(&id);
        let held = self.holding.held.entry(id).or_default();
        *held |= state;
        self.next_beat = now;
    }

    /// A checkpoint's blobs are damaged or gone from the local store: it is fetched again if it is still wanted.
    pub fn lost(&mut self, now: Time, id: CheckpointId) {
        self.holding.held.remove(&id);
        self.next_beat = now;
    }

    /// A fetch failed.
    pub fn fetch_failed(&mut self, now: Time, id: CheckpointId, why: FetchFailure) {
        self.look_soon();
        self.holding.fetching.remove(&id);
        match why {
            FetchFailure::Unusable => {
                let of = |part| self.register.checkpoint(part, id).map(|it| (part, it.claim));
                if let Some((part, claim)) = self.manifest.parts().find_map(of) {
                    self.note_useless(part, claim);
                }
                self.holding.unusable.insert(id);
            }
            FetchFailure::Unavailable => self.note_failure(now, id),
        }
    }

    pub(super) fn note_failure(&mut self, now: Time, id: CheckpointId) {
        let (failures, retry) = self.holding.failed.entry(id).or_default();
        *failures += 1;
        *retry = now + Time::from_millis(500 << (*failures).min(6));
        self.next_look = self.next_look.min(*retry);
    }

    /// Something changed about checkpoints: the next tick looks at them.
    pub(super) fn look_soon(&mut self) {
        self.stirred = true;
        self.next_look = Time::ZERO;
    }

    /// The part's checkpoints that were not found unusable, best first.
    pub(super) fn usable(&self, part: Part) -> impl Iterator<Item = (CheckpointId, &Verified<Checkpoint>)> {
        self.register.named_checkpoints(part).filter(|(id, _)| !self.holding.unusable.contains(id))
    }

    /// Starts training a part that is owned, from the best checkpoint that can be had.
    ///
    /// One that nobody delivers is passed over for the next best, and a part none of whose checkpoints can be had begins anew: a part
    /// must not die with its last holder. An isolated node waits instead, for it would begin anew what others still have.
    pub(super) fn begin(&mut self, now: Time, part: Part) {
        if let Some(from) = self.adopt_shadow(part)
            && let Some(owned) = self.owned.get_mut(&part)
        {
            owned.phase = Phase::Training;
            owned.parent = from;
            return;
        }
        let choices: Vec<_> = self.usable(part).map(|(id, checkpoint)| (id, checkpoint.clone())).collect();
        if matches!(self.owned.get(&part), Some(Owned { phase: Phase::Intent { .. }, .. })) {
            // What failed while this node only mirrored the part says nothing of now: an owner tries for itself.
            self.holding.failed.retain(|id, _| !choices.iter().any(|(choice, _)| choice == id));
        }
        let gave_up = |agent: &Self, id| agent.holding.failed.get(&id).is_some_and(|(times, _)| *times >= ATTEMPTS_MAX);
        let choice = choices.iter().find(|(id, _)| self.holding.has(*id, true) || !gave_up(self, *id)).cloned();
        let Some(owned) = self.owned.get_mut(&part) else { return };
        match choice {
            Some((id, _)) if self.holding.has(id, true) => {
                owned.phase = Phase::Training;
                owned.parent = Some(id);
                self.act(Action::Train { part, from: Some(id) });
            }
            Some((id, checkpoint)) => {
                owned.phase = Phase::Resuming;
                if !self.fetch(now, &checkpoint, true) && !self.holding.fetching.contains(&id) {
                    self.wake_at(now + Time::from_millis(500));
                }
            }
            None if choices.is_empty() || !self.connected.is_empty() => {
                owned.phase = Phase::Training;
                self.act(Action::Train { part, from: None });
            }
            None => {
                owned.phase = Phase::Resuming;
                self.holding.failed.clear();
                self.wake_at(now + Time::from_secs(1));
            }
        }
    }

    /// Fetches what this node should hold, and forgets what nobody needs from it.
    pub(super) fn attend_checkpoints(&mut self, now: Time) {
        for part in self.manifest.clone().parts() {
            let best = self.best(part).filter(|best| !self.holding.has(best.id(), true));
            if let Some(best) = best.cloned() {
                self.keep_up(now, &best);
            }
        }
        self.forget_surplus();
    }

    fn forget_surplus(&mut self) {
        let parents = self.owned.values().filter_map(|owned| owned.parent);
        let mut needed: BTreeSet<_> = parents.chain(self.shadows.values().copied().flatten()).collect();
        for part in self.manifest.parts() {
            let held = self.usable(part).map(|(id, _)| id).filter(|id| self.holding.held.contains_key(id));
            needed.extend(held.take(KEPT_OF_A_PART));
        }
        let Holding { failed, unusable, left, .. } = &self.holding;
        if !(failed.is_empty() && unusable.is_empty() && left.is_empty()) {
            let listed = |part| self.register.named_checkpoints(part).map(|(id, _)| id);
            let listed: BTreeSet<_> = self.manifest.parts().flat_map(listed).collect();
            self.holding.failed.retain(|id, _| listed.contains(id));
            self.holding.unusable.retain(|id| listed.contains(id));
            self.holding.left.retain(|id, _| listed.contains(id));
        }
        let surplus: Vec<_> = self.holding.ids().filter(|id| !needed.contains(id)).collect();
        for id in surplus {
            self.holding.held.remove(&id);
            self.act(Action::Forget(id));
        }
    }
}
