//! Owning parts: from the claim through training to giving up.

use super::{Action, Agent, Halt, millis};
use crate::{
    checkpoint::CheckpointId,
    claim::{Claim, ClaimId},
    lease::Time,
    part::Part,
};

/// The least number of parts by which an owner must exceed an idle peer before it hands one over.
const HANDOVER_GAIN: usize = 2;
/// For how many ttls a node leaves a part alone that it could not train.
const RETRY_TTLS: u32 = 4;
/// For how many heartbeats it leaves one alone that it handed over in good order: as long as the heir may take. Longer, and a part that soon comes back
/// would wait for the one node that knows it.
const HEIR_HEARTBEATS: u32 = 4;

/// A part this node claims.
#[derive(Clone, Debug)]
pub(super) struct Owned {
    pub(super) claim: Claim,
    pub(super) id: ClaimId,
    pub(super) phase: Phase,
    /// The checkpoint that the next one follows.
    pub(super) parent: Option<CheckpointId>,
}

/// How far an owner has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Claimed, waiting whether a greater claim comes.
    Intent {
        /// Until when.
        until: Time,
    },
    /// Owned; the checkpoint to go on from is not here yet.
    Resuming,
    /// Owned and in training.
    Training,
}

impl Agent {
    /// Parts this node owns or is about to.
    pub fn owned(&self) -> impl Iterator<Item = Part> + '_ {
        self.owned.keys().copied()
    }

    /// True if the owner of `part` was heard within the ttl, as this node sees it.
    pub fn owner_is_live(&self, now: Time, part: Part) -> bool {
        self.owned.contains_key(&part)
            || (!self.is_released(part) && self.leases.silence(now, part).is_some_and(|silence| silence <= self.ttl()))
    }

    /// The trainer of a part died. The part is released so that another may try; where there is no other, this node tries again later.
    pub fn trainer_failed(&mut self, now: Time, part: Part) {
        self.look_soon();
        let (others, later) = (self.heir(now, part).is_some(), self.back_off(now, part, RETRY_TTLS));
        if self.shadows.remove(&part).is_some() {
            self.avoid_until.insert(part, later);
        }
        let Some(owned) = self.owned.get_mut(&part) else { return };
        // There is no trainer left that could be told to stop.
        owned.phase = Phase::Resuming;
        self.progress.remove(&part);
        match others {
            true => self.release(now, part, later),
            false => {
                self.avoid_until.insert(part, later);
            }
        }
    }

    /// A part's trainer is gone, and all that it made was told: nothing more comes of it.
    pub fn trainer_gone(&mut self, part: Part) {
        self.stirred |= self.former.remove(&part).is_some();
    }

    /// Gives up every part and claims no more: this node is leaving.
    pub fn leave(&mut self, now: Time) {
        self.leaving = true;
        self.look_soon();
        for part in self.owned().collect::<Vec<_>>() {
            self.release(now, part, now);
        }
    }

    /// Everything about parts that is due: resume what the log says, yield, begin to train, suspect, claim.
    pub(super) fn attend_parts(&mut self, now: Time) {
        if !self.listened {
            self.listened = true;
            self.resume_own_claims(now);
        }
        if self.register.is_barred(self.id()) {
            return self.act(Action::Halt(Halt::Barred));
        }
        self.yield_lost_parts(now);
        self.end_shadows(now);
        for part in self.owned().collect::<Vec<_>>() {
            match self.owned[&part].phase {
                Phase::Intent { until } if now < until => self.wake_at(until),
                Phase::Resuming if self.avoid_until.get(&part).is_some_and(|until| now < *until) => {}
                Phase::Intent { .. } | Phase::Resuming => self.begin(now, part),
                // The trainer hangs: better to let another try.
                Phase::Training if self.is_idle(now, part) && self.heir(now, part).is_some() => {
                    let later = self.back_off(now, part, RETRY_TTLS);
                    self.release(now, part, later);
                }
                Phase::Training => {}
            }
        }
        self.attend_free_parts(now);
    }

    /// After a restart: parts whose current claim is this node's own are still its own, under the same term and a greater `seq`.
    fn resume_own_claims(&mut self, now: Time) {
        for part in self.manifest.clone().parts() {
            let Some(current) = self.register.current(part) else { continue };
            let room = self.owned.len() < usize::from(self.settings.capacity) && !self.leaving;
            if current.author() != self.id() || !room || self.is_released(part) {
                continue;
            }
            let id = current.id(self.run, current.author());
            let seq = self.log.get(&id).copied().unwrap_or(0).max(current.seq);
            let claim = Claim { boot: self.boot, seq, ..(**current).clone() };
            let parent = None;
            self.owned.insert(part, Owned { claim, id, phase: Phase::Intent { until: now }, parent });
        }
        self.next_beat = now;
    }

    /// Stops what a greater claim has taken. The last checkpoint is still published, under the old term.
    fn yield_lost_parts(&mut self, now: Time) {
        for part in self.owned().collect::<Vec<_>>() {
            let (id, term) = (self.owned[&part].id, self.owned[&part].claim.term);
            if self.register.current_id(part) == Some(id) {
                continue;
            }
            self.drop_part(part);
            // Whoever was doubted waits. Whoever lost a race for one term did nothing wrong, and may be the next owner's only heir.
            if self.register.current(part).is_some_and(|current| current.term > term) {
                let later = self.back_off(now, part, 1);
                self.avoid_until.insert(part, later);
            }
        }
    }

    /// Forgets owning a part; a running trainer is told to stop.
    fn drop_part(&mut self, part: Part) {
        let Some(owned) = self.owned.remove(&part) else { return };
        self.progress.remove(&part);
        if owned.phase == Phase::Training {
            self.former.insert(part, (owned.id, owned.claim.term, owned.parent));
            self.act(Action::Stop(part));
        }
    }

    /// Gives a part up with a signed word, so that nobody needs to wait for the ttl, and leaves it alone until `later`.
    fn release(&mut self, now: Time, part: Part, later: Time) {
        if !self.owned.contains_key(&part) {
            return;
        }
        let heir = self.heir(now, part);
        self.drop_part(part);
        self.vote(now, part, heir.map(|(_, node)| node));
        self.avoid_until.insert(part, later);
    }

    /// Until when to leave a part alone: so many ttls, twice as many for every time that this node lately lost it.
    fn back_off(&self, now: Time, part: Part, ttls: u32) -> Time {
        now + self.ttl() * (ttls << self.register.losses(part, self.id()).min(6))
    }

    /// Hands the part over if a live peer with room owns clearly fewer. Called at a checkpoint, when least is lost.
    pub(super) fn consider_handover(&mut self, now: Time, part: Part) {
        let mine = self.owned.len();
        let in_motion = self.owned.values().any(|owned| owned.phase != Phase::Training)
            || self.manifest.clone().parts().any(|part| !self.owned.contains_key(&part) && self.is_over(now, part));
        if mine < HANDOVER_GAIN || in_motion {
            return;
        }
        if self.heir(now, part).is_some_and(|(burden, _)| burden + HANDOVER_GAIN <= mine) {
            self.release(now, part, now + millis(self.manifest.ownership.heartbeat_ms) * HEIR_HEARTBEATS);
        }
    }

    fn is_released(&self, part: Part) -> bool {
        self.release_of(part).is_some()
    }
}
