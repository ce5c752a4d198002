//! Cohorts: nodes that hear the same at the same moments, and so need it in memory and in time once.
//!
//! An *ear*, an agent that owns nothing, listens for each cohort. A node is lent what its ear heard whenever it has something to decide: its own
//! heartbeat, its turn, a checkpoint that falls to it; and it is asked to decide only then. So the real agents decide, and a heartbeat that changes
//! nothing costs a few calls instead of one a node.
//!
//! Of a part newly free those look at once whose turn comes soon, reckoned by the ear as each would; all others when those turns are over.
//!
//! What is given up: within a cohort nodes hear each other at once; no message is lost to one of them alone; a node that starts or
//! wakes knows at once what its cohort knows, as if its first exchange took no time; a node that leaves a checkpoint to replicas before it learns
//! that they have it when it next looks; and signatures are not checked, and heartbeats
//! not signed anew.

use std::{collections::BTreeSet, time::Duration};

use anyhow::ensure;
use paris_protocol::{
    agent::{Agent, Memory, Mirror, Settings},
    hash::Hash,
    identity::Keypair,
    lease::Time,
    part::Part,
    register::Register,
};

use super::{
    gossip::Message,
    queue::{Event, Place},
    scenario::Spread,
    world::World,
};

/// Cohorts of a whole network.
const COHORTS: u32 = 2;
/// How many look at once when a part becomes free: those whose turn comes first.
const LOOK_AT_ONCE: u32 = 64;

/// One ear, and what it last thought free.
pub(super) struct Cohort {
    ear: Agent,
    free: BTreeSet<Part>,
    next_tick: Time,
}

impl World {
    /// One ear for every cohort.
    pub(super) fn open_cohorts(&mut self) -> anyhow::Result<()> {
        if self.scenario.gossip == Spread::Cohorts {
            for number in 0..self.groups() {
                let cohort = self.new_cohort(number)?;
                self.cohorts.push(cohort);
            }
        }
        Ok(())
    }

    fn new_cohort(&self, number: u32) -> anyhow::Result<Cohort> {
        let keypair = Keypair::from_secret(&Hash::of_fields("ear", &[&number.to_le_bytes()]).0);
        let settings = Settings { capacity: 0, mirror: Mirror::Replicas };
        let ear = Agent::new(self.now, keypair, self.manifest.clone(), settings, 1, Memory::default())?;
        Ok(Cohort { ear, free: BTreeSet::new(), next_tick: Time::MAX })
    }

    /// In how many cohorts a whole network hears.
    pub(super) fn groups(&self) -> u32 {
        COHORTS.min(self.nodes.len() as u32)
    }

    /// The cohort in which a node hears: that of its group, on its side of a cut.
    pub(super) fn cohort_of(&self, place: Place) -> Option<usize> {
        if self.cohorts.is_empty() {
            return None;
        }
        let (group, sides) = (place % self.groups(), self.cohorts.len() as u32 / self.groups());
        let smaller = sides > 1 && self.nodes[place as usize].cut;
        Some((group + u32::from(smaller) * self.groups()) as usize)
    }

    /// Lends a node what its cohort heard, or takes it back.
    pub(super) fn exchange_hearing(&mut self, place: Place) {
        if let Some(cohort) = self.cohort_of(place)
            && let Some(agent) = &mut self.nodes[place as usize].agent
        {
            agent.exchange_hearing(&mut self.cohorts[cohort].ear);
        }
    }

    /// What a node knows, its own or its cohort's.
    pub(super) fn register_of(&self, place: Place) -> Option<&Register> {
        match self.cohort_of(place) {
            Some(cohort) => Some(self.cohorts[cohort].ear.register()),
            None => self.nodes[place as usize].agent.as_ref().map(Agent::register),
        }
    }

    /// Every register of living honest nodes, each at least once.
    pub(super) fn registers(&self) -> Vec<&Register> {
        match self.cohorts.is_empty() {
            true => self.nodes.iter().filter_map(|node| node.agent.as_ref().map(Agent::register)).collect(),
            false => self.cohorts.iter().map(|cohort| cohort.ear.register()).collect(),
        }
    }

    /// Who hears in a cohort.
    fn members(&self, cohort: usize) -> Vec<Place> {
        let groups = self.groups();
        let of_group = (cohort as u32 % groups..self.nodes.len() as u32).step_by(groups as usize);
        of_group.filter(|place| self.nodes[*place as usize].is_up() && self.cohort_of(*place) == Some(cohort)).collect()
    }

    /// A message reaches a group: those on the sender's side of a cut, or both.
    pub(super) fn deliver_to_cohorts(&mut self, group: u32, message: &Message) -> anyhow::Result<()> {
        for cohort in (group as usize..self.cohorts.len()).step_by(self.groups() as usize) {
            let smaller = cohort >= self.groups() as usize;
            if self.crosses(self.nodes[message.from as usize].cut, smaller) {
                self.hear_in_cohort(cohort, message)?;
            }
        }
        Ok(())
    }

    fn hear_in_cohort(&mut self, cohort: usize, message: &Message) -> anyhow::Result<()> {
        let now = self.now;
        let Cohort { ear, .. } = &mut self.cohorts[cohort];
        let verdict = ear.hear(now, &message.heard);
        for claim in message.heard.claims() {
            self.ledger.fence(self.nodes.len() + cohort, claim.part, ear.register())?;
        }
        self.check_verdict(message.from, message, Some(verdict))?;
        let concerned = self.concerned(cohort, message);
        self.tick_ear(cohort)?;
        for place in concerned {
            self.input(place, |agent, _| {
                if message.heard.checkpoint().is_some() {
                    agent.heard_of_a_checkpoint();
                }
            })?;
        }
        Ok(())
    }

    /// Members of a cohort who may have something to do about a message at once.
    fn concerned(&mut self, cohort: usize, message: &Message) -> Vec<Place> {
        let (now, heard) = (self.now, &message.heard);
        if let Some(checkpoint) = heard.checkpoint() {
            let (part, author) = (checkpoint.part, checkpoint.author());
            let replicas = self.cohorts[cohort].ear.replicas(now, part, author);
            let mut places: BTreeSet<Place> = replicas.iter().filter_map(|id| self.places.get(id)).copied().collect();
            places.extend(self.holders.get(&part).into_iter().flatten().map(|(place, _)| *place));
            places.retain(|place| self.cohort_of(*place) == Some(cohort));
            return places.into_iter().collect();
        }
        let parts: Vec<Part> = message.claimed.iter().copied().chain(heard.vote().map(|vote| vote.part)).collect();
        if parts.is_empty() {
            return Vec::new();
        }
        let heir = heard.vote().and_then(|vote| vote.heir).and_then(|heir| self.places.get(&heir).copied());
        let minds = |place: &Place| {
            let agent = self.nodes[*place as usize].agent.as_ref();
            agent.is_some_and(|agent| parts.iter().any(|part| agent.minds(now, *part)))
        };
        let groups = self.groups() as usize;
        let of_group = (cohort % groups..self.nodes.len()).step_by(groups);
        let may = of_group.filter(|place| self.minds_from[*place] <= now).map(|place| place as Place);
        let mut concerned: Vec<Place> = may.filter(minds).chain(heir).collect();
        concerned.retain(|place| self.cohort_of(*place) == Some(cohort));
        concerned
    }

    /// The ear does what is due; if it thinks a part free that it did not think free before, all its members look.
    pub(super) fn tick_ear(&mut self, cohort: usize) -> anyhow::Result<()> {
        let Cohort { ear, free, next_tick } = &mut self.cohorts[cohort];
        ear.tick(self.now);
        // It owns nothing, and what it says nobody hears.
        ear.take_actions().for_each(drop);
        let deadline = ear.deadline();
        ensure!(deadline > self.now, "the ear of cohort {cohort} is due again at once, and would spin");
        if *next_tick != deadline {
            *next_tick = deadline;
            self.queue.plan(deadline, Event::Ear { cohort });
        }
        if free.is_empty() && ear.free_parts().next().is_none() {
            return Ok(());
        }
        let now_free: BTreeSet<Part> = ear.free_parts().collect();
        let news: Vec<Part> = now_free.difference(free).copied().collect();
        *free = now_free;
        match news.is_empty() {
            true => Ok(()),
            false => self.look_in_turn(cohort, &news),
        }
    }

    /// Those whose turn at the parts comes soon look at once; the others if the parts are free after that.
    fn look_in_turn(&mut self, cohort: usize, parts: &[Part]) -> anyhow::Result<()> {
        let (now, members, capacity) = (self.now, self.members(cohort), self.scenario.capacity);
        if parts.len() * LOOK_AT_ONCE as usize > members.len() {
            // Among so many parts about everyone comes early at one.
            return members.into_iter().try_for_each(|place| self.input(place, |_, _| ()).map(drop));
        }
        let mut looking = BTreeSet::new();
        for part in parts {
            let willing = members.iter().map(|place| (self.nodes[*place as usize].id, capacity));
            let first = self.cohorts[cohort].ear.first_in_turn(now, *part, willing, LOOK_AT_ONCE);
            looking.extend(first.iter().map(|id| self.places[id]));
        }
        for place in looking {
            self.input(place, |_, _| ())?;
        }
        let turns = Duration::from_millis(self.scenario.times.rank_delay_ms.into()) * LOOK_AT_ONCE;
        self.queue.plan(now + turns, Event::Turns { cohort, parts: parts.to_vec() });
        Ok(())
    }

    /// The turns of those who go first are over: if one of the parts is still free, everyone looks.
    pub(super) fn turns_are_over(&mut self, cohort: usize, parts: &[Part]) -> anyhow::Result<()> {
        let Some(Cohort { free, .. }) = self.cohorts.get(cohort) else { return Ok(()) };
        if parts.iter().any(|part| free.contains(part)) {
            for place in self.members(cohort) {
                self.input(place, |_, _| ())?;
            }
        }
        Ok(())
    }

    /// The moment for which an ear last asked has come.
    pub(super) fn ear_due(&mut self, cohort: usize) -> anyhow::Result<()> {
        match self.cohorts.get(cohort) {
            Some(it) if it.next_tick == self.now => self.tick_ear(cohort),
            _ => Ok(()),
        }
    }

    /// The network is cut: the smaller side hears for itself from now on.
    pub(super) fn split_cohorts(&mut self) -> anyhow::Result<()> {
        for group in 0..self.cohorts.len() {
            let mut smaller = self.new_cohort(group as u32)?;
            smaller.ear.copy_hearing(&self.cohorts[group].ear);
            smaller.ear.tick(self.now);
            self.cohorts.push(smaller);
        }
        for cohort in 0..self.cohorts.len() {
            self.tick_ear(cohort)?;
        }
        Ok(())
    }

    /// The network is whole: both sides exchange registers, and hear as one again.
    pub(super) fn join_cohorts(&mut self) -> anyhow::Result<()> {
        let groups = self.groups() as usize;
        if self.cohorts.len() <= groups {
            return Ok(());
        }
        for smaller in self.cohorts.split_off(groups) {
            for larger in &mut self.cohorts {
                larger.ear.learn_from(self.now, &smaller.ear);
            }
        }
        for cohort in 0..groups {
            for place in self.members(cohort) {
                self.input(place, |_, _| ())?;
            }
            self.tick_ear(cohort)?;
        }
        Ok(())
    }
}
