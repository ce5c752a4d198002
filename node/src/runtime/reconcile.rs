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
    let listed = |id: CheckpointId| manifest.parts().find_map(|part| register.checkpoint(part, id));
    let named: HashSet<String> = blobs.tags(CHECKPOINTS).into_iter().collect();
    let (mut here, mut kept) = (Vec::new(), HashSet::new());
    for (id, state) in memory.held {
        let is_here = match listed(id) {
            Some(it) => blobs.has(it.weights.hash.0).await? && (!state || blobs.has(it.state.hash.0).await?),
            None => false,
        };
        let Some(checkpoint) = listed(id).filter(|_| is_here) else {
            database.forget(run, id)?;
            continue;
        };
        for (tag, blob) in tags::of_checkpoint(checkpoint, state) {
            // The process may have died after it was signed and before it had its name.
            if !named.contains(&tag) {
                blobs.tag(&tag, blob.hash.0).await?;
            }
        }
        here.push((id, state));
        kept.insert(id);
    }
    // An unfinished fetch goes on where it was, if what it fetches is listed still.
    let unfinished = blobs.unfinished(CHECKPOINTS);
    kept.extend(unfinished.iter().filter_map(|tag| tags::checkpoint_of(tag)).filter(|id| listed(*id).is_some()));
    let is_surplus = |tag: &&String| tags::checkpoint_of(tag).is_none_or(|id| !kept.contains(&id));
    // Earlier versions named what is unfinished by its hash alone.
    let nameless = blobs.unfinished("").into_iter().filter(|tag| !tag.contains('/'));
    for tag in named.iter().chain(&unfinished).filter(is_surplus).cloned().chain(nameless) {
        blobs.untag(&tag).await?;
    }
    // Stored by a trainer, and never signed.
    blobs.untag_prefix(NEW).await?;
    memory.held = here;
    Ok(memory)
}

#[cfg(test)]
mod tests {
    use paris_protocol::{checkpoint::Blob, hash::Hash, part::Part};

    use super::{super::testing, *};
    use crate::store::DataDir;

    const PART: Part = Part::Expert(0);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_held_keeps_a_name_and_what_is_listed_its_unfinished_fetch() {
        let folder = tempfile::tempdir().unwrap();
        let dir = DataDir::new(folder.path());
        Database::init(&dir).unwrap();
        let (database, blobs) = (Database::open(&dir).unwrap(), testing::blobs(&dir).await);
        let manifest = testing::shared(testing::manifest(1, 1));
        let run = manifest.id().unwrap();
        database.remember_claim(run, testing::claim(&manifest, PART).signed()).unwrap();
        let publish = |step, weights, state| {
            let checkpoint = testing::checkpoint(&manifest, PART, step, (weights, state));
            database.remember_checkpoint(run, checkpoint.signed()).unwrap();
            checkpoint.id()
        };
        let store = async |tag: &str| {
            let stored = blobs.add_bytes(tag, tag.into()).await.unwrap();
            Blob { hash: Hash(stored.hash), bytes: stored.size }
        };

        // Signed, and killed before its blobs had its name.
        let [weights, state] = [tags::WEIGHTS, tags::STATE].map(|blob| tags::new(PART, 7, blob));
        let held = publish(7, store(&weights).await, store(&state).await);
        database.hold(run, held, true).unwrap();
        store(&tags::new(PART, 8, tags::WEIGHTS)).await;
        // Of two others the weights are here, and a part of the state.
        let absent = Blob { hash: Hash::of(b"absent"), bytes: 9 };
        let listed = tags::checkpoint(publish(6, absent, absent));
        let unlisted = tags::checkpoint(CheckpointId(Hash::of(b"unlisted")));
        for folder in [&listed, &unlisted] {
            store(&format!("{folder}weights")).await;
            store(&format!("partial/{folder}state")).await;
        }
        let shard = Hash::of(b"shard");
        store(&format!("partial/{}", tags::shard(&shard))).await;
        store(&format!("partial/{shard}")).await;

        let memory = reconcile(&database, &blobs, run, &manifest).await.unwrap();
        assert_eq!(memory.held, [(held, true)]);
        let held = tags::checkpoint(held);
        let kept = [
            format!("{held}weights"),
            format!("{held}state"),
            format!("{listed}weights"),
            format!("partial/{listed}state"),
            format!("partial/{}", tags::shard(&shard)),
        ];
        assert_eq!(blobs.tags("").into_iter().collect::<HashSet<_>>(), kept.into());
    }
}
