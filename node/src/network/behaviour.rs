//! The swarm: transports and the protocols that run over every connection.

use std::time::Duration;

use libp2p::connection_limits::{self, ConnectionLimits};
use libp2p::gossipsub::IdentTopic;
use libp2p::identity::Keypair;
use libp2p::request_response::{self, ProtocolSupport};
use libp2p::swarm::NetworkBehaviour;
use libp2p::swarm::behaviour::toggle::Toggle;
use libp2p::{StreamProtocol, Swarm, SwarmBuilder, identify, mdns, noise, ping, tcp, yamux};

use super::codec::BoundedCodec;
use super::doubles::Doubles;
use super::gossip::{self, Gossip};
use super::{NetworkConfig, NetworkError};

/// Connections in all. A mesh needs a dozen; the rest is room for newcomers and for register exchange.
const CONNECTIONS_MAX: u32 = 128;
/// Of these, at most so many that others opened: strangers cannot take every slot (eclipse).
const CONNECTIONS_INCOMING_MAX: u32 = 96;
/// Handshakes in progress, per direction.
const CONNECTIONS_PENDING_MAX: u32 = 64;
/// Requests in progress on one connection, both directions together.
const REQUESTS_PER_CONNECTION_MAX: usize = 16;
/// A request that has no answer by then has failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A peer that vanished is noticed after so long (it may be back by then, and is refused until it was noticed).
const IDLE_TIMEOUT_MS: u32 = 4_000;
const KEEP_ALIVE: Duration = Duration::from_millis(1_500);
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Everything that runs over a connection.
#[derive(NetworkBehaviour)]
pub(super) struct Behaviour {
    limits: connection_limits::Behaviour,
    pub(super) doubles: Doubles,
    pub(super) gossip: Gossip,
    pub(super) requests: request_response::Behaviour<BoundedCodec>,
    /// Who else is there; see [`super::exchange`].
    pub(super) exchange: request_response::Behaviour<BoundedCodec>,
    identify: identify::Behaviour,
    // Also keeps the connection's task awake: without traffic of its own gossipsub was seen to sleep on messages.
    ping: ping::Behaviour,
    mdns: Toggle<mdns::tokio::Behaviour>,
}

/// What the run is called on the wire: its first eight bytes in hexadecimal. Nodes of other runs speak other protocols.
pub(super) fn run_name(run: &[u8; 32]) -> String {
    let hex: String = run[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("/paris/{hex}")
}

/// The topic of a run.
pub(super) fn topic(run: &[u8; 32]) -> IdentTopic {
    IdentTopic::new(format!("{}/gossip/1", run_name(run)))
}

/// Builds the swarm; nothing listens or dials yet.
pub(super) fn swarm(config: &NetworkConfig) -> Result<Swarm<Behaviour>, NetworkError> {
    let key = Keypair::ed25519_from_bytes(config.secret).map_err(|error| NetworkError::Key(error.to_string()))?;
    let transport = |error: String| NetworkError::Transport(error);
    let swarm = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default(), noise::Config::new, yamux::Config::default)
        .map_err(|error| transport(error.to_string()))?
        .with_quic_config(|mut quic| {
            quic.max_idle_timeout = IDLE_TIMEOUT_MS;
            quic.keep_alive_interval = KEEP_ALIVE;
            quic
        })
        .with_dns()
        .map_err(|error| transport(format!("the system's name resolver cannot be read: {error}")))?
        .with_behaviour(|key| behaviour(config, key))
        .map_err(|error| transport(error.to_string()))?
        // Peers are few and precious: a quiet connection stays open.
        .with_swarm_config(|swarm| swarm.with_idle_connection_timeout(Duration::from_secs(u64::MAX)))
        .build();
    Ok(swarm)
}

fn behaviour(
    config: &NetworkConfig,
    key: &Keypair,
) -> Result<Behaviour, Box<dyn std::error::Error + Send + Sync + 'static>> {
    let name = run_name(&config.run);
    let limits = ConnectionLimits::default()
        // How many of one peer, `doubles` says.
        .with_max_established(Some(CONNECTIONS_MAX))
        .with_max_established_incoming(Some(CONNECTIONS_INCOMING_MAX))
        .with_max_pending_incoming(Some(CONNECTIONS_PENDING_MAX))
        .with_max_pending_outgoing(Some(CONNECTIONS_PENDING_MAX));
    let protocol = StreamProtocol::try_from_owned(format!("{name}/request/1"))?;
    let exchange = StreamProtocol::try_from_owned(format!("{name}/peers/1"))?;
    let requests = request_response::Config::default()
        .with_request_timeout(REQUEST_TIMEOUT)
        .with_max_concurrent_streams(REQUESTS_PER_CONNECTION_MAX);
    let mdns = match config.mdns {
        true => Some(mdns::tokio::Behaviour::new(mdns::Config::default(), key.public().to_peer_id())?),
        false => None,
    };
    Ok(Behaviour {
        limits: connection_limits::Behaviour::new(limits),
        doubles: Doubles::default(),
        gossip: gossip::behaviour(key, format!("{name}/gossipsub"), &topic(&config.run))?,
        requests: request_response::Behaviour::new([(protocol, ProtocolSupport::Full)], requests.clone()),
        exchange: request_response::Behaviour::new([(exchange, ProtocolSupport::Full)], requests),
        identify: identify::Behaviour::new(
            identify::Config::new(name, key.public())
                .with_agent_version(concat!("paris-node/", env!("CARGO_PKG_VERSION")).into()),
        ),
        ping: ping::Behaviour::new(ping::Config::new().with_interval(PING_INTERVAL).with_timeout(PING_TIMEOUT)),
        mdns: mdns.into(),
    })
}
