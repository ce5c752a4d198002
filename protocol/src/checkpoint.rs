//! Checkpoint records: what an owner says of the blobs it publishes.

use serde::{Deserialize, Serialize};

use crate::{
    claim::ClaimId,
    codec::Wire,
    hash::Hash,
    identity::NodeId,
    part::Part,
    signed::{Record, Verified},
};

/// The most bytes a checkpoint's blob may have.
pub const BLOB_BYTES_MAX: u64 = 64 << 30;

/// A blob by content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Blob {
    /// Its address.
    pub hash: Hash,
    /// Its length as claimed, bytes: unproven until the last chunk was verified.
    pub bytes: u64,
}

/// A checkpoint's name: the hash of its author and record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CheckpointId(pub Hash);

/// A point in a part's training that others can sample with and resume from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The part.
    pub part: Part,
    /// The claim under which it was trained: the fence.
    pub claim: ClaimId,
    /// That claim's term.
    pub term: u64,
    /// The checkpoint that training went on from.
    pub parent: Option<CheckpointId>,
    /// Optimiser steps since the part's beginning, over all owners.
    pub step: u64,
    /// Loss on the cluster's held-out shards as the author measured it.
    pub held_out_loss: f32,
    /// The averaged weights: enough to sample.
    pub weights: Blob,
    /// Parameters, moments and step: with the weights enough to resume.
    pub state: Blob,
}

impl Wire for Checkpoint {
    const NAME: &'static str = "checkpoint record";
    const LIMIT: usize = 1024;
}

impl Record for Checkpoint {
    const DOMAIN: &'static str = "checkpoint";
}

impl CheckpointId {
    /// The name of `checkpoint` if `author` signed it.
    pub(crate) fn of(author: NodeId, checkpoint: &Checkpoint) -> Self {
        // The fields are of fixed size, so a checkpoint always encodes.
        let bytes = checkpoint.to_bytes().unwrap_or_default();
        Self(Hash::of_fields("paris-node 1 checkpoint id", &[&author.0, &bytes]))
    }
}

impl Verified<Checkpoint> {
    /// The checkpoint's name.
    pub fn id(&self) -> CheckpointId {
        CheckpointId::of(self.author(), self)
    }
}
