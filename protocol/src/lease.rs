//! Freshness: a local view over the register. No remote clock is ever read.

use std::time::Duration;

use crate::{claim::ClaimId, part::Part, part_map::PartMap};

/// A moment, as the time since this node started, on a monotonic clock.
pub type Time = Duration;

/// When this node last saw each part's owner speak.
#[derive(Clone, Debug, Default)]
pub struct Leases(PartMap<Lease>);

#[derive(Clone, Debug)]
struct Lease {
    claim: ClaimId,
    seq: u64,
    renewed: Time,
}

impl Leases {
    /// Notes the part's current claim. Only a new claim or a greater `seq` renews the lease; true if it did.
    pub fn observe(&mut self, now: Time, part: Part, claim: ClaimId, seq: u64) -> bool {
        match self.0.get(part) {
            Some(lease) if lease.claim == claim && lease.seq >= seq => false,
            _ => {
                self.0.insert(part, Lease { claim, seq, renewed: now });
                true
            }
        }
    }

    /// How long the part's owner has been silent; none where no claim was seen.
    pub fn silence(&self, now: Time, part: Part) -> Option<Duration> {
        self.0.get(part).map(|lease| now.saturating_sub(lease.renewed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Hash;

    #[test]
    fn only_news_renews_a_lease() {
        let (mut leases, part, claim) = (Leases::default(), Part::Expert(0), ClaimId(Hash::of(b"claim")));
        let at = Duration::from_secs;
        assert_eq!(leases.silence(at(9), part), None);
        leases.observe(at(1), part, claim, 5);
        leases.observe(at(2), part, claim, 5);
        leases.observe(at(3), part, claim, 4);
        assert_eq!(leases.silence(at(4), part), Some(at(3)));
        leases.observe(at(4), part, claim, 6);
        assert_eq!(leases.silence(at(4), part), Some(at(0)));
    }
}
