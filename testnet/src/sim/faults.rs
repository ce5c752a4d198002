//! Faults: what befalls the simulated world.

use std::time::Duration;

use paris_protocol::{
    claim::{Claim, Previous, Vote},
    codec::Wire,
    identity::Keypair,
    lease::Time,
    message::{Gossip, Presence},
    part::Part,
    signed::Verified,
};

use super::{
    queue::{Event, Place},
    world::World,
};

/// Between two lies of a liar.
const LIE_EVERY: Duration = Duration::from_secs(20);
/// Between two looks whether all agree after a cut.
const LOOK_EVERY: Duration = Duration::from_secs(5);

impl World {
    /// Plans the start of every node and all faults of the scenario until `calm_from`.
    pub(super) fn plan_faults(&mut self, calm_from: Time) {
        self.calm_from = calm_from;
        let nodes = self.nodes.len() as u32;
        for node in 0..nodes {
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
        for (partition, cut) in self.scenario.partitions.clone().iter().enumerate() {
            let at = Duration::from_secs(cut.at_s);
            let end = (at + Duration::from_secs(cut.for_s)).min(calm_from);
            if at < end {
                self.queue.plan(at, Event::Cut { partition });
                self.queue.plan(end, Event::Heal);
            }
        }
        self.plan_next(self.scenario.kills_per_hour, Event::Kill);
        self.plan_next(self.scenario.suspensions_per_hour, Event::Suspend);
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
        let nodes = self.nodes.len() as u64;
        match event {
            Event::Start { node } => self.start(node)?,
            Event::Kill => {
                let node = self.random.below(nodes) as Place;
                let down = Duration::from_secs(self.random.between(self.scenario.down_s));
                if self.nodes[node as usize].agent.is_some() {
                    self.note(|| format!("node {node} is killed"));
                    self.kill(node)?;
                    self.queue.plan((self.now + down).min(self.calm_from), Event::Start { node });
                }
                self.plan_next(self.scenario.kills_per_hour, Event::Kill);
            }
            Event::Suspend => {
                let node = self.random.below(nodes) as Place;
                let span = Duration::from_secs(self.random.between(self.scenario.suspended_s));
                if self.nodes[node as usize].agent.is_some() && !self.nodes[node as usize].suspended {
                    self.nodes[node as usize].suspended = true;
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
            Event::Cut { partition } => {
                let cut = self.scenario.partitions[partition];
                self.note(|| format!("the network is cut: {cut:?}"));
                self.cut = Some(cut.one_way);
                for node in 0..nodes as Place {
                    self.nodes[node as usize].cut = self.random.happens(cut.share);
                }
                for (one, other) in self.links() {
                    if self.nodes[one as usize].cut != self.nodes[other as usize].cut {
                        self.disconnect(one, other)?;
                    }
                }
            }
            Event::Heal => {
                self.note(|| "the network is whole".into());
                self.cut = None;
                let links = self.links();
                let were: Vec<bool> = self.nodes.iter_mut().map(|node| std::mem::take(&mut node.cut)).collect();
                for (one, other) in links {
                    if were[one as usize] != were[other as usize] {
                        self.connect(one, other)?;
                    }
                }
                self.queue.plan(self.now, Event::Look { healed: self.now });
            }
            Event::Look { healed } => match self.agrees() {
                true => self.ledger.spans.divergences.push(self.now - healed),
                false => self.queue.plan(self.now + LOOK_EVERY, Event::Look { healed }),
            },
            Event::Lie { node } => {
                for lie in self.lies(node) {
                    self.broadcast(node, &lie)?;
                }
                if self.now < self.calm_from {
                    self.queue.plan(self.now + LIE_EVERY, Event::Lie { node });
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn links(&self) -> Vec<(Place, Place)> {
        let of = |(one, node): (Place, &super::world::Node)| {
            node.neighbours.iter().map(move |other| (one, *other)).collect::<Vec<_>>()
        };
        (0..).zip(&self.nodes).flat_map(of).filter(|(one, other)| one < other).collect()
    }

    /// What a liar says, who knows all that an honest node knows: it pretends to have room, and one of: steals with its own word alone, claims in
    /// term 1 by name, jumps terms, votes against a live owner, wishes for what it will not claim.
    fn lies(&mut self, place: Place) -> Vec<Vec<u8>> {
        let secret = Keypair::from_secret(self.nodes[place as usize].secret());
        let id = secret.id();
        let parts: Vec<Part> = self.parts().collect();
        let part = parts[self.random.below(parts.len() as u64) as usize];
        let run = self.run;
        let current = self.honest().next().and_then(|(_, agent)| agent.register().current(part).cloned());
        let over = current.as_ref().map(|it| Previous { claim: it.id(run, it.author()), owner: it.author() });
        let vote = Verified::sign(&secret, run, Vote { part, claim: over.map(|it| it.claim), heir: Some(id) });
        let term = current.as_ref().map_or(1, |it| it.term + 1);
        let claim = |term, previous, evidence| Claim { part, term, previous, evidence, boot: 1, seq: 1 };
        let word = vec![vote.signed().clone()];
        let claims = match self.random.below(5) {
            0 => vec![claim(term, over, word)],
            1 => vec![claim(1, None, Vec::new())],
            2 => vec![claim(u64::MAX, over, word)],
            _ => Vec::new(),
        };
        let sign = |claim: Claim| Verified::sign(&secret, run, claim).signed().clone();
        let presence = Presence { capacity: 8, ..Presence::default() };
        let hello = Gossip::Beat { presence: presence.clone(), claims: Vec::new() };
        let lie = Gossip::Beat { presence, claims: claims.into_iter().map(sign).collect() };
        let said = [hello, lie, Gossip::Vote(vote.signed().clone())];
        said.iter().filter_map(|message| message.to_bytes().ok()).collect()
    }
}
