//! The swarm over real QUIC on loopback: what one node says, the others hear; faults of the kind that happen.

use std::collections::BTreeSet;
use std::future::Future;
use std::net::UdpSocket;
use std::time::Duration;

use libp2p::Multiaddr;
use paris_node::network::{Network, NetworkConfig, NetworkError, NetworkEvent, REQUEST_BYTES_MAX};
use paris_protocol::{
    agent::Verdict,
    identity::{Keypair, NodeId},
};
use tokio::sync::mpsc;

/// Generous: only a broken network takes so long.
const PATIENCE: Duration = Duration::from_secs(60);
/// Gossip is a hint: whoever announces, announces again.
const ANNOUNCE_AGAIN: Duration = Duration::from_millis(500);

struct Node {
    network: Network,
    events: mpsc::Receiver<NetworkEvent>,
    id: NodeId,
    address: Multiaddr,
}

fn config(secret: u8, listen: &str, seeds: &[Multiaddr]) -> NetworkConfig {
    NetworkConfig {
        secret: [secret; 32],
        run: [9; 32],
        listen: vec![listen.parse().unwrap()],
        seeds: seeds.to_vec(),
        known: Vec::new(),
        mdns: false,
    }
}

async fn start_with(config: NetworkConfig) -> Node {
    let id = Keypair::from_secret(&config.secret).id();
    let (network, mut events) = Network::start(config).unwrap();
    let address = next_of(&mut events, "its own address", |event| match event {
        NetworkEvent::Listening(address) => Some(address),
        _ => None,
    })
    .await;
    Node { network, events, id, address }
}

async fn start(secret: u8, seeds: &[&Node]) -> Node {
    let seeds: Vec<Multiaddr> = seeds.iter().map(|node| node.address.clone()).collect();
    start_with(config(secret, "/ip4/127.0.0.1/udp/0/quic-v1", &seeds)).await
}

/// A node that nobody can dial.
async fn start_behind_nat(secret: u8, seed: &Node) -> Node {
    let config = NetworkConfig {
        listen: Vec::new(),
        ..config(secret, "/ip4/127.0.0.1/tcp/0", std::slice::from_ref(&seed.address))
    };
    let id = Keypair::from_secret(&config.secret).id();
    let (network, events) = Network::start(config).unwrap();
    Node { network, events, id, address: Multiaddr::empty() }
}

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("waited in vain for {what}"))
}

/// The first event that `pick` takes; the others are dropped.
async fn next_of<T>(
    events: &mut mpsc::Receiver<NetworkEvent>,
    what: &str,
    mut pick: impl FnMut(NetworkEvent) -> Option<T>,
) -> T {
    patiently(what, async {
        loop {
            let event = events.recv().await.expect("the network stopped");
            if let Some(picked) = pick(event) {
                return picked;
            }
        }
    })
    .await
}

impl Node {
    /// Hears the next gossip, gives it `verdict`, and says who said what.
    async fn hear(&mut self, verdict: Verdict) -> (NodeId, Vec<u8>) {
        let (token, author, data) = next_of(&mut self.events, "gossip", |event| match event {
            NetworkEvent::Gossip { token, author, data } => Some((token, author, data)),
            _ => None,
        })
        .await;
        self.network.report(token, verdict);
        (author, data)
    }

    async fn hear_text(&mut self, text: &[u8]) -> NodeId {
        loop {
            let (author, data) = self.hear(Verdict::Accept).await;
            if data == text {
                return author;
            }
        }
    }

    async fn meet(&mut self, peer: NodeId) {
        next_of(&mut self.events, "a peer", |event| {
            matches!(event, NetworkEvent::PeerConnected(id) if id == peer).then_some(())
        })
        .await;
    }
}

/// Publishes until `heard` is through.
async fn announce_until<T>(network: &Network, text: &[u8], heard: impl Future<Output = T>) -> T {
    let mut again = tokio::time::interval(ANNOUNCE_AGAIN);
    tokio::pin!(heard);
    loop {
        tokio::select! {
            result = &mut heard => return result,
            _ = again.tick() => network.publish(text.to_vec()).unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_gossip_both_ways_and_say_goodbye() {
    let mut one = start(1, &[]).await;
    let mut two = start(2, &[&one]).await;
    assert_eq!(announce_until(&one.network, b"one", two.hear_text(b"one")).await, one.id);
    assert_eq!(announce_until(&two.network, b"two", one.hear_text(b"two")).await, two.id);
    assert_eq!(one.network.connected_peers(), vec![two.id]);
    assert_eq!(one.network.listen_addresses(), vec![one.address.clone()]);

    two.network.shutdown().await;
    next_of(&mut one.events, "a goodbye", |event| {
        matches!(event, NetworkEvent::PeerDisconnected(id) if id == two.id).then_some(())
    })
    .await;
    assert!(one.network.connected_peers().is_empty());
    assert!(matches!(two.network.publish(b"late".to_vec()), Err(NetworkError::Closed)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_goes_over_tcp_too() {
    let one = start_with(config(1, "/ip4/127.0.0.1/tcp/0", &[])).await;
    let mut two = start_with(config(2, "/ip4/127.0.0.1/tcp/0", std::slice::from_ref(&one.address))).await;
    announce_until(&one.network, b"hello", two.hear_text(b"hello")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rejected_message_goes_no_further() {
    // Two that cannot be dialed have no other way to each other than the one between them.
    let mut middle = start(2, &[]).await;
    let left = start_behind_nat(1, &middle).await;
    let mut right = start_behind_nat(3, &middle).await;
    // Once this arrives the path is open: left -> middle -> right.
    let pump = async {
        let heard = right.hear_text(b"open");
        tokio::pin!(heard);
        loop {
            tokio::select! {
                author = &mut heard => return author,
                _ = middle.hear(Verdict::Accept) => {}
            }
        }
    };
    assert_eq!(announce_until(&left.network, b"open", pump).await, left.id);

    left.network.publish(b"bad".to_vec()).unwrap();
    left.network.publish(b"good".to_vec()).unwrap();
    let mut said = BTreeSet::new();
    while !said.contains(b"good".as_slice()) {
        let (token, data) = next_of(&mut middle.events, "gossip", |event| match event {
            NetworkEvent::Gossip { token, data, .. } => Some((token, data)),
            _ => None,
        })
        .await;
        let verdict = if data == b"bad" { Verdict::Reject } else { Verdict::Accept };
        middle.network.report(token, verdict);
        said.insert(data);
    }
    assert!(said.contains(b"bad".as_slice()), "the bad message came first");
    loop {
        let (_, data) = right.hear(Verdict::Accept).await;
        assert_ne!(data, b"bad");
        if data == b"good" {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_answered_refused_or_too_large() {
    let mut server = start(1, &[]).await;
    let mut client = start(2, &[&server]).await;
    client.meet(server.id).await;

    let answering = async {
        let (token, from, data) = next_of(&mut server.events, "a request", |event| match event {
            NetworkEvent::Request { token, from, data } => Some((token, from, data)),
            _ => None,
        })
        .await;
        server.network.respond(token, data.into_iter().rev().collect());
        from
    };
    let (answer, from) = tokio::join!(client.network.request(server.id, vec![1, 2, 3]), answering);
    assert_eq!(answer.unwrap(), vec![3, 2, 1]);
    assert_eq!(from, client.id);

    // The node drops the question: the peer hears of it at once instead of waiting.
    let refusing =
        next_of(&mut server.events, "a request", |event| matches!(event, NetworkEvent::Request { .. }).then_some(()));
    let (answer, ()) = tokio::join!(client.network.request(server.id, vec![4]), refusing);
    assert!(matches!(answer, Err(NetworkError::Request { peer, .. }) if peer == server.id));

    let oversized = client.network.request(server.id, vec![0; REQUEST_BYTES_MAX + 1]).await;
    assert!(matches!(oversized, Err(NetworkError::TooLarge { .. })));
    let stranger = Keypair::from_secret(&[77; 32]).id();
    assert!(matches!(client.network.request(stranger, vec![]).await, Err(NetworkError::Request { .. })));
}

/// rust-libp2p issue 5097: subscriptions are told once per peer, on its first connection. A node that crashed and is
/// back before its ghost has timed out was never told what its peers listen to, and stayed mute and deaf.
#[test]
fn regression_a_node_that_crashes_and_restarts_at_once_hears_and_speaks_again() {
    let runtime = || tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (home, doomed) = (runtime(), runtime());
    let mut survivor = home.block_on(start(1, &[]));
    let mut first = doomed.block_on(start(2, &[&survivor]));
    doomed.block_on(announce_until(&survivor.network, b"before", first.hear_text(b"before")));
    // No destructor runs to its end and no packet leaves: to the survivor this is a pulled plug.
    doomed.shutdown_background();

    home.block_on(async {
        let mut second = start(2, &[&survivor]).await;
        assert_eq!(second.id, first.id);
        assert_eq!(survivor.network.connected_peers(), vec![second.id], "the survivor still holds the ghost");
        announce_until(&survivor.network, b"welcome", second.hear_text(b"welcome")).await;
        announce_until(&second.network, b"back", survivor.hear_text(b"back")).await;
    });
}

/// The library's default scores take more than ten peers on one address for an attack.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixteen_nodes_on_one_address_all_hear_each_other() {
    const NODES: usize = 16;
    let mut nodes: Vec<Node> = Vec::new();
    for index in 0..NODES {
        let seeds: Vec<&Node> = nodes.first().into_iter().chain(nodes.last()).collect();
        let node = start(index as u8 + 1, &seeds).await;
        nodes.push(node);
    }
    let (heard, mut hearing) = mpsc::channel(1024);
    let mut networks = Vec::new();
    for (listener, mut node) in nodes.into_iter().enumerate() {
        networks.push((node.network.clone(), node.id));
        let heard = heard.clone();
        tokio::spawn(async move {
            while let Some(event) = node.events.recv().await {
                if let NetworkEvent::Gossip { token, author, data } = event {
                    assert_eq!(data, author.0);
                    node.network.report(token, Verdict::Accept);
                    heard.send((listener, author)).await.ok();
                }
            }
        });
    }
    let mut pairs = BTreeSet::new();
    let mut again = tokio::time::interval(Duration::from_secs(1));
    patiently("everyone to hear everyone", async {
        while pairs.len() < NODES * (NODES - 1) {
            tokio::select! {
                Some(pair) = hearing.recv() => { pairs.insert(pair); }
                _ = again.tick() => {
                    for (network, id) in &networks {
                        network.publish(id.0.to_vec()).unwrap();
                    }
                }
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_seed_stops_nobody_and_is_met_when_it_appears() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let seed: Multiaddr = format!("/ip4/127.0.0.1/udp/{port}/quic-v1").parse().unwrap();
    let mut early = start_with(config(1, "/ip4/127.0.0.1/udp/0/quic-v1", std::slice::from_ref(&seed))).await;
    assert!(early.network.connected_peers().is_empty());
    let late = start_with(config(2, &seed.to_string(), &[])).await;
    early.meet(late.id).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_among_its_own_seeds_and_a_bad_listen_address_are_told_apart() {
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let own = format!("/ip4/127.0.0.1/udp/{port}/quic-v1");
    let alone = start_with(config(1, &own, &[own.parse().unwrap()])).await;
    let mut two = start(2, &[&alone]).await;
    two.meet(alone.id).await;
    assert!(!alone.network.connected_peers().contains(&alone.id));
    let taken = Network::start(config(3, &own, &[]));
    assert!(matches!(taken, Err(NetworkError::Listen { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_of_another_run_are_sent_away() {
    let ours = start(1, &[]).await;
    let mut foreign = config(2, "/ip4/127.0.0.1/udp/0/quic-v1", std::slice::from_ref(&ours.address));
    foreign.run = [8; 32];
    let mut foreign = start_with(foreign).await;
    foreign.meet(ours.id).await;
    next_of(&mut foreign.events, "being sent away", |event| {
        matches!(event, NetworkEvent::PeerDisconnected(id) if id == ours.id).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn peers_that_came_by_one_seed_outlive_it_and_find_each_other_again() {
    let seed = start(1, &[]).await;
    let mut one = start(2, &[&seed]).await;
    let mut two = start(3, &[&seed]).await;
    // Nobody told them of each other but the seed.
    one.meet(two.id).await;
    let known = patiently("the other's address", async {
        loop {
            let known = one.network.known_addresses();
            if known.contains(&two.address) {
                return known;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    seed.network.shutdown().await;
    assert_eq!(announce_until(&one.network, b"still here", two.hear_text(b"still here")).await, one.id);

    // A new start that remembers the peers needs no seed.
    one.network.shutdown().await;
    let again = NetworkConfig { known, ..config(2, "/ip4/127.0.0.1/udp/0/quic-v1", &[]) };
    let mut one = start_with(again).await;
    one.meet(two.id).await;
}
