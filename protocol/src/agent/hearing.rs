//! Taking in what peers say.

use std::sync::Arc;

use super::{Action, Agent, Halt};
use crate::{
    checkpoint::Checkpoint,
    claim::Claim,
    heard::{Heard, Said},
    identity::NodeId,
    lease::Time,
    message::{Gossip, Presence},
    register::Merged,
    signed::Verified,
};

/// Peers that may all speak at every heartbeat.
const CROWD: usize = 64;

/// What to do with a gossip message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Pass it on.
    Accept,
    /// Do not pass it on; nobody is to blame.
    Ignore,
    /// No honest peer sends this: do not pass it on, and blame whoever did.
    Reject,
}

impl Agent {
    /// Takes in a gossip message whose envelope `from` signed.
    pub fn receive(&mut self, now: Time, from: NodeId, bytes: &[u8]) -> Verdict {
        if !self.quotas.allow(now, from, bytes.len()) {
            return Verdict::Ignore;
        }
        match Heard::read(self.run, self.manifest.clusters.len() + 1, from, bytes) {
            Some(heard) => self.hear(now, &heard),
            None if Gossip::is_of_a_later_version(bytes) => Verdict::Ignore,
            None => Verdict::Reject,
        }
    }

    /// Takes in a message that passed the first gate.
    pub fn hear(&mut self, now: Time, heard: &Heard) -> Verdict {
        let from = heard.from;
        match &heard.said {
            Said::Beat { presence, claims } => self.hear_beat(now, from, presence.clone(), claims),
            // A repeated vote too: it is repeated for those who missed it.
            Said::Vote(vote) => match self.note_vote(now, vote.clone()) {
                true => Verdict::Accept,
                false => Verdict::Ignore,
            },
            Said::Checkpoint(checkpoint) => {
                let merged = self.merge_checkpoint(checkpoint.clone());
                self.verdict(from, merged)
            }
            Said::Invitation(invitation) => {
                let merged = self.merge_invitation(invitation.clone());
                self.verdict(from, merged)
            }
        }
    }

    fn hear_beat(&mut self, now: Time, from: NodeId, presence: Arc<Presence>, claims: &[Verified<Claim>]) -> Verdict {
        self.meet(now, from, presence);
        for claim in claims {
            let merged = self.merge_claim(now, claim.clone());
            // A beat carries several claims: it is passed on although some of them are known or not understood yet.
            if self.verdict(from, merged) == Verdict::Reject {
                return Verdict::Reject;
            }
        }
        match self.register.is_barred(from) {
            true => Verdict::Ignore,
            false => Verdict::Accept,
        }
    }

    /// Keeps what a peer says of itself.
    fn meet(&mut self, now: Time, from: NodeId, presence: Arc<Presence>) {
        if from == self.id() {
            return;
        }
        let known = self.peers.note(now, from, presence.clone());
        if known.as_ref().is_none_or(|known| known.holds != presence.holds) {
            self.note_holds(&presence);
        }
        // In a crowd one more or less moves nobody's turn by much.
        if !self.is_crowded() && known.as_ref().is_none_or(|known| known.capacity != presence.capacity) {
            self.stirred = true;
        }
        // A newcomer should hear of us before its first decision; in a crowd it hears of enough others.
        if known.is_none() && !self.is_crowded() {
            self.beat_soon(now);
        }
        if known.is_none_or(|known| known.addresses != presence.addresses) {
            self.act(Action::Learn { peer: from, addresses: presence.addresses.clone() });
        }
        // Last: it may be this one.
        if let Some(peer) = self.peers.make_room() {
            self.act(Action::Learn { peer, addresses: Vec::new() });
        }
    }

    /// Peers silent for longer than an owner may be are gone: they no longer count as candidates, replicas or providers. Idle peers of a crowd speak
    /// less often.
    pub(super) fn forget_silent_peers(&mut self, now: Time) {
        let silence = self.ttl() * self.crowding();
        for peer in self.peers.forget_silent(now, silence) {
            self.act(Action::Learn { peer, addresses: Vec::new() });
        }
    }

    /// True if so many peers are known that not all of them need to be served at once.
    pub(super) fn is_crowded(&self) -> bool {
        self.peers.all().len() > CROWD
    }

    /// How many times less often an idle node speaks among so many, so that what a node hears stays bounded.
    pub(super) fn crowding(&self) -> u32 {
        1 + (self.peers.all().len() / CROWD) as u32
    }

    /// A connection to a peer was opened.
    pub fn connected(&mut self, now: Time, peer: NodeId) {
        self.connected.insert(peer);
        self.pull_from(peer);
        match self.is_crowded() {
            true => self.beat_soon(now),
            false => self.next_beat = now,
        }
        self.look_soon();
    }

    /// The last connection to a peer is gone.
    pub fn disconnected(&mut self, peer: NodeId) {
        self.connected.remove(&peer);
        self.pull_failed(peer);
        self.look_soon();
    }

    /// Peers connected directly.
    pub fn connections(&self) -> usize {
        self.connected.len()
    }

    pub(super) fn merge_claim(&mut self, now: Time, claim: Verified<Claim>) -> Merged {
        let (part, id) = (claim.part, self.register.id_of(&claim));
        let mine = claim.author() == self.id() && claim.boot == self.boot;
        if claim.author() == self.id() && !mine && claim.seq > self.log_at_start.get(&id).copied().unwrap_or(0) {
            self.act(Action::Halt(Halt::KeyInUse(part)));
            return Merged::Known;
        }
        let first = self.register.claim(part, id).is_none().then(|| claim.signed().clone());
        let merged = self.register.merge_claim(claim);
        if let Some(signed) = first.filter(|_| merged == Merged::New) {
            // Not only another owner: a key may be barred by it.
            self.quiet_until = Time::ZERO;
            self.act(Action::RememberClaim(signed));
        }
        self.observe(now, part);
        merged
    }

    pub(super) fn merge_checkpoint(&mut self, checkpoint: Verified<Checkpoint>) -> Merged {
        let signed = checkpoint.signed().clone();
        let merged = self.register.merge_checkpoint(checkpoint);
        if merged == Merged::New {
            self.look_soon();
            self.act(Action::RememberCheckpoint(signed));
        }
        merged
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
}
