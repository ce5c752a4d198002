//! How much one key may say, and ask. Gossip over it is passed over unread and goes no further, and nobody is blamed: it may have been forwarded in good
//! faith. Requests over it go unanswered: a short one may ask for the whole register.
//!
//! Records are bounded by the register and votes by their filing; this bounds what reading them costs, and what a flood costs the others.

use std::collections::BTreeMap;

use crate::{identity::NodeId, lease::Time, manifest::Manifest};

/// Keys whose account is kept. A flood of more keys than that is forgiven: what they all may say was theirs anyway.
const KEYS_MAX: usize = 8192;
/// A message costs one, and one more for every so many bytes.
const BYTES_A_UNIT: usize = 4096;
/// What any key may say in a heartbeat, in units.
const UNITS_A_HEARTBEAT: f64 = 8.0;
/// What it may say more for every part of the run: heartbeats of claims, votes.
const UNITS_A_PART: f64 = 2.0;
/// Requests of one peer that are answered in a heartbeat: an honest one makes one.
const REQUESTS_A_HEARTBEAT: f64 = 2.0;
/// Heartbeats whose allowance may be saved up: many peers may connect at once, and each is greeted.
const HEARTBEATS_SAVED: f64 = 16.0;

/// Every key's account.
#[derive(Debug)]
pub(super) struct Quotas {
    /// Units a second.
    rate: f64,
    /// The most that can be saved up.
    most: f64,
    accounts: BTreeMap<NodeId, Account>,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    units: f64,
    at: Time,
}

impl Quotas {
    /// What a run's times and parts allow to be said.
    pub(super) fn of_gossip(manifest: &Manifest) -> Self {
        let parts = manifest.clusters.len() as f64 + 1.0;
        let checkpoints = f64::from(manifest.ownership.heartbeat_ms) / f64::from(manifest.ownership.checkpoint_ms);
        Self::new(manifest, UNITS_A_HEARTBEAT + (UNITS_A_PART + checkpoints) * parts)
    }

    /// What they allow to be asked; a request costs one, however long.
    pub(super) fn of_requests(manifest: &Manifest) -> Self {
        Self::new(manifest, REQUESTS_A_HEARTBEAT)
    }

    fn new(manifest: &Manifest, units_a_heartbeat: f64) -> Self {
        let heartbeat = f64::from(manifest.ownership.heartbeat_ms) / 1000.0;
        let (rate, most) = (units_a_heartbeat / heartbeat, units_a_heartbeat * HEARTBEATS_SAVED);
        Self { rate, most, accounts: BTreeMap::new() }
    }

    /// Takes a message of so many bytes from the key's account. False if there is not enough on it.
    pub(super) fn allow(&mut self, now: Time, key: NodeId, bytes: usize) -> bool {
        if self.accounts.len() >= KEYS_MAX && !self.accounts.contains_key(&key) {
            self.accounts.clear();
        }
        let (rate, most) = (self.rate, self.most);
        let account = self.accounts.entry(key).or_insert(Account { units: most, at: now });
        account.units = most.min(account.units + rate * now.saturating_sub(account.at).as_secs_f64());
        account.at = now;
        let cost = 1.0 + (bytes / BYTES_A_UNIT) as f64;
        let enough = account.units >= cost;
        if enough {
            account.units -= cost;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Time;

    fn quotas() -> Quotas {
        Quotas { rate: 2.0, most: 10.0, accounts: BTreeMap::new() }
    }

    /// How many messages of so many bytes a key gets through at once.
    fn through(quotas: &mut Quotas, now: Time, key: NodeId, bytes: usize) -> usize {
        (0..100).filter(|_| quotas.allow(now, key, bytes)).count()
    }

    #[test]
    fn a_flood_ends_at_the_allowance_and_another_key_has_its_own() {
        let (mut quotas, [one, other]) = (quotas(), [NodeId([1; 32]), NodeId([2; 32])]);
        assert_eq!(through(&mut quotas, Time::ZERO, one, 100), 10);
        assert_eq!(through(&mut quotas, Time::ZERO, other, 100), 10);
        assert_eq!(through(&mut quotas, Time::from_secs(3), one, 100), 6);
        assert_eq!(through(&mut quotas, Time::from_secs(1000), one, 100), 10, "no more is saved up");
    }

    #[test]
    fn long_messages_cost_more() {
        let mut quotas = quotas();
        assert_eq!(through(&mut quotas, Time::ZERO, NodeId([1; 32]), 4 * BYTES_A_UNIT), 2);
    }

    #[test]
    fn a_flood_of_keys_costs_bounded_memory() {
        let mut quotas = quotas();
        for number in 0..3 * KEYS_MAX {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&number.to_le_bytes());
            assert!(quotas.allow(Time::ZERO, NodeId(key), 1));
            assert!(quotas.accounts.len() <= KEYS_MAX);
        }
    }
}
