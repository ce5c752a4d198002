//! Bulk bytes: content-addressed blobs on disk, served to peers and fetched from several of them at once.
//!
//! A blob is named by the BLAKE3 hash of its bytes and verified while it streams, so it does not matter who sends it.
//! What carries a *tag* is kept; everything else is swept by the garbage collector (`pins`). The store is disposable:
//! whatever is lost can be fetched again from peers, and nothing that must survive lives only here.
//!
//! - [`Blobs`]: the endpoint and the store behind one handle
//! - `fetch`: a blob from several providers at once, by ranges
//! - `export`: blobs as files
//! - `pins`: what the garbage collector must not touch
//! - `gate`: how many strangers may read at once

mod error;
mod export;
mod fetch;
mod gate;
mod pieces;
mod pins;

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use iroh::address_lookup::memory::MemoryLookup;
use iroh::endpoint::{NetReportConfig, PortmapperConfig, presets};
use iroh::protocol::Router;
use iroh::{Endpoint, EndpointAddr, EndpointId, RelayMode, SecretKey, TransportAddr};
use iroh_blobs::api::blobs::BlobStatus;
use iroh_blobs::api::{Store, TempTag};
use iroh_blobs::store::GcConfig;
use iroh_blobs::store::fs::FsStore;
use iroh_blobs::store::fs::options::{Options, PathOptions};
use iroh_blobs::{BlobsProtocol, Hash};
use paris_protocol::identity::NodeId;

pub use self::error::{BlobsError, ProviderFailure};
pub use self::export::remove_unfinished_exports;
pub use self::fetch::{FetchReport, FetchRequest, Size};
use self::pins::Pins;

/// A BLAKE3 hash: the name of a blob.
pub type Hash32 = [u8; 32];

/// What the blob endpoint and its store need to start.
#[derive(Clone)]
pub struct BlobsConfig {
    /// The ed25519 secret that is this node: the same one that libp2p uses.
    pub secret: [u8; 32],
    /// Where the store lives. One process at a time.
    pub directory: PathBuf,
    /// UDP addresses to bind. Nothing else is bound.
    pub bind: Vec<SocketAddr>,
    /// Whether the public relays may help peers behind NAT to reach this node. They see who speaks with whom.
    pub relay: bool,
    /// How often what carries no tag is swept away.
    pub gc_interval: Duration,
    /// How long providers are waited for.
    pub patience: Patience,
}

/// How long the providers of a fetch are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// How long connecting to one may take. Who takes longer is out.
    pub connect: Duration,
    /// Who sends nothing for so long is out.
    pub stall: Duration,
    /// A piece that is under way for so long is asked of somebody else as well, if anybody has nothing to do.
    pub slow: Duration,
    /// Who takes longer for a piece (of at most 4 MiB) is out.
    pub piece: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            stall: Duration::from_millis(1_500),
            slow: Duration::from_secs(10),
            piece: Duration::from_secs(300),
        }
    }
}

impl BlobsConfig {
    /// The usual settings: every IPv4 interface on a free port, no relay.
    pub fn new(secret: [u8; 32], directory: PathBuf) -> Self {
        Self {
            secret,
            directory,
            bind: vec![(Ipv4Addr::UNSPECIFIED, 0).into()],
            relay: false,
            gc_interval: Duration::from_secs(60),
            patience: Patience::default(),
        }
    }
}

/// A blob that has just been added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Its name.
    pub hash: Hash32,
    /// Its size in bytes.
    pub size: u64,
}

/// A handle to the store and its endpoint; clones share them.
#[derive(Clone)]
pub struct Blobs {
    endpoint: Endpoint,
    lookup: MemoryLookup,
    router: Router,
    store: Store,
    paths: Arc<PathOptions>,
    pins: Arc<Pins>,
    /// Blobs that the store calls complete and whose bytes are not what their names say.
    damaged: Arc<Mutex<HashSet<Hash>>>,
    patience: Patience,
}

impl Blobs {
    /// Opens the store, binds the endpoint and begins to serve.
    ///
    /// # Errors
    /// The directory cannot be used (or another process uses it), or an address cannot be bound.
    pub async fn start(config: BlobsConfig) -> Result<Self, BlobsError> {
        let pins = Arc::new(Pins::default());
        let (store, paths) = open(&config, &pins).await?;
        let lookup = MemoryLookup::new();
        let endpoint = match bind(&config, lookup.clone()).await {
            Ok(endpoint) => endpoint,
            Err(reason) => {
                store.shutdown().await.ok();
                return Err(BlobsError::Bind { reason });
            }
        };
        let protocol = BlobsProtocol::new(&store, Some(gate::limits()));
        let router = Router::builder(endpoint.clone()).accept(iroh_blobs::ALPN, protocol).spawn();
        let (paths, damaged, patience) = (Arc::new(paths), Arc::default(), config.patience);
        Ok(Self { endpoint, lookup, router, store, paths, pins, damaged, patience })
    }

    /// Stores bytes under `tag`, which replaces what the tag held before. Durable on return.
    pub async fn add_bytes(&self, tag: &str, data: Vec<u8>) -> Result<Stored, BlobsError> {
        let added = self.store.blobs().add_bytes(data).temp_tag().await.map_err(BlobsError::store)?;
        self.keep(tag, added).await
    }

    /// Stores a copy of a file under `tag`, which replaces what the tag held before. Durable on return.
    pub async fn add_file(&self, tag: &str, path: &Path) -> Result<Stored, BlobsError> {
        let path = std::path::absolute(path).map_err(|error| BlobsError::file(path, error))?;
        let added = self.store.blobs().add_path(&path).temp_tag().await;
        self.keep(tag, added.map_err(|error| BlobsError::file(&path, error))?).await
    }

    /// True if the whole blob is here.
    pub async fn has(&self, hash: Hash32) -> Result<bool, BlobsError> {
        Ok(self.size(hash).await?.is_some())
    }

    /// The size of a blob that is wholly here, in bytes. One that was found damaged is not here.
    pub async fn size(&self, hash: Hash32) -> Result<Option<u64>, BlobsError> {
        if self.is_damaged(&Hash::from(hash)) {
            return Ok(None);
        }
        match self.store.blobs().status(hash).await.map_err(BlobsError::store)? {
            BlobStatus::Complete { size } => Ok(Some(size)),
            _ => Ok(None),
        }
    }

    /// A blob's bytes, hashed again on the way out.
    ///
    /// # Errors
    /// [`BlobsError::Missing`], [`BlobsError::TooLarge`] above `limit` bytes, [`BlobsError::Corrupt`] if the disk
    /// returns something else than was stored: from then on the blob counts as missing, until a fetch replaces it.
    pub async fn bytes(&self, hash: Hash32, limit: u64) -> Result<Vec<u8>, BlobsError> {
        let size = self.size(hash).await?.ok_or(BlobsError::Missing { hash: Hash::from(hash) })?;
        if size > limit {
            return Err(BlobsError::TooLarge { hash: Hash::from(hash), size, limit });
        }
        let corrupt = |reason: String| self.mark_damaged(hash.into(), reason);
        let bytes = self.store.blobs().get_bytes(hash).await.map_err(|error| corrupt(format!("{error:#}")))?;
        if blake3::hash(&bytes) != hash {
            return Err(corrupt("the bytes have another hash".into()));
        }
        Ok(bytes.into())
    }

    /// Fetches a blob from several providers at once and keeps it under the request's tag. Durable on return; what had
    /// arrived before a failure is kept until the tag is dropped, and not fetched again.
    pub async fn fetch(&self, request: FetchRequest) -> Result<FetchReport, BlobsError> {
        fetch::fetch(self, request).await
    }

    /// Gives a blob that is here one more name.
    ///
    /// # Errors
    /// [`BlobsError::Missing`] if it is not wholly here: then it is not given the name.
    pub async fn tag(&self, tag: &str, hash: Hash32) -> Result<(), BlobsError> {
        // Before looking, so that it is not swept while we look.
        let held = self.store.tags().temp_tag(Hash::from(hash)).await.map_err(BlobsError::store)?;
        if !self.has(hash).await? {
            return Err(BlobsError::Missing { hash: held.hash() });
        }
        self.keep(tag, held).await.map(drop)
    }

    /// Drops one tag, and what has arrived of an unfinished fetch under it; true if the tag was there. The blob is swept at a later collection
    /// unless another tag holds it.
    pub async fn untag(&self, tag: &str) -> Result<bool, BlobsError> {
        let mut dropped = false;
        for name in [pins::partial_tag(tag), tag.to_owned()] {
            self.pins.drop_tags(|other| other == name);
            dropped = self.store.tags().delete(&name).await.map_err(BlobsError::store)? > 0;
        }
        Ok(dropped)
    }

    /// The same for every tag that begins with `prefix`; returns how many there were.
    pub async fn untag_prefix(&self, prefix: &str) -> Result<u64, BlobsError> {
        let mut dropped = 0;
        for prefix in [pins::partial_tag(prefix), prefix.to_owned()] {
            self.pins.drop_tags(|name| name.starts_with(&prefix));
            dropped = self.store.tags().delete_prefix(&prefix).await.map_err(BlobsError::store)?;
        }
        Ok(dropped)
    }

    /// Remembers where a node serves blobs, in place of what was known before; nowhere forgets it. Ignored for an id that is no key.
    pub fn learn(&self, node: NodeId, addresses: Vec<SocketAddr>) {
        let Ok(id) = EndpointId::from_bytes(&node.0) else { return };
        match addresses.is_empty() {
            true => drop(self.lookup.remove_endpoint_info(id)),
            false => {
                let addresses = addresses.into_iter().map(TransportAddr::Ip);
                drop(self.lookup.set_endpoint_info(EndpointAddr::from_parts(id, addresses)));
            }
        }
    }

    /// Where this node serves blobs, as far as it knows.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.endpoint.addr().ip_addrs().copied().collect()
    }

    /// Writes out what waits, stops serving and closes the store. A second call does nothing.
    pub async fn shutdown(&self) {
        if self.endpoint.is_closed() {
            return;
        }
        if let Err(error) = self.store.sync_db().await {
            tracing::warn!(%error, "the blob store did not write out its last changes");
        }
        // The router closes the store, too.
        if let Err(error) = self.router.shutdown().await {
            tracing::warn!(%error, "the blob endpoint did not stop cleanly");
        }
    }

    /// The names that begin with `prefix`.
    pub fn tags(&self, prefix: &str) -> Vec<String> {
        self.pins.names(prefix)
    }

    /// The names that begin with `prefix` under which a fetch did not end, and something has arrived.
    pub fn unfinished(&self, prefix: &str) -> Vec<String> {
        let partial = self.pins.names(&pins::partial_tag(prefix));
        partial.iter().filter_map(|name| name.strip_prefix(pins::PARTIAL)).map(str::to_owned).collect()
    }

    /// Blobs that were found damaged on disk and are not replaced yet.
    pub fn damaged_blobs(&self) -> HashSet<Hash32> {
        self.damaged().iter().map(|hash| *hash.as_bytes()).collect()
    }

    fn is_damaged(&self, hash: &Hash) -> bool {
        self.damaged().contains(hash)
    }

    fn mark_damaged(&self, hash: Hash, reason: String) -> BlobsError {
        tracing::warn!(%hash, reason, "a blob is damaged on disk; it is fetched again where it is needed");
        self.damaged().insert(hash);
        BlobsError::Corrupt { hash, reason }
    }

    fn damaged(&self) -> MutexGuard<'_, HashSet<Hash>> {
        // Every change is a single call: a panic elsewhere leaves nothing half done.
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the tag of a blob that `held` protects so far.
    async fn keep(&self, tag: &str, held: TempTag) -> Result<Stored, BlobsError> {
        let hash = held.hash();
        self.pins.set_tag(tag, held);
        self.store.tags().set(tag, hash).await.map_err(BlobsError::store)?;
        self.store.sync_db().await.map_err(BlobsError::store)?;
        let size = self.size(hash.into()).await?.ok_or(BlobsError::Missing { hash })?;
        Ok(Stored { hash: hash.into(), size })
    }
}

async fn open(config: &BlobsConfig, pins: &Arc<Pins>) -> Result<(Store, PathOptions), BlobsError> {
    let failed = |reason: String| BlobsError::Open { directory: config.directory.clone(), reason };
    let root = std::path::absolute(&config.directory).map_err(|error| failed(error.to_string()))?;
    std::fs::create_dir_all(&root).map_err(|error| failed(error.to_string()))?;
    let mut options = Options::new(&root);
    let paths = options.path.clone();
    options.gc = Some(GcConfig { interval: config.gc_interval, add_protected: Some(pins.protector()) });
    let opened = FsStore::load_with_opts(root.join("blobs.db"), options).await;
    let store: Store = (*opened.map_err(|error| failed(format!("{error:#}")))?).clone();
    let mut tags = store.tags().list().await.map_err(BlobsError::store)?;
    while let Some(tag) = tags.next().await {
        let tag = tag.map_err(BlobsError::store)?;
        pins.restore_tag(&String::from_utf8_lossy(tag.name.as_ref()), tag.hash);
    }
    Ok((store, paths))
}

async fn bind(config: &BlobsConfig, lookup: MemoryLookup) -> Result<Endpoint, String> {
    let mut builder = Endpoint::builder(presets::Minimal)
        .secret_key(SecretKey::from_bytes(&config.secret))
        .relay_mode(if config.relay { RelayMode::Default } else { RelayMode::Disabled })
        .address_lookup(lookup)
        .portmapper_config(PortmapperConfig::Disabled)
        .net_report_config(NetReportConfig::minimal())
        .clear_ip_transports();
    for address in &config.bind {
        builder = builder.bind_addr(*address).map_err(|error| format!("{address}: {error:#}"))?;
    }
    builder.bind().await.map_err(|error| format!("{:?}: {error:#}", config.bind))
}
