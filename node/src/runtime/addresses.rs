//! Addresses: where to listen, whom to dial, what a ticket says.

use std::net::{IpAddr, SocketAddr};

use libp2p::{Multiaddr, multiaddr::Protocol};
use paris_protocol::{
    identity::NodeId,
    message::ADDRESSES_MAX,
    ticket::{Seed, Ticket},
};

use crate::network::peer_id;

/// The most addresses that a ticket gives of one node, beside as many for blobs as peers are told.
const TICKET_ADDRESSES_MAX: usize = 6;

/// QUIC and TCP on one port number.
pub(super) fn listen_on(host: IpAddr, port: u16) -> Vec<Multiaddr> {
    let udp = Multiaddr::from(host).with(Protocol::Udp(port)).with(Protocol::QuicV1);
    let tcp = Multiaddr::from(host).with(Protocol::Tcp(port));
    vec![udp, tcp]
}

/// Every address of every seed, each naming its peer. What does not read as an address is left out: a ticket is a hint.
pub(super) fn of_seeds(ticket: &Ticket) -> Vec<Multiaddr> {
    let of_seed = |node: NodeId, text: &String| -> Option<Multiaddr> {
        let address: Multiaddr = text.parse().ok()?;
        Some(address.with(Protocol::P2p(peer_id(&node)?)))
    };
    ticket.seeds().iter().flat_map(|seed| seed.gossip.iter().filter_map(move |text| of_seed(seed.node, text))).collect()
}

/// This node as a ticket names it.
pub(super) fn as_seed(node: NodeId, listening: &[Multiaddr], blobs: Vec<SocketAddr>) -> Seed {
    Seed { node, gossip: for_ticket(listening), blobs: blobs.into_iter().take(ADDRESSES_MAX).collect() }
}

/// Addresses as a ticket carries them: without the peer id, and loopback only where there is nothing else.
fn for_ticket(listening: &[Multiaddr]) -> Vec<String> {
    let is_loopback = |address: &Multiaddr| {
        address.iter().any(|protocol| match protocol {
            Protocol::Ip4(ip) => ip.is_loopback(),
            Protocol::Ip6(ip) => ip.is_loopback(),
            _ => false,
        })
    };
    let outside: Vec<_> = listening.iter().filter(|address| !is_loopback(address)).collect();
    let chosen = if outside.is_empty() { listening.iter().collect() } else { outside };
    chosen.into_iter().take(TICKET_ADDRESSES_MAX).map(|address| without_peer(address).to_string()).collect()
}

fn without_peer(address: &Multiaddr) -> Multiaddr {
    address.iter().filter(|protocol| !matches!(protocol, Protocol::P2p(_))).collect()
}

#[cfg(test)]
mod tests {
    use paris_protocol::{hash::Hash, manifest::RunId};

    use super::*;

    #[test]
    fn a_ticket_prefers_addresses_that_others_can_reach() {
        let address = |text: &str| text.parse::<Multiaddr>().unwrap();
        let (near, far) = (address("/ip4/127.0.0.1/udp/1/quic-v1"), address("/ip4/192.0.2.1/udp/1/quic-v1"));
        let named = far.clone().with(Protocol::P2p(libp2p::PeerId::random()));
        assert_eq!(for_ticket(&[near.clone(), named]), [far.to_string()]);
        assert_eq!(for_ticket(std::slice::from_ref(&near)), [near.to_string()]);
    }

    #[test]
    fn a_node_of_very_many_addresses_still_has_room_in_its_ticket() {
        let listening: Vec<_> = (0..2000).map(|port| listen_on([192, 0, 2, 1].into(), port)[0].clone()).collect();
        let blobs = (0..2000).map(|port| ([192, 0, 2, 1], port).into()).collect();
        let ticket = Ticket::new(RunId(Hash::of(b"run")), [as_seed(NodeId([3; 32]), &listening, blobs)]);
        assert_eq!(ticket.seeds()[0].blobs.len(), ADDRESSES_MAX);
        assert_eq!(ticket.to_string().parse::<Ticket>().unwrap(), ticket);
    }
}
