//! Peers: who else is here, as each last described itself, with the one to forget first at hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{identity::NodeId, lease::Time, message::Presence};

/// The most peers whose presence is kept. Those who neither hold nor train anything make room first, the longest silent before others: a run needs to know
/// who holds its checkpoints, and any of the others will do to claim a part.
pub const PEERS_MAX: usize = 4096;

/// A peer as it last described itself.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What it said.
    pub presence: Arc<Presence>,
    /// When.
    pub heard: Time,
}

impl Peer {
    fn worth(&self, node: NodeId) -> (bool, Time, NodeId) {
        let keeps = !self.presence.holds.is_empty() || !self.presence.progress.is_empty();
        (keeps, self.heard, node)
    }
}

/// All peers that are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    known: BTreeMap<NodeId, Peer>,
    /// The same, in the order in which they make room: whether they keep anything, and when they were heard.
    by_worth: BTreeSet<(bool, Time, NodeId)>,
    /// Grows when a peer comes, goes, or begins or ceases to have room for parts at all.
    changes: u64,
}

impl Peers {
    /// All of them.
    pub(super) fn all(&self) -> &BTreeMap<NodeId, Peer> {
        &self.known
    }

    /// Keeps what a peer said, and returns what it said before.
    pub(super) fn note(&mut self, now: Time, node: NodeId, presence: Arc<Presence>) -> Option<Arc<Presence>> {
        let owns = presence.capacity > 0;
        let peer = Peer { presence, heard: now };
        let worth = peer.worth(node);
        let before = self.known.insert(node, peer);
        if let Some(before) = &before {
            self.by_worth.remove(&before.worth(node));
        }
        self.by_worth.insert(worth);
        if before.as_ref().is_none_or(|before| (before.presence.capacity > 0) != owns) {
            self.changes += 1;
        }
        before.map(|peer| peer.presence)
    }

    /// Forgets one, if there are too many; says who.
    pub(super) fn make_room(&mut self) -> Option<NodeId> {
        let too_many = self.known.len() > PEERS_MAX;
        let (_, _, first) = if too_many { self.by_worth.pop_first() } else { None }?;
        self.known.remove(&first);
        self.changes += 1;
        Some(first)
    }

    /// Forgets who was silent for longer than `silence`; says who.
    pub(super) fn forget_silent(&mut self, now: Time, silence: Time) -> Vec<NodeId> {
        let mut forgotten = Vec::new();
        for keeps in [false, true] {
            while let Some(longest) = self.by_worth.range((keeps, Time::ZERO, NodeId([0; 32]))..).next().copied()
                && longest.0 == keeps
                && now.saturating_sub(longest.1) > silence
            {
                self.by_worth.remove(&longest);
                self.known.remove(&longest.2);
                self.changes += 1;
                forgotten.push(longest.2);
            }
        }
        forgotten
    }

    /// A number that differs whenever other peers own parts at all than before.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{checkpoint::CheckpointId, hash::Hash};

    fn node(number: u16) -> NodeId {
        let mut bytes = [0; 32];
        bytes[..2].copy_from_slice(&number.to_le_bytes());
        NodeId(bytes)
    }

    #[test]
    fn the_longest_silent_makes_room() {
        let mut peers = Peers::default();
        for number in 0..PEERS_MAX as u16 {
            peers.note(Time::from_secs(number.into()), node(number), Arc::default());
            assert_eq!(peers.make_room(), None);
        }
        // The first speaks again, so the second is now the longest silent.
        let later = Time::from_secs(PEERS_MAX as u64);
        assert!(peers.note(later, node(0), Arc::default()).is_some());
        assert!(peers.note(later, node(9999), Arc::default()).is_none());
        assert_eq!(peers.make_room(), Some(node(1)));
        assert_eq!(peers.all().len(), PEERS_MAX);
        assert!(peers.all().contains_key(&node(0)) && !peers.all().contains_key(&node(1)));
        let forgotten = peers.forget_silent(later, Time::from_secs(10));
        assert_eq!(forgotten.len() + peers.all().len(), PEERS_MAX);
        assert!(peers.all().values().all(|peer| later - peer.heard <= Time::from_secs(10)));
        assert_eq!(peers.all().len(), peers.by_worth.len());
    }

    #[test]
    fn idle_peers_make_room_before_those_who_keep_a_checkpoint() {
        let mut peers = Peers::default();
        let holds = vec![CheckpointId(Hash::of(b"checkpoint"))];
        peers.note(Time::ZERO, node(0), Arc::new(Presence { holds, ..Presence::default() }));
        let crowd = 2 * PEERS_MAX as u16;
        let meet = |peers: &mut Peers, number: u16| {
            peers.note(Time::from_secs(number.into()), node(number), Arc::default());
            peers.make_room();
        };
        for number in 1..crowd {
            meet(&mut peers, number);
        }
        assert_eq!(peers.all().len(), PEERS_MAX);
        assert!(peers.all().contains_key(&node(0)) && !peers.all().contains_key(&node(1)));
        // Whoever holds nothing any more is as the others.
        peers.note(Time::from_secs(2), node(0), Arc::default());
        meet(&mut peers, crowd);
        assert!(!peers.all().contains_key(&node(0)));
        assert_eq!(peers.all().len(), peers.by_worth.len());
    }
}
