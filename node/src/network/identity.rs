//! One key, two names: the [`NodeId`] of the protocol and libp2p's [`PeerId`] are the same ed25519 public key.

use libp2p::PeerId;
use libp2p::identity::{PublicKey, ed25519};
use paris_protocol::identity::NodeId;

/// The multihash code of "these are the bytes themselves": short keys are their own peer id.
const IDENTITY_MULTIHASH: u64 = 0;

/// The peer id of a node, or `None` if the bytes are no ed25519 public key.
pub fn peer_id(node: &NodeId) -> Option<PeerId> {
    let key = ed25519::PublicKey::try_from_bytes(&node.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// The node behind a peer id, or `None` if the peer's key is not an ed25519 key.
pub fn node_id(peer: &PeerId) -> Option<NodeId> {
    let hash = peer.as_ref();
    if hash.code() != IDENTITY_MULTIHASH {
        return None;
    }
    let key = PublicKey::try_decode_protobuf(hash.digest()).ok()?.try_into_ed25519().ok()?;
    Some(NodeId(key.to_bytes()))
}

#[cfg(test)]
mod tests {
    use libp2p::identity::Keypair as PeerKeypair;
    use paris_protocol::identity::Keypair;

    use super::*;

    #[test]
    fn one_secret_gives_one_identity() {
        let ours = Keypair::from_secret(&[7; 32]).id();
        let theirs = PeerKeypair::ed25519_from_bytes([7; 32]).unwrap().public().to_peer_id();
        assert_eq!(peer_id(&ours), Some(theirs));
        assert_eq!(node_id(&theirs), Some(ours));
    }

    #[test]
    fn a_peer_id_that_is_only_a_hash_has_no_node() {
        let hashed = PeerId::from_multihash(libp2p::multihash::Multihash::wrap(0x12, &[1; 32]).unwrap()).unwrap();
        assert_eq!(node_id(&hashed), None);
    }
}
