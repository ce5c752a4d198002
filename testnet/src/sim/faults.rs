//! Faults: what befalls the simulated world.

use std::time::Duration;

use paris_protocol::{agent::InviteError, identity::NodeId, lease::Time};

use super::{
    queue::{Event, Place},
    scenario::{Partition, Spread},
    world::{ORGANISER, World},
};

/// Between two lies of a liar.
const LIE_EVERY: Duration = Duration::from_secs(20);
/// As many liars speak that often; more speak as much together, since what a node hears is bounded (`agent/quota`).
const LIARS_AT_ONCE: u32 = 64;
/// Between two attempts of the organiser to invite.
const INVITE_EVERY: Duration = Duration::from_secs(15);
/// Between two looks whether all agree after a cut.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl World {
    /// Plans the start of every node and all faults of the scenario until `calm_from`.
    pub(super) fn plan_faults(&mut self, calm_from: Time) {
        self.calm_from = calm_from;
        if self.scenario.by_invitation {
            self.queue.plan(INVITE_EVERY, Event::Invite);
        }
        for node in 0..self.nodes.len() as Place {
            let at = Duration::from_millis(self.random.below(self.scenario.start_within_s * 1000 + 1));
            match self.nodes[node as usize].liar {
                true => self.queue.plan(at + LIE_EVERY, Event::Lie { node }),
                false => self.queue.plan(at, Event::Start { node }),
            }
            if self.random.happens(self.scenario.leave) {
                let at = Duration::from_secs(self.scenario.leave_at_s) + at;
                self.queue.plan(at.min(calm_from), Event::Leave { node });
            }
        }
        for cut in self.scenario.partitions.clone() {
            self.plan_cut(cut);
        }
        self.plan_next(self.scenario.kills_per_hour, Event::Kill);
        self.plan_next(self.scenario.suspensions_per_hour, Event::Suspend);
        self.plan_next(self.scenario.restores_per_hour, Event::Restore);
    }

    /// Plans a cut and its end, or several where it flaps.
    fn plan_cut(&mut self, cut: Partition) {
        let mut at = Duration::from_secs(cut.at_s);
        let end = (at + Duration::from_secs(cut.for_s)).min(self.calm_from);
        let half = cut.flaps_s.map_or(Duration::MAX, |period| Duration::from_secs(period) / 2);
        while at < end {
            let whole = at.saturating_add(half).min(end);
            self.queue.plan(at, Event::Cut { cut });
            self.queue.plan(whole, Event::Heal);
            at = whole.saturating_add(half);
        }
    }

    /// Plans the next of faults that befall a share of the nodes an hour.
    fn plan_next(&mut self, share_per_hour: f64, event: Event) {
        let per_hour = share_per_hour * self.nodes.len() as f64;
        if per_hour > 0.0 {
            let mean_ms = (3_600_000.0 / per_hour) as u64;
            let at = self.now + Duration::from_millis(1 + self.random.below(2 * mean_ms + 1));
            if at < self.calm_from {
                self.queue.plan(at, event);
            }
        }
    }

    /// A fault happens.
    pub(super) fn befall(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Start { node } => self.start(node)?,
            Event::Invite => self.invite_all()?,
            Event::Kill => {
                let node = self.any_node();
                self.note(|| format!("node {node} is killed"));
                self.kill_for_a_while(node)?;
                self.plan_next(self.scenario.kills_per_hour, Event::Kill);
            }
            Event::Restore => {
                self.restore()?;
                self.plan_next(self.scenario.restores_per_hour, Event::Restore);
            }
            Event::Suspend => {
                let node = self.any_node();
                let span = Duration::from_secs(self.random.between(self.scenario.suspended_s));
                if self.nodes[node as usize].is_up() {
                    self.nodes[node as usize].suspended = true;
                    self.nodes[node as usize].dozed = true;
                    self.note(|| format!("node {node} is suspended"));
                    self.queue.plan((self.now + span).min(self.calm_from), Event::Resume { node });
                }
                self.plan_next(self.scenario.suspensions_per_hour, Event::Suspend);
            }
            // It may have been killed and started meanwhile.
            Event::Resume { node } if self.nodes[node as usize].suspended => {
                self.nodes[node as usize].suspended = false;
                self.note(|| format!("node {node} goes on"));
                self.input(node, |_, _| ())?;
            }
            Event::Resume { .. } => {}
            Event::Leave { node } => {
                self.note(|| format!("node {node} leaves"));
                self.input(node, |agent, now| agent.leave(now))?;
                self.nodes[node as usize].left = true;
            }
            Event::Cut { cut } => self.cut(cut)?,
            Event::Heal => self.heal()?,
            Event::Look { healed } => match self.agrees() {
                true => self.ledger.spans.divergences.push(self.now - healed),
                false => self.queue.plan(self.now + LOOK_EVERY, Event::Look { healed }),
            },
            Event::Lie { node } => {
                self.lie(node)?;
                if self.now < self.calm_from {
                    let liars = self.nodes.iter().filter(|node| node.liar).count() as u32;
                    self.queue.plan(self.now + LIE_EVERY * liars.div_ceil(LIARS_AT_ONCE), Event::Lie { node });
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// The organiser invites whoever it has not invited yet, as soon as it can.
    fn invite_all(&mut self) -> anyhow::Result<()> {
        let honest: Vec<NodeId> = self.nodes.iter().filter(|node| !node.liar).map(|node| node.id).collect();
        for node in honest {
            match self.input(ORGANISER, |agent, _| agent.invite(node))? {
                Some(Ok(_)) => {}
                // It is down, or has just started.
                None | Some(Err(InviteError::Listening)) => {
                    self.queue.plan(self.now + INVITE_EVERY, Event::Invite);
                    break;
                }
                Some(Err(error)) => anyhow::bail!("the organiser cannot invite: {error}"),
            }
        }
        Ok(())
    }

    fn any_node(&mut self) -> Place {
        self.random.below(self.nodes.len() as u64) as Place
    }

    fn kill_for_a_while(&mut self, node: Place) -> anyhow::Result<()> {
        let down = Duration::from_secs(self.random.between(self.scenario.down_s));
        if self.nodes[node as usize].agent.is_some() {
            self.kill(node)?;
            self.queue.plan((self.now + down).min(self.calm_from), Event::Start { node });
        }
        Ok(())
    }

    /// A node that owns parts dies, and starts with its disk as it was before it claimed them.
    fn restore(&mut self) -> anyhow::Result<()> {
        let owns = |place: &Place| {
            let node = &self.nodes[*place as usize];
            let of_this_life = node.disk.log.keys().any(|claim| !node.backup.log.contains_key(claim));
            node.is_up() && !node.left && of_this_life && node.trainers.values().any(|trainer| !trainer.shadow)
        };
        let owners: Vec<Place> = (0..self.nodes.len() as Place).filter(owns).collect();
        if owners.is_empty() {
            return Ok(());
        }
        let node = owners[self.random.below(owners.len() as u64) as usize];
        self.note(|| format!("node {node} is restored from an old copy of its disk"));
        self.kill_for_a_while(node)?;
        let restored = &mut self.nodes[node as usize];
        restored.disk = restored.backup.clone();
        restored.outdated = true;
        Ok(())
    }

    fn cut(&mut self, cut: Partition) -> anyhow::Result<()> {
        if self.cut.is_some() {
            // Two cuts at a time would need more than two sides.
            return Ok(());
        }
        self.note(|| format!("the network is cut: {cut:?}"));
        self.cut = Some(cut.one_way);
        let mut sides = Vec::with_capacity(self.nodes.len());
        for _ in 0..self.nodes.len() {
            sides.push(self.random.happens(cut.share));
        }
        if self.scenario.gossip == Spread::Cohorts {
            self.split_cohorts()?;
        }
        for (node, side) in self.nodes.iter_mut().zip(&sides) {
            node.cut = *side;
        }
        for (one, other) in self.links() {
            if sides[one as usize] != sides[other as usize] {
                self.disconnect(one, other)?;
            }
        }
        Ok(())
    }

    fn heal(&mut self) -> anyhow::Result<()> {
        if self.cut.take().is_none() {
            return Ok(());
        }
        self.note(|| "the network is whole".into());
        let links = self.links();
        let were: Vec<bool> = self.nodes.iter_mut().map(|node| std::mem::take(&mut node.cut)).collect();
        self.join_cohorts()?;
        for (one, other) in links {
            if were[one as usize] != were[other as usize] {
                self.connect(one, other)?;
            }
        }
        self.queue.plan(self.now, Event::Look { healed: self.now });
        Ok(())
    }

    fn links(&self) -> Vec<(Place, Place)> {
        let of = |(one, node): (Place, &super::node::Node)| {
            node.neighbours.iter().map(move |other| (one, *other)).collect::<Vec<_>>()
        };
        (0..).zip(&self.nodes).flat_map(of).filter(|(one, other)| one < other).collect()
    }
}
