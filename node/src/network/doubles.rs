//! One connection a peer, and a second for its double.
//!
//! A peer that restarts beside its own ghost must not be let in before the ghost is gone, or it is never told what its peers subscribe to (rust-libp2p
//! issue 5097). But who dials again and again while the first connection still answers pings is no ghost's heir: a second machine runs with the same
//! key. Turned away everywhere it would hear nothing, own everything in its own eyes and never learn why. It is let in once, so that it can ask for the
//! register, see its own key's claims in it, and stop.

use std::{
    collections::HashMap,
    convert::Infallible,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p::{
    Multiaddr, PeerId,
    core::{Endpoint, transport::PortUse},
    swarm::{
        CloseConnection, ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
        THandlerInEvent, THandlerOutEvent, ToSwarm, behaviour::ConnectionEstablished, dummy,
    },
};

/// A refusal counts for so long: dials of a double come at most a third of it apart.
const REFUSAL_COUNTS: Duration = Duration::from_secs(30);

/// What is known of a connected peer.
#[derive(Debug, Default)]
struct Known {
    /// The oldest first; at most two.
    connections: Vec<ConnectionId>,
    /// When the first last answered a ping.
    alive: Option<Instant>,
    /// When another connection was turned away: the first time of late.
    refused: Option<Instant>,
}

impl Known {
    /// True if another connection may stand beside those that are there.
    fn admits(&mut self, now: Instant) -> bool {
        self.refused = self.refused.filter(|first| now.saturating_duration_since(*first) <= REFUSAL_COUNTS);
        match (self.connections.len(), self.refused) {
            (0, _) => true,
            // The first answered after the other had been turned away: both live.
            (1, Some(first)) if self.alive > Some(first) => true,
            (1, _) => {
                self.refused.get_or_insert(now);
                false
            }
            _ => false,
        }
    }
}

/// A connection that is refused since the peer has one.
#[derive(Debug, thiserror::Error)]
#[error("the peer is connected already")]
struct Connected;

/// The behaviour that keeps count.
#[derive(Default)]
pub(super) struct Doubles {
    peers: HashMap<PeerId, Known>,
    /// Peers whose older connection is gone while a newer stands: a new start is needed.
    stale: Vec<PeerId>,
}

impl Doubles {
    /// A connection answered a ping.
    pub(super) fn answered(&mut self, peer: PeerId, connection: ConnectionId) {
        if let Some(known) = self.peers.get_mut(&peer).filter(|known| known.connections.first() == Some(&connection)) {
            known.alive = Some(Instant::now());
        }
    }

    fn admit(&mut self, peer: PeerId) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        match self.peers.get_mut(&peer).is_none_or(|known| known.admits(Instant::now())) {
            true => Ok(dummy::ConnectionHandler),
            false => Err(ConnectionDenied::new(Connected)),
        }
    }

    fn opened(&mut self, peer: PeerId, connection: ConnectionId) {
        self.peers.entry(peer).or_default().connections.push(connection);
    }

    fn closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(known) = self.peers.get_mut(&peer) else { return };
        let was_first = known.connections.first() == Some(&connection);
        known.connections.retain(|it| *it != connection);
        if known.connections.is_empty() {
            self.peers.remove(&peer);
        } else if was_first {
            self.stale.push(peer);
        }
    }
}

impl NetworkBehaviour for Doubles {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        peer: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished { peer_id, connection_id, .. }) => {
                self.opened(peer_id, connection_id);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed { peer_id, connection_id, .. }) => {
                self.closed(peer_id, connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Infallible, THandlerInEvent<Self>>> {
        match self.stale.pop() {
            Some(peer_id) => Poll::Ready(ToSwarm::CloseConnection { peer_id, connection: CloseConnection::All }),
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(connections: usize) -> Known {
        Known { connections: (0..connections).map(ConnectionId::new_unchecked).collect(), ..Known::default() }
    }

    #[test]
    fn a_peer_that_restarts_beside_its_ghost_waits_until_the_ghost_is_gone() {
        let (mut ghost, start) = (known(1), Instant::now());
        ghost.alive = Some(start);
        for second in 1..20 {
            assert!(!ghost.admits(start + Duration::from_secs(second)), "the ghost answers no more");
        }
        assert!(known(0).admits(start));
    }

    #[test]
    fn who_dials_again_while_the_first_still_answers_is_let_in_and_no_third() {
        let (mut original, start) = (known(1), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        original.alive = Some(at(0));
        assert!(!original.admits(at(1)));
        original.alive = Some(at(2));
        assert!(original.admits(at(3)));
        original.connections.push(ConnectionId::new_unchecked(9));
        assert!(!original.admits(at(4)));
    }

    #[test]
    fn two_dials_that_crossed_long_ago_say_nothing_of_a_later_one() {
        let (mut peer, start) = (known(1), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!peer.admits(at(0)));
        peer.alive = Some(at(60));
        assert!(!peer.admits(at(61)));
    }
}
