//! The nodes of the simulated world: how they start, meet, and die.

use std::collections::BTreeMap;

use paris_protocol::{
    agent::{Agent, LogEntry, Memory, Mirror, Settings},
    checkpoint::CheckpointId,
    claim::ClaimId,
    hash::Hash,
    identity::{Keypair, NodeId},
    invitation::Invitation,
    lease::Time,
    part::Part,
    register::{Digest, Records},
    signed::Signed,
};

use super::{
    queue::{Event, Place},
    random::Random,
    scenario::Spread,
    training::Trainer,
    world::World,
};

/// Neighbours that a node dials.
const DIALS: usize = 4;
/// Fewer living neighbours than these make a node dial anew.
const NEIGHBOURS_MIN: usize = 2;
/// How long that takes, milliseconds.
const REDIAL_MS: [u64; 2] = [1_000, 10_000];

/// What outlives a kill.
#[derive(Clone, Default)]
pub(super) struct Disk {
    pub(super) log: BTreeMap<ClaimId, u64>,
    pub(super) records: Records,
    pub(super) invitations: Vec<Signed<Invitation>>,
    pub(super) held: BTreeMap<CheckpointId, bool>,
}

/// A machine with a key, whether it runs or not.
pub(super) struct Node {
    pub(super) secret: [u8; 32],
    pub(super) id: NodeId,
    pub(super) agent: Option<Agent>,
    pub(super) life: u32,
    pub(super) disk: Disk,
    /// Its disk as it was when it last started.
    pub(super) backup: Disk,
    /// It was started from a copy older than what it signed since: it must refuse to go on.
    pub(super) outdated: bool,
    pub(super) trainers: BTreeMap<Part, Trainer>,
    pub(super) neighbours: Vec<Place>,
    pub(super) next_tick: Time,
    pub(super) suspended: bool,
    /// It was suspended and has not noticed yet.
    pub(super) dozed: bool,
    pub(super) liar: bool,
    pub(super) left: bool,
    /// On the smaller side of a cut.
    pub(super) cut: bool,
}

impl Node {
    /// Nodes with keys that follow from the seed, each with neighbours who know each other; the last are liars.
    pub(super) fn draw_all(random: &mut Random, seed: u64, nodes: u32, liars: u32) -> Vec<Self> {
        let mut node = |place: u32| {
            let secret = Hash::of_fields("simulated key", &[&seed.to_le_bytes(), &place.to_le_bytes()]).0;
            let dialled = (0..DIALS).map(|_| random.below(nodes.into()) as Place);
            Self {
                secret,
                id: Keypair::from_secret(&secret).id(),
                agent: None,
                life: 0,
                disk: Disk::default(),
                backup: Disk::default(),
                outdated: false,
                trainers: BTreeMap::new(),
                neighbours: dialled.filter(|it| *it != place).collect(),
                next_tick: Time::MAX,
                suspended: false,
                dozed: false,
                liar: place >= nodes - liars,
                left: false,
                cut: false,
            }
        };
        let mut all: Vec<Self> = (0..nodes).map(&mut node).collect();
        for place in 0..nodes {
            for other in all[place as usize].neighbours.clone() {
                if !all[other as usize].neighbours.contains(&place) {
                    all[other as usize].neighbours.push(place);
                }
            }
        }
        all
    }

    /// True if it runs, and is not suspended.
    pub(super) fn is_up(&self) -> bool {
        self.agent.is_some() && !self.suspended
    }
}

impl World {
    /// Starts a node with what its disk has.
    pub(super) fn start(&mut self, place: Place) -> anyhow::Result<()> {
        let shares = self.scenario.gossip == Spread::Cohorts;
        let node = &mut self.nodes[place as usize];
        if node.agent.is_some() || node.liar || node.left {
            return Ok(());
        }
        node.life += 1;
        if !shares && !node.outdated {
            node.backup = node.disk.clone();
        }
        let log = node.disk.log.iter().map(|(claim, seq)| LogEntry { claim: *claim, seq_reserved: *seq }).collect();
        let held = node.disk.held.iter().map(|(id, state)| (*id, *state)).collect();
        let Disk { records, invitations, .. } = &mut node.disk;
        let (records, invitations) = (std::mem::take(records), std::mem::take(invitations));
        let memory = Memory { log, records, invitations, held };
        let boot = u64::from(place) << 32 | u64::from(node.life);
        let settings = Settings { capacity: self.scenario.capacity, mirror: Mirror::Replicas };
        let keypair = Keypair::from_secret(&node.secret);
        let mut agent = Agent::new(self.now, keypair, self.manifest.clone(), settings, boot, memory)?;
        if shares {
            agent.repeat_unsigned();
        }
        node.agent = Some(agent);
        node.dozed = false;
        self.input(place, |_, _| ())?;
        for other in self.nodes[place as usize].neighbours.clone() {
            self.connect(place, other)?;
        }
        Ok(())
    }

    /// True if what `from` sends now reaches `to`.
    pub(super) fn reaches(&self, from: Place, to: Place) -> bool {
        self.nodes[to as usize].is_up() && self.crosses(self.nodes[from as usize].cut, self.nodes[to as usize].cut)
    }

    /// True if the network carries messages between two sides of a cut.
    pub(super) fn crosses(&self, from_smaller: bool, to_smaller: bool) -> bool {
        from_smaller == to_smaller || (self.cut == Some(true) && from_smaller)
    }

    pub(super) fn connect(&mut self, one: Place, other: Place) -> anyhow::Result<()> {
        if self.reaches(one, other) && self.reaches(other, one) {
            let (id, other_id) = (self.nodes[one as usize].id, self.nodes[other as usize].id);
            self.input(one, |agent, now| agent.connected(now, other_id))?;
            self.input(other, |agent, now| agent.connected(now, id))?;
        }
        Ok(())
    }

    pub(super) fn disconnect(&mut self, one: Place, other: Place) -> anyhow::Result<()> {
        for (one, other) in [(one, other), (other, one)] {
            let id = self.nodes[other as usize].id;
            if self.nodes[one as usize].is_up() {
                self.input(one, |agent, _| agent.disconnected(id))?;
            }
        }
        Ok(())
    }

    /// A node left with few living neighbours dials another.
    pub(super) fn dial(&mut self, place: Place) -> anyhow::Result<()> {
        let node = &self.nodes[place as usize];
        let living = node.neighbours.iter().filter(|it| self.nodes[**it as usize].is_up()).count();
        if !node.is_up() || living >= NEIGHBOURS_MIN {
            return Ok(());
        }
        let other = self.random.below(self.nodes.len() as u64) as Place;
        let known = other == place || self.nodes[place as usize].neighbours.contains(&other);
        if !known && self.reaches(place, other) && self.reaches(other, place) {
            self.nodes[place as usize].neighbours.push(other);
            self.nodes[other as usize].neighbours.push(place);
            self.connect(place, other)?;
        }
        self.plan_dial(place);
        Ok(())
    }

    fn plan_dial(&mut self, place: Place) {
        let at = self.now + Time::from_millis(self.random.between(REDIAL_MS));
        self.queue.plan(at, Event::Dial { node: place });
    }

    /// Kills a node; its disk stays.
    pub(super) fn kill(&mut self, place: Place) -> anyhow::Result<()> {
        let shares = self.scenario.gossip == Spread::Cohorts;
        let node = &mut self.nodes[place as usize];
        let Some(agent) = node.agent.take() else { return Ok(()) };
        node.suspended = false;
        node.life += 1;
        if !shares {
            // What an answer could not hold is not on the simulated disk.
            node.disk.records = agent.register().differing(&Digest::default());
            node.disk.invitations = agent.register().invitations().cloned().collect();
            self.ledger.forget_fence(place as usize);
        }
        for (part, trainer) in std::mem::take(&mut self.nodes[place as usize].trainers) {
            if !trainer.shadow {
                self.ledger.ends(self.now, part, true);
            }
        }
        self.part_from_neighbours(place)
    }

    /// The neighbours of a node that is gone notice, and dial others where they are few.
    pub(super) fn part_from_neighbours(&mut self, place: Place) -> anyhow::Result<()> {
        for other in self.nodes[place as usize].neighbours.clone() {
            self.disconnect(place, other)?;
            let node = &self.nodes[other as usize];
            let living = node.neighbours.iter().filter(|it| self.nodes[**it as usize].is_up()).count();
            if node.is_up() && living < NEIGHBOURS_MIN {
                self.plan_dial(other);
            }
        }
        Ok(())
    }
}
