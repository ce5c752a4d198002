//! Mixtures that are kept: their records and weights stay in the blob store, whatever becomes of the checkpoints, and are served to whoever asks.
//!
//! The agent knows nothing of them. A mixture is kept by its names in the blob store alone: one for its record, one for the weights of each part.

use paris_protocol::{
    checkpoint::{Checkpoint, CheckpointId},
    codec::{CodecError, Wire},
    hash::Hash,
    identity::NodeId,
    mixture::{Mixture, MixtureError},
    part::Part,
    signed::Verified,
};
use tokio::sync::oneshot;

use super::{
    AssembledPart, Assembly, Call, NodeHandle,
    blob_work::{BlobWork, CheckError, size_limits},
    recipe,
    tags::{self, MIXTURES},
};
use crate::{
    blobs::{BlobsError, FetchRequest, Size},
    hex,
};

/// What the name of a mixture's own record ends with.
const RECORD: &str = "record";

/// A mixture that cannot be kept or had.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// It is none, or none of this run.
    #[error(transparent)]
    Mixture(#[from] MixtureError),
    /// The blob store.
    #[error(transparent)]
    Blobs(#[from] BlobsError),
    /// Its weights are gone again.
    #[error(
        "the weights of {0} are not here any more, a newer checkpoint took their place: assemble the mixture again"
    )]
    Gone(Part),
    /// Nobody delivered it yet.
    #[error(
        "mixture {hash} cannot be had: {reason}. It is kept where it was assembled and wherever it was drawn with: is one of these nodes online?"
    )]
    Unavailable {
        /// The mixture.
        hash: Hash,
        /// What is missing.
        reason: String,
    },
    /// Its weights are not of the run's model.
    #[error("the mixture's weights of {part} are of no use: {reason}")]
    Unusable {
        /// The part.
        part: Part,
        /// What is wrong with them.
        reason: String,
    },
    /// Its weights could not be checked.
    #[error("the weights of {part} could not be checked: {error}. Ask again")]
    Check {
        /// The part.
        part: Part,
        /// What happened.
        error: std::io::Error,
    },
    /// The driver is gone.
    #[error("the node has stopped")]
    Stopped,
}

impl From<CodecError> for KeepError {
    fn from(error: CodecError) -> Self {
        Self::Mixture(error.into())
    }
}

impl NodeHandle {
    /// Keeps a mixture whose weights are here, under the name that is returned.
    pub async fn keep_mixture(&self, mixture: &Mixture) -> Result<Hash, KeepError> {
        self.work.keep_mixture(mixture).await
    }

    /// The mixtures that are kept.
    pub fn mixtures(&self) -> Vec<Hash> {
        self.work.mixtures()
    }

    /// Lets go of a mixture; false if it was not kept.
    pub async fn drop_mixture(&self, hash: Hash) -> Result<bool, KeepError> {
        Ok(self.work.blobs().untag_prefix(&tags::mixture(hash)).await? > 0)
    }

    /// A mixture by its name, its weights where a sampling process can read them. What is not here is fetched, and kept from then on.
    ///
    /// # Errors
    /// [`KeepError::Unavailable`] may pass: peers come and go. The rest does not.
    pub async fn mixture(&self, hash: Hash) -> Result<Assembly, KeepError> {
        let checkpoints = self.record(hash).await?;
        for checkpoint in &checkpoints {
            self.weights(hash, checkpoint).await?;
        }
        let part = |it: &Verified<Checkpoint>| AssembledPart::of(it, it.step);
        let mut parts: Vec<_> = checkpoints.iter().map(part).collect();
        self.work.export_all(&mut parts).await;
        Ok(Assembly {
            run: self.work.run().0.to_string(),
            manifest: self.work.manifest_hex(),
            mixture: hex::encode(&Mixture::of(self.work.run(), &checkpoints).to_bytes()?),
            parts,
        })
    }

    /// A mixture's record, as its checkpoints.
    async fn record(&self, hash: Hash) -> Result<Vec<Verified<Checkpoint>>, KeepError> {
        let limit = Mixture::LIMIT as u64;
        let providers = self.work.seeds().chain(self.holders(None).await?).collect();
        let tag = format!("{}{RECORD}", tags::mixture(hash));
        let request = FetchRequest { hash: hash.0, size: Size::AtMost(limit), providers, tag };
        self.fetch(hash, "its record", request).await?;
        let bytes = self.work.blobs().bytes(hash.0, limit).await?;
        let read = Mixture::read(&bytes, self.work.run(), self.work.manifest());
        if read.is_err() {
            self.drop_mixture(hash).await?;
        }
        Ok(read?)
    }

    /// Has a checkpoint's weights fetched, checked and kept under the mixture's name.
    async fn weights(&self, mixture: Hash, checkpoint: &Verified<Checkpoint>) -> Result<(), KeepError> {
        let (part, weights) = (checkpoint.part, checkpoint.weights);
        let unusable = |reason: String| KeepError::Unusable { part, reason };
        let config = recipe::part_config(self.work.manifest(), part);
        let (limit, _) = size_limits(&config);
        if weights.bytes > limit {
            return Err(unusable(format!("{} bytes are more than the run's model has", weights.bytes)));
        }
        let holders = self.holders(Some(checkpoint.id())).await?;
        let providers = [checkpoint.author()].into_iter().chain(holders).chain(self.work.seeds());
        let (hash, size) = (weights.hash.0, Size::Exactly(weights.bytes));
        let tag = format!("{}{part}", tags::mixture(mixture));
        let request = FetchRequest { hash, size, providers: providers.collect(), tag };
        self.fetch(mixture, &format!("the weights of {part}"), request).await?;
        self.work.check_weights(config, weights).await.map_err(|error| match error {
            CheckError::Content(error) => unusable(error.to_string()),
            CheckError::Store(error) => error.into(),
            CheckError::Thread(error) => KeepError::Check { part, error },
        })
    }

    async fn fetch(&self, mixture: Hash, what: &str, request: FetchRequest) -> Result<(), KeepError> {
        match self.work.blobs().fetch(request).await {
            Ok(_) => Ok(()),
            Err(BlobsError::Unavailable { missing, tried, .. }) => {
                let reason = format!("{what} is to be had from none of {} peers asked ({missing})", tried.len());
                Err(KeepError::Unavailable { hash: mixture, reason })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Live peers, those that say they hold the checkpoint first.
    async fn holders(&self, id: Option<CheckpointId>) -> Result<Vec<NodeId>, KeepError> {
        let (answer, answered) = oneshot::channel();
        self.calls.send(Call::Holders(id, answer)).await.map_err(|_| KeepError::Stopped)?;
        answered.await.map_err(|_| KeepError::Stopped)
    }
}

impl BlobWork {
    async fn keep_mixture(&self, mixture: &Mixture) -> Result<Hash, KeepError> {
        let bytes = mixture.to_bytes()?;
        let hash = Hash::of(&bytes);
        let checkpoints = Mixture::read(&bytes, self.run(), self.manifest())?;
        let kept = self.keep_blobs(hash, bytes, &checkpoints).await;
        if kept.is_err() && !self.mixtures().contains(&hash) {
            // Nobody would find the names again that were given before it failed.
            self.blobs().untag_prefix(&tags::mixture(hash)).await?;
        }
        kept.map(|()| hash)
    }

    async fn keep_blobs(
        &self,
        hash: Hash,
        record: Vec<u8>,
        checkpoints: &[Verified<Checkpoint>],
    ) -> Result<(), KeepError> {
        for checkpoint in checkpoints {
            let tag = format!("{}{}", tags::mixture(hash), checkpoint.part);
            match self.blobs().tag(&tag, checkpoint.weights.hash.0).await {
                Err(BlobsError::Missing { .. }) => return Err(KeepError::Gone(checkpoint.part)),
                kept => kept?,
            }
        }
        // Last: what has a record is whole.
        self.blobs().add_bytes(&format!("{}{RECORD}", tags::mixture(hash)), record).await?;
        Ok(())
    }

    fn mixtures(&self) -> Vec<Hash> {
        let of_record = |tag: String| tag.strip_prefix(MIXTURES)?.strip_suffix(RECORD)?.strip_suffix('/')?.parse().ok();
        let mut all: Vec<_> = self.blobs().tags(MIXTURES).into_iter().filter_map(of_record).collect();
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use paris_protocol::checkpoint::Blob;

    use super::{super::testing, *};
    use crate::store::DataDir;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_mixture_that_cannot_be_kept_leaves_no_names() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = testing::shared(testing::manifest(1, 1));
        let work = testing::blob_work(&DataDir::new(folder.path()), &manifest).await;
        let weights = work.blobs().add_bytes("here", b"weights".to_vec()).await.unwrap();
        let here = Blob { hash: Hash(weights.hash), bytes: weights.size };
        let gone = Blob { hash: Hash::of(b"gone"), bytes: 4 };
        let mixture = |router| {
            let parts = [(Part::Expert(0), here), (Part::Router, router)];
            Mixture::of(work.run(), &parts.map(|(part, blob)| testing::checkpoint(&manifest, part, 1, (blob, blob))))
        };
        let refused = work.keep_mixture(&mixture(gone)).await;
        assert!(matches!(refused, Err(KeepError::Gone(Part::Router))), "{refused:?}");
        assert_eq!(work.blobs().tags(MIXTURES), Vec::<String>::new());
        let kept = work.keep_mixture(&mixture(here)).await.unwrap();
        assert_eq!((work.mixtures(), work.blobs().tags(MIXTURES).len()), (vec![kept], 3));
    }
}
