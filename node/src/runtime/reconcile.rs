//! At every start: what the database says is held, what the blob store has, and what the register still lists are made one.
//!
//! The blob store is disposable and the process may have died between any two writes, so neither is believed alone.

use std::{collections::HashSet, sync::Arc};

use paris_protocol::{agent::Memory, checkpoint::CheckpointId, manifest::Manifest, manifest::RunId};

use super::{
    NodeError,
    tags::{self, CHECKPOINTS, NEW},
};
use crate::{blobs::Blobs, store::Database};

/// What the agent should know at its start: records that still count, and checkpoints whose blobs are here.
pub(super) async fn reconcile(
    database: &Database,
    blobs: &Blobs,
    run: RunId,
    manifest: &Arc<Manifest>,
) -> Result<Memory, NodeError> {
    let register = database.register(run, manifest.clone())?;
    database.prune_checkpoints(run, &register)?;
    let mut memory = database.memory(run)?;
    let mut here = Vec::new();
    for (id, state) in memory.held {
        let mut parts = manifest.parts();
        let listed = parts.find_map(|part| register.checkpoint(part, id));
        let is_here = match listed {
            Some(it) => blobs.has(it.weights.hash.0).await? && (!state || blobs.has(it.state.hash.0).await?),
            None => false,
        };
        match is_here {
            true => here.push((id, state)),
            false => database.forget(run, id)?,
        }
    }
    let kept: HashSet<String> = here.iter().map(|(id, _): &(CheckpointId, bool)| tags::checkpoint(*id)).collect();
    for tag in blobs.tags(CHECKPOINTS) {
        let of = &tag[..tag.rfind('/').map_or(tag.len(), |end| end + 1)];
        if !kept.contains(of) {
            blobs.untag(&tag).await?;
        }
    }
    // Stored by a trainer, and never signed.
    blobs.untag_prefix(NEW).await?;
    memory.held = here;
    Ok(memory)
}
