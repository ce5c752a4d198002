//! Blobs between stores on loopback: who has them, who does not, who dies on the way.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use iroh::endpoint::presets;
use iroh::protocol::Router;
use iroh::{Endpoint, RelayMode, SecretKey};
use iroh_blobs::BlobsProtocol;
use iroh_blobs::provider::events::{EventMask, EventSender, ProviderMessage, ThrottleMode};
use iroh_blobs::store::mem::MemStore;
use paris_node::blobs::{Blobs, BlobsConfig, BlobsError, FetchRequest, Hash32, Patience, Size};
use paris_protocol::identity::{Keypair, NodeId};
use tempfile::TempDir;

/// Generous: only a broken store takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

fn config(secret: u8, directory: &Path) -> BlobsConfig {
    BlobsConfig {
        bind: vec![(Ipv4Addr::LOCALHOST, 0).into()],
        ..BlobsConfig::new([secret; 32], directory.join("blobs"))
    }
}

fn id(secret: u8) -> NodeId {
    Keypair::from_secret(&[secret; 32]).id()
}

async fn start(secret: u8) -> (Blobs, TempDir) {
    let directory = TempDir::new().unwrap();
    (Blobs::start(config(secret, directory.path())).await.unwrap(), directory)
}

/// Bytes that no two seeds share.
fn noise(seed: u8, size: usize) -> Vec<u8> {
    let mut bytes = vec![0; size];
    blake3::Hasher::new().update(&[seed]).finalize_xof().fill(&mut bytes);
    bytes
}

fn request(hash: Hash32, size: usize, providers: &[u8]) -> FetchRequest {
    FetchRequest {
        hash,
        size: Size::Exactly(size as u64),
        providers: providers.iter().map(|secret| id(*secret)).collect(),
        tag: "fetched".into(),
    }
}

/// Waits until `condition` holds.
async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("waited in vain for {what}"));
}

/// A provider that sends so many chunk groups of 16 KiB and then holds the line without a word.
async fn stalling_provider(secret: u8, data: Vec<u8>, groups: usize) -> (Router, SocketAddr) {
    let mask = EventMask { throttle: ThrottleMode::Intercept, ..EventMask::DEFAULT };
    let (sender, mut events) = EventSender::channel(32, mask);
    tokio::spawn(async move {
        let (mut sent, mut silent) = (0, Vec::new());
        while let Some(event) = events.recv().await {
            match event {
                ProviderMessage::Throttle(event) if sent < groups => {
                    sent += 1;
                    event.tx.send(Ok(())).await.ok();
                }
                event => silent.push(event),
            }
        }
    });
    let endpoint = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(&[secret; 32]))
        .relay_mode(RelayMode::Disabled)
        .clear_ip_transports()
        .bind_addr((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .bind()
        .await
        .unwrap();
    let store = MemStore::new();
    store.blobs().add_bytes(data).await.unwrap();
    let address = endpoint.bound_sockets()[0];
    let router = Router::builder(endpoint).accept(iroh_blobs::ALPN, BlobsProtocol::new(&store, Some(sender))).spawn();
    (router, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_tiny_and_empty_blobs_make_the_round_trip() {
    let (provider, _there) = start(1).await;
    let (fetcher, here) = start(2).await;
    fetcher.learn(id(1), provider.addresses());
    for (seed, size) in [(0, 1 << 20), (1, 100), (2, 16 << 10), (3, (16 << 10) + 1), (4, 0)] {
        let data = noise(seed, size);
        let stored = provider.add_bytes(&format!("blob/{seed}"), data.clone()).await.unwrap();
        assert_eq!((stored.hash, stored.size), (*blake3::hash(&data).as_bytes(), size as u64));
        let report = fetcher.fetch(request(stored.hash, size, &[1])).await.unwrap();
        assert_eq!(report.bytes, size as u64);
        assert!(report.failures.is_empty());
        assert!(fetcher.has(stored.hash).await.unwrap());
        assert_eq!(fetcher.bytes(stored.hash, size as u64).await.unwrap(), data);
        let file = here.path().join("exported");
        fetcher.export(stored.hash, &file).await.unwrap();
        assert_eq!(std::fs::read(&file).unwrap(), data);
        if size > 0 {
            let refused = fetcher.bytes(stored.hash, size as u64 - 1).await;
            assert!(matches!(refused, Err(BlobsError::TooLarge { .. })));
        }
    }
    let names: Vec<_> = std::fs::read_dir(here.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "an export leaves nothing but its file: {names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_providers_share_the_work() {
    let ((one, _a), (two, _b), (fetcher, _c)) = (start(1).await, start(2).await, start(3).await);
    let data = noise(0, 32 << 20);
    let stored = one.add_bytes("blob", data.clone()).await.unwrap();
    two.add_bytes("blob", data).await.unwrap();
    fetcher.learn(id(1), one.addresses());
    fetcher.learn(id(2), two.addresses());
    let began = std::time::Instant::now();
    let report = fetcher.fetch(request(stored.hash, 32 << 20, &[1, 2])).await.unwrap();
    println!("32 MiB from two providers in {:?}: {report:?}", began.elapsed());
    assert_eq!(report.per_provider.len(), 2, "{report:?}");
    assert_eq!(report.per_provider.values().sum::<u64>(), 32 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn providers_that_are_dead_or_have_nothing_are_passed_over() {
    let ((has, _a), (has_not, _b), (fetcher, _c)) = (start(1).await, start(2).await, start(3).await);
    let data = noise(0, 1 << 20);
    let stored = has.add_bytes("blob", data).await.unwrap();
    fetcher.learn(id(1), has.addresses());
    fetcher.learn(id(2), has_not.addresses());
    // Nobody listens on the discard port, and node 5 was never heard of.
    fetcher.learn(id(4), vec![(Ipv4Addr::LOCALHOST, 9).into()]);
    let report = fetcher.fetch(request(stored.hash, 1 << 20, &[4, 5, 2, 1])).await.unwrap();
    assert_eq!(report.per_provider.keys().collect::<Vec<_>>(), vec![&id(1)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn however_many_have_nothing_the_last_is_asked_too_and_nobody_twice() {
    let ((has, _a), (fetcher, _b)) = (start(1).await, start(2).await);
    let stored = has.add_bytes("blob", noise(0, 1 << 20)).await.unwrap();
    fetcher.learn(id(1), has.addresses());
    // Of these nobody has ever heard.
    let strangers: Vec<u8> = (100..200).collect();
    let error = fetcher.fetch(request(stored.hash, 1 << 20, &[&strangers[..], &strangers].concat())).await.unwrap_err();
    let BlobsError::Unavailable { tried, .. } = &error else { panic!("{error}") };
    assert_eq!(tried.len(), strangers.len());
    assert!(error.to_string().ends_with("and 84 more"), "{error}");
    let report = fetcher.fetch(request(stored.hash, 1 << 20, &[&strangers[..], &[1]].concat())).await.unwrap();
    assert_eq!(report.per_provider, [(id(1), 1 << 20)].into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_learnt_of_a_node_replaces_what_was_known() {
    let ((provider, _a), (fetcher, _b)) = (start(1).await, start(2).await);
    let stored = provider.add_bytes("blob", noise(0, 1 << 20)).await.unwrap();
    fetcher.learn(id(1), vec![(Ipv4Addr::LOCALHOST, 9).into()]);
    fetcher.learn(id(1), provider.addresses());
    fetcher.learn(id(1), Vec::new());
    assert!(fetcher.fetch(request(stored.hash, 1 << 20, &[1])).await.is_err(), "it was forgotten");
    fetcher.learn(id(1), provider.addresses());
    fetcher.fetch(request(stored.hash, 1 << 20, &[1])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_provider_loses_its_pieces_and_a_failed_fetch_is_resumed() {
    let data = noise(0, 4 << 20);
    let (_router, address) = stalling_provider(1, data.clone(), 40).await;
    let ((good, _a), (fetcher, _b)) = (start(2).await, start(3).await);
    let hash = good.add_bytes("blob", data.clone()).await.unwrap().hash;
    fetcher.learn(id(1), vec![address]);
    fetcher.learn(id(2), good.addresses());

    let failed = fetcher.fetch(request(hash, data.len(), &[1])).await;
    let Err(BlobsError::Unavailable { tried, .. }) = failed else { panic!("not a whole blob: {failed:?}") };
    assert_eq!(tried.len(), 1);
    assert_eq!(tried[0].provider, id(1));
    assert!(!fetcher.has(hash).await.unwrap());
    assert_eq!(fetcher.unfinished(""), ["fetched"]);

    let report = fetcher.fetch(request(hash, data.len(), &[1, 2])).await.unwrap();
    assert!(report.resumed > 0, "{report:?}");
    assert_eq!(report.per_provider.values().sum::<u64>() + report.resumed, data.len() as u64);
    assert_eq!((fetcher.unfinished("").len(), fetcher.tags("")), (0, vec!["fetched".to_owned()]));
    assert_eq!(fetcher.bytes(hash, u64::MAX).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_stalls_midway_hands_over_to_the_other() {
    let data = noise(0, 8 << 20);
    let (_router, address) = stalling_provider(1, data.clone(), 20).await;
    let ((good, _a), (fetcher, _b)) = (start(2).await, start(3).await);
    let hash = good.add_bytes("blob", data.clone()).await.unwrap().hash;
    fetcher.learn(id(1), vec![address]);
    fetcher.learn(id(2), good.addresses());
    fetcher.fetch(request(hash, data.len(), &[1, 2])).await.unwrap();
    assert_eq!(fetcher.bytes(hash, u64::MAX).await.unwrap(), data);
}

/// For who waits for nobody to stall.
const ENDLESS: Patience =
    Patience { connect: PATIENCE, stall: Duration::MAX, slow: Duration::from_millis(10), piece: Duration::MAX };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_slow_provider_has_begun_is_fetched_from_another() {
    let data = noise(0, 8 << 20);
    let (_router, address) = stalling_provider(1, data.clone(), 20).await;
    let ((good, _a), directory) = (start(2).await, TempDir::new().unwrap());
    let fetcher = Blobs::start(BlobsConfig { patience: ENDLESS, ..config(3, directory.path()) }).await.unwrap();
    let hash = good.add_bytes("blob", data.clone()).await.unwrap().hash;
    fetcher.learn(id(1), vec![address]);
    fetcher.learn(id(2), good.addresses());
    // The slow one never drops out: nothing but the help of the other ends this.
    let fetched = tokio::time::timeout(PATIENCE, fetcher.fetch(request(hash, data.len(), &[1, 2]))).await;
    assert!(fetched.unwrap().unwrap().failures.is_empty());
    assert_eq!(fetcher.bytes(hash, u64::MAX).await.unwrap(), data);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_provider_is_out_if_a_piece_takes_too_long_and_what_arrived_goes_with_its_name() {
    let data = noise(0, 8 << 20);
    let (_router, address) = stalling_provider(1, data.clone(), 20).await;
    let directory = TempDir::new().unwrap();
    let patience = Patience { piece: Duration::from_secs(1), ..ENDLESS };
    let fetcher = Blobs::start(BlobsConfig { patience, ..config(3, directory.path()) }).await.unwrap();
    fetcher.learn(id(1), vec![address]);
    let hash = *blake3::hash(&data).as_bytes();
    let failed = fetcher.fetch(request(hash, data.len(), &[1])).await;
    let Err(BlobsError::Unavailable { tried, .. }) = failed else { panic!("not a whole blob: {failed:?}") };
    assert!(tried[0].reason.contains("no whole piece"), "{tried:?}");

    assert!(matches!(fetcher.tag("mixture", hash).await, Err(BlobsError::Missing { .. })));
    assert!(fetcher.tags("mixture").is_empty(), "what is not here is not given a name");
    assert_eq!(fetcher.unfinished(""), ["fetched"]);
    assert!(!fetcher.untag("fetched").await.unwrap());
    assert!(fetcher.unfinished("").is_empty() && fetcher.tags("").is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_size_is_an_error_and_a_maximum_is_kept() {
    let ((provider, _a), (fetcher, _b)) = (start(1).await, start(2).await);
    let hash = provider.add_bytes("blob", noise(0, 1 << 20)).await.unwrap().hash;
    fetcher.learn(id(1), provider.addresses());
    for claimed in [1, (1 << 20) - 1, (1 << 20) + 1, 1 << 40] {
        let error = fetcher.fetch(request(hash, claimed, &[1])).await.unwrap_err();
        assert!(matches!(error, BlobsError::WrongSize { size: 0x10_0000, .. }), "{error}");
    }
    let mut unknown = request(hash, 0, &[1]);
    unknown.size = Size::AtMost((1 << 20) - 1);
    assert!(matches!(fetcher.fetch(unknown.clone()).await, Err(BlobsError::TooLarge { .. })));
    assert!(!fetcher.has(hash).await.unwrap());
    unknown.size = Size::AtMost(1 << 20);
    assert_eq!(fetcher.fetch(unknown).await.unwrap().bytes, 1 << 20);
    // Also when it is here already.
    assert!(matches!(fetcher.fetch(request(hash, 7, &[])).await, Err(BlobsError::WrongSize { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_nobody_has_is_an_error_that_names_who_was_asked() {
    let ((provider, _a), directory) = (start(1).await, TempDir::new().unwrap());
    let mut config = config(2, directory.path());
    config.patience.connect = Duration::from_secs(1);
    let fetcher = Blobs::start(config).await.unwrap();
    fetcher.learn(id(1), provider.addresses());
    fetcher.learn(id(4), vec![(Ipv4Addr::LOCALHOST, 9).into()]);
    let error = fetcher.fetch(request([7; 32], 1 << 20, &[1, 4])).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains(&id(1).to_string()) && text.contains(&id(4).to_string()), "{text}");
    let nobody = fetcher.fetch(request([7; 32], 1 << 20, &[])).await.unwrap_err().to_string();
    assert!(nobody.contains("nobody"), "{nobody}");
    assert!(matches!(fetcher.bytes([7; 32], 1).await, Err(BlobsError::Missing { .. })));
    assert!(matches!(fetcher.export([7; 32], &directory.path().join("x")).await, Err(BlobsError::Missing { .. })));
}

/// iroh-blobs issue 247: a blob that was tagged between two listings of the collector was swept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_freshly_tagged_blob_survives_the_collector() {
    let directory = TempDir::new().unwrap();
    let mut config = config(1, directory.path());
    config.gc_interval = Duration::from_millis(1);
    let blobs = Blobs::start(config).await.unwrap();
    let adding = (0..200).map(|index| {
        let blobs = blobs.clone();
        async move { blobs.add_bytes(&format!("kept/{index}"), noise(index, 20 << 10)).await.unwrap().hash }
    });
    let kept: Vec<Hash32> = futures::stream::iter(adding).buffered(8).collect().await;
    // The collector has gone round since the last one was added: it has swept what lost its tag after that.
    let loser = blobs.add_bytes("lost/0", noise(255, 20 << 10)).await.unwrap().hash;
    assert_eq!(blobs.untag_prefix("lost/").await.unwrap(), 1);
    eventually("the collector", async || !blobs.has(loser).await.unwrap()).await;
    for hash in &kept {
        assert!(blobs.has(*hash).await.unwrap());
    }
    assert!(blobs.untag("kept/0").await.unwrap());
    assert!(!blobs.untag("kept/0").await.unwrap());
    eventually("the collector", async || !blobs.has(kept[0]).await.unwrap()).await;
    assert!(blobs.has(kept[1]).await.unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_and_tags_survive_a_new_start_with_its_first_collection() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("weights");
    std::fs::write(&file, noise(1, 1 << 20)).unwrap();
    let first = Blobs::start(config(1, directory.path())).await.unwrap();
    let tiny = first.add_bytes("tiny", noise(0, 100)).await.unwrap().hash;
    let large = first.add_file("large", &file).await.unwrap();
    assert_eq!(large.size, 1 << 20);
    let lost = first.add_bytes("lost", noise(2, 100)).await.unwrap().hash;
    assert!(first.untag("lost").await.unwrap());
    first.shutdown().await;
    first.shutdown().await;

    let mut config = config(1, directory.path());
    config.gc_interval = Duration::from_millis(10);
    let second = Blobs::start(config).await.unwrap();
    eventually("the collector", async || !second.has(lost).await.unwrap()).await;
    assert_eq!(second.bytes(tiny, 100).await.unwrap(), noise(0, 100));
    assert_eq!(second.bytes(large.hash, 1 << 20).await.unwrap(), noise(1, 1 << 20));
}

/// Damages a stored blob of more than 16 KiB behind the store's back.
fn flip_a_bit(directory: &Path, hash: Hash32) {
    let hex = blake3::Hash::from_bytes(hash).to_hex();
    let file = directory.join(format!("blobs/data/{hex}.data"));
    let mut bytes = std::fs::read(&file).unwrap();
    bytes[500_000] ^= 1;
    std::fs::write(&file, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_on_disk_is_noticed_and_never_handed_out() {
    let (blobs, directory) = start(1).await;
    let stored = blobs.add_bytes("blob", noise(0, 1 << 20)).await.unwrap();
    flip_a_bit(directory.path(), stored.hash);
    let target = directory.path().join("exported");
    assert!(matches!(blobs.export(stored.hash, &target).await, Err(BlobsError::Corrupt { .. })));
    assert!(!target.exists());
    assert!(matches!(blobs.bytes(stored.hash, 1 << 20).await, Err(BlobsError::Missing { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_blob_is_replaced_by_a_fetch_and_stays_whole() {
    let (provider, _provider_directory) = start(1).await;
    let (blobs, directory) = start(2).await;
    let data = noise(0, 1 << 20);
    let stored = blobs.add_bytes("blob", data.clone()).await.unwrap();
    provider.add_bytes("blob", data.clone()).await.unwrap();
    blobs.learn(id(1), provider.addresses());
    flip_a_bit(directory.path(), stored.hash);
    assert!(matches!(blobs.bytes(stored.hash, 1 << 20).await, Err(BlobsError::Corrupt { .. })));
    assert!(!blobs.has(stored.hash).await.unwrap());

    assert!(blobs.fetch(request(stored.hash, data.len(), &[])).await.is_err(), "nobody to fetch it from");
    assert!(!blobs.has(stored.hash).await.unwrap());
    let report = blobs.fetch(request(stored.hash, data.len(), &[1])).await.unwrap();
    assert_eq!((report.bytes, report.resumed), (1 << 20, 0));
    assert!(blobs.bytes(stored.hash, 1 << 20).await.unwrap() == data);
    blobs.shutdown().await;
    let blobs = Blobs::start(config(2, directory.path())).await.unwrap();
    assert!(blobs.bytes(stored.hash, 1 << 20).await.unwrap() == data, "also after a new start");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blobs_file_is_the_stores_own_and_a_tiny_ones_a_copy_and_both_are_checked() {
    let ((provider, _a), (fetcher, directory)) = (start(1).await, start(2).await);
    fetcher.learn(id(1), provider.addresses());
    let copies = directory.path().join("copies");
    let store = directory.path().join("blobs");
    for (size, is_copied) in [(300_000, false), (16 << 10, true), (1, true)] {
        let data = noise(0, size);
        let hash = provider.add_bytes("blob", data.clone()).await.unwrap().hash;
        assert!(matches!(fetcher.file(hash, &copies).await, Err(BlobsError::Missing { .. })));
        fetcher.fetch(request(hash, size, &[1])).await.unwrap();
        let path = fetcher.file(hash, &copies).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), data);
        assert!(path.starts_with(if is_copied { &copies } else { &store }), "{} bytes at {}", size, path.display());
        if is_copied {
            // A copy that was damaged is made anew.
            std::fs::write(&path, b"other").unwrap();
            assert_eq!(std::fs::read(fetcher.file(hash, &copies).await.unwrap()).unwrap(), data);
            continue;
        }
        std::fs::write(&path, noise(1, size)).unwrap();
        assert!(matches!(fetcher.file(hash, &copies).await, Err(BlobsError::Corrupt { .. })));
        assert!(!fetcher.has(hash).await.unwrap());
        fetcher.fetch(request(hash, size, &[1])).await.unwrap();
        assert_eq!(std::fs::read(fetcher.file(hash, &copies).await.unwrap()).unwrap(), data);
    }
}
