//! The simulated world: real agents in virtual time, and a network that is a queue of events.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use anyhow::ensure;
use paris_protocol::{
    agent::{Action, Agent},
    checkpoint::CheckpointId,
    claim::Vote,
    identity::NodeId,
    invitation::INVITATIONS_MAX,
    lease::Time,
    manifest::{Admission, Manifest, RunId},
    part::Part,
    signed::Verified,
};

use super::{
    cohorts::Cohort,
    gossip::Message,
    hops::Flights,
    ledger::Ledger,
    liars::Squat,
    node::Node,
    queue::{Event, Place, Queue},
    random::Random,
    scenario::{Scenario, Spread},
    training::FETCH,
};

/// Who invites, in a run by invitation.
pub(super) const ORGANISER: Place = 0;

pub(super) struct World {
    pub(super) scenario: Scenario,
    pub(super) now: Time,
    pub(super) queue: Queue,
    pub(super) random: Random,
    pub(super) nodes: Vec<Node>,
    pub(super) places: BTreeMap<NodeId, Place>,
    pub(super) manifest: Arc<Manifest>,
    pub(super) run: RunId,
    pub(super) ledger: Ledger,
    /// Part and step of every checkpoint.
    pub(super) checkpoints: BTreeMap<CheckpointId, (Part, u64)>,
    /// Who holds how many checkpoints of a part.
    pub(super) holders: BTreeMap<Part, BTreeMap<Place, u32>>,
    /// A cut now in force: whether the smaller side is still heard.
    pub(super) cut: Option<bool>,
    /// After this moment no fault begins.
    pub(super) calm_from: Time,
    pub(super) cohorts: Vec<Cohort>,
    /// By node: from when on it minds news, where nodes hear in cohorts.
    pub(super) minds_from: Vec<Time>,
    pub(super) flights: Flights,
    /// Old messages of honest nodes, the latest first, for liars to replay.
    pub(super) captured: VecDeque<Arc<Message>>,
    /// Votes that honest nodes gave to liars.
    pub(super) seconded: BTreeMap<Place, Vec<Verified<Vote>>>,
    /// What liars came to own.
    pub(super) squats: BTreeMap<Place, Vec<Squat>>,
    pub(super) sent: u64,
    pub(super) sent_bytes: u64,
    pub(super) events: u64,
    /// Nodes that refused to go on from an old copy of their disk.
    pub(super) halted: u64,
    /// Parts that a liar came to own by the votes of others.
    pub(super) squatted: u64,
    /// Parts that a liar took from an owner who lived.
    pub(super) robbed: u64,
    pub(super) trace: Option<Box<dyn std::io::Write>>,
}

impl World {
    pub(super) fn new(scenario: Scenario, nodes: u32, parts: u16, seed: u64, end: Time) -> anyhow::Result<Self> {
        let mut random = Random::new(seed);
        let liars = (f64::from(nodes) * scenario.liars).ceil() as u32;
        let all = Node::draw_all(&mut random, seed, nodes, liars);
        let mut manifest = scenario.manifest(parts);
        if scenario.by_invitation {
            let uninvited = usize::from(INVITATIONS_MAX) + 1;
            ensure!(all.len() <= uninvited, "one organiser cannot invite so many: at most {uninvited} nodes");
            manifest.admission = Admission::Invite(vec![all[ORGANISER as usize].id]);
        } else if !scenario.admits_liars {
            manifest.admission =
                Admission::AllowList(all.iter().filter(|node| !node.liar).map(|node| node.id).collect());
        }
        let manifest = Arc::new(manifest);
        let run = manifest.id()?;
        let places = all.iter().zip(0..).map(|(node, place)| (node.id, place)).collect();
        let ledger = Ledger::new(manifest.parts(), nodes);
        let mut world = Self {
            scenario,
            now: Time::ZERO,
            queue: Queue::default(),
            random,
            nodes: all,
            places,
            manifest,
            run,
            ledger,
            checkpoints: BTreeMap::new(),
            holders: BTreeMap::new(),
            cut: None,
            calm_from: end,
            cohorts: Vec::new(),
            minds_from: vec![Time::ZERO; nodes as usize],
            flights: Flights::default(),
            captured: VecDeque::new(),
            seconded: BTreeMap::new(),
            squats: BTreeMap::new(),
            sent: 0,
            sent_bytes: 0,
            events: 0,
            halted: 0,
            squatted: 0,
            robbed: 0,
            trace: None,
        };
        world.open_cohorts()?;
        Ok(world)
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
            Event::Ear { cohort } => self.ear_due(cohort),
            Event::Turns { cohort, parts } => self.turns_are_over(cohort, &parts),
            Event::Gossip { group, message } => self.deliver(group, &message),
            Event::Hop { from, to, flight } => self.hop(from, to, flight),
            Event::Request { to, from, request } => self.answer(to, from, &request),
            Event::Answer { to, from, answer } => self.take_answer(to, from, &answer),
            Event::Fetch { node, life, id, state, providers } => self.fetch(node, life, id, state, &providers),
            Event::Checkpoint { node, part, generation } => self.checkpoint_due(node, part, generation),
            Event::LastCheckpoint { node, life, part, step } if self.nodes[node as usize].life == life => {
                self.checkpoint(node, part, step)?;
                self.input(node, |agent, _| agent.trainer_gone(part)).map(drop)
            }
            Event::LastCheckpoint { .. } => Ok(()),
            Event::Dial { node } => self.dial(node),
            fault => self.befall(fault),
        }
    }

    pub(super) fn part_count(&self) -> usize {
        self.manifest.clusters.len() + 1
    }

    pub(super) fn parts(&self) -> impl Iterator<Item = Part> + use<> {
        self.manifest.parts()
    }

    /// An input to an agent, and all that follows from it at once.
    pub(super) fn input<R>(
        &mut self,
        place: Place,
        input: impl FnOnce(&mut Agent, Time) -> R,
    ) -> anyhow::Result<Option<R>> {
        if !self.nodes[place as usize].is_up() {
            return Ok(None);
        }
        let (now, shares) = (self.now, self.scenario.gossip == Spread::Cohorts);
        self.exchange_hearing(place);
        let node = &mut self.nodes[place as usize];
        let dozed = std::mem::take(&mut node.dozed);
        let Some(agent) = &mut node.agent else { return Ok(None) };
        if shares && !dozed {
            agent.listened_for(now);
        }
        let result = input(agent, now);
        agent.tick(now);
        let actions = agent.take_actions();
        let deadline = if shares { agent.deadline_of_its_own() } else { agent.deadline() };
        if shares {
            self.minds_from[place as usize] = agent.minds_from();
        }
        ensure!(deadline > now, "node {place} is due again at once, and would spin");
        if node.next_tick != deadline {
            node.next_tick = deadline;
            self.queue.plan(deadline, Event::Tick { node: place });
        }
        self.exchange_hearing(place);
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
            Action::RememberClaim(_)
            | Action::RememberCheckpoint(_)
            | Action::RememberInvitation(_)
            | Action::Learn { .. } => {}
            Action::Publish(bytes) => self.publish(place, &bytes)?,
            Action::Pull(peer) => self.pull(place, peer),
            Action::Fetch { checkpoint, state, providers } => {
                let event = Event::Fetch { node: place, life: node.life, id: checkpoint.id(), state, providers };
                self.queue.plan(self.now + FETCH, event);
            }
            Action::Forget(id) => self.forget(place, id),
            Action::Train { part, from } => self.train(place, part, from)?,
            Action::Stop(part) => self.stop(place, part)?,
            Action::Halt(why) => {
                ensure!(node.outdated, "honest node {place} halts: {why}");
                self.note(|| format!("node {place} refuses to go on from an old copy of its disk"));
                self.halted += 1;
                self.nodes[place as usize].left = true;
                self.kill(place)?;
            }
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

    /// A node asks a neighbour for what its register lacks. Who hears in a cohort lacks nothing that is not on its way.
    fn pull(&mut self, place: Place, peer: NodeId) {
        let to = self.places[&peer];
        if self.cohorts.is_empty() && self.reaches(place, to) {
            let request = self.nodes[place as usize].agent.as_ref().and_then(Agent::request);
            let delay = self.delay();
            if let Some(request) = request {
                self.queue.plan(self.now + delay, Event::Request { to, from: place, request });
            }
        }
    }

    fn answer(&mut self, to: Place, from: Place, request: &[u8]) -> anyhow::Result<()> {
        let (now, asker) = (self.now, self.nodes[from as usize].id);
        let Some(agent) = &mut self.nodes[to as usize].agent else { return Ok(()) };
        let Some(answer) = agent.answer(now, asker, request) else {
            anyhow::bail!("node {to} does not answer node {from}")
        };
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
                self.ledger.fence(to as usize, part, agent.register())?;
            }
        }
        Ok(())
    }
}
