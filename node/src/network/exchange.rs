//! Peers tell each other of peers, so that a network outlives the seeds that everyone came by.
//!
//! Whoever identified a peer of the run asks it whom else it is connected to. The answer is hearsay: bounded, dialed only while connections are
//! wanting, and believed of nobody who does not answer with the key that the address names.

use libp2p::{Multiaddr, PeerId, multiaddr::Protocol};
use paris_protocol::codec::Wire;
use serde::{Deserialize, Serialize};

/// Peers that one answer names.
pub(super) const PEERS_MAX: usize = 16;
/// Addresses that it gives of each.
const ADDRESSES_MAX: usize = 4;

/// An answer: multiaddresses in text, each with `/p2p/` suffix.
#[derive(Serialize, Deserialize)]
struct Heard(Vec<String>);

impl Wire for Heard {
    const NAME: &'static str = "peer exchange";
    const LIMIT: usize = 16 * 1024;
}

/// The answer for `asker`: some of `peers`, chosen so that different askers hear of different ones.
pub(super) fn answer(asker: &PeerId, peers: impl IntoIterator<Item = (PeerId, Vec<Multiaddr>)>) -> Vec<u8> {
    let rank =
        |peer: &PeerId| *blake3::Hasher::new().update(&asker.to_bytes()).update(&peer.to_bytes()).finalize().as_bytes();
    let mut others: Vec<_> = peers.into_iter().filter(|(peer, _)| peer != asker).collect();
    others.sort_by_key(|(peer, _)| rank(peer));
    let named = |(peer, addresses): (PeerId, Vec<Multiaddr>)| {
        addresses.into_iter().take(ADDRESSES_MAX).map(move |address| address.with(Protocol::P2p(peer)).to_string())
    };
    let heard = Heard(others.into_iter().take(PEERS_MAX).flat_map(named).collect());
    // Addresses of unheard-of length are the only thing that could make it too long.
    heard.to_bytes().unwrap_or_default()
}

/// Whom an answer names, and where. Nothing of an answer over its bounds is believed.
pub(super) fn read(answer: &[u8]) -> Vec<(PeerId, Multiaddr)> {
    let Ok(Heard(texts)) = Heard::from_bytes(answer) else { return Vec::new() };
    if texts.len() > PEERS_MAX * ADDRESSES_MAX {
        return Vec::new();
    }
    let named = |text: String| {
        let address: Multiaddr = text.parse().ok()?;
        match address.iter().last()? {
            Protocol::P2p(peer) => Some((peer, address)),
            _ => None,
        }
    };
    texts.into_iter().filter_map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peers(count: usize) -> Vec<(PeerId, Vec<Multiaddr>)> {
        let address = |port| format!("/ip4/192.0.2.1/udp/{port}/quic-v1").parse().unwrap();
        (0..count).map(|_| (PeerId::random(), (1..10).map(address).collect())).collect()
    }

    #[test]
    fn an_answer_names_others_with_their_addresses_within_its_bounds() {
        let (asker, few) = (PeerId::random(), peers(2));
        let all = few.iter().cloned().chain([(asker, few[0].1.clone())]);
        let heard = read(&answer(&asker, all));
        assert_eq!(heard.len(), 2 * ADDRESSES_MAX);
        assert!(few.iter().all(|(peer, _)| heard.iter().any(|(named, _)| named == peer)));
        assert_eq!(read(&answer(&asker, peers(100))).len(), PEERS_MAX * ADDRESSES_MAX);
    }

    #[test]
    fn an_answer_over_its_bounds_is_not_believed() {
        let text = format!("/ip4/192.0.2.1/udp/1/quic-v1/p2p/{}", PeerId::random());
        let many = |count| Heard(vec![text.clone(); count]).to_bytes().unwrap();
        assert_eq!(read(&many(PEERS_MAX * ADDRESSES_MAX)).len(), PEERS_MAX * ADDRESSES_MAX);
        assert!(read(&many(PEERS_MAX * ADDRESSES_MAX + 1)).is_empty());
        assert!(read(b"garbage").is_empty() && read(b"").is_empty());
        assert!(
            read(&Heard(vec!["/ip4/192.0.2.1/udp/1/quic-v1".into(), "nonsense".into()]).to_bytes().unwrap()).is_empty()
        );
    }
}
