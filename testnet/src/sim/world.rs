//! The simulated world: real agents in virtual time, and a network that is a queue of events.
//!
//! Gossip is an abstract broadcast: every node hears every message after a delay, unless a fault says otherwise. Register exchanges go between neighbours.
//! A message's signatures are checked once, not once a receiver: the first gate is pure, so all would find the same.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use anyhow::ensure;
use paris_protocol::{
    agent::{Action, Agent, FetchFailure, LogEntry, Made, Memory, Mirror, Settings, Verdict},
    checkpoint::{Blob, CheckpointId},
    claim::ClaimId,
    codec::Wire,
    hash::Hash,
    heard::Heard,
    identity::{Keypair, NodeId},
    lease::Time,
    manifest::{Manifest, RunId},
    message::Gossip,
    part::Part,
    register::{Digest, Records},
};

use super::{
    ledger::Ledger,
    queue::{Event, GROUPS, Place, Queue},
    random::Random,
    report::Report,
    scenario::Scenario,
};

/// Neighbours that a node dials.
const DIALS: u64 = 4;
const FETCH: Duration = Duration::from_secs(2);
const LAST_CHECKPOINT: Duration = Duration::from_millis(500);
const STEPS_A_SECOND: u64 = 10;

/// What outlives a kill.
#[derive(Default)]
struct Disk {
    log: BTreeMap<ClaimId, u64>,
    records: Records,
    held: BTreeMap<CheckpointId, bool>,
}

#[derive(Clone, Copy)]
struct Trainer {
    from_step: u64,
    began: Time,
    generation: u64,
    /// Its node does not own the part.
    shadow: bool,
}

pub(super) struct Node {
    secret: [u8; 32],
    pub(super) id: NodeId,
    pub(super) agent: Option<Agent>,
    life: u32,
    disk: Disk,
    trainers: BTreeMap<Part, Trainer>,
    pub(super) neighbours: Vec<Place>,
    next_tick: Time,
    pub(super) suspended: bool,
    pub(super) liar: bool,
    pub(super) left: bool,
    /// On the smaller side of a cut.
    pub(super) cut: bool,
}

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) now: Time,
    pub(super) queue: Queue,
    pub(super) random: Random,
    pub(super) nodes: Vec<Node>,
    places: BTreeMap<NodeId, Place>,
    manifest: Arc<Manifest>,
    pub(super) run: RunId,
    pub(super) ledger: Ledger,
    steps: BTreeMap<CheckpointId, u64>,
    /// A cut now in force: whether the smaller side is still heard.
    pub(super) cut: Option<bool>,
    /// After this moment no fault begins.
    pub(super) calm_from: Time,
    sent: u64,
    sent_bytes: u64,
    events: u64,
    pub(super) trace: Option<Box<dyn std::io::Write>>,
}

impl Node {
    /// Its key.
    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }
}

impl World {
    pub(super) fn new(scenario: Scenario, nodes: u32, parts: u16, seed: u64, end: Time) -> anyhow::Result<Self> {
        let manifest = Arc::new(scenario.manifest(parts));
        let run = manifest.id()?;
        let mut random = Random::new(seed);
        let liars = (f64::from(nodes) * scenario.liars) as u32;
        let node = |place: u32| {
            let secret = Hash::of_fields("simulated key", &[&seed.to_le_bytes(), &place.to_le_bytes()]).0;
            let id = Keypair::from_secret(&secret).id();
            let neighbours =
                (0..DIALS).map(|_| random.below(nodes.into()) as Place).filter(|it| *it != place).collect();
            Node {
                secret,
                id,
                agent: None,
                life: 0,
                disk: Disk::default(),
                trainers: BTreeMap::new(),
                neighbours,
                next_tick: Time::MAX,
                suspended: false,
                liar: place >= nodes - liars,
                left: false,
                cut: false,
            }
        };
        let mut all: Vec<Node> = (0..nodes).map(node).collect();
        for place in 0..nodes {
            for other in all[place as usize].neighbours.clone() {
                if !all[other as usize].neighbours.contains(&place) {
                    all[other as usize].neighbours.push(place);
                }
            }
        }
        let places = all.iter().zip(0..).map(|(node, place)| (node.id, place)).collect();
        let ledger = Ledger::new(manifest.parts(), nodes);
        Ok(Self {
            scenario,
            now: Time::ZERO,
            queue: Queue::default(),
            random,
            nodes: all,
            places,
            manifest,
            run,
            ledger,
            steps: BTreeMap::new(),
            cut: None,
            calm_from: end,
            sent: 0,
            sent_bytes: 0,
            events: 0,
            trace: None,
        })
    }

    /// Runs until `end`. An error is a broken law.
    pub(super) fn run_until(&mut self, end: Time) -> anyhow::Result<()> {
        while let Some((at, event)) = self.queue.next() {
            if at > end {
                break;
            }
            self.now = at;
            self.events += 1;
            self.happen(event)?;
        }
        self.now = end;
        Ok(())
    }

    fn happen(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Tick { node } if self.nodes[node as usize].next_tick != self.now => Ok(()),
            Event::Tick { node } => self.input(node, |_, _| ()).map(drop),
            Event::Gossip { from, group, heard } => self.deliver(from, group, &heard),
            Event::Request { to, from, request } => self.answer(to, from, &request),
            Event::Answer { to, from, answer } => self.take_answer(to, from, &answer),
            Event::Fetch { node, life, id, state, providers } => self.fetch(node, life, id, state, &providers),
            Event::Checkpoint { node, part, generation } => self.checkpoint_due(node, part, generation),
            Event::LastCheckpoint { node, life, part, step } if self.nodes[node as usize].life == life => {
                self.checkpoint(node, part, step)
            }
            Event::LastCheckpoint { .. } => Ok(()),
            fault => self.befall(fault),
        }
    }

    pub(super) fn part_count(&self) -> usize {
        self.manifest.clusters.len() + 1
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        self.manifest.parts()
    }

    /// True if what `from` sends reaches `to`.
    pub(super) fn reaches(&self, from: Place, to: Place) -> bool {
        let (from, to) = (&self.nodes[from as usize], &self.nodes[to as usize]);
        to.agent.is_some() && !to.suspended && (from.cut == to.cut || (self.cut == Some(true) && from.cut))
    }

    /// Starts a node with what its disk has.
    pub(super) fn start(&mut self, place: Place) -> anyhow::Result<()> {
        let node = &mut self.nodes[place as usize];
        if node.agent.is_some() || node.liar || node.left {
            return Ok(());
        }
        node.life += 1;
        let log = node.disk.log.iter().map(|(claim, seq)| LogEntry { claim: *claim, seq_reserved: *seq }).collect();
        let held = node.disk.held.iter().map(|(id, state)| (*id, *state)).collect();
        let memory = Memory { log, records: std::mem::take(&mut node.disk.records), held };
        let boot = u64::from(place) << 32 | u64::from(node.life);
        let settings = Settings { capacity: self.scenario.capacity, mirror: Mirror::Replicas };
        let keypair = Keypair::from_secret(&node.secret);
        node.agent = Some(Agent::new(self.now, keypair, self.manifest.clone(), settings, boot, memory)?);
        self.input(place, |_, _| ())?;
        for other in self.nodes[place as usize].neighbours.clone() {
            self.connect(place, other)?;
        }
        Ok(())
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
            if self.nodes[one as usize].agent.is_some() && !self.nodes[one as usize].suspended {
                self.input(one, |agent, _| agent.disconnected(id))?;
            }
        }
        Ok(())
    }

    /// Kills a node; its disk stays.
    pub(super) fn kill(&mut self, place: Place) -> anyhow::Result<()> {
        let node = &mut self.nodes[place as usize];
        let Some(agent) = node.agent.take() else { return Ok(()) };
        node.suspended = false;
        node.life += 1;
        node.disk.records = agent.register().differing(&Digest::default());
        for (part, trainer) in std::mem::take(&mut node.trainers) {
            if !trainer.shadow {
                self.ledger.ends(self.now, part, true);
            }
        }
        // What an answer could not hold is not on the simulated disk.
        self.ledger.forget_fence(place);
        for other in self.nodes[place as usize].neighbours.clone() {
            self.disconnect(place, other)?;
        }
        Ok(())
    }

    /// An input to an agent, and all that follows from it at once.
    pub(super) fn input<R>(
        &mut self,
        place: Place,
        input: impl FnOnce(&mut Agent, Time) -> R,
    ) -> anyhow::Result<Option<R>> {
        let node = &mut self.nodes[place as usize];
        let Some(agent) = node.agent.as_mut().filter(|_| !node.suspended) else { return Ok(None) };
        let result = input(agent, self.now);
        agent.tick(self.now);
        let (actions, deadline) = (agent.take_actions(), agent.deadline());
        ensure!(deadline > self.now, "node {place} is due again at once, and would spin");
        if node.next_tick != deadline {
            node.next_tick = deadline;
            self.queue.plan(deadline, Event::Tick { node: place });
        }
        for action in actions {
            self.carry_out(place, action)?;
        }
        self.note_adopted(place);
        Ok(Some(result))
    }

    fn carry_out(&mut self, place: Place, action: Action) -> anyhow::Result<()> {
        let node = &mut self.nodes[place as usize];
        match action {
            Action::Log(entry) => {
                node.disk.log.insert(entry.claim, entry.seq_reserved);
            }
            // The simulated disk takes the register as it is when its node is killed.
            Action::RememberClaim(_) | Action::RememberCheckpoint(_) | Action::Learn { .. } => {}
            Action::Publish(bytes) => self.publish(place, &bytes)?,
            Action::Pull { peer, request } => {
                let to = self.places[&peer];
                if self.reaches(place, to) {
                    let delay = self.delay();
                    self.queue.plan(self.now + delay, Event::Request { to, from: place, request });
                }
            }
            Action::Fetch { checkpoint, state, providers } => {
                let event = Event::Fetch { node: place, life: node.life, id: checkpoint.id(), state, providers };
                self.queue.plan(self.now + FETCH, event);
            }
            Action::Forget(id) => {
                node.disk.held.remove(&id);
            }
            Action::Train { part, from } => self.train(place, part, from)?,
            Action::Stop(part) => {
                let trainer = node.trainers.remove(&part);
                let trainer =
                    trainer.ok_or_else(|| anyhow::anyhow!("node {place} stops {part}, which it does not train"))?;
                let (life, step) = (node.life, step_of(self.now, &trainer));
                if !trainer.shadow {
                    self.ledger.ends(self.now, part, false);
                }
                self.note(|| format!("node {place} stops {part}"));
                self.queue.plan(self.now + LAST_CHECKPOINT, Event::LastCheckpoint { node: place, life, part, step });
            }
            Action::Halt(why) => anyhow::bail!("honest node {place} halts: {why}"),
        }
        Ok(())
    }

    /// One line of the trace: the moment, what happened, and how many parts each node trains.
    pub(super) fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            let columns: String = self
                .nodes
                .iter()
                .map(|node| match &node.agent {
                    None => " .".to_owned(),
                    Some(_) if node.suspended => " z".to_owned(),
                    Some(_) => format!(" {}", node.trainers.len()),
                })
                .collect();
            // A trace that cannot be written is not worth a run.
            let _ = writeln!(trace, "{:>12.3}{columns}  {}", self.now.as_secs_f64(), what());
        }
    }

    fn delay(&mut self) -> Duration {
        let span = match self.random.happens(self.scenario.late) {
            true => self.scenario.late_ms,
            false => self.scenario.delay_ms,
        };
        Duration::from_micros(self.random.between(span.map(|ms| ms * 1000)))
    }

    fn publish(&mut self, place: Place, bytes: &[u8]) -> anyhow::Result<()> {
        let id = self.nodes[place as usize].id;
        if let Gossip::Beat { claims, .. } = Gossip::from_bytes(bytes)? {
            for claim in claims {
                let claim = claim.verify(self.run)?;
                let name = claim.id(self.run, id);
                let reserved = self.nodes[place as usize].disk.log.get(&name).copied();
                ensure!(reserved >= Some(claim.seq), "node {place} signed seq {} and reserved {reserved:?}", claim.seq);
                self.ledger.signed(claim.part, claim.term, id, name)?;
            }
        }
        self.broadcast(place, bytes)
    }

    /// Sends gossip to everyone.
    pub(super) fn broadcast(&mut self, place: Place, bytes: &[u8]) -> anyhow::Result<()> {
        self.sent += 1;
        self.sent_bytes += bytes.len() as u64;
        let id = self.nodes[place as usize].id;
        let heard = Heard::read(self.run, self.part_count(), id, bytes);
        let Some(heard) = heard.map(Arc::new) else {
            ensure!(self.nodes[place as usize].liar, "node {place} sent what no honest peer sends");
            return Ok(());
        };
        for group in 0..GROUPS {
            for _ in 0..1 + u32::from(self.random.happens(self.scenario.duplicates)) {
                let delay = self.delay();
                let heard = heard.clone();
                self.queue.plan(self.now + delay, Event::Gossip { from: place, group, heard });
            }
        }
        Ok(())
    }

    fn deliver(&mut self, from: Place, group: u32, heard: &Heard) -> anyhow::Result<()> {
        let loss = self.scenario.loss;
        for place in (group..self.nodes.len() as u32).step_by(GROUPS as usize) {
            if place == from || !self.reaches(from, place) || self.random.happens(loss) {
                continue;
            }
            let verdict = self.input(place, |agent, now| agent.hear(now, heard))?;
            let honest = !self.nodes[from as usize].liar;
            ensure!(!honest || verdict != Some(Verdict::Reject), "node {place} rejects what honest node {from} sent");
            if let Some(agent) = &self.nodes[place as usize].agent {
                for part in heard.parts() {
                    self.ledger.fence(place, part, agent.register())?;
                }
            }
        }
        Ok(())
    }

    fn answer(&mut self, to: Place, from: Place, request: &[u8]) -> anyhow::Result<()> {
        let Some(agent) = &self.nodes[to as usize].agent else { return Ok(()) };
        let Some(answer) = agent.answer(request) else { anyhow::bail!("node {to} does not answer node {from}") };
        if self.reaches(to, from) {
            let (id, delay) = (self.nodes[to as usize].id, self.delay());
            self.queue.plan(self.now + delay, Event::Answer { to: from, from: id, answer });
        }
        Ok(())
    }

    fn take_answer(&mut self, to: Place, from: NodeId, answer: &[u8]) -> anyhow::Result<()> {
        let taken = self.input(to, |agent, now| agent.pulled(now, from, answer))?;
        ensure!(taken != Some(false), "node {to} takes an honest answer for a lie");
        if let Some(agent) = &self.nodes[to as usize].agent {
            for part in self.manifest.parts() {
                self.ledger.fence(to, part, agent.register())?;
            }
        }
        Ok(())
    }

    fn fetch(
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
            *self.nodes[place as usize].disk.held.entry(id).or_default() |= state;
        }
        self.input(place, |agent, now| match done {
            true => agent.fetched(now, id, state),
            false => agent.fetch_failed(now, id, FetchFailure::Unavailable),
        })
        .map(drop)
    }

    fn train(&mut self, place: Place, part: Part, from: Option<CheckpointId>) -> anyhow::Result<()> {
        let node = &mut self.nodes[place as usize];
        if let Some(id) = from {
            ensure!(node.disk.held.get(&id) == Some(&true), "node {place} trains {part} from what it does not hold");
        }
        let from_step = from.map_or(0, |id| self.steps[&id]);
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

    fn interval(&self) -> Duration {
        Duration::from_millis(self.manifest.ownership.checkpoint_ms.into())
    }

    fn checkpoint_due(&mut self, place: Place, part: Part, generation: u64) -> anyhow::Result<()> {
        let node = &self.nodes[place as usize];
        let Some(trainer) = node.trainers.get(&part).filter(|trainer| trainer.generation == generation) else {
            return Ok(());
        };
        let step = step_of(self.now, trainer);
        let next = self.now + self.interval();
        self.queue.plan(next, Event::Checkpoint { node: place, part, generation });
        match node.suspended {
            true => Ok(()),
            false => self.checkpoint(place, part, step),
        }
    }

    fn checkpoint(&mut self, place: Place, part: Part, step: u64) -> anyhow::Result<()> {
        let blob = |kind: u8| Blob {
            hash: Hash::of_fields("blob", &[&[kind], &place.to_le_bytes(), &step.to_le_bytes()]),
            bytes: 1,
        };
        let made = Made { step, held_out_loss: 1.0, weights: blob(0), state: blob(1) };
        // What follows at once may be a handover, and a stop: the checkpoint is on the disk before.
        let Some(Some(id)) = self.input(place, |agent, now| agent.checkpointed(now, part, made))? else {
            return Ok(());
        };
        self.steps.insert(id, step);
        let node = &mut self.nodes[place as usize];
        if let Some(agent) = &node.agent {
            if agent.holds(id) {
                node.disk.held.insert(id, true);
            }
            if let Some(record) = agent.register().checkpoint(part, id) {
                self.ledger.published(part, record.term, step, id);
            }
        }
        Ok(())
    }

    /// A shadow whose part its node came to own is a trainer like any other.
    fn note_adopted(&mut self, place: Place) {
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

    /// Living nodes that are honest.
    pub(super) fn honest(&self) -> impl Iterator<Item = (&Node, &Agent)> {
        self.nodes.iter().filter_map(|node| node.agent.as_ref().map(|agent| (node, agent)))
    }

    /// True if all living honest nodes name the same owners.
    pub(super) fn agrees(&self) -> bool {
        self.parts().all(|part| {
            let mut named = self.honest().map(|(_, agent)| agent.register().current_id(part));
            let first = named.next();
            named.all(|other| Some(other) == first)
        })
    }

    /// The laws that hold when faults have ceased for long enough, and what was measured.
    pub(super) fn close(mut self, mut report: Report, check: bool) -> anyhow::Result<Report> {
        let seconds = self.now.as_secs_f64();
        report.hours = seconds / 3600.0;
        report.scenario = self.scenario.name.clone();
        report.sent_per_node_second = self.sent as f64 / seconds / self.nodes.len() as f64;
        report.heard_bytes_per_second = self.sent_bytes as f64 / seconds;
        report.events = self.events;
        let lost = |(part, id): (Part, CheckpointId)| {
            !self.honest().any(|(_, agent)| agent.register().checkpoint(part, id).is_some())
        };
        report.checkpoints_lost = self.ledger.best().filter(|best| lost(*best)).count() as u64;
        if check {
            ensure!(self.agrees(), "the nodes name different owners long after the last fault");
            ensure!(report.checkpoints_lost == 0, "{} best checkpoints are lost", report.checkpoints_lost);
            let wrong = self.ledger.not_owned_once();
            ensure!(wrong.is_empty(), "long after the last fault not one node trains each of {wrong:?}");
            let liars: Vec<_> = self.nodes.iter().filter(|node| node.liar).map(|node| node.id).collect();
            for (_, agent) in self.honest().take(1) {
                let stolen = self
                    .parts()
                    .find(|part| agent.register().current(*part).is_some_and(|it| liars.contains(&it.author())));
                ensure!(stolen.is_none() || self.scenario.times.quorum < 2, "a liar owns {stolen:?}");
            }
        }
        let now = self.now;
        self.ledger.close(now, &mut report);
        Ok(report)
    }
}

fn step_of(now: Time, trainer: &Trainer) -> u64 {
    trainer.from_step + (now - trainer.began).as_millis() as u64 * STEPS_A_SECOND / 1000
}
