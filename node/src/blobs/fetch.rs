//! Fetching one blob from several providers at once.
//!
//! Every provider is first asked for the blob's last chunk, which proves the size; then all of them take pieces from one
//! list ([`super::pieces`]). A provider that fails, stalls or sends wrong bytes gives its piece back and is out, and another
//! takes its place; what it had delivered is verified and kept. Who has nothing left to do also takes what somebody is slow
//! with. So the fastest provider sends most, any one that has the blob is enough, and none can hold up the others.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, PoisonError};

use futures::stream::{FuturesUnordered, StreamExt};
use iroh::EndpointId;
use iroh::endpoint::Connection;
use iroh_blobs::Hash;
use iroh_blobs::api::Store;
use iroh_blobs::api::remote::GetProgressItem;
use iroh_blobs::get::request::get_verified_size;
use iroh_blobs::protocol::{ChunkRanges, GetRequest};
use iroh_blobs::store::mem::MemStore;
use paris_protocol::identity::NodeId;
use tokio::sync::OnceCell;

use super::pieces::Pieces;
use super::pins::partial_tag;
use super::{Blobs, BlobsError, Hash32, Patience, ProviderFailure};

/// Pieces that one provider sends at once: the next is asked for while the last is under way.
const PIECES_PER_PROVIDER: usize = 2;
/// Providers of one fetch that are asked at once.
const PROVIDERS_AT_ONCE: usize = 16;

/// What is known of a blob's size before it is fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// A signed record claims this many bytes; anything else is an error.
    Exactly(u64),
    /// Only the hash is known (a manifest, say); so many bytes are bearable.
    AtMost(u64),
}

/// What to fetch, and from whom.
#[derive(Debug, Clone)]
pub struct FetchRequest {
    /// The blob.
    pub hash: Hash32,
    /// Its size, as far as known.
    pub size: Size,
    /// Who may have it, the most likely first. Their addresses must have been [learnt](Blobs::learn). Sixteen are asked at once, and nobody twice.
    pub providers: Vec<NodeId>,
    /// The name under which it is kept.
    pub tag: String,
}

/// How a fetch went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FetchReport {
    /// The blob's size in bytes.
    pub bytes: u64,
    /// Bytes that were here before.
    pub resumed: u64,
    /// Bytes from each provider that sent any.
    pub per_provider: BTreeMap<NodeId, u64>,
    /// Providers that dropped out on the way.
    pub failures: Vec<ProviderFailure>,
}

pub(super) async fn fetch(blobs: &Blobs, request: FetchRequest) -> Result<FetchReport, BlobsError> {
    let hash = Hash::from(request.hash);
    // Before looking, so that it is not swept while we look.
    let held = blobs.store.tags().temp_tag(hash).await.map_err(BlobsError::store)?;
    if let Some(bytes) = blobs.size(request.hash).await? {
        check_size(hash, request.size, bytes)?;
        blobs.keep(&request.tag, held).await?;
        return Ok(FetchReport { bytes, resumed: bytes, per_provider: BTreeMap::new(), failures: Vec::new() });
    }
    // What arrives outlives this fetch, should it fail, and this process.
    let partial = partial_tag(&request.tag);
    let partial_held = blobs.store.tags().temp_tag(hash).await.map_err(BlobsError::store)?;
    blobs.pins.set_tag(&partial, partial_held);
    blobs.store.tags().set(&partial, hash).await.map_err(BlobsError::store)?;

    // The store takes nothing in for a blob that it calls complete: what replaces a damaged one is gathered in memory, then added whole.
    let is_damaged = blobs.is_damaged(&hash);
    let store = if is_damaged { Store::clone(&MemStore::new()) } else { blobs.store.clone() };
    let present = store.observe(hash).await.map_err(BlobsError::store)?;
    let transfer = Transfer {
        store,
        hash,
        size: request.size,
        present: present.ranges.clone(),
        workers: PIECES_PER_PROVIDER * request.providers.len().min(PROVIDERS_AT_ONCE),
        patience: blobs.patience,
        pieces: OnceCell::new(),
        received: Mutex::default(),
    };
    let failures = transfer.run(blobs, &request.providers).await;
    let outcome = match failures {
        Ok(failures) => transfer.conclude(present.total_bytes(), failures).await,
        Err(wrong_size) => Err(wrong_size),
    };
    match outcome {
        Ok(report) => {
            if is_damaged {
                let bytes = transfer.store.get_bytes(hash).await.map_err(BlobsError::store)?;
                // `held` protects it.
                drop(blobs.store.add_bytes(bytes).temp_tag().await.map_err(BlobsError::store)?);
                blobs.damaged().remove(&hash);
            }
            blobs.keep(&request.tag, held).await?;
            blobs.untag(&partial).await?;
            Ok(report)
        }
        Err(error) => {
            let arrived = transfer.store.observe(hash).await.map_or(0, |bitfield| bitfield.total_bytes());
            if arrived == 0 || is_damaged {
                blobs.untag(&partial).await?;
            }
            Err(error)
        }
    }
}

fn check_size(hash: Hash, expected: Size, size: u64) -> Result<(), BlobsError> {
    match expected {
        Size::Exactly(claimed) if claimed != size => Err(BlobsError::WrongSize { hash, size, claimed }),
        Size::AtMost(limit) if size > limit => Err(BlobsError::TooLarge { hash, size, limit }),
        _ => Ok(()),
    }
}

/// Why a provider stops.
enum Stop {
    /// This provider is out; the others go on.
    Provider(String),
    /// The blob is not what was asked for: nobody need go on.
    Blob(BlobsError),
}

impl Stop {
    fn provider(reason: impl std::fmt::Display) -> Self {
        Self::Provider(format!("{reason:#}"))
    }
}

/// One fetch under way.
struct Transfer {
    store: Store,
    hash: Hash,
    size: Size,
    present: ChunkRanges,
    workers: usize,
    patience: Patience,
    /// The verified size and the work list, set by the first provider that proves the size.
    pieces: OnceCell<(u64, Pieces)>,
    received: Mutex<BTreeMap<NodeId, u64>>,
}

impl Transfer {
    /// Lets the providers work until all is here or none is left. Returns who dropped out.
    async fn run(&self, blobs: &Blobs, providers: &[NodeId]) -> Result<Vec<ProviderFailure>, BlobsError> {
        let mut failures = Vec::new();
        let own = NodeId(*blobs.endpoint.id().as_bytes());
        let mut asked = HashSet::from([own]);
        let mut waiting = providers.iter().copied().filter(|provider| asked.insert(*provider));
        let serve = move |provider| async move { (provider, self.serve(blobs, provider).await) };
        let mut serving: FuturesUnordered<_> = waiting.by_ref().take(PROVIDERS_AT_ONCE).map(serve).collect();
        while let Some((provider, result)) = serving.next().await {
            match result {
                Ok(()) => {}
                Err(Stop::Provider(reason)) => {
                    tracing::debug!(%provider, reason, hash = %self.hash.fmt_short(), "a provider dropped out");
                    failures.push(ProviderFailure { provider, reason });
                    serving.extend(waiting.next().map(serve));
                }
                Err(Stop::Blob(error)) => return Err(error),
            }
            // Those who are still connecting are not waited for.
            if self.pieces.get().is_some_and(|(_, pieces)| pieces.is_done()) {
                break;
            }
        }
        Ok(failures)
    }

    async fn conclude(&self, resumed: u64, tried: Vec<ProviderFailure>) -> Result<FetchReport, BlobsError> {
        let now = self.store.observe(self.hash).await.map_err(BlobsError::store)?;
        match self.pieces.get() {
            Some((size, _)) if now.is_complete() && now.size() == *size => Ok(FetchReport {
                bytes: *size,
                resumed,
                per_provider: self.received.lock().unwrap_or_else(PoisonError::into_inner).clone(),
                failures: tried,
            }),
            Some((size, _)) => {
                let missing = format!("{} of {size} bytes have arrived", now.total_bytes());
                Err(BlobsError::Unavailable { hash: self.hash, missing, tried })
            }
            None => {
                let missing = "nobody could prove to have it".into();
                Err(BlobsError::Unavailable { hash: self.hash, missing, tried })
            }
        }
    }

    /// One provider, from connecting to the last piece.
    async fn serve(&self, blobs: &Blobs, provider: NodeId) -> Result<(), Stop> {
        let id = EndpointId::from_bytes(&provider.0).map_err(Stop::provider)?;
        let connecting = blobs.endpoint.connect(id, iroh_blobs::ALPN);
        let connection = tokio::time::timeout(self.patience.connect, connecting)
            .await
            .map_err(|_| Stop::provider(format!("no connection within {:?}", self.patience.connect)))?
            .map_err(Stop::provider)?;
        let size = self.before_stall(get_verified_size(&connection, &self.hash)).await?.map_err(Stop::provider)?.0;
        check_size(self.hash, self.size, size).map_err(Stop::Blob)?;
        let cut = async || (size, Pieces::cut(size, self.workers, &self.present, self.patience.slow));
        let (_, pieces) = self.pieces.get_or_init(cut).await;
        let mut workers: FuturesUnordered<_> =
            (0..PIECES_PER_PROVIDER).map(|_| self.work(&connection, provider, pieces)).collect();
        // Both run to their end: each gives back its own piece.
        let mut outcome = Ok(());
        while let Some(result) = workers.next().await {
            outcome = outcome.and(result);
        }
        connection.close(0u32.into(), b"done");
        outcome
    }

    /// Fetches piece after piece from one provider.
    async fn work(&self, connection: &Connection, provider: NodeId, pieces: &Pieces) -> Result<(), Stop> {
        while let Some(piece) = pieces.take(provider).await {
            let fetching = self.fetch_piece(connection, provider, &piece.ranges);
            let fetched = tokio::select! {
                fetched = tokio::time::timeout(self.patience.piece, fetching) => fetched,
                // Another was faster.
                () = pieces.arrived(&piece) => continue,
            };
            let slow = |_| Stop::provider(format!("no whole piece within {:?}", self.patience.piece));
            match fetched.map_err(slow).flatten() {
                Ok(()) => pieces.finish(&piece),
                Err(stop) => {
                    pieces.give_back(&piece, provider);
                    return Err(stop);
                }
            }
        }
        Ok(())
    }

    async fn fetch_piece(&self, connection: &Connection, provider: NodeId, piece: &ChunkRanges) -> Result<(), Stop> {
        // A provider that failed may have delivered a part of it.
        let here = self.store.observe(self.hash).await.map_err(|error| Stop::Blob(BlobsError::store(error)))?;
        let missing = piece.clone() - here.ranges;
        if missing.is_empty() {
            return Ok(());
        }
        let request = GetRequest::blob_ranges(self.hash, missing);
        let mut progress = Box::pin(self.store.remote().execute_get(connection.clone(), request).stream());
        let mut counted = 0;
        loop {
            match self.before_stall(progress.next()).await? {
                Some(GetProgressItem::Progress(bytes)) => self.count(provider, &mut counted, bytes),
                Some(GetProgressItem::Done(stats)) => {
                    self.count(provider, &mut counted, stats.payload_bytes_read);
                    return Ok(());
                }
                Some(GetProgressItem::Error(error)) => return Err(Stop::provider(error)),
                None => return Err(Stop::provider("the stream ended early")),
            }
        }
    }

    /// Adds to a provider's account what a request has delivered beyond `counted` bytes.
    fn count(&self, provider: NodeId, counted: &mut u64, bytes: u64) {
        let mut received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        *received.entry(provider).or_default() += bytes.saturating_sub(*counted);
        *counted = bytes.max(*counted);
    }

    async fn before_stall<T>(&self, future: impl Future<Output = T>) -> Result<T, Stop> {
        let stalled = |_| Stop::provider(format!("sent nothing for {:?}", self.patience.stall));
        tokio::time::timeout(self.patience.stall, future).await.map_err(stalled)
    }
}
