//! The task that owns the swarm: commands in, events out, and nobody waits for anybody.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use futures::StreamExt;
use libp2p::gossipsub::{self, IdentTopic, MessageAcceptance, PublishError};
use libp2p::multiaddr::Protocol;
use libp2p::request_response::{self, OutboundRequestId};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, identify, mdns, ping};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::behaviour::{self, Behaviour, BehaviourEvent, run_name};
use super::dialer::Dialer;
use super::exchange;
use super::identity::node_id;
use super::{GossipToken, NetworkConfig, NetworkError, NetworkEvent, ResponseToken};
use paris_protocol::{agent::Verdict, identity::NodeId};

/// How often the book of targets is looked at.
const DIAL_TICK: Duration = Duration::from_millis(500);
/// Requests of ours that wait for an answer.
const REQUESTS_MAX: usize = 256;
/// Addresses of met peers that the node is told to remember.
const KNOWN_ADDRESSES_MAX: usize = 128;
/// Places in the event channel that gossip and requests leave to the rest.
const EVENTS_RESERVED: usize = 256;
/// How long a goodbye may take: closing the connections, then sending what is queued.
const GOODBYE: Duration = Duration::from_millis(250);
const FLUSH: Duration = Duration::from_millis(50);

/// What the handle asks of the driver.
pub(super) enum Command {
    Publish(Vec<u8>),
    Request { peer: PeerId, data: Vec<u8>, reply: oneshot::Sender<Result<Vec<u8>, String>> },
    Report { token: GossipToken, verdict: Verdict },
    Respond { token: ResponseToken, data: Vec<u8> },
    Dial(Multiaddr),
    Shutdown(oneshot::Sender<()>),
}

/// What the handle can look up without asking.
#[derive(Default)]
pub(super) struct Status {
    pub(super) addresses: Vec<Multiaddr>,
    pub(super) peers: Vec<NodeId>,
    pub(super) known: Vec<Multiaddr>,
}

/// The swarm and its books.
pub(super) struct Driver {
    swarm: Swarm<Behaviour>,
    run_name: String,
    topic: IdentTopic,
    dialer: Dialer,
    /// Connected peers on this machine.
    local: HashSet<PeerId>,
    pending: HashMap<OutboundRequestId, oneshot::Sender<Result<Vec<u8>, String>>>,
    commands: mpsc::Receiver<Command>,
    events: mpsc::Sender<NetworkEvent>,
    status: watch::Sender<Status>,
}

impl Driver {
    /// Builds the swarm and opens its listeners.
    pub(super) fn new(
        config: &NetworkConfig,
        commands: mpsc::Receiver<Command>,
        events: mpsc::Sender<NetworkEvent>,
        status: watch::Sender<Status>,
    ) -> Result<Self, NetworkError> {
        let mut swarm = behaviour::swarm(config)?;
        for address in &config.listen {
            swarm
                .listen_on(address.clone())
                .map_err(|error| NetworkError::Listen { address: address.clone(), reason: error.to_string() })?;
        }
        let mut dialer = Dialer::new(*swarm.local_peer_id());
        let now = Instant::now();
        config.seeds.iter().for_each(|seed| dialer.add_seed(seed.clone(), now));
        for address in &config.known {
            if let Some(Protocol::P2p(peer)) = address.iter().last() {
                dialer.meet(peer, [address.clone()], now);
            }
        }
        Ok(Self {
            swarm,
            run_name: run_name(&config.run),
            topic: behaviour::topic(&config.run),
            dialer,
            local: HashSet::new(),
            pending: HashMap::new(),
            commands,
            events,
            status,
        })
    }

    /// Runs until a shutdown, or until every handle is gone.
    pub(super) async fn run(mut self) {
        let mut tick = tokio::time::interval(DIAL_TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                command = self.commands.recv() => match command {
                    None => return,
                    Some(Command::Shutdown(done)) => {
                        self.say_goodbye().await;
                        self.commands.close();
                        self.status.send_modify(|status| *status = Status::default());
                        done.send(()).ok();
                        return;
                    }
                    Some(command) => self.obey(command),
                },
                event = self.swarm.select_next_some() => self.hear(event),
                _ = tick.tick() => self.dial_due(),
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Publish(data) => match self.swarm.behaviour_mut().gossip.publish(self.topic.clone(), data) {
                Ok(_) => {}
                // Normal for a node that is alone or has just started: whoever announces, announces again.
                Err(PublishError::NoPeersSubscribedToTopic) => tracing::debug!("nobody listens to gossip yet"),
                Err(error) => tracing::warn!(%error, "a gossip message was not published"),
            },
            Command::Request { peer, data, reply } => {
                if self.pending.len() >= REQUESTS_MAX {
                    reply.send(Err(format!("{REQUESTS_MAX} requests are waiting already"))).ok();
                    return;
                }
                let addresses = self.dialer.addresses(&peer);
                let requests = &mut self.swarm.behaviour_mut().requests;
                let request = requests.send_request_with_addresses(&peer, data, addresses);
                self.pending.insert(request, reply);
            }
            Command::Report { token, verdict } => self.report(&token, verdict),
            Command::Respond { token, data } => {
                if self.swarm.behaviour_mut().requests.send_response(token.0, data).is_err() {
                    tracing::debug!("a response came too late: the peer is gone");
                }
            }
            Command::Dial(address) => match address.iter().last() {
                Some(Protocol::P2p(peer)) => self.dialer.learn(peer, [address], Instant::now()),
                _ => {
                    if let Err(error) = self.swarm.dial(address) {
                        tracing::debug!(%error, "a dial was not begun");
                    }
                }
            },
            // Handled by the loop, which ends with it.
            Command::Shutdown(_) => {}
        }
    }

    fn report(&mut self, token: &GossipToken, verdict: Verdict) {
        let acceptance = match verdict {
            Verdict::Accept => MessageAcceptance::Accept,
            Verdict::Ignore => MessageAcceptance::Ignore,
            Verdict::Reject => MessageAcceptance::Reject,
        };
        let gossip = &mut self.swarm.behaviour_mut().gossip;
        gossip.report_message_validation_result(&token.message, &token.propagation_source, acceptance);
    }

    fn dial_due(&mut self) {
        let now = Instant::now();
        for dial in self.dialer.due(now, |peer| self.swarm.is_connected(peer)) {
            let attempt = dial.connection_id();
            if let Err(error) = self.swarm.dial(dial) {
                self.dial_failed(attempt, None, &error);
            }
        }
    }

    fn dial_failed(&mut self, attempt: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        if matches!(error, DialError::LocalPeerId { .. }) {
            return self.dialer.is_self(attempt);
        }
        tracing::debug!(?peer, %error, "a dial failed");
        if let Some(seed) = self.dialer.failed(attempt, peer, Instant::now()) {
            tracing::warn!("the seed {seed} cannot be reached; trying on in the background");
        }
    }

    fn hear(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.hear_protocol(event),
            SwarmEvent::NewListenAddr { address, .. } => {
                let address = self.with_own_peer(address);
                self.status.send_modify(|status| status.addresses.push(address.clone()));
                self.tell(NetworkEvent::Listening(address));
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                let address = self.with_own_peer(address);
                self.status.send_modify(|status| status.addresses.retain(|known| *known != address));
            }
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener stumbled"),
            SwarmEvent::ListenerClosed { reason: Err(error), .. } => {
                tracing::error!(%error, "a listener closed: peers cannot reach this node there any more");
            }
            // The second of a peer is its double's (see `doubles`): it may ask, and changes nothing else.
            SwarmEvent::ConnectionEstablished { peer_id, num_established, .. } if num_established.get() > 1 => {
                tracing::warn!(%peer_id, "two machines seem to run with the key of this peer");
            }
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                let Some(node) = node_id(&peer_id) else {
                    self.swarm.disconnect_peer_id(peer_id).ok();
                    return;
                };
                if is_loopback(endpoint.get_remote_address()) {
                    self.local.insert(peer_id);
                }
                self.dialer.connected(connection_id, peer_id, Instant::now());
                self.status.send_modify(|status| status.peers.push(node));
                self.tell(NetworkEvent::PeerConnected(node));
            }
            SwarmEvent::ConnectionClosed { peer_id, num_established: 0, cause, .. } => {
                tracing::debug!(%peer_id, ?cause, "a connection closed");
                self.local.remove(&peer_id);
                self.dialer.closed(&peer_id, Instant::now());
                if let Some(node) = node_id(&peer_id) {
                    self.status.send_modify(|status| status.peers.retain(|peer| *peer != node));
                    self.tell(NetworkEvent::PeerDisconnected(node));
                }
            }
            SwarmEvent::OutgoingConnectionError { connection_id, peer_id, error } => {
                self.dial_failed(connection_id, peer_id, &error);
            }
            _ => {}
        }
    }

    fn hear_protocol(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                let token = GossipToken { message: message_id, propagation_source };
                match message.source.as_ref().and_then(node_id) {
                    Some(author) => self.hand_over_gossip(token, author, message.data),
                    None => self.report(&token, Verdict::Reject),
                }
            }
            BehaviourEvent::Requests(event) => self.hear_request(event),
            BehaviourEvent::Exchange(event) => self.hear_exchange(event),
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. }) => {
                self.hear_identity(peer_id, info);
            }
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Ok(_) }) => {
                self.swarm.behaviour_mut().doubles.answered(peer, connection);
            }
            BehaviourEvent::Ping(ping::Event { peer, connection, result: Err(ping::Failure::Timeout) }) => {
                tracing::debug!(%peer, "no answer to a ping: the peer is held to be gone");
                self.swarm.close_connection(connection);
            }
            BehaviourEvent::Mdns(mdns::Event::Discovered(found)) => {
                let now = Instant::now();
                found.into_iter().for_each(|(peer, address)| self.dialer.learn(peer, [address], now));
            }
            _ => {}
        }
    }

    fn hand_over_gossip(&mut self, token: GossipToken, author: NodeId, data: Vec<u8>) {
        if self.events.capacity() > EVENTS_RESERVED {
            self.tell(NetworkEvent::Gossip { token, author, data });
        } else {
            tracing::debug!("the node is slow: a gossip message is passed over");
            self.report(&token, Verdict::Ignore);
        }
    }

    fn hear_request(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, message: Message::Request { request: data, channel, .. }, .. } => {
                // Dropping the channel tells the peer that there will be no answer.
                match node_id(&peer) {
                    Some(from) if self.events.capacity() > EVENTS_RESERVED => {
                        self.tell(NetworkEvent::Request { token: ResponseToken(channel), from, data });
                    }
                    _ => tracing::debug!(%peer, "the node is slow: a request is refused"),
                }
            }
            Event::Message { message: Message::Response { request_id, response }, .. } => {
                self.answer(request_id, Ok(response));
            }
            Event::OutboundFailure { request_id, error, .. } => self.answer(request_id, Err(error.to_string())),
            Event::InboundFailure { peer, error, .. } => tracing::debug!(%peer, %error, "a request went unanswered"),
            Event::ResponseSent { .. } => {}
        }
    }

    fn answer(&mut self, request: OutboundRequestId, result: Result<Vec<u8>, String>) {
        if let Some(reply) = self.pending.remove(&request) {
            reply.send(result).ok();
        }
    }

    fn hear_identity(&mut self, peer: PeerId, info: identify::Info) {
        if info.protocol_version != self.run_name {
            tracing::debug!(%peer, theirs = info.protocol_version, "a peer of another run");
            self.dialer.forget(&peer);
            self.swarm.disconnect_peer_id(peer).ok();
            return;
        }
        let claimed: Vec<_> =
            info.listen_addrs.into_iter().filter(|address| self.is_believable(&peer, address)).collect();
        self.dialer.meet(peer, claimed, Instant::now());
        self.note_known();
        self.swarm.behaviour_mut().exchange.send_request(&peer, Vec::new());
    }

    /// Answers a peer that asks who else is there, and takes in what others answer.
    fn hear_exchange(&mut self, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        use request_response::{Event, Message};
        match event {
            Event::Message { peer, message: Message::Request { channel, .. }, .. } => {
                let connected = self.dialer.met().filter(|(peer, _)| self.swarm.is_connected(peer));
                let answer = exchange::answer(&peer, connected);
                if self.swarm.behaviour_mut().exchange.send_response(channel, answer).is_err() {
                    tracing::debug!(%peer, "a peer that asked for peers is gone");
                }
            }
            Event::Message { peer, message: Message::Response { response, .. }, .. } => {
                let now = Instant::now();
                for (other, address) in exchange::read(&response) {
                    if self.is_believable(&peer, &address) {
                        self.dialer.learn(other, [address], now);
                    }
                }
            }
            Event::OutboundFailure { .. } | Event::InboundFailure { .. } | Event::ResponseSent { .. } => {}
        }
    }

    /// Addresses of this machine are believed only from this machine, lest a stranger makes us knock on our own doors.
    fn is_believable(&self, source: &PeerId, address: &Multiaddr) -> bool {
        self.local.contains(source) || !is_loopback(address)
    }

    /// Lets the node see whom to remember: peers that proved who they are, those connected now first.
    fn note_known(&mut self) {
        let mut met: Vec<_> = self.dialer.met().collect();
        met.sort_by_key(|(peer, _)| !self.swarm.is_connected(peer));
        let named = |(peer, addresses): (PeerId, Vec<Multiaddr>)| {
            addresses.into_iter().map(move |address| address.with(Protocol::P2p(peer)))
        };
        let known = met.into_iter().flat_map(named).take(KNOWN_ADDRESSES_MAX).collect();
        self.status.send_modify(|status| status.known = known);
    }

    /// Hands an event to the node. Lifecycle events are lost only when even the reserve is used up.
    fn tell(&mut self, event: NetworkEvent) {
        if let Err(mpsc::error::TrySendError::Full(event)) = self.events.try_send(event) {
            tracing::warn!(?event, "the node does not keep up: an event is lost");
        }
    }

    /// QUIC says goodbye only while the swarm is polled.
    async fn say_goodbye(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            self.swarm.disconnect_peer_id(peer).ok();
        }
        let all_gone = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        tokio::time::timeout(GOODBYE, all_gone).await.ok();
        // The farewells are queued now; the sockets send them while the swarm is polled.
        let flushing = async {
            loop {
                self.swarm.select_next_some().await;
            }
        };
        tokio::time::timeout(FLUSH, flushing).await.ok();
    }

    fn with_own_peer(&self, address: Multiaddr) -> Multiaddr {
        address.with_p2p(*self.swarm.local_peer_id()).unwrap_or_else(|address| address)
    }
}

fn is_loopback(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_loopback(),
        Some(Protocol::Ip6(ip)) => ip.is_loopback(),
        _ => false,
    }
}
