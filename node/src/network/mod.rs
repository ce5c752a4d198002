//! The swarm behind a small handle: discovery, gossip and requests, over QUIC and TCP.
//!
//! [`Network::start`] spawns one task that owns the swarm (`driver`); [`Network`] is a cheap handle to it and
//! [`NetworkEvent`]s come out of a bounded channel. The room knows nothing of the messages it carries: it hands every
//! gossip message to the node, which must give a [`Verdict`] before the swarm forwards it, and every request, which
//! the node answers with [`Network::respond`].
//!
//! Nothing here is reliable: gossip is a hint, a request may fail, a peer may vanish. What is promised is that the
//! swarm keeps trying (seeds are dialed for ever) and that no stranger can make it hold more than its bounds.

mod behaviour;
mod codec;
mod dialer;
mod doubles;
mod driver;
mod exchange;
mod gossip;
mod identity;

use libp2p::gossipsub::MessageId;
use libp2p::request_response::ResponseChannel;
use libp2p::{Multiaddr, PeerId};
use paris_protocol::{agent::Verdict, identity::NodeId};
use tokio::sync::{mpsc, oneshot, watch};

pub use self::codec::{REQUEST_BYTES_MAX, RESPONSE_BYTES_MAX};
use self::driver::{Command, Driver, Status};
pub use self::gossip::GOSSIP_BYTES_MAX;
pub use self::identity::{node_id, peer_id};

/// Commands that wait for the swarm.
const COMMANDS_MAX: usize = 1024;
/// Events that wait for the node. Beyond, gossip is ignored and requests are refused; the swarm never waits.
const EVENTS_MAX: usize = 1024;

/// What the swarm needs to start.
#[derive(Clone)]
pub struct NetworkConfig {
    /// The ed25519 secret that is this node.
    pub secret: [u8; 32],
    /// The run's id; it names the topic and the protocols, so nodes of different runs do not mix.
    pub run: [u8; 32],
    /// Where to listen, such as `/ip4/0.0.0.0/udp/4001/quic-v1`. Empty for a node that only dials.
    pub listen: Vec<Multiaddr>,
    /// Whom to dial, for ever; with or without `/p2p/` suffix. This node itself among them is skipped.
    pub seeds: Vec<Multiaddr>,
    /// Peers met in earlier runs of the program, each address with `/p2p/` suffix: dialed as those that are met now.
    pub known: Vec<Multiaddr>,
    /// Look for peers on the local network.
    pub mdns: bool,
}

/// What the swarm tells the node.
#[derive(Debug)]
pub enum NetworkEvent {
    /// A signed message. It goes no further until [`Network::report`] is told a verdict.
    Gossip {
        /// Names the message in the verdict.
        token: GossipToken,
        /// Who signed the envelope (not who forwarded it).
        author: NodeId,
        /// At most [`GOSSIP_BYTES_MAX`] bytes.
        data: Vec<u8>,
    },
    /// A question. Dropping the token tells the peer that there will be no answer.
    Request {
        /// Where the answer goes.
        token: ResponseToken,
        /// Who asks.
        from: NodeId,
        /// At most [`REQUEST_BYTES_MAX`] bytes.
        data: Vec<u8>,
    },
    /// A connection to a peer stands.
    PeerConnected(NodeId),
    /// The connection to a peer is gone.
    PeerDisconnected(NodeId),
    /// The swarm can be reached here (with `/p2p/` suffix).
    Listening(Multiaddr),
}

/// Names one gossip message that waits for its verdict.
#[derive(Debug)]
pub struct GossipToken {
    message: MessageId,
    propagation_source: PeerId,
}

/// Names one request that waits for its answer.
#[derive(Debug)]
pub struct ResponseToken(ResponseChannel<Vec<u8>>);

/// What can go wrong with the network.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// The secret is no ed25519 key.
    #[error("the node's secret is not a usable ed25519 key: {0}")]
    Key(String),
    /// The transports or protocols could not be set up.
    #[error("the network could not be set up: {0}")]
    Transport(String),
    /// A listen address cannot be used.
    #[error("cannot listen on {address}: {reason}. If another node has the port, choose one with --port, or 0 for any")]
    Listen {
        /// The address from the configuration.
        address: Multiaddr,
        /// What the system said.
        reason: String,
    },
    /// The message is over its limit.
    #[error("a message of {bytes} bytes is over the limit of {limit}; send a hash and let the peers fetch the rest")]
    TooLarge {
        /// The message's size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The id is no ed25519 public key.
    #[error("{0} is not the key of any node")]
    UnknownNode(NodeId),
    /// A request failed.
    #[error("the request to {peer} failed: {reason}")]
    Request {
        /// Who was asked.
        peer: NodeId,
        /// What happened.
        reason: String,
    },
    /// Too many commands or requests are waiting.
    #[error("the network is busy: too much is waiting to be sent; try again later")]
    Busy,
    /// The swarm has been shut down.
    #[error("the network has been shut down")]
    Closed,
}

/// A handle to the running swarm; clones share it. When the last one is dropped the swarm stops without goodbye.
#[derive(Clone)]
pub struct Network {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<Status>,
}

impl Network {
    /// Starts the swarm on the current tokio runtime. Seeds need not be reachable.
    ///
    /// # Errors
    /// A bad key, or a listen address that cannot be used.
    pub fn start(config: NetworkConfig) -> Result<(Self, mpsc::Receiver<NetworkEvent>), NetworkError> {
        let (command_sender, commands) = mpsc::channel(COMMANDS_MAX);
        let (events, event_receiver) = mpsc::channel(EVENTS_MAX);
        let (status_sender, status) = watch::channel(Status::default());
        let driver = Driver::new(&config, commands, events, status_sender)?;
        tokio::spawn(driver.run());
        Ok((Self { commands: command_sender, status }, event_receiver))
    }

    /// Sends `data` to everyone of the run who listens now. Nothing is stored for those who come later.
    ///
    /// # Errors
    /// [`NetworkError::TooLarge`], [`NetworkError::Busy`] or [`NetworkError::Closed`].
    pub fn publish(&self, data: Vec<u8>) -> Result<(), NetworkError> {
        bounded(&data, GOSSIP_BYTES_MAX)?;
        self.send(Command::Publish(data))
    }

    /// Asks `peer`, dialing it if an address is known, and waits for the answer.
    ///
    /// # Errors
    /// Every failure of the transport, of the peer (no answer within ten seconds) or of the limits.
    pub async fn request(&self, peer: NodeId, data: Vec<u8>) -> Result<Vec<u8>, NetworkError> {
        bounded(&data, REQUEST_BYTES_MAX)?;
        let peer_id = peer_id(&peer).ok_or(NetworkError::UnknownNode(peer))?;
        let (reply, answer) = oneshot::channel();
        self.send(Command::Request { peer: peer_id, data, reply })?;
        match answer.await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(reason)) => Err(NetworkError::Request { peer, reason }),
            Err(_) => Err(NetworkError::Closed),
        }
    }

    /// Says what becomes of a gossip message; once per token. Late verdicts (seconds) have no effect.
    pub fn report(&self, token: GossipToken, verdict: Verdict) {
        if let Err(error) = self.send(Command::Report { token, verdict }) {
            tracing::debug!(%error, "a gossip verdict was lost");
        }
    }

    /// Answers a request. Over [`RESPONSE_BYTES_MAX`] nothing is sent and the peer sees a failure.
    pub fn respond(&self, token: ResponseToken, data: Vec<u8>) {
        let sent = bounded(&data, RESPONSE_BYTES_MAX).and_then(|()| self.send(Command::Respond { token, data }));
        if let Err(error) = sent {
            tracing::warn!(%error, "a response was not sent");
        }
    }

    /// Dials a peer; a failure is forgotten unless the address names the peer, which is then retried for a while.
    ///
    /// # Errors
    /// [`NetworkError::Busy`] or [`NetworkError::Closed`].
    pub fn dial(&self, address: Multiaddr) -> Result<(), NetworkError> {
        self.send(Command::Dial(address))
    }

    /// Where this node can be reached, as far as it knows; each with `/p2p/` suffix.
    pub fn listen_addresses(&self) -> Vec<Multiaddr> {
        self.status.borrow().addresses.clone()
    }

    /// The peers with which a connection stands. Events may be lost when the node is slow; this is the truth.
    pub fn connected_peers(&self) -> Vec<NodeId> {
        self.status.borrow().peers.clone()
    }

    /// Addresses of peers that proved who they are, each with `/p2p/` suffix, at most 128: for the next start.
    pub fn known_addresses(&self) -> Vec<Multiaddr> {
        self.status.borrow().known.clone()
    }

    /// Says goodbye to every peer and stops the swarm; takes at most about 300 ms.
    pub async fn shutdown(&self) {
        let (done, finished) = oneshot::channel();
        if self.commands.send(Command::Shutdown(done)).await.is_ok() {
            finished.await.ok();
        }
    }

    fn send(&self, command: Command) -> Result<(), NetworkError> {
        self.commands.try_send(command).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => NetworkError::Busy,
            mpsc::error::TrySendError::Closed(_) => NetworkError::Closed,
        })
    }
}

fn bounded(data: &[u8], limit: usize) -> Result<(), NetworkError> {
    if data.len() > limit {
        return Err(NetworkError::TooLarge { bytes: data.len(), limit });
    }
    Ok(())
}
