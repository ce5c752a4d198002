//! The laws that hold when faults have ceased for long enough, and what is measured at the end.

use anyhow::ensure;
use paris_protocol::{checkpoint::CheckpointId, identity::NodeId, part::Part};

use super::{report::Report, world::World};

impl World {
    /// True if all living honest nodes name the same owners.
    pub(super) fn agrees(&self) -> bool {
        let registers = self.registers();
        self.parts().all(|part| {
            let mut named = registers.iter().map(|register| register.current_id(part));
            let first = named.next();
            named.all(|other| Some(other) == first)
        })
    }

    /// Checks the laws of rest if `check`, and fills in what was measured.
    pub(super) fn close(mut self, mut report: Report, check: bool) -> anyhow::Result<Report> {
        let seconds = self.now.as_secs_f64();
        report.hours = seconds / 3600.0;
        report.scenario = self.scenario.name.clone();
        report.gossip = self.scenario.gossip;
        report.sent_per_node_second = self.sent as f64 / seconds / self.nodes.len() as f64;
        report.heard_bytes_per_second = self.sent_bytes as f64 / seconds;
        report.copies_per_node_second = self.flights.copies as f64 / seconds / self.nodes.len() as f64;
        report.set_hops(&mut self.flights.spans);
        report.events = self.events;
        report.halted = self.halted;
        report.squatted = self.squatted;
        report.robbed = self.robbed;
        report.checkpoints_lost = self.lost() as u64;
        if check {
            self.check_rest(&report)?;
        }
        let now = self.now;
        self.ledger.close(now, &mut report);
        Ok(report)
    }

    /// Best published checkpoints that no living honest node knows.
    fn lost(&self) -> usize {
        let registers = self.registers();
        let lost = |(part, id): &(Part, CheckpointId)| {
            !registers.iter().any(|register| register.checkpoint(*part, *id).is_some())
        };
        self.ledger.best().filter(lost).count()
    }

    fn check_rest(&self, report: &Report) -> anyhow::Result<()> {
        ensure!(self.agrees(), "the nodes name different owners long after the last fault");
        ensure!(report.checkpoints_lost == 0, "{} best checkpoints are lost", report.checkpoints_lost);
        let wrong = self.ledger.not_owned_once();
        ensure!(wrong.is_empty(), "long after the last fault not one node trains each of {wrong:?}");
        let outdated = self.nodes.iter().position(|node| node.outdated && node.agent.is_some());
        ensure!(outdated.is_none(), "node {outdated:?} goes on from an old copy of its disk");
        let liars: Vec<NodeId> = self.nodes.iter().filter(|node| node.liar).map(|node| node.id).collect();
        let registers = self.registers();
        let Some(register) = registers.first() else { return Ok(()) };
        let stolen = self.parts().find(|part| register.current(*part).is_some_and(|it| liars.contains(&it.author())));
        // With a quorum of one every key is trusted.
        ensure!(stolen.is_none() || self.scenario.times.quorum < 2, "a liar owns {stolen:?}");
        Ok(())
    }
}
