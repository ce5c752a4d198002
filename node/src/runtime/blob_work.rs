//! What the driver has done with blobs in the background: checkpoints stored, fetched, checked and exported, shards gathered.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use libp2p::Multiaddr;
use paris_model::{
    Device, config::PartConfig, data::Dataset, parameters::Parameters, state::Published, text::TextEncoder,
};
use paris_protocol::{
    agent::{FetchFailure, Made},
    checkpoint::{Blob, Checkpoint, CheckpointId},
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    manifest::{Manifest, RunId, Shard},
    part::Part,
    signed::Verified,
    ticket::Ticket,
};

use super::{AssembledPart, BASE_TAG, Compute, addresses, recipe, trainer::Job};
use crate::{
    blobs::{Blobs, BlobsError, FetchRequest, Size, Stored},
    hex,
    store::DataDir,
};

/// Tags of blobs whose checkpoint has no name yet.
pub(super) const NEW: &str = "new/";
/// Attempts to gather a part's shards before the part is given back.
const GATHER_ATTEMPTS: u32 = 5;
/// Between two of them.
const GATHER_PAUSE: Duration = Duration::from_secs(2);

/// How long exported weights are kept when they are needed no more.
const EXPORT_KEPT: Duration = Duration::from_secs(3600);

/// Cheap to clone; every clone works on the same store.
#[derive(Clone)]
pub(super) struct BlobWork {
    blobs: Blobs,
    manifest: Arc<Manifest>,
    ticket: Arc<Ticket>,
    weights_dir: Arc<Path>,
    shards_dir: Arc<Path>,
    compute: Compute,
    /// The run's text encoder; none where nothing is trained.
    text: Option<Arc<dyn TextEncoder>>,
}

impl BlobWork {
    pub(super) fn new(
        blobs: Blobs,
        manifest: Arc<Manifest>,
        ticket: Ticket,
        dir: &DataDir,
        compute: Compute,
        text: Option<Arc<dyn TextEncoder>>,
    ) -> Self {
        let (weights_dir, shards_dir) = (dir.weights_path().into(), dir.shards_path().into());
        Self { blobs, manifest, ticket: Arc::new(ticket), weights_dir, shards_dir, compute, text }
    }

    pub(super) fn addresses(&self) -> Vec<SocketAddr> {
        self.blobs.addresses()
    }

    pub(super) fn learn(&self, peer: NodeId, addresses: Vec<SocketAddr>) {
        self.blobs.learn(peer, addresses);
    }

    pub(super) async fn shutdown(&self) {
        self.blobs.shutdown().await;
    }

    pub(super) fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn run(&self) -> RunId {
        self.ticket.run()
    }

    /// Peers that the ticket names.
    pub(super) fn seeds(&self) -> impl Iterator<Item = NodeId> {
        self.ticket.seeds().iter().map(|seed| seed.node)
    }

    /// A ticket that names this node first, then the seeds it joined with.
    pub(super) fn ticket(&self, node: NodeId, listening: &[Multiaddr]) -> Ticket {
        let this = addresses::as_seed(node, listening, self.blobs.addresses());
        let others = self.ticket.seeds().iter().filter(|seed| seed.node != node).cloned();
        Ticket::new(self.ticket.run(), [this].into_iter().chain(others).take(3))
    }

    pub(super) fn manifest_hex(&self) -> String {
        hex::encode(&self.manifest.to_bytes().unwrap_or_default())
    }

    /// Puts a checkpoint that was trained here into the store, durably.
    pub(super) async fn store_checkpoint(
        &self,
        part: Part,
        step: u64,
        published: Published,
    ) -> Result<(Blob, Blob), BlobsError> {
        let store = async |name: &str, bytes: Vec<u8>| {
            let Stored { hash, size } = self.blobs.add_bytes(&new_tag(part, step, name), bytes).await?;
            Ok(Blob { hash: Hash(hash), bytes: size })
        };
        Ok((store("weights", published.weights).await?, store("state", published.state).await?))
    }

    /// Gives stored blobs the name of their checkpoint, so that [`BlobWork::forget`] finds them.
    pub(super) fn adopt(&self, id: CheckpointId, part: Part, made: &Made) {
        let blobs = self.blobs.clone();
        let (step, named) = (made.step, [("weights", made.weights.hash), ("state", made.state.hash)]);
        tokio::spawn(async move {
            let named = async {
                for (name, hash) in named {
                    blobs.tag(&format!("{}{name}", checkpoint_tags(id)), hash.0).await?;
                    blobs.untag(&new_tag(part, step, name)).await?;
                }
                Ok::<_, BlobsError>(())
            };
            if let Err(error) = named.await {
                tracing::warn!("the blobs of a checkpoint keep a temporary name: {error}");
            }
        });
    }

    /// True if one of the checkpoint's blobs was found damaged on disk.
    pub(super) fn is_damaged(&self, checkpoint: &Checkpoint) -> bool {
        let damaged = self.blobs.damaged_blobs();
        [checkpoint.weights, checkpoint.state].iter().any(|blob| damaged.contains(&blob.hash.0))
    }

    /// Lets go of a checkpoint's blobs.
    pub(super) fn forget(&self, id: CheckpointId) {
        let blobs = self.blobs.clone();
        tokio::spawn(async move {
            if let Err(error) = blobs.untag_prefix(&checkpoint_tags(id)).await {
                tracing::warn!("a checkpoint that is needed no more stays on disk: {error}");
            }
        });
    }

    /// Fetches a checkpoint's blobs and checks that they are what the manifest says of the part.
    pub(super) async fn fetch_checkpoint(
        &self,
        checkpoint: &Verified<Checkpoint>,
        state: bool,
        providers: Vec<NodeId>,
    ) -> Result<(), FetchFailure> {
        let id = checkpoint.id();
        let config = recipe::part_config(&self.manifest, checkpoint.part);
        let (weights_max, state_max) = size_limits(&config);
        if checkpoint.weights.bytes > weights_max || checkpoint.state.bytes > state_max {
            tracing::warn!("a checkpoint of {} claims blobs larger than the model: refused", checkpoint.part);
            return Err(FetchFailure::Unusable);
        }
        let wanted = [(checkpoint.weights, "weights"), (checkpoint.state, "state")];
        for (blob, name) in wanted.into_iter().take(if state { 2 } else { 1 }) {
            let request = FetchRequest {
                hash: blob.hash.0,
                size: Size::Exactly(blob.bytes),
                providers: providers.clone(),
                tag: format!("{}{name}", checkpoint_tags(id)),
            };
            self.blobs.fetch(request).await.map_err(|error| {
                tracing::info!("the {name} of {} could not be fetched: {error}", checkpoint.part);
                FetchFailure::Unavailable
            })?;
        }
        let checked = self.check_weights(config, checkpoint.weights, weights_max).await;
        checked.map_err(|error| {
            tracing::warn!("a checkpoint of {} is not usable: {error:#}", checkpoint.part);
            self.forget(id);
            FetchFailure::Unusable
        })
    }

    /// Checks that weights in the store are those of a model of this configuration.
    pub(super) async fn check_weights(&self, config: PartConfig, weights: Blob, max: u64) -> anyhow::Result<()> {
        let bytes = self.blobs.bytes(weights.hash.0, max).await?;
        tokio::task::spawn_blocking(move || Parameters::load(&config, &bytes, &Device::Cpu).map(drop)).await??;
        Ok(())
    }

    /// Everything that training a part takes on this node, `me`: shards are fetched from whoever has them, and stay on the disk.
    pub(super) async fn job(
        &self,
        part: Part,
        from: Option<Verified<Checkpoint>>,
        me: NodeId,
        peers: &[NodeId],
    ) -> anyhow::Result<Job> {
        let (manifest, compute) = (self.manifest.clone(), self.compute);
        let encoder = self.text.clone().context("this node was started to train nothing")?;
        let config = recipe::part_config(&manifest, part);
        let published_here = from.as_ref().is_some_and(|checkpoint| checkpoint.author() == me);
        let published = match from {
            Some(checkpoint) => {
                let (weights_max, state_max) = size_limits(&config);
                let weights = self.blobs.bytes(checkpoint.weights.hash.0, weights_max).await?;
                Some(Published { weights, state: self.blobs.bytes(checkpoint.state.hash.0, state_max).await? })
            }
            None => None,
        };
        let base = match (part, manifest.additions.base) {
            (Part::Expert(_), Some(base)) if published.is_none() => Some(self.base(base, &config, peers).await?),
            _ => None,
        };
        let shards = recipe::shards(&manifest, part);
        let train = self.gather(&shards.train, peers).await?;
        let held_out = self.gather(&shards.held_out, peers).await?;
        tokio::task::spawn_blocking(move || {
            let training = manifest.training(part);
            Ok(Job {
                part,
                config,
                settings: recipe::train_settings(&manifest, part),
                key: recipe::training_key(manifest.id()?, part),
                null_text: encoder.encode(&[""], &Device::Cpu)?,
                published,
                published_here,
                base,
                train: Arc::new(Dataset::open(train, encoder.clone())?),
                held_out: Dataset::open(held_out, encoder)?,
                steps: training.steps,
                checkpoint_every: Duration::from_millis(manifest.ownership.checkpoint_ms.into()),
                compute,
            })
        })
        .await?
    }

    /// The files of shards from the store, fetched from any peer where they are not here. Whoever fetched a shard keeps and serves it, so its file
    /// stays.
    async fn gather(&self, shards: &[(Shard, u32)], peers: &[NodeId]) -> anyhow::Result<Vec<(PathBuf, u32)>> {
        let providers: Vec<_> = self.seeds().chain(peers.iter().copied()).collect();
        let mut gathered = Vec::new();
        for (shard, label) in shards {
            self.gather_one(shard, &providers).await?;
            let file = match self.blobs.file(shard.hash.0, &self.shards_dir).await {
                // From now on it counts as missing, so it is fetched.
                Err(BlobsError::Corrupt { .. }) => {
                    self.gather_one(shard, &providers).await?;
                    self.blobs.file(shard.hash.0, &self.shards_dir).await
                }
                file => file,
            };
            gathered.push((file?, *label));
        }
        Ok(gathered)
    }

    async fn gather_one(&self, shard: &Shard, providers: &[NodeId]) -> anyhow::Result<()> {
        let blob = Blob { hash: shard.hash, bytes: shard.bytes };
        self.bring(blob, "shard", &shard_tag(&shard.hash), providers).await
    }

    /// The base checkpoint, fetched from any peer if it is not here; whoever fetched it serves it.
    async fn base(&self, base: Blob, config: &PartConfig, peers: &[NodeId]) -> anyhow::Result<Arc<[u8]>> {
        let (weights_max, _) = size_limits(config);
        if base.bytes > weights_max {
            bail!(
                "the manifest names a base checkpoint of {} bytes, and these experts have {weights_max} at most",
                base.bytes
            );
        }
        let providers: Vec<_> = self.seeds().chain(peers.iter().copied()).collect();
        self.bring(base, "base checkpoint", BASE_TAG, &providers).await?;
        let bytes = match self.blobs.bytes(base.hash.0, weights_max).await {
            // From now on it counts as missing, so it is fetched.
            Err(BlobsError::Corrupt { .. }) => {
                self.bring(base, "base checkpoint", BASE_TAG, &providers).await?;
                self.blobs.bytes(base.hash.0, weights_max).await
            }
            bytes => bytes,
        };
        Ok(bytes?.into())
    }

    /// Fetches a blob that a part cannot be trained without, unless it is here.
    async fn bring(&self, blob: Blob, what: &str, tag: &str, providers: &[NodeId]) -> anyhow::Result<()> {
        if self.blobs.has(blob.hash.0).await? {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            let request = FetchRequest {
                hash: blob.hash.0,
                size: Size::Exactly(blob.bytes),
                providers: providers.to_vec(),
                tag: tag.to_owned(),
            };
            match self.blobs.fetch(request).await {
                Ok(_) => return Ok(()),
                Err(error) if attempt >= GATHER_ATTEMPTS => {
                    return Err(error)
                        .with_context(|| format!("{what} {} is to be had from nobody", blob.hash.short()));
                }
                Err(error) => tracing::warn!("{what} {}: {error}; trying again", blob.hash.short()),
            }
            attempt += 1;
            tokio::time::sleep(GATHER_PAUSE).await;
        }
    }

    /// Exports the weights of every part that is here, and removes what earlier assemblies left.
    pub(super) async fn export_all(&self, parts: &mut [AssembledPart]) {
        let mut named = Vec::new();
        for part in parts {
            part.path = self.export(&part.weights).await;
            named.extend(part.path.clone());
        }
        remove_old_exports(&self.weights_dir, &named);
    }

    /// Writes weights that are in the store where a sampling process can read them. None while they are not here.
    async fn export(&self, weights: &str) -> Option<PathBuf> {
        let path = self.weights_dir.join(format!("{weights}.safetensors"));
        if path.exists() {
            return Some(path);
        }
        let hash: Hash = weights.parse().ok()?;
        let exported = async {
            if !self.blobs.has(hash.0).await? {
                bail!("still being fetched");
            }
            tokio::fs::create_dir_all(&self.weights_dir).await?;
            anyhow::Ok(self.blobs.export(hash.0, &path).await?)
        };
        exported.await.inspect_err(|error| tracing::debug!("weights {weights}: {error:#}")).ok().map(|()| path)
    }
}

/// The name of a blob of a checkpoint that was made here, until the checkpoint has one.
fn new_tag(part: Part, step: u64, name: &str) -> String {
    format!("{NEW}{part}/{step}/{name}")
}

/// What the names of a checkpoint's blobs in the blob store begin with.
pub(super) fn checkpoint_tags(id: CheckpointId) -> String {
    format!("checkpoint/{}/", id.0)
}

/// The name under which the blob store keeps a shard.
pub(crate) fn shard_tag(hash: &Hash) -> String {
    format!("shard/{hash}")
}

/// Removes exported weights that no assembly has named for a while; a sampling process may still read the last ones.
fn remove_old_exports(folder: &Path, named: &[PathBuf]) {
    let is_old = |path: &Path| {
        let modified = path.metadata().and_then(|it| it.modified()).ok();
        modified.and_then(|it| it.elapsed().ok()).is_some_and(|age| age > EXPORT_KEPT)
    };
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_file() && !named.contains(&path) && is_old(&path) {
            // Another call may have been faster.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// The most bytes that the weights and the resumable state of a part can have: averages; parameters and moments; and some header each.
pub(super) fn size_limits(config: &PartConfig) -> (u64, u64) {
    let parameters = 4 * config.parameter_count() as u64;
    (parameters + (1 << 20), 3 * parameters + (2 << 20))
}
