//! Claiming: whose turn it is on a part that is free, and what a claim needs.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    Agent, millis,
    ownership::{Owned, Phase},
};
use crate::{
    claim::{Claim, ClaimId, Previous},
    identity::NodeId,
    lease::Time,
    part::Part,
};

/// A live node with room for a part.
#[derive(Clone, Copy, Debug)]
pub(super) struct Candidate {
    pub(super) node: NodeId,
    /// Parts it owns.
    pub(super) load: usize,
}

/// A part that is free, as this node sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub(super) since: Time,
    /// When it is this node's turn.
    turn: Time,
}

impl Agent {
    /// Votes on parts that are free, and claims the one that it is this node's turn to claim, one at a time.
    pub(super) fn attend_free_parts(&mut self, now: Time) {
        let (mut turns, mut candidates) = (Vec::new(), None);
        for part in self.manifest.clone().parts() {
            if self.owned.contains_key(&part) || !self.is_over(now, part) {
                self.free.remove(&part);
                self.wake_at_doubt(now, part);
                continue;
            }
            let candidates = candidates.get_or_insert_with(|| self.candidates(now));
            let turn = match self.free.get(&part) {
                Some(free) if now < free.turn => free.turn,
                // Others may have come and gone meanwhile: the turn is reckoned again before it is taken.
                known => {
                    let since = known.map_or(now, |free| free.since);
                    let turn = since + millis(self.manifest.ownership.rank_delay_ms) * self.place(part, candidates);
                    self.free.insert(part, Free { since, turn });
                    turn
                }
            };
            turns.push((turn, part));
        }
        let may_vote = self.settings.capacity > 0 && !self.leaving && self.manifest.admits(self.id());
        if may_vote && !turns.is_empty() {
            turns.sort_unstable();
            let candidates: Vec<_> = candidates.unwrap_or_default().iter().map(|it| it.node).collect();
            self.take_turns(now, &turns, &candidates);
        }
    }

    /// Asks for a tick when the part's owner would be doubted.
    fn wake_at_doubt(&mut self, now: Time, part: Part) {
        if !self.owned.contains_key(&part)
            && let Some(silence) = self.leases.silence(now, part)
            && silence <= self.ttl()
        {
            self.wake_at(now + (self.ttl() - silence) + Time::from_millis(1));
        }
        self.watch_progress(now, part);
    }

    fn take_turns(&mut self, now: Time, turns: &[(Time, Part)], candidates: &[NodeId]) {
        let me = self.id();
        let mut busy = self.owned.values().any(|owned| matches!(owned.phase, Phase::Intent { .. }));
        let mut wishing = turns.iter().any(|(_, part)| self.wishes(*part, me));
        for (turn, part) in turns.iter().copied() {
            self.watch_progress(now, part);
            if now < turn {
                self.wake_at(turn);
                continue;
            }
            let allowed = self.avoid_until.get(&part).copied().unwrap_or_default();
            let may_claim = candidates.contains(&me) && now >= allowed;
            if candidates.contains(&me) && now < allowed {
                self.wake_at(allowed);
            }
            match self.evidence(part) {
                Some(_) if may_claim && !busy => {
                    self.claim(now, part);
                    busy = true;
                }
                Some(_) if may_claim => {}
                _ if self.manifest.ownership.quorum > 1 => {
                    let may_wish = may_claim && !busy && !wishing;
                    self.speak(now, part, candidates, may_wish);
                    wishing |= self.wishes(part, me);
                    if may_claim {
                        self.shadow(now, part);
                    }
                }
                _ => {}
            }
        }
    }

    /// Live peers with room for a part, this node among them if it has room.
    pub(super) fn candidates(&self, now: Time) -> Vec<Candidate> {
        let mut loads = BTreeMap::<NodeId, usize>::new();
        for part in self.manifest.parts().filter(|part| self.owner_is_live(now, *part)) {
            if let Some(claim) = self.register.current(part) {
                *loads.entry(claim.author()).or_default() += 1;
            }
        }
        let trusted = |node| self.manifest.admits(node) && !self.register.is_barred(node);
        let peers = self.peers.iter().map(|(node, peer)| (*node, peer.presence.capacity));
        peers
            .chain([(self.id(), if self.leaving { 0 } else { self.settings.capacity })])
            .map(|(node, capacity)| (node, capacity, loads.get(&node).copied().unwrap_or(0)))
            .filter(|(node, capacity, load)| *load < usize::from(*capacity) && trusted(*node))
            .map(|(node, _, load)| Candidate { node, load })
            .collect()
    }

    /// What one candidate is ordered by for a part: the least loaded first, a part lately lost counting as one owned; then the one whose claim would win.
    pub(super) fn burden(&self, part: Part, candidate: Candidate) -> usize {
        candidate.load + self.register.losses(part, candidate.node)
    }

    /// The best heir for the part other than this node.
    pub(super) fn heir(&self, now: Time, part: Part) -> Option<Candidate> {
        let others = self.candidates(now).into_iter().filter(|it| it.node != self.id());
        others.min_by_key(|it| (self.burden(part, *it), Reverse(self.name_of_next(part, it.node))))
    }

    /// How many others go before this node in claiming the part, or in seconding who wishes to.
    fn place(&self, part: Part, candidates: &[Candidate]) -> u32 {
        let me = self.id();
        let heir = self.release_of(part).and_then(|release| release.heir);
        if heir == Some(me) {
            return 0;
        }
        let order = |it: Candidate| (self.burden(part, it), Reverse(self.name_of_next(part, it.node)));
        let ahead = match candidates.iter().find(|it| it.node == me) {
            Some(mine) => {
                let mine = order(*mine);
                candidates.iter().filter(|it| order(**it) < mine).count()
            }
            // Those without room second others, one after the other.
            None => {
                let quorum = usize::from(self.manifest.ownership.quorum);
                let name = self.name_of_next(part, me);
                let full = self.peers.keys().filter(|node| !candidates.iter().any(|it| it.node == **node));
                candidates.len().min(2 * quorum) + full.filter(|node| self.name_of_next(part, **node) > name).count()
            }
        };
        ahead as u32 + u32::from(heir.is_some())
    }

    /// Term and predecessor of the claim that would come next; none after the last term that can be written.
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

    /// The name that `node`'s claim on the part would have.
    pub(super) fn name_of_next(&self, part: Part, node: NodeId) -> Option<ClaimId> {
        let (term, previous) = self.next_term(part)?;
        Some(ClaimId::of(self.run, part, term, previous, node))
    }

    fn claim(&mut self, now: Time, part: Part) {
        let (Some((term, previous)), Some(evidence)) = (self.next_term(part), self.evidence(part)) else { return };
        let id = ClaimId::of(self.run, part, term, previous, self.id());
        // Where a crash left a reservation without a claim, go on above it.
        let seq = self.log.get(&id).copied().unwrap_or(0);
        let claim = Claim { part, term, previous, evidence, boot: self.boot, seq };
        let until = now + millis(self.manifest.ownership.intent_ms);
        self.owned.insert(part, Owned { claim, id, phase: Phase::Intent { until }, parent: None });
        self.free.remove(&part);
        self.words.remove(&part);
        self.next_beat = now;
        self.wake_at(until);
    }
}
