//! Trainers that train nothing, and blobs that are only names: what a node does with the parts that it owns.

use std::time::Duration;

use anyhow::ensure;
use paris_protocol::{
    agent::{FetchFailure, Made},
    checkpoint::{Blob, CheckpointId},
    hash::Hash,
    identity::NodeId,
    lease::Time,
    part::Part,
};

use super::{
    node::Node,
    queue::{Event, Place},
    world::World,
};

/// How long a fetch of a checkpoint takes.
pub(super) const FETCH: Duration = Duration::from_secs(2);
/// How long a trainer needs to write its last checkpoint.
const LAST_CHECKPOINT: Duration = Duration::from_millis(500);
const STEPS_A_SECOND: u64 = 10;

/// A trainer at work.
#[derive(Clone, Copy)]
pub(super) struct Trainer {
    from_step: u64,
    began: Time,
    generation: u64,
    /// Its node does not own the part.
    pub(super) shadow: bool,
}

impl Trainer {
    fn step(&self, now: Time) -> u64 {
        self.from_step + (now - self.began).as_millis() as u64 * STEPS_A_SECOND / 1000
    }
}

impl World {
    pub(super) fn train(&mut self, place: Place, part: Part, from: Option<CheckpointId>) -> anyhow::Result<()> {
        let node = &mut self.nodes[place as usize];
        if let Some(id) = from {
            ensure!(node.disk.held.get(&id) == Some(&true), "node {place} trains {part} from what it does not hold");
        }
        let from_step = from.map_or(0, |id| self.checkpoints[&id].1);
        let generation = self.queue.planned();
        let shadow = node.agent.as_ref().is_none_or(|agent| !agent.owned().any(|owned| owned == part));
        let trainer = Trainer { from_step, began: self.now, generation, shadow };
        ensure!(node.trainers.insert(part, trainer).is_none(), "node {place} has two trainers of {part}");
        if !shadow {
            self.ledger.begins(self.now, part, place);
        }
        let word = if shadow { "shadow-trains" } else { "trains" };
        self.note(|| format!("node {place} {word} {part} from step {from_step}"));
        // Intervals of different trainers do not keep step with each other.
        let every = self.interval();
        let first = Duration::from_millis(self.random.below(every.as_millis() as u64));
        self.queue.plan(self.now + every + first, Event::Checkpoint { node: place, part, generation });
        Ok(())
    }

    pub(super) fn stop(&mut self, place: Place, part: Part) -> anyhow::Result<()> {
        let (now, robbed) = (self.now, self.is_robbed(place, part));
        let node = &mut self.nodes[place as usize];
        let trainer = node.trainers.remove(&part);
        let trainer = trainer.ok_or_else(|| anyhow::anyhow!("node {place} stops {part}, which it does not train"))?;
        let (life, step) = (node.life, trainer.step(now));
        if !trainer.shadow {
            self.ledger.ends(now, part, false);
            self.robbed += u64::from(robbed);
            ensure!(!robbed || !self.scenario.is_reliable(), "a liar took {part} from node {place}, which lives");
        }
        self.note(|| format!("node {place} stops {part}"));
        self.queue.plan(now + LAST_CHECKPOINT, Event::LastCheckpoint { node: place, life, part, step });
        Ok(())
    }

    /// True if the part's current claim, as the node sees it, is a liar's.
    fn is_robbed(&self, place: Place, part: Part) -> bool {
        let current = self.register_of(place).and_then(|register| register.current(part));
        current.is_some_and(|claim| self.places.get(&claim.author()).is_some_and(|it| self.nodes[*it as usize].liar))
    }

    fn interval(&self) -> Duration {
        Duration::from_millis(self.manifest.ownership.checkpoint_ms.into())
    }

    pub(super) fn checkpoint_due(&mut self, place: Place, part: Part, generation: u64) -> anyhow::Result<()> {
        let node = &self.nodes[place as usize];
        let Some(trainer) = node.trainers.get(&part).filter(|trainer| trainer.generation == generation) else {
            return Ok(());
        };
        let step = trainer.step(self.now);
        let next = self.now + self.interval();
        self.queue.plan(next, Event::Checkpoint { node: place, part, generation });
        match node.suspended {
            true => Ok(()),
            false => self.checkpoint(place, part, step),
        }
    }

    pub(super) fn checkpoint(&mut self, place: Place, part: Part, step: u64) -> anyhow::Result<()> {
        let blob = |kind: u8| Blob {
            hash: Hash::of_fields("blob", &[&[kind], &place.to_le_bytes(), &step.to_le_bytes()]),
            bytes: 1,
        };
        let made = Made { step, held_out_loss: 1.0, weights: blob(0), state: blob(1) };
        // What follows at once may be a handover, and a stop: the checkpoint is on the disk before.
        let Some(Some(id)) = self.input(place, |agent, now| agent.checkpointed(now, part, made))? else {
            return Ok(());
        };
        self.checkpoints.insert(id, (part, step));
        if self.nodes[place as usize].agent.as_ref().is_some_and(|agent| agent.holds(id)) {
            self.hold(place, id, true);
        }
        let record = self.register_of(place).and_then(|register| register.checkpoint(part, id));
        if let Some(term) = record.map(|record| record.term) {
            self.ledger.published(part, term, step, id);
        }
        Ok(())
    }

    /// A checkpoint's blobs are on a node's disk.
    pub(super) fn hold(&mut self, place: Place, id: CheckpointId, state: bool) {
        let held = &mut self.nodes[place as usize].disk.held;
        let news = !held.contains_key(&id);
        *held.entry(id).or_default() |= state;
        if let Some((part, _)) = self.checkpoints.get(&id).filter(|_| news) {
            *self.holders.entry(*part).or_default().entry(place).or_default() += 1;
        }
    }

    /// They are there no more.
    pub(super) fn forget(&mut self, place: Place, id: CheckpointId) {
        let held = self.nodes[place as usize].disk.held.remove(&id).is_some();
        if let Some((part, _)) = self.checkpoints.get(&id).filter(|_| held)
            && let Some(of_part) = self.holders.get_mut(part)
            && let Some(count) = of_part.get_mut(&place)
        {
            *count -= 1;
            if *count == 0 {
                of_part.remove(&place);
            }
        }
    }

    pub(super) fn fetch(
        &mut self,
        place: Place,
        life: u32,
        id: CheckpointId,
        state: bool,
        providers: &[NodeId],
    ) -> anyhow::Result<()> {
        if self.nodes[place as usize].life != life {
            return Ok(());
        }
        let has = |provider: &NodeId| {
            let provider = self.places[provider];
            let held = self.nodes[provider as usize].disk.held.get(&id);
            self.reaches(place, provider) && self.reaches(provider, place) && held.is_some_and(|has| *has || !state)
        };
        let done = providers.iter().any(has);
        if done {
            self.hold(place, id, state);
        }
        self.input(place, |agent, now| match done {
            true => agent.fetched(now, id, state),
            false => agent.fetch_failed(now, id, FetchFailure::Unavailable),
        })
        .map(drop)
    }

    /// A shadow whose part its node came to own is a trainer like any other.
    pub(super) fn note_adopted(&mut self, place: Place) {
        let Node { agent: Some(agent), trainers, .. } = &mut self.nodes[place as usize] else { return };
        if !trainers.values().any(|trainer| trainer.shadow) {
            return;
        }
        let shadows: Vec<Part> = agent.shadows().collect();
        let mut adopted = Vec::new();
        for (part, trainer) in trainers.iter_mut().filter(|(part, it)| it.shadow && !shadows.contains(part)) {
            trainer.shadow = false;
            adopted.push(*part);
        }
        for part in adopted {
            self.ledger.begins(self.now, part, place);
            self.note(|| format!("node {place} owns {part}, which it trained in the shadow"));
        }
    }
}
