//! Doubt: when this node thinks that a claim is over. A local view, by this node's clock; the register is not touched by it.

use super::{Agent, Peer, millis};
use crate::{checkpoint::Checkpoint, claim::ClaimId, identity::NodeId, lease::Time, part::Part, signed::Verified};

/// Checkpoint intervals without a new checkpoint after which an owner is thought to make no progress.
const IDLE_CHECKPOINTS: u32 = 10;
/// The same in ttls, where checkpoints follow each other closely: loading a model takes its time too.
const IDLE_TTLS: u32 = 20;

/// How far a part's owner has come, as far as anyone but itself vouches for it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Advance {
    claim: ClaimId,
    step: u64,
    since: Time,
    /// When to look again.
    look: Time,
    /// The owner published something that this node fetched and could not use.
    useless: bool,
}

impl Agent {
    /// True if this node sees no reason why the part's current claim should go on: there is none, its owner released it, is silent, makes no
    /// progress, or is barred.
    pub(super) fn is_over(&self, now: Time, part: Part) -> bool {
        let Some(current) = self.register.current(part) else { return true };
        self.is_lapsed(now, part) || self.release_of(part).is_some() || self.is_condemned(now, part, current.author())
    }

    /// True if the owner lives and should lose the part all the same.
    fn is_condemned(&self, now: Time, part: Part, owner: NodeId) -> bool {
        self.register.is_barred(owner) || self.is_idle(now, part)
    }

    /// True if the part's owner has been silent for longer than the ttl.
    pub(super) fn is_lapsed(&self, now: Time, part: Part) -> bool {
        self.leases.silence(now, part).is_some_and(|silence| silence > self.ttl())
    }

    /// True if the part's owner has shown no progress for too long, or what it shows is of no use.
    pub(super) fn is_idle(&self, now: Time, part: Part) -> bool {
        let current = self.register.current_id(part);
        let advance = self.advances.get(part).filter(|advance| Some(advance.claim) == current);
        advance.is_some_and(|it| it.useless || now.saturating_sub(it.since) > self.idle_deadline())
    }

    /// How long an owner may go without a checkpoint that others hold.
    fn idle_deadline(&self) -> Time {
        (millis(self.manifest.ownership.checkpoint_ms) * IDLE_CHECKPOINTS).max(self.ttl() * IDLE_TTLS)
    }

    /// Renews the lease of a part's current claim if it has news. Suspicions from before the news are void: the owner lives.
    pub(super) fn observe(&mut self, now: Time, part: Part) {
        let (Some(current), Some(id)) = (self.register.current(part), self.register.current_id(part)) else { return };
        let (owner, seq) = (current.author(), current.seq);
        if !self.leases.observe(now, part, id, seq) {
            return;
        }
        let since_before = self.advances.get(part).is_some_and(|advance| advance.claim == id);
        if !since_before {
            let look = now + self.idle_deadline() / 2;
            self.quiet_until = Time::ZERO;
            self.advances.insert(part, Advance { claim: id, step: 0, since: now, look, useless: false });
            self.stirred = true;
        }
        if self.is_condemned(now, part, owner) {
            return;
        }
        // The owner's own word stands: it says nothing of a claim after it, and gossip may bring a heartbeat from before it later.
        if let Some(votes) = self.votes.get_mut(part) {
            let filed = votes.len();
            votes.retain(|(voter, _), _| *voter == owner);
            self.stirred |= votes.len() < filed;
        }
    }

    /// Looks now and then whether the part's owner has come further, and wakes when it would be too late.
    pub(super) fn watch_progress(&mut self, now: Time, part: Part) {
        let Some(Advance { claim, step, mut look, since, .. }) = self.advances.get(part).copied() else { return };
        if now >= look {
            let reached = self.vouched_step(part, claim);
            let finished = self.is_finished(part);
            let Some(advance) = self.advances.get_mut(part) else { return };
            if reached > step || finished {
                (advance.step, advance.since) = (reached.max(step), now);
            }
            let deadline = self.idle_deadline();
            let Some(advance) = self.advances.get_mut(part) else { return };
            look = now + if now > since + deadline { deadline / 8 } else { deadline / 2 };
            advance.look = look;
        }
        self.quiet_until = self.quiet_until.min(look);
        self.watch_at(look);
    }

    /// The greatest step published under the claim that is vouched for. A copy of what another published is no progress.
    fn vouched_step(&self, part: Part, claim: ClaimId) -> u64 {
        let is_copy = |it: &Checkpoint| {
            let is_earlier = |other: &Checkpoint| (other.term, other.step) < (it.term, it.step);
            self.of_equal_weights(it).any(|other| is_earlier(other))
        };
        let vouched = self.vouched(part).filter(|it| it.claim == claim && !is_copy(it));
        vouched.map(|it| it.step).max().unwrap_or(0)
    }

    /// True if the part's last step is vouched for, whoever took it: there is no further progress to be made. A copy has come no further than what it
    /// is a copy of.
    fn is_finished(&self, part: Part) -> bool {
        let steps = self.manifest.training(part).steps;
        steps > 0 && self.vouched(part).any(|it| self.of_equal_weights(it).all(|other| other.step >= steps))
    }

    /// The part's checkpoints whose blobs a node other than their author holds; where the run keeps no replicas, or there is no other node, all.
    fn vouched(&self, part: Part) -> impl Iterator<Item = &Verified<Checkpoint>> {
        let alone = self.manifest.ownership.replicas == 0 || self.others().next().is_none();
        let vouched = self.register.named_checkpoints(part).filter(move |(id, it)| {
            let held = |(node, peer): (&NodeId, &Peer)| *node != it.author() && peer.presence.holds.contains(id);
            alone || self.holds(*id) || self.peers.all().iter().any(held)
        });
        vouched.map(|(_, it)| it)
    }

    /// The checkpoint, and every other of its part with the same weights.
    fn of_equal_weights(&self, it: &Checkpoint) -> impl Iterator<Item = &Verified<Checkpoint>> {
        let (part, weights) = (it.part, it.weights.hash);
        let all = self.register.named_checkpoints(part).map(|(_, other)| other);
        all.filter(move |other| other.weights.hash == weights)
    }

    /// What the part's current owner published turned out to be of no use.
    pub(super) fn note_useless(&mut self, part: Part, claim: ClaimId) {
        if let Some(advance) = self.advances.get_mut(part).filter(|advance| advance.claim == claim) {
            advance.useless = true;
            self.quiet_until = Time::ZERO;
        }
    }

    /// After this node did not listen for a while, everyone's deadline begins anew.
    pub(super) fn doubt_nobody(&mut self, now: Time) {
        let deadline = self.idle_deadline();
        for advance in self.advances.values_mut() {
            (advance.since, advance.look) = (now, now + deadline / 2);
        }
    }
}
