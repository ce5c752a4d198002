//! Prepared pictures, opened cluster by cluster and all together.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    dataset::{Dataset, DatasetError},
    prepare::PrepareError,
    prepared::{Prepared, ShardInfo},
};
use crate::text::TextEncoder;

/// Samples to train on and held out, each labelled with its cluster.
pub struct Split {
    /// To train on.
    pub train: Arc<Dataset>,
    /// Never trained on.
    pub held_out: Arc<Dataset>,
}

/// Everything that was prepared in a folder.
pub struct Splits {
    /// By cluster.
    pub clusters: Vec<Split>,
    /// Of all clusters.
    pub all: Split,
}

/// Why prepared pictures cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum SplitsError {
    /// There is no usable record of them, or a shard is not what the record says.
    #[error(transparent)]
    Prepared(#[from] PrepareError),
    /// Their shards make no data set.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A cluster has nothing held out.
    #[error("cluster {0} has no held-out pictures to measure on: prepare the data with a held-out share above 0")]
    NothingHeldOut(usize),
}

impl Splits {
    /// Opens what [`prepare`](super::prepare()) left in `folder`, once all of it was read and checked.
    ///
    /// # Errors
    /// If there is nothing usable, a shard is damaged, or a cluster has nothing held out.
    pub fn open(folder: &Path, encoder: &Arc<dyn TextEncoder>) -> Result<Self, SplitsError> {
        let prepared = Prepared::read(folder)?;
        let open = |shards: Vec<(PathBuf, u32)>| Dataset::open(shards, encoder.clone()).map(Arc::new);
        let files = |shards: &[ShardInfo], label: usize| -> Result<Vec<(PathBuf, u32)>, PrepareError> {
            shards.iter().map(|shard| Ok((shard.checked_path(folder)?, label as u32))).collect()
        };
        let (mut clusters, mut all_train, mut all_held_out) = (Vec::new(), Vec::new(), Vec::new());
        for (label, cluster) in prepared.clusters.iter().enumerate() {
            if cluster.held_out.is_empty() {
                return Err(SplitsError::NothingHeldOut(label));
            }
            let (train, held_out) = (files(&cluster.train, label)?, files(&cluster.held_out, label)?);
            clusters.push(Split { train: open(train.clone())?, held_out: open(held_out.clone())? });
            all_train.extend(train);
            all_held_out.extend(held_out);
        }
        Ok(Self { clusters, all: Split { train: open(all_train)?, held_out: open(all_held_out)? } })
    }
}
