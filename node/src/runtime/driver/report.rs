//! What the driver tells: the node's status, and the mixture as far as it is here.

use paris_protocol::{
    checkpoint::{Checkpoint, CheckpointId},
    codec::Wire,
    identity::NodeId,
    mixture::Mixture,
    part::Part,
    signed::Verified,
};

use super::{
    super::{AssembledPart, Assembly, NodeError},
    Driver,
};
use crate::{
    admission, hex,
    status::{CheckpointStatus, PartStatus, Status},
    store::HeldOutLoss,
};

impl Driver {
    pub(super) fn assembly(&self) -> Assembly {
        let (mut parts, mut checkpoints) = (Vec::new(), Vec::new());
        for part in self.agent.manifest().parts() {
            let Some(best) = self.agent.best(part) else { continue };
            // While the best is being fetched, the best that is here can be drawn with.
            let checkpoint = self.best_held(part).unwrap_or(best);
            parts.push(AssembledPart::of(checkpoint, best.step));
            checkpoints.push(checkpoint);
        }
        let run = self.agent.run();
        Assembly {
            run: run.0.to_string(),
            manifest: self.work.manifest_hex(),
            mixture: hex::encode(&Mixture::of(run, checkpoints).to_bytes().unwrap_or_default()),
            parts,
        }
    }

    /// Live peers, those that say they hold the checkpoint first.
    pub(super) fn holders_first(&self, id: Option<CheckpointId>) -> Vec<NodeId> {
        let holds = |node: &NodeId| id.is_some_and(|id| self.agent.peers()[node].presence.holds.contains(&id));
        let (mut holders, mut others): (Vec<_>, Vec<_>) = self.agent.peers().keys().copied().partition(holds);
        holders.append(&mut others);
        holders
    }

    fn best_held(&self, part: Part) -> Option<&Verified<Checkpoint>> {
        self.agent.register().checkpoints(part).into_iter().find(|checkpoint| self.agent.holds(checkpoint.id()))
    }

    pub(super) fn status(&self) -> Status {
        let agent = &self.agent;
        Status {
            version: Status::VERSION,
            node: agent.id().to_string(),
            run: agent.run().0.to_string(),
            run_name: agent.manifest().name.clone(),
            running: true,
            uptime_s: self.now().as_secs(),
            connections: agent.connections(),
            peers: agent.peers().len(),
            ticket: Some(self.work.ticket(agent.id(), &self.network.listen_addresses()).to_string()),
            not_admitted: admission::why_not(agent.register(), agent.manifest(), agent.id()),
            parts: agent.manifest().parts().map(|part| self.part_status(part)).collect(),
        }
    }

    fn part_status(&self, part: Part) -> PartStatus {
        let agent = &self.agent;
        let progress = agent.progress(part);
        let status = |checkpoint: &Verified<Checkpoint>| {
            CheckpointStatus::of(checkpoint, |id| agent.holders(id), |id| agent.holds(id))
        };
        let best = agent.best(part);
        let held = self.best_held(part);
        let measured = progress.map(|progress| progress.held_out_loss).filter(|loss| loss.is_finite());
        PartStatus {
            owner_is_live: agent.owner_is_live(self.now(), part),
            step: progress.map(|progress| progress.step),
            loss: progress.map(|progress| progress.loss),
            held_out_first: self.first_losses.get(&part).copied(),
            held_out_loss: measured.or(best.map(|best| best.held_out_loss)),
            checkpoint: best.map(status),
            held: held.map(status),
            training: self.keeping.summary(part).cloned(),
            ..PartStatus::of_register(agent.register(), part, agent.id())
        }
    }

    /// Keeps the earliest held-out loss heard of each part, so that the operator sees whether it falls.
    pub(super) fn note_losses(&mut self) -> Result<(), NodeError> {
        for part in self.agent.manifest().clone().parts() {
            let said = self.agent.progress(part).map(|it| HeldOutLoss { step: it.step, loss: it.held_out_loss });
            let best = self.agent.best(part).map(|it| HeldOutLoss { step: it.step, loss: it.held_out_loss });
            let seen = [said, best].into_iter().flatten().filter(|it| it.loss.is_finite()).min_by_key(|it| it.step);
            let known = self.first_losses.get(&part).map_or(u64::MAX, |first| first.step);
            if let Some(seen) = seen.filter(|seen| seen.step < known) {
                self.database.put_first_loss(self.agent.run(), part, &seen)?;
                self.first_losses.insert(part, seen);
            }
        }
        Ok(())
    }
}
