//! Checkpoints on their way into the store and out of it again: made here or fetched, checked, named and let go.

use std::{collections::HashSet, io};

use paris_model::{checkpoint::CheckpointError, config::PartConfig, state::Published};
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
        tags::{self, CHECKPOINTS, STATE, WEIGHTS},
    },
    BlobWork, size_limits,
};
use crate::blobs::{BlobsError, FetchRequest, Size, Stored};

/// Why a blob is not to be used.
#[derive(Debug, thiserror::Error)]
pub(in super::super) enum CheckError {
    /// Its bytes are what its name says, and not of the part: whoever published it is wrong or lies.
    #[error(transparent)]
    Content(#[from] CheckpointError),
    /// It cannot be read here, which says nothing of who published it.
    #[error(transparent)]
    Store(#[from] BlobsError),
    /// The thread that read it died.
    #[error("the check did not end: {0}")]
    Thread(io::Error),
}

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

    /// Gives stored blobs the name of their checkpoint, so that [`BlobWork::forget`] finds them. Where this fails, or the process ends before, the next
    /// start does it.
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

    /// True if one of the checkpoint's blobs is not here, or not whole.
    pub(in super::super) async fn is_missing(&self, checkpoint: &Checkpoint) -> bool {
        for blob in [checkpoint.weights, checkpoint.state] {
            // A store that fails has not lost it.
            if !self.blobs.has(blob.hash.0).await.unwrap_or(true) {
                return true;
            }
        }
        false
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

    /// Checkpoints of which something is here, if only in part.
    pub(in super::super) fn checkpoints(&self) -> HashSet<CheckpointId> {
        let (whole, unfinished) = (self.blobs.tags(CHECKPOINTS), self.blobs.unfinished(CHECKPOINTS));
        whole.iter().chain(&unfinished).filter_map(|tag| tags::checkpoint_of(tag)).collect()
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
        let checked = self.check_checkpoint(checkpoint, config, state).await;
        checked.map_err(|error| match error {
            CheckError::Content(error) => {
                tracing::warn!("a checkpoint of {} is not usable: {error}", checkpoint.part);
                self.forget(checkpoint.id());
                FetchFailure::Unusable
            }
            CheckError::Store(_) | CheckError::Thread(_) => {
                tracing::warn!("a checkpoint of {} cannot be checked: {error}", checkpoint.part);
                FetchFailure::Unavailable
            }
        })
    }

    async fn check_checkpoint(
        &self,
        checkpoint: &Checkpoint,
        config: PartConfig,
        state: bool,
    ) -> Result<(), CheckError> {
        self.check_weights(config.clone(), checkpoint.weights).await?;
        if state {
            // Else whoever goes on from it is the first to find out, and so is everyone who follows.
            self.check(checkpoint.state, move |bytes| Published::check_state(bytes, &config)).await?;
        }
        Ok(())
    }

    /// Checks that weights in the store are those of a model of this configuration.
    pub(in super::super) async fn check_weights(&self, config: PartConfig, weights: Blob) -> Result<(), CheckError> {
        self.check(weights, move |bytes| Published::check_weights(bytes, &config)).await
    }

    async fn check(
        &self,
        blob: Blob,
        check: impl FnOnce(&[u8]) -> Result<(), CheckpointError> + Send + 'static,
    ) -> Result<(), CheckError> {
        let bytes = self.blobs.bytes(blob.hash.0, blob.bytes).await?;
        let checked = tokio::task::spawn_blocking(move || check(&bytes)).await;
        Ok(checked.map_err(|error| CheckError::Thread(error.into()))??)
    }
}

#[cfg(test)]
mod tests {
    use paris_model::{
        Device,
        state::State,
        text::{HashedText, TextEncoder},
        trainer::Trainer,
    };

    use super::{super::super::testing, *};
    use crate::store::DataDir;

    const PART: Part = Part::Expert(0);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn only_what_a_checkpoint_holds_convicts_its_owner_be_it_weights_or_state() {
        let folder = tempfile::tempdir().unwrap();
        let [owners, fetchers] = ["owner", "fetcher"].map(|name| DataDir::new(folder.path().join(name)));
        let manifest = testing::shared(testing::manifest(1, 1));
        let owner = testing::blob_work(&owners, &manifest).await;
        let (config, settings) = (recipe::part_config(&manifest, PART), recipe::train_settings(&manifest, PART));
        let text = HashedText { tokens: manifest.text.tokens.into(), width: manifest.text.width.into() };
        let null = text.encode(&[""], &Device::Cpu).unwrap();
        let trainer = Trainer::new(config.clone(), settings, &[1; 32], &null, &Device::Cpu).unwrap();
        let good = trainer.published().unwrap();
        State::read_published(&good, &config).unwrap();
        let spoilt = |bytes: &[u8]| [&bytes[..bytes.len() - 4], &f32::NAN.to_le_bytes()].concat();
        let bad_weights = Published { weights: spoilt(&good.weights), state: good.state.clone() };
        let bad_state = Published { weights: good.weights.clone(), state: spoilt(&good.state) };
        let publish = async |step: u64, published: Published| {
            testing::checkpoint(&manifest, PART, step, owner.store_checkpoint(PART, step, published).await.unwrap())
        };
        let (bad_weights, bad_state) = (publish(1, bad_weights).await, publish(2, bad_state).await);
        let good = publish(3, good).await;

        let fetcher = testing::blob_work(&fetchers, &manifest).await;
        let peer = owners.keypair().unwrap().id();
        fetcher.learn(peer, owner.addresses());
        let fetch = async |checkpoint, state| fetcher.fetch_checkpoint(checkpoint, state, vec![peer]).await;
        assert_eq!(fetch(&bad_weights, false).await, Err(FetchFailure::Unusable));
        assert_eq!(fetch(&bad_state, true).await, Err(FetchFailure::Unusable));
        assert_eq!(fetch(&bad_state, false).await, Ok(()), "its weights can be drawn with");
        assert_eq!(fetch(&good, true).await, Ok(()));
        assert!(!fetcher.is_missing(&good).await);

        // The owner is gone, and this disk returns other bytes.
        owner.shutdown().await;
        let file = fetcher.blobs().file(good.state.hash.0, folder.path()).await.unwrap();
        std::fs::write(file, b"other").unwrap();
        assert_eq!(fetch(&good, true).await, Err(FetchFailure::Unavailable));
        assert!(fetcher.is_missing(&good).await);
    }
}
