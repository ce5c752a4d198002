//! Whom to dial, and when: seeds for ever, peers that we met for hours, peers that we only heard of for minutes.
//!
//! Pure book-keeping: time is an argument, and the swarm does the dialing.

use std::time::{Duration, Instant};

use libp2p::multiaddr::Protocol;
use libp2p::swarm::ConnectionId;
use libp2p::swarm::dial_opts::DialOpts;
use libp2p::{Multiaddr, PeerId};

/// Peers remembered for re-dialing, seeds not counted.
const KNOWN_PEERS_MAX: usize = 256;
/// Addresses kept per peer.
const ADDRESSES_PER_PEER_MAX: usize = 8;
/// A peer that is only heard of is forgotten after so many failures in a row (about two minutes).
const FAILURES_MAX: u32 = 16;
/// One that we met, and that may only be asleep, after so many (some hours).
const FAILURES_OF_MET_MAX: u32 = 2_000;
/// With so many connections only seeds are dialed: the rest of the room is for those who dial us.
const CONNECTIONS_WANTED: usize = 16;
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_GROWTH: f64 = 1.25;
const RETRY_LAST: Duration = Duration::from_secs(10);
/// A connection that lived shorter was refused by the other side (a ghost of ours may still hold our place there).
const STABLE_AFTER: Duration = Duration::from_secs(3);

/// One peer, or one seed whose identity the operator did not tell.
struct Target {
    peer: Option<PeerId>,
    /// The operator gave an address without a peer id: whoever answers there is the seed.
    anonymous: bool,
    addresses: Vec<Multiaddr>,
    seed: bool,
    /// It once proved to be who it is, at some address.
    met: bool,
    failures: u32,
    due: Instant,
    attempt: Option<ConnectionId>,
    connected_at: Option<Instant>,
}

/// The book of targets.
pub(super) struct Dialer {
    own: PeerId,
    targets: Vec<Target>,
}

impl Dialer {
    pub(super) fn new(own: PeerId) -> Self {
        Self { own, targets: Vec::new() }
    }

    /// Remembers a seed. Our own address among the seeds (one list for a whole run) is skipped.
    pub(super) fn add_seed(&mut self, address: Multiaddr, now: Instant) {
        let (peer, address) = split_peer(address);
        if peer == Some(self.own) {
            return;
        }
        let known = self.targets.iter_mut().find(|target| match peer {
            Some(peer) => target.peer == Some(peer),
            None => target.addresses.contains(&address),
        });
        match known {
            Some(target) => {
                target.seed = true;
                target.due = now;
                remember(&mut target.addresses, address);
            }
            None => self.targets.push(Target {
                peer,
                anonymous: peer.is_none(),
                addresses: vec![address],
                seed: true,
                met: false,
                failures: 0,
                due: now,
                attempt: None,
                connected_at: None,
            }),
        }
    }

    /// Remembers where a connected peer says it can be found.
    pub(super) fn meet(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>, now: Instant) {
        self.learn(peer, addresses, now);
        self.targets.iter_mut().filter(|target| target.peer == Some(peer)).for_each(|target| target.met = true);
    }

    /// The peers that we met, and where.
    pub(super) fn met(&self) -> impl Iterator<Item = (PeerId, Vec<Multiaddr>)> + '_ {
        let met = self.targets.iter().filter(|target| target.met && !target.addresses.is_empty());
        met.filter_map(|target| Some((target.peer?, target.addresses.clone())))
    }

    /// Remembers where a peer is said to be.
    pub(super) fn learn(&mut self, peer: PeerId, addresses: impl IntoIterator<Item = Multiaddr>, now: Instant) {
        if peer == self.own {
            return;
        }
        let addresses = addresses.into_iter().filter_map(|address| match split_peer(address) {
            (Some(other), _) if other != peer => None,
            (_, address) => Some(address),
        });
        if let Some(target) = self.targets.iter_mut().find(|target| target.peer == Some(peer)) {
            addresses.for_each(|address| remember(&mut target.addresses, address));
            return;
        }
        let mut fresh = Vec::new();
        addresses.for_each(|address| remember(&mut fresh, address));
        let known = self.targets.iter().filter(|target| !target.seed).count();
        if fresh.is_empty() || (known >= KNOWN_PEERS_MAX && !self.make_room()) {
            return;
        }
        self.targets.push(Target {
            peer: Some(peer),
            anonymous: false,
            addresses: fresh,
            seed: false,
            met: false,
            failures: 0,
            due: now,
            attempt: None,
            connected_at: None,
        });
    }

    /// Forgets the peer that failed most, not under way nor connected; false if none has failed.
    fn make_room(&mut self) -> bool {
        let is_idle = |target: &Target| target.attempt.is_none() && target.connected_at.is_none();
        let failing = self.targets.iter().enumerate().filter(|(_, target)| !target.seed && is_idle(target));
        let worst = failing.max_by_key(|(_, target)| target.failures).filter(|(_, target)| target.failures > 0);
        let found = worst.map(|(index, _)| index);
        found.is_some_and(|index| {
            self.targets.remove(index);
            true
        })
    }

    /// The addresses known for a peer.
    pub(super) fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        let target = self.targets.iter().find(|target| target.peer.as_ref() == Some(peer));
        target.map(|target| target.addresses.clone()).unwrap_or_default()
    }

    /// Forgets a peer for good (it belongs to another run), unless the operator named it.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        self.targets.retain(|target| target.seed || target.peer.as_ref() != Some(peer));
    }

    /// The dials that are due: every seed, and the others only while connections are wanting, those first that failed least. Each is under way
    /// from here on, until one of the methods below hears of it.
    pub(super) fn due(&mut self, now: Instant, is_connected: impl Fn(&PeerId) -> bool) -> Vec<DialOpts> {
        let connected = |target: &Target| target.peer.as_ref().is_some_and(&is_connected);
        let counted = self.targets.iter().filter(|target| target.attempt.is_some() || connected(target)).count();
        let mut wanted = CONNECTIONS_WANTED.saturating_sub(counted);
        let idle = self.targets.iter_mut();
        let mut idle: Vec<_> =
            idle.filter(|target| target.attempt.is_none() && target.due <= now && !connected(target)).collect();
        idle.sort_by_key(|target| (!target.seed, target.failures));
        idle.retain(|target| {
            let dialed = target.seed || wanted > 0;
            wanted = wanted.saturating_sub(1);
            dialed
        });
        let dials = idle.into_iter();
        dials
            .map(|target| {
                let dial = match (target.peer, target.anonymous) {
                    (Some(peer), false) => DialOpts::peer_id(peer).addresses(target.addresses.clone()).build(),
                    _ => {
                        let turn = target.failures as usize % target.addresses.len();
                        DialOpts::unknown_peer_id().address(target.addresses[turn].clone()).build()
                    }
                };
                target.attempt = Some(dial.connection_id());
                dial
            })
            .collect()
    }

    /// A dial of ours was not even begun, or came to nothing. `peer` is who answered, where that is known.
    /// Returns the seed's address at its first failure: the one time that is worth telling the operator.
    pub(super) fn failed(&mut self, attempt: ConnectionId, peer: Option<PeerId>, now: Instant) -> Option<Multiaddr> {
        let own = self.own;
        let target = self.targets.iter_mut().find(|target| target.attempt == Some(attempt))?;
        target.attempt = None;
        target.failures = target.failures.saturating_add(1);
        target.due = now + retry_delay(&own, target.failures);
        if target.anonymous && peer.is_some() {
            target.peer = peer;
        }
        let complaint = (target.seed && target.failures == 1).then(|| target.addresses[0].clone());
        let patience = |target: &Target| if target.met { FAILURES_OF_MET_MAX } else { FAILURES_MAX };
        self.targets.retain(|target| target.seed || target.failures < patience(target));
        complaint
    }

    /// A dial ended at ourselves: that seed is this node, under an address that does not say so.
    pub(super) fn is_self(&mut self, attempt: ConnectionId) {
        self.targets.retain(|target| target.attempt != Some(attempt));
    }

    /// A connection to `peer` stands.
    pub(super) fn connected(&mut self, attempt: ConnectionId, peer: PeerId, now: Instant) {
        if let Some(index) = self.targets.iter().position(|target| target.attempt == Some(attempt)) {
            self.targets[index].attempt = None;
            self.targets[index].peer = Some(peer);
            // The seed without a name turns out to be a peer that we had met: keep one entry.
            let mut position = 0;
            self.targets.retain(|target| {
                position += 1;
                position - 1 == index || target.seed || target.peer != Some(peer)
            });
        }
        for target in self.targets.iter_mut().filter(|target| target.peer == Some(peer)) {
            target.connected_at = Some(now);
            target.met = true;
        }
    }

    /// The last connection to `peer` is gone.
    pub(super) fn closed(&mut self, peer: &PeerId, now: Instant) {
        let own = self.own;
        for target in self.targets.iter_mut().filter(|target| target.peer.as_ref() == Some(peer)) {
            let stable = target.connected_at.take().is_some_and(|since| now - since >= STABLE_AFTER);
            target.failures = if stable { 0 } else { target.failures.saturating_add(1) };
            target.due = now + retry_delay(&own, target.failures);
        }
    }
}

/// Between one second and ten, growing gently; spread per node, so that two nodes that lost each other at the same
/// moment do not dial at the same moment again (both connections would be refused as the second one).
fn retry_delay(own: &PeerId, failures: u32) -> Duration {
    let grown = RETRY_FIRST.mul_f64(RETRY_GROWTH.powi(failures.min(32) as i32)).min(RETRY_LAST);
    let mut hasher = blake3::Hasher::new();
    hasher.update(&own.to_bytes()).update(&failures.to_le_bytes());
    let spread = f64::from(hasher.finalize().as_bytes()[0]) / 255.0;
    grown.mul_f64(0.6 + 0.4 * spread)
}

/// Keeps the newest addresses.
fn remember(addresses: &mut Vec<Multiaddr>, address: Multiaddr) {
    if addresses.contains(&address) {
        return;
    }
    if addresses.len() == ADDRESSES_PER_PEER_MAX {
        addresses.remove(0);
    }
    addresses.push(address);
}

/// Takes the `/p2p/` suffix off an address.
fn split_peer(mut address: Multiaddr) -> (Option<PeerId>, Multiaddr) {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (Some(peer), address)
        }
        _ => (None, address),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> Multiaddr {
        format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap()
    }

    fn seeded() -> (Dialer, PeerId, Instant) {
        let (mut dialer, peer, now) = (Dialer::new(PeerId::random()), PeerId::random(), Instant::now());
        dialer.add_seed(address(1).with(Protocol::P2p(peer)), now);
        (dialer, peer, now)
    }

    #[test]
    fn a_seed_is_dialed_for_ever_and_complained_about_once() {
        let (mut dialer, _, mut now) = seeded();
        let mut complaints = 0;
        for _ in 0..1_000 {
            let dials = dialer.due(now, |_| false);
            assert_eq!(dials.len(), 1);
            assert!(dialer.due(now, |_| false).is_empty(), "one attempt at a time");
            complaints += usize::from(dialer.failed(dials[0].connection_id(), None, now).is_some());
            now += RETRY_LAST;
        }
        assert_eq!(complaints, 1);
    }

    #[test]
    fn a_known_peer_is_forgotten_after_enough_failures() {
        let (mut dialer, peer, mut now) = (Dialer::new(PeerId::random()), PeerId::random(), Instant::now());
        dialer.learn(peer, [address(2)], now);
        let mut dials = 0;
        while let [dial] = &dialer.due(now, |_| false)[..] {
            dialer.failed(dial.connection_id(), None, now);
            dials += 1;
            now += RETRY_LAST;
        }
        assert_eq!(dials, FAILURES_MAX);
        assert!(dialer.addresses(&peer).is_empty());
    }

    #[test]
    fn retries_start_at_about_a_second_and_end_at_ten() {
        let own = PeerId::random();
        assert!(retry_delay(&own, 0) <= RETRY_FIRST);
        assert!((1..1_000).all(|failures| retry_delay(&own, failures) <= RETRY_LAST));
        assert!(retry_delay(&own, u32::MAX) >= Duration::from_secs(6));
    }

    #[test]
    fn a_peer_that_was_met_is_dialed_for_hours() {
        let (mut dialer, peer, mut now) = (Dialer::new(PeerId::random()), PeerId::random(), Instant::now());
        dialer.meet(peer, [address(2)], now);
        for _ in 0..10 * FAILURES_MAX {
            now += RETRY_LAST;
            let dials = dialer.due(now, |_| false);
            assert_eq!(dials.len(), 1);
            dialer.failed(dials[0].connection_id(), None, now);
        }
        assert_eq!(dialer.met().collect::<Vec<_>>(), [(peer, vec![address(2)])]);
    }

    #[test]
    fn with_enough_connections_only_seeds_are_dialed() {
        let (mut dialer, seed, now) = seeded();
        let connected: Vec<_> = (0..CONNECTIONS_WANTED).map(|_| PeerId::random()).collect();
        let strangers: Vec<_> = (0..3).map(|_| PeerId::random()).collect();
        connected.iter().chain(&strangers).for_each(|peer| dialer.learn(*peer, [address(2)], now));
        let dials = dialer.due(now, |peer| connected.contains(peer));
        assert_eq!(dials.iter().map(|dial| dial.get_peer_id()).collect::<Vec<_>>(), [Some(seed)]);
        let dials = dialer.due(now, |peer| connected[2..].contains(peer));
        assert_eq!(dials.len(), 1, "the seed's dial under way counts");
    }

    #[test]
    fn our_own_address_among_the_seeds_is_skipped() {
        let own = PeerId::random();
        let mut dialer = Dialer::new(own);
        let now = Instant::now();
        dialer.add_seed(address(1).with(Protocol::P2p(own)), now);
        assert!(dialer.due(now, |_| false).is_empty());
        dialer.add_seed(address(1), now);
        let dials = dialer.due(now, |_| false);
        dialer.is_self(dials[0].connection_id());
        assert!(dialer.due(now + RETRY_LAST, |_| false).is_empty());
    }

    #[test]
    fn a_seed_without_a_name_is_not_dialed_while_it_is_connected() {
        let (mut dialer, peer, now) = (Dialer::new(PeerId::random()), PeerId::random(), Instant::now());
        dialer.add_seed(address(1), now);
        dialer.learn(peer, [address(1)], now);
        let dials = dialer.due(now, |_| false);
        let anonymous = dials.iter().find(|dial| dial.get_peer_id().is_none()).unwrap();
        dialer.connected(anonymous.connection_id(), peer, now);
        assert!(dialer.due(now + RETRY_LAST, |other| *other == peer).is_empty());
        dialer.closed(&peer, now + STABLE_AFTER);
        assert_eq!(dialer.due(now + STABLE_AFTER + RETRY_LAST, |_| false).len(), 1);
    }

    #[test]
    fn strangers_cannot_grow_the_book() {
        let (mut dialer, now) = (Dialer::new(PeerId::random()), Instant::now());
        for _ in 0..2 * KNOWN_PEERS_MAX {
            dialer.learn(PeerId::random(), (0..100).map(address), now);
        }
        assert_eq!(dialer.targets.len(), KNOWN_PEERS_MAX);
        assert!(dialer.targets.iter().all(|target| target.addresses.len() == ADDRESSES_PER_PEER_MAX));
    }

    #[test]
    fn a_newcomer_takes_the_place_of_who_failed_and_not_of_who_is_connected() {
        let (mut dialer, now) = (Dialer::new(PeerId::random()), Instant::now());
        let peers: Vec<_> = (0..KNOWN_PEERS_MAX).map(|_| PeerId::random()).collect();
        peers.iter().for_each(|peer| dialer.learn(*peer, [address(2)], now));
        for dial in dialer.due(now, |_| false) {
            dialer.failed(dial.connection_id(), None, now);
        }
        let failed = |dialer: &Dialer| -> Vec<_> {
            dialer.targets.iter().filter(|target| target.failures > 0).filter_map(|target| target.peer).collect()
        };
        // All but one of those that failed come by themselves.
        let last = failed(&dialer).pop().unwrap();
        for peer in failed(&dialer).into_iter().filter(|peer| *peer != last) {
            dialer.connected(ConnectionId::new_unchecked(0), peer, now);
        }
        let connected = failed(&dialer).len() - 1;
        for _ in 0..2 * CONNECTIONS_WANTED {
            dialer.learn(PeerId::random(), [address(2)], now);
        }
        assert!(dialer.addresses(&last).is_empty(), "it made room");
        assert_eq!(failed(&dialer).len(), connected, "and nobody who is connected");
    }

    #[test]
    fn an_address_that_names_another_peer_is_not_believed() {
        let (mut dialer, peer, now) = (Dialer::new(PeerId::random()), PeerId::random(), Instant::now());
        dialer.learn(peer, [address(1).with(Protocol::P2p(PeerId::random()))], now);
        assert!(dialer.due(now, |_| false).is_empty());
    }
}
