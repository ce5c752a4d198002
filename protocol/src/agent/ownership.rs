//! Claiming parts, keeping them, and giving them up.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{Action, Agent, millis};
use crate::{
    checkpoint::CheckpointId,
    claim::{Claim, ClaimId, Previous, VOTES_MAX, Vote},
    identity::NodeId,
    lease::Time,
    message::Gossip,
    part::Part,
    signed::{Signed, Verified},
};

/// The least number of parts by which an owner must exceed an idle peer before it hands one over.
const HANDOVER_GAIN: usize = 2;
/// For how many ttls a node leaves a part alone that it gave up.
const RETRY_TTLS: u32 = 4;

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
        let others = self.candidates(now).iter().any(|(node, _)| *node != self.id());
        let later = now + RETRY_TTLS * self.ttl();
        let Some(owned) = self.owned.get_mut(&part) else { return };
        // There is no trainer left that could be told to stop.
        owned.phase = Phase::Resuming;
        self.progress.remove(&part);
        match others {
            true => self.release(now, part),
            false => {
                self.avoid_until.insert(part, later);
            }
        }
    }

    /// Gives up every part and claims no more: this node is leaving.
    pub fn leave(&mut self, now: Time) {
        self.leaving = true;
        for part in self.owned().collect::<Vec<_>>() {
            self.release(now, part);
        }
    }

    /// Everything about parts that is due: resume what the log says, yield, begin to train, suspect, claim.
    pub(super) fn attend_parts(&mut self, now: Time) {
        if !self.listened {
            self.listened = true;
            self.resume_own_claims(now);
        }
        self.yield_lost_parts(now);
        for part in self.owned().collect::<Vec<_>>() {
            match self.owned[&part].phase {
                Phase::Intent { until } if now < until => self.wake_at(until),
                Phase::Resuming if self.avoid_until.get(&part).is_some_and(|until| now < *until) => {}
                Phase::Intent { .. } | Phase::Resuming => self.begin(now, part),
                Phase::Training => {}
            }
        }
        self.claim_one(now);
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
            if self.register.current_id(part) != Some(self.owned[&part].id) {
                self.drop_part(part);
                self.avoid_until.insert(part, now + self.ttl());
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

    /// Gives a part up with a signed word, so that nobody needs to wait for the ttl.
    fn release(&mut self, now: Time, part: Part) {
        let Some(owned) = self.owned.get(&part) else { return };
        let claim = owned.id;
        self.drop_part(part);
        self.vote(part, claim);
        self.avoid_until.insert(part, now + RETRY_TTLS * self.ttl());
    }

    /// Hands the part over if a live peer with room owns clearly fewer. Called at a checkpoint, when least is lost.
    pub(super) fn consider_handover(&mut self, now: Time, part: Part) {
        let mine = self.owned.len();
        let in_motion = self.owned.values().any(|owned| owned.phase != Phase::Training)
            || self.manifest.clone().parts().any(|part| self.is_claimable(now, part));
        let gain = self.candidates(now).iter().any(|(peer, load)| *peer != self.id() && load + HANDOVER_GAIN <= mine);
        if gain && !in_motion {
            self.release(now, part);
        }
    }

    /// Signs and spreads this node's word that a claim is over: a release of its own, a suspicion of another's.
    fn vote(&mut self, part: Part, claim: ClaimId) {
        let vote = Verified::sign(&self.keypair, self.run, Vote { part, claim });
        self.publish(&Gossip::Vote(vote.signed().clone()));
        self.note_vote(vote);
    }

    /// Files a vote on a part's current claim. False if it is on another claim, or from a stranger.
    pub(super) fn note_vote(&mut self, vote: Verified<Vote>) -> bool {
        let Some(current) = self.register.current(vote.part) else { return false };
        let released = current.author() == vote.author();
        if self.register.current_id(vote.part) != Some(vote.claim) || !self.manifest.admits(vote.author()) {
            return false;
        }
        let votes = self.votes.entry(vote.part).or_default();
        votes.retain(|_, known| known.claim == vote.claim);
        if votes.len() >= VOTES_MAX && !released && !votes.contains_key(&vote.author()) {
            return false;
        }
        votes.insert(vote.author(), vote);
        true
    }

    /// The votes on the part's current claim.
    fn votes_on(&self, part: Part) -> impl Iterator<Item = &Verified<Vote>> {
        let current = self.register.current_id(part);
        self.votes
            .get(&part)
            .into_iter()
            .flat_map(|votes| votes.values())
            .filter(move |vote| Some(vote.claim) == current)
    }

    fn is_released(&self, part: Part) -> bool {
        let owner = self.register.current(part).map(|claim| claim.author());
        self.votes_on(part).any(|vote| Some(vote.author()) == owner)
    }

    /// True if the part's owner has been silent for longer than the ttl.
    fn is_lapsed(&self, now: Time, part: Part) -> bool {
        self.leases.silence(now, part).is_some_and(|silence| silence > self.ttl())
    }

    /// What ends the part's current claim for this node: the release of another owner, or a quorum of votes. None if there is not enough.
    fn evidence(&self, part: Part) -> Option<Vec<Signed<Vote>>> {
        let Some(current) = self.register.current(part) else { return Some(Vec::new()) };
        let owner = current.author();
        if owner != self.id()
            && let Some(release) = self.votes_on(part).find(|vote| vote.author() == owner)
        {
            return Some(vec![release.signed().clone()]);
        }
        let quorum = usize::from(self.manifest.ownership.quorum);
        let votes: Vec<_> = self.votes_on(part).take(quorum).map(|vote| vote.signed().clone()).collect();
        (votes.len() == quorum).then_some(votes)
    }

    /// True if a claim on the part would be founded, and this node sees no reason against it.
    fn is_claimable(&self, now: Time, part: Part) -> bool {
        let over = self.register.current(part).is_none() || self.is_released(part) || self.is_lapsed(now, part);
        over && !self.owned.contains_key(&part) && self.evidence(part).is_some()
    }

    /// Suspects silent owners, and claims the part that it is this node's turn to claim, one at a time.
    fn claim_one(&mut self, now: Time) {
        let (mut turns, mut candidates) = (Vec::new(), None);
        for part in self.manifest.clone().parts() {
            if self.owned.contains_key(&part) {
                self.free_since.remove(&part);
                continue;
            }
            self.suspect_if_lapsed(now, part);
            if !self.is_claimable(now, part) {
                self.free_since.remove(&part);
                continue;
            }
            let since = *self.free_since.entry(part).or_insert(now);
            let candidates = candidates.get_or_insert_with(|| self.candidates(now));
            if let Some(rank) = self.rank(part, candidates) {
                let delay = millis(self.manifest.ownership.rank_delay_ms) * rank;
                let allowed = self.avoid_until.get(&part).copied().unwrap_or_default();
                turns.push(((since + delay).max(allowed), part));
            }
        }
        let busy = self.owned.values().any(|owned| matches!(owned.phase, Phase::Intent { .. }));
        if busy || self.leaving || !self.manifest.admits(self.id()) {
            return;
        }
        match turns.into_iter().min() {
            Some((at, part)) if at <= now => self.claim(now, part),
            Some((at, _)) => self.wake_at(at),
            None => {}
        }
    }

    fn suspect_if_lapsed(&mut self, now: Time, part: Part) {
        let Some(silence) = self.leases.silence(now, part) else { return };
        if silence <= self.ttl() {
            return self.wake_at(now + (self.ttl() - silence) + Time::from_millis(1));
        }
        let Some(current) = self.register.current_id(part) else { return };
        if self.settings.capacity == 0 || self.leaving {
            return;
        }
        // Who finds the quorum reached need not add to it. Who voted repeats it while the silence lasts: gossip loses messages.
        let enough = self.votes_on(part).count() >= usize::from(self.manifest.ownership.quorum);
        let due = match self.vote_again.get(&part) {
            Some(again) => now >= *again,
            None => !enough,
        };
        if due {
            self.vote(part, current);
            self.vote_again.insert(part, now + self.ttl());
        }
        if let Some(again) = self.vote_again.get(&part) {
            self.wake_at(*again);
        }
    }

    /// Live peers with room for a part, this node among them if it has room, and how many parts each owns.
    fn candidates(&self, now: Time) -> Vec<(NodeId, usize)> {
        let mut loads = BTreeMap::<NodeId, usize>::new();
        for part in self.manifest.parts().filter(|part| self.owner_is_live(now, *part)) {
            if let Some(claim) = self.register.current(part) {
                *loads.entry(claim.author()).or_default() += 1;
            }
        }
        let peers = self.peers.iter().map(|(node, peer)| (*node, peer.presence.capacity));
        peers
            .chain([(self.id(), self.settings.capacity)])
            .map(|(node, capacity)| (node, capacity, loads.get(&node).copied().unwrap_or(0)))
            .filter(|(node, capacity, load)| *load < usize::from(*capacity) && self.manifest.admits(*node))
            .map(|(node, _, load)| (node, load))
            .collect()
    }

    /// This node's place among the candidates for the part: the least loaded first, then by rendezvous hash. None without room.
    fn rank(&self, part: Part, candidates: &[(NodeId, usize)]) -> Option<u32> {
        let (term, previous) = self.next_term(part)?;
        let weight = |node| Reverse(ClaimId::of(self.run, part, term, previous, node));
        let (me, my_load) = *candidates.iter().find(|(node, _)| *node == self.id())?;
        let mine = weight(me);
        let before = |(node, load): &(NodeId, usize)| *load < my_load || (*load == my_load && weight(*node) < mine);
        Some(candidates.iter().filter(|candidate| before(candidate)).count() as u32)
    }

    /// Term and predecessor of the claim that would come next.
    fn next_term(&self, part: Part) -> Option<(u64, Option<Previous>)> {
        match self.register.current(part) {
            None => Some((1, None)),
            Some(current) => {
                let owner = current.author();
                let previous = Previous { claim: current.id(self.run, owner), owner };
                Some((current.term.checked_add(1)?, Some(previous)))
            }
        }
    }

    fn claim(&mut self, now: Time, part: Part) {
        let (Some((term, previous)), Some(evidence)) = (self.next_term(part), self.evidence(part)) else { return };
        let id = ClaimId::of(self.run, part, term, previous, self.id());
        // Where a crash left a reservation without a claim, go on above it.
        let seq = self.log.get(&id).copied().unwrap_or(0);
        let claim = Claim { part, term, previous, evidence, boot: self.boot, seq };
        let until = now + millis(self.manifest.ownership.intent_ms);
        self.owned.insert(part, Owned { claim, id, phase: Phase::Intent { until }, parent: None });
        self.free_since.remove(&part);
        self.next_beat = now;
        self.wake_at(until);
    }
}
