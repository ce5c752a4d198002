//! Gossip: what is said once, and how it comes to everyone.
//!
//! In a *broadcast* every node hears every message after a delay, unless a fault says otherwise. [`hops`](super::hops) passes it from neighbour to
//! neighbour; [`cohorts`](super::cohorts) let nodes hear as one. In a broadcast and by hops a message's signatures are checked once, not once a
//! receiver: the first gate is pure, so all would find the same.

use std::{sync::Arc, time::Duration};

use anyhow::ensure;
use paris_protocol::{agent::Verdict, heard::Heard, part::Part};

use super::{
    queue::{Event, Place},
    scenario::Spread,
    world::World,
};

/// Receivers of one broadcast share their delay in as many groups.
const GROUPS: u32 = 8;
/// Old messages that are kept to be replayed.
const CAPTURED_MAX: usize = 256;

/// Something said to everyone.
pub(super) struct Message {
    pub(super) from: Place,
    pub(super) heard: Heard,
    pub(super) bytes: u64,
    /// Parts on which it carries a claim never heard before.
    pub(super) claimed: Vec<Part>,
}

impl World {
    /// A node says something to everyone: the laws on what may be said are checked, then it is spread.
    pub(super) fn publish(&mut self, place: Place, bytes: &[u8]) -> anyhow::Result<()> {
        let (id, parts) = (self.nodes[place as usize].id, self.part_count());
        let heard = match self.scenario.gossip {
            Spread::Cohorts => Heard::read_own(parts, id, bytes),
            Spread::Broadcast | Spread::Hops => Heard::read(self.run, parts, id, bytes),
        };
        let liar = self.nodes[place as usize].liar;
        let Some(heard) = heard else {
            ensure!(liar, "node {place} sent what no honest peer sends");
            return Ok(());
        };
        let mut claimed = Vec::new();
        for claim in heard.claims() {
            let name = claim.id(self.run, id);
            let reserved = self.nodes[place as usize].disk.log.get(&name).copied();
            ensure!(
                liar || reserved >= Some(claim.seq),
                "node {place} signed seq {} and reserved {reserved:?}",
                claim.seq
            );
            if self.ledger.signed(claim.part, claim.term, id, name, liar)? {
                claimed.push(claim.part);
            }
        }
        if let Some(vote) = heard.vote()
            && let Some(heir) = vote.heir.and_then(|heir| self.places.get(&heir).copied())
            && self.nodes[heir as usize].liar
        {
            let vote = vote.clone();
            self.hear_as_liar(heir, vote);
        }
        let message = Arc::new(Message { from: place, heard, bytes: bytes.len() as u64, claimed });
        if self.scenario.liars > 0.0 && !liar {
            self.captured.truncate(CAPTURED_MAX - 1);
            self.captured.push_front(message.clone());
        }
        self.spread(&message)
    }

    /// Sends a message on its way.
    pub(super) fn spread(&mut self, message: &Arc<Message>) -> anyhow::Result<()> {
        self.sent += 1;
        self.sent_bytes += message.bytes;
        let groups = match self.scenario.gossip {
            Spread::Hops => return self.set_out(message),
            Spread::Broadcast => GROUPS,
            Spread::Cohorts => self.groups(),
        };
        for group in 0..groups {
            for _ in 0..1 + u32::from(self.random.happens(self.scenario.duplicates)) {
                let delay = self.delay();
                self.queue.plan(self.now + delay, Event::Gossip { group, message: message.clone() });
            }
        }
        Ok(())
    }

    /// How long a message takes.
    pub(super) fn delay(&mut self) -> Duration {
        let span = match self.random.happens(self.scenario.late) {
            true => self.scenario.late_ms,
            false => self.scenario.delay_ms,
        };
        Duration::from_micros(self.random.between(span.map(|ms| ms * 1000)))
    }

    /// A broadcast reaches one in [`GROUPS`] of the nodes.
    pub(super) fn deliver(&mut self, group: u32, message: &Message) -> anyhow::Result<()> {
        if self.scenario.gossip == Spread::Cohorts {
            return self.deliver_to_cohorts(group, message);
        }
        let loss = self.scenario.loss;
        for place in (group..self.nodes.len() as u32).step_by(GROUPS as usize) {
            if place != message.from && self.reaches(message.from, place) && !self.random.happens(loss) {
                self.hear(place, message)?;
            }
        }
        Ok(())
    }

    /// One node hears a message.
    pub(super) fn hear(&mut self, place: Place, message: &Message) -> anyhow::Result<Option<Verdict>> {
        let verdict = self.input(place, |agent, now| agent.hear(now, &message.heard))?;
        self.check_verdict(place, message, verdict)?;
        if let Some(agent) = &self.nodes[place as usize].agent {
            for claim in message.heard.claims() {
                self.ledger.fence(place as usize, claim.part, agent.register())?;
            }
        }
        Ok(verdict)
    }

    /// A law: nobody rejects what an honest node sent.
    pub(super) fn check_verdict(
        &self,
        place: Place,
        message: &Message,
        verdict: Option<Verdict>,
    ) -> anyhow::Result<()> {
        let Message { from, .. } = message;
        let honest = !self.nodes[*from as usize].liar;
        ensure!(!honest || verdict != Some(Verdict::Reject), "node {place} rejects what honest node {from} sent");
        Ok(())
    }
}
