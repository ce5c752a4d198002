//! Heartbeats: the sign of life of a node and of every claim it owns.

use super::{Action, Agent, LogEntry, millis};
use crate::{
    claim::Claim,
    codec::{Wire, encoded_len},
    lease::Time,
    message::{ADDRESSES_MAX, Gossip, HOLDS_MAX, Presence},
    part::Part,
    register::Merged,
    signed::{Signed, Verified},
};

/// Heartbeats reserved in the claim log at once, so that not every one costs a durable write.
const SEQ_BLOCK: u64 = 256;
impl Agent {
    /// Tells everyone that this node lives, what it has, and that it still owns what it owns.
    pub(super) fn beat(&mut self, now: Time) {
        if now >= self.next_beat {
            let times = if self.owned.is_empty() { self.crowding() } else { 1 };
            self.next_beat = now + millis(self.manifest.ownership.heartbeat_ms) * times;
            let presence = Presence {
                capacity: if self.leaving { 0 } else { self.settings.capacity },
                addresses: self.addresses.iter().take(ADDRESSES_MAX).copied().collect(),
                holds: self.holding.ids().take(HOLDS_MAX).collect(),
                progress: self.progress.values().copied().collect(),
            };
            let room = Gossip::LIMIT.saturating_sub(encoded_len(&presence) + 16);
            let (mut claims, mut used) = (Vec::new(), 0);
            for part in self.owned().collect::<Vec<_>>() {
                let Some(claim) = self.sign_next(now, part) else { continue };
                let len = encoded_len(&claim);
                // An owner of very many parts needs several messages.
                if used + len > room {
                    self.publish(&Gossip::Beat { presence: presence.clone(), claims: std::mem::take(&mut claims) });
                    used = 0;
                }
                used += len;
                claims.push(claim);
            }
            self.publish(&Gossip::Beat { presence, claims });
        }
        self.wake_at(self.next_beat);
    }

    /// Something that others should know before long; what else comes meanwhile goes with it.
    pub(super) fn beat_soon(&mut self, now: Time) {
        self.next_beat = self.next_beat.min(now + millis(self.manifest.ownership.heartbeat_ms) / 8);
    }

    /// Signs the part's claim with the next `seq`, reserved durably beforehand, and merges it as any other record.
    fn sign_next(&mut self, now: Time, part: Part) -> Option<Signed<Claim>> {
        let owned = self.owned.get_mut(&part)?;
        owned.claim.seq += 1;
        let (id, seq) = (owned.id, owned.claim.seq);
        let claim = owned.claim.clone();
        let known = self.register.claim(part, id).filter(|_| self.repeats_unsigned);
        let claim = match known {
            Some(known) => known.repeated(claim),
            None => Verified::sign(&self.keypair, self.run, claim),
        };
        if self.log.get(&id).is_none_or(|reserved| seq > *reserved) {
            self.reserve(LogEntry { claim: id, seq_reserved: seq + SEQ_BLOCK });
        }
        let first = self.register.claim(part, id).is_none();
        let merged = self.register.merge_claim(claim.clone());
        debug_assert!(!matches!(merged, Merged::Invalid(_)), "own claims are founded: {merged:?}");
        if first {
            self.quiet_until = Time::ZERO;
            self.act(Action::RememberClaim(claim.signed().clone()));
        }
        self.observe(now, part);
        Some(claim.signed().clone())
    }
}
