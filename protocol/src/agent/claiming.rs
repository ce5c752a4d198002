//! Claiming: whose turn it is on a part that is free, and what a claim needs.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{
    Agent, millis,
    ownership::{Owned, Phase},
};
use crate::{
    claim::{Claim, ClaimId, Names, Previous},
    identity::NodeId,
    lease::Time,
    part::Part,
};

/// How many parts each live owner has.
pub(super) type Loads = BTreeMap<NodeId, usize>;

/// A part that is free, as this node sees it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Free {
    pub(super) since: Time,
    /// When it is this node's turn.
    pub(super) turn: Time,
}

impl Agent {
    /// Votes on parts that are free, and claims the one that it is this node's turn to claim, one at a time.
    pub(super) fn attend_free_parts(&mut self, now: Time) {
        if self.free.is_empty() && now < self.quiet_until {
            return self.watch_at(self.quiet_until);
        }
        self.quiet_until = Time::MAX;
        let (mut turns, mut loads, mut any_over) = (Vec::new(), None, false);
        for part in self.manifest.clone().parts() {
            let over = self.is_over(now, part);
            any_over |= over;
            if !over {
                self.watch_for_doubt(now, part);
            }
            if !over || self.owned.contains_key(&part) {
                if self.free.remove(&part).is_some() {
                    self.forget_turns(part);
                }
                continue;
            }
            let turn = match self.free.get(&part) {
                Some(free) if now < free.turn => free.turn,
                // Others may have come and gone meanwhile: the turn is reckoned again before it is taken.
                known => {
                    let since = known.map_or(now, |free| free.since);
                    let loads = loads.get_or_insert_with(|| self.loads(now));
                    let place = self.place(now, part, loads);
                    let turn = since + millis(self.manifest.ownership.rank_delay_ms).saturating_mul(place);
                    self.free.insert(part, Free { since, turn });
                    turn
                }
            };
            turns.push((turn, part));
        }
        if any_over {
            // Whoever has not seen yet that the part is free should look.
            self.quiet_until = Time::ZERO;
        }
        let may_vote = self.settings.capacity > 0 && !self.leaving && self.is_admitted();
        if may_vote && !turns.is_empty() {
            turns.sort_unstable();
            let loads = loads.unwrap_or_else(|| self.loads(now));
            self.take_turns(now, &turns, &loads);
        }
    }

    /// Asks for a tick when the part's owner would be doubted.
    fn watch_for_doubt(&mut self, now: Time, part: Part) {
        if let Some(silence) = self.leases.silence(now, part) {
            let doubt = now + self.ttl().saturating_sub(silence) + Time::from_millis(1);
            self.quiet_until = self.quiet_until.min(doubt);
            self.watch_at(doubt);
        }
        self.watch_progress(now, part);
    }

    fn take_turns(&mut self, now: Time, turns: &[(Time, Part)], loads: &Loads) {
        let me = self.id();
        let room = self.has_room(loads, me);
        let mut busy = self.owned.values().any(|owned| matches!(owned.phase, Phase::Intent { .. }));
        let mut wishing = self.words.keys().any(|part| self.free.contains_key(part) && self.wishes(*part, me));
        for (turn, part) in turns.iter().copied() {
            self.watch_progress(now, part);
            if now < turn {
                self.wake_at(turn);
                continue;
            }
            let allowed = self.avoid_until.get(&part).copied().unwrap_or_default();
            let may_claim = room && now >= allowed;
            if room && now < allowed {
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
                    self.speak(now, part, loads, may_wish);
                    wishing |= self.wishes(part, me);
                    if may_claim {
                        self.shadow(now, part);
                    }
                }
                _ => {}
            }
        }
    }

    /// How many parts each live owner has.
    pub(super) fn loads(&self, now: Time) -> Loads {
        let mut loads = Loads::new();
        for part in self.manifest.parts().filter(|part| self.owner_is_live(now, *part)) {
            if let Some(claim) = self.register.current(part) {
                *loads.entry(claim.author()).or_default() += 1;
            }
        }
        loads
    }

    /// True if a node that lives, this one or a peer, may own a part more.
    pub(super) fn has_room(&self, loads: &Loads, node: NodeId) -> bool {
        let capacity = match node == self.id() {
            true if self.leaving => 0,
            true => self.settings.capacity,
            false => self.peers.all().get(&node).map_or(0, |peer| peer.presence.capacity),
        };
        let load = loads.get(&node).copied().unwrap_or(0);
        load < usize::from(capacity) && self.register.admits(node) && !self.register.is_barred(node)
    }

    /// What nodes with room are ordered by for a part, before their names: the least loaded first, a part lately lost counting as one owned.
    pub(super) fn burden_of(&self, part: Part, loads: &Loads, node: NodeId) -> usize {
        loads.get(&node).copied().unwrap_or(0) + self.register.losses(part, node)
    }

    /// The best heir for the part other than this node, and what burdens it.
    pub(super) fn heir(&self, now: Time, part: Part) -> Option<(usize, NodeId)> {
        let loads = self.loads(now);
        let names = self.names_of_next(part);
        let others = self.others().map(|(node, _)| *node).filter(|node| self.has_room(&loads, *node));
        let ordered = others.map(|node| (self.burden_of(part, &loads, node), node));
        ordered.min_by_key(|(burden, node)| (*burden, Reverse(names.as_ref().map(|names| names.of(*node)))))
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

    /// The names that the next claims on the part would have.
    pub(super) fn names_of_next(&self, part: Part) -> Option<Names> {
        let (term, previous) = self.next_term(part)?;
        Some(Names::following(self.run, part, term, previous))
    }

    /// The name that `node`'s claim on the part would have.
    pub(super) fn name_of_next(&self, part: Part, node: NodeId) -> Option<ClaimId> {
        Some(self.names_of_next(part)?.of(node))
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
