//! How many strangers may read from this node at once.
//!
//! Push requests (a stranger writing here) stay off, and nobody needs get-many or observe.

use std::collections::HashMap;

use iroh::EndpointId;
use iroh_blobs::provider::events::{
    AbortReason, ConnectMode, EventMask, EventSender, ObserveMode, ProviderMessage, RequestMode,
};

/// Connections that are served at once.
const CONNECTIONS_MAX: usize = 128;
/// Of these, per peer: one per fetch that the peer has under way.
const CONNECTIONS_PER_PEER_MAX: usize = 16;
/// Events that wait for the gate keeper.
const EVENTS_MAX: usize = 64;

/// Starts the gate keeper and returns where the provider reports to.
pub(super) fn limits() -> EventSender {
    let mask = EventMask {
        connected: ConnectMode::Intercept,
        get_many: RequestMode::Disabled,
        observe: ObserveMode::Intercept,
        ..EventMask::DEFAULT
    };
    let (sender, mut events) = EventSender::channel(EVENTS_MAX, mask);
    tokio::spawn(async move {
        let mut gate = Gate::default();
        while let Some(event) = events.recv().await {
            match event {
                ProviderMessage::ClientConnected(event) => {
                    let admitted = gate.enter(event.inner.connection_id, event.inner.endpoint_id);
                    event.tx.send(admitted).await.ok();
                }
                ProviderMessage::ConnectionClosed(event) => gate.leave(event.inner.connection_id),
                ProviderMessage::ObserveRequestReceived(event) => {
                    event.tx.send(Err(AbortReason::Permission)).await.ok();
                }
                _ => {}
            }
        }
    });
    sender
}

/// Who is inside.
#[derive(Default)]
struct Gate(HashMap<u64, Option<EndpointId>>);

impl Gate {
    fn enter(&mut self, connection: u64, peer: Option<EndpointId>) -> Result<(), AbortReason> {
        let same = self.0.values().filter(|inside| **inside == peer).count();
        if self.0.len() >= CONNECTIONS_MAX || same >= CONNECTIONS_PER_PEER_MAX {
            tracing::debug!(?peer, "too many readers: a peer is sent away");
            return Err(AbortReason::RateLimited);
        }
        self.0.insert(connection, peer);
        Ok(())
    }

    fn leave(&mut self, connection: u64) {
        self.0.remove(&connection);
    }
}

#[cfg(test)]
mod tests {
    use iroh::SecretKey;

    use super::*;

    fn peer(index: usize) -> Option<EndpointId> {
        let mut secret = [0; 32];
        secret[..8].copy_from_slice(&index.to_le_bytes());
        Some(SecretKey::from_bytes(&secret).public())
    }

    #[test]
    fn one_peer_cannot_take_every_place() {
        let mut gate = Gate::default();
        let admitted = (0..100).filter(|connection| gate.enter(*connection, peer(1)).is_ok()).count();
        assert_eq!(admitted, CONNECTIONS_PER_PEER_MAX);
        assert!(gate.enter(100, peer(2)).is_ok());
        gate.leave(0);
        assert!(gate.enter(101, peer(1)).is_ok());
    }

    #[test]
    fn all_places_taken_is_full() {
        let mut gate = Gate::default();
        let admitted = (0..1_000).filter(|index| gate.enter(*index as u64, peer(*index)).is_ok()).count();
        assert_eq!(admitted, CONNECTIONS_MAX);
    }
}
