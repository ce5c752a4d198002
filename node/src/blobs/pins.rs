//! What the garbage collector must not touch.
//!
//! iroh-blobs lists the tags and then the temporary tags; a blob whose temporary tag turns into a named one between the
//! two listings is in neither and is swept (iroh-blobs issue 247). So the names are kept here as well, the collector is
//! given them at the start of each cycle, and a temporary tag is held until a cycle has begun that knows the name.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use iroh_blobs::Hash;
use iroh_blobs::api::TempTag;
use iroh_blobs::store::{ProtectCb, ProtectOutcome};

/// What the tags begin with that keep what has arrived of unfinished fetches.
pub(super) const PARTIAL: &str = "partial/";

/// The tag that keeps what has arrived of a blob that is being fetched for another tag.
pub(super) fn partial_tag(tag: &str) -> String {
    format!("{PARTIAL}{tag}")
}

/// The names that are kept, and what is not yet safe without its temporary tag.
#[derive(Default)]
pub(super) struct Pins(Mutex<State>);

#[derive(Default)]
struct State {
    tags: HashMap<String, Hash>,
    held: Vec<TempTag>,
}

impl Pins {
    /// A tag that was in the store when it was opened.
    pub(super) fn restore_tag(&self, name: &str, hash: Hash) {
        self.state().tags.insert(name.to_owned(), hash);
    }

    /// A tag that is about to be set; `held` protects the blob until the collector knows the name.
    pub(super) fn set_tag(&self, name: &str, held: TempTag) {
        let mut state = self.state();
        state.tags.insert(name.to_owned(), held.hash());
        state.held.push(held);
    }

    /// The names that begin with `prefix`.
    pub(super) fn names(&self, prefix: &str) -> Vec<String> {
        self.state().tags.keys().filter(|name| name.starts_with(prefix)).cloned().collect()
    }

    /// Tags that are about to be dropped.
    pub(super) fn drop_tags(&self, dropped: impl Fn(&str) -> bool) {
        self.state().tags.retain(|name, _| !dropped(name));
    }

    /// What the collector calls at the start of each cycle.
    pub(super) fn protector(self: &Arc<Self>) -> ProtectCb {
        let pins = self.clone();
        Arc::new(move |live| {
            let mut state = pins.state();
            live.extend(state.tags.values().copied());
            let released = std::mem::take(&mut state.held);
            drop(state);
            drop(released);
            Box::pin(async { ProtectOutcome::Continue })
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is a single call on one map: a panic elsewhere leaves nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use futures::StreamExt;
    use iroh_blobs::store::mem::MemStore;

    use super::*;

    /// What a collection that begins now is told to keep.
    async fn collect(pins: &Arc<Pins>) -> HashSet<Hash> {
        let mut live = HashSet::new();
        assert!(matches!(pins.protector()(&mut live).await, ProtectOutcome::Continue));
        live
    }

    #[tokio::test]
    async fn a_hash_is_pinned_as_long_as_one_name_holds_it() {
        let pins = Arc::new(Pins::default());
        let (one, two) = (Hash::new(b"one"), Hash::new(b"two"));
        pins.restore_tag("head/0", one);
        pins.restore_tag("mirror/0", one);
        pins.restore_tag("head/0", two);
        assert_eq!(collect(&pins).await, HashSet::from([one, two]));
        pins.drop_tags(|name| name.starts_with("mirror/"));
        assert_eq!(collect(&pins).await, HashSet::from([two]));
    }

    /// The cycle that runs while a tag is set knows only the temporary tag; the next one knows the name.
    #[tokio::test]
    async fn a_temporary_tag_is_held_until_a_cycle_knows_the_name() {
        let (store, pins) = (MemStore::new(), Arc::new(Pins::default()));
        let held = store.blobs().add_bytes(&b"fresh"[..]).temp_tag().await.unwrap();
        let hash = held.hash();
        pins.set_tag("head/0", held);
        let held_in_store = async || store.tags().list_temp_tags().await.unwrap().count().await;
        assert_eq!(held_in_store().await, 1);
        assert!(collect(&pins).await.contains(&hash));
        assert_eq!(held_in_store().await, 0);
    }
}
