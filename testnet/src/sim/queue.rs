//! What happens when: events ordered by time, and those of one moment by when they were planned.

use std::{cmp::Reverse, collections::BinaryHeap, sync::Arc};

use paris_protocol::{checkpoint::CheckpointId, identity::NodeId, lease::Time, part::Part};

use super::{gossip::Message, scenario::Partition};

/// A node by its place in the world.
pub(super) type Place = u32;

/// Something that happens. `life` says in which life of its node: what was meant for an earlier one is void.
pub(super) enum Event {
    Tick {
        node: Place,
    },
    /// What a cohort's ear asked for.
    Ear {
        cohort: usize,
    },
    /// In a cohort the turns at parts that became free are over for those who go first.
    Turns {
        cohort: usize,
        parts: Vec<Part>,
    },
    /// A broadcast reaches a group of nodes.
    Gossip {
        group: u32,
        message: Arc<Message>,
    },
    /// A copy of a message reaches a neighbour.
    Hop {
        from: Place,
        to: Place,
        flight: usize,
    },
    Request {
        to: Place,
        from: Place,
        request: Vec<u8>,
    },
    Answer {
        to: Place,
        from: NodeId,
        answer: Vec<u8>,
    },
    Fetch {
        node: Place,
        life: u32,
        id: CheckpointId,
        state: bool,
        providers: Vec<NodeId>,
    },
    Checkpoint {
        node: Place,
        part: Part,
        generation: u64,
    },
    LastCheckpoint {
        node: Place,
        life: u32,
        part: Part,
        step: u64,
    },
    Start {
        node: Place,
    },
    /// Dials another neighbour, if it has few.
    Dial {
        node: Place,
    },
    /// The organiser invites all that do not lie.
    Invite,
    Kill,
    Suspend,
    /// An old copy of a disk comes back.
    Restore,
    Resume {
        node: Place,
    },
    Leave {
        node: Place,
    },
    Cut {
        cut: Partition,
    },
    Heal,
    /// Looks whether all agree, after a cut was healed.
    Look {
        healed: Time,
    },
    Lie {
        node: Place,
    },
}

/// Events to come.
#[derive(Default)]
pub(super) struct Queue {
    heap: BinaryHeap<Reverse<(Time, u64, usize)>>,
    /// Where events lie, so that the heap moves small things.
    slots: Vec<Option<Event>>,
    vacant: Vec<usize>,
    planned: u64,
}

impl Queue {
    pub(super) fn plan(&mut self, at: Time, event: Event) {
        self.planned += 1;
        let slot = match self.vacant.pop() {
            Some(slot) => {
                self.slots[slot] = Some(event);
                slot
            }
            None => {
                self.slots.push(Some(event));
                self.slots.len() - 1
            }
        };
        self.heap.push(Reverse((at, self.planned, slot)));
    }

    pub(super) fn next(&mut self) -> Option<(Time, Event)> {
        let Reverse((at, _, slot)) = self.heap.pop()?;
        self.vacant.push(slot);
        self.slots[slot].take().map(|event| (at, event))
    }

    /// How many events were planned so far: a number that no two of them share.
    pub(super) fn planned(&self) -> u64 {
        self.planned
    }
}
