//! Taking in what peers say.

use super::{Action, Agent, Halt, PEERS_MAX, Peer, millis};
use crate::{
    checkpoint::Checkpoint,
    claim::Claim,
    codec::Wire,
    identity::NodeId,
    lease::Time,
    message::{ADDRESSES_MAX, Gossip, HOLDS_MAX, Presence},
    part::Part,
    register::{Digest, Merged, Records},
    signed::{Signed, Verified},
};

/// Between two register exchanges without cause, in heartbeats; less where a ttl is short, so that pulls alone keep leases fresh.
const PULL_HEARTBEATS: u32 = 5;

/// What to do with a gossip message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Accept,
    /// Do not pass it on; nobody is to blame.
    Ignore,
    /// No honest peer sends this.
    Reject,
}

impl Agent {
    /// Takes in a gossip message whose envelope `from` signed.
    pub fn receive(&mut self, now: Time, from: NodeId, bytes: &[u8]) -> Verdict {
        let Ok(message) = Gossip::from_bytes(bytes) else { return Verdict::Reject };
        match message {
            Gossip::Beat { presence, claims } => self.hear_beat(now, from, presence, claims),
            Gossip::Vote(vote) => match vote.verify(self.run) {
                Ok(vote) if vote.author() == from => match self.note_vote(vote) {
                    // A repeated vote too: it is repeated for those who missed it.
                    true => Verdict::Accept,
                    false => Verdict::Ignore,
                },
                _ => Verdict::Reject,
            },
            Gossip::Checkpoint(checkpoint) => match checkpoint.verify(self.run) {
                Ok(checkpoint) if checkpoint.author() == from => {
                    let merged = self.merge_checkpoint(checkpoint);
                    self.verdict(from, merged)
                }
                _ => Verdict::Reject,
            },
        }
    }

    fn hear_beat(&mut self, now: Time, from: NodeId, presence: Presence, claims: Vec<Signed<Claim>>) -> Verdict {
        let parts = self.manifest.clusters.len() + 1;
        let bounded = presence.holds.len() <= HOLDS_MAX
            && presence.addresses.len() <= ADDRESSES_MAX
            && presence.progress.len() <= parts
            && claims.len() <= parts;
        if !bounded {
            return Verdict::Reject;
        }
        self.meet(now, from, presence);
        let mut verdict = Verdict::Accept;
        for claim in claims {
            let Ok(claim) = claim.verify(self.run) else { return Verdict::Reject };
            if claim.author() != from {
                return Verdict::Reject;
            }
            let merged = self.merge_claim(now, claim);
            match self.verdict(from, merged) {
                Verdict::Reject => return Verdict::Reject,
                // A beat carries several claims: it is passed on although some of them are known or not understood yet.
                Verdict::Accept | Verdict::Ignore => verdict = Verdict::Accept,
            }
        }
        verdict
    }

    /// Keeps what a peer says of itself.
    fn meet(&mut self, now: Time, from: NodeId, presence: Presence) {
        if from == self.id() {
            return;
        }
        let known = self.peers.get(&from).map(|peer| peer.presence.addresses.clone());
        if known.as_ref() != Some(&presence.addresses) {
            self.act(Action::Learn { peer: from, addresses: presence.addresses.clone() });
        }
        if known.is_none() {
            // A newcomer should hear of us before its first decision.
            self.next_beat = self.next_beat.min(now + millis(self.manifest.ownership.heartbeat_ms) / 8);
            let longest_silent = self.peers.iter().min_by_key(|(_, peer)| peer.heard).map(|(node, _)| *node);
            if let Some(longest_silent) = longest_silent.filter(|_| self.peers.len() >= PEERS_MAX) {
                self.peers.remove(&longest_silent);
            }
        }
        self.peers.insert(from, Peer { presence, heard: now });
    }

    /// Peers silent for longer than an owner may be are gone: they no longer count as candidates, replicas or providers.
    pub(super) fn forget_silent_peers(&mut self, now: Time) {
        let ttl = self.ttl();
        self.peers.retain(|_, peer| now.saturating_sub(peer.heard) <= ttl);
    }

    /// A connection to a peer was opened.
    pub fn connected(&mut self, now: Time, peer: NodeId) {
        self.connected.insert(peer);
        self.pull_from(peer);
        self.next_beat = now;
    }

    /// The last connection to a peer is gone.
    pub fn disconnected(&mut self, peer: NodeId) {
        self.connected.remove(&peer);
    }

    /// Peers connected directly.
    pub fn connections(&self) -> usize {
        self.connected.len()
    }

    /// Answers a peer's register exchange. None for a request that no honest peer sends.
    pub fn answer(&self, request: &[u8]) -> Option<Vec<u8>> {
        let digest = Digest::from_bytes(request).ok()?;
        self.register.differing(&digest).to_bytes().ok()
    }

    /// Takes in a peer's answer. False if no honest peer answers so.
    pub fn pulled(&mut self, now: Time, from: NodeId, answer: &[u8]) -> bool {
        match Records::from_bytes(answer) {
            Ok(records) => self.take_in(now, Some(from), records),
            Err(_) => false,
        }
    }

    /// Merges records from a peer, or from the local store.
    pub(super) fn take_in(&mut self, now: Time, from: Option<NodeId>, records: Records) -> bool {
        let Records { mut claims, mut checkpoints } = records;
        // Peers repeat whole parts where anything differs: most of it is known, and checking signatures is what costs.
        claims.retain(|claim| !self.register.has_claim(claim));
        checkpoints.retain(|checkpoint| !self.register.has_checkpoint(checkpoint));
        let news = claims.len();
        let mut claims: Vec<_> = claims.into_iter().flat_map(|claim| claim.verify(self.run)).collect();
        let mut honest = claims.len() == news;
        // Predecessors first, whatever the order they came in.
        claims.sort_by_key(|claim| claim.term);
        for claim in claims {
            honest &= !matches!(self.merge_claim(now, claim), Merged::Invalid(_));
        }
        for checkpoint in checkpoints {
            match checkpoint.verify(self.run) {
                Ok(checkpoint) => honest &= !matches!(self.merge_checkpoint(checkpoint), Merged::Invalid(_)),
                Err(_) => honest = false,
            }
        }
        honest || from.is_none()
    }

    fn merge_claim(&mut self, now: Time, claim: Verified<Claim>) -> Merged {
        let (part, id) = (claim.part, claim.id(self.run, claim.author()));
        let mine = claim.author() == self.id() && claim.boot == self.boot;
        if claim.author() == self.id() && !mine && claim.seq > self.log_at_start.get(&id).copied().unwrap_or(0) {
            self.act(Action::Halt(Halt::KeyInUse(part)));
            return Merged::Known;
        }
        let first = self.register.claim(part, id).is_none();
        let signed = claim.signed().clone();
        let merged = self.register.merge_claim(claim);
        if first && merged == Merged::New {
            self.act(Action::RememberClaim(signed));
        }
        self.observe(now, part);
        merged
    }

    fn merge_checkpoint(&mut self, checkpoint: Verified<Checkpoint>) -> Merged {
        let signed = checkpoint.signed().clone();
        let merged = self.register.merge_checkpoint(checkpoint);
        if merged == Merged::New {
            self.act(Action::RememberCheckpoint(signed));
        }
        merged
    }

    /// Renews the lease of a part's current claim if it has news. Votes from before the news are void: the owner lives.
    pub(super) fn observe(&mut self, now: Time, part: Part) {
        if let Some(current) = self.register.current(part)
            && self.leases.observe(now, part, current.id(self.run, current.author()), current.seq)
        {
            self.votes.remove(&part);
            self.vote_again.remove(&part);
        }
    }

    /// What a merge means for the message that brought the record. A gap makes this node ask.
    fn verdict(&mut self, from: NodeId, merged: Merged) -> Verdict {
        match merged {
            Merged::New => Verdict::Accept,
            Merged::Known => Verdict::Ignore,
            Merged::Unlinked => {
                self.pull_from(from);
                Verdict::Ignore
            }
            Merged::Invalid(_) => Verdict::Reject,
        }
    }

    /// Asks one peer after the other for what gossip may have lost.
    pub(super) fn pull(&mut self, now: Time) {
        if now >= self.next_pull {
            let next = self.connected.iter().find(|node| Some(**node) > self.last_pulled).or(self.connected.first());
            if let Some(peer) = next.copied() {
                self.last_pulled = Some(peer);
                self.pull_from(peer);
            }
            let heartbeats = millis(self.manifest.ownership.heartbeat_ms) * PULL_HEARTBEATS;
            self.next_pull = now + heartbeats.min(self.ttl() / 3);
        }
        self.wake_at(self.next_pull);
    }

    fn pull_from(&mut self, peer: NodeId) {
        let asked = |action: &Action| matches!(action, Action::Pull { peer: other, .. } if *other == peer);
        if self.connected.contains(&peer)
            && !self.actions.iter().any(asked)
            && let Ok(request) = self.register.digest().to_bytes()
        {
            self.act(Action::Pull { peer, request });
        }
    }
}
