//! Sharing what was heard: agents that heard the same at the same moments need it in memory once.
//!
//! For a driver of many agents in one process, such as a simulator. One of them, who owns nothing, listens for all; each of the others is
//! lent what that one heard while it decides, and so hears at once what any of them says meanwhile.

use super::Agent;
use crate::{identity::NodeId, lease::Time, part::Part};

impl Agent {
    /// Exchanges with another agent of the run all that the two know of others. What a node owns, holds and has said stays with it.
    pub fn exchange_hearing(&mut self, other: &mut Self) {
        debug_assert_eq!(self.run, other.run, "agents of two runs heard nothing in common");
        std::mem::swap(&mut self.register, &mut other.register);
        std::mem::swap(&mut self.leases, &mut other.leases);
        std::mem::swap(&mut self.votes, &mut other.votes);
        std::mem::swap(&mut self.advances, &mut other.advances);
        std::mem::swap(&mut self.peers, &mut other.peers);
        std::mem::swap(&mut self.orders, &mut other.orders);
        std::mem::swap(&mut self.quiet_until, &mut other.quiet_until);
    }

    /// Knows of others what another agent of the run knows.
    pub fn copy_hearing(&mut self, other: &Self) {
        self.register = other.register.clone();
        self.leases = other.leases.clone();
        self.votes = other.votes.clone();
        self.advances = other.advances.clone();
        self.peers = other.peers.clone();
        self.quiet_until = Time::ZERO;
    }

    /// From now on repeats its claims under the signature of their first: for agents who all read each other with
    /// [`Heard::read_own`](crate::heard::Heard::read_own), where signing heartbeats would be most of the work.
    pub fn repeat_unsigned(&mut self) {
        self.repeats_unsigned = true;
    }

    /// Takes in all records of another agent of the run, as register exchanges would bring them.
    pub fn learn_from(&mut self, now: Time, other: &Self) {
        let (mut claims, checkpoints) = other.register.records();
        claims.sort_by_key(|claim| claim.term);
        for claim in claims {
            self.merge_claim(now, claim.clone());
        }
        for checkpoint in checkpoints {
            self.merge_checkpoint(checkpoint.clone());
        }
    }

    /// Another listened for this node without a gap until `now`.
    pub fn listened_for(&mut self, now: Time) {
        self.last_tick = self.last_tick.max(now);
    }

    /// Another heard of a new checkpoint for this node: the next tick looks whether it falls to it.
    pub fn heard_of_a_checkpoint(&mut self) {
        self.look_soon();
    }

    /// When to tick next at the latest, if another watches for it whether an owner falls silent and pulls what gossip lost.
    pub fn deadline_of_its_own(&self) -> Time {
        self.wake
    }

    /// From when on news of a part's owner may give this node something to do before its own deadline: at once if it trains any part, or else when
    /// its turn comes to claim or to second.
    pub fn minds_from(&self) -> Time {
        let idle = self.owned.is_empty() && self.shadows.is_empty();
        let turn = self.free.values().map(|free| free.turn).min();
        if idle { turn.unwrap_or(Time::MAX) } else { Time::ZERO }
    }

    /// True if news of this part's owner may: it trains the part, or its turn at the part has come.
    pub fn minds(&self, now: Time, part: Part) -> bool {
        let my_turn = self.free.get(&part).is_some_and(|free| free.turn <= now);
        my_turn || self.owned.contains_key(&part) || self.shadows.contains_key(&part)
    }

    /// Of some nodes, with what each is willing to own, those that have fewer than `places` others before them in claiming a free part, or in
    /// seconding who wishes to.
    pub fn first_in_turn(
        &mut self,
        now: Time,
        part: Part,
        nodes: impl Iterator<Item = (NodeId, u16)>,
        places: u32,
    ) -> Vec<NodeId> {
        let Some(names) = self.names_of_next(part) else { return Vec::new() };
        let loads = self.loads(now);
        self.order_turns(now, part, &loads, &names);
        let is_early = |(node, capacity): &(NodeId, u16)| {
            let has_room = loads.get(node).copied().unwrap_or(0) < usize::from(*capacity);
            self.place_of(*node, has_room, part, &loads, &names) < places
        };
        nodes.filter(is_early).map(|(node, _)| node).collect()
    }

    /// Parts whose owner this node thinks gone.
    pub fn free_parts(&self) -> impl Iterator<Item = Part> + '_ {
        self.free.keys().copied()
    }
}
