//! Shadow training: below a quorum a node may not claim, and need not idle. It trains the part without publishing, and when the votes
//! come it publishes what it reached, under its own claim.
//!
//! Nothing is published before: a checkpoint of a node that owns nothing could not be bounded against a thousand strangers.

use super::{Action, Agent};
use crate::{checkpoint::CheckpointId, lease::Time, part::Part};

impl Agent {
    /// Parts this node trains without owning them.
    pub fn shadows(&self) -> impl Iterator<Item = Part> + '_ {
        self.shadows.keys().copied()
    }

    /// Trains the part in its owner's absence, if it would be this node's, and there is room, and the best checkpoint can be had.
    pub(super) fn shadow(&mut self, now: Time, part: Part) {
        let busy = self.owned.len() + self.shadows.len() >= usize::from(self.settings.capacity);
        let waiting = self.free.get(&part).is_none_or(|free| now <= free.since + 2 * self.ttl());
        if busy || self.shadows.contains_key(&part) || self.former.contains_key(&part) {
            return;
        }
        if waiting {
            // Votes may be on their way.
            return self.wake_at(now + self.ttl());
        }
        match self.best(part).cloned() {
            None => self.begin_shadow(part, None),
            Some(best) if self.has_state(best.id()) => self.begin_shadow(part, Some(best.id())),
            Some(best) => {
                self.fetch(now, &best, true);
            }
        }
    }

    fn begin_shadow(&mut self, part: Part, from: Option<CheckpointId>) {
        self.shadows.insert(part, from);
        self.act(Action::Train { part, from });
    }

    /// Ends shadow training where the owner is back, another came, or this node needs the room for a part of its own.
    pub(super) fn end_shadows(&mut self, now: Time) {
        for part in self.shadows().collect::<Vec<_>>() {
            let room = self.owned.len() + self.shadows.len() <= usize::from(self.settings.capacity);
            if !self.owned.contains_key(&part) && (self.leaving || !room || !self.is_over(now, part)) {
                self.end_shadow(part);
            }
        }
    }

    fn end_shadow(&mut self, part: Part) {
        self.shadows.remove(&part);
        self.progress.remove(&part);
        self.act(Action::Stop(part));
    }

    /// For a part now owned: the checkpoint that its shadow training, still the best there is, began from. A shadow that others have overtaken is ended.
    pub(super) fn adopt_shadow(&mut self, part: Part) -> Option<Option<CheckpointId>> {
        let from = *self.shadows.get(&part)?;
        if self.best(part).map(|best| best.id()) == from {
            return self.shadows.remove(&part);
        }
        self.end_shadow(part);
        None
    }
}
