//! How gossipsub is set up: what is signed, what counts as the same message, who is in the mesh, who is punished.
//!
//! The scoring differs from the library's defaults where those were measured to hurt: many honest nodes behind one
//! address are not an attack, a quiet topic is not laziness, a slow home link is no offence; an invalid message is.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use libp2p::gossipsub::{
    Behaviour, ConfigBuilder, IdentTopic, IdentityTransform, Message, MessageAuthenticity, MessageId, PeerScoreParams,
    PeerScoreThresholds, TopicScoreParams, ValidationMode, WhitelistSubscriptionFilter, score_parameter_decay,
};
use libp2p::identity::Keypair;

/// The largest gossip message on the wire, envelope and signature included, in bytes.
const WIRE_BYTES_MAX: usize = 64 * 1024;
/// The most data that one gossip message carries, in bytes; the envelope (topic, author, signature) takes the rest.
pub const GOSSIP_BYTES_MAX: usize = WIRE_BYTES_MAX - 1024;
/// How long a message is remembered so that it is not delivered twice: longer than any record stays valid in flight.
const DUPLICATE_CACHE: Duration = Duration::from_secs(300);
/// Peers behind one address before the rest are held to be Sybils: a university lab is one address.
const PEERS_PER_ADDRESS: f64 = 32.0;

/// Gossipsub with a filter that knows one topic: ours.
pub(super) type Gossip = Behaviour<IdentityTransform, WhitelistSubscriptionFilter>;

/// Builds gossipsub for `topic`, speaking only with peers that use the same protocol `prefix`.
pub(super) fn behaviour(key: &Keypair, prefix: String, topic: &IdentTopic) -> Result<Gossip, String> {
    let config = ConfigBuilder::default()
        .protocol_id_prefix(prefix)
        .validation_mode(ValidationMode::Strict)
        .validate_messages()
        .message_id_fn(message_id)
        .duplicate_cache_time(DUPLICATE_CACHE)
        .max_transmit_size(WIRE_BYTES_MAX)
        .heartbeat_initial_delay(Duration::from_millis(100))
        .heartbeat_interval(Duration::from_millis(700))
        .mesh_n(6)
        .mesh_n_low(4)
        .mesh_n_high(12)
        .mesh_outbound_min(2)
        .flood_publish(true)
        .build()
        .map_err(|error| error.to_string())?;
    let filter = WhitelistSubscriptionFilter(HashSet::from([topic.hash()]));
    let authenticity = MessageAuthenticity::Signed(key.clone());
    let mut gossip = Gossip::new_with_subscription_filter(authenticity, config, filter)?;
    gossip.with_peer_score(score(topic), thresholds())?;
    gossip.subscribe(topic).map_err(|error| error.to_string())?;
    Ok(gossip)
}

/// The same data published twice is two messages: re-announcing must reach those who joined in between.
fn message_id(message: &Message) -> MessageId {
    let mut hasher = blake3::Hasher::new();
    hasher.update(message.topic.as_str().as_bytes());
    hasher.update(&message.source.map(|peer| peer.to_bytes()).unwrap_or_default());
    hasher.update(&message.sequence_number.unwrap_or_default().to_le_bytes());
    hasher.update(&message.data);
    MessageId::from(hasher.finalize().as_bytes()[..20].to_vec())
}

fn score(topic: &IdentTopic) -> PeerScoreParams {
    let topic_score = TopicScoreParams {
        topic_weight: 1.0,
        // Good conduct earns at most about as much as one invalid message costs. A mesh quantum of a millisecond
        // (the default) would outweigh every penalty.
        time_in_mesh_weight: 0.02,
        time_in_mesh_quantum: Duration::from_secs(1),
        time_in_mesh_cap: 200.0,
        first_message_deliveries_weight: 0.2,
        first_message_deliveries_decay: score_parameter_decay(Duration::from_secs(300)),
        first_message_deliveries_cap: 20.0,
        // The topic is quiet most of the time; counting deliveries would punish everyone.
        mesh_message_deliveries_weight: 0.0,
        mesh_failure_penalty_weight: 0.0,
        // Squared: the first costs the mesh its gossip, the third the peer its hearing.
        invalid_message_deliveries_weight: -10.0,
        invalid_message_deliveries_decay: score_parameter_decay(Duration::from_secs(600)),
        ..TopicScoreParams::default()
    };
    PeerScoreParams {
        topics: [(topic.hash(), topic_score)].into(),
        topic_score_cap: 8.0,
        ip_colocation_factor_threshold: PEERS_PER_ADDRESS,
        ip_colocation_factor_whitelist: HashSet::from([
            IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V6(Ipv6Addr::LOCALHOST),
        ]),
        behaviour_penalty_weight: -5.0,
        behaviour_penalty_threshold: 6.0,
        behaviour_penalty_decay: score_parameter_decay(Duration::from_secs(60)),
        slow_peer_weight: 0.0,
        ..PeerScoreParams::default()
    }
}

fn thresholds() -> PeerScoreThresholds {
    PeerScoreThresholds {
        // With scores capped at 8 the default of 20 would graft new peers for ever.
        opportunistic_graft_threshold: 1.0,
        ..PeerScoreThresholds::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(sequence_number: u64, data: &[u8]) -> Message {
        let source = Some(Keypair::ed25519_from_bytes([1; 32]).unwrap().public().to_peer_id());
        let topic = IdentTopic::new("t").hash();
        Message { source, data: data.to_vec(), sequence_number: Some(sequence_number), topic }
    }

    #[test]
    fn scoring_is_accepted_by_the_library() {
        let topic = IdentTopic::new("t");
        score(&topic).validate().unwrap();
        thresholds().validate().unwrap();
    }

    #[test]
    fn three_invalid_messages_outweigh_any_good_conduct() {
        let params = score(&IdentTopic::new("t"));
        let topic = params.topics.values().next().unwrap();
        let worst = params.topic_score_cap + topic.invalid_message_deliveries_weight * topic.topic_weight * 9.0;
        assert!(worst < thresholds().graylist_threshold);
    }

    #[test]
    fn publishing_again_is_a_new_message_and_forwarding_is_not() {
        assert_eq!(message_id(&message(1, b"x")), message_id(&message(1, b"x")));
        assert_ne!(message_id(&message(1, b"x")), message_id(&message(2, b"x")));
        assert_ne!(message_id(&message(1, b"x")), message_id(&message(1, b"y")));
    }
}
