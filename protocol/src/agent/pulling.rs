//! Pulling: whom this node asks for what gossip lost, and when.
//!
//! A peer is asked one thing at a time, and no more than once in a heartbeat, whatever it says that seems to call for it: to check an answer costs many
//! signatures. Who answered what no honest peer does is left alone for a while.

use super::{Action, Agent, millis};
use crate::{identity::NodeId, lease::Time};

/// Between two register exchanges without cause, in heartbeats; less where a ttl is short, so that pulls alone keep leases fresh.
const PULL_HEARTBEATS: u32 = 5;
/// Peers asked at once after a time without hearing.
const PULLS_AFTER_A_GAP: usize = 3;
/// After so long without an answer a peer may be asked again.
const ANSWER_PATIENCE: Time = Time::from_secs(30);
/// For how long a peer is left alone that answered what no honest peer does.
const DISTRUST: Time = Time::from_secs(300);
/// Peers of whom it is kept when they may be asked; beyond, it is forgotten of those that are not connected.
const PULLS_MAX: usize = 1024;

/// What is to be asked of a peer, and when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pull {
    /// It may have what this node lacks.
    wanted: bool,
    /// How long its answer to the last question is waited for.
    answer_by: Time,
    /// When it may be asked again, answered or not.
    not_before: Time,
}

impl Pull {
    fn due(&self) -> Time {
        self.answer_by.max(self.not_before)
    }
}

impl Agent {
    /// Asks those that may have what is missing here, and one peer after the other for what gossip may have lost.
    pub(super) fn pull(&mut self, now: Time) {
        let heartbeat = millis(self.manifest.ownership.heartbeat_ms);
        if now >= self.next_pull {
            let ready = |node: &&NodeId| self.pulls.get(*node).is_none_or(|pull| pull.due() <= now);
            let next = self.connected.iter().filter(ready).find(|node| Some(**node) > self.last_pulled);
            if let Some(peer) = next.or(self.connected.iter().find(ready)).copied() {
                self.last_pulled = Some(peer);
                self.pulls.entry(peer).or_default().wanted = true;
            }
            self.next_pull = now + (heartbeat * PULL_HEARTBEATS).min(self.ttl() / 3);
        }
        self.watch_at(self.next_pull);
        self.pulls.retain(|peer, pull| now < pull.due() || (pull.wanted && self.connected.contains(peer)));
        for (peer, pull) in self.pulls.iter_mut().filter(|(_, pull)| pull.wanted) {
            if now < pull.due() {
                self.watch = self.watch.min(pull.due());
            } else {
                *pull = Pull { wanted: false, answer_by: now + ANSWER_PATIENCE, not_before: now + heartbeat };
                self.actions.push_back(Action::Pull(*peer));
            }
        }
    }

    /// Asks a connected peer, as soon as it may be asked.
    pub(super) fn pull_from(&mut self, peer: NodeId) {
        if self.connected.contains(&peer) {
            self.change_pull(peer, |pull| pull.wanted = true);
        }
    }

    /// Asks several peers for what was missed.
    pub(super) fn pull_from_several(&mut self) {
        let peers: Vec<_> = self.connected.iter().take(PULLS_AFTER_A_GAP).copied().collect();
        peers.into_iter().for_each(|peer| self.pull_from(peer));
    }

    /// A peer that was asked gave no answer.
    pub fn pull_failed(&mut self, peer: NodeId) {
        self.change_pull(peer, |pull| pull.answer_by = Time::ZERO);
    }

    /// A peer answered, as an honest one may or not.
    pub(super) fn note_answer(&mut self, now: Time, peer: NodeId, honest: bool) {
        self.change_pull(peer, |pull| {
            pull.answer_by = Time::ZERO;
            if !honest {
                pull.not_before = now + DISTRUST;
            }
        });
    }

    fn change_pull(&mut self, peer: NodeId, change: impl FnOnce(&mut Pull)) {
        if self.pulls.len() >= PULLS_MAX {
            self.pulls.retain(|peer, _| self.connected.contains(peer));
        }
        let pull = self.pulls.entry(peer).or_default();
        change(pull);
        if pull.wanted {
            let due = pull.due();
            self.watch_at(due);
        }
    }
}
