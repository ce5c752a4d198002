//! What training a part takes, gathered: the checkpoint or the base to begin with, and shards, fetched from whoever has them.

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, bail};
use paris_model::{Device, config::PartConfig, data::Dataset, state::Published};
use paris_protocol::{
    checkpoint::{Blob, Checkpoint},
    identity::NodeId,
    manifest::Shard,
    part::Part,
    signed::Verified,
};

use super::{
    super::{recipe, tags, trainer::Job},
    BlobWork, size_limits,
};
use crate::blobs::{BlobsError, FetchRequest, Size};

/// Attempts to gather a part's shards before the part is given back.
const ATTEMPTS: u32 = 5;
/// Between two of them.
const PAUSE: Duration = Duration::from_secs(2);

impl BlobWork {
    /// Everything that training a part takes on this node, `me`: shards are fetched from whoever has them, and stay on the disk.
    pub(in super::super) async fn job(
        &self,
        part: Part,
        from: Option<&Verified<Checkpoint>>,
        me: NodeId,
        peers: &[NodeId],
    ) -> anyhow::Result<Job> {
        let (manifest, compute) = (self.manifest.clone(), self.compute);
        let encoder = self.text.clone().context("this node was started to train nothing")?;
        let config = recipe::part_config(&manifest, part);
        let published_here = from.is_some_and(|checkpoint| checkpoint.author() == me);
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
        self.bring(blob, "shard", &tags::shard(&shard.hash), providers).await
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
        let tag = tags::base(&base.hash);
        self.bring(base, "base checkpoint", &tag, &providers).await?;
        let bytes = match self.blobs.bytes(base.hash.0, weights_max).await {
            // From now on it counts as missing, so it is fetched.
            Err(BlobsError::Corrupt { .. }) => {
                self.bring(base, "base checkpoint", &tag, &providers).await?;
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
                Err(error) if attempt >= ATTEMPTS => {
                    return Err(error)
                        .with_context(|| format!("{what} {} is to be had from nobody", blob.hash.short()));
                }
                Err(error) => tracing::warn!("{what} {}: {error}; trying again", blob.hash.short()),
            }
            attempt += 1;
            tokio::time::sleep(PAUSE).await;
        }
    }
}
