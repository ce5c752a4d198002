//! Checkpoints: from whom they are fetched, and when.
//!
//! Who is to train from one asks at once all who have it. Who only keeps up with a part spares its owner, who has training to do: the first replica fetches
//! from the owner, the others from replicas before them, as a tree grows, and whoever mirrors everything from the replicas. So an owner sends a
//! checkpoint once, however many keep it. For replicas that show nothing for half an interval, dead, stuck or lying, the next in order stand in: an owner
//! whose checkpoints nobody else holds would be thought idle.

use super::{Action, Agent, Mirror, millis};
use crate::{
    checkpoint::{Checkpoint, CheckpointId},
    identity::NodeId,
    lease::Time,
    message::Presence,
    part::Part,
    signed::Verified,
};

/// Fetches under way with which none is begun that merely keeps up with a part. Who is to train waits for no other fetch.
const FETCHES_MAX: usize = 4;

impl Agent {
    /// Fetches a checkpoint from all who have it, if it is not too early for another try. True if the fetch is under way.
    pub(super) fn fetch(&mut self, now: Time, checkpoint: &Verified<Checkpoint>, state: bool) -> bool {
        let providers = self.providers(checkpoint);
        self.fetch_from(now, checkpoint, state, providers)
    }

    fn fetch_from(
        &mut self,
        now: Time,
        checkpoint: &Verified<Checkpoint>,
        state: bool,
        providers: Vec<NodeId>,
    ) -> bool {
        let id = checkpoint.id();
        if self.holding.fetching.contains(&id) {
            return true;
        }
        if let Some((_, retry)) = self.holding.failed.get(&id)
            && now < *retry
        {
            let retry = *retry;
            self.next_look = self.next_look.min(retry);
            self.wake_at(retry);
            return false;
        }
        if providers.is_empty() {
            self.note_failure(now, id);
            return false;
        }
        self.holding.fetching.insert(id);
        self.act(Action::Fetch { checkpoint: checkpoint.clone(), state, providers });
        true
    }

    /// Live peers that say they hold a checkpoint; its author first, who is also asked when connected but not heard.
    fn providers(&self, checkpoint: &Verified<Checkpoint>) -> Vec<NodeId> {
        let (id, author) = (checkpoint.id(), checkpoint.author());
        let holding = self.others().filter(|(_, peer)| peer.presence.holds.contains(&id));
        let mut providers: Vec<_> = holding.map(|(node, _)| *node).collect();
        if self.connected.contains(&author) && !providers.contains(&author) {
            providers.push(author);
        }
        providers.sort_by_key(|node| *node != author);
        providers
    }

    /// Fetches a part's best checkpoint, if it is for this node to keep and its turn has come.
    pub(super) fn keep_up(&mut self, now: Time, best: &Verified<Checkpoint>) {
        let (id, part, me) = (best.id(), best.part, self.id());
        let order = self.replica_order(now, part, best.author());
        let replicas = order.len().min(self.manifest.ownership.replicas.into());
        let place = order.iter().position(|node| *node == me);
        let before = &order[..place.unwrap_or(replicas)];
        let holds = |node: &&NodeId| self.peers.all().get(*node).is_some_and(|it| it.presence.holds.contains(&id));
        let providers: Vec<_> = before.iter().filter(holds).copied().collect();
        let is_replica = place.is_some_and(|place| place < replicas);
        // One after the other.
        let eighths = place.map_or(4, |place| 4 + place.saturating_sub(replicas) as u32);
        let stands_in =
            place.is_some() && !is_replica && providers.len() < replicas && !self.is_early(now, id, eighths);
        let state = is_replica || stands_in;
        if !state && self.settings.mirror != Mirror::Everything || self.holding.has(id, state) {
            return;
        }
        // With every round of fetches twice as many have it, the owner counted.
        let enough = place.map_or(replicas, |place| (1 << (place + 1).ilog2()) - 1).min(replicas);
        if providers.len() < enough && self.has_earlier(part, state) && self.is_early(now, id, eighths) {
            return;
        }
        if self.holding.fetching.len() >= FETCHES_MAX {
            return;
        }
        match providers.is_empty() || self.holding.failed.contains_key(&id) {
            true => self.fetch(now, best, state),
            false => self.fetch_from(now, best, state, providers),
        };
    }

    /// True if any checkpoint of the part is here that is of use to who waits for the next.
    fn has_earlier(&self, part: Part, state: bool) -> bool {
        self.usable(part).any(|(earlier, _)| self.holding.has(earlier, state))
    }

    /// True for so many eighths of an interval from the first call: so long a checkpoint is left to those who come before this node.
    fn is_early(&mut self, now: Time, id: CheckpointId, eighths: u32) -> bool {
        let since = *self.holding.left.entry(id).or_insert(now);
        let until = since + millis(self.manifest.ownership.checkpoint_ms) * eighths / 8;
        if now < until {
            self.next_look = self.next_look.min(until);
        }
        now < until
    }

    /// A peer says what it has: what waits for it may be due.
    pub(super) fn note_holds(&mut self, said: &Presence) {
        if said.holds.iter().any(|id| self.holding.left.contains_key(id)) {
            self.look_soon();
        }
    }
}
