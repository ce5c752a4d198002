//! Checkpoints on their way into the store and out of it again: made here or fetched, checked, named and let go.

use paris_model::{Device, config::PartConfig, parameters::Parameters, state::Published};
use paris_protocol::{
    agent::{FetchFailure, Made},
    checkpoint::{Blob, Checkpoint, CheckpointId},
    hash::Hash,
    identity::NodeId,
    part::Part,
    signed::Verified,
};

use super::{
    super::{
        recipe,
        tags::{self, STATE, WEIGHTS},
    },
    BlobWork, size_limits,
};
use crate::blobs::{BlobsError, FetchRequest, Size, Stored};

impl BlobWork {
    /// Puts a checkpoint that was trained here into the store, durably.
    pub(in super::super) async fn store_checkpoint(
        &self,
        part: Part,
        step: u64,
        published: Published,
    ) -> Result<(Blob, Blob), BlobsError> {
        let store = async |name: &str, bytes: Vec<u8>| {
            let Stored { hash, size } = self.blobs.add_bytes(&tags::new(part, step, name), bytes).await?;
            Ok(Blob { hash: Hash(hash), bytes: size })
        };
        Ok((store(WEIGHTS, published.weights).await?, store(STATE, published.state).await?))
    }

    /// Gives stored blobs the name of their checkpoint, so that [`BlobWork::forget`] finds them.
    pub(in super::super) fn adopt(&self, id: CheckpointId, part: Part, made: &Made) {
        let blobs = self.blobs.clone();
        let (step, named) = (made.step, [(WEIGHTS, made.weights.hash), (STATE, made.state.hash)]);
        tokio::spawn(async move {
            let named = async {
                for (name, hash) in named {
                    blobs.tag(&format!("{}{name}", tags::checkpoint(id)), hash.0).await?;
                    blobs.untag(&tags::new(part, step, name)).await?;
                }
                Ok::<_, BlobsError>(())
            };
            if let Err(error) = named.await {
                tracing::warn!("the blobs of a checkpoint keep a temporary name: {error}");
            }
        });
    }

    /// True if one of the checkpoint's blobs was found damaged on disk.
    pub(in super::super) fn is_damaged(&self, checkpoint: &Checkpoint) -> bool {
        let damaged = self.blobs.damaged_blobs();
        [checkpoint.weights, checkpoint.state].iter().any(|blob| damaged.contains(&blob.hash.0))
    }

    /// Lets go of a checkpoint's blobs.
    pub(in super::super) fn forget(&self, id: CheckpointId) {
        let blobs = self.blobs.clone();
        tokio::spawn(async move {
            if let Err(error) = blobs.untag_prefix(&tags::checkpoint(id)).await {
                tracing::warn!("a checkpoint that is needed no more stays on disk: {error}");
            }
        });
    }

    /// Fetches a checkpoint's blobs and checks that they are what the manifest says of the part.
    pub(in super::super) async fn fetch_checkpoint(
        &self,
        checkpoint: &Verified<Checkpoint>,
        state: bool,
        providers: Vec<NodeId>,
    ) -> Result<(), FetchFailure> {
        let config = recipe::part_config(&self.manifest, checkpoint.part);
        let (weights_max, state_max) = size_limits(&config);
        if checkpoint.weights.bytes > weights_max || checkpoint.state.bytes > state_max {
            tracing::warn!("a checkpoint of {} claims blobs larger than the model: refused", checkpoint.part);
            return Err(FetchFailure::Unusable);
        }
        for (tag, blob) in tags::of_checkpoint(checkpoint, state) {
            let (hash, size) = (blob.hash.0, Size::Exactly(blob.bytes));
            let request = FetchRequest { hash, size, providers: providers.clone(), tag };
            self.blobs.fetch(request).await.map_err(|error| {
                tracing::info!("a checkpoint of {} could not be fetched: {error}", checkpoint.part);
                FetchFailure::Unavailable
            })?;
        }
        let checked = self.check_weights(config, checkpoint.weights, weights_max).await;
        checked.map_err(|error| {
            tracing::warn!("a checkpoint of {} is not usable: {error:#}", checkpoint.part);
            self.forget(checkpoint.id());
            FetchFailure::Unusable
        })
    }

    /// Checks that weights in the store are those of a model of this configuration.
    pub(in super::super) async fn check_weights(
        &self,
        config: PartConfig,
        weights: Blob,
        max: u64,
    ) -> anyhow::Result<()> {
        let bytes = self.blobs.bytes(weights.hash.0, max).await?;
        tokio::task::spawn_blocking(move || Parameters::load(&config, &bytes, &Device::Cpu).map(drop)).await??;
        Ok(())
    }
}
