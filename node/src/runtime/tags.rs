//! The names under which the blob store keeps what a run is made of. What carries none is swept.

use paris_protocol::{
    checkpoint::{Blob, Checkpoint, CheckpointId},
    hash::Hash,
    manifest::RunId,
    part::Part,
    signed::Verified,
};

/// What the names of blobs begin with whose checkpoint has no name yet.
pub(super) const NEW: &str = "new/";
/// What the names of all checkpoints' blobs begin with.
pub(super) const CHECKPOINTS: &str = "checkpoint/";
/// What the names of all kept mixtures' blobs begin with.
pub(super) const MIXTURES: &str = "mixture/";

/// The blobs of a checkpoint.
pub(super) const WEIGHTS: &str = "weights";
pub(super) const STATE: &str = "state";

/// A run's manifest, for those who join.
pub(crate) fn manifest(run: RunId) -> String {
    format!("manifest/{}", run.0)
}

/// A base checkpoint.
pub(crate) fn base(hash: &Hash) -> String {
    format!("base/{hash}")
}

/// A shard.
pub(crate) fn shard(hash: &Hash) -> String {
    format!("shard/{hash}")
}

/// A blob of a checkpoint that was made here, until the checkpoint has a name.
pub(super) fn new(part: Part, step: u64, blob: &str) -> String {
    format!("{NEW}{part}/{step}/{blob}")
}

/// What the names of one checkpoint's blobs begin with.
pub(super) fn checkpoint(id: CheckpointId) -> String {
    format!("{CHECKPOINTS}{}/", id.0)
}

/// A checkpoint's blobs by their names: the weights, and with `state` the state too.
pub(super) fn of_checkpoint(checkpoint: &Verified<Checkpoint>, state: bool) -> impl Iterator<Item = (String, Blob)> {
    let folder = self::checkpoint(checkpoint.id());
    let blobs = [(WEIGHTS, checkpoint.weights), (STATE, checkpoint.state)];
    blobs.into_iter().take(1 + usize::from(state)).map(move |(blob, named)| (format!("{folder}{blob}"), named))
}

/// The checkpoint of whose blobs this is a name.
pub(super) fn checkpoint_of(tag: &str) -> Option<CheckpointId> {
    let (id, _) = tag.strip_prefix(CHECKPOINTS)?.split_once('/')?;
    Some(CheckpointId(id.parse().ok()?))
}

/// What the names of one mixture's blobs begin with.
pub(super) fn mixture(hash: Hash) -> String {
    format!("{MIXTURES}{hash}/")
}
