//! Orders of the peers: who claims a part before whom, and on whom its replicas fall.
//!
//! To reckon one costs a hash or more a peer. They say how long to wait and what to copy, which need not be exact, so in a crowd one that was reckoned
//! serves for a while.

use std::{cmp::Reverse, collections::BTreeMap};

use super::{Agent, claiming::Loads, millis};
use crate::{
    claim::{ClaimId, Names},
    hash::Hash,
    identity::NodeId,
    lease::Time,
    part::Part,
};

/// For how many rank delays an order of turns serves in a crowd.
const ORDER_LASTS_RANKS: u32 = 4;

/// Nodes ready to keep a part's checkpoints where its replicas do not.
const STAND_INS: usize = 2;

/// Orders reckoned lately.
#[derive(Debug, Default)]
pub(super) struct Orders {
    roll: Option<Roll>,
    turns: BTreeMap<Part, Turns>,
    replicas: BTreeMap<Part, Replicas>,
}

/// All that live, with the number of parts that each owns; none if it has no room for another.
#[derive(Debug)]
struct Roll {
    made: Time,
    nodes: Vec<(NodeId, Option<usize>)>,
}

/// In what order nodes would claim a part, and those without room second others.
#[derive(Debug)]
struct Turns {
    made: Time,
    /// The claim that would be followed.
    over: Option<ClaimId>,
    /// Burden, then name: the least loaded first, then the one whose claim would win.
    with_room: Vec<(usize, Reverse<u64>)>,
    /// Names, ascending.
    full: Vec<u64>,
}

/// The nodes on which a part's replicas fall, those who stand in, and one more, since the author of a checkpoint is none of them.
#[derive(Debug)]
struct Replicas {
    made: Time,
    changes: u64,
    peers: usize,
    nearest: Vec<NodeId>,
}

impl Agent {
    /// How many others go before this node in claiming the part, or in seconding who wishes to.
    pub(super) fn place(&mut self, now: Time, part: Part, loads: &Loads) -> u32 {
        let Some(names) = self.names_of_next(part) else { return u32::MAX };
        self.order_turns(now, part, loads, &names);
        let me = self.id();
        self.place_of(me, self.has_room(loads, me), part, loads, &names)
    }

    /// How many go before `node`, which has room for the part or has not, in the order that was made.
    pub(super) fn place_of(&self, node: NodeId, has_room: bool, part: Part, loads: &Loads, names: &Names) -> u32 {
        let heir = self.release_of(part).and_then(|release| release.heir);
        if heir == Some(node) {
            return 0;
        }
        let Some(turns) = self.orders.turns.get(&part) else { return u32::MAX };
        let name = rank(names.of(node));
        let ahead = match has_room {
            true => {
                let mine = (self.burden_of(part, loads, node), Reverse(name));
                turns.with_room.partition_point(|other| *other < mine)
            }
            // Those without room second others, one after the other.
            false => {
                let quorum = usize::from(self.manifest.ownership.quorum);
                let after = turns.full.partition_point(|other| *other <= name);
                turns.with_room.len().min(2 * quorum) + turns.full.len() - after
            }
        };
        ahead as u32 + u32::from(heir.is_some())
    }

    pub(super) fn order_turns(&mut self, now: Time, part: Part, loads: &Loads, names: &Names) {
        let over = self.register.current_id(part);
        // A place more or less is a wait of that much more or less.
        let lasts = match self.is_crowded() {
            true => millis(self.manifest.ownership.rank_delay_ms) * ORDER_LASTS_RANKS,
            false => Time::ZERO,
        };
        let serves = |turns: &Turns| turns.over == over && now < turns.made + lasts;
        if self.orders.turns.get(&part).is_some_and(serves) {
            return;
        }
        let roll = self.orders.roll.take().filter(|roll| now < roll.made + lasts);
        let roll = roll.unwrap_or_else(|| self.call_roll(now, loads));
        let (mut with_room, mut full) = (Vec::new(), Vec::new());
        for (node, load) in &roll.nodes {
            let name = rank(names.of(*node));
            match load {
                Some(load) => with_room.push((load + self.register.losses(part, *node), Reverse(name))),
                None => full.push(name),
            }
        }
        with_room.sort_unstable();
        full.sort_unstable();
        self.orders.turns.insert(part, Turns { made: now, over, with_room, full });
        self.orders.roll = Some(roll);
    }

    fn call_roll(&self, now: Time, loads: &Loads) -> Roll {
        let all = self.others().map(|(node, _)| *node).chain([self.id()]);
        let load = |node| self.has_room(loads, node).then(|| loads.get(&node).copied().unwrap_or(0));
        Roll { made: now, nodes: all.map(|node| (node, load(node))).collect() }
    }

    /// Forgets the order in which a part that is not free would have been claimed.
    pub(super) fn forget_turns(&mut self, part: Part) {
        self.orders.turns.remove(&part);
    }

    /// The nodes besides `author` on which replicas of the part's checkpoints fall, as far as this node knows.
    pub fn replicas(&mut self, now: Time, part: Part, author: NodeId) -> Vec<NodeId> {
        let mut order = self.replica_order(now, part, author);
        order.truncate(self.manifest.ownership.replicas.into());
        order
    }

    /// The same in the order in which they fetch, then those who stand in for them: among the peers that own parts at all, rendezvous hashing picks them.
    pub(super) fn replica_order(&mut self, now: Time, part: Part, author: NodeId) -> Vec<NodeId> {
        let most = self.replicas_and_stand_ins();
        self.order_replicas(now, part);
        let nearest = self.orders.replicas.get(&part).map_or(&[][..], |replicas| &replicas.nearest);
        nearest.iter().filter(|node| **node != author).take(most).copied().collect()
    }

    fn replicas_and_stand_ins(&self) -> usize {
        match self.manifest.ownership.replicas {
            0 => 0,
            replicas => usize::from(replicas) + STAND_INS,
        }
    }

    fn order_replicas(&mut self, now: Time, part: Part) {
        let (changes, peers) = (self.peers.changes(), self.peers.all().len());
        let lasts = self.ttl() * self.crowding() / 4;
        let serves = |it: &Replicas| {
            let alike = self.is_crowded() && now < it.made + lasts && peers.abs_diff(it.peers) <= it.peers / 16;
            it.changes == changes || alike
        };
        if self.orders.replicas.get(&part).is_some_and(serves) {
            return;
        }
        // It mixes ids that are hashes already; who is first in it gains nothing but a copy.
        let of_part = Hash::of_fields("paris-node 1 replica", &[&self.run.0.0, &part.key()]).prefix();
        let weigh = |node: NodeId| (Reverse(mix(of_part ^ Hash(node.0).prefix())), node);
        let owners = self.others().filter(|(_, peer)| peer.presence.capacity > 0).map(|(node, _)| *node);
        let me = (self.settings.capacity > 0).then(|| self.id());
        let most = self.replicas_and_stand_ins() + 1;
        let mut first: Vec<(Reverse<u64>, NodeId)> = Vec::with_capacity(most + 1);
        for candidate in owners.chain(me).map(weigh) {
            if first.len() < most || first.last().is_some_and(|last| candidate < *last) {
                let at = first.partition_point(|other| *other < candidate);
                first.insert(at, candidate);
                first.truncate(most);
            }
        }
        let nearest = first.into_iter().map(|(_, node)| node).collect();
        self.orders.replicas.insert(part, Replicas { made: now, changes, peers, nearest });
    }
}

/// The leading digits of a name: they order as names do.
fn rank(ClaimId(Hash(bytes)): ClaimId) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = bytes;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// A permutation of 64-bit numbers that leaves no pattern (the finaliser of MurmurHash3).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    value = (value ^ (value >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    value ^ (value >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::RunId;

    #[test]
    fn ranks_order_as_the_names_of_claims_do() {
        let names = Names::following(RunId(Hash::of(b"run")), Part::Router, 1, None);
        let mut all: Vec<_> = (0..200).map(|number| names.of(NodeId([number; 32]))).collect();
        all.extend([ClaimId(Hash([0; 32])), ClaimId(Hash([255; 32]))]);
        all.sort_unstable();
        assert!(all.is_sorted_by_key(|name| rank(*name)));
        assert!(rank(all[0]) < rank(all[1]), "names differ early");
    }
}
