//! Peers: who else is here, as each last described itself, with the longest silent at hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use crate::{identity::NodeId, lease::Time, message::Presence};

/// The most peers whose presence is kept; the longest silent makes room.
pub const PEERS_MAX: usize = 4096;

/// A peer as it last described itself.
#[derive(Clone, Debug)]
pub struct Peer {
    /// What it said.
    pub presence: Arc<Presence>,
    /// When.
    pub heard: Time,
}

/// All peers that are known.
#[derive(Clone, Debug, Default)]
pub(super) struct Peers {
    known: BTreeMap<NodeId, Peer>,
    /// The same, the longest silent first.
    by_silence: BTreeSet<(Time, NodeId)>,
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
        if !self.known.contains_key(&node) && self.known.len() >= PEERS_MAX {
            self.forget_longest_silent();
        }
        let owns = presence.capacity > 0;
        let before = self.known.insert(node, Peer { presence, heard: now });
        if let Some(before) = &before {
            self.by_silence.remove(&(before.heard, node));
        }
        self.by_silence.insert((now, node));
        if before.as_ref().is_none_or(|before| (before.presence.capacity > 0) != owns) {
            self.changes += 1;
        }
        before.map(|peer| peer.presence)
    }

    /// Forgets who was silent for longer than `silence`.
    pub(super) fn forget_silent(&mut self, now: Time, silence: Time) {
        while let Some((heard, _)) = self.by_silence.first()
            && now.saturating_sub(*heard) > silence
        {
            self.forget_longest_silent();
        }
    }

    fn forget_longest_silent(&mut self) {
        if let Some((_, node)) = self.by_silence.pop_first() {
            self.known.remove(&node);
            self.changes += 1;
        }
    }

    /// A number that differs whenever other peers own parts at all than before.
    pub(super) fn changes(&self) -> u64 {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        }
        // The first speaks again, so the second is now the longest silent.
        let later = Time::from_secs(PEERS_MAX as u64);
        assert!(peers.note(later, node(0), Arc::default()).is_some());
        assert!(peers.note(later, node(9999), Arc::default()).is_none());
        assert_eq!(peers.all().len(), PEERS_MAX);
        assert!(peers.all().contains_key(&node(0)) && !peers.all().contains_key(&node(1)));
        peers.forget_silent(later, Time::from_secs(10));
        assert!(peers.all().values().all(|peer| later - peer.heard <= Time::from_secs(10)));
        assert_eq!(peers.all().len(), peers.by_silence.len());
    }
}
